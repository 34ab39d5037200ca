"""Where the caches of a namespace are: from the release's settings, and from the nodes and pods that can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_operator import objects
from qwen_operator.caches.pods import Access, Place, of_node
from qwen_operator.caches.session import PlaceError
from qwen_operator.doctor.collect import read_installation
from qwen_operator.doctor.reader import Reader, kept
from qwen_operator.doctor.types import Listed
from qwen_operator.kube import NODES, PERSISTENT_VOLUME_CLAIMS, PODS
from qwen_operator.manifests.names import FETCH_CONTAINER

_OFFER = "nvidia.com/"
_LONGEST_HOST_NAME = 63


async def read_access(reader: Reader, namespace: str, release: str) -> Access:
    """The cache and the image of the release. Raises PlaceError."""
    installation = await read_installation(reader, namespace, release)
    config = installation.config
    if config is None:
        why = installation.operator.problem or installation.problem
        raise PlaceError(
            f"the settings of the release {release} in {namespace} cannot be read ({why}): name it with --release and "
            "--release-namespace, or give --image and --claim, or --image and --path"
        )
    if config.engine.cache is None:
        raise PlaceError(f"the release {release} in {namespace} has no cache: its value cache.type is None")
    image = config.image
    return Access(config.engine.cache, image.reference, image.pull_policy, image.pull_secrets)


async def read_pods(reader: Reader, namespace: str) -> Listed:
    """The pods of the namespace, as far as `places_of` and `fetching` read them."""
    return await reader.listed(PODS, namespace, keep=kept("spec", "status"))


async def places_of(reader: Reader, access: Access, namespace: str, pods: Listed, nodes: Sequence[str]) -> list[Place]:
    """The claim of the namespace, or the folders on these nodes, or else on all that have GPUs or had such pods.

    Raises PlaceError if there is none.
    """
    if not of_node(access):
        return [await _claim(reader, access, namespace, pods)]
    names = list(nodes) or await _nodes(reader, pods)
    if not names:
        raise PlaceError(f"no node with GPUs and no engine pod of {namespace} is known: name the nodes with --node")
    return [Place(namespace, f"node/{name}", name) for name in names]


def fetching(pods: Listed) -> list[str]:
    """The host names of the pods that use the cache. A lease has the host name of its pod."""
    return [objects.text(pod, "metadata", "name")[:_LONGEST_HOST_NAME].rstrip("-.") for pod in _users(pods)]


async def _claim(reader: Reader, access: Access, namespace: str, pods: Listed) -> Place:
    name = access.cache.place
    claim = await reader.one(PERSISTENT_VOLUME_CLAIMS, namespace, name)
    if claim.absent:
        raise PlaceError(f'the namespace {namespace} has no claim "{name}", so it has no cache')
    if claim.items and objects.text(claim.first, "status", "phase") != "Bound":
        raise PlaceError(f'the claim "{name}" in {namespace} is not bound, so it has no model')
    # A volume that only one node can mount is on that of a pod that has it.
    node = next((objects.node_of(pod) for pod in pods.items if _mounts(pod, name) and not objects.has_ended(pod)), "")
    return Place(namespace, f"claim/{name}", node)


def _mounts(pod: objects.Object, claim: str) -> bool:
    volumes = objects.members(pod, "spec", "volumes")
    return any(objects.text(one, "persistentVolumeClaim", "claimName") == claim for one in volumes)


async def _nodes(reader: Reader, pods: Listed) -> list[str]:
    """The nodes that offer GPUs, if nodes may be listed, and those of the pods that use the cache."""
    listed = await reader.listed(NODES, keep=kept("status"))
    names = {objects.text(node, "metadata", "name") for node in listed.items if _offers_gpus(node)}
    return sorted((names | {objects.node_of(pod) for pod in _users(pods)}) - {""})


def _offers_gpus(node: Mapping[str, object]) -> bool:
    return any(str(name).startswith(_OFFER) for name in objects.mapping(node, "status", "allocatable"))


def _users(pods: Listed) -> list[objects.Object]:
    return [pod for pod in pods.items if objects.named(objects.members(pod, "spec", "initContainers"), FETCH_CONTAINER)]
