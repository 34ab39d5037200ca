"""The cache of models in pods: the container that fetches a model, and the mounts of fetch and engine. Pure.

A cache on a node has one folder for each namespace, because the container that fetches runs in the tenant's namespace:
whoever may run commands in its pods could change everything that it can write. Neither container sees the folder of
another namespace. The engine sees only its own model, read-only.

The kubelet follows links in a subPath and only makes sure that they end in the volume. So a volume of an engine begins
at the folder of its namespace: a link that a tenant writes leads to no other one.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qwen_operator import objects
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import Passthrough
from qwen_operator.api.pod import CACHE_VOLUME, ENGINE_CACHE_VOLUME
from qwen_operator.manifests import expansion, names
from qwen_operator.manifests.names import Manifest
from qwen_operator.planning.adapters import FETCHED as ADAPTERS_MOUNT
from qwen_operator.planning.types import CacheType, EngineSource, ModelCache, ModelFetch, Plan
from qwen_runtime.adapter_list import IN_USE
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG
from qwen_runtime.checkpoints.gguf_parts import joined_name

COMPILE_MOUNT = "/models/compiled"
COMPILE_VARIABLE = "SGLANG_CACHE_DIR"
VOLUME, ENGINE_VOLUME = CACHE_VOLUME, ENGINE_CACHE_VOLUME
ENGINE_MOUNT = "/models/cached"
ADAPTER_VARIABLES = "ADAPTER_{}_"
"""What the variables with the credentials of an adapter begin with, by its number."""
ADAPTERS = "adapters"
"""The folder below `models` that has all adapters of a cache. An engine mounts it as a whole, because an adapter that
comes while it runs cannot get a mount of its own."""
ADAPTER_OPTION = "--adapter="
_FETCH_MOUNT = "/cache"
_LONGEST_NAME = 80
_UNUSUAL = re.compile(r"[^A-Za-z0-9._]+", re.ASCII)
_IN_CLAIM = "qwen-models"
"""The folder in a claim, which may have other files too."""
# By default the kubelet evicts pods of all namespaces while less than 10 % of the disk with its own files is free, or
# less than 15 % of that with the images. The cache may be on either.
_KEPT_FREE_PERCENT = 15
# The scheduler takes the larger of the init containers and the engine. So the request is what every engine requests at
# least, and a pod needs no more of a node than without the cache. The download may take a whole CPU if there is one.
_REQUESTS = {"cpu": "500m", "memory": "512Mi"}
_LIMITS = {"cpu": "1", "memory": "512Mi"}


def model_folder(hub: str, repository: str, commit: str, file: str = "") -> str:
    """The folder of a model below `models`: HUB/ORGANISATION--NAME/COMMIT, for a single file COMMIT-HASH."""
    hashed = f"-{hashlib.sha256(file.encode()).hexdigest()[:12]}" if file else ""
    return f"{hub}/{repository.replace('/', '--')}/{commit}{hashed}"


def engine_folder(source: EngineSource) -> str:
    """Where the engine finds the folder of its cached model. A single file lies in it, whole."""
    assert source.fetch is not None
    file = joined_name(source.fetch.file)
    return source.model_path.removesuffix(f"/{file}") if file else source.model_path


def bucket_location(location: str) -> tuple[str, str]:
    """The bucket and the prefix of BUCKET/PREFIX, without slashes at the ends of the prefix."""
    bucket, _, prefix = location.partition("/")
    return bucket, prefix.strip("/")


def bucket_folder(location: str) -> str:
    """The name of a model's folder for BUCKET/PREFIX. A name of a folder is shorter than a location may be."""
    whole = "/".join(filter(None, bucket_location(location)))
    bucket, last = whole.partition("/")[0], whole.rpartition("/")[2][:_LONGEST_NAME]
    return f"{bucket}--{last}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def mounted(source: EngineSource, namespace: str) -> EngineSource:
    """The source with the volume and the mounts of what is fetched for it; unchanged if nothing is."""
    fetches = _fetches(source)
    if not fetches:
        return source
    cache = fetches[0][1].cache
    places = {ADAPTERS_MOUNT if _is_shared(fetch) else path: _mounted_folder(fetch) for path, fetch in fetches}
    mounts = [{**_below(cache, folder), "mountPath": path, "readOnly": True} for path, folder in places.items()]
    volumes = (_volume(cache), *_of_engine(cache, namespace))
    return replace(source, volumes=(*source.volumes, *volumes), mounts=(*source.mounts, *mounts))


