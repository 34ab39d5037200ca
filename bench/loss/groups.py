"""Replicas over two nodes: the operator's own reconcile loop decides, and the gateway sees what it decides.

The API server, the scheduler and the kubelets are those of the unit tests, with a clock that moves by a second in each
second. Rank 0 of each replica is an engine in a process of its own. A request needs all pods of its replica until its
end: if one goes earlier, the engine is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import unused_port

from bench.loss import engine
from bench.loss.engine import MODEL
from bench.loss.world import notes_of, observed, unfinished
from qwen_operator.controller.gateway_demand import GatewayDemand
from qwen_operator.gateway.agent import Agent
from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE
from qwen_operator.gateway.smg import Smg
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.names import LABEL_RANK, LABEL_REPLICA
from qwen_operator.objects import key_of
from qwen_operator.routing.membership import EntryNaming
from tests.unit.gateway.proxied import Pod
from tests.unit.waiting import until
from tests.unit.world import Kubelet, World, deployment, node, ready_status

NODES_PER_REPLICA, REPLICAS, MACHINES = 2, 2, 8
LOOK_SECONDS = 5
PATIENCE_SECONDS = 180


@dataclass
class Members(Kubelet):
    """Kubelets whose pods of rank 0 run an engine."""

    port: int = 0
    folder: Path = Path()
    engines: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    logs: dict[str, Path] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.engine = self._started

    def step(self) -> bool:
        moved = False
        for pod in list(self.api.all(PODS)):
            if "deletionTimestamp" in pod["metadata"]:
                moved = self._ended(pod) or moved
            elif pod["spec"].get("schedulingGates"):
                continue
            elif not pod["spec"].get("nodeName"):
                moved = self._placed(pod) or moved
            else:
                moved = self._moved_on(pod) or moved
        return moved

    def working(self) -> set[str]:
        """The names of the pods whose engines have requests."""
        return {pod["metadata"]["name"] for pod in self.api.all(PODS) if self._requests(pod)}

    def end(self) -> None:
        for process in self.engines.values():
            process.kill()
            process.wait()

    def _moved_on(self, pod: Manifest) -> bool:
        new = self._next(pod)
        if new is None:
            return False
        address = {"podIP": pod["status"]["podIP"]} if "podIP" in pod["status"] else {}
        if {**new, **address} == pod["status"]:
            return False
        self.api.edit(PODS, pod["metadata"]["name"], lambda item: item.update(status={**new, **address}))
        return True

    def _started(self, pod: Manifest) -> Manifest | None:
        if pod["metadata"]["labels"][LABEL_RANK] != "0":
            return ready_status(pod)
        try:
            socket.create_connection((pod["status"]["podIP"], self.port), timeout=0.1).close()
        except OSError:
            return None
        return ready_status(pod)

    def _give_address(self, pod: Manifest) -> None:
        number, uid = next(self.numbers), pod["metadata"]["uid"]
        address, log = f"127.80.{number // 250}.{number % 250 + 1}", self.folder / f"engine-{number:03}.log"
        self.engines[uid], self.logs[uid] = engine.launch(address, self.port, log), log
        self.api.edit(PODS, pod["metadata"]["name"], lambda item: item["status"].update(podIP=address))

    def _ended(self, pod: Manifest) -> bool:
        """Whether the pod in deletion has ended."""
        leader = self._leader(pod)
        process = self.engines.get(leader["metadata"]["uid"]) if leader else None
        if leader and process and leader["metadata"]["uid"] != pod["metadata"]["uid"] and self._requests(leader):
            process.kill()
        if process and leader and leader["metadata"]["uid"] == pod["metadata"]["uid"] and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            return False
        self.api.finish(pod, PODS)
        return True

    def _leader(self, pod: Manifest) -> Manifest | None:
        replica = pod["metadata"]["labels"].get(LABEL_REPLICA)
        members = [one for one in self.api.all(PODS) if one["metadata"]["labels"].get(LABEL_REPLICA) == replica]
        return next((one for one in members if one["metadata"]["labels"].get(LABEL_RANK) == "0"), None)

    def _requests(self, pod: Manifest) -> int:
        log = self.logs.get(pod["metadata"]["uid"])
        return unfinished(log) if log else 0


class Groups:
    """A gateway pod with its agent, and an operator with replicas over two nodes. See `bench.loss.world.World`."""

    def __init__(self, running: Pod, session: aiohttp.ClientSession, demand: GatewayDemand, folder: Path) -> None:
        self.demand, self.folder = demand, folder
        self.wakes: list[float] = []
        self.asking = asyncio.Event()
        self.asking.set()
        port = unused_port()
        self.cluster = World()
        self.members = Members(self.cluster.api, place=True, port=port, folder=folder)
        self.cluster.kubelet = self.members
        router = f"http://127.0.0.1:{running.environ['QWEN_GATEWAY_ROUTER_PORT']}"
        self.agent = Agent(
            router=Smg(session, router, running.folder / "run" / CONTROL_PLANE_KEY_FILE),
            run_dir=running.folder / "run",
            naming=EntryNaming("groups", port=port),
            sources=frozenset({("qwendeployments", None), ("pods", None)}),
        )
        folder.mkdir()

    async def start(self) -> None:
        """The operator makes its replicas."""
        api = self.cluster.api
        for item in list(api.all(NODES)):
            api.finish(item, NODES)
        for number in range(MACHINES):
            api.put(NODES, node(f"gpu-{number}", gpus=1))
        await self.cluster.start()
        wide: dict[str, Any] = {
            "parallelism": {"tensor": NODES_PER_REPLICA},
            "hardware": {"maxNodesPerReplica": NODES_PER_REPLICA},
        }
        api.put(QWENDEPLOYMENTS, deployment(servedNames=[MODEL], replicas=REPLICAS, **wide))

    async def live(self) -> None:
        """Time passes, for the operator as for the clients."""
        self.agent.start()
        for second in itertools.count():
            begun = time.monotonic()
            self.cluster.busy = self.members.working()
            if second % LOOK_SECONDS == 0:
                self.cluster.operator.intake.enqueue_all()
            await self.cluster.wait(1)
            for resource in (QWENDEPLOYMENTS, PODS):
                self.agent.listener(resource, None)({key_of(item): item for item in self.cluster.api.all(resource)})
            await asyncio.sleep(max(0.05, 1 - (time.monotonic() - begun)))

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.cluster.api.all(PODS)}

    def ready(self) -> str:
        """READY of `kubectl get`, such as 2/2."""
        return str(self.cluster.qd().get("status", {}).get("summary", {}).get("ready"))

    def change(self, **spec: object) -> None:
        self.cluster.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(spec))

    def notes(self) -> Iterator[tuple[str, float, str, str]]:
        return notes_of(self.folder)


async def whole(world: Groups) -> float:
    """All replicas serve, and no pod too many is there. Returns when."""
    wanted = f"{REPLICAS}/{REPLICAS}"
    await until(lambda: world.ready() == wanted and len(world.uids()) == REPLICAS * NODES_PER_REPLICA, PATIENCE_SECONDS)
    return time.monotonic()


async def scaled(world: Groups) -> float:
    """From two replicas to one, and back."""
    world.change(replicas=1)
    await until(lambda: len(world.uids()) == NODES_PER_REPLICA, PATIENCE_SECONDS)
    world.change(replicas=REPLICAS)
    return await whole(world)


async def rolled_out(world: Groups) -> float:
    """All replicas get successors."""
    before = world.uids()
    now = world.cluster.qd()["spec"].get("contextTokens")
    world.change(contextTokens=4096 if now == 2048 else 2048)
    await until(lambda: not world.uids() & before, PATIENCE_SECONDS)
    return await whole(world)


async def cordoned(world: Groups) -> float:
    """The node of a worker takes no more pods, and its replica moves."""
    api = world.cluster.api
    worker = next(pod for pod in api.all(PODS) if pod["metadata"]["labels"][LABEL_RANK] == "1")
    host = worker["spec"]["nodeName"]
    api.edit(NODES, host, lambda item: item["spec"].update(unschedulable=True))
    await until(lambda: worker["metadata"]["uid"] not in world.uids(), PATIENCE_SECONDS)
    done = await whole(world)
    api.edit(NODES, host, lambda item: item["spec"].pop("unschedulable"))
    return done


EVENTS: Mapping[str, Callable[[Groups], Awaitable[float]]] = {
    "two nodes, scaled 2-1-2": scaled,
    "two nodes, rolled out": rolled_out,
    "two nodes, one cordoned": cordoned,
}
"""What happens, by its name in the table. Each returns when all replicas were ready again."""


@asynccontextmanager
async def groups(running: Pod, folder: Path) -> AsyncIterator[Groups]:
    """An agent beside the router of `running`, and two replicas of two pods."""
    async with observed(running) as (session, demand):
        made = Groups(running, session, demand, folder)
        await made.start()
        going = [asyncio.create_task(made.live()), asyncio.create_task(made.agent.loop())]
        try:
            await whole(made)
            await until(lambda: made.agent.ready, 60)
            await asyncio.to_thread(running.chat, MODEL, user="first")
            yield made
        finally:
            for task in going:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*going)
            made.members.end()
