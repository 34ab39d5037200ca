"""Parts of GPUs that a spec may ask for: MIG slices, and GPUs that several pods share.

A slice has its memory for itself. Time slicing and MPS divide one memory between pods. So a share of a GPU counts with
the memory of the GPU divided by the number of its pods.

The names of labels and resources are those of NVIDIA's device plugin and GPU feature discovery: with the MIG strategy
`mixed` and with renamed shares, the resource has a name of its own. With the strategy `single` and with shares that are
not renamed, it is nvidia.com/gpu, and only the label nvidia.com/gpu.product tells parts from whole GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from qwen_operator.hardware import gpu_memory, hami
from qwen_operator.hardware.boards import BoardLabel, board, capability_of, named_by, whole
from qwen_operator.hardware.gpu_memory import MEMORY_LABEL
from qwen_operator.hardware.offers import (
    COUNT_LABEL,
    GKE_CLIENTS_LABEL,
    GKE_MIG_LABEL,
    GPU_RESOURCE,
    MIG_CHANGES,
    MIG_STATE_LABEL,
    PRODUCT_LABEL,
    REPLICAS_LABEL,
    SHARING_LABELS,
    quantity,
)
from qwen_operator.objects import mapping

_MIG_RESOURCE = re.compile(
    r"nvidia\.com/mig-(?P<profile>([1-7]c\.)?[1-7]g\.(?P<gb>[1-9][0-9]{0,2})gb([.-](me|gfx|all))*)(\.shared)?"
)
_MIG_PRODUCT = re.compile(r"-MIG-(?P<profile>([1-7]c\.)?[1-7]g\.(?P<gb>[1-9][0-9]{0,2})gb[^ ]*?)(-SHARED)?$")
_MIG_PROFILE = re.compile(r"([1-7]c\.)?[1-7]g\.(?P<gb>[1-9][0-9]{0,2})gb.*")
_RENAMED = re.compile(r"nvidia\.com/gpu[.-][a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# Names of amounts, not of shares: MiB, cores, percent.
_AMOUNT = re.compile(r"mem|core|percent|count")
_SHARED = "-SHARED"
# A slice has less memory than its profile says. Of the profiles that NVIDIA documents, 1g.18gb of the H200 has least:
# 16.0 of 18.
_PROFILE_PERCENT = 88
_MOST_PODS = 512


class ShareKind(StrEnum):
    """How pods get a part of a GPU. The values are what plans and messages show."""

    MIG = "MIG"
    TIME_SLICING = "TimeSlicing"
    MPS = "MPS"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a GPU. `pods` pods share one GPU (or one slice); 1 if a pod has its slice alone."""

    kind: ShareKind
    pods: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """The parts of one kind that a node offers, or why they cannot be planned.

    `count` is the number of the resource, `memory_mib` the memory of one part. `selector` selects nodes with such
    parts. `unusable` and `notes` are sentences without the node's name.
    """

    resource_name: str
    product: str = ""
    share: Share = Share(ShareKind.MIG)
    count: int = 0
    memory_mib: int = 0
    compute_capability: tuple[int, int] | None = None
    selector: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class _Resource:
    """A resource of a node. `count` of it can be used, and there are `most`, with those that are not healthy.

    `beside`: the same number for each resource of the node.
    """

    name: str
    count: int
    most: int
    beside: Mapping[str, int]

    def rivals(self, prefix: str) -> list[str]:
        """Other names under which the node offers shares of the same GPUs, if this is such a name, sorted."""
        if prefix != GPU_RESOURCE or not _is_renamed_share(self.name):
            return []
        return sorted(
            name for name, most in self.beside.items() if most and name != self.name and _is_renamed_share(name)
        )


def more_pods(one: Share | None, other: Share | None) -> Share | None:
    """`one` with the larger number of pods of both."""
    return replace(one, pods=max(one.pods, other.pods)) if one and other else one


def profile_mib(name: str) -> int:
    """The least memory in MiB of a slice by the name of its profile, resource or product. 0 for another name."""
    match = _MIG_RESOURCE.fullmatch(name) or _MIG_PRODUCT.search(name) or _MIG_PROFILE.fullmatch(name)
    return int(match["gb"]) * 1024 * _PROFILE_PERCENT // 100 if match else 0


