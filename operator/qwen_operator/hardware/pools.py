"""Pools of GPU nodes that the chart declares, and their prices.

Money is counted in thousandths of a dollar: 2.90 per hour is 2900. Sums and comparisons stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

MOST_DOLLARS = 1_000_000
"""The highest price of a GPU and hour that is believed."""


@dataclass(frozen=True, slots=True)
class GpuPool:
    """A pool declared in the chart, for nodes that do not exist yet (a node group at zero).

    `product` is the value of the label nvidia.com/gpu.product; `node_selector` selects the pool's nodes and
    defaults to that label. One that is given also holds for nodes of the product that exist already. `max_nodes` is
    how many nodes the pool may grow to (None: not known, so no replica is planned over several of them);
    `cost_per_gpu_hour` is in thousandths of a dollar; `compute_capability` is that of the board if not given.
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


def thousandths(value: object) -> int | None:
    """Dollars as text or number ("2.90") in thousandths (2900), rounded; None for what is no price."""
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        return None
    if isinstance(value, bool) or not dollars.is_finite() or not 0 <= dollars <= MOST_DOLLARS:
        return None
    return int((dollars * 1000).to_integral_value())


def dollars(amount: int) -> str:
    """2900 as "2.90": two decimals, three where they are needed."""
    text = f"{amount // 1000}.{amount % 1000:03d}"
    return text.removesuffix("0")
