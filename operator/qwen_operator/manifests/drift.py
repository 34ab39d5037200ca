"""What differs between a child as it should be and as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest

_CONTAINER_LISTS = ("containers", "initContainers")


def subset(desired: Any, observed: Any) -> bool:
    """True if everything in `desired` stands in `observed`, which may hold more.

    A list of objects may hold further ones, in any order (the server adds tolerations and mounts); a list of plain
    values has to be the same.
    """
    if isinstance(desired, Mapping):
        return isinstance(observed, Mapping) and all(
            key in observed and subset(value, observed[key]) for key, value in desired.items()
        )
    if isinstance(desired, list):
        return isinstance(observed, list) and _list_subset(desired, observed)
    return bool(desired == observed)


def is_owned(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> bool:
    """Whether our owner reference is there as it should be; others may be there too."""
    references = objects.owner_references(observed)
    return all(any(subset(wanted, one) for one in references) for wanted in objects.owner_references(desired))


def pod_repair(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> Manifest | None:
    """A strategic merge patch that repairs the pod's mutable fields (labels, annotations, ownerReferences,
    container images), or None when they are as desired. Never touches foreign labels, annotations or owners."""
    wanted, found = desired["metadata"], observed.get("metadata", {})
    metadata: Manifest = {}
    for key in ("labels", "annotations"):
        existing = found.get(key) or {}
        changed = {name: value for name, value in (wanted.get(key) or {}).items() if existing.get(name) != value}
        if changed:
            metadata[key] = changed
    owners = wanted.get("ownerReferences") or []
    if not subset(owners, found.get("ownerReferences") or []):
        metadata["ownerReferences"] = owners
    spec = {}
    for key in _CONTAINER_LISTS:
        changed_images = _images(desired["spec"].get(key, ()), observed.get("spec", {}).get(key, ()))
        if changed_images:
            spec[key] = changed_images
    patch = {key: value for key, value in (("metadata", metadata), ("spec", spec)) if value}
    return patch or None


def _images(desired: Sequence[Mapping[str, Any]], observed: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    found = {container["name"]: container.get("image") for container in observed}
    return [
        {"name": container["name"], "image": container["image"]}
        for container in desired
        if container["name"] in found and found[container["name"]] != container["image"]
    ]


def _list_subset(desired: list[Any], observed: list[Any]) -> bool:
    if desired and all(isinstance(item, Mapping) for item in desired):
        return all(any(subset(item, other) for other in observed) for item in desired)
    return desired == observed
