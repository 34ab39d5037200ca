"""The loop around the scaling policy: it scrapes every engine, keeps the histories, and reports changed states."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_operator import untrusted
from qwen_operator.api.conditions import Reason
from qwen_operator.controller.in_hand import InHand
from qwen_operator.controller.scraper import Scraper
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling import answers, attainment, pace, readings, zero
from qwen_operator.scaling.attainment import Attainment, Share
from qwen_operator.scaling.demand import Demand, ModelDemand
from qwen_operator.scaling.load import LoadMemory, classify, resume, settle
from qwen_operator.scaling.pace import INTERVAL_SECONDS, Quiet
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.policies import DEFAULT, POLICIES, Policy
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import (
    UNKNOWN,
    Bounds,
    EnginePod,
    Sample,
    ScaledDeployment,
    ScalingDecision,
    ScalingState,
)

LOOK_SECONDS = 1.0
"""How often it looks whether somebody asks for a model that sleeps, or whose engines are read less often."""
REST = 0.25
"""After a long look, the loop leaves the process to others for this part of the time that the look took."""
LONG = 2.0
"""An interval that is so many times INTERVAL_SECONDS is worth a line in the log."""
# Without jitter, the scrapes of several operators could stay in step and always hit an engine at the same moment.
JITTER = 0.1
_LARGEST_INDEX = 999_999_999

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Time and chance: a monotonic clock in seconds, a sleep, and a random number from 0 to 1."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


@dataclass(slots=True)
class _Watched:
    """What the loop remembers of one QwenDeployment. `next_at`: from when on a look has its engines.

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

    @property
    def asleep(self) -> bool:
        return self.rest is not None and self.rest.asleep


async def _no_demand() -> Demand:
    return Demand()


@dataclass(frozen=True, slots=True)
class Sources:
    """What the loop reads: the deployments, the pages of their engines, and what the gateway knows."""

    view: Callable[[], Iterable[ScaledDeployment]]
    engines: Scraper
    demand: Callable[[], Awaitable[Demand]] = _no_demand


