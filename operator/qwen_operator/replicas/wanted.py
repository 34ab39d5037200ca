"""How many replicas are wanted, and what decided it. Pure.

The spec says what decides (`size_rule`). `wanted_replicas` adds the scaling state. Scaling, status, metrics and the
disruption budget all take the number from here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from qwen_operator import objects, untrusted
from qwen_operator.actions.events import rfc3339
from qwen_operator.api import reading
from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.api.schema import object_schema
from qwen_operator.api.spec import Scaling
from qwen_operator.scaling.policies import DEFAULT
from qwen_operator.scaling.schedules import limits
from qwen_operator.scaling.types import Bounds, ScalingState

_SLEEPS = (Reason.ASLEEP, Reason.GATEWAY_SILENT)
# More than any version of the API allows.
_MOST_WANTED = 10_000


class Decider(StrEnum):
    """What decides how many replicas there are."""

    SPEC_SUSPEND = "spec.suspend"
    SPEC_REPLICAS = "spec.replicas"
    LOAD = "spec.scaling"
    ADVISORY = "spec.scaling.mode"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class SizeRule:
    """What decides, and the smallest and largest size.

    `bounds`: the limits for the load, also if it only advises; None without spec.scaling, and if the deployment is
    suspended. `scaling_configured`: spec.scaling is set. `policy` is a name in scaling/policies.py. `objective`: how
    soon answers should come, whatever decides the size. `schedules`: the names of the schedules that set the bounds
    now. `until`: when a schedule changes them next; None if none does.
    """

    decider: Decider
    least: int
    most: int
    bounds: Bounds | None = None
    scaling_configured: bool = False
    policy: str = DEFAULT
    objective: Objective = field(default_factory=Objective)
    schedules: tuple[str, ...] = ()
    until: datetime | None = None

    def bounded(self, number: int) -> int:
        return min(max(number, self.least), self.most)

    def waits(self, now: datetime) -> tuple[float, ...]:
        """The seconds until a schedule changes the rule; nothing if none does."""
        return () if self.until is None else ((self.until - now).total_seconds(),)


def size_rule(
    replicas: int | None, scaling: Scaling | None, *, suspend: bool = False, now: datetime | None = None
) -> SizeRule:
    """The rule of a spec: `suspend` takes precedence over `replicas`, and that over `scaling`.

    Without all of them there is one replica. `now` is timezone-aware; without it, schedules do not count.
    """
    if suspend and scaling is not None:
        return SizeRule(Decider.SPEC_SUSPEND, 0, 0, scaling_configured=True, objective=scaling.objective)
    if suspend:
        return SizeRule(Decider.SPEC_SUSPEND, 0, 0)
    if scaling is None:
        number = 1 if replicas is None else replicas
        return SizeRule(Decider.DEFAULT if replicas is None else Decider.SPEC_REPLICAS, number, number)
    present = limits(scaling, now)
    bounds = Bounds(
        present.least,
        present.most,
        float(scaling.stabilization_seconds),
        idle_seconds=0.0 if present.least else float(scaling.idle_seconds),
        objective=scaling.objective,
    )
    rule = SizeRule(
        Decider.LOAD,
        bounds.least,
        bounds.most,
        bounds,
        scaling_configured=True,
        policy=scaling.policy,
        objective=scaling.objective,
        schedules=present.schedules,
        until=present.until,
    )
    if replicas is not None:
        return replace(rule, decider=Decider.SPEC_REPLICAS, least=replicas, most=replicas)
    if scaling.advises:
        # Nothing wakes a model whose load only advises, so it never sleeps.
        return replace(rule, decider=Decider.ADVISORY, least=max(1, bounds.least))
    return rule


def written_size_rule(deployment: objects.Object, now: datetime | None = None) -> SizeRule:
    """The rule of an unchecked spec. If the spec is invalid, the rule of an empty spec. `now` is as in `size_rule`."""
    spec = objects.mapping(deployment, "spec")
    replicas, scaling = spec.get("replicas"), spec.get("scaling")
    suspend = spec.get("suspend") is True
    number = replicas if isinstance(replicas, int) and not isinstance(replicas, bool) else None
    if replicas is not None and number is None:
        return size_rule(None, None, suspend=suspend)
    checked = None if scaling is None else _checked(json.dumps(scaling))
    return size_rule(number, checked, suspend=suspend, now=now)


# The scaling loop asks for every deployment every two seconds, and to check 16 schedules takes 2 ms.
@lru_cache(maxsize=8192)
def _checked(scaling: str) -> Scaling | None:
    """The spec.scaling of this JSON; None if it is invalid."""
    value = json.loads(scaling)
    if reading.problems(value, object_schema(Scaling), "spec.scaling"):
        return None
    return reading.build(Scaling, objects.mapping(value))


@dataclass(frozen=True, slots=True)
class WantedReplicas:
    """The wanted number and the reason for it. The numbers in `message` are from the moment of the decision.

    `by_load`: the load decided it. It is False if the spec decided, or if the number stays because the load is unknown.
    `advised`: the number that the load would give; None if the load decides, or if it is unknown.
    `schedules`: the names of the schedules that set the bounds now, and `limits` says which ones they set.
    """

    number: int
    reason: Reason
    message: str
    by_load: bool = False
    advised: int | None = None
    schedules: tuple[str, ...] = ()
    limits: str = ""

    @property
    def explained(self) -> str:
        """The message with the limits of the moment. A new leader goes on with the message alone."""
        return f"{self.message}; {self.limits}" if self.limits else self.message


def wanted_replicas(
    rule: SizeRule, state: ScalingState | None, writer: tuple[str, str] | None, existing: int
) -> WantedReplicas:
    """The wanted number of replicas.

    `writer` is who set spec.replicas, and when. `existing` is the number of replicas that are not draining. If the load
    should decide but is unknown, that number stays. Advice from before the load decided does not count.
    """
    if rule.decider is Decider.SPEC_SUSPEND:
        return WantedReplicas(0, Reason.SUSPENDED, "spec.suspend is true")
    if rule.decider is Decider.SPEC_REPLICAS:
        return _advised(WantedReplicas(rule.least, Reason.REPLICAS_SET, _set_message(rule, writer)), state, rule)
    if rule.decider is Decider.ADVISORY:
        message = "spec.scaling.mode is Advisory, so the number of replicas stays"
        return _advised(WantedReplicas(rule.bounded(existing), Reason.ADVISORY, message), state, rule)
    if rule.decider is Decider.DEFAULT:
        message = "there is one replica, because neither spec.scaling nor spec.replicas is set"
        return WantedReplicas(rule.least, Reason.NOT_CONFIGURED, message)
    if state is None or state.wanted is None or state.advises or (rule.least and state.reason in _SLEEPS):
        # The last: a schedule or an edit ended the sleep, and the scaling loop has not looked since.
        return _scheduled(_unmeasured(rule.bounded(existing)), rule)
    # The bounds may have changed since the state was made.
    wanted = WantedReplicas(rule.bounded(state.wanted), state.reason, state.message, state.active)
    return _scheduled(wanted, rule)


def _scheduled(wanted: WantedReplicas, rule: SizeRule) -> WantedReplicas:
    """With the schedules that set the bounds now."""
    if not rule.schedules or rule.bounds is None:
        return wanted
    names = ", ".join(rule.schedules)
    subject = f"the schedule {names} sets" if len(rule.schedules) == 1 else f"the schedules {names} set"
    until = f" until {rfc3339(rule.until)}" if rule.until else ""
    sets = f"{subject} minReplicas {rule.bounds.least} and maxReplicas {rule.bounds.most}{until}"
    return replace(wanted, limits=sets, schedules=rule.schedules)


def _unmeasured(existing: int) -> WantedReplicas:
    if existing == 0:
        message = "asleep: the next request waits in the gateway and wakes it"
        return WantedReplicas(0, Reason.ASLEEP, message, by_load=True)
    message = "the operator has not measured the load yet; until then the number of replicas does not change"
    return WantedReplicas(existing, Reason.NOTHING_TO_MEASURE, message)


def _advised(wanted: WantedReplicas, state: ScalingState | None, rule: SizeRule) -> WantedReplicas:
    """With what the load would give."""
    if state is None or state.wanted is None:
        return _scheduled(wanted, rule)
    message = f"{wanted.message}; spec.scaling would want {state.wanted}: {state.message}"
    return _scheduled(replace(wanted, message=message, advised=state.wanted), rule)


def _set_message(rule: SizeRule, writer: tuple[str, str] | None) -> str:
    # A patch of the scale subresource, for example by kubectl scale, is the only write that leaves no field manager.
    unnamed = "through the scale subresource (kubectl scale or an autoscaler)"
    by = f"by {writer[0]}" + (f" at {writer[1]}" if writer[1] else "") if writer else unnamed
    overridden = "; spec.scaling only advises until you remove spec.replicas" if rule.scaling_configured else ""
    return f"spec.replicas is {rule.least}, set {by}{overridden}"


def last_wanted(deployment: objects.Object) -> int | None:
    """The wanted number of replicas in the status; None if the status has none."""
    number = untrusted.whole(objects.mapping(deployment, "status", "scaling").get("wanted"), 0, _MOST_WANTED, -1)
    return None if number < 0 else number
