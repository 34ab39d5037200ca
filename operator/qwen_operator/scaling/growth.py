"""How much the demand grows while a replica starts, learned from the last hours. Pure.

    growth = (largest demand during the next start - demand now) / sqrt(demand now + 0.25)

The square root is how random arrivals vary. So what was learned at night holds for the day.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

TICK_SECONDS = 10.0
MEMORY_SECONDS = 7200.0
FIRST_GUESS = 1.0
"""The growth that is assumed before anything was seen."""
_TICKS = int(MEMORY_SECONDS / TICK_SECONDS)
# Seen growths replace the first guess step by step: at first it counts like so many of them.
_GUESSES = 60


@dataclass(frozen=True, slots=True)
class Growth:
    """`recent`: demands whose next start is not over yet, one per tick. `seen`: the growths, the newest last."""

    next_at: float = 0.0
    recent: tuple[float, ...] = ()
    seen: tuple[float, ...] = ()
    headroom: float = FIRST_GUESS


def watch(growth: Growth, at: float, demand: float, start_seconds: float, miss_share: float) -> Growth:
    """With one more demand, in replicas. Between ticks, nothing changes.

    `miss_share`: the share of starts during which the demand may grow by more than the headroom.
    """
    if at < growth.next_at:
        return growth
    recent, seen = (*growth.recent, demand), list(growth.seen)
    ticks = max(1, math.ceil(start_seconds / TICK_SECONDS))
    while len(recent) > ticks:
        now = recent[0]
        seen.append((max(recent[: ticks + 1]) - now) / math.sqrt(now + 0.25))
        recent = recent[1:]
    kept = tuple(seen[-_TICKS:])
    guesses = (FIRST_GUESS,) * max(0, _GUESSES - len(kept) * _GUESSES // _TICKS)
    ranked = sorted((*kept, *guesses))
    headroom = ranked[min(len(ranked) - 1, math.ceil(len(ranked) * (1 - miss_share)))] if ranked else FIRST_GUESS
    return replace(growth, next_at=at + TICK_SECONDS, recent=recent, seen=kept, headroom=headroom)


def with_headroom(growth: Growth, demand: float) -> float:
    """The demand with what may come while a replica starts, in replicas."""
    return demand + growth.headroom * math.sqrt(demand + 0.25)