class Autoscaler:
    """Scrapes all deployments every INTERVAL_SECONDS; `on_change` gets the key of each changed state.

    If that takes longer than INTERVAL_SECONDS, the interval grows with it. `on_look` gets all that each look saw and
    decided.

    Start it when the view is complete: the policy keeps the replicas of the first scrape for one whole window.
    """

    def __init__(
        self,
        sources: Sources,
        on_change: Callable[[ObjectKey], None],
        pace: Pace | None = None,
        policies: Mapping[str, Policy] = POLICIES,
        on_look: Callable[[Looked], None] | None = None,
    ) -> None:
        self._policies = policies
        self._on_look = on_look
        self._sources = sources
        self._demand = Demand()
        self._demand_at = -math.inf
        self._seen: list[ScaledDeployment] = []
        self._looking: set[ObjectKey] = set()
        self._in_hand = InHand()
        self._began: float | None = None
        self._long = False
        self.interval = 0.0
        """Seconds between the starts of the last two rounds; 0 before the second."""
        self._on_change = on_change
        self._pace = pace or Pace()
        self._watched: dict[ObjectKey, _Watched] = {}

    def state(self, namespace: str, name: str, uid: str) -> ScalingState | None:
        """The scaling state of this QwenDeployment; None before its first scrape.

        The uid matters: the state of an earlier QwenDeployment of the same name does not count.
        """
        watched = self._watched.get((namespace, name))
        return watched.state if watched and watched.uid == uid else None

    def samples(self) -> Mapping[ObjectKey, Sample]:
        """The last scrape of each QwenDeployment."""
        return {key: watched.sample for key, watched in self._watched.items() if watched.sample}

    def ages(self) -> Mapping[ObjectKey, float]:
        """The age of the oldest numbers of each QwenDeployment's engines, in seconds.

        A QwenDeployment without ready engines has no entry.
        """
        now = self._pace.clock()
        return {
            key: max(now - (memory.first_at if memory.read_at is None else memory.read_at) for memory in memories)
            for key, watched in self._watched.items()
            if (memories := watched.memories.values())
        }

    def held(self) -> Mapping[ObjectKey, ModelDemand]:
        """What waits in the gateway for each QwenDeployment that may sleep."""
        return {key: watched.demand for key, watched in self._watched.items() if watched.rest is not None}

    def shares(self, key: ObjectKey) -> Mapping[str, Share]:
        """How many requests of a QwenDeployment kept its objective, by window."""
        watched = self._watched.get(key)
        if watched is None or watched.attainment is None:
            return {}
        return attainment.shares(watched.attainment, self._pace.clock())

    async def run(self) -> None:
        """Scrape for ever. An error in one QwenDeployment is logged; any other error ends the loop."""
        while True:
            began = self._pace.clock()
            self._note_interval(began)
            await self.scrape()
            took = self._pace.clock() - began
            until = began + max(INTERVAL_SECONDS * (1 + JITTER * self._pace.chance()), took * (1 + REST))
            while (left := until - self._pace.clock()) > 0:
                short = self._waits_for_demand() and left > 1.5 * LOOK_SECONDS
                await self._pace.sleep(LOOK_SECONDS if short else left)
                if short:
                    await self.wake()

    def _note_interval(self, began: float) -> None:
        before, self._began = self._began, began
        self.interval = began - before if before is not None else 0.0
        long = self.interval > LONG * INTERVAL_SECONDS
        if long != self._long and (long or self.interval <= 1.5 * INTERVAL_SECONDS):
            self._long = long
            if long:
                log.warning("engines are read every %.1f s, because it takes so long to read all", self.interval)
            else:
                log.info("engines are read every %.1f s again", self.interval)

    async def scrape(self) -> None:
        """Scrape every deployment whose turn it is. A slow engine delays only its own deployment."""
        began = self._pace.clock()
        self._seen = list(self._sources.view())
        current = {deployment.key: deployment.uid for deployment in self._seen}
        self._watched = {key: kept for key, kept in self._watched.items() if current.get(key) == kept.uid}
        await self._read_demand()
        asked_for: deque[ScaledDeployment] = deque()
        async with asyncio.TaskGroup() as group:
            for deployment in self._seen:
                if not self._is_due(deployment, began):
                    continue
                await self._in_hand.room()
                if self._pace.clock() - self._demand_at >= LOOK_SECONDS and self._waits_for_demand():
                    await self._read_demand()
                    asked_for = deque(self._asked_for())
                if asked_for:
                    # In turn with the others: neither those that somebody asks for nor the others wait for all of them.
                    self._start(group, asked_for.popleft())
                    await self._in_hand.room()
                # Somebody may have woken it in the meantime.
                if self._is_due(deployment, began):
                    self._start(group, deployment)
            await self._start_all(group, asked_for)

    async def wake(self) -> None:
        """Look at the models that somebody asks for and whose turn it is not yet.

        While the gateway cannot be read, anybody may ask for any model. Then each has its turn in the next round.
        """
        await self._read_demand()
        async with asyncio.TaskGroup() as group:
            await self._start_all(group, self._asked_for())

    async def _start_all(self, group: asyncio.TaskGroup, deployments: Iterable[ScaledDeployment]) -> None:
        for deployment in deployments:
            await self._in_hand.room()
            self._start(group, deployment)

    async def _read_demand(self) -> None:
        self._demand_at = self._pace.clock()
        self._demand = await self._sources.demand()

    def _waits_for_demand(self) -> bool:
        now = self._pace.clock()
        return any(one.asleep or one.confirm or one.next_at > now for one in self._watched.values())

    def _is_due(self, deployment: ScaledDeployment, began: float) -> bool:
        """Whether it has its turn in the round that `began` then, in which somebody may have woken it already."""
        watched = self._watched.get(deployment.key)
        if watched is None or watched.looked is None or watched.sample is None:
            return True
        if watched.sample.at > began:
            return False
        if watched.next_at <= began:
            return True
        return _shape(watched.looked) != _shape(deployment) or pace.wakes(self._demand.look(deployment.names))

    def _asked_for(self) -> list[ScaledDeployment]:
        """Those whose turn it is not yet, but that somebody asks for, or that must be looked at again to be sure.

        First those that sleep, then those whose last look is the oldest.
        """
        now = self._pace.clock()
        found: list[tuple[bool, float, ScaledDeployment]] = []
        for deployment in self._seen:
            watched = self._watched.get(deployment.key)
            if watched is None:
                continue
            look = self._demand.look(deployment.names)
            held = watched.asleep and look.demand.held > 0
            if held or watched.confirm or (watched.next_at > now and pace.asks(look)):
                found.append((not held, watched.sample.at if watched.sample else -math.inf, deployment))
        return [deployment for *_, deployment in sorted(found, key=lambda entry: entry[:2])]

    def _start(self, group: asyncio.TaskGroup, deployment: ScaledDeployment) -> None:
        if deployment.key not in self._looking:
            self._looking.add(deployment.key)
            group.create_task(self._guarded(deployment))

    async def _guarded(self, deployment: ScaledDeployment) -> None:
        try:
            await self._step(deployment)
        except Exception:
            log.exception("scaling step failed", extra={"deployment": "/".join(deployment.key)})
        finally:
            self._looking.discard(deployment.key)

    async def _step(self, deployment: ScaledDeployment) -> None:
        ready = [engine for engine in deployment.engines if engine.ready]
        pages = await asyncio.gather(*(self._in_hand.count(self._sources.engines.read, engine) for engine in ready))
        results = dict(zip((engine.uid for engine in ready), pages, strict=True))
        watched = self._watched.get(deployment.key)
        if watched is None:
            watched = self._watched[deployment.key] = _resumed(deployment)
        previous_sample = watched.sample
        at = self._pace.clock()
        watched.memories, sample = readings.take_sample(watched.memories, deployment.engines, results, at)
        watched.sample = sample
        self._set_turn(watched, deployment, sample)
        watched.reports = readings.watch_reports(watched.reports, watched.memories, at)
        watched.attainment = attainment.watch(
            watched.attainment or _resumed_attainment(deployment, at), sample, deployment.engines, deployment.objective
        )
        # An unreadable draining engine is never a problem. Otherwise it would block decisions for as long as it drains.
        has_serving = any(not engine.draining for engine in ready)
        nothing_read = has_serving and not sample.engines and not sample.problems
        if not nothing_read or watched.load is None:
            watched.load = settle(watched.load, classify(sample, deployment.engines), at)
        if previous_sample is None or previous_sample.problems != sample.problems:
            _log_problems(deployment, sample, results)
        kept_state = watched.state if nothing_read else None
        state = replace(
            kept_state or self._decided(watched, deployment, sample),
            load=str(watched.load.shown),
            removal_order=removal_order(deployment.engines, sample),
            idle=readings.idle(watched.memories, deployment.engines, at),
            attained=watched.attainment.shown,
            unfinished=unfinished(deployment.engines, sample),
            reported=watched.reports.known,
        )
        old, watched.state = watched.state, state
        if old != state:
            self._on_change(deployment.key)
        if self._on_look is not None:
            seen = {uid: page if isinstance(page, Reading) else page.reason for uid, page in results.items()}
            self._on_look(Looked(deployment, at, state, seen, self._demand.look(deployment.names)))

    def _set_turn(self, watched: _Watched, deployment: ScaledDeployment, sample: Sample) -> None:
        """Say when the next look has the engines of this deployment."""
        watched.looked, before = deployment, watched.quiet
        if deployment.may_sleep:
            watched.quiet, watched.confirm, watched.next_at = None, False, sample.at
            return
        look = self._demand.look(deployment.names)
        watched.quiet = pace.watch(before, look, sample, deployment.engines)
        watched.confirm = before is not None and before.begins <= sample.at < watched.quiet.begins
        watched.next_at = pace.next_at(watched.quiet, sample.at, self._pace.chance())

    def _decided(self, watched: _Watched, deployment: ScaledDeployment, sample: Sample) -> ScalingState:
        if deployment.bounds is None:
            # Sleep ends too: when the load decides again, it goes on with the replicas that there are.
            watched.history = watched.rest = None
            return ScalingState(None, Reason.NOT_CONFIGURED, "", active=False)
        old = watched.state
        engines, bounds = deployment.engines, deployment.bounds
        name = deployment.policy or DEFAULT
        if old and old.advises and not deployment.advises:
            # The load decides from now on. It starts with the present size, awake if there are replicas.
            watched.history = watched.rest = None
        if watched.policy != name or watched.asleep:
            # The history is of the other policy's type, or of the time before the model slept. The new one starts with
            # the present size.
            watched.history, watched.policy = None, name
        policy = self._policies[name]
        watched.history = policy.remember(watched.history, sample, engines, bounds, deployment.size)
        decision = policy.decide(watched.history, replace(bounds, least=max(1, bounds.least)), engines)
        decision = self._rested(watched, deployment, sample, decision)
        if old and watched.resumed:
            watched.resumed = False
            return old
        state = ScalingState(
            decision.replicas, decision.reason, decision.message, decision.active, advises=deployment.advises
        )
        same_bounds = watched.bounds in (None, bounds)
        watched.bounds = bounds
        if old and same_bounds and _answer(old) == _answer(state):
            # Keep the numbers of the decision. With new numbers the operator would write the status every two seconds.
            return old
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
        return state

    def _rested(
        self, watched: _Watched, deployment: ScaledDeployment, sample: Sample, awake: ScalingDecision
    ) -> ScalingDecision:
        """The decision of the policy, `awake`, or that the model sleeps."""
        bounds = deployment.bounds
        if bounds is None or bounds.least > 0:
            watched.rest = None
            return awake
        look = self._demand.look(deployment.names)
        watched.demand = look.demand
        rest = watched.rest or _resumed_rest(deployment, sample.at)
        watched.rest = zero.advance(rest, look, sample, deployment.engines, bounds.idle_seconds)
        return zero.decide(watched.rest, look, awake)


