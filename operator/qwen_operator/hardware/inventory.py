"""Which GPUs exist: from node labels and declared pools to a list of products.

Totals only. Whether a GPU is free now is the scheduler's word, so cordoned and full nodes count. A taint that somebody
put there for good is no such matter of the moment: nodes that a pod may never use are no hardware for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

_Key = TypeVar("_Key")

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
COUNT_LABEL = "nvidia.com/gpu.count"

# Short names that the rule of `short_name` cannot derive, or that people know under another form.
_ALIASES = {
    "NVIDIA-H100-PCIe": "H100-80GB",
    "NVIDIA-H100-NVL": "H100-NVL",
    "NVIDIA-GeForce-RTX-4090": "RTX4090",
    "NVIDIA-GeForce-RTX-3090": "RTX3090",
    "NVIDIA-RTX-A6000": "A6000",
}
_FAMILIES = ("GeForce", "Quadro", "RTX", "TITAN")
_MEMORY_PART = re.compile(r"^\d+GB$")
# Taints of the moment (not-ready, unschedulable, memory-pressure ...), which come and go by themselves.
_PASSING_TAINTS = "node.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class GpuPool:
    """A pool declared in the chart, for nodes that do not exist yet (a node group at zero).

    `product` is the value of the label nvidia.com/gpu.product; `node_selector` selects the pool's nodes and
    defaults to that label. One that is given also holds for nodes of the product that exist already.
    """

    name: str
    product: str
    memory_mib: int
    gpus_per_node: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


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
class GpuProduct:
    """One kind of GPU. `memory_mib` is the total of one GPU; `nodes` is how many nodes have it now.

    `selector` and `tolerations` place a pod on its nodes; `declared` says that a pool of the chart names it. Nodes of
    one product with different `taints` are different entries of an inventory.
    """

    product: str
    memory_mib: int
    gpus_per_node: int
    nodes: int
    selector: Mapping[str, str]
    declared: bool
    tolerations: tuple[Mapping[str, Any], ...] = ()
    taints: tuple[Taint, ...] = ()

    @property
    def short(self) -> str:
        """The short name, e.g. H100-80GB."""
        return short_name(self.product)

    def called(self, name: str) -> bool:
        """True if `name` is this product's label value or short name, in any case of letters."""
        return name.casefold() in (self.product.casefold(), self.short.casefold())

    def barred(self, tolerations: Sequence[Mapping[str, Any]]) -> list[Taint]:
        """The taints that neither these tolerations nor the pool's own tolerate."""
        offered = (*tolerations, *self.tolerations)
        return [taint for taint in self.taints if not any(taint.tolerated_by(one) for one in offered)]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Products by name; names of nodes whose GPUs carry no labels; sentences about nodes that were left out."""

    products: tuple[GpuProduct, ...] = ()
    unlabelled: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def usable(self, tolerations: Sequence[Mapping[str, Any]]) -> Inventory:
        """What a pod with these tolerations may run on: one entry per product, without taints."""
        products: dict[str, GpuProduct] = {}
        ignored = list(self.ignored)
        for product in self.products:
            barred = product.barred(tolerations)
            if barred:
                taints = ", ".join(str(taint) for taint in barred)
                nodes = f"{product.nodes} node{'s' if product.nodes != 1 else ''} with {product.product}"
                ignored.append(f"{nodes}: tainted {taints}, which spec.pod.tolerations does not tolerate")
            else:
                _add(products, product.product, replace(product, taints=()))
        return replace(self, products=tuple(products[key] for key in sorted(products)), ignored=tuple(ignored))


def short_name(product: str) -> str:
    """The short name of a product label value.

    Rule: drop a leading "NVIDIA-" or "Tesla-", keep the model, and keep the memory if it stands in the label as
    "<n>GB". So NVIDIA-H100-80GB-HBM3 is H100-80GB, NVIDIA-A100-SXM4-40GB is A100-40GB, NVIDIA-L40S is L40S. Names
    that go on after a family word (RTX, GeForce, ...) stay whole; a few have an alias instead.
    """
    if product in _ALIASES:
        return _ALIASES[product]
    bare = re.sub(r"^(NVIDIA|Tesla)-(?=.)", "", product)
    model, *rest = bare.split("-")
    if model in _FAMILIES:
        return bare
    return "-".join([model, *(part for part in rest if _MEMORY_PART.match(part))][:2])


def inventory(nodes: Iterable[Mapping[str, Any]], pools: Sequence[GpuPool]) -> Inventory:
    """Products of the given node objects, joined with the declared pools.

    Where nodes of one product differ, memory is the smallest and GPUs per node the largest seen. Shared GPUs
    (time slicing, MPS, MIG) are left out: an engine needs whole ones.
    """
    products: dict[tuple[str, tuple[Taint, ...]], GpuProduct] = {}
    unlabelled: list[str] = []
    ignored: list[str] = []
    for node in nodes:
        name = str(_metadata(node).get("name", ""))
        labels = _labels(node)
        product = labels.get(PRODUCT_LABEL, "")
        gpus = _gpus(node, labels)
        memory = _whole(labels.get(MEMORY_LABEL))
        if gpus == 0:
            continue
        if _shared(product, labels):
            ignored.append(f"{name}: {product or GPU_RESOURCE} is shared between pods")
        elif not product or memory == 0:
            unlabelled.append(name)
        else:
            taints = _taints(node)
            _add(products, (product, taints), GpuProduct(product, memory, gpus, 1, {}, declared=False, taints=taints))
    for pool in pools:
        _declare(products, pool)
    ordered = tuple(_selectable(products[key]) for key in sorted(products))
    return Inventory(ordered, tuple(sorted(unlabelled)), tuple(sorted(ignored)))


def _declare(products: dict[tuple[str, tuple[Taint, ...]], GpuProduct], pool: GpuPool) -> None:
    """Join a pool with the nodes of its product, whatever their taints; a pool without nodes stands for itself."""
    shape = (pool.product, pool.memory_mib, pool.gpus_per_node, 0, dict(pool.node_selector))
    declared = GpuProduct(*shape, declared=True, tolerations=pool.tolerations)
    for key in [key for key in products if key[0] == pool.product] or [(pool.product, ())]:
        _add(products, key, replace(declared, taints=key[1]))


def _add(products: dict[_Key, GpuProduct], key: _Key, new: GpuProduct) -> None:
    old = products.get(key)
    if old is None:
        products[key] = new
        return
    products[key] = replace(
        old,
        memory_mib=min(old.memory_mib, new.memory_mib),
        gpus_per_node=max(old.gpus_per_node, new.gpus_per_node),
        nodes=old.nodes + new.nodes,
        selector=old.selector or new.selector,
        declared=old.declared or new.declared,
        tolerations=(*old.tolerations, *(item for item in new.tolerations if item not in old.tolerations)),
    )


def _selectable(product: GpuProduct) -> GpuProduct:
    return replace(product, selector=product.selector or {PRODUCT_LABEL: product.product})


def _gpus(node: Mapping[str, Any], labels: Mapping[str, str]) -> int:
    """GPUs of a node: what its device plugin offers, or the label's count while the plugin is not up."""
    status = node.get("status")
    allocatable = status.get("allocatable") if isinstance(status, Mapping) else None
    offered = allocatable.get(GPU_RESOURCE) if isinstance(allocatable, Mapping) else None
    return _whole(offered) or _whole(labels.get(COUNT_LABEL))


def _taints(node: Mapping[str, Any]) -> tuple[Taint, ...]:
    """The lasting taints, sorted, but for the one on GPU nodes as such: every pod of ours tolerates that."""
    spec = node.get("spec")
    listed = spec.get("taints") if isinstance(spec, Mapping) else None
    found = set()
    for item in listed if isinstance(listed, list) else []:
        taint = Taint(str(item.get("key", "")), str(item.get("value") or ""), str(item.get("effect", "")))
        if taint.effect in ("NoSchedule", "NoExecute") and not taint.key.startswith((_PASSING_TAINTS, GPU_RESOURCE)):
            found.add(taint)
    return tuple(sorted(found))


def _shared(product: str, labels: Mapping[str, str]) -> bool:
    strategy = labels.get("nvidia.com/gpu.sharing-strategy", "none")
    return strategy not in ("none", "") or product.endswith("-SHARED") or "-MIG-" in product


def _metadata(node: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = node.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    labels = _metadata(node).get("labels")
    return {str(key): str(value) for key, value in labels.items()} if isinstance(labels, Mapping) else {}


def _whole(value: Any) -> int:
    """A whole number from a label or a quantity, 0 if it is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
