"""Pools of GPU nodes that the chart declares, and their prices.

Amounts of money are in thousandths of a dollar: 2.90 per hour is 2900. So sums and comparisons are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

MOST_DOLLARS = 1_000_000
"""The highest accepted price of one GPU for one hour."""


@dataclass(frozen=True, slots=True)
class GpuPool:
    """A pool that the chart declares, for nodes that do not exist yet (a node group at zero).

    `product` is the value of the label nvidia.com/gpu.product. `node_selector` selects the pool's nodes and defaults to
    that label. If it is set, it also holds for existing nodes of the product. `max_nodes` is the number of nodes that
    the pool may grow to. If it is None, no replica is planned over several of them. `cost_per_gpu_hour` is in
    thousandths of a dollar. `compute_capability` defaults to that of the board.

    `resource_name` is what pods request. For MIG slices, all amounts are of slices. `pods_per_gpu` pods share one GPU:
    `memory_mib` is then of the whole GPU, `gpus_per_node` and the cost are of the shares.
    """

    name: str
    product: str
    memory_mib: int
    gpus_per_node: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    max_nodes: int | None = None
    cost_per_gpu_hour: int | None = None
    compute_capability: tuple[int, int] | None = None
    resource_name: str = "nvidia.com/gpu"
    pods_per_gpu: int = 1


def thousandths(value: object) -> int | None:
    """Dollars as text or number ("2.90") in thousandths (2900), rounded. None if it is no price."""
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        return None
    if isinstance(value, bool) or not dollars.is_finite() or not 0 <= dollars <= MOST_DOLLARS:
        return None
    return int((dollars * 1000).to_integral_value())


def dollars(amount: int) -> str:
    """2900 as "2.90": two decimals, or three if they are needed."""
    text = f"{amount // 1000}.{amount % 1000:03d}"
    return text.removesuffix("0")
