"""One kind of event, many times, under load; and what it gave."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.loss.clients import Tally, Turn, client
from bench.loss.engine import MODEL
from bench.loss.groups import EVENTS as GROUP_EVENTS
from bench.loss.groups import Groups, groups
from bench.loss.world import EVENTS, KILLS, World, world
from tests.unit.gateway.proxied import Pod

Note = tuple[str, float, str, str]


@dataclass(frozen=True, slots=True)
class Load:
    """`cycles` events, `pause` seconds apart, while `clients` ask."""

    cycles: int
    clients: int
    pause: float


@dataclass(slots=True)
class Result:
    """What one kind of event gave.

    `held`: requests that waited. `repeated`: requests that began twice. `twice`: those of them that did so although no
    engine died under them. `handover`: seconds from a ready replica to its first request. `wakes`: for how many seconds
    the first request had waited when the operator saw it. `begun_at`, `notes` and `waiting` (time, number) are for
    pictures.
    """

    event: str
    cycles: int
    clients: int
    tally: Tally
    held: int
    twice: list[str]
    repeated: int
    handover: list[float]
    wakes: list[float]
    begun_at: float = 0.0
    notes: list[Note] = field(default_factory=list)
    waiting: list[tuple[float, int]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.tally.lost and not self.twice

    def row(self) -> str:
        tally = self.tally
        return (
            f"| {self.event} | {self.cycles} | {tally.asked:,} | {self.held:,} | {len(tally.lost)} | "
            f"{len(self.twice)} | {self.repeated} | {len(tally.cut)} | {_range(self.handover)} | {_range(self.wakes)} |"
        )


HEADER = (
    "| event | times | requests | waited | lost | executed twice | again after a kill | streams cut | "
    "ready to first, s | seen after, s |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A world, and what happens in it. `act` returns when the new replica was ready."""

    make: Callable[[Pod, Path], AbstractAsyncContextManager[Any]]
    act: Callable[[Any], Awaitable[float]]


SCENES: Mapping[str, Scene] = {
    **{name: Scene(world, act) for name, act in EVENTS.items()},
    **{name: Scene(groups, act) for name, act in GROUP_EVENTS.items()},
}
"""By their names in the table."""


async def run(running: Pod, event: str, load: Load) -> Result:
    """Let the event happen while the clients ask."""
    tally, ends, ready, waiting = Tally(), asyncio.Event(), list[float](), list[tuple[float, int]]()
    before, begun_at = _holds(running), time.monotonic()
    headers, timeout = {"Authorization": "Bearer key-all"}, aiohttp.ClientTimeout(total=120)
    async with (
        SCENES[event].make(running, running.folder / event.replace(" ", "-")) as made,
        aiohttp.ClientSession(
            running.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in range(load.clients):
            group.create_task(client(session, f"{event.replace(' ', '-')}-{number}", tally, Turn(made.asking, ends)))
        watch = group.create_task(_watch(made, waiting))
        for _ in range(load.cycles):
            await asyncio.sleep(load.pause)
            ready.append(await SCENES[event].act(made))
        await asyncio.sleep(load.pause)
        ends.set()
        watch.cancel()
    notes = list(made.notes())
    begins = Counter(ident for _, _, what, ident in notes if what == "begin")
    completed = Counter(ident for _, _, what, ident in notes if what == "end")
    repeated = [ident for ident, count in begins.items() if count > 1]
    # An engine that was killed noted no end, so only what it did not finish may begin again.
    twice = [ident for ident in repeated if event not in KILLS or completed[ident] > 1]
    return Result(
        event,
        load.cycles,
        load.clients,
        tally,
        _holds(running) - before,
        twice,
        len(repeated),
        _handover(ready, notes),
        made.wakes,
        begun_at,
        notes,
        waiting,
    )


async def _watch(made: World | Groups, waiting: list[tuple[float, int]]) -> None:
    """Note every 0.1 s how many requests wait."""
    while True:
        waiting.append((time.monotonic(), (await made.demand.read()).look([MODEL]).demand.held))
        await asyncio.sleep(0.1)


def _holds(running: Pod) -> int:
    return int(running.metrics().get(f'qwen_gateway_holds_total{{tenant="all",model="{MODEL}"}}', 0))


def _handover(ready: list[float], notes: list[Note]) -> list[float]:
    """From each moment at which a replica was ready to the first request that an engine began after it."""
    begins = sorted(moment for _, moment, what, _ in notes if what == "begin")
    firsts: dict[str, float] = {}
    for engine, moment, _, _ in notes:
        firsts[engine] = min(moment, firsts.get(engine, moment))
    later = [[first for first in firsts.values() if first >= since] for since in ready]
    return [min(moments) - since for since, moments in zip(ready, later, strict=True) if moments and begins]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}" if values else "-"
