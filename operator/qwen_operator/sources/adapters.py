"""LoRA adapters on hubs and in buckets: who reads them, and who fetches them before an engine starts. Pure.

A pod in the namespace reads the config and the head of the weights of each adapter, with its credentials, and finds its
commit. A container of the engine pod fetches this commit, into the chart's cache or a folder of the pod. The engine
mounts each adapter read-only or, from the cache, the folder of all of them. Adapters on claims are in
`manifests.adapters`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qwen_operator.api import uris
from qwen_operator.api.adapters import Adapter
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import DEFAULT_REVISIONS, Hub
from qwen_operator.manifests.cached_adapters import adapter_path, shares_adapters
from qwen_operator.manifests.model_cache import adapter_folder, adapter_variables, bucket_folder
from qwen_operator.planning.adapters import path_of
from qwen_operator.planning.types import CacheType, EngineDefaults, EngineSource, ModelCache, ModelFetch
from qwen_operator.sources import credentials
from qwen_operator.sources.credentials import TMP
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG

_GIB = 1 << 30


def inspecting(source: EngineSource, spec: Spec, defaults: EngineDefaults) -> EngineSource:
    """The source of an inspection that reads these adapters too; unchanged if there are none."""
    remote = _remote(spec)
    if not remote:
        return source
    command = ["qwen-operator", "inspect-adapters", *([f"--path={source.model_path}"] if source.model_path else [])]
    on_claims = [one for one in spec.sorted_adapters if one not in remote]
    command += [f"--adapter={one.name}={path_of(one.source.place)}" for one in on_claims]
    env = list(source.env)
    for number, one in enumerate(remote):
        words = (*_place(one, defaults), f"--commit={_revision(one)}")
        command.append(f"--remote={one.name} {shlex.join(words)}")
        env += adapter_variables(number, _credentials(one))
    return replace(
        source,
        inspection=tuple(command),
        env=tuple(env),
        volumes=(*source.volumes, *TMP[:1]),
        mounts=(*source.mounts, *TMP[1:]),
    )


def loading(source: EngineSource, spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    """The source of an engine for which a container fetches these adapters; unchanged if there are none."""
    remote, commits = _remote(spec), {one.name: one.commit for one in checkpoint.adapters}
    if not remote:
        return source
    cache = defaults.cache or _of_pod(source, remote, checkpoint)
    fetches = {one.name: _fetch(one, commits.get(one.name, ""), cache, defaults) for one in remote}
    paths = {name: path for name, path in source.adapters if name in fetches}
    if defaults.cache is not None:
        paths = {name: adapter_path(adapter_folder(fetch)) for name, fetch in fetches.items()}
    return replace(
        source,
        fetch=replace(source.fetch, cache=cache) if source.fetch else None,
        adapters=tuple((name, paths.get(name, path)) for name, path in source.adapters),
        adapter_fetches=tuple((paths[name], fetch) for name, fetch in fetches.items()),
    )


def like(template: Mapping[str, Any], spec: Spec, source: EngineSource) -> EngineSource:
    """The source of an engine, with the folders of its adapters as pods of this template have them.

    An earlier version of the operator made other ones, and the chart may have another cache now, or none.
    """
    folders = {one.name: path_of(one.source.place) for one in spec.sorted_adapters}
    if shares_adapters(template):
        fetches = zip(_remote(spec), source.adapter_fetches, strict=True)
        folders |= {one.name: adapter_path(adapter_folder(fetch)) for one, (_, fetch) in fetches}
    return replace(source, adapters=tuple(folders.items()))


def _remote(spec: Spec) -> tuple[Adapter, ...]:
    return tuple(one for one in spec.sorted_adapters if one.source.scheme != uris.PVC.scheme)


def _revision(adapter: Adapter) -> str:
    """What the inspection looks for: a branch, tag or commit; "" for any files of a bucket."""
    source = adapter.source
    default = "" if source.scheme == uris.S3.scheme else DEFAULT_REVISIONS[Hub(source.scheme)]
    return source.revision or default


def _place(adapter: Adapter, defaults: EngineDefaults) -> tuple[str, ...]:
    """Options that say where the files are. The store is always that of the chart."""
    source = adapter.source
    if source.scheme == uris.S3.scheme:
        endpoint = defaults.store.endpoint
        return (f"--s3={source.uri}", *((f"--endpoint={endpoint}",) if endpoint else ()))
    mirror = defaults.mirror(Hub(source.scheme))
    return (
        f"--hub={source.scheme}",
        *((f"--hub-url={mirror}",) if mirror else ()),
        f"--repository={source.location}",
    )


def _credentials(adapter: Adapter) -> tuple[EnvVar, ...]:
    reference = adapter.source.secret_ref
    if adapter.source.scheme == uris.S3.scheme:
        return credentials.of_bucket(reference)
    token = credentials.token(reference)
    return (token,) if token else ()


def _fetch(adapter: Adapter, commit: str, cache: ModelCache, defaults: EngineDefaults) -> ModelFetch:
    source = adapter.source
    bucket = source.scheme == uris.S3.scheme
    return ModelFetch(
        cache=cache,
        hub=source.scheme,
        repository=bucket_folder(source.location) if bucket else source.location,
        commit=commit or source.revision or "unknown",
        file=ADAPTER_CONFIG,
        options=_place(adapter, defaults),
        env=_credentials(adapter),
    )


def _of_pod(source: EngineSource, remote: Iterable[Adapter], checkpoint: Checkpoint) -> ModelCache:
    """A folder of the pod, in which the model may be too. The files are hardly larger than their tensors."""
    fetched = {one.name for one in remote}
    size = sum(one.facts.weight_bytes for one in checkpoint.adapters if one.name in fetched)
    model_gib = source.fetch.cache.size_gib if source.fetch else 0
    return ModelCache(CacheType.POD, "", model_gib - (-size * 102 // (100 * _GIB)) + 1)
