"""LoRA adapters in the pods of engines and inspections. Pure.

Each claim with adapters is one volume, which both mount read-only as a whole. An engine on one node also gets its list
of adapters as a file, and changes them while it runs. Two annotations are behind it: the adapters that it should have,
and the names of those that it has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator import objects
from qwen_operator.api import uris
from qwen_operator.api.adapters import is_adapter_name
from qwen_operator.api.spec import Spec
from qwen_operator.manifests import expansion
from qwen_operator.manifests.cached_adapters import (
    LIST_VOLUME,
    fetching_some,
    shares_adapters,
    with_fetches,
    without_fetches,
)
from qwen_operator.manifests.names import (
    ANNOTATION_ADAPTERS,
    ANNOTATION_ADAPTERS_WANTED,
    ENGINE_CONTAINER,
    FETCH_CONTAINER,
    LABEL_REVISION,
    Manifest,
)
from qwen_operator.planning.adapters import MOUNT, path_of
from qwen_operator.planning.types import EngineSource
from qwen_runtime.adapter_list import LOADED_FILE, LORA_PATHS, WANTED_FILE, read_list, with_option

_LIST_MOUNT = "/qwen-adapters"
_OWN_ANNOTATIONS = (ANNOTATION_ADAPTERS, ANNOTATION_ADAPTERS_WANTED)

Adapters = Iterable[tuple[str, str]]
"""Names and folders in the container."""


def mounted(source: EngineSource, spec: Spec) -> EngineSource:
    """The source with the volumes and folders of the spec's adapters; unchanged without adapters."""
    on_claims = [one.source for one in spec.sorted_adapters if one.source.scheme == uris.PVC.scheme]
    claims = dict.fromkeys(source.claim for source in on_claims)
    volumes = [
        {"name": f"adapters-{index}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for index, claim in enumerate(claims)
    ]
    mounts = [
        {"name": f"adapters-{index}", "mountPath": f"{MOUNT}/{claim}", "readOnly": True}
        for index, claim in enumerate(claims)
    ]
    return replace(
        source,
        volumes=(*source.volumes, *volumes),
        mounts=(*source.mounts, *mounts),
        adapters=tuple((adapter.name, path_of(adapter.source.place)) for adapter in spec.sorted_adapters),
    )


@dataclass(frozen=True, slots=True)
class ListParts:
    """What an engine pod has so that its adapters can change: options of the runtime, annotations, mounts, volumes."""

    launch: tuple[str, ...] = ()
    annotations: Mapping[str, str] | None = None
    mounts: tuple[Manifest, ...] = ()
    volumes: tuple[Manifest, ...] = ()


def list_parts(adapters: Adapters, nodes: int) -> ListParts:
    """The parts for a replica on so many nodes with these adapters. Over several nodes, its adapters do not change."""
    listed = tuple(adapters)
    if not listed:
        return ListParts()
    annotations = _annotations(listed)
    if nodes > 1:
        return ListParts(annotations={ANNOTATION_ADAPTERS: annotations[ANNOTATION_ADAPTERS]})
    items = [_file(WANTED_FILE, ANNOTATION_ADAPTERS_WANTED), _file(LOADED_FILE, ANNOTATION_ADAPTERS)]
    return ListParts(
        (f"--adapters={_LIST_MOUNT}",),
        annotations,
        ({"name": LIST_VOLUME, "mountPath": _LIST_MOUNT, "readOnly": True},),
        ({"name": LIST_VOLUME, "downwardAPI": {"items": items}},),
    )


def _annotations(adapters: Adapters) -> dict[str, str]:
    listed = dict(adapters)
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
    return {ANNOTATION_ADAPTERS: ",".join(listed), ANNOTATION_ADAPTERS_WANTED: text}


def _file(name: str, annotation: str) -> Manifest:
    return {"path": name, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"}}


def wanted_text(manifest: Mapping[str, Any]) -> str:
    """The annotation with the adapters that an engine should have, of a pod or a template; "" if there is none."""
    return str(objects.annotations(manifest).get(ANNOTATION_ADAPTERS_WANTED, ""))


def wanted_adapters(text: str) -> dict[str, str]:
    """The folders of the adapters in such an annotation, which anybody may edit, by name; {} if it is unreadable."""
    try:
        return read_list(text)
    except ValueError:
        return {}


def loaded_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The adapters that the engine of a pod has, as the operator noted it."""
    names = str(objects.annotations(manifest).get(ANNOTATION_ADAPTERS, "")).split(",")
    return tuple(name for name in names if is_adapter_name(name))


def with_adapters(template: Manifest, revision: str, source: EngineSource) -> Manifest:
    """The template of a pinned revision for another revision that has the adapters of a source, and nothing else new.

    If the pods mount the folder of all adapters of a cache, their container that fetches gets the list too. If they do
    not, the source must not have others to fetch.
    """
    listed = source.adapters
    made = deepcopy(template)
    meta, engine = made["metadata"], objects.named(made["spec"]["containers"], ENGINE_CONTAINER)
    meta["labels"] = {**meta["labels"], LABEL_REVISION: revision}
    meta["annotations"] = {**meta["annotations"], **_annotations(listed)}
    paths = [expansion.escaped(f"{name}={folder}") for name, folder in listed]
    assert isinstance(engine, dict)
    engine["command"] = with_option(engine["command"], LORA_PATHS, paths)
    if shares_adapters(template):
        first = made["spec"]["initContainers"]
        first[:] = [with_fetches(one, source) if one["name"] == FETCH_CONTAINER else one for one in first]
    return made


def starting_adapters(template: Manifest, names: Collection[str]) -> Manifest:
    """The template of a revision for pods that start with these of its adapters, and take up the others later.

    What has a mount of its own is fetched all the same.
    """
    first = {name: folder for name, folder in wanted_adapters(wanted_text(template)).items() if name in names}
    made = deepcopy(template)
    made["metadata"]["annotations"][ANNOTATION_ADAPTERS] = ",".join(first)
    engine = objects.named(made["spec"]["containers"], ENGINE_CONTAINER)
    assert isinstance(engine, dict)
    paths = [expansion.escaped(f"{name}={folder}") for name, folder in first.items()]
    engine["command"] = with_option(engine["command"], LORA_PATHS, paths)
    if shares_adapters(template):
        some, before = {*first.values()}, made["spec"]["initContainers"]
        before[:] = [fetching_some(one, some) if one["name"] == FETCH_CONTAINER else one for one in before]
    return made


def same_but_adapters(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether pods of two templates with adapters differ only in which adapters they load.

    What a pod fetches when it starts does not count if others can come into its cache later. The requested memory does
    not count either: it grows with each adapter. Whoever adds adapters compares it by itself.
    """
    if not (wanted_text(one) and wanted_text(other)):
        return False
    return _without_adapters(one) == _without_adapters(other)


def _without_adapters(template: Mapping[str, Any]) -> Manifest:
    made: Manifest = deepcopy(dict(template))
    meta = made["metadata"]
    meta["labels"] = {name: text for name, text in meta["labels"].items() if name != LABEL_REVISION}
    meta["annotations"] = {name: text for name, text in meta["annotations"].items() if name not in _OWN_ANNOTATIONS}
    for container in made["spec"]["containers"]:
        if container["name"] == ENGINE_CONTAINER:
            container["command"] = with_option(container.get("command", ()), LORA_PATHS, ())
            container.get("resources", {}).get("requests", {}).pop("memory", None)
    if shares_adapters(template):
        first = made["spec"]["initContainers"]
        first[:] = [without_fetches(one) if one["name"] == FETCH_CONTAINER else one for one in first]
    return made
