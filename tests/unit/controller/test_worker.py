"""How often a status is written, what is counted as an error, and what ends a worker."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import pytest

from qwen_operator.config.types import Config
from qwen_operator.controller import worker
from qwen_operator.controller.worker import CRASHES_SHOWN, Worker
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Forbidden, Manifest
from qwen_operator.kube.lease import NotLeading
from qwen_operator.objects import ObjectKey
from qwen_operator.reconcile.decide import decide
from qwen_operator.reconcile.types import Decision, Observed
from tests.unit.fakes import Clock, FakeKube, Write
from tests.unit.world import World, deployment, node, ready_status, settled

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
    reported: list[tuple[ObjectKey, bool, str]] = []
    world.operator.worker.reconciler.on_status = lambda key, old, new: reported.append(
        (key, bool(old), new["summary"]["status"])
    )
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert reported == [(KEY, False, "Starting"), (KEY, True, "Serving")]


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


class Faulty:
    """A decide that fails for one object while `error` is set."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._name = name
        self.error: Exception | None = None
        monkeypatch.setattr(worker, "decide", self)

    def __call__(self, observed: Observed, config: Config, now: datetime) -> Decision:
        if self.error is not None and observed.deployment["metadata"]["name"] == self._name:
            raise self.error
        return decide(observed, config, now)


async def crash(world: World, times: int) -> None:
    """Let the reconcile of `chat` be repeated this many times."""
    for _ in range(times):
        world.operator.queue.add(KEY)
        await world.operator.step()


async def test_crashes_in_a_row_are_in_the_status_until_it_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty("chat", monkeypatch)
    world = await settled(deployment())
    before, before_conditions = world.qd()["status"], world.conditions()
    faulty.error = KeyError("tenant's own text")
    await crash(world, CRASHES_SHOWN - 1)
    assert world.qd()["status"] == before, "one crash may be over at once"
    writes = status_writes(world)
    await crash(world, 1)
    after = world.qd()["status"]
    assert world.conditions() == {**before_conditions, "Stalled": ("True", "OperatorError")}
    assert world.message("Stalled") == "the operator cannot handle this object: KeyError; report it"
    assert {part: value for part, value in after.items() if part != "conditions"} == {
        part: value for part, value in before.items() if part != "conditions"
    }
    faulty.error = ValueError()
    await crash(world, 5)
    assert status_writes(world) == writes + 1, "it is written once, whatever the next error is"
    faulty.error = None
    await crash(world, 1)
    assert world.qd()["status"] == before


async def test_crashes_with_others_between_them_are_not_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty("chat", monkeypatch)
    world = await settled(deployment())
    for _ in range(2):
        faulty.error = KeyError()
        await crash(world, CRASHES_SHOWN - 1)
        faulty.error = None
        await crash(world, 1)
    assert "Stalled" not in world.conditions()


async def test_an_object_that_never_had_a_status_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty("chat", monkeypatch)
    faulty.error = RecursionError()
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    world.api.put(QWENDEPLOYMENTS, deployment("other", servedNames=["other"]))
    await world.settle()
    assert world.conditions()["Ready"] == ("Unknown", "OperatorError")
    assert world.conditions()["Stalled"] == ("True", "OperatorError")
    assert world.qd()["status"]["summary"]["status"] == "OperatorError"
    assert world.conditions("other")["Ready"] == ("True", "Serving")
    faulty.error = None
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Stalled" not in world.conditions()


async def test_a_status_that_cannot_be_written_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty("chat", monkeypatch)
    world = await settled(deployment())
    faulty.error = KeyError()

    async def refused(*_: object, **_more: object) -> Manifest:
        raise Forbidden(403, "Forbidden", "not today")

    with monkeypatch.context() as patch:
        patch.setattr(world.api, "apply_status", refused)
        await crash(world, CRASHES_SHOWN + 1)
    assert "Stalled" not in world.conditions()
    await crash(world, 1)
    assert world.conditions()["Stalled"] == ("True", "OperatorError")
