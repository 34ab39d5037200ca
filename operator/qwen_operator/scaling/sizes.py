"""What every policy remembers of the sizes that single scrapes need, and how a decision follows from it. Pure.

A policy brings the size and the numbers of one scrape. Here is what does not depend on how a policy measures: a second
scrape confirms a size, an unreadable engine counts as busy, and the size falls to the largest one of the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from qwen_operator.scaling import answers
from qwen_operator.scaling.answers import Problems
from qwen_operator.scaling.types import Bounds, EnginePod, Sample, ScalingDecision

# After the operator's start no replica is removed for this time, even with a window of 0: scrapes may be incomplete.
SETTLE_SECONDS = 10.0
# Above any maxReplicas. It keeps the history short when thousands of requests wait.
LARGEST_NEED = 100

Numbers = TypeVar("Numbers")
"""What a policy measured in one scrape. Only its message shows it."""


@dataclass(frozen=True, slots=True)
class Needed(Generic[Numbers]):
    """What one scrape needs: `size` replicas. `incomplete`: part of the load was unreadable."""

    at: float
    size: int
    numbers: Numbers
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Sizes(Generic[Numbers]):
    """The memory. It stays short for a window of any length, because each peak is smaller than the one before.

    `peaks`: the needs of the window, the oldest first, each larger than all later ones. `floor`: the replicas that
    existed or were wanted at the first scrape; 0 after one window. `size`: the size at the last scrape, before the
    bounds.
    """

    began: float
    floor: int
    size: int
    last: Needed[Numbers]
    peaks: tuple[Needed[Numbers], ...] = ()
    problems: Problems = ()


def begin(needed: Needed[Numbers], engines: tuple[EnginePod, ...], last_wanted: int | None) -> Sizes[Numbers]:
    """The memory before the first scrape, which needs `needed`.

    `last_wanted` is the size that was wanted before. If it is None, the number of existing replicas counts. That
    number is too large while a successor starts beside a replica.
    """
    size = answers.existing(engines) if last_wanted is None else last_wanted
    # The first scrape adds no replica, because no second scrape confirms it yet.
    return Sizes(needed.at, size, size, replace(needed, size=min(needed.size, size)))


def add(
    sizes: Sizes[Numbers], needed: Needed[Numbers], sample: Sample, engines: tuple[EnginePod, ...], window: float
) -> Sizes[Numbers]:
    """The memory with one more scrape, which needs `needed`. `window` is in seconds.

    A size counts only if a second scrape confirms it. So a request that waits for the next batch starts no replica.
    An unreadable engine counts as one fully loaded replica, and the size does not shrink until it is readable.
    """
    at = sample.at
    confirmed = replace(min(sizes.last, needed, key=lambda each: each.size), at=at)
    missing = answers.unread(sample, engines)
    if missing or not sample.engines:
        overdue = sum(engine.pod in sample.problems for engine in missing)
        confirmed = replace(confirmed, size=max(sizes.size, confirmed.size + overdue), incomplete=True)
    peaks = tuple(peak for peak in sizes.peaks if at - peak.at < window and peak.size > confirmed.size)
    peaks = (*peaks, confirmed)
    floor = sizes.floor if at - sizes.began < max(window, SETTLE_SECONDS) else 0
    return replace(
        sizes,
        floor=floor,
        size=max(peaks[0].size, floor),
        last=needed,
        peaks=peaks,
        problems=answers.problems_of(sample),
    )


def decide(
    sizes: Sizes[Numbers],
    bounds: Bounds,
    engines: tuple[EnginePod, ...],
    shown: Callable[[Needed[Numbers]], str],
) -> ScalingDecision:
    """The size between the bounds; the same memory gives the same answer. `shown` is the text of a policy's numbers."""
    return answers.decided(
        sizes.size, sizes.problems, bounds, engines, lambda wanted: _explained(sizes, bounds, wanted, shown)
    )


def _explained(sizes: Sizes[Numbers], bounds: Bounds, wanted: int, shown: Callable[[Needed[Numbers]], str]) -> str:
    peak, needed = sizes.peaks[0], answers.replicas(sizes.size)
    seconds = max(bounds.window, SETTLE_SECONDS)
    patience = f"the operator removes none until it has measured the load for {seconds:.0f} s"
    if sizes.size > peak.size:
        text = f"{needed} at the first scrape; {patience}"
    elif peak.incomplete:
        text = f"{needed} kept while the load was unknown; {patience}"
    else:
        past = f", the most within {bounds.window:.0f} s" if peak is not sizes.peaks[-1] else ""
        text = f"{shown(peak)}: {needed} {'wanted' if wanted == sizes.size else 'needed'}{past}"
    return answers.bounded(text, sizes.size, wanted, bounds)
