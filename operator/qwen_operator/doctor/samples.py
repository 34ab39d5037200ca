"""Pods as this version makes them, to try a namespace's rules with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwen_operator.api.spec import parse
from qwen_operator.checkpoints import catalog
from qwen_operator.config.types import Settings
from qwen_operator.hardware.inventory import GPU_RESOURCE, PRODUCT_LABEL, GpuProduct, Inventory
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods, engine_template
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import Plan
from qwen_operator.sources import registry

MODEL = "Qwen/Qwen1.5-0.5B-Chat"
"""The smallest model of the catalog: a namespace that rejects its engine rejects every engine."""
_UID = "00000000-0000-0000-0000-000000000000"
_REVISION = "00000000"
_PRODUCT = "NVIDIA-L4"
_HARDWARE = Inventory((GpuProduct(_PRODUCT, 23034, 1, 1, {PRODUCT_LABEL: _PRODUCT}, declared=False),))


def sample_pods(settings: Settings) -> tuple[Mapping[str, Any], ...]:
    """An inspection pod and an engine pod of MODEL. Their names say what they are."""
    # Options of the chart may be for other hardware than _PRODUCT, and do not change what a namespace's rules look at.
    engine = replace(settings.engine, args=())
    spec = parse({"metadata": {"name": "sample"}, "spec": {"model": MODEL, "source": {"uri": "pvc://weights/model"}}})
    checkpoint = catalog.lookup(MODEL)
    identity = PodIdentity(Owner("sample", "default", _UID), _REVISION)
    inspection = registry.inspection_pod(identity, spec, engine, settings.image, _HARDWARE)
    pods = [_called("an inspection pod", inspection)] if inspection else []
    if checkpoint:
        source = registry.engine_source(spec, checkpoint, engine)
        result = plan(spec, checkpoint, _HARDWARE, engine, source)
        if isinstance(result, Plan):
            template = engine_template(identity, spec, result, source, settings.image)
            pods += [_called("an engine pod", pod) for pod in engine_pods(ReplicaPods(identity, 0), template, 0)]
    return tuple(pods)


def to_try(pod: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """The sample for a dry run in a namespace: with a name that the API server accepts, and without its owner."""
    kind = "engine" if GPU_RESOURCE in str(pod["spec"]["containers"]) else "inspection"
    labels = pod["metadata"]["labels"]
    metadata = {"name": f"qwen-doctor-{kind}", "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}


def _called(name: str, pod: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**pod, "metadata": {**pod["metadata"], "name": name}}