def _shape(deployment: ScaledDeployment) -> object:
    """What a look at the engines can change the answer for."""
    return deployment.engines, deployment.bounds, deployment.advises, deployment.policy, deployment.objective


def _answer(state: ScalingState) -> tuple[int | None, Reason, bool, bool]:
    return state.wanted, state.reason, state.active, state.advises


def _resumed(deployment: ScaledDeployment) -> _Watched:
    """The memory that a new leader starts with: what the status shows."""
    shown = deployment.shown
    resumed = shown is not None and shown.wanted is not None
    return _Watched(deployment.uid, load=resume(shown), state=shown, resumed=resumed)


def _resumed_attainment(deployment: ScaledDeployment, at: float) -> Attainment:
    """The memory that a new leader starts with: the percentages in the status, until it knows better."""
    shown = deployment.shown.attained if deployment.shown else UNKNOWN
    return attainment.begin(deployment.objective, at, shown)


def _resumed_rest(deployment: ScaledDeployment, at: float) -> zero.Rest:
    """The memory that a new leader starts with. Without a status, the existing replicas count."""
    size = answers.existing(deployment.engines) if deployment.size is None else deployment.size
    waking = deployment.shown is not None and deployment.shown.reason is Reason.WAKING
    return zero.begin(size, at, waking=waking)


