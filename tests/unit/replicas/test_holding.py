"""A new revision that does not come up is held back: the earlier one serves, is repaired and scaled, and comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
)
from tests.unit.replicas.test_rollouts import draining, revisions, serves, unscheduled, watched, with_gpus
from tests.unit.world import World, change, deployment, node, ready_status

REVISION = "qwen-operator.dev/revision"
DEADLINE = 60


def loading() -> Manifest:
    status = ready_status({})
    status["conditions"][1]["status"] = "False"
    return status


def crashed(restarts: int = 1) -> Manifest:
    ended = {
        "exitCode": 1,
        "reason": "Error",
        "message": '{"reason": "CudaOutOfMemory", "phase": "CaptureGraphs", "exitCode": 1, "log": ["no memory"]}',
        "finishedAt": "2026-01-01T00:00:30Z",
    }
    container = {
        "name": "engine",
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": ended},
    }
    scheduled = {"type": "PodScheduled", "status": "True"}
    return {"phase": "Running", "conditions": [scheduled], "containerStatuses": [container]}


def revision_of(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][REVISION])


class Rollout:
    """A deployment that serves, and a change of its spec whose pods fail until a test says otherwise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.good = {revision_of(pod) for pod in world.api.all(PODS)}
        self.old = list(world.names())
        self.broken = crashed()
        self.healthy: set[str] = set()
        world.kubelet.engine = self._engine

    def _engine(self, pod: Manifest) -> Manifest:
        well = revision_of(pod) in self.good or pod["metadata"]["name"] in self.healthy
        return ready_status(pod) if well else self.broken

    @property
    def new(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.world.api.all(PODS) if revision_of(pod) not in self.good]

    @property
    def earlier(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.world.api.all(PODS) if revision_of(pod) in self.good]

    @property
    def held(self) -> bool:
        return self.world.conditions().get("Stalled") == ("True", "RevisionHeld")


async def begun(replicas: int = 1, spec: dict[str, Any] | None = None, **rollout: int) -> Rollout:
    """A rollout that has just begun."""
    world = await World().start()
    world.kubelet.place = True
    rules = {"progressDeadlineSeconds": DEADLINE, **rollout}
    world.api.put(QWENDEPLOYMENTS, deployment(**{"replicas": replicas, "rollout": rules, **(spec or {})}))
    await world.settle()
    it = Rollout(world)
    change(world, contextTokens=2048)
    return it


def back(world: World) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("contextTokens"))


async def test_a_revision_that_does_not_come_up_is_held_back_with_its_cause() -> None:
    it = await begun(2)
    world = it.world
    await world.wait(DEADLINE - 5)
    assert not it.held
    assert world.conditions()["Reconciling"][0] == "True"
    await world.wait(10)
    assert it.held
    assert "Reconciling" not in world.conditions()
    assert world.conditions()["Ready"] == ("True", "Serving")
    [failing] = it.new
    message = world.message("Stalled")
    assert f"{failing} does not answer after 60 s" in message
    assert "To go back, apply the earlier spec" in message
    assert f"To try again, delete the pod {failing}" in message
    assert "Cause: CudaOutOfMemory: " in message
    assert "no memory" in message

    await world.wait(3600)
    assert it.earlier == it.old
    assert it.new == [failing], "it stays, so that its log can be read"
    assert draining(world) == []
    told = [event for event in world.api.all(EVENTS) if event["reason"] == "RevisionHeld"]
    assert [event["type"] for event in told] == ["Warning"]
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (2, 2, "2/2")
    assert status["plan"]["hash"] in it.good
    assert status["plan"]["hash"] in world.message("Planned")


async def test_time_alone_brings_the_hold_and_then_nothing_is_written() -> None:
    it = await begun()
    await it.world.settle(DEADLINE + 60)
    assert it.held
    writes = len(it.world.api.writes)
    await it.world.operator.resync.once()
    await it.world.settle()
    await it.world.restart()
    await it.world.settle()
    assert it.world.api.writes[writes:] == []


