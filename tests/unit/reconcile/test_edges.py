"""Stale views, objects that cannot be handled, loops that never end: nothing of it spreads or runs hot."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from qwen_operator.controller.queue import FREE_STEPS
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, Manifest, Unavailable
from tests.unit.fakes import Write
from tests.unit.world import World, deployment, edit_image

CLAIM: dict[str, Any] = {"source": {"uri": "pvc://weights/chat"}, "model": "local"}


def _scale(world: World, replicas: int) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=replicas))


def _stays(_pod: Manifest) -> None:
    return None


async def _served(replicas: int = 2) -> World:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas))
    await world.settle()
    return world


async def test_a_pod_that_is_gone_already_counts_as_deleted() -> None:
    world = await _served()
    gone = world.api.one(PODS, world.names()[1])
    world.api.finish(gone, PODS)
    world.api.journal.pop()
    _scale(world, 1)
    await world.settle()
    assert len(world.names()) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_while_the_watch_lags_no_write_is_made_twice() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    world.operator.deliver()
    world.operator.lagging = True
    await world.operator.step()
    writes = len(world.api.writes)
    assert len(world.names()) == 2
    world.operator.intake.enqueue_all()
    await world.operator.step()
    assert len(world.api.writes) == writes
    assert world.operator.outcomes["stale"] == 0

    world.operator.lagging = False
    await world.settle()
    _scale(world, 1)
    world.operator.deliver()
    world.operator.lagging = True
    await world.operator.step()
    world.operator.intake.enqueue_all()
    await world.operator.step()
    assert sum(write.verb == "patch" and write.resource == PODS for write in world.api.writes) == 1


async def test_pods_of_a_revision_that_never_served_go_at_once() -> None:
    world = await World().start()
    world.kubelet.engine = _stays
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2, contextTokens=1024))
    await world.settle()
    old = world.names()
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048))
    await world.settle()
    assert len(world.names()) == 2
    assert not set(world.names()) & set(old)


async def test_a_pod_that_is_started_beside_another_is_not_one_more_replica() -> None:
    world = await _served(2)
    seen: list[tuple[int, int]] = []

    def after(_number: int, write: Write) -> None:
        if write.verb == "status":
            status = world.qd()["status"]
            seen.append((status["replicas"], status["readyReplicas"]))

    world.api.after = after
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048))
    await world.settle()
    assert seen
    assert set(seen) == {(2, 2)}


async def test_nothing_is_made_for_a_deployment_that_is_being_deleted_nor_repaired_in_a_pod_that_is() -> None:
    world = await _served(2)
    first, second = world.names()
    writes = len(world.api.writes)

    def ending(item: Manifest) -> None:
        item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def edited(item: Manifest) -> None:
        ending(item)
        item["metadata"]["labels"]["qwen-operator.dev/role"] = "mine"

    world.api.edit(PODS, second, edited)
    await world.operator.step()
    # Its place is filled at once, under the next free name; it itself is left alone.
    assert [write.verb for write in world.api.writes[writes:]] == ["create", "status"]
    assert world.names() == [first, second, f"{first[:-1]}2"]
    world.api.edit(QWENDEPLOYMENTS, "chat", ending)
    world.api.finish(world.api.one(PODS, first), PODS)
    await world.settle()
    assert world.names() == [f"{first[:-1]}2"]
    assert [write.verb for write in world.api.writes[writes:]] == ["create", "status"]


async def test_a_deletion_never_hits_the_successor_of_what_was_seen() -> None:
    world = await _served()
    name = world.names()[1]
    old = world.api.one(PODS, name)
    world.api.finish(old, PODS)
    del world.api.journal[-1]
    stranger = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "team"}, "spec": {}}
    world.api.put(PODS, stranger)
    del world.api.journal[-1]
    _scale(world, 1)
    await world.settle()
    assert world.operator.outcomes["stale"] == 1
    assert name in world.names(), "it belongs to somebody else"
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_status_that_cannot_be_written_is_tried_again_and_pods_exist_meanwhile() -> None:
    world = await World().start()
    down = [True]

    def before(_number: int, write: Write) -> None:
        if down and write.verb == "status":
            raise Unavailable(503, "ServiceUnavailable", "scripted")

    world.api.before = before
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(20)
    assert len(world.names()) == 1
    assert "status" not in world.qd()
    down.clear()
    await world.wait(61)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_an_object_that_the_program_cannot_handle_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await World().start()
    observe = world.operator.worker.reconciler.observer.observe

    def broken(key: tuple[str, str]) -> Any:
        if key[1] == "bad":
            raise ZeroDivisionError("a bug")
        return observe(key)

    monkeypatch.setattr(world.operator.worker.reconciler.observer, "observe", broken)
    world.api.put(QWENDEPLOYMENTS, deployment("bad", servedNames=["bad"]))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert 2 <= world.operator.outcomes["crash"] <= 6
    assert "ZeroDivisionError" in caplog.text


async def test_a_repair_that_somebody_undoes_for_ever_is_slowed_down() -> None:
    world = await _served(1)
    pod = world.names()[0]

    def undo() -> None:
        world.api.edit(PODS, pod, lambda item: item["metadata"]["labels"].update({"qwen-operator.dev/role": "mine"}))

    undo()
    writes = len(world.api.writes)
    world.api.after = lambda _number, write: undo() if write.verb == "patch" else None
    # The echo of every edit asks for another repair: without a brake this would never end.
    for _ in range(120):
        world.operator.deliver()
        key = world.operator.queue.take()
        if key is not None:
            await world.operator.worker.work(key)
        world.api.clock.advance(0.1)
    repairs = sum(write.verb == "patch" for write in world.api.writes[writes:])
    assert FREE_STEPS <= repairs <= FREE_STEPS + 4


@pytest.mark.parametrize("left", [False, True], ids=["foreign", "leftover"])
async def test_an_inspection_pod_of_somebody_else_is_left_alone(left: bool) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
    await world.operator.step()
    name = world.names()[0]

    def foreign(item: Manifest) -> None:
        owner = {"kind": "QwenDeployment", "name": "chat", "uid": "earlier", "controller": True}
        item["metadata"] |= {"ownerReferences": [owner] if left else [], "annotations": {}}

    world.api.edit(PODS, name, foreign)
    await world.operator.step()
    reason = "Inspecting" if left else "ForeignObject"
    assert world.conditions()["Ready"] == ("False", reason)
    assert name in world.names()


async def test_a_spec_that_changes_while_it_is_inspected_leaves_no_inspection_behind() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
    await world.operator.step()
    first = world.names()[0]
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source={"uri": "pvc://other/chat"}))
    await world.operator.step()
    assert first not in world.names()
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_two_revisions_at_once_are_both_repaired() -> None:
    world = await _served(1)
    old = world.names()[0]
    world.kubelet.engine = _stays
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048))
    await world.settle()
    assert len(world.names()) == 2
    assert world.conditions()["Reconciling"][0] == "True"
    world.api.edit(PODS, old, edit_image)
    await world.settle()
    assert world.api.one(PODS, old)["spec"]["containers"][0]["image"] != "evil:1"


async def test_a_revision_that_lost_its_label_is_known_by_its_name() -> None:
    world = await _served(1)
    name = world.names(CONTROLLER_REVISIONS)[0]
    world.api.edit(
        CONTROLLER_REVISIONS, name, lambda item: item["metadata"]["labels"].pop("qwen-operator.dev/revision")
    )
    pods = world.names()
    await world.settle()
    assert world.names() == pods
    assert world.api.one(CONTROLLER_REVISIONS, name)["metadata"]["labels"]["qwen-operator.dev/revision"] == name[-8:]


async def test_the_resync_goes_on_after_a_failure_and_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World().start()
    waited: list[float] = []

    def timeout(seconds: float) -> contextlib.AbstractAsyncContextManager[Any]:
        waited.append(round(seconds))
        if len(waited) == 5:
            raise asyncio.CancelledError
        return real_timeout(0)

    fails = [None, Unavailable(0, "NoAnswer", "down"), Unavailable(0, "NoAnswer", "down")]
    once, real_timeout = world.operator.resync.once, asyncio.timeout

    async def flaky() -> None:
        if error := fails.pop(0) if fails else None:
            raise error
        await once()

    monkeypatch.setattr(asyncio, "timeout", timeout)
    monkeypatch.setattr(type(world.operator.resync), "once", lambda _self: flaky())
    with pytest.raises(asyncio.CancelledError):
        await world.operator.resync.run()
    assert waited == [300, 300, 2, 4, 300]


async def test_a_watch_that_begins_anew_has_everything_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is deleted while the watch is down is missed by the watch: kopf tells only what is there."""
    monkeypatch.setattr("qwen_operator.controller.resync.SETTLE_SECONDS", 0.01)
    world = await _served(1)
    gone = world.names()[0]
    world.api.finish(world.api.one(PODS, gone), PODS)
    world.operator.miss()
    resync = world.operator.resync
    running = asyncio.create_task(resync.run())
    await asyncio.sleep(0.05)
    assert world.operator.store.get(PODS, ("team", gone)) is not None
    resync.request()
    await asyncio.sleep(0.1)
    running.cancel()
    assert world.operator.store.get(PODS, ("team", gone)) is None
