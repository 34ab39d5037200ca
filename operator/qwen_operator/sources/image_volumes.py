"""What an inspection pod shows of the image that it mounts. Pure.

It shows whether the cluster can mount images at all, why the node cannot pull this one, and the digest behind a tag.
All functions leave the pods of other sources alone.
"""

import re
from dataclasses import replace

from qwen_operator import objects, untrusted
from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.names import IMAGE_CONTAINER, Manifest
from qwen_operator.planning.types import EngineSource, ImageVolume
from qwen_operator.replicas.pod_state import unready_reason

REASONS = (Reason.IMAGE_VOLUMES_UNSUPPORTED, Reason.AUTH_REQUIRED, Reason.MODEL_NOT_FOUND)
"""Reasons that `unready` adds to those of every pod."""
_IMAGE_ID = re.compile(r"(?:[a-z-]{1,32}://)?(?P<repository>[^@]+)@sha256:(?P<digest>[0-9a-f]{64})", re.ASCII)
# By the kubelet with the feature gate off, containerd before 2.1 (which reads an empty path), and newer runtimes.
_NOT_MOUNTED = re.compile(r'path is empty \*image\.|failed to (?:mkdir|stat) ""|ImageVolumeMountFailed')
_DENIED = re.compile(r"\b(?:unauthorized|authorization|authentication|denied|forbidden|401|403)\b", re.IGNORECASE)
# Kubelets write "code = Unknown" before any error of the runtime.
_ABSENT = re.compile(r"not found|\b(?:manifest|name|repository) unknown\b|\b404\b", re.IGNORECASE)
# What stands before the words about the registry, without the image's name.
_PREAMBLE = re.compile(
    r'^(?:ErrImagePull: |rpc error: code = \w+ desc = |failed to pull and unpack image "": |'
    r'failed to resolve (?:image|reference "")?: |: )+'
)
_WORDS = 120
# The inspection of a folder. containerd 2.1.9 pulls an artifact without a complaint and mounts an empty folder.
_NOTHING_THERE = re.compile(r"(?:is empty|does not exist); the path must name the folder")
_ARTIFACT = (
    "If the files should be there: an artifact whose layers are no tar archives, as oras push makes it, is mounted "
    "empty; make an image of the files"
)
_INSTEAD = "or put the files on a claim and set spec.source.uri to pvc://CLAIM/PATH"


def unready(pod: Manifest, source: EngineSource) -> tuple[Reason, str] | None:
    """Why a pod that has not ended does not read the image yet; None for the pod of another source."""
    image = source.image
    if image is None:
        return None
    if not _has_volume(pod):
        return _dropped()
    reason, message = unready_reason(_without_image_container(pod))
    if reason is Reason.POD_REFUSED and _NOT_MOUNTED.search(message):
        return Reason.IMAGE_VOLUMES_UNSUPPORTED, _not_mounted(pod, image, message)
    if reason is Reason.IMAGE_PULL_FAILED and image.reference in message:
        return _not_pulled(image, message)
    if reason is Reason.STARTING and objects.node_of(pod):
        return Reason.INSPECTING, f"the node {objects.node_of(pod)} pulls the image {image.reference}"
    return reason, message


def judged(
    pod: Manifest, source: EngineSource, outcome: Checkpoint | tuple[Reason, str]
) -> Checkpoint | tuple[Reason, str]:
    """The outcome of a pod that has ended. Facts of an image get its digest as their commit."""
    image = source.image
    if image is None:
        return outcome
    if not _has_volume(pod):
        return _dropped()
    if isinstance(outcome, tuple):
        reason, message = outcome
        return (reason, f"{message.rstrip('.')}. {_ARTIFACT}") if _NOTHING_THERE.search(message) else outcome
    digest = _digest(pod, image)
    return replace(outcome, commit=digest) if digest else (Reason.INSPECTION_FAILED, _without_digest(image))


def _has_volume(pod: Manifest) -> bool:
    """Whether the API server kept the volume. One that does not know image volumes drops it without an error."""
    return any(objects.text(volume, "image", "reference") for volume in objects.members(pod, "spec", "volumes"))


def _dropped() -> tuple[Reason, str]:
    message = (
        "this cluster mounts no images: its API server, or a webhook that changes pods, took the image volume out of "
        "the inspection pod. oci:// needs Kubernetes 1.35 or newer, or 1.31 or newer with the feature gate ImageVolume "
        f"on API server and kubelets, and webhooks that know image volumes: upgrade, {_INSTEAD}"
    )
    return Reason.IMAGE_VOLUMES_UNSUPPORTED, message


def _not_mounted(pod: Manifest, image: ImageVolume, message: str) -> str:
    return (
        f"the node {objects.node_of(pod)} cannot mount the image {image.reference} as a volume: its kubelet needs the "
        "feature gate ImageVolume (on by default from Kubernetes 1.35), and its container runtime must mount images as "
        f"containerd 2.1 and CRI-O 1.31 and newer do: upgrade the node, {_INSTEAD} ({untrusted.clean(message, 300)})"
    )


def _not_pulled(image: ImageVolume, message: str) -> tuple[Reason, str]:
    """The kind of fault, and a little of what the runtime said: a tenant chooses which address the node asks."""
    before, _, words = message.partition(f"{image.reference}: ")
    # A repository may have any name.
    said = words.replace(image.reference, "")
    cause = untrusted.clean(_PREAMBLE.sub("", said), _WORDS).rstrip(". ")
    cause = f"{before}{image.reference}: {cause or 'the runtime does not say why'}"
    if _DENIED.search(said):
        cure = "name a Secret of the type kubernetes.io/dockerconfigjson in spec.source.secretRef, or correct the uri"
        return Reason.AUTH_REQUIRED, f"{cause}: {cure}"
    if _ABSENT.search(said):
        return Reason.MODEL_NOT_FOUND, f"{cause}: correct spec.source.uri, or push the image; the node then pulls it"
    return Reason.IMAGE_PULL_FAILED, cause


def _without_digest(image: ImageVolume) -> str:
    return (
        f"the node did not tell the digest of the image {image.reference}, so it cannot be pinned: name the digest in "
        "spec.source.uri, as @sha256: and 64 hexadecimal digits in place of the tag (crane digest shows it)"
    )


def _digest(pod: Manifest, image: ImageVolume) -> str:
    """The 64 hexadecimal digits of the image's digest; "" if they are unknown.

    The status of an image that a node knows by several names may have another repository, where its digest may be
    another one. The container's own image counts, because a webhook may have put a mirror in the place of the registry.
    """
    if not image.digest_wanted:
        return image.reference.rpartition(":")[2]
    asked = objects.text(objects.named(objects.members(pod, "spec", "containers"), IMAGE_CONTAINER), "image")
    status = objects.named(objects.members(pod, "status", "containerStatuses"), IMAGE_CONTAINER)
    match = _IMAGE_ID.fullmatch(objects.text(status, "imageID"))
    return match["digest"] if match and match["repository"] == asked.rpartition(":")[0] else ""


def _without_image_container(pod: Manifest) -> Manifest:
    """The pod without the container that never runs."""
    status = objects.mapping(pod, "status")
    kept = [one for one in objects.members(status, "containerStatuses") if one.get("name") != IMAGE_CONTAINER]
    return {**pod, "status": {**status, "containerStatuses": kept}}
