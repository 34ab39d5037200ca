"""How often a status is written, what is counted as an error, and what ends a worker."""

from __future__ import annotations

from collections import Counter

import pytest

from qwen_operator.controller.worker import Worker
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Forbidden, Manifest
from qwen_operator.kube.lease import NotLeading
from qwen_operator.objects import ObjectKey
from tests.unit.fakes import Clock, FakeKube, Write
from tests.unit.world import World, deployment, node, ready_status

KEY = ("team", "chat")


def status_writes(world: World) -> int:
    return sum(write.verb == "status" for write in world.api.writes)


def in_words(world: World, reason: str) -> None:
    """The kubelet says why the pod's container does not run yet."""
    waiting = {"phase": "Pending", "containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": reason}}}]}
    pod = world.names()[0]
    world.api.edit(PODS, pod, lambda manifest: manifest["status"].update(waiting))


async def starting() -> World:
    """A world with one deployment whose pod does not move by itself."""
    world = World()
    world.kubelet.engine = lambda _pod: None
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.operator.step()
    assert status_writes(world) == 1, "the first status is written at once"
    return world


async def test_other_words_wait_five_seconds_and_are_then_written_once() -> None:
    world = await starting()
    for reason in ("ErrImagePull", "ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"):
        world.api.clock.advance(1)
        in_words(world, reason)
        await world.operator.step()
    assert status_writes(world) == 1
    world.api.clock.advance(1)
    await world.operator.step()
    assert status_writes(world) == 2
    assert world.conditions()["Ready"] == ("False", "ImagePullFailed")


async def test_other_words_after_a_quiet_time_are_written_at_once() -> None:
    world = await starting()
    world.api.clock.advance(5)
    in_words(world, "ErrImagePull")
    await world.operator.step()
    assert world.conditions()["Ready"] == ("False", "ImagePullFailed")


async def test_what_changes_the_substance_is_written_at_once() -> None:
    world = await starting()
    world.api.edit(PODS, world.names()[0], lambda pod: pod["status"].update(ready_status(pod)))
    await world.operator.step()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert status_writes(world) == 2


async def test_a_wall_clock_that_is_set_back_delays_nothing() -> None:
    world = await starting()
    world.api.clock.epoch = world.api.clock.epoch.replace(year=2025)
    in_words(world, "ErrImagePull")
    await world.operator.step()
    assert world.conditions()["Ready"] == ("False", "ImagePullFailed")


async def test_a_refusal_is_told_at_once_and_so_is_another() -> None:
    world = await World().start()
    says = "not today"

    def refuse(verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod":
            raise Forbidden(403, "Forbidden", says)

    world.api.admit = refuse
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.operator.step()
    assert "not today" in world.message("Ready")
    says = "not tomorrow"
    world.api.clock.advance(2)
    await world.operator.step()
    assert "not tomorrow" in world.message("Ready")


async def test_a_burst_costs_each_object_two_statuses() -> None:
    world = World()
    await world.start()
    world.api.put(NODES, node("gpu-2", gpus=64))
    for number in range(20):
        name = f"q{number}"
        world.api.put(QWENDEPLOYMENTS, deployment(name, servedNames=[name]))
    await world.settle()
    writes = Counter(write.verb for write in world.api.writes)
    assert all(world.conditions(f"q{number}")["Ready"] == ("True", "Serving") for number in range(20))
    assert writes["status"] == 40


async def test_every_written_status_is_told_with_the_one_before() -> None:
    world = World()
    told: list[tuple[ObjectKey, bool, str]] = []
    world.operator.worker.reconciler.on_status = lambda key, old, new: told.append(
        (key, bool(old), new["summary"]["status"])
    )
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert told == [(KEY, False, "Starting"), (KEY, True, "Serving")]


async def test_errors_are_counted_by_their_class() -> None:
    world = World(api=FakeKube(Clock()))
    await world.start()
    failed: list[str] = []
    operator = world.operator
    operator.worker = Worker(operator.queue, operator.worker.reconciler, lambda _outcome, _s: None, failed.append)

    def refuse(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod":
            raise Forbidden(403, "Forbidden", "no")

    world.api.admit = refuse
    world.api.put(QWENDEPLOYMENTS, deployment())
    await operator.step()
    assert failed == ["Forbidden"]


async def test_a_worker_that_leads_no_more_ends() -> None:
    world = World()
    await world.start()

    def lost(_number: int, _write: Write) -> None:
        raise NotLeading("taken by another")

    world.api.before = lost
    world.api.put(QWENDEPLOYMENTS, deployment())
    with pytest.raises(NotLeading):
        await world.operator.step()
    assert world.api.writes == []