async def test_a_pod_that_recovers_ends_the_hold_and_the_rollout_goes_on() -> None:
    it = await begun(2)
    await it.world.wait(DEADLINE + 10)
    assert it.held
    it.broken = ready_status({})
    await it.world.settle()
    assert len(it.new) == 2
    assert it.earlier == []
    assert "Stalled" not in it.world.conditions()
    assert "Reconciling" not in it.world.conditions()


@pytest.mark.parametrize("after", [20, DEADLINE + 10], ids=["before the hold", "held"])
async def test_the_earlier_spec_rolls_back_at_once(after: int) -> None:
    it = await begun(2)
    world = it.world
    await world.wait(after)
    assert it.held == (after > DEADLINE)
    pinned = world.names(CONTROLLER_REVISIONS)
    back(world)
    await world.wait(3)
    assert world.names() == it.old
    assert "Stalled" not in world.conditions()
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Reconciling" not in world.conditions()
    assert world.names(CONTROLLER_REVISIONS) == pinned


async def test_a_deleted_pod_of_the_held_revision_is_another_try() -> None:
    it = await begun()
    world = it.world
    await world.wait(DEADLINE + 10)
    [failing] = it.new
    world.api.remove(world.api.one(PODS, failing), PODS)
    await world.wait(10)
    assert not it.held
    assert it.new
    assert it.earlier == it.old
    await world.wait(DEADLINE)
    assert it.held


async def test_another_spec_is_tried_at_once_and_the_failed_pod_goes() -> None:
    it = await begun()
    await it.world.wait(DEADLINE + 10)
    [failing] = it.new
    change(it.world, contextTokens=1024)
    await it.world.wait(3)
    assert failing not in it.world.names()
    assert not it.held
    await it.world.wait(DEADLINE + 10)
    assert it.held
    assert it.earlier == it.old


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "kept"), [(3, 0, 1, 2), (4, 1, 2, 2), (3, 1, 1, 2), (4, 2, 0, 4)]
)
async def test_a_held_revision_takes_no_more_than_it_may(
    replicas: int, surge: int, unavailable: int, kept: int
) -> None:
    it = await begun(replicas, maxSurge=surge, maxUnavailable=unavailable)
    seen = watched(it.world)
    await it.world.wait(20 * DEADLINE)
    assert it.held
    assert it.world.conditions()["Ready"] == ("True", "Serving")
    assert seen.fewest == kept
    assert len(it.earlier) == kept
    assert len(it.new) == surge + unavailable
    assert it.world.qd()["status"]["summary"]["ready"] == f"{kept}/{replicas}"


async def test_of_a_revision_that_came_up_in_part_the_rest_is_held_back() -> None:
    it = await begun(4)
    await it.world.operator.step()
    it.healthy = set(it.new)
    await it.world.wait(DEADLINE + 30)
    assert it.held
    assert len(it.new) == 2
    assert len(it.earlier) == 3
    assert sum(serves(pod) for pod in it.world.api.all(PODS)) == 4
    assert it.world.qd()["status"]["summary"]["ready"] == "4/4"


async def test_fewer_replicas_are_fewer_of_the_held_revision_first() -> None:
    it = await begun(4, drainSeconds=20)
    await it.world.operator.step()
    it.healthy = set(it.new)
    await it.world.wait(DEADLINE + 30)
    assert it.held
    change(it.world, replicas=3)
    await it.world.settle()
    assert len(it.earlier) == 3
    assert not it.healthy & set(it.new)


async def test_a_replica_of_the_held_revision_that_still_starts_stays() -> None:
    it = await begun(2, maxSurge=2)
    await it.world.operator.step()
    starting = it.new[1]

    def engine(pod: Manifest) -> Manifest:
        if revision_of(pod) in it.good:
            return ready_status(pod)
        status = loading()
        if pod["metadata"]["name"] == starting:
            status["conditions"][0]["lastTransitionTime"] = it.world.api.clock.stamp(-5)
        return status

    it.world.kubelet.engine = engine
    await it.world.wait(DEADLINE + 10)
    assert it.held
    assert f"{it.new[0]} does not answer" in it.world.message("Stalled")
    assert starting in it.new


