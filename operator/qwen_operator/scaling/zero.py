"""Whether a model sleeps, that is, has no replicas because nobody asks for it. Pure.

This is the same for every scaling policy: a policy decides between one replica and maxReplicas, and this module decides
between none and the policy's answer. The present rule for a wake is: one request that found no replica starts one.

A model sleeps only if the operator has seen for all of `idle_seconds` that nobody needs it: a replica answered, every
engine was readable and did no work, and no gateway held a request. So a model that is hard to see does not sleep, and a
start that takes longer than `idle_seconds` is not broken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling import answers
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.types import EnginePod, Sample, ScalingDecision

ASKED_SECONDS = 30.0
"""How long a request that did not wait still wakes its model. The operator reads the gateway much more often."""

ROUTED_SECONDS = 6.0
"""A replica that has answered for so long gets requests through the gateway: 3 s, and two looks."""

Totals = Mapping[str, tuple[float, float]]
"""The prompt tokens computed and the tokens decoded since its start, of each engine by uid."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is remembered of a model that may sleep. All times are monotonic seconds.

    `busy_at`: the last time at which it was needed, or at which that could not be seen. `since`: since when it sleeps
    or is awake. `started`: the wake is over. `answers_since`: since when a replica answers; None if none does.
    `totals`: what its engines had done by the last scrape.
    """

    asleep: bool
    since: float
    busy_at: float
    started: bool = False
    answers_since: float | None = None
    totals: Totals = field(default_factory=dict)


def begin(wanted: int, at: float, *, waking: bool = False) -> Rest:
    """The memory of a new leader. `wanted`: the number of replicas before. `waking`: the first of them was on its way.

    A new deployment sleeps until somebody asks for it.
    """
    return Rest(not wanted, at - ASKED_SECONDS, at, started=bool(wanted) and not waking)


def advance(rest: Rest, look: Look, sample: Sample, engines: tuple[EnginePod, ...], idle_seconds: float) -> Rest:
    """The memory after one more look. One gateway pod is enough to wake a model, and all are needed to let it sleep."""
    at = sample.at
    if rest.asleep:
        woken = _serves(sample, engines) or _wakes(look.demand, at - rest.since)
        return Rest(asleep=False, since=at, busy_at=at) if woken else rest
    answering = any(engine.ready and not engine.draining for engine in engines)
    totals = answers.totals(sample)
    unasked = look.complete and not look.demand.held
    quiet = answering and unasked and _quiet(sample, engines, totals, rest.totals)
    since = (at if rest.answers_since is None else rest.answers_since) if answering else None
    started = rest.started or (since is not None and at - since >= ROUTED_SECONDS)
    busy_at = rest.busy_at if quiet else at
    rest = replace(rest, started=started, answers_since=since, totals=totals, busy_at=busy_at)
    return Rest(asleep=True, since=at, busy_at=at) if quiet and at - rest.busy_at >= idle_seconds else rest


def decide(rest: Rest, look: Look, awake: ScalingDecision) -> ScalingDecision:
    """The size and why. `awake` is the answer of the policy, at least one replica."""
    if rest.asleep and look.silent:
        message = "no gateway pod can be read, so nobody can wake this model: it sleeps until the gateway answers"
        return ScalingDecision(0, Reason.GATEWAY_SILENT, message, active=False)
    if rest.asleep:
        return ScalingDecision(0, Reason.ASLEEP, "asleep: the next request waits in the gateway and wakes it")
    if rest.started:
        return awake
    return ScalingDecision(awake.replicas, Reason.WAKING, f"waking: {_asked(look.demand)}")


def _asked(demand: ModelDemand) -> str:
    if not demand.held:
        return "a request came, and did not wait for the start"
    seconds = f"for {demand.oldest:.1f} s"
    waited = (
        f"1 request waited {seconds}" if demand.held == 1 else f"{demand.held} requests waited, the first {seconds},"
    )
    return f"{waited} when the operator asked for a replica"


def _serves(sample: Sample, engines: tuple[EnginePod, ...]) -> bool:
    """Whether a replica has requests although the model should sleep: something else than the load decides its size."""
    leaving = {engine.uid for engine in engines if engine.draining}
    return any(load.requests and load.uid not in leaving for load in sample.engines)


def _wakes(demand: ModelDemand, slept: float) -> bool:
    return demand.held > 0 or demand.asked <= min(ASKED_SECONDS, slept)


def _quiet(sample: Sample, engines: tuple[EnginePod, ...], totals: Totals, before: Totals) -> bool:
    """Whether every engine is readable, has no request, and had none since the last scrape."""
    if sample.problems or answers.unread(sample, engines):
        return False
    return not answers.worked(sample, totals, before)
