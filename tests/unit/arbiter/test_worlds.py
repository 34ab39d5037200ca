"""Deployments of different priorities on nodes that are too small for all: the whole loop, in memory."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator import objects
from qwen_operator.arbiter.messages import in_words, short_of_gpus
from qwen_operator.arbiter.types import Grant
from qwen_operator.config.types import Config
from qwen_operator.controller import arbiter as loop
from qwen_operator.controller.node_pods import SeenPods
from qwen_operator.kube import (
    NODES,
    PODS,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    Forbidden,
    Manifest,
    Unavailable,
)
from qwen_operator.manifests.names import ANNOTATION_DRAINING_SINCE
from qwen_operator.objects import ObjectKey
from qwen_operator.tenancy.lists import Mode, Tenancy
from tests.unit.fakes import Crash, FakeKube, Write
from tests.unit.world import CONFIG, World, deployment, node, ready_status, with_groups

CHAT = ("team", "chat")
SMALL = "Qwen/Qwen1.5-1.8B-Chat"


def priority_class(name: str, value: int, **more: Any) -> Manifest:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
        **more,
    }


def a_node(name: str, gpus: int) -> Manifest:
    made = node(name, gpus)
    made["metadata"]["labels"]["kubernetes.io/hostname"] = name
    made["status"]["allocatable"]["pods"] = "110"
    return made


def urgent(name: str = "urgent", replicas: int = 1, **more: Any) -> Manifest:
    pod = {"priorityClassName": "high", **more.pop("pod", {})}
    return deployment(name, model=SMALL, servedNames=[name], replicas=replicas, pod=pod, **more)


def stranger(name: str, where: str, gpus: int = 0, priority: int = 0, **requests: str) -> Manifest:
    """A running pod of somebody else."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "others", "labels": {}},
        "spec": {
            "nodeName": where,
            "priority": priority,
            "containers": [
                {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": dict(requests)}}
            ],
        },
        "status": {"phase": "Running"},
    }


def running_stranger(world: World) -> Manifest:
    pod = stranger("a", "gpu-1", 1)
    world.api.put(PODS, pod)
    return world.api.edit(PODS, "a", lambda item: item.update(status=pod["status"]))


TRUSTED = replace(CONFIG, tenancy=Tenancy(mode=Mode.TRUSTED))


def a_world(gpus: int = 2, wanted: int = 2, config: Config = TRUSTED) -> World:
    world = World(config, wanted=wanted)
    world.kubelet.place = True
    world.api.put(NODES, a_node("gpu-1", gpus))
    world.api.put(PRIORITY_CLASSES, priority_class("high", 1000))
    return world


async def serving(gpus: int = 2, replicas: int = 2) -> World:
    """A world in which `chat` has so many replicas, all but one of them for the load."""
    world = await a_world(gpus, replicas).start()
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"maxReplicas": replicas}))
    await world.settle()
    assert len(world.names()) == replicas
    return world


def priority(pod: Manifest) -> int:
    return 1000 if pod["spec"].get("priorityClassName") == "high" else int(pod["spec"].get("priority", 0))


def preempted(api: FakeKube) -> list[str]:
    """The pods that kube-scheduler would end now for a pod that finds no place."""
    ended = []
    for pod in api.all(PODS):
        if pod["spec"].get("nodeName") or pod["spec"].get("schedulingGates") or "deletionTimestamp" in pod["metadata"]:
            continue
        host = pod["spec"].get("nodeSelector", {}).get("kubernetes.io/hostname")
        for place in api.all(NODES):
            name = place["metadata"]["name"]
            there = [one for one in api.all(PODS) if one["spec"].get("nodeName") == name]
            free = int(place["status"]["allocatable"]["nvidia.com/gpu"]) - sum(map(gpus_of, there))
            if host in (None, name) and free < gpus_of(pod):
                ended += [one["metadata"]["name"] for one in there if priority(one) < priority(pod)]
            elif host in (None, name):
                break
    return ended