async def test_a_predecessor_that_still_drains_comes_back_when_its_successor_fails() -> None:
    it = await begun()
    [old] = it.old
    it.world.busy.add(old)
    it.broken = ready_status({})
    await it.world.wait(DEADLINE + 10)
    assert draining(it.world) == [old]
    it.broken = crashed(3)
    await it.world.wait(5)
    assert it.held
    assert draining(it.world) == []
    assert it.world.conditions()["Ready"] == ("True", "Serving")


@pytest.mark.parametrize("second", [1, 3])
async def test_of_two_earlier_revisions_the_one_with_most_replicas_runs(second: int) -> None:
    it = await begun(4)
    world = it.world
    [first] = it.good
    await world.operator.step()
    it.healthy = {f"{it.new[0][:-1]}{index}" for index in range(second)}
    world.busy |= set(it.old)
    [other] = {revision_of(pod) for pod in world.api.all(PODS)} - it.good
    await world.wait(DEADLINE - 5)
    it.good.add(other)
    serving = {pod["metadata"]["name"] for pod in world.api.all(PODS) if serves(pod)}
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] in serving else crashed()
    change(world, contextTokens=4096)
    await world.wait(DEADLINE + 610)
    assert it.held
    assert world.qd()["status"]["plan"]["hash"] == (first if second == 1 else other)


@pytest.mark.parametrize("which", ["earlier", "held"])
async def test_a_cordon_meanwhile_takes_no_replica_before_its_successor(which: str) -> None:
    it = await begun(3, maxSurge=2, maxUnavailable=1, drainSeconds=10)
    for name in ("gpu-2", "gpu-3", "gpu-4", "gpu-5", "gpu-6"):
        it.world.api.put(NODES, node(name))
    await it.world.operator.step()
    it.healthy = {it.new[0]}
    await it.world.wait(DEADLINE + 20)
    assert it.held
    assert it.world.qd()["status"]["summary"]["ready"] == "3/3"
    moved = it.earlier[0] if which == "earlier" else min(it.healthy)
    place = it.world.api.one(PODS, moved)["spec"]["nodeName"]
    assert which == "earlier" or place != "gpu-1"
    seen = watched(it.world)
    it.world.api.edit(NODES, place, lambda item: item["spec"].update(unschedulable=True))
    await it.world.settle(900)
    assert moved not in it.world.names()
    assert seen.fewest == 3
    assert len(it.earlier) == (2 if which == "earlier" else 3)


async def test_what_drains_when_the_revision_is_held_back_serves_again() -> None:
    it = await begun(2, maxSurge=1, maxUnavailable=1)
    it.world.busy |= set(it.old)
    await it.world.wait(20)
    assert len(draining(it.world)) == 1
    await it.world.wait(DEADLINE)
    assert it.held
    assert draining(it.world) == []
    assert it.world.qd()["status"]["summary"]["ready"] == "2/2"


async def test_a_lost_replica_is_replaced_by_one_of_the_earlier_revision() -> None:
    it = await begun(2)
    await it.world.wait(DEADLINE + 10)
    for lost in it.old:
        it.world.api.finish(it.world.api.one(PODS, lost), PODS)
    await it.world.settle()
    assert len(it.earlier) == 2
    assert it.held
    assert len(it.new) == 1
    assert it.world.conditions()["Ready"] == ("True", "Serving")
    assert it.world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]["minAvailable"] == 2


