"""`s3://BUCKET/PREFIX`: a folder in a bucket, which a container downloads before the engine starts. Pure.

The operator never connects to the store. A pod in the namespace of the QwenDeployment reads the heads of the files, and
finds a digest of the names, sizes and ETags: the commit of these files. Replicas load the files with this digest, or
none. Without the chart's cache, each pod has the files in a folder of its own.
"""

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api import uris
from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.model_cache import ENGINE_MOUNT, bucket_folder, bucket_location
from qwen_operator.planning.types import EngineDefaults, EngineSource, ModelFetch
from qwen_operator.sources import credentials, inspection
from qwen_operator.sources.credentials import TMP
from qwen_operator.sources.hub_files import folder_of_pod
from qwen_operator.sources.scheme import Facts, Scheme, SourceContext
from qwen_runtime.checkpoints.gguf_parts import joined_name


def _resolve(context: SourceContext) -> Facts | Blocked:
    if (refused := _not_allowed(context.spec, context.defaults)) is not None:
        return refused
    return inspection.resolve(context, _inspected(context.spec, context.defaults), {})


def _not_allowed(spec: Spec, defaults: EngineDefaults) -> Blocked | None:
    """Why the endpoint may not be asked; None if it may."""
    endpoint, allowed = spec.source.endpoint if spec.source else None, defaults.store.endpoints
    if endpoint is None or endpoint == defaults.store.endpoint or not allowed or endpoint in allowed:
        return None
    right = f"the chart value objectStore.endpoints allows only {', '.join(allowed)}"
    message = f"spec.source.endpoint is {endpoint}, and {right}"
    return Blocked(Reason.NOT_ALLOWED, message, waiting=False)


def _inspected(spec: Spec, defaults: EngineDefaults) -> EngineSource:
    """What the inspection pod runs."""
    assert spec.source is not None
    revision = (f"--revision={spec.source.revision}",) if spec.source.revision else ()
    file = (f"--file={spec.source.file}",) if spec.source.file else ()
    return EngineSource(
        model_path=spec.source.uri,
        env=_credentials(spec),
        volumes=TMP[:1],
        mounts=TMP[1:],
        inspection=("qwen-operator", "inspect-s3", *_place(spec, defaults), *revision, *file),
    )


def _place(spec: Spec, defaults: EngineDefaults) -> tuple[str, ...]:
    """Options that say where the files are."""
    assert spec.source is not None
    endpoint = spec.source.endpoint or defaults.store.endpoint
    return (f"--s3={spec.source.uri}", *((f"--endpoint={endpoint}",) if endpoint else ()))


def _credentials(spec: Spec) -> tuple[EnvVar, ...]:
    return credentials.of_bucket(spec.source.secret_ref if spec.source else None)


def _engine_source(spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    assert spec.source is not None
    fetch = ModelFetch(
        cache=defaults.cache or folder_of_pod(checkpoint),
        hub=uris.S3.scheme,
        repository=bucket_folder(spec.source.location),
        commit=checkpoint.commit or spec.source.revision or "unknown",
        file=spec.source.file or "",
        options=_place(spec, defaults),
        env=_credentials(spec),
    )
    # SGLang chooses some chat templates by words in the path.
    parts = (ENGINE_MOUNT, *bucket_location(spec.source.location), joined_name(spec.source.file or ""))
    path = "/".join(filter(None, parts))
    return EngineSource(model_path=path, env=(EnvVar("HF_HUB_OFFLINE", "1"),), fetch=fetch)


SCHEME = Scheme(uris.S3, _resolve, _engine_source, inspected=_inspected)