def gpus_of(pod: Manifest) -> int:
    return sum(int(c["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) for c in pod["spec"]["containers"])


async def live(world: World, seconds: int) -> None:
    """Let time pass. At no time may the scheduler have a reason to end a pod."""
    for _ in range(seconds):
        await world._survive(world.operator.step)
        assert not preempted(world.api)
        world.kubelet.step()
        world.api.clock.advance(1.0)


def draining(world: World) -> list[str]:
    pods = world.api.all(PODS)
    return [one["metadata"]["name"] for one in pods if ANNOTATION_DRAINING_SINCE in objects.annotations(one)]


def owners(world: World) -> list[str]:
    return [name.partition("-")[0] for name in world.names()]


async def test_an_extra_replica_drains_without_a_lost_request_before_the_other_pod_is_made() -> None:
    world = await serving()
    first, last = world.names()
    world.busy = {first, last}

    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 60)
    assert len(draining(world)) == 1
    assert world.names() == [first, last], "requests run in the draining replica, and no other pod is made"
    status = world.qd("urgent")["status"]
    assert status["summary"]["status"] == "WaitingForGpus"
    assert "the GPUs suffice for 0 of 1 wanted replicas; the rest is used by chat" in status["summary"]["message"]
    assert status["scaling"]["granted"] == 0
    scaling = world.qd("chat")["status"]["scaling"]
    assert (scaling["wanted"], scaling["granted"]) == (2, 1)

    world.busy = set()
    world.operator.queue.add(CHAT)
    await live(world, 60)
    assert owners(world) == ["chat", "urgent"]
    assert "granted" not in world.qd("urgent")["status"]["scaling"]
    assert "DrainTimedOut" not in world.events()
    assert world.events()["GpusShort"] == 2
    assert world.events()["GpusGranted"] == 1
    writes = len(world.api.writes)
    await live(world, 60)
    assert len(world.api.writes) == writes, "it is at rest"

    world.api.edit(QWENDEPLOYMENTS, "urgent", lambda item: item["spec"].update(replicas=0))
    await live(world, 120)
    assert owners(world) == ["chat", "chat"]
    assert "granted" not in world.qd("chat")["status"]["scaling"]


async def test_a_drain_that_nobody_needs_any_more_ends() -> None:
    world = await serving()
    world.busy = set(world.names())
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 10)
    [leaving] = draining(world)

    world.api.edit(QWENDEPLOYMENTS, "urgent", lambda item: item["spec"].update(replicas=0))
    await live(world, 10)
    assert draining(world) == []
    assert leaving in world.names()


async def test_each_kill_point_leads_to_the_same_end() -> None:
    async def end(point: int | None) -> tuple[World, int]:
        world = await serving()
        writes = len(world.api.writes)

        def die(number: int, _write: Write) -> None:
            if point is not None and number == writes + point:
                raise Crash

        world.api.after = die
        world.api.put(QWENDEPLOYMENTS, urgent())
        await live(world, 30)
        return world, len(world.api.writes) - writes

    calm, number = await end(None)
    assert owners(calm) == ["chat", "urgent"]
    for point in range(number):
        world, _ = await end(point)
        assert world.crashes <= 1
        assert owners(world) == owners(calm)


async def test_nobody_drains_for_a_deployment_that_is_being_deleted() -> None:
    world = await serving(3, 2)
    world.api.put(QWENDEPLOYMENTS, deployment("low", model=SMALL, servedNames=["low"], replicas=0))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 30)
    assert owners(world) == ["chat", "chat", "urgent"]
    stamp = world.api.clock.stamp()
    world.api.edit(QWENDEPLOYMENTS, "urgent", lambda item: item["metadata"].update(deletionTimestamp=stamp))
    [pod] = [one for one in world.api.all(PODS) if one["metadata"]["name"].startswith("urgent")]
    world.api.finish(pod, PODS)
    world.api.edit(QWENDEPLOYMENTS, "low", lambda item: item["spec"].update(replicas=1))
    await live(world, 30)
    assert owners(world) == ["chat", "chat", "low"]


async def test_deployments_of_one_priority_are_left_alone() -> None:
    world = await serving()
    world.api.put(QWENDEPLOYMENTS, deployment("other", model=SMALL, servedNames=["other"]))
    await live(world, 30)
    assert draining(world) == []
    assert owners(world) == ["chat", "chat", "other"], "its pod waits, as a node autoscaler needs it"
    [waiting] = [pod for pod in world.api.all(PODS) if pod["metadata"]["name"].startswith("other")]
    assert "kubernetes.io/hostname" not in waiting["spec"]["nodeSelector"]


