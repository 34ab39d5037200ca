"""What the operator remembers of one QwenDeployment, and what one look at its engines makes of it.

Nothing here reads a clock, waits or asks anybody: a `View` has all that a look saw.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling import answers, attainment, pace, readings, zero
from qwen_operator.scaling.attainment import Attainment
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.load import LoadMemory, classify, resume, settle
from qwen_operator.scaling.pace import Quiet
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.policies import DEFAULT, Policy
from qwen_operator.scaling.removal import removal_order, unfinished
from qwen_operator.scaling.types import (
    UNKNOWN,
    Bounds,
    Sample,
    ScaledDeployment,
    ScalingDecision,
    ScalingState,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """What one look saw.

    `pages`: what each ready engine showed, or why it could not be read, by uid. `gateway`: who asks for the model.
    `at`: the monotonic second of the look. `chance`: a random number from 0 to 1.
    """

    deployment: ScaledDeployment
    pages: Mapping[str, Reading | Trouble]
    gateway: Look
    at: float
    chance: float


@dataclass(slots=True)
class Watched:
    """The memory of one QwenDeployment. `next_at`: from when on a look has its engines.

    `confirm`: it was quiet until the last look, so the next one comes soon. `looked`: as it was at the last look.
    """

    uid: str
    memories: readings.Memories = field(default_factory=dict)
    history: Any = None
    policy: str = ""
    """The policy that the history belongs to."""
    bounds: Bounds | None = None
    """The bounds of `state`."""
    rest: zero.Rest | None = None
    demand: ModelDemand = field(default_factory=ModelDemand)
    load: LoadMemory | None = None
    sample: Sample | None = None
    attainment: Attainment | None = None
    reports: readings.Reports = field(default_factory=readings.Reports)
    state: ScalingState | None = None
    resumed: bool = False
    """`state` comes from the status, not from a scrape. Two scrapes must agree before it may change."""
    quiet: Quiet | None = None
    next_at: float = -math.inf
    confirm: bool = False
    looked: ScaledDeployment | None = None

    @classmethod
    def resuming(cls, deployment: ScaledDeployment) -> Watched:
        """The memory that a new leader starts with: what the status shows."""
        shown = deployment.shown
        resumed = shown is not None and shown.wanted is not None
        return cls(deployment.uid, load=resume(shown), state=shown, resumed=resumed)

    @property
    def asleep(self) -> bool:
        return self.rest is not None and self.rest.asleep

    def is_due(self, deployment: ScaledDeployment, gateway: Look, began: float) -> bool:
        """Whether it has its turn in the round that `began` then, in which somebody may have woken it already."""
        if self.looked is None or self.sample is None:
            return True
        if self.sample.at > began:
            return False
        if self.next_at <= began:
            return True
        return _shape(self.looked) != _shape(deployment) or pace.wakes(gateway)

    def is_asked_for(self, gateway: Look, now: float) -> bool:
        """Whether it must be looked at before its turn: somebody asks for it, or the last look must be confirmed."""
        return self.sleeps_through(gateway) or self.confirm or (self.next_at > now and pace.asks(gateway))

    def sleeps_through(self, gateway: Look) -> bool:
        """Whether requests wait for it while it sleeps."""
        return self.asleep and gateway.demand.held > 0

    def look(self, view: View, policies: Mapping[str, Policy]) -> ScalingState:
        """Take in what a look saw, and decide anew."""
        deployment, at, before = view.deployment, view.at, self.sample
        self.memories, sample = readings.take_sample(self.memories, deployment.engines, view.pages, at)
        self.sample = sample
        self._set_turn(view, sample)
        self.reports = readings.watch_reports(self.reports, self.memories, at)
        self.attainment = attainment.watch(
            self.attainment or _resumed_attainment(deployment, at), sample, deployment.engines, deployment.objective
        )
        nothing_read = _nothing_read(deployment, sample)
        if not nothing_read or self.load is None:
            self.load = settle(self.load, classify(sample, deployment.engines), at)
        if before is None or before.problems != sample.problems:
            _log_problems(view, sample)
        kept = self.state if nothing_read else None
        self.state = replace(
            kept or self._decided(view, sample, policies),
            load=str(self.load.shown),
            removal_order=removal_order(deployment.engines, sample),
            idle=readings.idle(self.memories, deployment.engines, at),
            attained=self.attainment.shown,
            unfinished=unfinished(deployment.engines, sample),
            reported=self.reports.known,
        )
        return self.state

    def _set_turn(self, view: View, sample: Sample) -> None:
        """Say when the next look has the engines of this deployment."""
        deployment = view.deployment
        self.looked, before = deployment, self.quiet
        if deployment.may_sleep:
            self.quiet, self.confirm, self.next_at = None, False, sample.at
            return
        self.quiet = pace.watch(before, view.gateway, sample, deployment.engines)
        self.confirm = before is not None and before.begins <= sample.at < self.quiet.begins
        self.next_at = pace.next_at(self.quiet, sample.at, view.chance)

    def _decided(self, view: View, sample: Sample, policies: Mapping[str, Policy]) -> ScalingState:
        deployment, bounds = view.deployment, view.deployment.bounds
        if bounds is None:
            # Sleep ends too: when the load decides again, it goes on with the replicas that there are.
            self.history = self.rest = None
            return ScalingState(None, Reason.NOT_CONFIGURED, "", active=False)
        old = self.state
        if old and old.advises and not deployment.advises:
            # The load decides from now on. It starts with the present size, awake if there are replicas.
            self.history = self.rest = None
        decision = self._rested(view, sample, self._by_policy(deployment, bounds, sample, policies))
        if old and self.resumed:
            self.resumed = False
            return old
        state = ScalingState(
            decision.replicas, decision.reason, decision.message, decision.active, advises=deployment.advises
        )
        same_bounds = self.bounds in (None, bounds)
        self.bounds = bounds
        if old and same_bounds and _answer(old) == _answer(state):
            # Keep the numbers of the decision. With new numbers the operator would write the status every two seconds.
            return old
        _log_decision(deployment, decision, old)
        return state

    def _by_policy(
        self, deployment: ScaledDeployment, bounds: Bounds, sample: Sample, policies: Mapping[str, Policy]
    ) -> ScalingDecision:
        """What the policy decides for a model that is awake."""
        name = deployment.policy or DEFAULT
        if self.policy != name or self.asleep:
            # The history is of the other policy's type, or of the time before the model slept. The new one starts with
            # the present size.
            self.history, self.policy = None, name
        policy, engines = policies[name], deployment.engines
        self.history = policy.remember(self.history, sample, engines, bounds, deployment.size)
        return policy.decide(self.history, replace(bounds, least=max(1, bounds.least)), engines)

    def _rested(self, view: View, sample: Sample, awake: ScalingDecision) -> ScalingDecision:
        """The decision of the policy, `awake`, or that the model sleeps."""
        deployment, bounds = view.deployment, view.deployment.bounds
        if bounds is None or bounds.least > 0:
            self.rest = None
            return awake
        self.demand = view.gateway.demand
        rest = self.rest or _resumed_rest(deployment, sample.at)
        self.rest = zero.advance(rest, view.gateway, sample, deployment.engines, bounds.idle_seconds)
        return zero.decide(self.rest, view.gateway, awake)


def _nothing_read(deployment: ScaledDeployment, sample: Sample) -> bool:
    """Whether no engine that serves could be read.

    An unreadable draining engine is never a problem. Otherwise it would block decisions for as long as it drains.
    """
    has_serving = any(engine.ready and not engine.draining for engine in deployment.engines)
    return has_serving and not sample.engines and not sample.problems


def _shape(deployment: ScaledDeployment) -> object:
    """What a look at the engines can change the answer for."""
    return deployment.engines, deployment.bounds, deployment.advises, deployment.policy, deployment.objective


def _answer(state: ScalingState) -> tuple[int | None, Reason, bool, bool]:
    return state.wanted, state.reason, state.active, state.advises


def _resumed_attainment(deployment: ScaledDeployment, at: float) -> Attainment:
    """The memory that a new leader starts with: the percentages in the status, until it knows better."""
    shown = deployment.shown.attained if deployment.shown else UNKNOWN
    return attainment.begin(deployment.objective, at, shown)


def _resumed_rest(deployment: ScaledDeployment, at: float) -> zero.Rest:
    """The memory that a new leader starts with. Without a status, the existing replicas count."""
    size = answers.existing(deployment.engines) if deployment.size is None else deployment.size
    waking = deployment.shown is not None and deployment.shown.reason is Reason.WAKING
    return zero.begin(size, at, waking=waking)


def _log_decision(deployment: ScaledDeployment, decision: ScalingDecision, old: ScalingState | None) -> None:
    log.info(
        "scaling decision",
        extra={
            "deployment": "/".join(deployment.key),
            "replicas": decision.replicas,
            "before": old.wanted if old else None,
            "reason": str(decision.reason),
            "why": decision.message,
        },
    )


def _log_problems(view: View, sample: Sample) -> None:
    if not sample.problems:
        return
    troubles = {engine.pod: view.pages.get(engine.uid) for engine in view.deployment.engines}
    details = {
        pod: trouble.detail if isinstance(trouble := troubles.get(pod), Trouble) else str(reason)
        for pod, reason in sample.problems.items()
    }
    log.info("engine metrics cannot be read", extra={"deployment": "/".join(view.deployment.key), "pods": details})
