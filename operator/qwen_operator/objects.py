"""Small readings of Kubernetes objects, for objects of any origin. Pure.

Every function treats a member that is absent, null or of another type as empty, so that its callers need no guards.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

ObjectKey = tuple[str, str]
"""(namespace, name) of an object. The namespace is "" for objects of the whole cluster."""


def key_of(item: Object) -> ObjectKey:
    meta = item["metadata"]
    return meta.get("namespace") or "", meta["name"]


def mapping(value: object, *path: str) -> Object:
    """The mapping at the end of a path of member names, {} if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def members(value: object, *path: str) -> Sequence[Object]:
    """The mappings in the list at the end of a path of member names, () if there is none."""
    *parents, last = path
    entries = mapping(value, *parents).get(last)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else ()


def text(value: object, *path: str) -> str:
    """The text at the end of a path of member names, "" if there is none."""
    *parents, last = path
    member = mapping(value, *parents).get(last)
    return member if isinstance(member, str) else ""


def labels(item: Object) -> Object:
    return mapping(item, "metadata", "labels")


def annotations(item: Object) -> Object:
    return mapping(item, "metadata", "annotations")


def owner_references(item: Object) -> Sequence[Object]:
    return members(item, "metadata", "ownerReferences")


def is_deleting(item: Object) -> bool:
    """Whether the object is deleted but still exists, because of its grace period or of finalizers."""
    return "deletionTimestamp" in mapping(item, "metadata")


def condition(item: Object, kind: str) -> Object:
    """The entry of `status.conditions` of this type, {} if there is none."""
    return next((entry for entry in members(item, "status", "conditions") if entry.get("type") == kind), {})


def holds(item: Object, kind: str) -> bool:
    """Whether the condition of this type is True."""
    return condition(item, kind).get("status") == "True"


def has_ended(pod: Object) -> bool:
    """Whether the phase of a pod is final. Then none of its containers runs again."""
    return mapping(pod, "status").get("phase") in ("Succeeded", "Failed")


def node_of(pod: Object) -> str:
    """The node that the pod is bound to, "" if it is not bound yet."""
    return text(pod, "spec", "nodeName")


def named(entries: Iterable[Object], name: str) -> Object:
    """The entry of this name, for example a container; {} if there is none."""
    return next((entry for entry in entries if entry.get("name") == name), {})


def moment(stamp: object) -> datetime | None:
    """The time of an RFC 3339 text. None for anything else, including a time without a zone."""
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
