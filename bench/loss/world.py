"""The gateway's agent, the engines, and what happens to them."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp.test_utils import unused_port

from bench.loss import engine
from bench.loss.engine import MODEL
from qwen_operator.controller.gateway_demand import GatewayDemand, gateway_demand
from qwen_operator.gateway.agent import Agent
from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE
from qwen_operator.gateway.smg import Smg
from qwen_operator.kube import PODS, QWENDEPLOYMENTS
from qwen_operator.replicas.draining import UNROUTED_SECONDS
from qwen_operator.routing.membership import EntryNaming
from tests.unit.gateway.objects import Manifest, deployment, pod, unlabelled, unready
from tests.unit.gateway.proxied import Pod
from tests.unit.waiting import until

NOTICE_SECONDS = 1.0
"""How long a kubelet takes to report that a container ended."""
LOOK_SECONDS = 1.0
"""How often the operator reads what waits."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine: its process, and its pod as the API server shows it."""

    process: subprocess.Popen[bytes]
    manifest: Manifest
    log: Path

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def unfinished(self) -> int:
        """The number of requests that it has begun and not ended."""
        return unfinished(self.log)


def unfinished(log: Path) -> int:
    """The number of requests that the engine of this log has begun and not ended."""
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(1 if line.split()[1] == "begin" else -1 for line in lines)


