"""What engine pods and inspection pods have in common."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.api.engine import EnvVar
from qwen_operator.hardware.inventory import inventory
from qwen_operator.manifests.engine_pods import engine_template
from qwen_operator.manifests.inspection_pods import InspectionPlace, inspection_pod
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineSource, Plan
from tests.unit.manifests.made import (
    DEFAULTS,
    FACTS,
    IDENTITY,
    POOL,
    RUNTIME,
    USER_POD,
    both_pods,
    inspection_pod_of,
    only_container,
    spec_of,
)


@pytest.mark.parametrize("pod", both_pods(), ids=["engine", "inspection"])
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


@pytest.mark.parametrize("pod", both_pods(pod=USER_POD), ids=["engine", "inspection"])
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


def test_what_a_source_needs_is_in_both_pods() -> None:
    """A scheme that is not there yet may need variables where the files are read, and volumes of any kind."""
    volume, mount = {"name": "source", "emptyDir": {}}, {"name": "source", "mountPath": "/m"}
    source = EngineSource("/m/a", env=(EnvVar("REGION", "eu"),), volumes=(volume,), mounts=(mount,))
    spec = spec_of()
    inspection = inspection_pod(IDENTITY, spec, source, RUNTIME, InspectionPlace())
    assert inspection["spec"]["volumes"] == [volume]
    container = only_container(inspection)
    assert (container["command"][-1], container["volumeMounts"]) == ("/m/a", [mount])
    assert container["env"] == [{"name": "REGION", "value": "eu"}]
    assert "env" not in only_container(inspection_pod_of())

    assert FACTS
    planned = plan(spec, FACTS, inventory([], [POOL]), DEFAULTS, source)
    assert isinstance(planned, Plan)
    engine = engine_template(IDENTITY, spec, planned, source, RUNTIME)
    assert volume in engine["spec"]["volumes"]
    container = only_container(engine)
    assert mount in container["volumeMounts"]
    assert {"name": "REGION", "value": "eu"} in container["env"]
    assert "--model-path=/m/a" in container["command"]