async def test_who_shares_no_node_with_a_higher_one_is_left_alone() -> None:
    """A node autoscaler needs its pod, and what happens on nodes of others is nothing to it."""
    world = await serving()
    apart = a_node("gpu-2", 1)
    apart["metadata"]["labels"] |= {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
    world.api.put(NODES, apart)
    world.api.put(QWENDEPLOYMENTS, urgent(hardware={"products": ["NVIDIA-H100-80GB-HBM3"]}))
    l4 = {"products": ["NVIDIA-L4"]}
    other = deployment("other", model=SMALL, servedNames=["other"], replicas=2, hardware=dict(l4))
    world.api.put(QWENDEPLOYMENTS, other)
    await live(world, 40)
    assert owners(world) == ["chat", "other", "other", "urgent"]
    assert "granted" not in world.qd("other")["status"]["scaling"]

    world.api.put(QWENDEPLOYMENTS, urgent("top", hardware=dict(l4)))
    await live(world, 40)
    assert owners(world) == ["chat", "top", "urgent"], "now they meet"
    assert "granted" in world.qd("other")["status"]["scaling"]


async def test_a_cordoned_node_is_still_one_where_they_meet() -> None:
    world = await serving()
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 20)
    assert owners(world) == ["chat", "chat"], "a pod that waits would end one of them as soon as the node is back"


@pytest.mark.parametrize("off", ["switch", "right"])
async def test_without_the_switch_or_the_right_the_scheduler_decides(off: str) -> None:
    world = a_world(config=replace(TRUSTED, arbiter=off != "switch"))
    if off == "right":
        world.api.refused = {(PRIORITY_CLASSES, "")}
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"maxReplicas": 2}))
    await world.settle()
    world.api.put(QWENDEPLOYMENTS, urgent())
    await world.settle()
    assert owners(world) == ["chat", "chat", "urgent"]
    assert draining(world) == []


async def test_gpus_of_strangers_are_not_promised() -> None:
    world = await a_world(4, 2).start()
    world.api.put(PODS, stranger("a", "gpu-1", 2))
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"maxReplicas": 2}))
    await world.settle()
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 40)
    assert owners(world) == ["a", "chat", "urgent"]


@pytest.mark.parametrize("whose", ["a stranger", "a deployment that is gone"])
async def test_nobody_drains_while_another_pod_ends(whose: str) -> None:
    world = await serving(3, 2)
    if whose == "a stranger":
        ending = running_stranger(world)
    else:
        world.api.put(QWENDEPLOYMENTS, deployment("low", model=SMALL, servedNames=["low"], replicas=1))
        await world.settle()
        [ending] = [pod for pod in world.api.all(PODS) if pod["metadata"]["name"].startswith("low")]
        world.api.remove(world.qd("low"), QWENDEPLOYMENTS)
        ending = world.api.one(PODS, ending["metadata"]["name"])
    await _ends_slowly(world, ending)


async def _ends_slowly(world: World, ending: Manifest) -> None:
    """Let time pass with a pod that takes 40 seconds to end while `urgent` wants its GPU."""
    if "deletionTimestamp" not in ending["metadata"]:
        world.api.remove(ending, PODS)
    world.api.put(QWENDEPLOYMENTS, urgent())
    name = ending["metadata"]["name"]
    for _ in range(40):
        await world._survive(world.operator.step)
        assert draining(world) == []
        assert not preempted(world.api)
        world.api.clock.advance(1.0)
    world.api.finish(world.api.one(PODS, name), PODS)
    await live(world, 40)
    assert sorted(owners(world)) == ["chat", "chat", "urgent"]


@pytest.mark.parametrize("whose", ["a stranger", "a deployment that takes part"])
async def test_a_pod_that_does_not_come_to_its_end_keeps_its_gpu(whose: str) -> None:
    world = await serving(3, 2)
    if whose == "a stranger":
        world.api.remove(running_stranger(world), PODS)
    else:
        world.api.put(QWENDEPLOYMENTS, deployment("low", model=SMALL, servedNames=["low"]))
        await world.settle()
        world.api.edit(QWENDEPLOYMENTS, "low", lambda item: item["spec"].update(replicas=0))
        world.api.remove(next(pod for pod in world.api.all(PODS) if pod["metadata"]["name"][:3] == "low"), PODS, 30)
    world.api.put(QWENDEPLOYMENTS, urgent())
    for _ in range(85):
        await world._survive(world.operator.step)
        assert draining(world) == []
        world.api.clock.advance(1.0)
    for _ in range(15):
        await world._survive(world.operator.step)
        world.api.clock.advance(1.0)
    assert len(draining(world)) == 1


