"""Adapters of hubs and buckets in a cache, which engines load while they serve. Pure.

An adapter that comes while an engine runs cannot get a mount of its own. So an engine with such adapters mounts the
folder of all adapters that its namespace has in the cache, read-only. The container that fetches gets the present list,
because it may run again in a pod that exists.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests import expansion, names
from qwen_operator.manifests.model_cache import (
    ADAPTER_OPTION,
    ADAPTER_VARIABLES,
    ADAPTERS,
    ENGINE_VOLUME,
    adapter_options,
    credentials_of_adapters,
    is_of_adapter,
    variable,
)
from qwen_operator.manifests.names import Manifest
from qwen_operator.planning.adapters import FETCHED
from qwen_operator.planning.types import EngineSource

LIST_VOLUME = "adapters-list"
"""The volume that shows a pod its list of adapters as a file."""
_FOLDER = "--folder="
_OF_CACHE = ("--cache=", "--size-gib=", "--kept-free-percent=", "--port=")


def adapter_path(folder: str) -> str:
    """Where engines find what `adapter_folder` names."""
    return f"{FETCHED}/{folder.removeprefix(f'{ADAPTERS}/')}"


def shares_adapters(template: Mapping[str, Any]) -> str:
    """The volume from which pods of this template mount the folder of all adapters; "" if they do not."""
    engine = objects.named(objects.members(template["spec"], "containers"), names.ENGINE_CONTAINER)
    mounts = objects.members(engine, "volumeMounts")
    return next((objects.text(one, "name") for one in mounts if one.get("mountPath") == FETCHED), "")


def on_nodes(volume: str) -> bool:
    """Whether a result of `shares_adapters` is a folder of the node, so that each node has its own."""
    return volume == ENGINE_VOLUME


def same_credentials(template: Mapping[str, Any], source: EngineSource) -> bool:
    """Whether pods of this template fetch adapters with the credentials of the source."""
    container = objects.named(objects.members(template, "spec", "initContainers"), names.FETCH_CONTAINER)
    present = [dict(one) for one in objects.members(container, "env") if is_of_adapter(objects.text(one, "name"))]
    return present == [variable(one) for one in credentials_of_adapters(source, optional=False)]


def with_fetches(container: Mapping[str, Any], source: EngineSource) -> Manifest:
    """A container that fetches, with the adapters of a source in place of its own, and nothing else changed."""
    rest = without_fetches(container)
    command, env = rest["command"], rest.get("env", [])
    options = [expansion.escaped(option) for option in adapter_options(source, shared=True)]
    # The option of every such container that follows those with adapters.
    place = next((number for number, word in enumerate(command) if word.startswith("--cache=")), len(command))
    env = [*env, *(variable(one) for one in credentials_of_adapters(source, optional=True))]
    return {**rest, "command": [*command[:place], *options, *command[place:]], **({"env": env} if env else {})}


def without_fetches(container: Mapping[str, Any]) -> Manifest:
    """A container that fetches, without its adapters and their credentials."""
    command = [word for word in container["command"] if not word.startswith(ADAPTER_OPTION)]
    env = [dict(one) for one in container.get("env", ()) if not is_of_adapter(objects.text(one, "name"))]
    rest = {key: value for key, value in container.items() if key not in ("command", "env")}
    return {**rest, "command": command, **({"env": env} if env else {})}


def fetching_some(container: Mapping[str, Any], folders: Collection[str]) -> Manifest:
    """A container that fetches, without those of its adapters that engines find in other folders."""
    options = [word for word in container["command"] if word.startswith(ADAPTER_OPTION)]
    kept = [number for number, option in enumerate(options) if _folder_of(option) in folders]
    left = [options[number] for number in kept]
    # The credentials of an adapter go by the place of its option.
    env = [dict(one) for one in container.get("env", ()) if not is_of_adapter(objects.text(one, "name"))]
    for place, number in enumerate(kept):
        before, after = ADAPTER_VARIABLES.format(number), ADAPTER_VARIABLES.format(place)
        for one in container.get("env", ()):
            if (name := objects.text(one, "name")).startswith(before):
                env.append({**one, "name": f"{after}{name.removeprefix(before)}"})
    command = [word for word in container["command"] if not word.startswith(ADAPTER_OPTION) or word in left]
    rest = {key: value for key, value in container.items() if key not in ("command", "env")}
    return {**rest, "command": command, **({"env": env} if env else {})}


def fetching_only(container: Mapping[str, Any], folder: str) -> Manifest:
    """A container that fetches, for one of its adapters alone, which engines find in this folder."""
    options = [word for word in container["command"] if word.startswith(ADAPTER_OPTION)]
    number, option = next((at, one) for at, one in enumerate(options) if _folder_of(one) == folder)
    command = [word for word in container["command"] if not word.startswith("--") or word.startswith(_OF_CACHE)]
    own, first = ADAPTER_VARIABLES.format(number), ADAPTER_VARIABLES.format(0)
    env = []
    for one in container.get("env", ()):
        name = objects.text(one, "name")
        if name.startswith(own):
            env.append({**one, "name": f"{first}{name.removeprefix(own)}"})
        elif "valueFrom" not in one:
            # A proxy, or certificates. A Secret belongs to the model, or to another adapter.
            env.append(dict(one))
    mounts = [dict(one) for one in container["volumeMounts"] if one["name"] != LIST_VOLUME]
    rest = {key: deepcopy(value) for key, value in container.items() if key != "env"}
    return {
        **rest,
        "command": [*command[:2], option, *command[2:]],
        "volumeMounts": mounts,
        **({"env": env} if env else {}),
    }


def _folder_of(option: str) -> str:
    """The folder in engines of what an option with an adapter fetches; "" if it is none of a cache."""
    words = shlex.split(expansion.unescaped(option).removeprefix(ADAPTER_OPTION))
    folder = next((word for word in words if word.startswith(_FOLDER)), "").removeprefix(_FOLDER)
    return adapter_path(folder) if folder else ""