def part_of(product: str, resource_name: str, pods: int = 1) -> tuple[str, Share | None]:
    """The product's name as a part, and the part that a pod gets; None for whole GPUs.

    `product` is a whole GPU or a part, `pods` the number of pods that share one GPU or slice.
    """
    base, suffix = whole(product)
    mig = _MIG_RESOURCE.fullmatch(resource_name)
    if mig and "-MIG-" not in suffix.upper():
        suffix = f"-MIG-{mig['profile']}"
    is_slice = "-MIG-" in suffix.upper()
    if pods > 1 and not suffix.upper().endswith(_SHARED):
        suffix += _SHARED
    if pods > 1:
        return base + suffix, Share(ShareKind.TIME_SLICING, pods)
    return (base + suffix, Share(ShareKind.MIG)) if is_slice else (product, None)


def parts(node: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[Part]:
    """What a well-formed node offers beside whole GPUs. `labels` are the node's own, as text."""
    status = mapping(node, "status")
    capacity = mapping(status, "capacity")
    resources = mapping(status, "allocatable") if "allocatable" in status else capacity
    if hami.shares(mapping(node, "metadata", "annotations")) > 1:
        return
    healthy = {str(name): quantity(value) or 0 for name, value in resources.items()}
    most = {name: max(count, quantity(capacity.get(name)) or 0) for name, count in healthy.items()}
    for name, count in sorted(healthy.items()):
        for part in _of_resource(_Resource(name, count, most[name], most), labels) if count else ():
            unhealthy = () if most[name] == count else (f"only {count} of {most[name]} {name} are allocatable",)
            yield part if part.unusable else replace(part, notes=(*part.notes, *unhealthy))


def _of_resource(resource: _Resource, labels: Mapping[str, str]) -> Iterator[Part]:
    """The parts that one resource of a node is."""
    name = resource.name
    match, profile = _MIG_RESOURCE.fullmatch(name), _MIG_PRODUCT.search(labels.get(PRODUCT_LABEL, ""))
    if match and labels.get(MIG_STATE_LABEL) in MIG_CHANGES:
        yield Part(name, unusable=f"{name}: MIG is being configured ({MIG_STATE_LABEL}={labels[MIG_STATE_LABEL]})")
    elif match:
        yield _slice(resource, match["profile"], labels)
    elif _is_renamed_share(name):
        yield _single(resource, profile["profile"], labels) if profile else _shared(resource, labels)
    elif name == GPU_RESOURCE:
        yield from _plain(resource, labels)


def _is_renamed_share(name: str) -> bool:
    return bool(_RENAMED.fullmatch(name)) and not _AMOUNT.search(name)


def _plain(resource: _Resource, labels: Mapping[str, str]) -> Iterator[Part]:
    """Parts under the name of whole GPUs."""
    product = labels.get(PRODUCT_LABEL, "")
    profile = _MIG_PRODUCT.search(product)
    if profile or labels.get(GKE_MIG_LABEL):
        yield _single(resource, profile["profile"] if profile else labels[GKE_MIG_LABEL], labels)
    elif _shares_gpus(labels):
        yield _shared(resource, labels)


def _shares_gpus(labels: Mapping[str, str]) -> bool:
    if any(labels.get(label, "none") not in ("none", "") for label in SHARING_LABELS):
        return True
    return (quantity(labels.get(REPLICAS_LABEL)) or 0) > 1 or labels.get(PRODUCT_LABEL, "").upper().endswith(_SHARED)


def _slice(resource: _Resource, profile: str, labels: Mapping[str, str]) -> Part:
    """Slices with the MIG strategy `mixed`: each profile has labels of its own."""
    name = resource.name
    base = name.removesuffix(".shared")
    label = labels.get(f"{base}.product", "")
    if label:
        return _sized(resource, Part(name, label, selector=((f"{base}.product", label),)), base, profile, labels)
    gpu, own, _ = _gpu(labels)
    if not gpu:
        return Part(name, unusable=_no_product(name))
    return _sized(resource, Part(name, f"{gpu}-MIG-{profile}", selector=own), base, profile, labels)


def _single(resource: _Resource, profile: str, labels: Mapping[str, str]) -> Part:
    """Slices with the MIG strategy `single`, or of GKE. Their labels are those of whole GPUs, mostly also the name."""
    name, label = resource.name, labels.get(PRODUCT_LABEL, "")
    if label:
        part = Part(name, label, selector=((PRODUCT_LABEL, label),))
        return _sized(resource, part, GPU_RESOURCE, profile, labels)
    gpu, own, _ = _gpu(labels)
    if not gpu:
        return Part(name, unusable=_no_product(name))
    part = Part(name, f"{gpu}-MIG-{profile}", selector=(*own, (GKE_MIG_LABEL, profile)))
    return _sized(resource, part, GPU_RESOURCE, profile, labels)


def _sized(resource: _Resource, part: Part, prefix: str, profile: str, labels: Mapping[str, str]) -> Part:
    """The slices with their memory and number. `prefix` begins the labels that state them."""
    by_name, pods = profile_mib(profile), _pods(resource, prefix, labels)
    if not by_name:
        return Part(resource.name, unusable=f"{part.product}: {profile} is no MIG profile with a memory")
    if rivals := resource.rivals(prefix):
        return Part(resource.name, unusable=_several(resource, rivals))
    if pods == 1 and _is_renamed(resource, prefix):
        return Part(resource.name, unusable=_unknown_pods(resource, prefix))
    memory, notes = _slice_memory(by_name, profile, prefix, labels)
    slices = _at_most(resource.count, labels.get(f"{prefix}.count"), pods)
    if slices < resource.count:
        below = f"{prefix}.count is below the {resource.count} {resource.name} of the node: planned with {slices}"
        notes = (*notes, below)
    known = board(whole(part.product)[0])
    capability = capability_of(labels) or (known.compute_capability if known else None)
    sized = _divided(part, memory, pods, labels)
    notes = (*notes, *_contradiction(resource, prefix, pods, labels))
    return replace(sized, count=slices, compute_capability=capability, notes=notes)


def _slice_memory(by_name: int, profile: str, prefix: str, labels: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """The MiB of one slice, and what is uncertain about them."""
    nominal, labelled = -(-by_name * 100 // _PROFILE_PERCENT), gpu_memory.mib(labels.get(f"{prefix}.memory"))
    if not labelled:
        return by_name, (
            f"no label {prefix}.memory: planned with {by_name} MiB, {_PROFILE_PERCENT} % of what the name of the "
            "profile says; run GPU feature discovery for the exact number",
        )
    if labelled > nominal:
        note = f"{prefix}.memory is {labelled}, more than the profile {profile} has: planned with {nominal}"
        return nominal, (note,)
    return labelled, ()


def _shared(resource: _Resource, labels: Mapping[str, str]) -> Part:
    """Whole GPUs that several pods share, by time slicing or MPS."""
    name, count = resource.name, resource.count
    gpu, own, cloud = _gpu(labels)
    if not gpu:
        return Part(name, unusable=_no_product(name))
    if rivals := resource.rivals(GPU_RESOURCE):
        return Part(name, unusable=_several(resource, rivals))
    pods = _pods(resource, GPU_RESOURCE, labels)
    if pods == 1:
        return Part(name, unusable=_unknown_pods(resource, GPU_RESOURCE))
    known = cloud.board if cloud else board(gpu)
    memory = gpu_memory.read(labels, gpu_memory.Sources(known, cloud))
    if not memory.mib:
        return Part(name, unusable=f"{gpu}: no label says how much memory it has: set {MEMORY_LABEL}")
    number = _at_most(count, labels.get(COUNT_LABEL), pods)
    notes = (*memory.notes, *_contradiction(resource, GPU_RESOURCE, pods, labels))
    if number < count:
        notes += (
            f"{COUNT_LABEL} and {REPLICAS_LABEL} allow {number} {name}, the node offers {count}: planned with {number}",
        )
    part = _divided(Part(name, f"{gpu}{_SHARED}", selector=own), memory.mib, pods, labels)
    capability = capability_of(labels) or (known.compute_capability if known else None)
    return replace(part, count=number, compute_capability=capability, notes=notes)


def _divided(part: Part, memory_mib: int, pods: int, labels: Mapping[str, str]) -> Part:
    """The part with the memory that one of `pods` pods gets, and with the label that says how many there are."""
    if pods == 1:
        return replace(part, memory_mib=memory_mib)
    kind = ShareKind.MPS if any(labels.get(label) == "mps" for label in SHARING_LABELS) else ShareKind.TIME_SLICING
    prefix = part.resource_name.removesuffix(".shared") if part.resource_name.startswith("nvidia.com/mig-") else ""
    counting = (f"{prefix}.replicas" if prefix else REPLICAS_LABEL, GKE_CLIENTS_LABEL)
    marks = tuple((label, labels[label]) for label in counting if label in labels)[:1]
    product = part.product if part.product.upper().endswith(_SHARED) else f"{part.product}{_SHARED}"
    return replace(
        part,
        product=product,
        share=Share(kind, pods),
        memory_mib=memory_mib // pods,
        selector=tuple(dict((*part.selector, *marks)).items()),
    )


def _gpu(labels: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...], BoardLabel | None]:
    """The whole GPU that is shared or cut, the label that selects its nodes, and what a cloud's label names."""
    label = labels.get(PRODUCT_LABEL, "")
    if label:
        return whole(label)[0], ((PRODUCT_LABEL, label),), None
    cloud = named_by(labels, gpu_memory.mib(labels.get(MEMORY_LABEL)))
    return (cloud.board.product, ((cloud.label, cloud.value),), cloud) if cloud else ("", (), None)


def _pods(resource: _Resource, prefix: str, labels: Mapping[str, str]) -> int:
    """How many pods share one GPU or slice. 1 if nothing says so. `prefix` begins the labels of the GPU or slice.

    Where the sources disagree, the larger number counts, because it promises each pod less memory.
    """
    return max(_stated(prefix, labels), _derived(resource, prefix, labels))


def _stated(prefix: str, labels: Mapping[str, str]) -> int:
    """The number in a label. 1 if there is none."""
    for label in (f"{prefix}.replicas", GKE_CLIENTS_LABEL):
        stated = quantity(labels.get(label)) or 0
        if 1 < stated <= _MOST_PODS:
            return stated
    return 1


def _derived(resource: _Resource, prefix: str, labels: Mapping[str, str]) -> int:
    """The number by the resources of the node. 1 if they do not tell it.

    GPU feature discovery without the device plugin's configuration says 1, whatever the plugin does. Then the number
    of all shares tells it. That of the healthy ones would be too small, and each share would seem larger than it is.
    The plugin may share only some of the GPUs or slices. The others keep the name without a suffix.
    """
    cards = _cards(resource, prefix, labels)
    is_cut = prefix == GPU_RESOURCE and any(most for name, most in resource.beside.items() if _is_slice(name))
    tells = _is_renamed(resource, prefix) and not is_cut and 0 < cards < resource.most <= cards * _MOST_PODS
    return -(-resource.most // cards) if tells else 1


def _cards(resource: _Resource, prefix: str, labels: Mapping[str, str]) -> int:
    """How many GPUs or slices of the node are shared, if a label states their number."""
    return (quantity(labels.get(f"{prefix}.count")) or 0) - resource.beside.get(prefix, 0)


def _is_slice(name: str) -> bool:
    return _MIG_RESOURCE.fullmatch(name) is not None


def _contradiction(resource: _Resource, prefix: str, pods: int, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The sentence about a label that states fewer pods than the resources of the node show."""
    stated, cards, thing = _stated(prefix, labels), _cards(resource, prefix, labels), _thing(prefix)
    if stated in (1, pods):
        return ()
    return (
        f"a label states {stated} pods per {thing}, but {resource.most} {resource.name} on {cards} {thing}s are more: "
        f"planned with {pods} pods per {thing}",
    )


def _is_renamed(resource: _Resource, prefix: str) -> bool:
    """Whether the resource has another name than GPUs or slices that a pod has for itself."""
    return resource.name not in (GPU_RESOURCE, prefix)


def _at_most(count: int, stated: str | None, pods: int) -> int:
    """`count`, or less if a label states fewer GPUs or slices. 0 of them is no statement."""
    number = quantity(stated) or 0
    return min(count, number * pods) if number else count


def _unknown_pods(resource: _Resource, prefix: str) -> str:
    return (
        f"{resource.count} x {resource.name}: no label says how many pods share one {_thing(prefix)} "
        f"({prefix}.replicas): run "
        "GPU feature discovery with the device plugin's configuration, or declare the nodes in gpuPools with podsPerGpu"
    )


def _thing(prefix: str) -> str:
    return "GPU" if prefix == GPU_RESOURCE else "slice"


def _several(resource: _Resource, rivals: Sequence[str]) -> str:
    names = ", ".join(sorted((resource.name, *rivals)))
    return (
        f"{resource.count} x {resource.name}: its GPUs are shared under several names ({names}), and no label says how "
        "many pods share one GPU of each: declare the nodes in gpuPools with podsPerGpu"
    )


def _no_product(name: str) -> str:
    return f"{name}: no label names the GPU: set {PRODUCT_LABEL}, or run GPU feature discovery"
