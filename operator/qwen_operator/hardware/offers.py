"""How many whole GPUs a node offers, or why it offers none.

Four sources say something about it: the resources of the node, the labels of GPU feature discovery, the labels of
clouds, and the annotation of HAMi. The smallest number counts. A label never adds a GPU that is not allocatable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.hardware import hami
from qwen_operator.hardware.boards import named_by
from qwen_operator.objects import mapping
from qwen_runtime.checkpoints.reading import shown

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"

# The most GPUs that NVIDIA's Linux driver holds in one machine (NV_MAX_DEVICES). A label may state more, for simulated
# nodes, but no label that means GPUs states more than a thousand.
_MOST_GPUS, _MOST_LABELLED = 32, 1000
_COUNT_LABELS = (
    COUNT_LABEL,
    "karpenter.k8s.aws/instance-gpu-count",
    "eks.amazonaws.com/instance-gpu-count",
    "karpenter.azure.com/sku-gpu-count",
    "gpu.nvidia.com/count",
    "aliyun.accelerator/nvidia_count",
)
REPLICAS_LABEL = "nvidia.com/gpu.replicas"
# If one of these has a value other than none, pods share a GPU. The first is of GPU feature discovery, the second of
# GKE.
SHARING_LABELS = ("nvidia.com/gpu.sharing-strategy", "cloud.google.com/gke-gpu-sharing-strategy")
GKE_CLIENTS_LABEL = "cloud.google.com/gke-max-shared-clients-per-gpu"
GKE_MIG_LABEL = "cloud.google.com/gke-gpu-partition-size"
MIG_STATE_LABEL = "nvidia.com/mig.config.state"
MIG_CHANGES = ("pending", "rebooting")
_MIG_FAILED = "failed"
MIG_RESOURCE = "nvidia.com/mig-"
_MIG_SIZE = re.compile(r"nvidia\.com/mig-(?:[1-7]c\.)?([1-7])g\.")
_PIECES = 7
_PRESENT_LABEL = "nvidia.com/gpu.present"
# Node feature discovery sets these for display and 3D controllers of NVIDIA (PCI vendor 10de).
_PCI_LABEL = re.compile(r"feature\.node\.kubernetes\.io/pci-(03[0-9a-f]{2}_)?10de\.present")
_OTHER_VENDORS = (
    "amd.com/", "gpu.intel.com/", "habana.ai/", "google.com/tpu", "aws.amazon.com/neuron", "huawei.com/Ascend",
    "cambricon.com/", "hygon.com/", "metax-tech.com/", "mthreads.com/", "iluvatar.", "enflame.com/", "kunlunxin.com/",
    "birentech.com/", "aliyun.com/ppu", "alibabacloud.com/ppu", "qualcomm.com/qaic", "furiosa.ai/", "rebellions.ai/",
    "tenstorrent.com/",
)  # fmt: skip
# Resources of NVIDIA's network cards.
_NETWORK = re.compile(r"rdma|hostdev|sriov|mlnx|nic|_ib|_vf")
_ACCELERATOR = re.compile(r"gpu|cuda|gaudi|/tpu|neuron", re.IGNORECASE)
_QUANTITY = re.compile(r"([0-9]{1,9})(k|M|e[0-6])?")
# Without one of these fields of the spec, a part of a GPU is no choice (`hardware.shares`).
_ONLY = "the operator plans whole GPUs by default"
_CHOOSE_PRODUCT = "to use them for a small model, set spec.hardware.products"
_CHOOSE_RESOURCE = "to use them for a small model, set spec.hardware.resourceName"
_MIG_OFF = "for whole GPUs, set the node label nvidia.com/mig.config to all-disabled, or run nvidia-smi -mig 0"


@dataclass(frozen=True, slots=True)
class Offer:
    """`gpus` whole GPUs, or, if there is none, `unusable` with the reason and what to do. `notes` has one sentence for
    each contradiction between sources. Sentences do not name the node."""

    gpus: int = 0
    unusable: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Node:
    labels: Mapping[str, str]
    annotations: Mapping[str, Any]
    resources: Mapping[str, Any]
    capacity: Mapping[str, Any]

    @property
    def gpu(self) -> str:
        return self.labels.get(PRODUCT_LABEL) or "its GPUs"

    def amounts(self, prefix: str) -> str:
        """ "56 x nvidia.com/mig-1g.10gb". "" if it has none."""
        has = {name: quantity(value) for name, value in sorted(self.resources.items()) if name.startswith(prefix)}
        return ", ".join(f"{amount} x {name}" for name, amount in has.items() if amount)


def offer(node: Mapping[str, Any], labels: Mapping[str, str]) -> Offer | None:
    """What a well-formed node offers. None if it has no GPU at all. `labels` are the node's own, as text."""
    status = mapping(node, "status")
    capacity = mapping(status, "capacity")
    # The API server takes the capacity for allocatable if a node does not state it.
    resources = mapping(status, "allocatable") if "allocatable" in status else capacity
    resources, capacity = ({str(name): value for name, value in part.items()} for part in (resources, capacity))
    seen = _Node(labels, mapping(node, "metadata", "annotations"), resources, capacity)
    reason = _parts_only(seen) or _unreadable(seen)
    if reason:
        return Offer(unusable=reason)
    count = quantity(resources.get(GPU_RESOURCE)) or 0
    if count:
        return _counted(seen, count)
    reason = _none(seen)
    return Offer(unusable=reason) if reason else None


