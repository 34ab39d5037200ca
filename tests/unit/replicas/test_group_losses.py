"""What clients lose while replicas over several nodes go in order: nothing.

The gateway sees one pod of each replica, so for it nothing is new (`bench.loss` measures it with real processes). Here
the operator must not end any pod of a replica that has requests, whichever of its pods an event is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.world import World, change, deployment, node, with_groups

ROUTABLE, REPLICA = "qwen-operator.dev/routable", "qwen-operator.dev/replica"
READY = {"type": "Ready", "status": "True"}
# The gateway goes on for so long after the label is gone.
DELAY_SECONDS, REQUEST_SECONDS, REQUESTS_PER_SECOND = 3, 25, 4
LOOK_SECONDS = 5


@dataclass
class Clients:
    """Requests to leaders, each of which needs the whole replica until its end."""

    world: World
    second: int = 0
    sent: int = 0
    lost: list[str] = field(default_factory=list)
    _routed: dict[str, int] = field(default_factory=dict)
    _running: list[tuple[int, str, str, frozenset[str]]] = field(default_factory=list)

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self._end()
            self._begin()
            self.world.busy = {leader for _, leader, _, _ in self._running}
            if self.second % LOOK_SECONDS == 0:
                self.world.operator.intake.enqueue_all()
            await self.world.wait(1)
            self.second += 1

    def _members(self, replica: str) -> frozenset[str]:
        return frozenset(
            pod["metadata"]["uid"]
            for pod in self.world.api.all(PODS)
            if pod["metadata"]["labels"].get(REPLICA) == replica and "deletionTimestamp" not in pod["metadata"]
        )

    def _begin(self) -> None:
        for pod in self.world.api.all(PODS):
            if ROUTABLE in pod["metadata"]["labels"] and READY in pod["status"].get("conditions", []):
                self._routed[pod["metadata"]["name"]] = self.second
        there = {pod["metadata"]["name"]: pod for pod in self.world.api.all(PODS)}
        known = [name for name, since in self._routed.items() if self.second - since <= DELAY_SECONDS]
        for _, name in zip(range(REQUESTS_PER_SECOND), cycle(known), strict=False):
            self.sent += 1
            if name not in there:
                self.lost.append(f"{name} was routed and is gone")
                continue
            replica = there[name]["metadata"]["labels"][REPLICA]
            self._running.append((self.second + REQUEST_SECONDS, name, replica, self._members(replica)))

    def _end(self) -> None:
        going: list[tuple[int, str, str, frozenset[str]]] = []
        for request in self._running:
            until, leader, replica, members = request
            if self._members(replica) != members:
                self.lost.append(f"{leader} lost a member at {self.second}")
            elif until > self.second:
                going.append(request)
        self._running = going


def scales_down(world: World) -> None:
    change(world, replicas=1)


def rolls_out(world: World) -> None:
    change(world, contextTokens=2048, replicas=2)


def cordons_a_worker(world: World) -> None:
    worker = next(pod for pod in world.api.all(PODS) if pod["metadata"]["name"].endswith("-1"))
    world.api.edit(NODES, worker["spec"]["nodeName"], lambda item: item["spec"].update(unschedulable=True))


@pytest.mark.parametrize("event", [scales_down, rolls_out, cordons_a_worker])
async def test_no_request_is_lost(event: Callable[[World], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    world = await World().start()
    world.kubelet.place = True
    for number in range(1, 9):
        world.api.put(NODES, node(f"gpu-{number}", gpus=1))
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.wait(60)
    before: list[Manifest] = list(world.api.all(PODS))
    clients = Clients(world)
    await clients.run(60)
    event(world)
    await clients.run(240)
    gone = {pod["metadata"]["uid"] for pod in before} - {pod["metadata"]["uid"] for pod in world.api.all(PODS)}
    assert gone, "the event removed a replica"
    assert clients.sent >= 1000
    assert clients.lost == []
