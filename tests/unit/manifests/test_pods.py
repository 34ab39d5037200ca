"""The pods that the operator makes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.hardware.inventory import GpuPool, GpuProduct, inventory
from qwen_operator.manifests import names
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pods import (
    InspectionPlace,
    ReplicaPods,
    RuntimeImage,
    engine_pods,
    engine_template,
    inspection_pod,
)
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, EngineSource, Plan
from qwen_operator.sources import registry

OWNER = Owner("demo", "team-a", "uid-1")
IDENTITY = PodIdentity(OWNER, "0a1b2c3d")
DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
FACTS = catalog.lookup("Qwen/Qwen1.5-7B-Chat")
RUNTIME = RuntimeImage("localhost/qwen-operator:0.1.0", "Never", ("chart-secret",))
POOL = GpuPool("p", "NVIDIA-H100-80GB-HBM3", 81559, 8, {"pool": "h"}, ({"key": "dedicated", "operator": "Exists"},))
CLAIM = {"source": {"uri": "pvc://models/qwen/7b"}}
USER_POD = {
    "labels": {"team": "a"},
    "annotations": {"note": "x"},
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "mine"}, {"name": "chart-secret"}],
    "nodeSelector": {"zone": "1"},
    "tolerations": [{"key": "mine", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1}],
    "runtimeClassName": "nvidia",
    "schedulerName": "other",
    "serviceAccountName": "sa",
    "resources": {"requests": {"cpu": "0.5"}, "limits": {"memory": "8192Mi", "rdma/ib": 1}},
    "volumes": [{"name": "extra", "emptyDir": {"sizeLimit": "1024Mi"}}],
    "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "securityContext": {"runAsUser": 1000},
}


def _spec(**spec: Any) -> Spec:
    return parse({"metadata": {"name": "demo"}, "spec": {"model": "Qwen/Qwen1.5-7B-Chat"} | spec})


def _source(spec: Spec) -> EngineSource:
    assert FACTS is not None
    return registry.engine_source(spec, FACTS, DEFAULTS)


def _plan(spec: Spec) -> Plan:
    assert FACTS is not None
    result = plan(spec, FACTS, inventory([], [POOL]), DEFAULTS, _source(spec))
    assert isinstance(result, Plan)
    return result


def _template(spec: Spec, planned: Plan | None = None) -> dict[str, Any]:
    return engine_template(IDENTITY, spec, planned or _plan(spec), _source(spec), RUNTIME)


def _inspection(products: tuple[GpuProduct, ...] = (), **spec: Any) -> dict[str, Any]:
    parsed = _spec(**CLAIM, **spec)
    return inspection_pod(IDENTITY, parsed, _source(parsed), RUNTIME, InspectionPlace(products))


def _engine(**spec: Any) -> dict[str, Any]:
    parsed = _spec(**spec)
    return _engine_pod("0a1b2c3d", _template(parsed), 2, 600)


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _pods(**spec: Any) -> list[dict[str, Any]]:
    return [_engine(**CLAIM, **spec), _inspection(**spec)]


def _engine_pod(revision: str, template: dict[str, Any], index: int, drain_seconds: int) -> dict[str, Any]:
    (pod,) = engine_pods(ReplicaPods(PodIdentity(OWNER, revision), index), template, drain_seconds)
    return pod


def test_an_engine_pod_is_named_placed_and_owned() -> None:
    pod = _engine()
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


def test_sglang_runs_under_the_init_with_the_planned_options() -> None:
    container = _container(_engine())
    command = container["command"]
    start = command.index("sglang.launch_server")
    assert command[: start + 1] == [
        "python3",
        "/qwen-runtime/qwen-runtime.pyz",
        "launch",
        "--",
        "python3",
        "-m",
        "sglang.launch_server",
    ]
    assert command[start + 1 : start + 6] == [
        "--model-path=Qwen/Qwen1.5-7B-Chat",
        "--served-model-name=Qwen/Qwen1.5-7B-Chat",
        "--host=0.0.0.0",
        "--port=8000",
        "--tp-size=1",
    ]
    assert container["image"] == "lmsysorg/sglang:v0.5.23"
    assert container["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["--seconds", "5"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "2Gi", "nvidia.com/gpu": "1"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["HOME"] == "/home/qwen"
    assert environment["HF_HOME"].startswith("/home/qwen/")
    assert environment["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "false"


def test_variables_of_the_user_replace_the_operators() -> None:
    env = [{"name": "HOME", "value": "/x"}, {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    variables = _container(_engine(engine={"env": env}))["env"]
    assert [one for one in variables if one["name"] in ("HOME", "T")] == env


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "the model itself": ({}, "Qwen/Qwen1.5-7B-Chat"),
    "another repository": ({"source": {"uri": "hf://org/copy"}}, "org/copy"),
    "a folder of a claim": (CLAIM, "/models/source/qwen/7b"),
    "a whole claim": ({"source": {"uri": "pvc://models"}}, "/models/source"),
}


@pytest.mark.parametrize(("spec", "path"), MODELS.values(), ids=MODELS.keys())
def test_where_the_model_is(spec: dict[str, Any], path: str) -> None:
    pod = _engine(**spec)
    assert f"--model-path={path}" in _container(pod)["command"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if volume["name"] == "source"]
    mounts = [mount for mount in _container(pod)["volumeMounts"] if mount["name"] == "source"]
    assert claims == ([{"claimName": "models", "readOnly": True}] if path.startswith("/") else [])
    assert all(mount["readOnly"] for mount in mounts)
    assert len(mounts) == len(claims)


def test_probes_follow_from_the_start_up_budget() -> None:
    spec = _spec(engine={"startupSeconds": 99})
    container = _container(_template(spec))
    startup, ready, live = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    assert startup["failureThreshold"] * startup["periodSeconds"] == 200
    assert [probe["httpGet"]["path"] for probe in (startup, ready, live)] == ["/ready", "/ready", "/health"]
    assert live["timeoutSeconds"] > 20, "SGLang itself waits up to 20 s in /health"


def test_shared_memory_has_the_planned_size() -> None:
    spec = _spec()
    template = _template(spec, replace(_plan(spec), shm_bytes=3 << 30))
    (shm,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}


def test_a_share_of_a_gpu_is_requested_by_its_name_and_mps_brings_its_own_shm() -> None:
    spec = _spec()
    shared = replace(_plan(spec), resource_name="nvidia.com/gpu.shared", share="MPS", shm_bytes=0)
    pod = _template(spec, shared)["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu.shared": "1"}
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert "shm" not in {one["name"] for one in (*pod["volumes"], *container["volumeMounts"])}


@pytest.mark.parametrize("pod", _pods(), ids=["engine", "inspection"])
def test_pods_meet_the_restricted_profile(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {65532}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert container["resources"]["requests"]
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("pod", _pods(pod=USER_POD), ids=["engine", "inspection"])
def test_what_the_user_adds_to_both_pods(pod: dict[str, Any]) -> None:
    metadata, spec = pod["metadata"], pod["spec"]
    assert metadata["labels"]["team"] == "a"
    assert metadata["annotations"] == {"note": "x", "qwen-operator.dev/owner-uid": "uid-1"}
    assert (spec["priorityClassName"], spec["schedulerName"], spec["serviceAccountName"]) == ("high", "other", "sa")
    assert spec["imagePullSecrets"] == [{"name": "chart-secret"}, {"name": "mine"}]
    assert spec["nodeSelector"]["zone"] == "1"
    assert spec["tolerations"][-1] == {"key": "mine", "operator": "Exists"}
    assert spec["affinity"] == {"podAntiAffinity": {}}
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (1000, True)


def test_what_the_user_adds_to_the_engine_alone() -> None:
    pod = _engine(pod=USER_POD)
    container = _container(pod)
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "8Gi", "rdma/ib": "1", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8Gi", "rdma/ib": "1", "nvidia.com/gpu": "1"},
    }
    assert container["volumeMounts"][-1] == {"name": "extra", "mountPath": "/extra"}
    assert pod["spec"]["volumes"][-1] == {"name": "extra", "emptyDir": {"sizeLimit": "1Gi"}}
    assert (pod["spec"]["runtimeClassName"], pod["spec"]["topologySpreadConstraints"]) == ("nvidia", [{"maxSkew": 1}])


def test_the_inspection_pod_reads_the_claim_once() -> None:
    pod = _inspection()
    container = _container(pod)
    assert pod["metadata"]["name"] == "demo-0a1b2c3d-inspect"
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == "inspection"
    assert names.LABEL_ROUTABLE not in pod["metadata"]["labels"]
    assert (container["image"], container["imagePullPolicy"]) == (RUNTIME.reference, "Never")
    assert container["command"] == [
        "python3",
        "/opt/qwen-operator/qwen-runtime.pyz",
        "inspect",
        "--path",
        "/models/source/qwen/7b",
    ]
    assert container["volumeMounts"] == [{"name": "source", "mountPath": "/models/source", "readOnly": True}]
    assert (pod["spec"]["restartPolicy"], pod["spec"]["activeDeadlineSeconds"]) == ("Never", 600)
    assert "nodeSelector" not in pod["spec"]


def test_what_a_source_needs_is_in_both_pods() -> None:
    """A scheme that is not there yet may need variables where the files are read, and volumes of any kind."""
    volume, mount = {"name": "source", "emptyDir": {}}, {"name": "source", "mountPath": "/m"}
    source = EngineSource("/m/a", env=(EnvVar("REGION", "eu"),), volumes=(volume,), mounts=(mount,))
    spec = _spec()
    inspection = inspection_pod(IDENTITY, spec, source, RUNTIME, InspectionPlace())
    assert inspection["spec"]["volumes"] == [volume]
    container = _container(inspection)
    assert (container["command"][-1], container["volumeMounts"]) == ("/m/a", [mount])
    assert container["env"] == [{"name": "REGION", "value": "eu"}]
    assert "env" not in _container(_inspection())

    assert FACTS
    planned = plan(spec, FACTS, inventory([], [POOL]), DEFAULTS, source)
    assert isinstance(planned, Plan)
    engine = engine_template(IDENTITY, spec, planned, source, RUNTIME)
    assert volume in engine["spec"]["volumes"]
    container = _container(engine)
    assert mount in container["volumeMounts"]
    assert {"name": "REGION", "value": "eu"} in container["env"]
    assert "--model-path=/m/a" in container["command"]


def test_a_pod_from_a_stored_template_is_the_same_and_shares_nothing() -> None:
    spec = _spec(pod=USER_POD)
    template = _template(spec)
    stored = json.loads(json.dumps(template))
    first = _engine_pod("r", template, 0, 600)
    assert first == _engine_pod("r", stored, 0, 600)
    first["spec"]["containers"][0]["env"].clear()
    first["metadata"]["labels"].clear()
    assert template == stored


def test_the_longest_name_still_fits() -> None:
    longest = names.replica_name("q" * 40, "0" * 8, 63)
    assert len(longest) <= 63
    assert len(names.inspection_pod_name("q" * 40, "0" * 8)) <= 63


def test_requests_and_shared_memory_follow_the_number_of_gpus() -> None:
    spec = _spec(parallelism={"tensor": 4})
    pod = _engine_pod("0a1b2c3d", _template(spec), 0, 600)
    assert _container(pod)["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "4"},
        "limits": {"nvidia.com/gpu": "4"},
    }
    (shm,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}


def test_an_engine_that_is_told_to_stop_has_as_long_as_a_drain() -> None:
    parsed = _spec()
    template = _template(parsed)
    short, long = (_engine_pod("r", template, 0, seconds)["spec"] for seconds in (0, 1800))
    assert (short["terminationGracePeriodSeconds"], long["terminationGracePeriodSeconds"]) == (30, 1830)
    # What is pinned does not know it: a changed rollout is no newer plan.
    assert _template(_spec(rollout={"drainSeconds": 5}), _plan(parsed)) == template


def _terms(pod: dict[str, Any]) -> Any:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


def test_an_inspection_runs_where_engines_may_run() -> None:
    products = inventory([], [POOL, replace(POOL, product="NVIDIA-L4", node_selector={}, tolerations=())]).products
    pod = _inspection(products)
    assert _terms(pod) == [
        [{"key": "pool", "operator": "In", "values": ["h"]}],
        [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}],
    ]
    assert {"key": "dedicated", "operator": "Exists"} in pod["spec"]["tolerations"]

    mine = {"nodeAffinity": {"mine": 1}}
    chosen = _inspection(products, pod={"affinity": mine})
    assert chosen["spec"]["affinity"] == mine
    beside = _inspection(products, pod={"affinity": {"podAffinity": {}}})
    assert set(beside["spec"]["affinity"]) == {"podAffinity", "nodeAffinity"}
    assert "affinity" not in _inspection()["spec"]


def _pair(**spec: Any) -> tuple[dict[str, Any], ...]:
    """The pods of a replica over two nodes."""
    parsed = _spec(**spec)
    planned = replace(_plan(parsed), nodes_per_replica=2, gpus_per_replica=16)
    return engine_pods(ReplicaPods(IDENTITY, 3, 2), _template(parsed, planned), 600)


def test_members_of_a_replica_know_their_place_from_labels_and_annotations() -> None:
    leader, worker = _pair()
    for rank, pod in enumerate((leader, worker)):
        labels = pod["metadata"]["labels"]
        assert pod["metadata"]["name"] == f"demo-0a1b2c3d-3-{rank}"
        assert (labels[names.LABEL_REPLICA], labels[names.LABEL_RANK]) == ("demo-0a1b2c3d-3", str(rank))
        assert pod["spec"]["schedulingGates"] == [{"name": "qwen-operator.dev/group"}]
        paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in _container(pod)["env"][-4:]}
        assert paths == {
            "QWEN_NODE_RANK": "metadata.labels['qwen-operator.dev/rank']",
            "QWEN_POD_NAME": "metadata.name",
            "QWEN_POD_UID": "metadata.uid",
            "QWEN_POD_IP": "status.podIP",
        }
        [volume] = [one for one in pod["spec"]["volumes"] if one["name"] == "qwen-group"]
        [item] = volume["downwardAPI"]["items"]
        assert item["fieldRef"]["fieldPath"] == "metadata.annotations['qwen-operator.dev/group-leader']"
    assert {key: value for key, value in leader["spec"].items() if key != "containers"} == {
        key: value for key, value in worker["spec"].items() if key != "containers"
    }


def test_kueue_admits_the_pods_of_a_replica_together_if_the_user_names_a_queue() -> None:
    queue, group = {"kueue.x-k8s.io/queue-name": "gpus"}, "kueue.x-k8s.io/pod-group-name"
    for pod in _pair(pod={"labels": queue}):
        assert pod["metadata"]["labels"][group] == "demo-0a1b2c3d-3"
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    for pod in _pair(pod={"labels": {**queue, group: "mine"}}):
        assert pod["metadata"]["labels"][group] == "mine"
        assert "kueue.x-k8s.io/pod-group-total-count" not in pod["metadata"]["annotations"]
    assert not any("kueue" in str(pod["metadata"]) for pod in _pair())


def test_a_volume_of_the_user_has_no_name_of_the_group() -> None:
    leader, _ = _pair(pod={"volumes": [{"name": "group", "emptyDir": {}}]})
    volumes = [one["name"] for one in leader["spec"]["volumes"]]
    assert len(set(volumes)) == len(volumes)
    with pytest.raises(InvalidSpec, match="one of the operator's own volumes"):
        _pair(pod={"volumes": [{"name": "qwen-group", "emptyDir": {}}]})


def test_a_user_of_dollar_signs_reads_no_variable_of_the_group() -> None:
    leader, _ = _pair(engine={"env": [{"name": "A", "value": "$(QWEN_NODE_RANK)"}]})
    [variable] = [one for one in _container(leader)["env"] if one["name"] == "A"]
    assert variable["value"] == "$$(QWEN_NODE_RANK)"
    assert _container(leader)["command"][-1] == "--node-rank=$(QWEN_NODE_RANK)"


def test_members_are_apart_and_keep_the_affinity_of_the_user() -> None:
    required, preferred = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))
    term = {"labelSelector": {"matchLabels": {"app": "other"}}, "topologyKey": "zone"}
    own = {"podAntiAffinity": {required: [term]}, "podAffinity": {preferred: [{"weight": 1, "podAffinityTerm": term}]}}
    for pod in _pair(pod={"affinity": own}):
        affinity = pod["spec"]["affinity"]
        assert affinity["podAffinity"] == own["podAffinity"]
        assert affinity["podAntiAffinity"][required] == [
            term,
            {
                "labelSelector": {"matchLabels": {"qwen-operator.dev/replica": "demo-0a1b2c3d-3"}},
                "topologyKey": "kubernetes.io/hostname",
            },
        ]


def test_the_start_of_a_replica_over_several_nodes_may_wait_for_its_pods() -> None:
    alone, (leader, worker) = _container(_engine()), _pair()
    attempts = [_container(pod)["startupProbe"]["failureThreshold"] for pod in (leader, worker)]
    assert attempts == [alone["startupProbe"]["failureThreshold"] + 1200 // 5] * 2
