"""Random walks: whatever happens in whatever order, in the end there is what was asked for, and then nothing moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from qwen_operator.kube import NODES, POD_DISRUPTION_BUDGETS, PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.fakes import Crash, Write
from tests.unit.world import World, deployment, node, ready_status, with_groups

ROUTABLE = "qwen-operator.dev/routable"
READY = {"type": "Ready", "status": "True"}


class Broken(BaseException):
    """A promise is broken. Not an Exception: the worker survives those."""


class Walk:
    """A world with three nodes and one deployment, and the things that may befall it."""

    def __init__(self, world: World, seed: int, pods: int, limits: dict[str, int]) -> None:
        self.world = world
        self.pods = pods
        self.random = random.Random(seed)
        self.broken: set[str] = set()
        world.kubelet.place = True
        world.kubelet.engine = lambda pod: None if pod["metadata"]["name"] in self.broken else ready_status(pod)
        for name in ("gpu-2", "gpu-3"):
            world.api.put(NODES, node(name))
        spec: dict[str, Any] = {
            "scaling": {"minReplicas": 1, "maxReplicas": 5},
            "rollout": {"drainSeconds": 20, **limits},
        }
        world.wanted = 2
        world.api.before = self.careful
        world.api.put(QWENDEPLOYMENTS, deployment(**spec))
        self.deeds: list[Callable[[], None]] = [
            self.load,
            self.load,
            self.replicas,
            self.rollout,
            self.cordon,
            self.delete,
            self.busy,
            self.crash,
            *([self.fill, self.evict] if pods > 1 else []),
        ]

    def pod(self) -> str | None:
        names = self.world.names(PODS)
        return self.random.choice(names) if names else None

    def load(self) -> None:
        self.world.wanted = self.random.choice([None, 1, 2, 3, 5])
        self.world.order = tuple(self.random.sample(self.world.names(), len(self.world.names())))
        self.world.operator.intake.enqueue_all()

    def replicas(self) -> None:
        number = self.random.choice([None, 0, 1, 4])
        self.world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=number))
        if number is None:
            self.world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("replicas"))

    def rollout(self) -> None:
        tokens = self.random.choice([1024, 2048])
        self.world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=tokens))

    def cordon(self) -> None:
        name, on = self.random.choice(["gpu-1", "gpu-2", "gpu-3"]), self.random.random() < 0.6
        self.world.api.edit(NODES, name, lambda item: item["spec"].update(unschedulable=on))

    def delete(self) -> None:
        if name := self.pod():
            self.world.api.remove(self.world.api.one(PODS, name), PODS)

    def fill(self) -> None:
        """Pods that the operator does not see take a node, or leave it."""
        self.world.kubelet.full ^= {self.random.choice(["gpu-1", "gpu-2", "gpu-3"])}

    def evict(self) -> None:
        if name := self.pod():
            status = {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}
            self.world.api.edit(PODS, name, lambda item: item.update(status=status))

    def busy(self) -> None:
        if name := self.pod():
            self.world.busy ^= {name}

    def crash(self) -> None:
        due = [len(self.world.api.writes) + self.random.randrange(4)]

        def hit(number: int, write: Write) -> None:
            self.careful(number, write)
            if number in due:
                due.clear()
                raise Crash

        self.world.api.before = hit

    def careful(self, _number: int, write: Write) -> None:
        """The operator never deletes what gets requests, unless its replica lost another pod."""
        if write.verb == "delete" and write.resource == PODS:
            members = self.members(write.name)
            serves = ROUTABLE in members[0]["metadata"]["labels"]
            whole = len(members) == self.pods and all("deletionTimestamp" not in one["metadata"] for one in members)
            if serves and whole and all(READY in one["status"].get("conditions", []) for one in members):
                raise Broken(write.name)

    def members(self, name: str) -> list[Manifest]:
        """The pods of the replica that a pod belongs to, by rank."""
        replica = name if self.pods == 1 else name.rpartition("-")[0]
        return [
            pod
            for pod in self.world.api.all(PODS)
            if pod["metadata"]["name"] == replica or pod["metadata"]["name"].rpartition("-")[0] == replica
        ]

    async def go(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choice(self.deeds)()
            await self.world.wait(self.random.choice([0, 1, 3, 9, 30]))

    async def rest(self) -> int:
        """Peace returns; the number of replicas that there are to be."""
        for name in ("gpu-1", "gpu-2", "gpu-3"):
            self.world.api.edit(NODES, name, lambda item: item["spec"].pop("unschedulable", None))
        self.world.kubelet.full.clear()
        self.world.wanted = self.world.wanted or 2
        self.world.operator.intake.enqueue_all()
        await self.world.settle(200)
        replicas = self.world.qd()["spec"].get("replicas")
        return self.world.wanted if replicas is None else int(replicas)


def leads(pod: Manifest) -> bool:
    return bool(pod["metadata"]["labels"]["qwen-operator.dev/role"] == "engine")


@pytest.mark.parametrize(
    ("seed", "members", "limits"),
    [
        *((seed, 1, {}) for seed in range(20)),
        *((seed, 2, {}) for seed in range(20, 30)),
        *((seed, 1, {"maxSurge": 0, "maxUnavailable": 1}) for seed in range(30, 38)),
        *((seed, 2, {"maxSurge": 0, "maxUnavailable": 2}) for seed in range(38, 42)),
        *((seed, 1, {"maxSurge": 2, "maxUnavailable": 1}) for seed in range(42, 50)),
        *((seed, 1, {"progressDeadlineSeconds": 10}) for seed in range(50, 54)),
    ],
)
async def test_in_the_end_there_is_what_was_asked_for(
    seed: int, members: int, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_groups(members, monkeypatch)
    world = await World().start()
    walk = Walk(world, seed, members, limits)
    await world.settle()
    await walk.go(12)
    wanted = await walk.rest()

    pods = world.api.all(PODS)
    assert len(pods) == wanted * members
    assert sum(leads(pod) for pod in pods) == wanted
    assert all((ROUTABLE in pod["metadata"]["labels"]) == leads(pod) for pod in pods)
    assert all(READY in pod["status"]["conditions"] for pod in pods)
    assert len({pod["metadata"]["labels"]["qwen-operator.dev/revision"] for pod in pods}) <= 1
    assert {"qwen-operator.dev/draining-since", "qwen-operator.dev/cordoned-since"}.isdisjoint(
        key for pod in pods for key in pod["metadata"]["annotations"]
    )
    assert world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]["minAvailable"] == wanted
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"]) == (wanted, wanted)
    assert world.operator.outcomes["crash"] == 0
    writes = len(world.api.writes)
    await world.restart()
    await world.settle()
    assert world.api.writes[writes:] == []
