"""The order of replicas when GPUs are short, and which replica may take the place of which. Pure.

A guaranteed replica comes before every extra one. Among the guaranteed ones, and among the extra ones, the higher
priority comes first. Among extra replicas of one priority, the deployment comes first that has the smaller part of its
extra replicas, because it misses the most.

To take a place needs more than to come first. Otherwise places would wander:

    from a guaranteed replica   only a guaranteed one of a higher priority
    from an extra replica       any of a higher priority, the first one of any deployment, a guaranteed one of the same
                                priority, or an extra one of the same whose deployment has a part that is smaller by
                                MARGIN
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.arbiter.types import Claim

MARGIN = 0.2
"""A change of one wanted replica among five or more moves no place."""


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The rank of one replica: the smallest comes first. `part`: the part of its extra replicas that a deployment has
    without this one."""

    surplus: bool
    descent: int
    part: float

    def may_take(self, other: Rank) -> bool:
        """Whether a missing replica of this rank may take the place of a replica of the other rank."""
        if not other.surplus:
            return not self.surplus and self.descent < other.descent
        if not self.surplus and not self.part:
            # The first replica: no model starves.
            return True
        if self.descent != other.descent:
            return self.descent < other.descent
        return not self.surplus or other.part >= self.part + MARGIN


def rank(claim: Claim, index: int) -> Rank:
    """The rank of the replica of a deployment that has `index` others before it."""
    extra = index - claim.guaranteed
    if extra < 0:
        return Rank(surplus=False, descent=-claim.priority, part=float(index))
    return Rank(surplus=True, descent=-claim.priority, part=extra / max(1, claim.wanted - claim.guaranteed))
