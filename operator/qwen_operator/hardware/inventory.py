"""Which GPUs exist: from node labels and declared pools to a list of products.

It counts totals. Only the scheduler decides whether a GPU is free, so cordoned and full nodes count. A lasting taint is
different: a node that a pod may never use does not count for that pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator.hardware import nodes as node_reading
from qwen_operator.hardware.boards import board, less, short_name, whole
from qwen_operator.hardware.gpu_memory import MEMORY_LABEL
from qwen_operator.hardware.narrowing import narrowed
from qwen_operator.hardware.nodes import NodeGpus, Taint, UnlabelledNode
from qwen_operator.hardware.offers import COUNT_LABEL, GPU_RESOURCE, PRODUCT_LABEL
from qwen_operator.hardware.pools import GpuPool
from qwen_operator.hardware.shares import Share, more_pods, part_of

__all__ = [
    "COUNT_LABEL",
    "GPU_RESOURCE",
    "MEMORY_LABEL",
    "PRODUCT_LABEL",
    "GpuPool",
    "GpuProduct",
    "Inventory",
    "Share",
    "Taint",
    "UnlabelledNode",
    "inventory",
    "short_name",
]

_Key = tuple[str, str, tuple[Taint, ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class GpuProduct:
    """One kind of GPU on one kind of node. `memory_mib` is the total of one GPU, `nodes` the number of existing nodes.

    `full_nodes` is the number of nodes with `gpus_per_node` GPUs that exist or that a pool may grow to. A replica may
    span these. `selector` and `tolerations` place a pod on the nodes. `declared` is true if a pool of the chart names
    the product. Nodes of one product with different `taints` or labels are different entries of an inventory.
    `compute_capability` is None if it is not known. `cost_per_gpu_hour` is in thousandths of a dollar.

    If pods get only a part of a GPU, `share` says how, and `memory_mib`, `gpus_per_node` and the cost are those of the
    parts. Pods request `resource_name`.
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
    resource_name: str = GPU_RESOURCE
    share: Share | None = None

    @property
    def short(self) -> str:
        """The short name, e.g. H100-80GB."""
        return short_name(self.product)

    @property
    def whole(self) -> str:
        """The product of the whole GPU, also for a part of it."""
        return whole(self.product)[0]

    @property
    def unit(self) -> str:
        """What one of `gpus_per_node` is: GPU, MIG slice or shared GPU."""
        if self.share is None:
            return "GPU"
        return "MIG slice" if self.share.pods == 1 else "shared GPU"

    def called(self, name: str) -> bool:
        """True if `name` is this product's label value, another spelling of it, or its short name, in any case.

        A part whose resource has a name of its own is also called by the name of the whole GPU.
        """
        gpu, part = whole(self.product)
        known_board = board(gpu)
        names = (gpu, short_name(gpu), *(known_board.aliases if known_board else ()))
        wanted = name.casefold()
        if self.resource_name != GPU_RESOURCE and wanted in {one.casefold() for one in names}:
            return True
        return wanted in {f"{one}{part}".casefold() for one in names}

    def barred(self, tolerations: Sequence[Mapping[str, Any]]) -> list[Taint]:
        """The taints that neither these tolerations nor those of the pool tolerate."""
        offered = (*tolerations, *self.tolerations)
        return [taint for taint in self.taints if not any(taint.tolerated_by(one) for one in offered)]


