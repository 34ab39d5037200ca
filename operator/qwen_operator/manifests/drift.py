"""The differences between a child object as it should be and as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.image_edits import edited_images
from qwen_operator.manifests.kept import CUT
from qwen_operator.manifests.names import Manifest

_CONTAINER_LISTS = ("containers", "initContainers")


def subset(desired: Any, observed: Any) -> bool:
    """True if `observed` has everything that is in `desired`. It may have more.

    A list of objects may have more entries, in any order, because the server adds tolerations and mounts. A list of
    plain values must be equal.
    """
    if isinstance(desired, Mapping):
        return isinstance(observed, Mapping) and all(
            key in observed and subset(value, observed[key]) for key, value in desired.items()
        )
    if isinstance(desired, list):
        return isinstance(observed, list) and _list_subset(desired, observed)
    return bool(desired == observed)


def is_owned(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> bool:
    """Whether the object has our owner reference as it should be. It may have others too."""
    references = objects.owner_references(observed)
    return all(any(subset(wanted, one) for one in references) for wanted in objects.owner_references(desired))


def pod_repair(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> Manifest | None:
    """A strategic merge patch that repairs the mutable fields of a pod, or None if there is nothing to repair.

    These fields are labels, annotations, ownerReferences and container images. The patch never touches labels,
    annotations or owners that others set. It restores an image only if somebody edited it later: an admission webhook
    may have replaced it by a mirror or a digest while the operator created the pod.
    """
    metadata: Manifest = {}
    # Of an object with too many labels or annotations, nobody knows which ones it has.
    for key in () if CUT in observed else ("labels", "annotations"):
        existing = objects.mapping(observed, "metadata", key)
        wanted = objects.mapping(desired, "metadata", key)
        changed = {name: value for name, value in wanted.items() if existing.get(name) != value}
        if changed:
            metadata[key] = changed
    owners = list(objects.owner_references(desired))
    if not subset(owners, list(objects.owner_references(observed))):
        metadata["ownerReferences"] = owners
    spec = {}
    for key in _CONTAINER_LISTS:
        edited = edited_images(observed, key)
        changed_images = [
            image
            for image in _images(objects.members(desired, "spec", key), objects.members(observed, "spec", key))
            if image["name"] in edited
        ]
        if changed_images:
            spec[key] = changed_images
    patch = {key: value for key, value in (("metadata", metadata), ("spec", spec)) if value}
    return patch or None


def _images(desired: Sequence[Mapping[str, Any]], observed: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    present_images = {container["name"]: container.get("image") for container in observed}
    return [
        {"name": container["name"], "image": container["image"]}
        for container in desired
        if container["name"] in present_images and present_images[container["name"]] != container["image"]
    ]


def _list_subset(desired: list[Any], observed: list[Any]) -> bool:
    if desired and all(isinstance(item, Mapping) for item in desired):
        return all(any(subset(item, other) for other in observed) for item in desired)
    return desired == observed
