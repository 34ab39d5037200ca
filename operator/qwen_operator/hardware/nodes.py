"""The GPUs of one node, from its labels and its status.

Labels come from GPU feature discovery or from the cloud (`boards.named_by`). If numbers contradict each other, the
smaller one counts, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator import objects
from qwen_operator.hardware.boards import Board, board, named_by
from qwen_operator.objects import mapping, members

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
COUNT_LABEL = "nvidia.com/gpu.count"
_MAJOR_LABEL = "nvidia.com/gpu.compute.major"
_MINOR_LABEL = "nvidia.com/gpu.compute.minor"
_REPLICAS_LABEL = "nvidia.com/gpu.replicas"
# If one of these has a value other than none, pods share a GPU. The first is of GPU feature discovery, the others of
# GKE.
_SHARING_LABELS = (
    "nvidia.com/gpu.sharing-strategy",
    "cloud.google.com/gke-gpu-sharing-strategy",
    "cloud.google.com/gke-gpu-partition-size",
)
_MIG_RESOURCE = "nvidia.com/mig-"
# In percent. Drivers keep up to 4 % of a board's memory for error correction, and tables round. A larger difference
# means another board.
_MEMORY_TOLERANCE = 10
# Kubernetes sets and removes these taints by itself (not-ready, unschedulable, memory-pressure ...).
_PASSING_TAINTS = "node.kubernetes.io/"


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A lasting taint that keeps pods off a node. `effect` is NoSchedule or NoExecute."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"

    def tolerated_by(self, toleration: Mapping[str, Any]) -> bool:
        """Kubernetes' own rule: no effect matches every effect, and Exists without a key matches every taint."""
        if toleration.get("effect") not in (None, "", self.effect):
            return False
        key = toleration.get("key") or ""
        if toleration.get("operator") == "Exists":
            return key in ("", self.key)
        return bool(key == self.key and (toleration.get("value") or "") == self.value)


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """The GPUs of a node. `shared` says why a pod cannot use them whole. Without labels, `product` is "".

    `selector` selects nodes of this kind. `notes` has one sentence for each contradiction between numbers.
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


def read(node: Mapping[str, Any]) -> NodeGpus | None:
    """The GPUs of a node object, None if it has none."""
    name, labels = str(mapping(node, "metadata").get("name", "")), _labels(node)
    product = labels.get(PRODUCT_LABEL, "")
    gpus = _offered(node, "allocatable") or _whole(labels.get(COUNT_LABEL))
    if gpus == 0:
        sliced = any(resource.startswith(_MIG_RESOURCE) for resource in mapping(node, "status", "allocatable"))
        return NodeGpus(name, shared=f"{product or 'its GPUs'}: cut into MIG slices") if sliced else None
    shared = _shared(product, labels)
    if shared:
        return NodeGpus(name, shared=shared)
    cloud_label = None if product else named_by(labels)
    known_board = cloud_label.board if cloud_label else board(product)
    if cloud_label:
        product, selector = cloud_label.board.product, ((cloud_label.label, cloud_label.value),)
    else:
        selector = ((PRODUCT_LABEL, product),)
    memory, notes = _memory(name, product, _whole(labels.get(MEMORY_LABEL)), known_board)
    if not product or memory == 0:
        return NodeGpus(name)
    return NodeGpus(
        node=name,
        product=product,
        memory_mib=memory,
        gpus=gpus,
        compute_capability=_capability(labels) or (known_board.compute_capability if known_board else None),
        selector=selector,
        taints=_taints(node),
        notes=(*notes, *_count_note(name, node, labels)),
    )


def _memory(node: str, product: str, labelled: int, known_board: Board | None) -> tuple[int, tuple[str, ...]]:
    """MiB of one GPU, and the note about it. `labelled` is the value of the label, 0 if there is none."""
    if known_board is None or labelled == 0:
        return labelled or (known_board.memory_mib if known_board else 0), ()
    if abs(labelled - known_board.memory_mib) * 100 <= known_board.memory_mib * _MEMORY_TOLERANCE:
        return labelled, ()
    least = min(labelled, known_board.memory_mib)
    note = (
        f"{node}: {MEMORY_LABEL} is {labelled}, but a {product} has {known_board.memory_mib} MiB: planned with "
        f"{least}; correct the label, or run GPU feature discovery again"
    )
    return least, (note,)


def _count_note(name: str, node: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, ...]:
    labelled, capacity = _whole(labels.get(COUNT_LABEL)), _offered(node, "capacity")
    if not labelled or not capacity or labelled == capacity:
        return ()
    return (
        f"{name}: {COUNT_LABEL} is {labelled}, but its capacity is {capacity} {GPU_RESOURCE}: planned with what the "
        "device plugin offers; restart GPU feature discovery or the device plugin",
    )


def _shared(product: str, labels: Mapping[str, str]) -> str:
    """Why a pod would not get whole GPUs, or ""."""
    gpu = product or GPU_RESOURCE
    if "-MIG-" in product:
        return f"{gpu}: a MIG slice, no whole GPU"
    strategies = [labels[label] for label in _SHARING_LABELS if labels.get(label, "none") not in ("none", "")]
    if product.endswith("-SHARED") or strategies or _whole(labels.get(_REPLICAS_LABEL)) > 1:
        return f"{gpu} is shared between pods"
    return ""


def _capability(labels: Mapping[str, str]) -> tuple[int, int] | None:
    major, minor = labels.get(_MAJOR_LABEL, ""), labels.get(_MINOR_LABEL, "")
    return (_whole(major), _whole(minor)) if _whole(major) and minor.isdigit() else None


def _taints(node: Mapping[str, Any]) -> tuple[Taint, ...]:
    """The lasting taints, sorted, without nvidia.com/gpu, which all pods of the operator tolerate."""
    taints = {
        Taint(str(item.get("key", "")), str(item.get("value") or ""), str(item.get("effect", "")))
        for item in members(node, "spec", "taints")
    }
    return tuple(
        sorted(
            taint
            for taint in taints
            if taint.effect in ("NoSchedule", "NoExecute") and not taint.key.startswith((_PASSING_TAINTS, GPU_RESOURCE))
        )
    )


def _offered(node: Mapping[str, Any], part: str) -> int:
    return _whole(mapping(node, "status", part).get(GPU_RESOURCE))


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in objects.labels(node).items()}


def _whole(value: Any) -> int:
    """The whole number of a label or a quantity, 0 if it is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