def quantity(value: object) -> int | None:
    """The whole number of a quantity: 8 for 8, "8" or "8e0", 1000 for "1k". None for anything else."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        return None
    unit = match[2] or "e0"
    return int(match[1]) * int(10 ** {"k": 3, "M": 6}.get(unit, int(unit[1:] or 0)))


def _parts_only(seen: _Node) -> str:
    """Why a pod gets a part of a GPU, although the resource has the name of whole ones. "" if it gets a whole one."""
    labels, product = seen.labels, seen.labels.get(PRODUCT_LABEL, "")
    if "-MIG-" in product.upper():
        choice = "" if product.upper().endswith("-INVALID") else f"{_CHOOSE_PRODUCT}: [{product}]; "
        return f"{product}: a MIG slice, no whole GPU, and {_ONLY}: {choice}{_MIG_OFF}"
    if labels.get(GKE_MIG_LABEL):
        size, cloud = labels[GKE_MIG_LABEL], named_by(labels)
        shared = "-SHARED" if (quantity(labels.get(GKE_CLIENTS_LABEL)) or 0) > 1 else ""
        choice = f"{_CHOOSE_PRODUCT}: [{cloud.board.product}-MIG-{size}{shared}]; " if cloud else ""
        return (
            f"{seen.gpu}: cut into MIG slices ({GKE_MIG_LABEL}={size}), and {_ONLY}: {choice}for whole GPUs, use a "
            "node pool without gpuPartitionSize"
        )
    for label in SHARING_LABELS:
        strategy = labels.get(label, "none")
        if strategy not in ("none", ""):
            return _shared(seen, f"{label}={strategy}", gke=label.startswith("cloud.google.com/"))
    replicas = quantity(labels.get(REPLICAS_LABEL)) or 0
    if replicas > 1:
        return _shared(seen, f"{REPLICAS_LABEL}={replicas}", gke=False)
    return _shared(seen, "-SHARED in its name", gke=False) if product.upper().endswith("-SHARED") else ""


def _shared(seen: _Node, sign: str, *, gke: bool) -> str:
    named = named_by(seen.labels)
    gpu = seen.labels.get(PRODUCT_LABEL) or (named.board.product if named else GPU_RESOURCE)
    cure = (
        "use a node pool without GPU sharing"
        if gke
        else "remove `sharing` from the device plugin's configuration there"
    )
    choice = _choose_renamed(seen)
    if not choice and gpu != GPU_RESOURCE and quantity(seen.resources.get(GPU_RESOURCE)):
        choice = f"{_CHOOSE_PRODUCT}: [{gpu.removesuffix('-SHARED')}-SHARED]; "
    return f"{gpu} is shared between pods ({sign}), and {_ONLY}: {choice}for whole GPUs, {cure}"


def _choose_renamed(seen: _Node) -> str:
    """How a spec asks for the first resource that is a renamed share of GPUs. "" if there is none."""
    renamed = (f"{GPU_RESOURCE}.", f"{GPU_RESOURCE}-")
    names = [name for name in sorted(seen.resources) if name.startswith(renamed) and quantity(seen.resources[name])]
    return f"{_CHOOSE_RESOURCE}: {names[0]}; " if names else ""


def _unreadable(seen: _Node) -> str:
    value = seen.resources.get(GPU_RESOURCE)
    if value is None or quantity(value) is not None:
        return ""
    return f"{GPU_RESOURCE} is {shown(value)} in status.allocatable, it must be a whole number"


def _none(seen: _Node) -> str:
    """Why the node has no allocatable GPU. "" if nothing says that it has any."""
    slices, others = seen.amounts(MIG_RESOURCE), _other_resources(seen)
    if slices:
        choice = f"{_CHOOSE_RESOURCE}: {_first(slices)}"
        return f"{seen.gpu}: cut into MIG slices ({slices}), and {_ONLY}: {choice}; {_MIG_OFF}"
    stopped = _mig_state(seen) or others
    if stopped:
        return stopped
    if GPU_RESOURCE in seen.resources:
        return _zero(seen)
    if not _has_gpu(seen.labels):
        return ""
    return (
        f"{seen.gpu}: labels name GPUs, but the node does not list the resource {GPU_RESOURCE}, which engines ask for: "
        "run the NVIDIA device plugin there; if DRA offers the GPUs, on Kubernetes 1.36 set "
        "extendedResourceName: nvidia.com/gpu in their DeviceClass and declare them in gpuPools"
    )


def _mig_state(seen: _Node) -> str:
    """Why the node offers nothing while MIG changes, or after it could not. "" in any other state."""
    state = seen.labels.get(MIG_STATE_LABEL, "")
    if state in MIG_CHANGES:
        return f"{seen.gpu}: MIG is being configured ({MIG_STATE_LABEL}={state}); wait until it is done"
    if state == _MIG_FAILED:
        return f"{seen.gpu}: MIG could not be configured ({MIG_STATE_LABEL}={state}): read the MIG manager's log there"
    return ""


def _zero(seen: _Node) -> str:
    """The resource is listed with 0: all GPUs are unhealthy, or the device plugin has stopped."""
    capacity = quantity(seen.capacity.get(GPU_RESOURCE)) or 0
    if capacity:
        return (
            f"{seen.gpu}: none of {capacity} {GPU_RESOURCE} is allocatable, because the device plugin has stopped or "
            "finds them unhealthy: read its log and the kernel log of the node (Xid errors)"
        )
    if not _has_gpu(seen.labels):
        return ""
    return (
        f"{seen.gpu}: labels name GPUs, but the node has 0 {GPU_RESOURCE}, because the device plugin finds none or has "
        "stopped: read its log, and run nvidia-smi on the node"
    )


def _has_gpu(labels: Mapping[str, str]) -> bool:
    return bool(
        labels.get(PRODUCT_LABEL)
        or quantity(labels.get(COUNT_LABEL))
        or labels.get(_PRESENT_LABEL) == "true"
        or named_by(labels)
        or any(value == "true" and _PCI_LABEL.fullmatch(label) for label, value in labels.items())
    )


def _other_resources(seen: _Node) -> str:
    """What the node offers under other names. "" for nothing."""
    for vendor in _OTHER_VENDORS:
        amounts = seen.amounts(vendor)
        if amounts:
            return f"{amounts}: the operator plans NVIDIA GPUs only"
    names = [name for name in sorted(seen.resources) if _is_gpu(name, seen) and quantity(seen.resources[name])]
    if not names:
        return ""
    amounts = ", ".join(f"{quantity(seen.resources[name])} x {name}" for name in names)
    return (
        f"{seen.gpu}: offered as {amounts}, which are shares of GPUs or GPUs under another name, and {_ONLY}: "
        f"{_choose_renamed(seen)}for whole GPUs, let the device plugin offer them as {GPU_RESOURCE}"
    )


def _is_gpu(resource: str, seen: _Node) -> bool:
    if resource.startswith("nvidia.com/"):
        return resource != GPU_RESOURCE and not _NETWORK.search(resource.lower())
    if "/" not in resource:
        return False
    return "gpu" in resource.lower() or (bool(_ACCELERATOR.search(resource)) and _has_gpu(seen.labels))


def _counted(seen: _Node, count: int) -> Offer:
    """`count` is what the node offers; shares of HAMi, labels and the driver's limit may make it less."""
    notes: list[str] = []
    cards = count
    shares = hami.shares(seen.annotations)
    if shares > 1:
        cards = count // shares
        notes.append(
            f"HAMi shares each GPU between {shares} pods, so {count} {GPU_RESOURCE} are {cards} cards: planned with "
            "these; an engine has its cards alone only if HAMi's defaultMem is 0, which gives a pod all memory of a "
            "card"
        )
    if cards == 0:
        return Offer(unusable=f"{count} {GPU_RESOURCE} are less than one GPU, which HAMi shares between {shares} pods")
    least, label = _labelled(seen.labels)
    if 0 < least < cards:
        notes.append(
            f"{label} is {least}, but the node offers {cards} {GPU_RESOURCE}: planned with {least}, because pods may "
            "share GPUs there; if they do not, correct the label"
        )
        cards = least
    cut = _cut(seen)
    if least and least - cut < cards:
        if least <= cut:
            slices = seen.amounts(MIG_RESOURCE)
            return Offer(
                unusable=f"{seen.gpu}: {count} {GPU_RESOURCE} are allocatable, but all {least} GPUs are cut into MIG "
                f"slices ({slices}): restart the device plugin; {_CHOOSE_RESOURCE}: {_first(slices)}"
            )
        notes.append(
            f"{label} is {least} and at least {cut} of them are cut into MIG slices, but the node offers {cards} "
            f"{GPU_RESOURCE}: planned with {least - cut}; restart the device plugin"
        )
        cards = least - cut
    if cards > _MOST_GPUS and not least:
        return Offer(
            unusable=f"{seen.gpu}: {cards} {GPU_RESOURCE} are more than the {_MOST_GPUS} GPUs of the largest node, so "
            f"pods share them: set the node label {COUNT_LABEL} to the number of cards"
        )
    return Offer(cards, notes=(*notes, *_also_shared(seen), *_remaining(seen, count)))


