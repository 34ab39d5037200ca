"""What the files of a hub's repository add to an engine, and who reads a private repository. Pure.

A container fetches the files before the engine starts, into the chart's cache or a folder of the pod, and the engine
needs no hub. Without a cache SGLang downloads them itself if no commit is known, or if the spec says how it should. A
private repository needs a token that the operator does not have. So a pod with the token reads what the operator must
know.
"""

from __future__ import annotations

from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import DEFAULT_REVISIONS, TOKEN_VARIABLE, Hub, is_commit
from qwen_operator.manifests.model_cache import ENGINE_MOUNT
from qwen_operator.planning.types import CacheType, EngineDefaults, EngineSource, ModelCache, ModelFetch
from qwen_operator.sources import credentials, hub_facts, inspection
from qwen_operator.sources.credentials import TMP
from qwen_operator.sources.scheme import Facts, SourceContext
from qwen_runtime.checkpoints.gguf_parts import joined_name, parts_of

_GIB = 1 << 30
_OWN_VARIABLES = {
    *(name for proxy in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY") for name in (proxy, proxy.lower())),
    "CURL_CA_BUNDLE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
}
_OWN_OPTIONS = {
    "--download-dir",
    "--load-format",
    "--lora-paths",
    "--speculative-draft-model",
    "--speculative-draft-model-path",
    "--tokenizer-path",
}
_HOME = "/home/qwen/"
"""SGLang's downloads are below it."""


def resolve(hub: Hub, context: SourceContext) -> Facts | Blocked:
    """The facts of a repository: from a pod with the token if it is private, else as for every public one."""
    spec, defaults = context.spec, context.defaults
    if hub is Hub.HUGGING_FACE and (own := _own_way(spec, defaults)):
        why = f"{own} tells SGLang how to download: remove it"
        if (refused := _needs_container(hub, context, why)) is not None:
            return refused
    source = inspected(hub, spec, defaults)
    facts = hub_facts.resolve(hub, context) if source is None else inspection.resolve(context, source, {})
    if isinstance(facts, Blocked) or for_pod(hub, spec, facts.checkpoint, defaults).cache is not None:
        return facts
    return _needs_container(hub, context, "its commit is not known: set spec.source.revision to one") or facts


def _needs_container(hub: Hub, context: SourceContext, why: str) -> Blocked | None:
    """The refusal of a file that SGLang cannot download by itself, with the reason why no container does it.

    None if SGLang can, or if there is a cache.
    """
    file = hub_facts.query_of(hub, context.spec).file
    parts = len(parts_of(file))
    if context.defaults.cache is not None or not (parts > 1 or (file and hub is Hub.MODELSCOPE)):
        return None
    if parts > 1:
        what = f"spec.source.file is one of {parts} parts of a split file, and SGLang opens only one file"
    else:
        what = "spec.source.file is in a repository on ModelScope, which SGLang downloads only as a whole"
    message = f"{what}. No container downloads it, because {why}, or set the chart value cache"
    return Blocked(Reason.INVALID_CONFIG, message, waiting=False)


def inspected(hub: Hub, spec: Spec, defaults: EngineDefaults) -> EngineSource | None:
    """What the inspection pod of a private repository runs; None if the repository needs no token."""
    token = token_of(spec)
    if token is None:
        return None
    query, mirror = hub_facts.query_of(hub, spec), defaults.mirror(hub)
    command = (
        "qwen-operator",
        "inspect-hub",
        f"--hub={hub}",
        *((f"--hub-url={mirror}",) if mirror else ()),
        f"--repository={query.repository}",
        f"--revision={query.revision or DEFAULT_REVISIONS[hub]}",
        *((f"--file={query.file}",) if query.file else ()),
    )
    return EngineSource(
        model_path=str(query),
        env=(token,),
        volumes=TMP[:1],
        mounts=TMP[1:],
        inspection=command,
    )


def token_of(spec: Spec, name: str = TOKEN_VARIABLE) -> EnvVar | None:
    """The variable `name` with the token of spec.source.secretRef; None without one."""
    return credentials.token(spec.source.secret_ref if spec.source else None, name)


def cached(hub: Hub, spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource | None:
    """What SGLang loads from the cache; None if there is no cache. The source names its revision by the commit.

    Of a GGUF repository the cache has the file that the spec names, whose parts are joined there.
    """
    query = hub_facts.query_of(hub, spec)
    if defaults.cache is None:
        return None
    fetch = ModelFetch(
        cache=defaults.cache,
        hub=hub,
        repository=query.repository,
        commit=checkpoint.commit or query.revision or DEFAULT_REVISIONS[hub],
        hub_url=defaults.mirror(hub),
        token=token_of(spec),
        file=query.file,
    )
    # SGLang chooses some chat templates by words in the path, so the path has the repository's name.
    path = "/".join(part for part in (ENGINE_MOUNT, query.repository, joined_name(query.file)) if part)
    return EngineSource(model_path=path, env=(EnvVar("HF_HUB_OFFLINE", "1"),), fetch=fetch)


def folder_of_pod(checkpoint: Checkpoint) -> ModelCache:
    """A folder of the pod in place of a cache. The facts have the bytes of all weights, so little is added to them."""
    return ModelCache(CacheType.POD, "", -(-checkpoint.weight_bytes * 102 // (100 * _GIB)) + 2)


def for_pod(hub: Hub, spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineDefaults:
    """The settings with a folder of the pod in place of a cache, if there is none and a commit is known."""
    commit = checkpoint.commit or is_commit(hub_facts.query_of(hub, spec).revision)
    return replace(defaults, cache=folder_of_pod(checkpoint)) if defaults.cache is None and commit else defaults


def downloads_own_way(spec: Spec, defaults: EngineDefaults) -> bool:
    """Whether chart or object tell SGLang where its downloads go or what they may use, or name another model.

    A container that downloads in its place would not know that. With a cache, it does so all the same.
    """
    return bool(_own_way(spec, defaults))


def _own_way(spec: Spec, defaults: EngineDefaults) -> str:
    """The variable, option or mount that tells SGLang so; "" if there is none."""
    names = {one.name for one in (*defaults.env, *spec.engine.env)}
    options = {word.partition("=")[0] for word in (*defaults.args, *spec.engine.args)}
    places = (objects.text(mount, "mountPath") for mount in spec.pod.volume_mounts)
    mounts = (f"the volume at {place}" for place in places if place.startswith(_HOME))
    return next(iter((*sorted(names & _OWN_VARIABLES), *sorted(options & _OWN_OPTIONS), *mounts)), "")


def with_token(source: EngineSource, spec: Spec, name: str) -> EngineSource:
    """The source of an engine that downloads by itself, with the token in the variable `name` if there is one."""
    token = token_of(spec, name)
    return replace(source, env=(*source.env, token)) if token else source