def notes_of(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    """(engine, time, begin or end, request) of all engines with a log in this folder."""
    for log in sorted(folder.glob("engine-*.log")):
        for line in log.read_text().splitlines():
            moment, what, ident = line.split()
            yield log.stem, float(moment), what, ident


class World:
    """A gateway pod with its agent.

    `wakes`: for how many seconds the first request had waited, each time the operator saw one. The clients begin
    requests only while `asking` is set. `holder`: the QwenDeployment that holds the name which they ask for.
    """

    def __init__(self, running: Pod, session: aiohttp.ClientSession, demand: GatewayDemand, folder: Path) -> None:
        self.running, self.session, self.demand, self.folder = running, session, demand, folder
        self.port = unused_port()
        self.replicas: dict[str, Replica] = {}
        self.wakes: list[float] = []
        self.holder = "d"
        self.asking = asyncio.Event()
        self.asking.set()
        self._numbers, self._agents = itertools.count(1), itertools.count(1)
        self._loop: asyncio.Task[None] | None = None
        folder.mkdir()

    @property
    def engine(self) -> subprocess.Popen[bytes]:
        """The process of the only replica."""
        (one,) = self.replicas.values()
        return one.process

    def start_agent(self) -> None:
        """Start the agent anew. The files of an agent before stay."""
        if self._loop is not None:
            self._loop.cancel()
        router = f"http://127.0.0.1:{self.running.environ['QWEN_GATEWAY_ROUTER_PORT']}"
        self.agent = Agent(
            router=Smg(self.session, router, self.running.folder / "run" / CONTROL_PLANE_KEY_FILE),
            run_dir=self.running.folder / "run",
            naming=EntryNaming(f"loss{next(self._agents)}", port=self.port),
            sources=frozenset({("qwendeployments", None), ("pods", None)}),
        )
        self.agent.start()
        self.give_name(self.holder)
        self.sees()
        self._loop = asyncio.create_task(self.agent.loop())

    def give_name(self, holder: str) -> None:
        """From now on this QwenDeployment holds the name, and the other one another name."""
        self.holder = holder
        names = {name: MODEL if name == holder else f"other-{name}" for name in ("d", "e")}
        deployments = {("demo", name): deployment(name, model=model) for name, model in names.items()}
        self.agent.listener(QWENDEPLOYMENTS, None)(deployments)

    def sees(self) -> None:
        """The agent learns of the present pods."""
        self.agent.listener(PODS, None)({("demo", name): one.manifest for name, one in self.replicas.items()})

    def end(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
        for one in self.replicas.values():
            one.process.kill()
            one.process.wait()

    async def start(self, of: str = "") -> float:
        """A new replica of a QwenDeployment, by default the holder, answers, and the agent learns it. Returns when."""
        number = next(self._numbers)
        address, log = f"127.79.{number // 250}.{number % 250 + 1}", self.folder / f"engine-{number:03}.log"
        process = engine.launch(address, self.port, log)
        while True:
            try:
                (await asyncio.open_connection(address, self.port))[1].close()
                break
            except OSError:
                await asyncio.sleep(0.02)
        one = Replica(process, pod(f"d-{number}", of or self.holder, address), log)
        self.replicas[one.name] = one
        self.sees()
        return time.monotonic()

    def change(self, one: Replica, how: Callable[[Manifest], Manifest]) -> None:
        self.replicas[one.name] = replace(one, manifest=how(one.manifest))
        self.sees()

    def remove(self, one: Replica) -> None:
        del self.replicas[one.name]
        self.sees()

    async def drain(self, one: Replica) -> None:
        """As the operator removes a replica: no new requests, it finishes those that it has, it ends."""
        self.change(one, unlabelled)
        await asyncio.sleep(UNROUTED_SECONDS)
        await until(lambda: not one.unfinished(), 60)
        one.process.send_signal(signal.SIGTERM)
        one.process.wait()
        self.remove(one)

    def notes(self) -> Iterator[tuple[str, float, str, str]]:
        """(engine, time, begin or end, request) of all engines."""
        return notes_of(self.folder)


async def replaced(world: World) -> float:
    """Without room for a second replica: the container is stopped at once, and later another one starts."""
    (one,) = world.replicas.values()
    world.change(one, unready)
    await asyncio.sleep(NOTICE_SECONDS)
    one.process.send_signal(signal.SIGTERM)
    one.process.wait()
    world.remove(one)
    await asyncio.sleep(NOTICE_SECONDS)
    return await world.start()


async def killed(world: World) -> float:
    """SIGKILL of the only replica, which the agent learns late."""
    (one,) = world.replicas.values()
    one.process.send_signal(signal.SIGKILL)
    one.process.wait()
    await asyncio.sleep(NOTICE_SECONDS)
    world.change(one, unready)
    await asyncio.sleep(NOTICE_SECONDS)
    world.remove(one)
    return await world.start()


async def one_of_two_killed(world: World) -> float:
    """SIGKILL of one of two replicas."""
    if len(world.replicas) < 2:
        await world.start()
        await asyncio.sleep(NOTICE_SECONDS)
    one = next(iter(world.replicas.values()))
    one.process.send_signal(signal.SIGKILL)
    one.process.wait()
    await asyncio.sleep(NOTICE_SECONDS)
    world.remove(one)
    return await world.start()


async def handed_over(world: World) -> float:
    """The name goes from one QwenDeployment to another one that runs (blue and green). Then the first one drains."""
    (one,) = world.replicas.values()
    other = "e" if world.holder == "d" else "d"
    ready = await world.start(other)
    await asyncio.sleep(NOTICE_SECONDS)
    world.give_name(other)
    await asyncio.sleep(NOTICE_SECONDS)
    await world.drain(one)
    return ready


async def slept(world: World) -> float:
    """Nobody asks, and the only replica drains and ends. Then all ask at once, and the operator starts another one."""
    (one,) = world.replicas.values()
    world.asking.clear()
    await world.drain(one)
    asyncio.get_running_loop().call_later(random.uniform(0, LOOK_SECONDS), world.asking.set)
    for _ in range(60):
        waiting = (await world.demand.read()).look([MODEL]).demand
        if waiting.held:
            world.wakes.append(waiting.oldest)
            break
        await asyncio.sleep(LOOK_SECONDS)
    return await world.start()


async def rolled_out(world: World) -> float:
    """A successor starts beside the only replica, which then drains."""
    (one,) = world.replicas.values()
    ready = await world.start()
    await asyncio.sleep(NOTICE_SECONDS)
    await world.drain(one)
    return ready


async def scaled(world: World) -> float:
    """From one replica to three, and back to one, with the oldest ones drained at the same time."""
    first = next(iter(world.replicas.values()))
    ready = await world.start()
    second = list(world.replicas.values())[-1]
    await world.start()
    await asyncio.sleep(NOTICE_SECONDS)
    await asyncio.gather(world.drain(first), world.drain(second))
    return ready


async def agent_killed(world: World) -> float:
    """The agent ends while the only replica is replaced, and starts again from its files."""
    (one,) = world.replicas.values()
    world.change(one, unready)
    await asyncio.sleep(NOTICE_SECONDS)
    world.start_agent()
    one.process.send_signal(signal.SIGTERM)
    one.process.wait()
    world.remove(one)
    await asyncio.sleep(NOTICE_SECONDS)
    return await world.start()


EVENTS: Mapping[str, Callable[[World], Awaitable[float]]] = {
    "rolled out": rolled_out,
    "scaled 1-3-1": scaled,
    "name handed over": handed_over,
    "put to sleep and woken": slept,
    "replaced": replaced,
    "agent killed": agent_killed,
    "killed": killed,
    "one of two killed": one_of_two_killed,
}
"""What happens, by its name in the table. Each returns when the new replica was ready."""
KILLS = frozenset({"killed", "one of two killed"})


@asynccontextmanager
async def observed(running: Pod) -> AsyncIterator[tuple[aiohttp.ClientSession, GatewayDemand]]:
    """A session that keeps no connection, and what the operator knows of the requests in `running`."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        gateway_demand() as demand,
    ):
        demand.port = urlsplit(running.metrics_url).port or 0
        status = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        demand.observe({("qwen", "gateway-0"): {"metadata": {"name": "gateway-0", "uid": "0"}, "status": status}})
        yield session, demand


@asynccontextmanager
async def world(running: Pod, folder: Path) -> AsyncIterator[World]:
    """An agent beside the router of `running`, and one engine."""
    async with observed(running) as (session, demand):
        made = World(running, session, demand, folder)
        made.start_agent()
        try:
            await made.start()
            await until(lambda: made.agent.ready, 60)
            await asyncio.to_thread(running.chat, MODEL, user="first")
            yield made
        finally:
            made.end()
