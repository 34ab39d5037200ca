"""The differences between a child object as it should be and as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest
from qwen_operator.objects import FIELD_MANAGER

# How server-side apply names an entry of a list by its key.
_CONTAINER_KEY = re.compile(r'k:\{"name":"([^"]*)"\}')
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
    for key in ("labels", "annotations"):
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
        edited = _edited_images(observed, key)
        changed_images = [
            image
            for image in _images(objects.members(desired, "spec", key), objects.members(observed, "spec", key))
            if image["name"] in edited
        ]
        if changed_images:
            spec[key] = changed_images
    patch = {key: value for key, value in (("metadata", metadata), ("spec", spec)) if value}
    return patch or None


def image_editors(pod: Mapping[str, Any]) -> list[Manifest]:
    """The entries of metadata.managedFields by which others own container images, without the other fields.

    A change by admission belongs to the request that it changed, so it does not appear here.
    """
    entries = []
    for entry in objects.members(pod, "metadata", "managedFields"):
        spec_fields = objects.mapping(entry, "fieldsV1", "f:spec")
        owned = {key: _named_images(objects.mapping(spec_fields, f"f:{key}")) for key in _CONTAINER_LISTS}
        if entry.get("manager") == FIELD_MANAGER or not any(owned.values()):
            continue
        spec: Manifest = {
            f"f:{key}": {name: {"f:image": {}} for name in names} for key, names in owned.items() if names
        }
        entries.append({"manager": entry.get("manager"), "fieldsV1": {"f:spec": spec}})
    return entries


def _edited_images(pod: Mapping[str, Any], key: str) -> set[str]:
    """The names of the containers whose image others edited after the creation."""
    fields = [objects.mapping(entry, "fieldsV1", "f:spec", f"f:{key}") for entry in image_editors(pod)]
    names = {name for owned in fields for name in _named_images(owned)}
    return {match[1] for name in names if (match := _CONTAINER_KEY.fullmatch(name))}


def _named_images(containers: Mapping[str, Any]) -> list[str]:
    return [name for name, owned in containers.items() if isinstance(owned, Mapping) and "f:image" in owned]


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