@pytest.mark.parametrize("successor", ["is in the way", "is elsewhere", "is held back"])
async def test_a_deployment_gives_up_its_place_in_the_middle_of_a_rollout(successor: str) -> None:
    """The successor does not answer. If it is in the way it goes, and otherwise a replica of before drains."""
    deadline = {"progressDeadlineSeconds": 10 if successor == "is held back" else 1000}
    elsewhere = successor == "is elsewhere"
    world = await a_world(2 if elsewhere else 3, 2).start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()
    before = set(world.names())
    if elsewhere:
        world.api.put(NODES, a_node("gpu-2", 1))
    world.kubelet.engine = lambda pod: None if pod["metadata"]["name"].startswith("chat-") else ready_status(pod)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048, rollout=deadline))
    await live(world, 20)
    assert len(world.names()) == 3
    world.api.put(QWENDEPLOYMENTS, urgent(pod={"nodeSelector": {"kubernetes.io/hostname": "gpu-1"}}))
    await live(world, 30)
    assert sorted(owners(world)) == ["chat", "chat", "urgent"]
    assert len(before & set(world.names())) == (1 if elsewhere else 2)


async def test_a_pod_that_was_made_anew_under_its_name_counts_once() -> None:
    world = await serving(3, 2)
    before = copy.deepcopy(world.api.one(PODS, world.names()[0]))
    before["metadata"]["uid"] = "before"
    world.operator.arbiter.nodes.seen["gpu-1"] = SeenPods(world.api.clock.monotonic(), (before,))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 5)
    assert draining(world) == []
    assert owners(world) == ["chat", "chat", "urgent"]


async def test_before_a_replica_drains_its_node_is_read_again() -> None:
    world = await serving(3, 2)
    gone = stranger("a", "gpu-1", 1)
    gone["metadata"]["uid"] = "gone"
    world.operator.arbiter.nodes.seen["gpu-1"] = SeenPods(world.api.clock.monotonic() - 10, (gone,))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 5)
    assert draining(world) == []
    assert owners(world) == ["chat", "chat", "urgent"]


async def test_a_node_without_memory_is_none_whatever_its_gpus() -> None:
    world = await a_world(4, 1).start()
    world.api.put(PODS, stranger("a", "gpu-1", memory="511Gi"))
    world.api.put(QWENDEPLOYMENTS, deployment())
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 40)
    assert owners(world) == ["a"]
    world.api.put(NODES, a_node("gpu-2", 1))
    await live(world, 120)
    assert owners(world) == ["a", "urgent"]
    assert world.qd()["status"]["summary"]["status"] == "WaitingForGpus"


async def test_many_full_nodes_are_seen_in_one_look() -> None:
    world = await a_world(1, 1).start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    for number in range(100):
        world.api.put(NODES, a_node(f"full-{number}", 1))
        world.api.put(PODS, stranger(f"s{number}", f"full-{number}", memory="511Gi"))
    world.api.put(NODES, a_node("wide", 8))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await world.operator.step()
    assert owners(world).count("urgent") == 1
    assert not preempted(world.api)
    [pod] = [one for one in world.api.all(PODS) if one["metadata"]["name"].startswith("urgent")]
    assert pod["spec"]["nodeSelector"]["kubernetes.io/hostname"] == "wide"


async def test_without_a_look_at_a_node_nothing_is_made_at_first_and_then_the_scheduler_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await serving()
    monkeypatch.setattr(world.operator.arbiter.nodes, "api", _Deaf(world.api, Unavailable(0, "NoAnswer", "down")))
    world.api.put(QWENDEPLOYMENTS, urgent())
    for _ in range(25):
        await world._survive(world.operator.step)
        world.api.clock.advance(1.0)
        assert owners(world) == ["chat", "chat"]
    await world.wait(40)
    assert owners(world) == ["chat", "chat", "urgent"]


