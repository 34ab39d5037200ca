"""The scaling policies. Adding one is a module with two functions, a line in POLICIES, and its name in
the field `spec.scaling.policy`. Pure.

A policy remembers what it needs in a value of its own. `remember` adds one scrape to it, `decide` answers from it. Both
are pure, so a recorded history can be replayed through any policy. sizes.py has what the policies share.
"""

from __future__ import annotations

from typing import Any, Protocol

from qwen_operator.scaling import objective, policy
from qwen_operator.scaling.types import Bounds, EnginePod, Sample, ScalingDecision


class Policy(Protocol):
    """What the autoscaler calls. The type of `history` is the policy's own; None before the first scrape."""

    def remember(
        self, history: Any, sample: Sample, engines: tuple[EnginePod, ...], bounds: Bounds, last_wanted: int | None
    ) -> Any:
        """The history with one more scrape.

        `last_wanted` is the size that was wanted before the first scrape, None where nobody has decided it.
        """

    def decide(self, history: Any, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
        """How many replicas, between the bounds, and why."""


POLICIES: dict[str, Policy] = {
    "Queue": policy,
    "Objective": objective,
}
"""Every policy by its name in spec.scaling.policy."""

DEFAULT = "Queue"