@dataclass(frozen=True, slots=True)
class Inventory:
    """All GPUs that the operator knows.

    `unlabelled` has the nodes whose GPUs lack labels. `ignored` has one sentence for each reason why nodes do not
    count, and `notes` one for each contradiction between sources. Nodes with the same sentence share one.

    `parts` has the MIG slices and shared GPUs. They count only for a spec that asks for them. `part_ignored` and
    `part_notes` are sentences about them, each after the name of the resource. `shared_products` has pairs of a part
    with the name of whole GPUs, and of the sentence in `ignored` that leaves out its nodes. `offered` are the resources
    of the whole cluster, if this is the part of it that offers another one than whole GPUs.
    """

    products: tuple[GpuProduct, ...] = ()
    unlabelled: tuple[UnlabelledNode, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[GpuProduct, ...] = ()
    part_ignored: tuple[tuple[str, str], ...] = ()
    part_notes: tuple[tuple[str, str], ...] = ()
    shared_products: tuple[tuple[str, str], ...] = ()
    offered: tuple[str, ...] = ()

    def usable(self, tolerations: Sequence[Mapping[str, Any]]) -> Inventory:
        """The GPUs that a pod with these tolerations may use, with one entry for each product and selector."""
        products, barred = _tolerated(self.products, tolerations)
        parts, barred_parts = _tolerated(self.parts, tolerations)
        return replace(
            self,
            products=products,
            ignored=(*self.ignored, *(sentence for _, sentence in barred)),
            parts=parts,
            part_ignored=(*self.part_ignored, *barred_parts),
        )

    def offering(self, resource_name: str, names: Sequence[str]) -> Inventory:
        """The GPUs, slices or shared GPUs that a pod gets which requests `resource_name`.

        Parts with the name of whole GPUs count only if `names`, the products of a spec, name them.
        """
        if resource_name != GPU_RESOURCE:
            return replace(
                self,
                products=tuple(one for one in self.parts if one.resource_name == resource_name),
                offered=tuple(sorted({one.resource_name for one in (*self.products, *self.parts)})),
                unlabelled=(),
                ignored=tuple(sentence for name, sentence in self.part_ignored if name == resource_name),
                notes=tuple(sentence for name, sentence in self.part_notes if name == resource_name),
            )
        chosen = [
            one for one in self.parts if one.resource_name == GPU_RESOURCE and any(one.called(name) for name in names)
        ]
        if not chosen:
            # Why the part that a spec names cannot be planned.
            named = any(whole(name)[1] for name in names)
            why = [sentence for name, sentence in self.part_ignored if named and name == GPU_RESOURCE]
            return replace(self, ignored=(*self.ignored, *why)) if why else self
        called = {one.product for one in chosen}
        obsolete = {sentence for product, sentence in self.shared_products if product in called}
        return replace(
            self,
            products=(*self.products, *chosen),
            ignored=tuple(sentence for sentence in self.ignored if sentence not in obsolete),
            notes=(*self.notes, *(sentence for name, sentence in self.part_notes if name == GPU_RESOURCE)),
        )

    def with_product(self, product: GpuProduct) -> Inventory:
        """The same hardware and one more product."""
        if product.share is not None:
            return replace(self, parts=(*self.parts, product))
        return replace(self, products=(*self.products, product))

    def with_instead(self, product: GpuProduct) -> Inventory:
        """The same hardware, but this entry replaces all entries of its product."""
        others = tuple(one for one in self.products if one.product != product.product)
        return replace(self, products=(*others, product))


def inventory(nodes: Iterable[Mapping[str, Any]], pools: Sequence[GpuPool]) -> Inventory:
    """Products of the given node objects, joined with the declared pools.

    If nodes of one product differ a little, the smallest memory and compute capability count, and the largest number of
    GPUs per node. If their memory differs more, they are different entries. GPUs that a pod cannot have whole (time
    slicing, MPS, MIG) are `parts`. A node of any form is accepted; a malformed one does not count.
    """
    listed = list(nodes)
    seen = [gpus for gpus in map(node_reading.read, listed) if gpus is not None]
    parts = [part for node in listed for part in node_reading.parts(node)]
    usable = narrowed([gpus for gpus in seen if not gpus.unusable and not gpus.unlabelled])
    usable_parts = _narrowed_parts(parts)
    products, shared = _products(usable), _products(usable_parts)
    for pool in pools:
        _declare(shared if part_of(pool.product, pool.resource_name, pool.pods_per_gpu)[1] else products, pool)
    ignored = _grouped((gpus.node, gpus.unusable) for gpus in seen if gpus.unusable)
    return Inventory(
        products=_ordered(products),
        unlabelled=tuple(sorted(gpus.unlabelled for gpus in seen if gpus.unlabelled)),
        ignored=tuple(sorted(ignored.values())),
        notes=_sentences((gpus.node, note) for gpus in usable for note in gpus.notes),
        parts=_ordered(shared),
        part_ignored=_by_resource((part, part.unusable) for part in parts if part.unusable),
        part_notes=_by_resource((part, note) for part in usable_parts for note in part.notes),
        shared_products=_left_out(seen, parts, ignored),
    )


def _products(nodes: Iterable[NodeGpus]) -> dict[_Key, GpuProduct]:
    products: dict[_Key, GpuProduct] = {}
    for gpus in nodes:
        _add(products, _product(gpus))
    return products


def _narrowed_parts(parts: Sequence[NodeGpus]) -> list[NodeGpus]:
    """The parts that can be planned. Only parts of one resource can be mistaken for each other."""
    names = sorted({part.resource_name for part in parts})
    return [
        one
        for name in names
        for one in narrowed([part for part in parts if part.resource_name == name and not part.unusable])
    ]


def _left_out(
    seen: Sequence[NodeGpus], parts: Sequence[NodeGpus], ignored: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    reasons = {gpus.node: gpus.unusable for gpus in seen if gpus.unusable}
    return tuple(
        sorted(
            {
                (part.product, ignored[reasons[part.node]])
                for part in parts
                if part.resource_name == GPU_RESOURCE and not part.unusable and part.node in reasons
            }
        )
    )


def _by_resource(reasons: Iterable[tuple[NodeGpus, str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of a resource and a sentence about nodes that offer it."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    for part, reason in reasons:
        by_name.setdefault(part.resource_name, []).append((part.node, reason))
    return tuple((name, sentence) for name in sorted(by_name) for sentence in _sentences(by_name[name]))


def _tolerated(
    products: Iterable[GpuProduct], tolerations: Sequence[Mapping[str, Any]]
) -> tuple[tuple[GpuProduct, ...], list[tuple[str, str]]]:
    """The products on nodes whose taints are tolerated, and a pair of resource and sentence for each of the others."""
    tolerated: dict[_Key, GpuProduct] = {}
    barred: list[tuple[str, str]] = []
    for product in products:
        taints = ", ".join(str(taint) for taint in product.barred(tolerations))
        if taints:
            nodes = f"{product.nodes} node{'s' if product.nodes != 1 else ''} with {product.product}"
            sentence = f"{nodes}: tainted {taints}, which spec.pod.tolerations does not tolerate"
            barred.append((product.resource_name, sentence))
        else:
            _add(tolerated, replace(product, taints=()))
    return _ordered(tolerated), barred


def _sentences(reasons: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """One sentence for each reason."""
    return tuple(sorted(_grouped(reasons).values()))


def _grouped(reasons: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each reason a sentence with the first node that it holds for and the number of the others."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons:
        nodes.setdefault(reason, []).append(node)
    return {reason: f"{_named(names)}: {reason}" for reason, names in nodes.items()}


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
        tolerations=_own_toleration(gpus.resource_name),
        resource_name=gpus.resource_name,
        share=gpus.share,
    )


def _own_toleration(resource_name: str) -> tuple[Mapping[str, Any], ...]:
    """Nodes may have a taint with the name of their resource. Pods tolerate that of whole GPUs anyway."""
    return () if resource_name == GPU_RESOURCE else ({"key": resource_name, "operator": "Exists"},)


def _declare(products: dict[_Key, GpuProduct], pool: GpuPool) -> None:
    """Join a pool with the nodes of its product, whatever their taints. A pool without nodes is an entry of its own.

    Nodes with a part of the board are joined only if there are no others.
    """
    product, share = part_of(pool.product, pool.resource_name, pool.pods_per_gpu)
    known_board = board(whole(product)[0])
    selector = dict(pool.node_selector) or part_selector(product, pool.resource_name, pool.pods_per_gpu)
    declared = GpuProduct(
        product=product,
        memory_mib=pool.memory_mib // pool.pods_per_gpu,
        gpus_per_node=pool.gpus_per_node,
        nodes=0,
        selector=selector,
        declared=True,
        tolerations=(*pool.tolerations, *_own_toleration(pool.resource_name)),
        compute_capability=pool.compute_capability or (known_board.compute_capability if known_board else None),
        cost_per_gpu_hour=pool.cost_per_gpu_hour,
        full_nodes=1 if share else pool.max_nodes or 1,
        resource_name=pool.resource_name,
        share=share,
    )
    nodes = [key for key in products if key[:2] == (product, pool.resource_name)]
    existing = [key for key in nodes if not less(products[key].memory_mib, declared.memory_mib)] or nodes
    for key in existing:
        old = products.pop(key)
        own = dict(pool.node_selector) or old.selector
        _add(products, replace(old, selector=own))
        _add(products, replace(declared, selector=own, taints=old.taints))
    if not existing:
        _add(products, declared)


def part_selector(product: str, resource_name: str, pods: int) -> dict[str, str]:
    """The label that GPU feature discovery gives to nodes with this GPU, slice or share."""
    if resource_name == GPU_RESOURCE:
        return {PRODUCT_LABEL: product}
    if pods == 1:
        return {f"{resource_name}.product": product}
    prefix, name = resource_name.removesuffix(".shared"), product.removesuffix("-SHARED")
    return {f"{prefix}.product" if "-MIG-" in name else PRODUCT_LABEL: name}


def _add(products: dict[_Key, GpuProduct], new: GpuProduct) -> None:
    key = (new.product, new.resource_name, new.taints, tuple(sorted(new.selector.items())))
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
        full_nodes=1 if old.share else full,
        share=more_pods(old.share, new.share),
    )


def _least(one: tuple[int, int] | None, two: tuple[int, int] | None) -> tuple[int, int] | None:
    return min(one, two) if one and two else one or two


def _most(one: int | None, two: int | None) -> int | None:
    return max(one, two) if one is not None and two is not None else two if one is None else one


def _ordered(products: Mapping[_Key, GpuProduct]) -> tuple[GpuProduct, ...]:
    return tuple(products[key] for key in sorted(products))