async def test_who_may_not_list_the_pods_of_a_node_goes_by_its_own_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await serving()
    monkeypatch.setattr(world.operator.arbiter.nodes, "api", _Deaf(world.api, Forbidden(403, "Forbidden", "no")))
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 40)
    assert owners(world) == ["chat", "urgent"]


class _Deaf:
    """An API server that lists no pods of a node."""

    def __init__(self, api: FakeKube, error: Exception) -> None:
        self._api, self._error = api, error

    async def list(self, *_args: object, fields: str = "") -> object:
        raise self._error


class _Slow:
    """An API server that takes three seconds for the pods of a node. `meanwhile`: what happens in that time."""

    def __init__(self, api: FakeKube, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._api, self._meanwhile = api, meanwhile
        self.lists = 0

    async def list(self, *args: Any, **more: Any) -> object:
        found = await self._api.list(*args, **more)
        self.lists += 1
        self._api.clock.advance(3.0)
        self._meanwhile()
        return found


async def test_an_api_server_that_answers_slowly_delays_a_decision_but_does_not_prevent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await serving(3, 2)
    slow = _Slow(world.api)
    monkeypatch.setattr(world.operator.arbiter.nodes, "api", slow)
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 10)
    assert owners(world) == ["chat", "chat", "urgent"]
    assert slow.lists < 10


async def test_a_look_that_comes_to_no_end_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await serving(3, 2)
    monkeypatch.setattr(loop, "_ROUNDS", 1)
    world.api.put(QWENDEPLOYMENTS, urgent())
    with caplog.at_level(logging.WARNING):
        await world.operator.step()
    assert "the arbiter read nodes 1 times and has no decision yet" in caplog.text


async def test_those_that_wait_are_woken_while_a_look_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await serving()
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 2)
    arbiter = world.operator.arbiter
    monkeypatch.setattr(arbiter.nodes, "api", _Hung())
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.001)
    arbiter.nodes.seen.clear()
    hangs, watches = asyncio.create_task(arbiter.look()), asyncio.create_task(arbiter.watch())
    await asyncio.sleep(0.01)
    assert world.operator.queue.take() is None
    world.api.clock.advance(loop.OPEN_SECONDS + 1)
    await asyncio.sleep(0.05)
    assert not hangs.done()
    woken = {world.operator.queue.take(), world.operator.queue.take()}
    assert woken == {CHAT, ("team", "urgent")}
    hangs.cancel(), watches.cancel()
    await asyncio.gather(hangs, watches, return_exceptions=True)


class _Hung:
    async def list(self, *_args: object, fields: str = "") -> object:
        return await asyncio.Event().wait()


def test_a_pause_is_short_however_long_a_look_took() -> None:
    assert loop.pause_after(0.0) == loop.PAUSE_SECONDS
    assert loop.pause_after(0.5) == 1.5
    assert loop.pause_after(90.0) == 2.0


async def test_a_pod_that_no_scheduler_takes_does_not_keep_others_out() -> None:
    """For example because its volume is in another zone: the scheduler says that it is unschedulable."""
    world = await serving(2, 1)
    world.api.put(QWENDEPLOYMENTS, deployment("more", model=SMALL, servedNames=["more"], replicas=0))
    world.kubelet.full = {"gpu-1"}
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 50)
    assert owners(world) == ["chat", "urgent"]
    await live(world, 50)
    assert owners(world) == ["chat"], "the pod went back"
    world.kubelet.full = set()
    world.api.edit(QWENDEPLOYMENTS, "more", lambda item: item["spec"].update(replicas=1))
    await live(world, 30)
    assert owners(world) == ["chat", "more"]


async def test_a_pod_that_waits_for_its_volume_stays() -> None:
    """The scheduler has chosen its node, and says nothing until the volume is there."""
    world = await serving(3, 2)
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 2)
    world.kubelet.place = False
    [pod] = [one for one in world.api.all(PODS) if one["metadata"]["name"].startswith("urgent")]
    world.api.edit(PODS, pod["metadata"]["name"], lambda item: item["spec"].pop("nodeName", None))
    uid = pod["metadata"]["uid"]
    await live(world, 600)
    assert uid in {one["metadata"]["uid"] for one in world.api.all(PODS)}
    await live(world, 320)
    assert uid not in {one["metadata"]["uid"] for one in world.api.all(PODS)}


