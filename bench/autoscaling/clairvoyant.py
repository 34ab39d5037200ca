"""A schedule of somebody who knows all requests in advance. It is feasible: replicas take their time to start.

The least work of each minute's requests (the same as in the lower bound) is smoothed by the maximum over the next
minutes. `k` times this, rounded up, is the size. For each length of the smoothing, a search by halving finds the
smallest k with which the simulator keeps the objective for 99 % of the requests. A pod is created one start before it
is needed, and none is removed that is needed again within one start. The cheapest such schedule counts, or the best
fixed size if that is cheaper. So it is a schedule that exists, not the best that could exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.autoscaling.fleet import LOOK_SECONDS, Case, Result, simulate, work_of
from qwen_operator.scaling.types import EnginePod, Sample

BUCKET_SECONDS = 60.0
SMOOTHING = (1, 3, 10)
"""Minutes."""
ROUNDS = 6


class Schedule:
    """Sizes that are known in advance, one for each bucket."""

    def __init__(self, sizes: Sequence[int], start: float) -> None:
        self._sizes = sizes
        self._ahead = start + 2 * LOOK_SECONDS

    def wanted(self, sample: Sample, _engines: tuple[EnginePod, ...], /) -> int:
        first, last = (int(at // BUCKET_SECONDS) for at in (sample.at, sample.at + self._ahead))
        return max(self._sizes[first : last + 1], default=1)


def sizes(work: Sequence[float], minutes: int, factor: float) -> list[int]:
    """The schedule: `factor` times the largest work of each bucket and the `minutes` after it."""
    return [max(1, math.ceil(factor * max(work[at : at + minutes]) / BUCKET_SECONDS - 1e-9)) for at in range(len(work))]


def clairvoyant(case: Case, target: float, static: Result | None) -> Result | None:
    """The cheapest schedule that was found; None if none keeps the objective."""
    work = work_of(case, BUCKET_SECONDS)
    best = static
    for minutes in SMOOTHING:
        low, high = 1.0, 16.0
        for _ in range(ROUNDS):
            factor = math.sqrt(low * high)
            result = simulate(case, Schedule(sizes(work, minutes, factor), case.start))
            if result.kept >= target:
                high = factor
                if best is None or result.gpu_hours < best.gpu_hours:
                    best = result
            else:
                low = factor
    return best
