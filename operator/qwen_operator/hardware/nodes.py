"""What one node says of its GPUs.

Labels come from GPU feature discovery, or from the cloud (`boards.named_by`). Numbers that cannot all be true are told
in a sentence, and the one that promises less is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.hardware.boards import Board, board, named_by

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
COUNT_LABEL = "nvidia.com/gpu.count"
_MAJOR_LABEL = "nvidia.com/gpu.compute.major"
_MINOR_LABEL = "nvidia.com/gpu.compute.minor"
_REPLICAS_LABEL = "nvidia.com/gpu.replicas"
# Any of these with a value other than none says that pods share a GPU: GPU feature discovery, then GKE.
_SHARING_LABELS = (
    "nvidia.com/gpu.sharing-strategy",
    "cloud.google.com/gke-gpu-sharing-strategy",
    "cloud.google.com/gke-gpu-partition-size",
)
_MIG_RESOURCE = "nvidia.com/mig-"
# Drivers keep up to 4 % of a board's memory for error correction, and tables round; more is another board.
_MEMORY_TOLERANCE = 10
# Taints of the moment (not-ready, unschedulable, memory-pressure ...), which come and go by themselves.
_PASSING_TAINTS = "node.kubernetes.io/"


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A taint that keeps pods off a node for good; `effect` is NoSchedule or NoExecute."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"

    def tolerated_by(self, toleration: Mapping[str, Any]) -> bool:
        """Kubernetes' own rule: no effect means every effect, Exists without a key every taint."""
        if toleration.get("effect") not in (None, "", self.effect):
            return False
        key = toleration.get("key") or ""
        if toleration.get("operator") == "Exists":
            return key in ("", self.key)
        return bool(key == self.key and (toleration.get("value") or "") == self.value)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The GPUs of a node. `shared` says why they cannot be used whole; without `product` they carry no labels.

    `selector` finds nodes of this kind; `notes` are sentences about numbers that disagree.
    """

    node: str
    product: str = ""
    memory_mib: int = 0
    gpus: int = 0
    compute_capability: tuple[int, int] | None = None
    selector: tuple[tuple[str, str], ...] = ()
    taints: tuple[Taint, ...] = ()
    shared: str = ""
    notes: tuple[str, ...] = ()


def read(node: Mapping[str, Any]) -> Sighting | None:
    """The GPUs of a node object; None for a node without any."""
    name, labels = str(_member(node, "metadata").get("name", "")), _labels(node)
    product = labels.get(PRODUCT_LABEL, "")
    gpus = _offered(node, "allocatable") or _whole(labels.get(COUNT_LABEL))
    if gpus == 0:
        sliced = any(resource.startswith(_MIG_RESOURCE) for resource in _resources(node, "allocatable"))
        return Sighting(name, shared=f"{product or 'its GPUs'}: cut into MIG slices") if sliced else None
    shared = _shared(product, labels)
    if shared:
        return Sighting(name, shared=shared)
    naming = None if product else named_by(labels)
    known = naming.board if naming else board(product)
    said = _whole(labels.get(MEMORY_LABEL))
    if naming:
        product, selector = naming.board.product, ((naming.label, naming.value),)
    else:
        selector = ((PRODUCT_LABEL, product),)
    memory, notes = _memory(name, product, said, known)
    if not product or memory == 0:
        return Sighting(name)
    counted = _counted(name, node, labels)
    return Sighting(
        node=name,
        product=product,
        memory_mib=memory,
        gpus=gpus,
        compute_capability=_capability(labels) or (known.compute_capability if known else None),
        selector=selector,
        taints=_taints(node),
        notes=(*notes, *counted),
    )


def _memory(node: str, product: str, said: int, known: Board | None) -> tuple[int, tuple[str, ...]]:
    """MiB of one GPU and the sentence about it. A label of GPU feature discovery is needed for an unknown board."""
    if known is None or said == 0:
        return said or (known.memory_mib if known else 0), ()
    if abs(said - known.memory_mib) * 100 <= known.memory_mib * _MEMORY_TOLERANCE:
        return said, ()
    least = min(said, known.memory_mib)
    note = (
        f"{node}: {MEMORY_LABEL} is {said}, but a {product} has {known.memory_mib} MiB: planned with {least}; "
        "correct the label, or run GPU feature discovery again"
    )
    return least, (note,)


def _counted(name: str, node: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, ...]:
    said, capacity = _whole(labels.get(COUNT_LABEL)), _offered(node, "capacity")
    if not said or not capacity or said == capacity:
        return ()
    return (
        f"{name}: {COUNT_LABEL} is {said}, but its capacity is {capacity} {GPU_RESOURCE}: planned with what the device "
        "plugin offers; restart GPU feature discovery or the device plugin",
    )


def _shared(product: str, labels: Mapping[str, str]) -> str:
    """Why a pod would not get whole GPUs, or ""."""
    what = product or GPU_RESOURCE
    if "-MIG-" in product:
        return f"{what}: a MIG slice, no whole GPU"
    strategies = [labels[label] for label in _SHARING_LABELS if labels.get(label, "none") not in ("none", "")]
    if product.endswith("-SHARED") or strategies or _whole(labels.get(_REPLICAS_LABEL)) > 1:
        return f"{what} is shared between pods"
    return ""


def _capability(labels: Mapping[str, str]) -> tuple[int, int] | None:
    major, minor = labels.get(_MAJOR_LABEL, ""), labels.get(_MINOR_LABEL, "")
    return (_whole(major), _whole(minor)) if _whole(major) and minor.isdigit() else None


def _taints(node: Mapping[str, Any]) -> tuple[Taint, ...]:
    """The lasting taints, sorted, but for the one on GPU nodes as such: every pod of ours tolerates that."""
    listed = _member(node, "spec").get("taints")
    found = set()
    for item in listed if isinstance(listed, list) else []:
        taint = Taint(str(item.get("key", "")), str(item.get("value") or ""), str(item.get("effect", "")))
        if taint.effect in ("NoSchedule", "NoExecute") and not taint.key.startswith((_PASSING_TAINTS, GPU_RESOURCE)):
            found.add(taint)
    return tuple(sorted(found))


def _offered(node: Mapping[str, Any], part: str) -> int:
    return _whole(_resources(node, part).get(GPU_RESOURCE))


def _resources(node: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    resources = _member(node, "status").get(part)
    return resources if isinstance(resources, Mapping) else {}


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    labels = _member(node, "metadata").get("labels")
    return {str(key): str(value) for key, value in labels.items()} if isinstance(labels, Mapping) else {}


def _member(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    member = node.get(name)
    return member if isinstance(member, Mapping) else {}


def _whole(value: Any) -> int:
    """A whole number from a label or a quantity, 0 if it is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
