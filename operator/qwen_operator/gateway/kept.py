"""What the agent keeps of the objects that it mirrors: names and their owners, and which pods answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.api.adapters import adapter_names
from qwen_operator.api.kept import kept_deployment
from qwen_operator.api.pod import OWN_PREFIXES
from qwen_operator.manifests.kept import kept_pod

_SPEC = ("model", "servedNames", "replicas", "suspend")
# The status says nothing about names that the agent could use of these, and they are nearly all of it.
_UNUSED_STATUS = frozenset({"noFit", "lastFailure", "scaling", "summary", "model", "adapters"})

_PARTS: dict[str, objects.Shape] = {
    "plan": {"startupSeconds": 32},
    "observed": {"startupSeconds": 32},
    "progress": {"phase": 32, "finishTime": 32},
    "conditions": objects.Each({"type": 64, "status": 16}, 16),
}


def keep(plural: str, item: dict[str, Any]) -> dict[str, Any]:
    """What the agent keeps of a QwenDeployment or of a pod."""
    if plural == "pods":
        return _pod(kept_pod(item))
    if plural != "qwendeployments":
        return item
    deployment = kept_deployment(item)
    spec, status = (objects.mapping(deployment, part) for part in ("spec", "status"))
    meta = {name: value for name, value in deployment["metadata"].items() if name != "managedFields"}
    return {
        **deployment,
        "metadata": meta,
        "spec": {name: spec[name] for name in _SPEC if name in spec} | _adapters(spec),
        "status": {
            name: objects.kept(value, _PARTS[name]) if name in _PARTS else value
            for name, value in status.items()
            if name not in _UNUSED_STATUS
        },
    }


def _adapters(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = adapter_names(spec)
    return {"adapters": [{"name": name} for name in names]} if names else {}


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod without what it runs, and with the operator's own labels and annotations only."""
    meta = dict(pod["metadata"])
    for part in ("labels", "annotations"):
        entries = objects.mapping(meta, part)
        meta[part] = {name: text for name, text in entries.items() if name.startswith(OWN_PREFIXES)}
    return {**pod, "metadata": meta, "spec": objects.kept(pod.get("spec"), {"nodeName": 253}) or {}}
