"""Whether a node object has the form that Kubernetes gives it.

The API server only returns nodes of the right form. A file that somebody wrote or cut may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_operator.objects import mapping
from qwen_runtime.checkpoints.reading import shown

_MAPS = ("metadata", "metadata.labels", "metadata.annotations", "spec", "status", "status.allocatable")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def fault(node: Mapping[str, Any]) -> str:
    """The first member with a wrong type, as half a sentence that begins with its path. "" if there is none."""
    return next(_faults(node), "")


def unquoted(node: Mapping[str, Any]) -> str:
    """The first label with a number or a boolean instead of text, as half a sentence. "" if there is none."""
    for key, value in mapping(node, "metadata", "labels").items():
        if isinstance(value, (bool, int, float)):
            return f"the value of label {key} is {shown(value)} without quotes, and is read as text"
    return ""


def _faults(node: Mapping[str, Any]) -> Iterator[str]:
    for path in (*_MAPS, "status.capacity"):
        value = _member(node, path)
        if value is not None and not isinstance(value, dict):
            yield f"{path} is {shown(value)}, it must be an object"
    for key, value in mapping(node, "metadata", "labels").items():
        if isinstance(value, (list, dict)):
            yield f"the value of label {key} is {shown(value)}, it must be text"
    yield from _taint_faults(mapping(node, "spec").get("taints"))


def _taint_faults(taints: object) -> Iterator[str]:
    if taints is not None and not isinstance(taints, list):
        yield f"spec.taints is {shown(taints)}, it must be a list"
        return
    for index, taint in enumerate(taints or []):
        path = f"spec.taints[{index}]"
        if not isinstance(taint, dict):
            yield f"{path} is {shown(taint)}, it must be an object with key and effect"
        elif not isinstance(taint.get("key"), str) or not taint["key"]:
            yield f"{path}.key is {shown(taint.get('key'))}, it must be text"
        elif taint.get("effect") not in _EFFECTS:
            yield f"{path}.effect is {shown(taint.get('effect'))}, it must be one of {', '.join(_EFFECTS)}"


def _member(node: Mapping[str, Any], path: str) -> object:
    *parents, last = path.split(".")
    return mapping(node, *parents).get(last)