async def test_a_rollout_of_a_higher_one_takes_no_gpu_of_a_lower_one_by_force() -> None:
    world = await serving(3, 2)
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 30)
    assert owners(world) == ["chat", "chat", "urgent"]
    world.api.edit(QWENDEPLOYMENTS, "urgent", lambda item: item["spec"].update(contextTokens=2048))
    await live(world, 200)
    assert sorted(owners(world)) == ["chat", "chat", "urgent"]
    assert world.qd("urgent")["status"]["summary"]["status"] == "Serving"
    assert "DrainTimedOut" not in world.events()


async def test_a_rollout_in_place_keeps_its_limits() -> None:
    """Old replicas go before their successors come. The place of each one stays with its deployment."""
    world = await serving(3, 2)
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 30)
    rollout = {"maxSurge": 0, "maxUnavailable": 1}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048, rollout=rollout))
    fewest = 2
    for _ in range(120):
        await live(world, 1)
        ready = [pod for pod in world.api.all(PODS) if pod["metadata"]["name"].startswith("chat")]
        fewest = min(fewest, sum(pod["status"]["phase"] == "Running" for pod in ready))
    assert fewest == 1
    assert owners(world) == ["chat", "chat", "urgent"]
    assert world.qd()["status"]["summary"]["ready"] == "2/2"


async def test_replicas_over_several_nodes_wait_for_all_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(1, 2).start()
    world.api.put(NODES, a_node("gpu-2", 1))
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"maxReplicas": 2}))
    await world.settle()
    with_groups(2, monkeypatch)
    wide = urgent("wide", parallelism={"tensor": 2})
    wide["spec"]["hardware"] = {"maxNodesPerReplica": 2}
    world.api.put(QWENDEPLOYMENTS, wide)
    await live(world, 200)
    assert owners(world) == ["wide", "wide"]
    assert {pod["spec"].get("nodeName") for pod in world.api.all(PODS)} == {"gpu-1", "gpu-2"}
    assert world.qd()["status"]["scaling"]["granted"] == 0


async def test_a_replica_that_is_held_back_does_not_keep_a_higher_priority_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no GPU, only the promise of some. Here it was not placed, and pauses for half an hour."""
    with_groups(2, monkeypatch)
    world = a_world(1)
    world.api.put(NODES, a_node("gpu-2", 1))
    await world.start()
    world.kubelet.full = {"gpu-2"}
    world.api.put(QWENDEPLOYMENTS, deployment())
    for _ in range(800):
        await world.wait(1)
        if "lastFailure" in world.qd()["status"]:
            break
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["status"]["lastFailure"].update(count=9))
    world.kubelet.full = set()
    monkeypatch.undo()
    world.api.put(QWENDEPLOYMENTS, urgent())
    await live(world, 30)
    assert owners(world) == ["urgent"]


@pytest.mark.parametrize(
    ("holders", "says"),
    [
        ((), "1 of 3 wanted replicas at the moment"),
        ((CHAT,), "the rest is used by chat"),
        ((("secret", "x"),), "the rest is used by a deployment of another namespace"),
        (
            (CHAT, ("team", "urgent"), ("secret", "x"), ("other", "y")),
            "used by chat, urgent and deployments of other namespaces",
        ),
        (tuple(("team", f"d{index}") for index in range(5)), "used by d0, d1, d2 and 2 more of this namespace"),
    ],
)
def test_nobody_reads_names_of_other_namespaces(holders: tuple[ObjectKey, ...], says: str) -> None:
    message = short_of_gpus(Grant(1, waits_for=holders, asked=3), "team")
    assert message.endswith(says)
    assert "secret" not in message
    assert short_of_gpus(Grant(3, asked=3), "team") == ""


def test_the_log_has_the_whole_grant() -> None:
    grant = Grant(1, drains=("low-1",), waits_for=(("team", "high"),), awaited=("n2",), asked=2)
    assert in_words(grant) == "1 of 2 replicas; low-1 must go; it waits for room on n2; GPUs are held by team/high"
    assert in_words(Grant(2, places=(("n1",), ("n1",)), asked=2)) == "2 of 2 replicas; new pods go to n1 and n1"
