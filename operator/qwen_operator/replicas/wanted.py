"""How many replicas are wanted, and who decided it. Pure.

The spec says who decides (`size_rule`); `wanted_replicas` adds what the load says. Scaling, status, metrics and the
disruption budget all read the answer from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qwen_operator import objects
from qwen_operator.api import reading
from qwen_operator.api.conditions import Reason
from qwen_operator.api.schema import object_schema
from qwen_operator.api.spec import Scaling
from qwen_operator.scaling.types import Bounds, ScalingState


class Decider(StrEnum):
    """Who decides how many replicas there are."""

    SPEC_REPLICAS = "spec.replicas"
    LOAD = "spec.scaling"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Who decides, and between which sizes; for anybody but the load these are equal.

    `stabilization_seconds` is spec.scaling's; `scaling_configured`: spec.scaling is set, also while it rests.
    """

    decider: Decider
    least: int
    most: int
    stabilization_seconds: float = 0.0
    scaling_configured: bool = False

    @property
    def bounds(self) -> Bounds | None:
        """Between which sizes the load decides; None where it does not decide."""
        return Bounds(self.least, self.most, self.stabilization_seconds) if self.decider is Decider.LOAD else None

    def bounded(self, number: int) -> int:
        return min(max(number, self.least), self.most)


def size_rule(replicas: int | None, scaling: Scaling | None) -> SizeRule:
    """The rule of a spec: `replicas` counts before `scaling`, and without both there is one replica."""
    if replicas is not None:
        return SizeRule(Decider.SPEC_REPLICAS, replicas, replicas, scaling_configured=scaling is not None)
    if scaling is None:
        return SizeRule(Decider.DEFAULT, 1, 1)
    return SizeRule(
        Decider.LOAD, scaling.min_replicas, scaling.max_replicas, float(scaling.stabilization_seconds), True
    )


def written_size_rule(deployment: objects.Object) -> SizeRule:
    """The rule of a spec that nobody has checked; that of an empty one where it is invalid."""
    spec = objects.mapping(deployment, "spec")
    replicas, scaling = spec.get("replicas"), spec.get("scaling")
    number = replicas if isinstance(replicas, int) and not isinstance(replicas, bool) else None
    if replicas is not None and number is None:
        return size_rule(None, None)
    if scaling is None or reading.problems(scaling, object_schema(Scaling), "spec.scaling"):
        return size_rule(number, None)
    return size_rule(number, reading.build(Scaling, objects.mapping(scaling)))


@dataclass(frozen=True, slots=True)
class WantedReplicas:
    """The number, and why. `by_load`: the load decided it just now, not only the rule or the replicas that exist.

    The numbers in `message` are those of the decision, not of now.
    """

    number: int
    reason: Reason
    message: str
    by_load: bool = False


def wanted_replicas(
    rule: SizeRule, state: ScalingState | None, writer: tuple[str, str] | None, existing: int
) -> WantedReplicas:
    """`writer` is who set spec.replicas, and when. `existing` are the replicas that exist and are not draining: where
    the load is to decide but nothing is known of it yet, that number stays."""
    if rule.decider is Decider.SPEC_REPLICAS:
        return WantedReplicas(rule.least, Reason.REPLICAS_SET, _set_message(rule, writer))
    if rule.decider is Decider.DEFAULT:
        message = "one replica, since neither spec.scaling nor spec.replicas is set"
        return WantedReplicas(rule.least, Reason.NOT_CONFIGURED, message)
    if state is None or state.wanted is None:
        message = "the load was not looked at yet; the number of replicas stays until then"
        return WantedReplicas(rule.bounded(existing), Reason.NOTHING_TO_MEASURE, message)
    # The bounds may have changed since the state was made.
    return WantedReplicas(rule.bounded(state.wanted), state.reason, state.message, state.active)


def _set_message(rule: SizeRule, writer: tuple[str, str] | None) -> str:
    # A patch of the scale subresource, as kubectl scale sends it, is the one write that leaves no field manager.
    unnamed = "through the scale subresource (kubectl scale or an autoscaler)"
    by = f"by {writer[0]} at {writer[1]}" if writer else unnamed
    rests = "; spec.scaling rests until the field is removed" if rule.scaling_configured else ""
    return f"spec.replicas is {rule.least}, set {by}{rests}"


def last_wanted(deployment: objects.Object) -> int | None:
    """The number of replicas that the status says were wanted, whoever decided it; None where it says none."""
    number: Any = objects.mapping(deployment, "status", "scaling").get("wanted")
    return number if isinstance(number, int) else None
