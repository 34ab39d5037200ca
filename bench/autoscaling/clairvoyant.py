"""A schedule of somebody who knows all requests in advance. It is feasible: replicas take their time to start.

1. Fixed fleets of several sizes, around the best fixed size, are simulated. They show how many requests each size
   misses in each block of five minutes.
2. For a price of a miss, each block gets the size with the smallest sum of replicas and priced misses. The price is the
   smallest with which all blocks together miss no more than the objective allows.
3. The simulator runs this schedule: a pod is created one start before it is needed, and none is removed that is needed
   again within one start. Misses of one block also depend on the block before, so the schedule may miss more than
   expected. Then it is made again with a smaller budget.

The result is the cheapest schedule that kept the objective, or the best fixed size. So it is a schedule that exists,
found by a search of some twenty runs, and not the best that could exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.autoscaling.fleet import LOOK_SECONDS, Case, Result, Story, simulate
from bench.autoscaling.rules import Static
from qwen_operator.scaling.types import EnginePod, Sample

BLOCK_SECONDS = 300.0
LADDER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6, 2.0)
"""The sizes of the fixed fleets, as parts of the best fixed size."""
BUDGETS = (1.0, 0.93, 0.86, 0.8, 0.74, 0.66, 0.55, 0.4, 0.25)
"""The shares of the allowed misses that are tried one after the other."""
_ROUNDS = 60


class Schedule:
    """Sizes that are known in advance, one for each block."""

    def __init__(self, sizes: Sequence[int], start: float) -> None:
        self._sizes = sizes
        self._ahead = start + 2 * LOOK_SECONDS

    def wanted(self, sample: Sample, _engines: tuple[EnginePod, ...], /) -> int:
        first, last = (int(at // BLOCK_SECONDS) for at in (sample.at, sample.at + self._ahead))
        return max(self._sizes[first : last + 1], default=1)


Misses = Mapping[int, Sequence[int]]
"""The missed requests of each block, by the size of the fleet."""


def priced(misses: Misses, price: float) -> tuple[int, ...]:
    """The size of each block for this price of a miss, in replicas."""
    blocks = range(len(next(iter(misses.values()))))
    return tuple(min(misses, key=lambda size: (size + price * misses[size][block], size)) for block in blocks)


def within(misses: Misses, budget: float) -> tuple[int, ...]:
    """The sizes for the smallest price with which no more than `budget` requests are missed."""
    low, high = 0.0, 1e6
    for _ in range(_ROUNDS):
        price = (low + high) / 2
        total = sum(misses[size][block] for block, size in enumerate(priced(misses, price)))
        low, high = (price, high) if total > budget else (low, price)
    return priced(misses, high)


def clairvoyant(case: Case, target: float, fixed: int) -> Result | None:
    """The cheapest schedule that was found; None if there is not even a fixed size. `fixed`: the best one, or 0."""
    if not fixed:
        return None
    ladder = sorted({max(1, min(case.most, round(fixed * part))) for part in LADDER})
    fleets = {size: _fixed(case, size) for size in ladder}
    misses = {size: missed for size, (_, missed) in fleets.items()}
    best = fleets[fixed][0]
    allowed = (1 - target) * sum(request.arrival >= case.unscored for request in case.requests)
    for budget in BUDGETS:
        sizes = _ready(within(misses, budget * allowed), case)
        result = simulate(case, Schedule(sizes, case.start))
        if result.kept >= target:
            return min(best, result, key=lambda each: each.gpu_hours)
    return best


def _fixed(case: Case, size: int) -> tuple[Result, list[int]]:
    """The result of a fixed fleet, and its misses in each block."""
    story = Story()
    result = simulate(replace(case, least=size), Static(size), story)
    missed = [0] * (int(case.requests[-1].arrival // BLOCK_SECONDS) + 1)
    for at in story.missed:
        missed[int(at // BLOCK_SECONDS)] += 1
    return result, missed


def _ready(sizes: tuple[int, ...], case: Case) -> tuple[int, ...]:
    """With the first scored block's size before it: what is not scored must leave no queue behind."""
    first = int(case.unscored // BLOCK_SECONDS)
    return tuple(sizes[max(at, min(first, len(sizes) - 1))] for at in range(len(sizes)))
