"""Selectors that tell nodes with more GPU memory from nodes with less.

The label that names a product may also stand on nodes with a part of the same board. A pod that is planned for the
whole board must not run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwen_operator.hardware.boards import less
from qwen_operator.hardware.nodes import NARROWING_LABELS, NodeGpus
from qwen_operator.hardware.shares import Share, more_pods

_Kind = tuple[int, Share | None, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]


def narrowed(nodes: Sequence[NodeGpus]) -> list[NodeGpus]:
    """The same nodes. A selector that also selects nodes with clearly less memory gets one label more.

    If no label tells the nodes apart, the smaller memory counts for all of them, with the number of pods that share it.
    """
    kinds = {_kind(one): one for one in nodes}
    answers = {kind: _narrow(one, kinds.values()) for kind, one in kinds.items()}
    return [_with(one, *answers[_kind(one)]) for one in nodes]


def _kind(one: NodeGpus) -> _Kind:
    return one.memory_mib, one.share, one.selector, tuple(sorted(one.marks.items()))


def _narrow(one: NodeGpus, others: Iterable[NodeGpus]) -> tuple[tuple[tuple[str, str], ...], NodeGpus]:
    """The selector for this kind of node, and the kind whose memory counts for it."""
    smaller = [other for other in others if less(other.memory_mib, one.memory_mib) and _selects(one, other)]
    if not smaller:
        return one.selector, one
    for label in NARROWING_LABELS:
        value = one.marks.get(label)
        if value and all(other.marks.get(label) != value for other in smaller):
            return tuple(dict((*one.selector, (label, value))).items()), one
    return one.selector, min(smaller, key=lambda other: other.memory_mib)


def _selects(one: NodeGpus, other: NodeGpus) -> bool:
    return all(other.marks.get(label) == value for label, value in one.selector)


def _with(one: NodeGpus, selector: tuple[tuple[str, str], ...], least: NodeGpus) -> NodeGpus:
    if least.memory_mib == one.memory_mib:
        return replace(one, selector=selector)
    note = (
        f"no label tells {one.product} with {one.memory_mib} MiB from other nodes with {least.memory_mib}: planned "
        f"with {least.memory_mib}"
    )
    share = more_pods(one.share, least.share)
    return replace(one, selector=selector, memory_mib=least.memory_mib, share=share, notes=(*one.notes, note))
