"""Small functions that read fields of Kubernetes objects of any origin. Pure.

If a field is absent, null or of another type, they return an empty value. So the callers need no checks of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

Object = Mapping[str, Any]

FIELD_MANAGER = "qwen-operator"
"""The name under which the API server records the operator's writes in metadata.managedFields."""

ObjectKey = tuple[str, str]
"""(namespace, name) of an object; the namespace is "" for cluster-scoped objects."""


def key_of(item: Object) -> ObjectKey:
    meta = item["metadata"]
    return meta.get("namespace") or "", meta["name"]


def malformed(item: object) -> str | None:
    """The problem of something that is no Kubernetes object; None if it has metadata of the right types.

    The API server stores no such object. Code that finds objects by name, uid and labels needs no checks of its own.
    """
    meta = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        return "metadata is not an object"
    if not isinstance(meta.get("name"), str):
        return "metadata.name is not a text"
    for field in ("namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"):
        if not isinstance(meta.get(field, ""), str | None):
            return f"metadata.{field} is not a text"
    for field in ("labels", "annotations"):
        entries = meta.get(field) or {}
        if not isinstance(entries, dict) or not all(isinstance(text, str) for text in (*entries, *entries.values())):
            return f"metadata.{field} are not texts"
    return None


def mapping(value: object, *path: str) -> Object:
    """The mapping at the end of a path of field names; {} if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def members(value: object, *path: str) -> Sequence[Object]:
    """The mappings in the list at the end of a path of field names; () if there is none."""
    *parents, last = path
    entries = mapping(value, *parents).get(last)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else ()


def text(value: object, *path: str) -> str:
    """The text at the end of a path of field names; "" if there is none."""
    *parents, last = path
    field = mapping(value, *parents).get(last)
    return field if isinstance(field, str) else ""


def labels(item: Object) -> Object:
    return mapping(item, "metadata", "labels")


def annotations(item: Object) -> Object:
    return mapping(item, "metadata", "annotations")


def owner_references(item: Object) -> Sequence[Object]:
    return members(item, "metadata", "ownerReferences")


def is_deleting(item: Object) -> bool:
    """Whether the object was deleted and still exists, because of its grace period or its finalizers."""
    return "deletionTimestamp" in mapping(item, "metadata")


def condition(item: Object, kind: str) -> Object:
    """The entry of this type in `status.conditions`; {} if there is none."""
    return next((entry for entry in members(item, "status", "conditions") if entry.get("type") == kind), {})


def holds(item: Object, kind: str) -> bool:
    """Whether the condition of this type is True."""
    return condition(item, kind).get("status") == "True"


def has_ended(pod: Object) -> bool:
    """Whether the phase of a pod is final, so that none of its containers runs again."""
    return mapping(pod, "status").get("phase") in ("Succeeded", "Failed")


def node_of(pod: Object) -> str:
    """The node that the pod is bound to; "" if it has none yet."""
    return text(pod, "spec", "nodeName")


def named(entries: Iterable[Object], name: str) -> Object:
    """The entry with this name, for example a container; {} if there is none."""
    return next((entry for entry in entries if entry.get("name") == name), {})


def moment(stamp: object) -> datetime | None:
    """The time in an RFC 3339 text; None for anything else, for a time without a zone, and for years after 9000.

    Anybody may write an annotation. Near the largest date, the sum of a time and a delay would be an error.
    """
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return time if time.tzinfo is not None and 1900 <= time.year <= 9000 else None


@dataclass(frozen=True, slots=True)
class Each:
    """In a shape: a list of at most `most` entries, all of the same shape."""

    shape: "Shape"
    most: int


@dataclass(frozen=True, slots=True)
class Names:
    """In a shape: an object with any names, at most `most` of them, with texts or numbers as values."""

    most: int
    characters: int


Shape = int | Each | Names | Mapping[str, Any]
"""What to keep of a value. A number: a text of at most so many characters, a number, a boolean or null.

A mapping: an object, and of it these members, each with its own shape.
"""

_MOST_BITS = 128


def kept(value: object, shape: Shape) -> Any:
    """A copy with only what the shape names; None in place of what has another type. Longer texts and lists are cut."""
    if isinstance(shape, int):
        return _scalar(value, shape)
    if isinstance(shape, Each):
        return [kept(entry, shape.shape) for entry in value[: shape.most]] if isinstance(value, list) else None
    if not isinstance(value, dict):
        return None
    if isinstance(shape, Names):
        return {
            name: _scalar(member, shape.characters)
            for name, member in islice(value.items(), shape.most)
            if len(name) <= shape.characters
        }
    return {name: kept(value[name], inner) for name, inner in shape.items() if name in value}


def _scalar(value: object, characters: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= characters else value[:characters]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return None
    return value if isinstance(value, int | float | bool) else None
