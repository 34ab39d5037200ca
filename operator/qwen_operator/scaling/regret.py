"""Keeps a replica that was needed again soon after its removal. Pure.

A load at the border of two sizes would otherwise change the size about every half hour. Bursts of several replicas
come back too, and keeping all of them would cost more than it saves: so at most one replica more than the load needs
is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SOON_SECONDS = 3600.0
"""A removal was wrong if the size grows again within this time."""
KEEP_SECONDS = 14400.0
"""How long it stays after that."""


@dataclass(frozen=True, slots=True)
class Regret:
    """`removed_at`: the last removal that was not regretted yet. `size` is kept `until` then."""

    removed_at: float = -math.inf
    size: int = 0
    until: float = -math.inf


def note(regret: Regret, before: int, after: int, at: float) -> Regret:
    """With a change of the size, or none."""
    if after < before:
        return replace(regret, removed_at=at)
    if after == before or at - regret.removed_at > SOON_SECONDS:
        return regret
    return Regret(size=after, until=at + KEEP_SECONDS)


def kept(regret: Regret, needed: int, at: float) -> int:
    """The size for a look that needs `needed` replicas."""
    return max(needed, min(regret.size, needed + 1)) if at < regret.until else needed
