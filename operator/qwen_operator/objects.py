"""Small readings of Kubernetes objects, for objects of any origin. Pure.

Each answers for a member that is absent, null or of another type as if it were empty, so that no reader has to guard
against it once more.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

ObjectKey = tuple[str, str]
"""(namespace, name) of an object; namespace is "" for objects of the cluster."""


def key_of(item: Object) -> ObjectKey:
    meta = item["metadata"]
    return meta.get("namespace") or "", meta["name"]


def mapping(value: object, *path: str) -> Object:
    """The mapping at the end of a path of member names; {} where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def members(value: object, *path: str) -> Sequence[Object]:
    """The mappings in the list at the end of a path of member names; () where there is none."""
    *parents, last = path
    entries = mapping(value, *parents).get(last)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else ()


def text(value: object, *path: str) -> str:
    """The text at the end of a path of member names; "" where there is none."""
    *parents, last = path
    found = mapping(value, *parents).get(last)
    return found if isinstance(found, str) else ""


def labels(item: Object) -> Object:
    return mapping(item, "metadata", "labels")


def annotations(item: Object) -> Object:
    return mapping(item, "metadata", "annotations")


def owner_references(item: Object) -> Sequence[Object]:
    return members(item, "metadata", "ownerReferences")


def is_deleting(item: Object) -> bool:
    """Whether somebody deleted the object and it ends its grace period, or waits for finalizers."""
    return "deletionTimestamp" in mapping(item, "metadata")


def condition(item: Object, kind: str) -> Object:
    """The entry of `status.conditions` of this type; {} where there is none."""
    return next((entry for entry in members(item, "status", "conditions") if entry.get("type") == kind), {})


def holds(item: Object, kind: str) -> bool:
    """Whether the condition of this type is True."""
    return condition(item, kind).get("status") == "True"


def has_ended(pod: Object) -> bool:
    """Whether the phase of a pod is final: none of its containers runs again."""
    return mapping(pod, "status").get("phase") in ("Succeeded", "Failed")


def node_of(pod: Object) -> str:
    """The node that the pod is bound to, "" before that."""
    return text(pod, "spec", "nodeName")


def named(entries: Iterable[Object], name: str) -> Object:
    """The entry of this name, such as a container; {} where there is none."""
    return next((entry for entry in entries if entry.get("name") == name), {})


def moment(stamp: object) -> datetime | None:
    """The time of an RFC 3339 text; None for anything else, also for a time without a zone."""
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
