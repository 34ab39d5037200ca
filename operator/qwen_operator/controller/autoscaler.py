"""The loop around the scaling policy: it scrapes every engine, keeps the histories, and reports changed states."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from qwen_operator.controller.in_hand import InHand
from qwen_operator.controller.scraper import Scraper
from qwen_operator.controller.watched import View, Watched
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling import attainment
from qwen_operator.scaling.attainment import Share
from qwen_operator.scaling.demand import Demand, ModelDemand
from qwen_operator.scaling.pace import INTERVAL_SECONDS
from qwen_operator.scaling.page import Reading
from qwen_operator.scaling.policies import POLICIES, Policy
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import Sample, ScaledDeployment, ScalingState

LOOK_SECONDS = 1.0
"""How often it looks whether somebody asks for a model that sleeps, or whose engines are read less often."""
REST = 0.25
"""After a long look, the loop leaves the process to others for this part of the time that the look took."""
LONG = 2.0
"""An interval that is so many times INTERVAL_SECONDS is worth a line in the log."""
# Without jitter, the scrapes of several operators could stay in step and always hit an engine at the same moment.
JITTER = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Time and chance: a monotonic clock in seconds, a sleep, and a random number from 0 to 1."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


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
        self._watched: dict[ObjectKey, Watched] = {}

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
        watched = self._watched.get(deployment.key)
        return watched is None or watched.is_due(deployment, self._demand.look(deployment.names), began)

    def _asked_for(self) -> list[ScaledDeployment]:
        """Those that somebody asks for before their turn: first those that sleep, then those whose last look is old."""
        now = self._pace.clock()
        found: list[tuple[bool, float, ScaledDeployment]] = []
        for deployment in self._seen:
            watched, look = self._watched.get(deployment.key), self._demand.look(deployment.names)
            if watched is not None and watched.is_asked_for(look, now):
                last = watched.sample.at if watched.sample else -math.inf
                found.append((not watched.sleeps_through(look), last, deployment))
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
        watched = self._watched.get(deployment.key)
        if watched is None:
            watched = self._watched[deployment.key] = Watched.resuming(deployment)
        view = View(
            deployment,
            pages=dict(zip((engine.uid for engine in ready), pages, strict=True)),
            gateway=self._demand.look(deployment.names),
            at=self._pace.clock(),
            chance=self._pace.chance(),
        )
        old = watched.state
        state = watched.look(view, self._policies)
        if old != state:
            self._on_change(deployment.key)
        if self._on_look is not None:
            seen = {uid: page if isinstance(page, Reading) else page.reason for uid, page in view.pages.items()}
            self._on_look(Looked(deployment, view.at, state, seen, view.gateway))
