"""The pods of a replica."""

from __future__ import annotations

import json

from qwen_operator.manifests import names
from tests.unit.manifests.made import (
    USER_POD,
    engine_pod_of,
    only_container,
    plan_of,
    pod_of,
    spec_of,
    template_of,
)


def test_an_engine_pod_is_named_placed_and_owned() -> None:
    pod = engine_pod_of()
    metadata, spec = pod["metadata"], pod["spec"]
    assert (metadata["name"], metadata["namespace"]) == ("demo-0a1b2c3d-2", "team-a")
    assert metadata["labels"] == {
        "app.kubernetes.io/name": "sglang",
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/part-of": "qwen-operator",
        "app.kubernetes.io/managed-by": "qwen-operator",
        "qwen-operator.dev/deployment": "demo",
        "qwen-operator.dev/role": "engine",
        "qwen-operator.dev/routable": "true",
        "qwen-operator.dev/revision": "0a1b2c3d",
    }
    assert metadata["annotations"] == {"qwen-operator.dev/owner-uid": "uid-1"}
    assert [(one["uid"], one["controller"]) for one in metadata["ownerReferences"]] == [("uid-1", True)]
    assert spec["nodeSelector"] == {"pool": "h"}
    assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert spec["imagePullSecrets"] == [{"name": "chart-secret"}]
    assert not {"affinity", "priorityClassName", "runtimeClassName", "hostname", "subdomain"} & spec.keys()


def test_what_the_user_adds_to_the_engine_alone() -> None:
    pod = engine_pod_of(pod=USER_POD)
    container = only_container(pod)
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "8Gi", "rdma/ib": "1", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8Gi", "rdma/ib": "1", "nvidia.com/gpu": "1"},
    }
    assert container["volumeMounts"][-1] == {"name": "extra", "mountPath": "/extra"}
    assert pod["spec"]["volumes"][-1] == {"name": "extra", "emptyDir": {"sizeLimit": "1Gi"}}
    assert (pod["spec"]["runtimeClassName"], pod["spec"]["topologySpreadConstraints"]) == ("nvidia", [{"maxSkew": 1}])


def test_a_pod_from_a_stored_template_is_the_same_and_shares_nothing() -> None:
    spec = spec_of(pod=USER_POD)
    template = template_of(spec)
    stored = json.loads(json.dumps(template))
    first = pod_of("r", template, 0, 600)
    assert first == pod_of("r", stored, 0, 600)
    first["spec"]["containers"][0]["env"].clear()
    first["metadata"]["labels"].clear()
    assert template == stored


def test_the_longest_name_still_fits() -> None:
    longest = names.replica_name("q" * 40, "0" * 8, 63)
    assert len(longest) <= 63
    assert len(names.inspection_pod_name("q" * 40, "0" * 8)) <= 63


def test_an_engine_that_is_told_to_stop_has_as_long_as_a_drain() -> None:
    parsed = spec_of()
    template = template_of(parsed)
    short, long = (pod_of("r", template, 0, seconds)["spec"] for seconds in (0, 1800))
    assert (short["terminationGracePeriodSeconds"], long["terminationGracePeriodSeconds"]) == (30, 1830)
    # What is pinned does not know it: a changed rollout is no newer plan.
    assert template_of(spec_of(rollout={"drainSeconds": 5}), plan_of(parsed)) == template
