"""Which GPUs exist: from node labels and declared pools to a list of products.

Totals only. Whether a GPU is free now is the scheduler's word, so cordoned and full nodes count. A taint that somebody
put there for good is no such matter of the moment: nodes that a pod may never use are no hardware for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator.hardware import nodes as node_reading
from qwen_operator.hardware.boards import board, short_name
from qwen_operator.hardware.nodes import COUNT_LABEL, GPU_RESOURCE, MEMORY_LABEL, PRODUCT_LABEL, Taint
from qwen_operator.hardware.pools import GpuPool

__all__ = [
    "COUNT_LABEL",
    "GPU_RESOURCE",
    "MEMORY_LABEL",
    "PRODUCT_LABEL",
    "GpuPool",
    "GpuProduct",
    "Inventory",
    "Taint",
    "inventory",
    "short_name",
]

_Key = tuple[str, tuple[Taint, ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class GpuProduct:
    """One kind of GPU on one kind of node. `memory_mib` is the total of one GPU; `nodes` is how many nodes have it now.

    `full_nodes` of them, existing or allowed to a pool, have `gpus_per_node` GPUs: a replica may span these.
    `selector` and `tolerations` place a pod on its nodes; `declared` says that a pool of the chart names it. Nodes of
    one product with different `taints` or labels are different entries of an inventory. `compute_capability` is None
    where nobody says it; `cost_per_gpu_hour` is in thousandths of a dollar.
    """

    product: str
    memory_mib: int
    gpus_per_node: int
    nodes: int
    selector: Mapping[str, str]
    declared: bool
    tolerations: tuple[Mapping[str, Any], ...] = ()
    taints: tuple[Taint, ...] = ()
    compute_capability: tuple[int, int] | None = None
    cost_per_gpu_hour: int | None = None
    full_nodes: int = 1

    @property
    def short(self) -> str:
        """The short name, e.g. H100-80GB."""
        return short_name(self.product)

    def called(self, name: str) -> bool:
        """True if `name` is this product's label value, another spelling of it or its short name, in any case."""
        known = board(self.product)
        names = (self.product, self.short, *(known.aliases if known else ()))
        return name.casefold() in {one.casefold() for one in names}

    def barred(self, tolerations: Sequence[Mapping[str, Any]]) -> list[Taint]:
        """The taints that neither these tolerations nor the pool's own tolerate."""
        offered = (*tolerations, *self.tolerations)
        return [taint for taint in self.taints if not any(taint.tolerated_by(one) for one in offered)]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Products by name; names of nodes whose GPUs carry no labels; sentences about nodes that were left out, and
    about nodes whose labels disagree with what they have."""

    products: tuple[GpuProduct, ...] = ()
    unlabelled: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def usable(self, tolerations: Sequence[Mapping[str, Any]]) -> Inventory:
        """What a pod with these tolerations may run on: one entry per product and selector, without taints."""
        products: dict[_Key, GpuProduct] = {}
        ignored = list(self.ignored)
        for product in self.products:
            barred = product.barred(tolerations)
            if barred:
                taints = ", ".join(str(taint) for taint in barred)
                nodes = f"{product.nodes} node{'s' if product.nodes != 1 else ''} with {product.product}"
                ignored.append(f"{nodes}: tainted {taints}, which spec.pod.tolerations does not tolerate")
            else:
                _add(products, replace(product, taints=()))
        return replace(self, products=_ordered(products), ignored=tuple(ignored))

    def with_product(self, product: GpuProduct) -> Inventory:
        """The same hardware and one product more."""
        return replace(self, products=(*self.products, product))

    def with_instead(self, product: GpuProduct) -> Inventory:
        """The same hardware, but of this product what is given."""
        others = tuple(one for one in self.products if one.product != product.product)
        return replace(self, products=(*others, product))


def inventory(nodes: Iterable[Mapping[str, Any]], pools: Sequence[GpuPool]) -> Inventory:
    """Products of the given node objects, joined with the declared pools.

    Where nodes of one product differ, memory and compute capability are the smallest and GPUs per node the largest
    seen. Shared GPUs (time slicing, MPS, MIG) are left out: an engine needs whole ones.
    """
    products: dict[_Key, GpuProduct] = {}
    unlabelled: list[str] = []
    ignored: list[str] = []
    notes: list[str] = []
    for node in nodes:
        seen = node_reading.read(node)
        if seen is None:
            continue
        if seen.shared:
            ignored.append(f"{seen.node}: {seen.shared}")
        elif not seen.product:
            unlabelled.append(seen.node)
        else:
            notes += seen.notes
            _add(products, _product(seen))
    for pool in pools:
        _declare(products, pool)
    return Inventory(_ordered(products), tuple(sorted(unlabelled)), tuple(sorted(ignored)), tuple(sorted(notes)))


def _product(seen: node_reading.Sighting) -> GpuProduct:
    return GpuProduct(
        product=seen.product,
        memory_mib=seen.memory_mib,
        gpus_per_node=seen.gpus,
        nodes=1,
        selector=dict(seen.selector),
        declared=False,
        taints=seen.taints,
        compute_capability=seen.compute_capability,
    )


def _declare(products: dict[_Key, GpuProduct], pool: GpuPool) -> None:
    """Join a pool with the nodes of its product, whatever their taints; a pool without nodes stands for itself."""
    known = board(pool.product)
    selector = dict(pool.node_selector) or {PRODUCT_LABEL: pool.product}
    declared = GpuProduct(
        product=pool.product,
        memory_mib=pool.memory_mib,
        gpus_per_node=pool.gpus_per_node,
        nodes=0,
        selector=selector,
        declared=True,
        tolerations=pool.tolerations,
        compute_capability=pool.compute_capability or (known.compute_capability if known else None),
        cost_per_gpu_hour=pool.cost_per_gpu_hour,
        full_nodes=pool.max_nodes or 1,
    )
    existing = [key for key in products if key[0] == pool.product]
    for key in existing:
        old = products.pop(key)
        own = dict(pool.node_selector) or old.selector
        _add(products, replace(old, selector=own))
        _add(products, replace(declared, selector=own, taints=old.taints))
    if not existing:
        _add(products, declared)


def _add(products: dict[_Key, GpuProduct], new: GpuProduct) -> None:
    key = (new.product, new.taints, tuple(sorted(new.selector.items())))
    old = products.get(key)
    products[key] = new if old is None else _joined(old, new)


def _joined(old: GpuProduct, new: GpuProduct) -> GpuProduct:
    """Two views of one product. Declared nodes are those that exist and more, never others beside them."""
    most = max(old.gpus_per_node, new.gpus_per_node)
    counts = [one.full_nodes if one.gpus_per_node == most else 0 for one in (old, new)]
    full = max(counts) if old.nodes == 0 or new.nodes == 0 else sum(counts)
    return replace(
        old,
        memory_mib=min(old.memory_mib, new.memory_mib),
        gpus_per_node=most,
        nodes=old.nodes + new.nodes,
        declared=old.declared or new.declared,
        tolerations=(*old.tolerations, *(item for item in new.tolerations if item not in old.tolerations)),
        compute_capability=_least(old.compute_capability, new.compute_capability),
        cost_per_gpu_hour=_most(old.cost_per_gpu_hour, new.cost_per_gpu_hour),
        full_nodes=full,
    )


def _least(one: tuple[int, int] | None, two: tuple[int, int] | None) -> tuple[int, int] | None:
    return min(one, two) if one and two else one or two


def _most(one: int | None, two: int | None) -> int | None:
    return max(one, two) if one is not None and two is not None else two if one is None else one


def _ordered(products: Mapping[_Key, GpuProduct]) -> tuple[GpuProduct, ...]:
    return tuple(products[key] for key in sorted(products))