def _fetches(source: EngineSource) -> list[tuple[str, ModelFetch]]:
    """The folders in the engine of the model and of the adapters that a container fetches. They have one cache."""
    return [*([(engine_folder(source), source.fetch)] if source.fetch else []), *source.adapter_fetches]


def _folder(fetch: ModelFetch) -> str:
    return f"models/{model_folder(fetch.hub, fetch.repository, fetch.commit, fetch.file)}"


def _shares(source: EngineSource) -> bool:
    """Whether the adapters of a source are in the folder of all adapters."""
    return any(_is_shared(fetch) for _, fetch in source.adapter_fetches)


def _mounted_folder(fetch: ModelFetch) -> str:
    return f"models/{ADAPTERS}" if _is_shared(fetch) else _folder(fetch)


def _is_shared(fetch: ModelFetch) -> bool:
    """Whether it is an adapter in the folder of all adapters, which only a cache has."""
    return fetch.file == ADAPTER_CONFIG and fetch.cache.type is not CacheType.POD


def adapter_folder(fetch: ModelFetch) -> str:
    """The folder of an adapter below `models` of a cache: adapters/HUB--ORGANISATION--NAME/COMMIT-HASH."""
    return model_folder(ADAPTERS, f"{fetch.hub}/{fetch.repository}", fetch.commit, fetch.file)


def locks(source: EngineSource, nodes: int = 1) -> list[str]:
    """The files on which an engine holds locks from its start, so that nobody removes what it may load.

    On one node, the runtime itself locks the adapters that the engine has by now.
    """
    fetches = [(path, fetch) for path, fetch in _fetches(source) if nodes > 1 or not _is_shared(fetch)]
    return [f"{path}/{IN_USE}" for path, _ in fetches]


def adapter_variables(number: int, variables: Iterable[EnvVar]) -> tuple[EnvVar, ...]:
    """The credentials of the adapter of this number, under names that no other source has in the same container."""
    return tuple(replace(one, name=f"{ADAPTER_VARIABLES.format(number)}{one.name}") for one in variables)


def _below(cache: ModelCache, folder: str) -> Manifest:
    """The volume and the subPath of a folder that an engine sees."""
    on_node = cache.type is CacheType.HOST_PATH
    return (
        {"name": ENGINE_VOLUME, "subPath": folder} if on_node else {"name": VOLUME, "subPath": f"{_IN_CLAIM}/{folder}"}
    )


def _of_engine(cache: ModelCache, namespace: str) -> tuple[Manifest, ...]:
    if cache.type is not CacheType.HOST_PATH:
        return ()
    # Without a type, nothing has to be there before the fetch has made it.
    return ({"name": ENGINE_VOLUME, "hostPath": {"path": f"{cache.place}/{namespace}", "type": ""}},)


def node_folder(template: Mapping[str, Any]) -> str:
    """The folder of the model in the caches of nodes, from the template of a revision; "" if it is in none."""
    if "hostPath" not in objects.named(objects.members(template["spec"], "volumes"), ENGINE_VOLUME):
        return ""
    return _folder_in(template, ENGINE_VOLUME)


def claim_folder(template: Mapping[str, Any]) -> tuple[str, str]:
    """The claim that is the cache, and the folder of the model in it; twice "" if the model is in none."""
    volume = objects.named(objects.members(template["spec"], "volumes"), VOLUME)
    claim = objects.text(volume, "persistentVolumeClaim", "claimName")
    return (claim, _folder_in(template, VOLUME)) if claim else ("", "")


