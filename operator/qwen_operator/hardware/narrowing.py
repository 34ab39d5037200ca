"""Selectors that tell nodes with more GPU memory from nodes with less.

The label that names a product may also stand on nodes with a part of the same board. A pod that is planned for the
whole board must not run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwen_operator.hardware.boards import less
from qwen_operator.hardware.nodes import NARROWING_LABELS, NodeGpus

_Kind = tuple[int, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]


def narrowed(nodes: Sequence[NodeGpus]) -> list[NodeGpus]:
    """The same nodes. A selector that also selects nodes with clearly less memory gets one label more.

    If no label tells the nodes apart, the smaller memory counts for all of them.
    """
    kinds = {_kind(one): one for one in nodes}
    answers = {kind: _narrow(one, kinds.values()) for kind, one in kinds.items()}
    return [_with(one, *answers[_kind(one)]) for one in nodes]


def _kind(one: NodeGpus) -> _Kind:
    return one.memory_mib, one.selector, tuple(sorted(one.marks.items()))


def _narrow(one: NodeGpus, others: Iterable[NodeGpus]) -> tuple[tuple[tuple[str, str], ...], int]:
    """The selector and the memory in MiB for this kind of node."""
    smaller = [other for other in others if less(other.memory_mib, one.memory_mib) and _selects(one, other)]
    if not smaller:
        return one.selector, one.memory_mib
    for label in NARROWING_LABELS:
        value = one.marks.get(label)
        if value and all(other.marks.get(label) != value for other in smaller):
            return tuple(dict((*one.selector, (label, value))).items()), one.memory_mib
    return one.selector, min(other.memory_mib for other in smaller)


def _selects(one: NodeGpus, other: NodeGpus) -> bool:
    return all(other.marks.get(label) == value for label, value in one.selector)


def _with(one: NodeGpus, selector: tuple[tuple[str, str], ...], memory_mib: int) -> NodeGpus:
    if memory_mib == one.memory_mib:
        return replace(one, selector=selector)
    note = (
        f"no label tells {one.product} with {one.memory_mib} MiB from other nodes with {memory_mib}: planned with "
        f"{memory_mib}"
    )
    return replace(one, selector=selector, memory_mib=memory_mib, notes=(*one.notes, note))
