"""`pvc://CLAIM/PATH`: a folder or file of a PersistentVolumeClaim, mounted read-only and inspected by a pod. Pure."""

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api import uris
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.names import SOURCE_VOLUME
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import inspection
from qwen_operator.sources.scheme import Facts, Scheme, SourceContext

_MOUNT = "/models/source"


def claim_and_path(spec: Spec) -> tuple[str, str]:
    """The name of the claim, and the folder in it without slashes at its ends ("" for the root of the claim)."""
    assert spec.source is not None
    claim, _, path = spec.source.location.partition("/")
    return claim, path.strip("/")


def _mounted(spec: Spec) -> EngineSource:
    assert spec.source is not None
    claim, path = claim_and_path(spec)
    return EngineSource(
        model_path="/".join(part for part in (_MOUNT, path, spec.source.file) if part),
        volumes=({"name": SOURCE_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},),
        mounts=({"name": SOURCE_VOLUME, "mountPath": _MOUNT, "readOnly": True},),
    )


def _resolve(context: SourceContext) -> Facts | Blocked:
    claim, _ = claim_and_path(context.spec)
    return inspection.resolve(context, _mounted(context.spec), {_MOUNT: f"{uris.PVC.prefix}{claim}"})


def _engine_source(spec: Spec, _checkpoint: Checkpoint, _defaults: EngineDefaults) -> EngineSource:
    return _mounted(spec)


SCHEME = Scheme(uris.PVC, _resolve, _engine_source, inspected=lambda spec, _defaults: _mounted(spec))