async def test_the_only_replica_of_the_earlier_revision_comes_back_after_its_loss_and_a_restart() -> None:
    it = await begun(1)
    await it.world.wait(DEADLINE + 10)
    it.world.api.finish(it.world.api.one(PODS, it.old[0]), PODS)
    await it.world.restart()
    await it.world.settle()
    assert it.earlier == it.old
    assert it.held
    assert it.world.conditions()["Ready"] == ("True", "Serving")


async def test_the_load_is_followed_with_the_earlier_revision() -> None:
    it = await begun(spec={"replicas": None, "scaling": {"minReplicas": 1, "maxReplicas": 4}})
    world = it.world
    await world.wait(DEADLINE + 10)
    assert it.held
    world.wanted = 3
    world.operator.intake.enqueue_all()
    await world.settle()
    assert (len(it.earlier), len(it.new)) == (3, 1)
    world.wanted = 1
    world.operator.intake.enqueue_all()
    await world.settle()
    assert (len(it.earlier), len(it.new)) == (1, 1)
    assert it.held


async def test_no_replicas_end_the_hold_and_a_later_start_is_a_first_one() -> None:
    it = await begun()
    await it.world.wait(DEADLINE + 10)
    change(it.world, replicas=0)
    await it.world.settle()
    assert it.world.names() == []
    assert it.world.conditions()["Ready"] == ("False", "Scaled")
    assert "Stalled" not in it.world.conditions()
    change(it.world, replicas=1)
    await it.world.wait(DEADLINE + 10)
    assert it.world.conditions()["Ready"] == ("False", "CudaOutOfMemory")
    assert not it.held


async def test_a_first_revision_is_not_held_back() -> None:
    world = await World().start()
    world.kubelet.engine = lambda _pod: crashed()
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"progressDeadlineSeconds": 10}))
    await world.wait(120)
    assert world.conditions()["Ready"] == ("False", "CudaOutOfMemory")
    assert "RevisionHeld" not in world.events()


async def test_more_replicas_of_a_revision_that_serves_are_not_held_back() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"progressDeadlineSeconds": 10}))
    await world.settle()
    first = world.names()
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] in first else unscheduled()
    change(world, replicas=2)
    await world.wait(1200)
    assert "Stalled" not in world.conditions()
    assert world.conditions()["ScalingLimited"] == ("True", "WaitingForGpus")


async def test_a_wrong_spec_while_a_revision_is_held_back_leaves_the_earlier_one_running() -> None:
    it = await begun()
    await it.world.wait(DEADLINE + 10)
    change(it.world, parallelism={"tensor": 3})
    await it.world.settle()
    assert it.world.names() == it.old
    assert it.world.conditions()["Stalled"] == ("True", "InvalidOverride")
    it.world.api.finish(it.world.api.one(PODS, it.old[0]), PODS)
    await it.world.settle()
    assert it.world.names() == it.old


async def test_a_cordoned_replica_of_the_earlier_revision_moves_while_another_is_held_back() -> None:
    it = await begun()
    world = it.world
    world.api.put(NODES, node("gpu-2"))
    await world.wait(DEADLINE + 10)
    assert it.held
    seen = watched(world)
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    await world.settle(900)
    assert seen.fewest == 1
    [moved] = it.earlier
    assert world.api.one(PODS, moved)["spec"]["nodeName"] == "gpu-2"
    assert it.held


async def test_the_earlier_revision_is_kept_however_many_specs_fail() -> None:
    it = await begun()
    for tokens in (1024, 1536, 3072, 4096):
        await it.world.wait(DEADLINE + 10)
        assert it.held
        change(it.world, contextTokens=tokens)
    await it.world.wait(DEADLINE + 10)
    it.world.api.finish(it.world.api.one(PODS, it.old[0]), PODS)
    await it.world.settle()
    assert it.earlier == it.old
    back(it.world)
    await it.world.settle()
    assert it.world.names() == it.old
    assert it.world.conditions()["Ready"] == ("True", "Serving")


# Since when a replica waits.


