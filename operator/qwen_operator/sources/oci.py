"""`oci://REGISTRY/REPOSITORY:TAG/PATH`: a folder of an image, which the node pulls and mounts read-only. Pure.

Only the node talks to the registry: neither the operator nor a container of the pod has its credentials. Engines mount
the image by its digest. The digest behind a tag comes from the status of the inspection pod.
"""

import re
from dataclasses import dataclass, replace

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api import uris
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.names import SOURCE_VOLUME
from qwen_operator.planning.types import EngineDefaults, EngineSource, ImageVolume
from qwen_operator.sources import inspection
from qwen_operator.sources.scheme import Facts, Scheme, SourceContext

_MOUNT = "/models/source"
_IMAGE = re.compile(
    r"(?P<repository>[^/]+(/[^/:@]+)+)(:(?P<tag>[^/@]+))?(@sha256:(?P<digest>[0-9a-f]{64}))?(?P<path>/.*)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Image:
    """The parts of a uri. `repository` begins with the registry. `tag` or `digest` may be "", but not both.

    `path` is the folder in the image without slashes at its ends, "" for the top. `digest` has 64 hexadecimal digits.
    """

    repository: str
    tag: str
    digest: str
    path: str

    @property
    def reference(self) -> str:
        """What the node pulls: by the digest if it is known."""
        return f"{self.repository}@sha256:{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def image_of(spec: Spec) -> Image:
    """The image of a spec with a source of this scheme."""
    assert spec.source is not None
    # The form of the uri guarantees one of both: `repository` cannot contain the first colon or @ after a slash.
    match = _IMAGE.fullmatch(spec.source.location)
    assert match is not None
    return Image(match["repository"], match["tag"] or "", match["digest"] or "", (match["path"] or "").strip("/"))


def _folder(image: Image) -> str:
    """Where the pods mount it. SGLang chooses some chat templates by words in the path, so it has the repository."""
    return f"{_MOUNT}/{image.repository.partition('/')[2]}"


def _mounted(spec: Spec, image: Image) -> EngineSource:
    assert spec.source is not None
    folder = _folder(image)
    # Of a tag, the inspection wants what the registry has now. A digest is always the same image.
    policy = "IfNotPresent" if image.digest else "Always"
    secrets = (spec.source.secret_ref.name,) if spec.source.secret_ref else ()
    return EngineSource(
        model_path="/".join(part for part in (folder, image.path, spec.source.file) if part),
        volumes=({"name": SOURCE_VOLUME, "image": {"reference": image.reference, "pullPolicy": policy}},),
        mounts=({"name": SOURCE_VOLUME, "mountPath": folder, "readOnly": True},),
        image=ImageVolume(image.reference, secrets, digest_wanted=not image.digest),
    )


def _resolve(context: SourceContext) -> Facts | Blocked:
    image = image_of(context.spec)
    source = _mounted(context.spec, image)
    return inspection.resolve(context, source, {_folder(image): f"{uris.OCI.prefix}{image.reference}"})


def _inspected(spec: Spec, _defaults: EngineDefaults) -> EngineSource:
    return _mounted(spec, image_of(spec))


def _engine_source(spec: Spec, checkpoint: Checkpoint, _defaults: EngineDefaults) -> EngineSource:
    image = image_of(spec)
    return _mounted(spec, replace(image, digest=image.digest or checkpoint.commit))


SCHEME = Scheme(uris.OCI, _resolve, _engine_source, inspected=_inspected)
