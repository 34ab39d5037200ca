"""Pools of GPU nodes that the chart declares, and how their values are read.

Money is counted in thousandths of a dollar: 2.90 per hour is 2900. Sums and comparisons stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from qwen_operator.hardware.boards import capability

_MOST_DOLLARS = 1_000_000


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


def details(path: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    """The optional members of a pool, as keywords for GpuPool: maxNodes, costPerGpuHour, computeCapability.

    `path` names the pool in messages. Raises ValueError, with a sentence that names the member and the value.
    """
    nodes, cost, compute = pool.get("maxNodes"), pool.get("costPerGpuHour"), pool.get("computeCapability")
    if nodes is not None and (not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1):
        raise ValueError(f"{path}.maxNodes is {nodes!r}: it must be a whole number of at least 1")
    found = None if compute is None else capability(str(compute))
    if compute is not None and found is None:
        raise ValueError(f'{path}.computeCapability is {compute!r}: it must be MAJOR.MINOR, for example "9.0"')
    return {
        "max_nodes": nodes,
        "cost_per_gpu_hour": None if cost is None else thousandths(f"{path}.costPerGpuHour", cost),
        "compute_capability": found,
    }


def thousandths(path: str, value: object) -> int:
    """Dollars as text or number ("2.90") in thousandths (2900), rounded; raises ValueError with a sentence."""
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        dollars = Decimal("NaN")
    if isinstance(value, bool) or not dollars.is_finite() or not 0 <= dollars <= _MOST_DOLLARS:
        raise ValueError(
            f'{path} is {value!r}: it must be dollars per GPU and hour from 0 to {_MOST_DOLLARS}, for example "2.90"'
        )
    return int((dollars * 1000).to_integral_value())


def dollars(amount: int) -> str:
    """2900 as "2.90": two decimals, three where they are needed."""
    text = f"{amount // 1000}.{amount % 1000:03d}"
    return text.removesuffix("0")
