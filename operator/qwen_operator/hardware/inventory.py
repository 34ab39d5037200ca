"""Which GPUs exist: from node labels and declared pools to a list of products.

It counts totals. Only the scheduler decides whether a GPU is free, so cordoned and full nodes count. A lasting taint is
different: a node that a pod may never use does not count for that pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator.hardware import nodes as node_reading
from qwen_operator.hardware.boards import board, less, short_name
from qwen_operator.hardware.gpu_memory import MEMORY_LABEL
from qwen_operator.hardware.narrowing import narrowed
from qwen_operator.hardware.nodes import NodeGpus, Taint, UnlabelledNode
from qwen_operator.hardware.offers import COUNT_LABEL, GPU_RESOURCE, PRODUCT_LABEL
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
    "UnlabelledNode",
    "inventory",
    "short_name",
]

_Key = tuple[str, tuple[Taint, ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class GpuProduct:
    """One kind of GPU on one kind of node. `memory_mib` is the total of one GPU, `nodes` the number of existing nodes.

    `full_nodes` is the number of nodes with `gpus_per_node` GPUs that exist or that a pool may grow to. A replica may
    span these. `selector` and `tolerations` place a pod on the nodes. `declared` is true if a pool of the chart names
    the product. Nodes of one product with different `taints` or labels are different entries of an inventory.
    `compute_capability` is None if it is not known. `cost_per_gpu_hour` is in thousandths of a dollar.
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
        """True if `name` is this product's label value, another spelling of it, or its short name, in any case."""
        known_board = board(self.product)
        names = (self.product, self.short, *(known_board.aliases if known_board else ()))
        return name.casefold() in {one.casefold() for one in names}

    def barred(self, tolerations: Sequence[Mapping[str, Any]]) -> list[Taint]:
        """The taints that neither these tolerations nor those of the pool tolerate."""
        offered = (*tolerations, *self.tolerations)
        return [taint for taint in self.taints if not any(taint.tolerated_by(one) for one in offered)]


@dataclass(frozen=True, slots=True)
class Inventory:
    """All GPUs that the operator knows.

    `unlabelled` has the nodes whose GPUs lack labels. `ignored` has one sentence for each reason why nodes do not
    count, and `notes` one for each contradiction between sources. Nodes with the same sentence share one.
    """

    products: tuple[GpuProduct, ...] = ()
    unlabelled: tuple[UnlabelledNode, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def usable(self, tolerations: Sequence[Mapping[str, Any]]) -> Inventory:
        """The GPUs that a pod with these tolerations may use, with one entry for each product and selector."""
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
        """The same hardware and one more product."""
        return replace(self, products=(*self.products, product))

    def with_instead(self, product: GpuProduct) -> Inventory:
        """The same hardware, but this entry replaces all entries of its product."""
        others = tuple(one for one in self.products if one.product != product.product)
        return replace(self, products=(*others, product))


def inventory(nodes: Iterable[Mapping[str, Any]], pools: Sequence[GpuPool]) -> Inventory:
    """Products of the given node objects, joined with the declared pools.

    If nodes of one product differ a little, the smallest memory and compute capability count, and the largest number of
    GPUs per node. If their memory differs more, they are different entries. GPUs that a pod cannot have whole (time
    slicing, MPS, MIG) do not count. A node of any form is accepted; a malformed one does not count.
    """
    seen = [gpus for gpus in map(node_reading.read, nodes) if gpus is not None]
    usable = narrowed([gpus for gpus in seen if not gpus.unusable and not gpus.unlabelled])
    products: dict[_Key, GpuProduct] = {}
    for gpus in usable:
        _add(products, _product(gpus))
    for pool in pools:
        _declare(products, pool)
    return Inventory(
        products=_ordered(products),
        unlabelled=tuple(sorted(gpus.unlabelled for gpus in seen if gpus.unlabelled)),
        ignored=_sentences((gpus.node, gpus.unusable) for gpus in seen if gpus.unusable),
        notes=_sentences((gpus.node, note) for gpus in usable for note in gpus.notes),
    )


def _sentences(reasons: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """One sentence for each reason, with the first node that it holds for and the number of the others."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons:
        nodes.setdefault(reason, []).append(node)
    return tuple(sorted(f"{_named(names)}: {reason}" for reason, names in nodes.items()))


def _named(names: Sequence[str]) -> str:
    more = len(names) - 1
    return f"{min(names)}{f' and {more} more node' if more else ''}{'s' if more > 1 else ''}"


def _product(gpus: NodeGpus) -> GpuProduct:
    return GpuProduct(
        product=gpus.product,
        memory_mib=gpus.memory_mib,
        gpus_per_node=gpus.gpus,
        nodes=1,
        selector=dict(gpus.selector),
        declared=False,
        taints=gpus.taints,
        compute_capability=gpus.compute_capability,
    )


def _declare(products: dict[_Key, GpuProduct], pool: GpuPool) -> None:
    """Join a pool with the nodes of its product, whatever their taints. A pool without nodes is an entry of its own.

    Nodes with a part of the board are joined only if there are no others.
    """
    known_board = board(pool.product)
    selector = dict(pool.node_selector) or {PRODUCT_LABEL: pool.product}
    declared = GpuProduct(
        product=pool.product,
        memory_mib=pool.memory_mib,
        gpus_per_node=pool.gpus_per_node,
        nodes=0,
        selector=selector,
        declared=True,
        tolerations=pool.tolerations,
        compute_capability=pool.compute_capability or (known_board.compute_capability if known_board else None),
        cost_per_gpu_hour=pool.cost_per_gpu_hour,
        full_nodes=pool.max_nodes or 1,
    )
    nodes = [key for key in products if key[0] == pool.product]
    existing = [key for key in nodes if not less(products[key].memory_mib, pool.memory_mib)] or nodes
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
    """Two entries of one product as one. The nodes of a pool include those that exist already."""
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
