"""The GPUs of one node, from its labels, its annotations and its status.

Labels come from GPU feature discovery or from the cloud (`boards.named_by`). If sources contradict each other, the
smaller number counts, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator import objects
from qwen_operator.hardware import form, gpu_memory, hami, offers, shares
from qwen_operator.hardware.boards import (
    INSTANCE_TYPE_LABEL,
    BoardLabel,
    board,
    capability_of,
    named_by,
    provider_label,
    provider_labels,
)
from qwen_operator.hardware.gpu_memory import CLOUD_MEMORY_LABELS, MEMORY_LABEL
from qwen_operator.hardware.offers import GPU_RESOURCE, PRODUCT_LABEL
from qwen_operator.hardware.shares import Share
from qwen_operator.objects import mapping, members

_VGPU_LABEL = "nvidia.com/vgpu.present"
# The profile at the end of a vGPU's name: GRID-T4-16Q, NVIDIA-A40-48C.
_VGPU_PROFILE = re.compile(r"-[0-9]{1,3}[ABCQ]$")
# Kubernetes sets and removes these taints by itself (not-ready, unschedulable, memory-pressure ...).
# Taints that Kubernetes, clouds and start-up controllers set and remove by themselves, and the ends of their keys.
_PASSING_TAINTS = (
    "node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "karpenter.sh/", "ToBeDeletedByClusterAutoscaler",
    "startup-taint.cluster-autoscaler.kubernetes.io/", "ignore-taint.cluster-autoscaler.kubernetes.io/",
    "readiness.k8s.io/",
)  # fmt: skip
_PASSING_ENDS = ("/agent-not-ready",)
NARROWING_LABELS = (MEMORY_LABEL, *CLOUD_MEMORY_LABELS, INSTANCE_TYPE_LABEL)
"""Labels that tell nodes with a whole board from nodes with a part of the same board."""


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


@dataclass(frozen=True, slots=True, order=True)
class UnlabelledNode:
    """A node whose GPUs cannot be planned, because labels are missing.

    `lacks` are the labels that are missing or unreadable. `product` is "" if no label names it. `host_mib` is the
    allocatable memory of the node in MiB if CPU and GPU share it, otherwise 0.
    """

    node: str
    product: str = ""
    lacks: tuple[str, ...] = (PRODUCT_LABEL, MEMORY_LABEL)
    unified: bool = False
    host_mib: int = 0


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """The GPUs of a node. `unusable` says why a pod cannot use them, `unlabelled` what their labels lack.

    `selector` selects nodes of this kind. `notes` has one sentence for each contradiction between sources. Neither
    these nor `unusable` name the node. `marks` are the labels that selectors use. `share` is the part of a GPU that a
    pod gets, None for whole GPUs.
    """

    node: str
    product: str = ""
    memory_mib: int = 0
    gpus: int = 0
    compute_capability: tuple[int, int] | None = None
    selector: tuple[tuple[str, str], ...] = ()
    taints: tuple[Taint, ...] = ()
    unusable: str = ""
    unlabelled: UnlabelledNode | None = None
    notes: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    resource_name: str = GPU_RESOURCE
    share: Share | None = None


def read(node: Mapping[str, Any]) -> NodeGpus | None:
    """The GPUs of a node object of any form, None if it has none."""
    if not isinstance(node, dict):
        return NodeGpus("?", unusable="is no object")
    name = str(mapping(node, "metadata").get("name") or "?")
    fault = form.fault(node)
    if fault:
        return NodeGpus(name, unusable=f"{fault}; the node does not count")
    labels = _labels(node)
    offer = offers.offer(node, labels)
    if offer is None:
        return None
    if offer.unusable:
        return NodeGpus(name, unusable=offer.unusable)
    return _planned(node, name, labels, offer)


def parts(node: Mapping[str, Any]) -> Iterator[NodeGpus]:
    """The MIG slices and shared GPUs of a node object of any form. `gpus` is their number."""
    if not isinstance(node, dict) or form.fault(node):
        return
    name, labels = str(mapping(node, "metadata").get("name") or "?"), _labels(node)
    for part in shares.parts(node, labels):
        if part.unusable:
            yield NodeGpus(name, unusable=part.unusable, resource_name=part.resource_name)
            continue
        keys = (*(key for key, _ in part.selector), *NARROWING_LABELS)
        yield NodeGpus(
            node=name,
            product=part.product,
            memory_mib=part.memory_mib,
            gpus=part.count,
            compute_capability=part.compute_capability,
            selector=part.selector,
            taints=_taints(node),
            notes=part.notes,
            marks={key: labels[key] for key in keys if key in labels},
            resource_name=part.resource_name,
            share=part.share,
        )


def shares_host_memory(labels: Mapping[str, Any]) -> bool:
    """Whether the GPUs of a node with these labels use the memory of its CPU."""
    known = board(str(labels.get(PRODUCT_LABEL, "")))
    return known is not None and known.unified


def _planned(node: Mapping[str, Any], name: str, labels: Mapping[str, str], offer: offers.Offer) -> NodeGpus:
    product, selector, cloud = _product(labels)
    known = cloud.board if cloud else board(product)
    host_mib = gpu_memory.of_quantity(mapping(node, "status", "allocatable").get("memory"))
    sources = gpu_memory.Sources(known, cloud, hami.memory_mib(objects.annotations(node)), host_mib)
    memory = gpu_memory.read(labels, sources)
    if not product or memory.mib == 0:
        unified = known is not None and known.unified
        lacks = (*([] if product else [PRODUCT_LABEL]), *([] if memory.mib else [MEMORY_LABEL]))
        return NodeGpus(name, unlabelled=UnlabelledNode(name, product, lacks, unified, host_mib if unified else 0))
    unquoted = form.unquoted(node)
    return NodeGpus(
        node=name,
        product=product,
        memory_mib=memory.mib,
        gpus=offer.gpus,
        compute_capability=capability_of(labels) or (known.compute_capability if known else None),
        selector=(selector,),
        taints=_taints(node),
        notes=(*offer.notes, *memory.notes, *_vgpu(labels, product), *([unquoted] if unquoted else [])),
        marks={key: labels[key] for key in (PRODUCT_LABEL, *provider_labels(), *NARROWING_LABELS) if key in labels},
    )


def _product(labels: Mapping[str, str]) -> tuple[str, tuple[str, str], BoardLabel | None]:
    """The product, the label that selects its nodes, and the board if a cloud's label names it; "" for no product."""
    product = labels.get(PRODUCT_LABEL, "")
    if product:
        return product, (PRODUCT_LABEL, product), None
    stated = next(
        (mib for label in (MEMORY_LABEL, *CLOUD_MEMORY_LABELS) if (mib := gpu_memory.mib(labels.get(label)))), 0
    )
    cloud = named_by(labels, stated)
    if cloud:
        return cloud.board.product, (cloud.label, cloud.value), cloud
    # A board that the table lacks: the cloud's own name of it is as good a name as any.
    unknown = provider_label(labels)
    return (unknown[1], unknown, None) if unknown and stated else ("", ("", ""), None)


def _vgpu(labels: Mapping[str, str], product: str) -> list[str]:
    if labels.get(_VGPU_LABEL) != "true" and not _VGPU_PROFILE.search(product):
        return []
    return [f"{product} is a vGPU: it has its memory for itself, but other virtual machines use the same GPU"]


def _taints(node: Mapping[str, Any]) -> tuple[Taint, ...]:
    """The lasting taints, sorted, without nvidia.com/gpu, which all pods of the operator tolerate."""
    taints = {
        Taint(str(item.get("key", "")), str(item.get("value") or ""), str(item.get("effect", "")))
        for item in members(node, "spec", "taints")
    }
    return tuple(
        sorted(taint for taint in taints if taint.effect in ("NoSchedule", "NoExecute") and not _passes(taint.key))
    )


def _passes(key: str) -> bool:
    return key.startswith((*_PASSING_TAINTS, GPU_RESOURCE)) or key.endswith(_PASSING_ENDS)


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in objects.labels(node).items() if value is not None}