def _folder_in(template: Mapping[str, Any], volume: str) -> str:
    engine = objects.named(objects.members(template["spec"], "containers"), names.ENGINE_CONTAINER)
    folder = objects.text(objects.named(objects.members(engine, "volumeMounts"), volume), "subPath")
    if not folder.endswith(f"models/{ADAPTERS}"):
        return folder
    # The model is in no cache. What the pod fetches is the list of adapters.
    fetch = objects.named(objects.members(template, "spec", "initContainers"), names.FETCH_CONTAINER)
    options = [word for word in fetch.get("command", ()) if word.startswith(ADAPTER_OPTION)]
    return f"{folder}@{hashlib.sha256(' '.join(options).encode()).hexdigest()[:12]}"


def keeps_models(template: Mapping[str, Any]) -> bool:
    """Whether what pods of this template fetch stays when they go."""
    return "emptyDir" not in objects.named(objects.members(template, "spec", "volumes"), VOLUME)


def whole(cache: ModelCache, namespace: str) -> tuple[Manifest, Manifest, str]:
    """The volume and the mount of all that a namespace has in the cache, and the folder of the cache in the mount.

    It makes no folder on a node that has none.
    """
    on_node = cache.type is CacheType.HOST_PATH
    volume = _volume(cache, "Directory")
    mount: Manifest = {"name": VOLUME, "mountPath": _FETCH_MOUNT, **({"subPath": namespace} if on_node else {})}
    return volume, mount, _FETCH_MOUNT if on_node else f"{_FETCH_MOUNT}/{_IN_CLAIM}"


def with_compile_cache(source: EngineSource, plan: Plan) -> EngineSource:
    """The source with the mount of the folder in which engines of this kind keep what they compile.

    An engine whose spec names another folder, and one whose model is not in the cache, has none.
    """
    fetch = source.fetch
    if fetch is None or not fetch.cache.compile or any(one.name == COMPILE_VARIABLE for one in plan.env):
        return source
    mount = {**_below(fetch.cache, compile_folder(plan)), "mountPath": COMPILE_MOUNT}
    return replace(source, mounts=(*source.mounts, mount))


def keeps_compiled(source: EngineSource) -> bool:
    """Whether the engine has the mount of `with_compile_cache`."""
    return any(mount["mountPath"] == COMPILE_MOUNT for mount in source.mounts)


def compile_folder(plan: Plan) -> str:
    """The folder for what an engine of this image compiles for this GPU product. The driver's is in it."""
    image = hashlib.sha256(plan.engine_image.encode()).hexdigest()[:8]
    words = (plan.engine_version, image, plan.gpu_product)
    return f"compile/{'-'.join(_UNUSUAL.sub('-', word)[:63] for word in words)}"


def _volume(cache: ModelCache, kind: str = "DirectoryOrCreate") -> Manifest:
    if cache.type is CacheType.HOST_PATH:
        return {"name": VOLUME, "hostPath": {"path": cache.place, "type": kind}}
    if cache.type is CacheType.POD:
        return {"name": VOLUME, "emptyDir": {"sizeLimit": f"{cache.size_gib}Gi"}}
    return {"name": VOLUME, "persistentVolumeClaim": {"claimName": cache.place}}