def _also_shared(seen: _Node) -> list[str]:
    """A sentence about shares of the same GPUs that another plugin offers beside the whole ones."""
    names = (name for name in sorted(seen.resources) if "/" in name and "gpu" in name.lower())
    shares = [name for name in names if not name.startswith("nvidia.com/") and quantity(seen.resources[name])]
    if not shares:
        return []
    amounts = ", ".join(f"{quantity(seen.resources[name])} x {name}" for name in shares)
    return [f"its GPUs are also offered as {amounts}, so other pods may use the GPU of an engine: remove one plugin"]


def _cut(seen: _Node) -> int:
    """The least number of GPUs that the MIG slices of the node are cut from: seven compute slices are one GPU."""
    pieces = 0
    for name, value in seen.resources.items():
        match = _MIG_SIZE.match(name)
        # Shares of slices are more than the slices.
        if match and not name.endswith(".shared"):
            pieces += int(match[1]) * (quantity(value) or 0)
    return -(-pieces // _PIECES)


def _first(amounts: str) -> str:
    """The first resource of `_Node.amounts`."""
    return amounts.partition(",")[0].partition(" x ")[2]


def _labelled(labels: Mapping[str, str]) -> tuple[int, str]:
    """The smallest number of GPUs that a label states, and the label; (0, "") without one. 0 GPUs is no statement."""
    stated = [(quantity(labels.get(label)) or 0, label) for label in _COUNT_LABELS]
    return min(((number, label) for number, label in stated if 0 < number <= _MOST_LABELLED), default=(0, ""))


def _remaining(seen: _Node, count: int) -> list[str]:
    """Sentences about GPUs that exist but are not among the `count` allocatable ones."""
    slices = seen.amounts(MIG_RESOURCE)
    if slices:
        return [f"its other GPUs are cut into MIG slices ({slices}), which are not planned"]
    capacity = quantity(seen.capacity.get(GPU_RESOURCE)) or 0
    labelled, _ = _labelled({COUNT_LABEL: seen.labels.get(COUNT_LABEL, "")})
    if capacity > count:
        return [
            f"only {count} of {capacity} {GPU_RESOURCE} are allocatable, because the device plugin finds the others "
            "unhealthy: read its log"
        ]
    if capacity and labelled > capacity:
        return [
            f"{COUNT_LABEL} is {labelled}, but its capacity is {capacity} {GPU_RESOURCE}: planned with what the device "
            "plugin offers; restart GPU feature discovery or the device plugin"
        ]
    return []
