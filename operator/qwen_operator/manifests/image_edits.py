"""Who edited the image of a container after the pod was created: the API server records it in managedFields. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest
from qwen_operator.objects import FIELD_MANAGER

# How server-side apply names an entry of a list by its key.
_CONTAINER_KEY = re.compile(r'k:\{"name":"([^"]*)"\}')
_MOST_EDITORS = 8
_CONTAINER_LISTS = ("containers", "initContainers")


def image_editors(pod: Mapping[str, Any]) -> list[Manifest]:
    """The entries of metadata.managedFields by which others own container images, without the other fields.

    A change by admission belongs to the request that it changed, so it does not appear here.
    """
    entries: list[Manifest] = []
    for entry in objects.members(pod, "metadata", "managedFields"):
        if len(entries) == _MOST_EDITORS:
            break
        spec_fields = objects.mapping(entry, "fieldsV1", "f:spec")
        owned = {key: _named_images(objects.mapping(spec_fields, f"f:{key}")) for key in _CONTAINER_LISTS}
        if entry.get("manager") == FIELD_MANAGER or not any(owned.values()):
            continue
        spec: Manifest = {
            f"f:{key}": {name: {"f:image": {}} for name in names} for key, names in owned.items() if names
        }
        entries.append({"manager": entry.get("manager"), "fieldsV1": {"f:spec": spec}})
    return entries


def edited_images(pod: Mapping[str, Any], key: str) -> set[str]:
    """The names of the containers whose image others edited after the creation."""
    fields = [objects.mapping(entry, "fieldsV1", "f:spec", f"f:{key}") for entry in image_editors(pod)]
    names = {name for owned in fields for name in _named_images(owned)}
    return {match[1] for name in names if (match := _CONTAINER_KEY.fullmatch(name))}


def _named_images(containers: Mapping[str, Any]) -> list[str]:
    return [name for name, owned in containers.items() if isinstance(owned, Mapping) and "f:image" in owned]
