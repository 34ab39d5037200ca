"""Pods as the operator makes them, for the tests of their parts."""

from __future__ import annotations

from typing import Any

from qwen_operator.api.spec import Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.hardware.inventory import GpuPool, GpuProduct, inventory
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods, engine_template
from qwen_operator.manifests.inspection_pods import InspectionPlace, inspection_pod
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
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


def spec_of(**spec: Any) -> Spec:
    return parse({"metadata": {"name": "demo"}, "spec": {"model": "Qwen/Qwen1.5-7B-Chat"} | spec})


def source_of(spec: Spec) -> EngineSource:
    assert FACTS is not None
    return registry.engine_source(spec, FACTS, DEFAULTS)


def plan_of(spec: Spec) -> Plan:
    assert FACTS is not None
    result = plan(spec, FACTS, inventory([], [POOL]), DEFAULTS, source_of(spec))
    assert isinstance(result, Plan)
    return result


def template_of(spec: Spec, planned: Plan | None = None) -> dict[str, Any]:
    return engine_template(IDENTITY, spec, planned or plan_of(spec), source_of(spec), RUNTIME)


def inspection_pod_of(products: tuple[GpuProduct, ...] = (), **spec: Any) -> dict[str, Any]:
    parsed = spec_of(**CLAIM, **spec)
    return inspection_pod(IDENTITY, parsed, source_of(parsed), RUNTIME, InspectionPlace(products))


def engine_pod_of(**spec: Any) -> dict[str, Any]:
    parsed = spec_of(**spec)
    return pod_of("0a1b2c3d", template_of(parsed), 2, 600)


def only_container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def both_pods(**spec: Any) -> list[dict[str, Any]]:
    return [engine_pod_of(**CLAIM, **spec), inspection_pod_of(**spec)]


def pod_of(revision: str, template: dict[str, Any], index: int, drain_seconds: int) -> dict[str, Any]:
    (pod,) = engine_pods(ReplicaPods(PodIdentity(OWNER, revision), index), template, drain_seconds)
    return pod