def removal_order(engines: tuple[EnginePod, ...], sample: Sample) -> tuple[str, ...]:
    """The names of all engine pods in the order in which the operator would remove them.

    Pods that are not ready come first. Then draining pods, then the fewest requests and tokens, then the highest
    index. A ready pod without readable metrics counts as the busiest.
    """
    loads = {load.uid: load for load in sample.engines}

    def rank(engine: EnginePod) -> tuple[bool, bool, bool, int, int, int]:
        load = loads.get(engine.uid)
        busy = (load.requests, load.tokens_used) if load else (0, 0)
        index = untrusted.digits(engine.index, _LARGEST_INDEX, 0)
        return engine.ready, not engine.draining, load is None, *busy, -index

    return tuple(engine.pod for engine in sorted(engines, key=rank))


def unfinished(engines: tuple[EnginePod, ...], sample: Sample) -> dict[str, int]:
    """The number of requests in each readable draining pod, by uid."""
    draining = {engine.uid for engine in engines if engine.draining}
    return {load.uid: load.requests for load in sample.engines if load.uid in draining}


def _log_problems(deployment: ScaledDeployment, sample: Sample, results: Mapping[str, Reading | Trouble]) -> None:
    if not sample.problems:
        return
    troubles = {engine.pod: results.get(engine.uid) for engine in deployment.engines}
    details = {
        pod: trouble.detail if isinstance(trouble := troubles.get(pod), Trouble) else str(reason)
        for pod, reason in sample.problems.items()
    }
    log.info("engine metrics cannot be read", extra={"deployment": "/".join(deployment.key), "pods": details})
