"""Rollouts: how many replicas start and go at a time, with free GPUs and without, and what may happen meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest
from tests.unit.fakes import Write
from tests.unit.world import World, change, deployment, node, ready_status

ROUTABLE = "qwen-operator.dev/routable"
SINCE = "qwen-operator.dev/draining-since"
READY = {"type": "Ready", "status": "True"}
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
GPUS = 8


def unscheduled(message: str = NO_GPU) -> Manifest:
    return {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}


def routable(pod: Manifest) -> bool:
    return ROUTABLE in pod["metadata"]["labels"] and "deletionTimestamp" not in pod["metadata"]


def serves(pod: Manifest) -> bool:
    return routable(pod) and READY in pod["status"].get("conditions", [])


@dataclass
class Seen:
    """The extremes between two writes: replicas that serve, replicas without a drain, pods that hold GPUs, and the
    number of replicas in the status."""

    fewest: int = 1000
    most: int = 0
    pods: int = 0
    shown: int = 0
    verbs: list[str] = field(default_factory=list)


def watched(world: World) -> Seen:
    """What happens from now on, looked at after every write of the operator."""
    seen = Seen()

    def after(_number: int, write: Write) -> None:
        pods = [pod for pod in world.api.all(PODS) if "deletionTimestamp" not in pod["metadata"]]
        seen.fewest = min(seen.fewest, sum(serves(pod) for pod in pods))
        seen.most = max(seen.most, sum(SINCE not in pod["metadata"]["annotations"] for pod in pods))
        seen.pods = max(seen.pods, len(pods))
        if write.resource == PODS:
            seen.verbs.append(write.verb)
        if write.verb == "status":
            seen.shown = max(seen.shown, world.qd()["status"]["replicas"])

    world.api.after = after
    return seen


async def served(replicas: int = 1, **rollout: int) -> World:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas, rollout=rollout))
    await world.settle()
    return world


def with_gpus(world: World, number: int) -> None:
    """From here on so many pods find a node, the first ones first. A pod keeps its GPU until it is gone."""
    holders = {pod["metadata"]["uid"]: world.api.clock.stamp() for pod in world.api.all(PODS)}

    def engine(pod: Manifest) -> Manifest:
        uid = pod["metadata"]["uid"]
        for gone in holders.keys() - {one["metadata"]["uid"] for one in world.api.all(PODS)}:
            del holders[gone]
        if uid not in holders and len(holders) >= number:
            return unscheduled()
        status = ready_status(pod)
        status["conditions"][1]["lastTransitionTime"] = holders.setdefault(uid, world.api.clock.stamp())
        return status

    world.kubelet.engine = engine


def draining(world: World) -> list[str]:
    return [pod["metadata"]["name"] for pod in world.api.all(PODS) if SINCE in pod["metadata"]["annotations"]]


def revisions(world: World) -> list[str]:
    return sorted({pod["metadata"]["labels"]["qwen-operator.dev/revision"] for pod in world.api.all(PODS)})


@dataclass(frozen=True)
class Case:
    """`fewest` replicas serve at all times, at most `most` are there without a drain, and at most `pods` exist."""

    replicas: int
    surge: int
    unavailable: int
    fewest: int
    most: int
    pods: int


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 0, fewest=1, most=2, pods=2),
        Case(3, 1, 0, fewest=3, most=4, pods=6),
        Case(4, 2, 0, fewest=4, most=6, pods=8),
        Case(2, 64, 0, fewest=2, most=4, pods=4),
        Case(1, 0, 1, fewest=0, most=1, pods=1),
        Case(3, 0, 1, fewest=2, most=3, pods=3),
        Case(4, 0, 2, fewest=2, most=4, pods=4),
        Case(3, 1, 1, fewest=2, most=4, pods=6),
        Case(2, 0, 64, fewest=0, most=2, pods=2),
    ],
    ids=str,
)
async def test_so_many_replicas_start_and_go_at_a_time(case: Case) -> None:
    world = await served(case.replicas, maxSurge=case.surge, maxUnavailable=case.unavailable)
    old = world.names()
    seen = watched(world)
    change(world, contextTokens=2048)
    await world.settle(600)

    assert (seen.fewest, seen.most) == (case.fewest, case.most)
    assert seen.pods <= case.pods
    assert len(world.names()) == case.replicas
    assert not set(old) & set(world.names())
    assert "Reconciling" not in world.conditions()
    assert world.qd()["status"]["readyReplicas"] == case.replicas


async def test_without_a_surge_a_replica_finishes_its_requests_before_its_successor_starts() -> None:
    world = await served(1, maxSurge=0, maxUnavailable=1)
    [old] = world.names()
    world.busy.add(old)
    seen = watched(world)
    change(world, contextTokens=2048)
    await world.wait(60)
    assert draining(world) == [old]
    assert world.names() == [old], "it still has its requests and its GPUs"
    assert world.conditions()["Reconciling"][0] == "True"

    world.busy.clear()
    world.operator.intake.enqueue_all()
    await world.settle()
    assert seen.verbs == ["patch", "delete", "create"]
    assert old not in world.names()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_without_a_surge_what_drains_keeps_its_place_and_the_others_wait() -> None:
    world = await served(3, maxSurge=0, maxUnavailable=1)
    world.busy |= set(world.names())
    change(world, contextTokens=2048)
    await world.wait(60)
    assert len(draining(world)) == 1
    assert len(world.names()) == 3
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (2, 2, "2/3")


async def test_a_replica_that_does_not_answer_goes_first_and_costs_no_other() -> None:
    world = await served(3, maxSurge=0, maxUnavailable=1)
    broken = world.names()[0]
    dip = ready_status({})
    dip["conditions"][1]["status"] = "False"
    dip["containerStatuses"][0]["started"] = True
    world.kubelet.engine = lambda pod: dip if pod["metadata"]["name"] == broken else ready_status(pod)
    await world.wait(2)
    seen = watched(world)
    change(world, contextTokens=2048)
    await world.settle(600)
    assert seen.verbs[0] == "delete"
    assert seen.fewest == 2
    assert len(world.names()) == 3


async def test_a_rollout_without_room_says_what_helps_and_that_helps() -> None:
    world = await served(1)
    with_gpus(world, 1)
    [old] = world.names()
    change(world, contextTokens=2048)
    await world.wait(30)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Reconciling"] == ("True", "WaitingForGpus")
    message = world.message("Reconciling")
    assert "no GPU is free for the successor, and the earlier revision keeps serving" in message
    assert "set spec.rollout.maxSurge to 0 and spec.rollout.maxUnavailable to 1" in message
    await world.wait(3600)
    assert old in world.names()
    assert world.conditions()["Stalled"] == ("True", "RevisionHeld")
    assert "set spec.rollout.maxSurge to 0" in world.message("Stalled")

    change(world, rollout={"maxSurge": 0, "maxUnavailable": 1})
    await world.settle()
    assert old not in world.names()
    assert len(world.names()) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Stalled" not in world.conditions()


@pytest.mark.parametrize(
    ("message", "rollout", "told"),
    [
        (NO_GPU, {}, True),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", {}, False),
        (NO_GPU, {"maxSurge": 0, "maxUnavailable": 1}, False),
    ],
    ids=["no GPU", "no node fits", "the advice is followed"],
)
async def test_the_advice_is_given_only_where_it_helps(message: str, rollout: dict[str, int], told: bool) -> None:
    world = await served(2, **rollout)
    old = world.names()
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] in old else unscheduled(message)
    change(world, contextTokens=2048)
    await world.wait(30)
    assert world.conditions()["Reconciling"] == ("True", "WaitingForGpus")
    assert ("spec.rollout.maxSurge" in world.message("Ready")) == told


async def test_a_scale_up_without_room_gets_no_advice_about_rollouts() -> None:
    world = await served(1)
    with_gpus(world, 1)
    change(world, replicas=2)
    await world.wait(30)
    assert "Insufficient" in world.message("Ready")
    assert "maxSurge" not in world.message("Ready")


async def test_a_quota_without_room_for_a_successor_says_what_helps_and_that_helps() -> None:
    world = await served(1)
    limits: Manifest = {"hard": {"pods": "1"}, "used": {"pods": "1"}}
    quota: Manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "team"}}
    world.api.put(RESOURCE_QUOTAS, quota | {"spec": {"hard": limits["hard"]}, "status": limits})
    change(world, contextTokens=2048)
    await world.wait(10)
    assert world.conditions()["Reconciling"] == ("True", "QuotaExceeded")
    assert "spec.rollout.maxSurge to 0" in world.message("Reconciling")

    [old] = world.names()
    change(world, rollout={"maxSurge": 0, "maxUnavailable": 1})
    await world.wait(20)
    assert world.names() == []
    world.api.edit(RESOURCE_QUOTAS, "q", lambda item: item["status"]["used"].update(pods="0"))
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.names() != [old]


@pytest.mark.parametrize("rollout", [{}, {"maxSurge": 0, "maxUnavailable": 1}, {"maxSurge": 3}], ids=str)
async def test_a_cordoned_node_moves_one_replica_at_a_time_whatever_the_rollout_may_do(rollout: dict[str, int]) -> None:
    world = await World().start()
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=4, rollout=rollout))
    await world.settle()
    seen = watched(world)
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    await world.settle(600)
    assert (seen.fewest, seen.most, seen.shown) == (4, 5, 4)
    assert {pod["spec"]["nodeName"] for pod in world.api.all(PODS)} == {"gpu-2"}


async def test_without_a_surge_and_without_another_node_a_cordoned_replica_keeps_serving() -> None:
    world = await World().start()
    world.kubelet.place = True
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"maxSurge": 0, "maxUnavailable": 1}))
    await world.settle()
    [old] = world.names()
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    await world.wait(120)
    assert old in world.names()
    assert draining(world) == []
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_rollout_and_a_cordon_at_the_same_time_keep_both_limits() -> None:
    world = await World().start()
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=4, rollout={"maxSurge": 0, "maxUnavailable": 1}))
    await world.settle()
    seen = watched(world)
    change(world, contextTokens=2048)
    await world.wait(40)
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    await world.settle(900)
    assert seen.fewest >= 3
    assert seen.most <= 5
    assert len(world.names()) == 4
    assert len(revisions(world)) == 1
    assert {pod["spec"]["nodeName"] for pod in world.api.all(PODS)} == {"gpu-2"}


async def test_removing_replicas_while_a_place_is_empty_hands_back_from_the_full_size() -> None:
    world = await World().start()
    spec: dict[str, Any] = {"replicas": 2, "scaling": {"minReplicas": 1, "maxReplicas": 4}}
    world.api.put(QWENDEPLOYMENTS, deployment(**spec, rollout={"maxSurge": 0, "maxUnavailable": 1}))
    await world.settle()
    world.busy |= set(world.names())
    change(world, contextTokens=2048)
    await world.wait(10)
    assert len(draining(world)) == 1
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("replicas"))
    await world.wait(3)
    assert world.qd()["status"]["scaling"]["wanted"] == 2
    world.busy.clear()
    world.operator.intake.enqueue_all()
    await world.settle()
    assert len(world.names()) == 2


async def test_a_rollback_without_a_surge_brings_back_what_drains() -> None:
    world = await served(2, maxSurge=0, maxUnavailable=1)
    old = world.names()
    world.busy |= set(old)
    change(world, contextTokens=2048)
    await world.wait(20)
    assert len(draining(world)) == 1
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("contextTokens"))
    await world.wait(3)
    assert draining(world) == []
    assert world.names() == old
    assert all(routable(pod) for pod in world.api.all(PODS))


Deed = Callable[[World], Any]


@pytest.mark.parametrize(
    "deed",
    [
        lambda world: change(world, replicas=4),
        lambda world: change(world, replicas=1),
        lambda world: change(world, contextTokens=512),
        lambda world: world.api.remove(world.api.one(PODS, world.names()[0]), PODS),
        lambda world: change(world, rollout={"maxSurge": 2}),
    ],
    ids=["more", "fewer", "another spec", "a lost pod", "another rule"],
)
@pytest.mark.parametrize("after", [1, 8, 20])
async def test_whatever_comes_between_a_rollout_without_a_surge_ends(deed: Deed, after: int) -> None:
    world = await served(3, maxSurge=0, maxUnavailable=1)
    change(world, contextTokens=2048)
    await world.wait(after)
    deed(world)
    await world.settle(900)
    wanted = world.qd()["spec"]["replicas"]
    assert len(world.names()) == wanted
    assert len(revisions(world)) == 1
    assert world.qd()["status"]["readyReplicas"] == wanted
    assert "Reconciling" not in world.conditions()
