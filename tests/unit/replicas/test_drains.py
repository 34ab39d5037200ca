"""Planned removal: unrouted, waited for, deleted; and brought back when load returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from qwen_operator.kube import EVENTS, PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.fakes import Write
from tests.unit.world import World, change, deployment, ready_status

ROUTABLE = "qwen-operator.dev/routable"
SINCE = "qwen-operator.dev/draining-since"
REASON = "qwen-operator.dev/drain-reason"


async def served(replicas: int = 2, **spec: Any) -> World:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas, **spec))
    await world.settle()
    return world


async def scaled(wanted: int, **spec: Any) -> World:
    """As many replicas as the load asks for."""
    world = await World().start()
    world.wanted = wanted
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"minReplicas": 1, "maxReplicas": 6}, **spec))
    await world.settle()
    return world


def load(world: World, wanted: int | None) -> None:
    world.wanted = wanted
    world.operator.intake.enqueue_all()


def look(world: World) -> None:
    world.operator.intake.enqueue_all()


def draining(world: World) -> list[str]:
    """The indices of the pods on their way out."""
    return [
        name.rsplit("-", 1)[1]
        for pod in world.api.all(PODS)
        if SINCE in pod["metadata"]["annotations"] and ROUTABLE not in pod["metadata"]["labels"]
        for name in [pod["metadata"]["name"]]
    ]


def word(world: World) -> str:
    return str(world.qd()["status"]["summary"]["status"])


def deletions(world: World) -> list[Write]:
    return [write for write in world.api.writes if write.verb == "delete" and write.resource == PODS]


async def test_a_replica_that_goes_is_unrouted_waited_for_and_deleted() -> None:
    world = await served(2)
    victim = world.names()[1]
    world.busy.add(victim)
    change(world, replicas=1)
    await world.wait(60)

    pod = world.api.one(PODS, victim)
    assert ROUTABLE not in pod["metadata"]["labels"]
    assert pod["metadata"]["annotations"][REASON] == "ScaledDown"
    assert deletions(world) == []
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (1, 1, "1/1")
    assert word(world) == "Draining"
    assert f"{victim} gets no new requests" in status["summary"]["message"]
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Reconciling" not in world.conditions()

    world.busy.clear()
    look(world)
    await world.settle()
    assert world.names() == [name for name in world.names() if name != victim]
    assert word(world) == "Serving"
    assert "DrainTimedOut" not in world.events()


async def test_idle_is_not_believed_before_the_gateway_had_time_to_see_it() -> None:
    world = await served(2)
    change(world, replicas=1)
    await world.wait(5)
    assert draining(world) == ["1"]
    assert deletions(world) == []
    await world.wait(3)
    assert len(deletions(world)) == 1


async def test_without_news_of_the_load_a_drain_lasts_its_whole_time() -> None:
    world = await served(2, rollout={"drainSeconds": 60})
    world.blind = True
    change(world, replicas=1)
    await world.wait(59)
    assert draining(world) == ["1"]
    await world.wait(5)
    assert len(world.names()) == 1


async def test_what_works_on_when_the_time_is_over_is_cut_and_told() -> None:
    world = await served(2, rollout={"drainSeconds": 30})
    world.busy |= set(world.names())
    change(world, replicas=1)
    await world.wait(29)
    assert draining(world) == ["1"]
    await world.wait(5)
    assert len(world.names()) == 1
    assert world.events()["DrainTimedOut"] == 1
    [warning] = [event for event in world.api.all(EVENTS) if event["reason"] == "DrainTimedOut"]
    assert warning["type"] == "Warning"
    assert "the operator deletes it and cuts 2 requests; set spec.rollout.drainSeconds" in warning["message"]


async def test_a_longer_time_holds_for_drains_that_have_begun() -> None:
    world = await served(2, rollout={"drainSeconds": 30})
    world.busy |= set(world.names())
    change(world, replicas=1)
    await world.wait(20)
    change(world, rollout={"drainSeconds": 60})
    await world.wait(30)
    assert draining(world) == ["1"]
    await world.wait(15)
    assert len(world.names()) == 1


@pytest.mark.parametrize("late", [False, True], ids=["never came up", "stopped answering"])
async def test_what_does_not_answer_is_not_waited_for(late: bool) -> None:
    world = await served(2)
    victim = world.names()[1]
    world.busy.add(victim)
    if late:
        change(world, replicas=1)
        await world.wait(10)
        assert draining(world) == ["1"]
    broken = ready_status({})
    broken["conditions"][1]["status"] = "False"
    world.kubelet.engine = lambda pod: broken if pod["metadata"]["name"] == victim else ready_status(pod)
    await world.wait(2)
    if not late:
        change(world, replicas=1)
    await world.wait(3)
    assert victim not in world.names()
    writes = [write.verb for write in world.api.writes if write.name == victim]
    assert writes == (["create", "patch", "delete"] if late else ["create", "delete"])


async def test_load_that_returns_brings_a_draining_replica_back() -> None:
    world = await scaled(3)
    names = world.names()
    world.busy |= set(names)
    load(world, 1)
    await world.wait(10)
    assert draining(world) == ["1", "2"]
    writes = len(world.api.writes)
    world.order = (names[2], names[1], names[0])
    load(world, 2)
    await world.wait(2)

    # The one that would go last comes back; nothing is created.
    assert draining(world) == ["2"]
    assert [write.verb for write in world.api.writes[writes:] if write.resource == PODS] == ["patch"]
    back = world.api.one(PODS, names[1])["metadata"]
    assert back["labels"][ROUTABLE] == "true"
    assert not {SINCE, REASON} & set(back["annotations"])

    load(world, 4)
    await world.settle()
    assert draining(world) == []
    assert [name[-1] for name in world.names()] == ["0", "1", "2", "3"]


async def test_the_policy_names_who_goes_but_what_does_not_answer_goes_first() -> None:
    world = await scaled(4)
    names = world.names()
    broken = ready_status({})
    broken["conditions"][1]["status"] = "False"
    world.kubelet.engine = lambda pod: broken if pod["metadata"]["name"] == names[3] else ready_status(pod)
    await world.wait(2)
    world.busy |= set(names)
    world.order = (names[0], names[2], names[1], names[3])
    load(world, 2)
    await world.wait(2)
    assert draining(world) == ["0"]
    assert names[3] not in world.names()


async def test_gaps_are_filled_from_below_and_nobody_is_moved_for_them() -> None:
    world = await scaled(3)
    names = world.names()
    world.order = (names[0],)
    load(world, 2)
    await world.settle()
    assert world.names() == names[1:]
    load(world, 4)
    await world.settle()
    assert [name[-1] for name in world.names()] == ["0", "1", "2", "3"]


async def test_a_pod_that_was_brought_back_meanwhile_is_not_deleted() -> None:
    world = await served(2)
    victim = world.names()[1]
    world.busy.add(victim)
    change(world, replicas=1)
    await world.wait(10)
    assert draining(world) == ["1"]
    world.operator.lagging = True
    world.api.edit(PODS, victim, lambda pod: pod["metadata"]["labels"].update({ROUTABLE: "true"}))
    world.busy.clear()
    look(world)
    key = world.operator.queue.take()
    assert key is not None
    await world.operator.worker.work(key)
    assert world.operator.outcomes["stale"] == 1
    assert "deletionTimestamp" not in world.api.one(PODS, victim)["metadata"]


@pytest.mark.parametrize("since", ["yesterday", "2099-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
async def test_an_edited_drain_is_put_right(since: str) -> None:
    world = await served(2)
    victim = world.names()[1]
    world.busy.add(victim)
    change(world, replicas=1)
    await world.wait(3)
    world.api.edit(PODS, victim, lambda pod: pod["metadata"]["labels"].update({ROUTABLE: "true"}))
    await world.wait(2)
    assert draining(world) == ["1"]

    # Nobody knows any more since when it drains: its time is over.
    world.api.edit(PODS, victim, lambda pod: pod["metadata"]["annotations"].update({SINCE: since}))
    await world.wait(3)
    assert not world.operator.outcomes["crash"]
    assert victim not in world.names()


async def test_a_pod_that_was_edited_can_be_put_right_and_unrouted_in_one_step() -> None:
    world = await served(2)
    victim = world.names()[1]
    world.busy.add(victim)
    change(world, replicas=1)
    world.api.edit(PODS, victim, lambda pod: pod["metadata"]["labels"].update({"app.kubernetes.io/name": "mine"}))
    await world.wait(4)
    assert world.operator.outcomes["stale"] == 0
    labels = world.api.one(PODS, victim)["metadata"]["labels"]
    assert (labels["app.kubernetes.io/name"], ROUTABLE in labels) == ("sglang", False)


async def test_a_label_that_somebody_takes_away_is_no_drain() -> None:
    world = await served(1)
    world.api.edit(PODS, world.names()[0], lambda pod: pod["metadata"]["labels"].pop(ROUTABLE))
    await world.settle()
    assert world.api.one(PODS, world.names()[0])["metadata"]["labels"][ROUTABLE] == "true"


async def test_the_old_pod_of_a_rollout_drains_after_the_new_one_answers() -> None:
    world = await served(1)
    [old] = world.names()
    world.busy.add(old)
    change(world, contextTokens=2048)
    await world.wait(30)
    [new] = [name for name in world.names() if name != old]
    assert world.api.one(PODS, old)["metadata"]["annotations"][REASON] == "Replaced"
    assert ROUTABLE in world.api.one(PODS, new)["metadata"]["labels"]
    assert world.conditions()["Reconciling"] == ("True", "Replacing")
    assert world.conditions()["Ready"] == ("True", "Serving")
    # The spec is taken back before it is gone: it is there at once.
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("contextTokens"))
    await world.wait(2)
    assert ROUTABLE in world.api.one(PODS, old)["metadata"]["labels"]
    world.busy.clear()
    await world.settle()
    assert world.names() == [old]


async def test_a_drain_never_hits_another_state_than_the_one_that_was_seen() -> None:
    world = await served(2)
    victim = world.names()[1]
    world.operator.lagging = True
    change(world, replicas=1)
    world.operator.lagging = False
    world.operator.deliver()
    world.operator.lagging = True
    world.api.edit(PODS, victim, lambda pod: pod["metadata"]["labels"].update(seen="later"))
    await world.operator.step()
    assert world.operator.outcomes["stale"] == 1
    world.operator.lagging = False
    await world.settle()
    assert len(world.names()) == 1


@dataclass(frozen=True)
class Size:
    spec: dict[str, Any]
    load: int | None
    wanted: int
    reason: str


@pytest.mark.parametrize(
    "case",
    [
        Size({}, None, 1, "NotConfigured"),
        Size({}, 5, 1, "NotConfigured"),
        Size({"replicas": 2}, 5, 2, "ReplicasSet"),
        Size({"replicas": 2, "scaling": {"maxReplicas": 4}}, 3, 2, "ReplicasSet"),
        Size({"scaling": {"maxReplicas": 4}}, 3, 3, "Steady"),
        Size({"scaling": {"maxReplicas": 2}}, 3, 2, "Steady"),
        Size({"scaling": {"minReplicas": 2, "maxReplicas": 4}}, 1, 2, "Steady"),
        Size({"scaling": {"minReplicas": 2, "maxReplicas": 4}}, None, 2, "NothingToMeasure"),
    ],
    ids=str,
)
async def test_who_decides_about_the_number_of_replicas(case: Size) -> None:
    world = await World().start()
    world.wanted = case.load
    world.api.put(QWENDEPLOYMENTS, deployment(**case.spec))
    await world.settle()
    assert len(world.names()) == case.wanted
    assert world.qd()["status"]["scaling"]["wanted"] == case.wanted
    assert world.conditions()["ScalingActive"][1] == case.reason


async def test_another_number_of_replicas_is_told_once_with_its_cause() -> None:
    world = await scaled(1)
    assert not {"ScaledUp", "ScaledDown"} & set(world.events())
    load(world, 3)
    await world.settle()
    load(world, 2)
    await world.settle()
    await world.restart()
    await world.settle()
    events = [event for event in world.api.all(EVENTS) if event["reason"] in ("ScaledUp", "ScaledDown")]
    assert {event["message"] for event in events} == {"1 -> 3: as the test says", "3 -> 2: as the test says"}
    assert len(events) == 2


async def test_removing_replicas_hands_back_from_the_present_size() -> None:
    world = await scaled(2)
    change(world, replicas=4)
    await world.settle()
    assert len(world.names()) == 4
    load(world, None)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("replicas"))
    await world.settle()
    assert len(world.names()) == 4
    load(world, 3)
    await world.settle()
    assert len(world.names()) == 3


async def test_who_set_the_number_and_since_when_is_shown() -> None:
    world = await served(2)

    def scale(item: Manifest) -> None:
        item["spec"]["replicas"] = 3
        owned: Manifest = {"f:spec": {"f:replicas": {}}}
        entry = {"manager": "kubectl", "subresource": "scale", "time": "2026-01-01T00:05:00Z", "fieldsV1": owned}
        item["metadata"]["managedFields"] = [entry]

    world.api.edit(QWENDEPLOYMENTS, "chat", scale)
    await world.settle()
    assert "set by kubectl at 2026-01-01T00:05:00Z" in world.message("ScalingActive")


async def test_a_manifest_that_is_applied_again_and_again_writes_nothing() -> None:
    world = await served(2)
    fields: Manifest = {"f:spec": {"f:replicas": {}, "f:model": {}}}
    writes = len(world.api.writes)
    for second in range(12):

        def applied(item: Manifest, second: int = second) -> None:
            other = {
                "manager": "gitops",
                "time": f"2026-01-01T01:00:{second:02}Z",
                "fieldsV1": {"f:spec": {"f:model": {}}},
            }
            item["metadata"]["managedFields"] = [
                {"manager": "kubectl", "subresource": "scale", "time": "2026-01-01T00:00:00Z", "fieldsV1": fields},
                other,
            ]

        world.api.edit(QWENDEPLOYMENTS, "chat", applied)
        await world.wait(5)
    # Once, because somebody is known now.
    assert [write.verb for write in world.api.writes[writes:]] == ["status"]


async def test_idle_is_not_believed_before_five_whole_seconds() -> None:
    world = await served(2)
    # Stamps are cut to whole seconds.
    world.api.clock.advance(0.9)
    change(world, replicas=1)
    await world.operator.step()
    for seconds, deleted in ((4.2, 0), (2.0, 1)):
        world.api.clock.advance(seconds)
        world.operator.intake.enqueue_all()
        await world.operator.step()
        assert len(deletions(world)) == deleted
