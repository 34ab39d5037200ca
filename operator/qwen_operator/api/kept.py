"""What the stores keep of a QwenDeployment: what some code reads, and no more than a bound of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api import reading
from qwen_operator.api.fields import camel
from qwen_operator.api.pod import OWN_PREFIXES
from qwen_operator.api.spec import MOST_CHARACTERS, MOST_VALUES, UNKEPT, InvalidSpec, Spec, parse
from qwen_operator.api.writers import kept_fields
from qwen_operator.objects import Each, Shape, kept

_NAME = 512
_META: Shape = {
    **dict.fromkeys(("name", "namespace", "uid", "resourceVersion", "generation"), _NAME),
    **dict.fromkeys(("creationTimestamp", "deletionTimestamp"), _NAME),
    "ownerReferences": Each(dict.fromkeys(("kind", "name", "uid", "controller"), _NAME), 16),
}
_MOST_NOTES = 64
_MOST_MANAGERS = 8
_STATUS_CHARACTERS = 16_384
_STATUS_VALUES = 1024
# What stays of a spec that is too large: each field that is itself small. Names and sizes are among them.
_SMALL_VALUES = 64
_SMALL_CHARACTERS = 8192
_MOST_REASONS = 8
_FIELDS = frozenset(camel(field.name) for field in fields(Spec))


def kept_deployment(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """What is read of a QwenDeployment. In place of a spec that is too large, it has the reasons against it."""
    meta = kept(deployment.get("metadata"), _META) or {}
    for part in ("labels", "annotations"):
        entries = objects.mapping(deployment, "metadata", part)
        own = sorted(name for name in entries if name.startswith(OWN_PREFIXES))[:_MOST_NOTES]
        if own:
            meta[part] = {name: entries[name] for name in own}
    if managers := kept_fields(objects.mapping(deployment, "metadata")):
        meta["managedFields"] = sorted(managers, key=lambda entry: str(entry.get("time")))[-_MOST_MANAGERS:]
    top = {name: deployment[name] for name in ("apiVersion", "kind", UNKEPT) if name in deployment}
    status = {"status": _status(deployment["status"])} if "status" in deployment else {}
    return {**top, "metadata": meta, **_spec(deployment), **status}


def _spec(deployment: Mapping[str, Any]) -> dict[str, Any]:
    spec = deployment.get("spec")
    if spec is None or reading.size_fault(spec, MOST_VALUES, MOST_CHARACTERS) is None:
        return {"spec": spec} if "spec" in deployment else {}
    try:
        parse(deployment)
        reasons: list[str] = []
    except InvalidSpec as error:
        reasons = error.problems[:_MOST_REASONS]
    small = {name: member for name, member in objects.mapping(deployment, "spec").items() if _is_small(name, member)}
    return {"spec": small, UNKEPT: [untrusted.clean(reason, 1024) for reason in reasons]}


def _is_small(name: str, member: object) -> bool:
    return name in _FIELDS and reading.size_fault(member, _SMALL_VALUES, _SMALL_CHARACTERS) is None


def _status(status: object) -> Any:
    """The status, or nothing of one that no operator wrote. The next write of the status replaces that one."""
    fault = reading.size_fault(status, _STATUS_VALUES, _STATUS_CHARACTERS)
    return status if fault is None else {}