def fetch_container(
    source: EngineSource, namespace: str, common: Manifest, compiled: str = "", listed: Manifest | None = None
) -> Manifest:
    """The container that fetches the model of a source, its adapters, or both.

    `common` has the image, its pull policy and the security context. `compiled`: the folder of `compile_folder`, which
    it makes; "" for none. `listed`: the mount with the list of adapters, of which it fetches no others; None if the
    list does not change.
    """
    fetch = source.fetch
    cache = fetch.cache if fetch else source.adapter_fetches[0][1].cache
    _, mount, folder = whole(cache, namespace)
    command = [
        *("qwen-operator", "fetch"),
        *(_model_options(fetch) if fetch else []),
        *adapter_options(source, shared=_shares(source)),
        *_cache_options(cache, folder),
        f"--port={names.ENGINE_PORT}",
        *([f"--compile-folder={compiled}"] if compiled else []),
        *([f"--adapters={listed['mountPath']}"] if listed else []),
    ]
    variables = [*([fetch.token] if fetch and fetch.token else []), *(fetch.env if fetch else source.fetch_env)]
    variables += credentials_of_adapters(source, optional=_shares(source))
    # With it, the scheduler chooses a node that has the room.
    disk = {"ephemeral-storage": f"{cache.size_gib}Gi"} if cache.type is CacheType.POD else {}
    return {
        "name": names.FETCH_CONTAINER,
        **common,
        "command": [expansion.escaped(word) for word in command],
        **({"env": [variable(one) for one in variables]} if variables else {}),
        "resources": {"requests": {**_REQUESTS, **disk}, "limits": dict(_LIMITS)},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            mount,
            *(dict(one) for one in (fetch.mounts if fetch else source.fetch_mounts)),
            *([dict(listed)] if listed else []),
        ],
    }


def _cache_options(cache: ModelCache, folder: str) -> list[str]:
    on_node, in_pod = cache.type is CacheType.HOST_PATH, cache.type is CacheType.POD
    return [
        f"--cache={folder}",
        f"--size-gib={cache.size_gib}",
        *([f"--kept-free-percent={_KEPT_FREE_PERCENT}"] if on_node or in_pod else []),
        *(["--of-pod"] if in_pod else []),
    ]


def is_of_adapter(variable: str) -> bool:
    """Whether a variable of this name has a credential of an adapter."""
    return variable.startswith(ADAPTER_VARIABLES.partition("{")[0])


def credentials_of_adapters(source: EngineSource, *, optional: bool) -> list[EnvVar]:
    """The credentials of all adapters. `optional`: a pod starts also without their Secrets."""
    return [
        variable
        for number, (_, fetch) in enumerate(source.adapter_fetches)
        for variable in adapter_variables(number, _optional(fetch.env) if optional else fetch.env)
    ]


def _optional(variables: Iterable[EnvVar]) -> tuple[EnvVar, ...]:
    """Somebody may delete the Secret of an adapter that is not in the list any more. The pod may start again then."""
    return tuple(replace(one, value_from=_without_need(one.value_from)) for one in variables)


def _without_need(value: Any) -> Any:
    reference = objects.mapping(value, "secretKeyRef") if value is not None else {}
    return Passthrough({**value, "secretKeyRef": {**reference, "optional": True}}) if reference else value


def _model_options(fetch: ModelFetch) -> list[str]:
    hub_url = [f"--hub-url={fetch.hub_url}"] if fetch.hub_url else []
    return [
        *(fetch.options or [f"--hub={fetch.hub}", *hub_url, f"--repository={fetch.repository}"]),
        f"--commit={fetch.commit}",
        *([f"--file={fetch.file}"] if fetch.file else []),
    ]


def adapter_options(source: EngineSource, *, shared: bool) -> list[str]:
    """The options with the adapters to fetch. `shared`: into the folder of all adapters."""
    return [_adapter_option(fetch, shared=shared) for _, fetch in source.adapter_fetches]


def _adapter_option(fetch: ModelFetch, *, shared: bool) -> str:
    words = (*fetch.options, f"--commit={fetch.commit}", *([f"--folder={adapter_folder(fetch)}"] if shared else []))
    return f"{ADAPTER_OPTION}{shlex.join(words)}"


def variable(given: EnvVar) -> Manifest:
    """A variable as a container has it."""
    if given.value is None:
        return {"name": given.name, "valueFrom": given.value_from}
    return {"name": given.name, "value": expansion.escaped(given.value)}