@dataclass(frozen=True)
class Age:
    """A replica of the new revision that was created 100 s ago, with a deadline of 60 s.

    `conditions`: (type, status, how many seconds ago). `started`: its engine has come up.
    """

    name: str
    late: bool
    conditions: tuple[tuple[str, str, int | None], ...] = ()
    started: bool = False


AGES = (
    Age("created long ago", True),
    Age("no node yet", True, (("PodScheduled", "False", 99),)),
    Age("a node for a moment", False, (("PodScheduled", "True", 30),)),
    Age("a node for long", True, (("PodScheduled", "True", 61),)),
    Age("a node, nobody knows since when", True, (("PodScheduled", "True", None),)),
    Age("a time in the future", False, (("PodScheduled", "True", -900),)),
    Age("not ready for a moment", False, (("PodScheduled", "True", 99), ("Ready", "False", 10)), started=True),
    Age("not ready for long", True, (("PodScheduled", "True", 99), ("Ready", "False", 70)), started=True),
    Age("not ready, nobody knows since when", False, (("Ready", "False", None),), started=True),
    Age("ready", False, (("Ready", "True", 90),), started=True),
)


@pytest.mark.parametrize("age", AGES, ids=lambda age: age.name)
async def test_since_when_a_replica_waits(age: Age) -> None:
    it = await begun(progressDeadlineSeconds=86400)
    world = it.world
    await world.wait(100)
    change(world, rollout={"progressDeadlineSeconds": DEADLINE})

    def stamped(kind: str, status: str, ago: int | None) -> Manifest:
        condition = {"type": kind, "status": status}
        return condition if ago is None else condition | {"lastTransitionTime": world.api.clock.stamp(-ago)}

    containers = [{"name": "engine", "state": {"running": {}}, "restartCount": 0, "started": age.started}]
    it.broken = {
        "phase": "Running",
        "conditions": [stamped(*one) for one in age.conditions],
        "containerStatuses": containers,
    }
    world.kubelet.step()
    await world.operator.step()
    await world.operator.step()
    assert it.held == age.late


async def test_a_pod_that_waits_for_the_drain_before_it_is_not_late() -> None:
    """A cluster without spare GPUs but one: each successor waits until the replica before it has drained."""
    world = await World().start()
    rules = {"progressDeadlineSeconds": DEADLINE, "drainSeconds": 100}
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=4, rollout=rules))
    await world.settle()
    with_gpus(world, 5)
    old = world.names()
    world.busy |= set(old)
    change(world, contextTokens=2048)
    await world.wait(1000)
    assert not set(old) & set(world.names())
    assert len(world.names()) == 4
    assert "RevisionHeld" not in world.events()


async def test_a_pod_that_waits_for_the_second_drain_is_not_late_while_others_come_up() -> None:
    """A cluster without any spare GPU: the surge finds no node before the last replica but one has drained."""
    world = await World().start()
    world.kubelet.place = False
    rules = {"progressDeadlineSeconds": DEADLINE, "drainSeconds": 100, "maxSurge": 1, "maxUnavailable": 1}
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=3, rollout=rules))
    await world.settle()
    with_gpus(world, 3)
    world.busy |= set(world.names())
    change(world, contextTokens=2048)
    await world.wait(1000)
    assert len(revisions(world)) == 1
    assert len(world.names()) == 3
    assert "RevisionHeld" not in world.events()


@pytest.mark.parametrize(
    ("startup", "deadline"), [(None, 600), (100, 600), (300, 600), (301, 602), (1000, 2000)], ids=str
)
async def test_the_default_deadline_follows_the_plan(startup: int | None, deadline: int) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    it = Rollout(world)
    change(world, engine={"startupSeconds": startup} if startup else {"args": ["--schedule-policy=lpm"]})
    await world.operator.step()
    world.api.clock.advance(deadline - 10)
    await world.wait(8)
    assert not it.held
    await world.wait(10)
    assert it.held
    assert f"after {deadline} s" in world.message("Stalled")
