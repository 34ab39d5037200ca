"""The loop: what reconcile is told and when, and that no fault of one deployment stops the others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.controller.autoscaler import (
    JITTER,
    LOOK_SECONDS,
    Autoscaler,
    Pace,
    Sources,
)
from qwen_operator.controller.in_hand import AT_ONCE, InHand
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling.demand import Demand, ModelDemand
from qwen_operator.scaling.pace import INTERVAL_SECONDS
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.removal import removal_order
from qwen_operator.scaling.types import Bounds, EnginePod, ScaledDeployment, ScalingState
from tests.unit.scaling.world import engine, engines, load, sample

KEY = ("team", "demo")
GONE = Trouble(Reason.METRICS_MISSING, "no answer within 1.5 s")


def reading(running: int = 0, queued: int = 0, beat: float = 0.0) -> Reading:
    return Reading(running, queued, running + queued, 0, 0, beat, ticking=True)


@dataclass
class World:
    """Engines that say what they are told to, and a clock that moves two seconds with every look."""

    fleets: list[ScaledDeployment]
    says: dict[str, Reading | Trouble | Exception] = field(default_factory=dict)
    changes: list[ObjectKey] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    now: float = 100.0
    demand: Demand = field(default_factory=lambda: Demand(ready=1, read=1))
    reads: Counter[str] = field(default_factory=Counter)
    """How often each engine was read, by uid."""
    takes: float = 0.0
    """Seconds that the clock moves while a page is read."""
    together: asyncio.Barrier | None = None
    """Engines answer when so many of them are asked at the same time."""

    def __post_init__(self) -> None:
        pace = Pace(clock=lambda: self.now, sleep=self._sleep, chance=lambda: 0.5)
        self.scaler = Autoscaler(Sources(lambda: self.fleets, self, self._demand), self.changes.append, pace)

    async def _demand(self) -> Demand:
        return self.demand

    async def read(self, engine: EnginePod) -> Reading | Trouble:
        self.reads[engine.uid] += 1
        self.now += self.takes
        if self.together:
            await self.together.wait()
        answer = self.says.get(engine.uid, reading())
        if isinstance(answer, Exception):
            raise answer
        # The scheduler of every engine is alive.
        return replace(answer, beat=self.now) if isinstance(answer, Reading) else answer

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if len(self.slept) == 3:
            raise KeyboardInterrupt

    async def looks(self, times: int = 1) -> None:
        for _ in range(times):
            await self.scaler.scrape()
            self.now += INTERVAL_SECONDS

    def published(self, key: ObjectKey = KEY, uid: str | None = None) -> ScalingState | None:
        return self.scaler.state(*key, uid or "/".join(key))

    def state(self, key: ObjectKey = KEY) -> tuple[int | None, Reason, str]:
        published = self.published(key)
        assert published is not None
        return published.wanted, published.reason, published.load


BOUNDS = Bounds(1, 8, 300.0)


def one(*members: EnginePod, bounds: Bounds | None = BOUNDS, key: ObjectKey = KEY) -> ScaledDeployment:
    return ScaledDeployment(key, "/".join(key), members, bounds)


async def test_load_in_the_metrics_is_a_decision_within_five_seconds() -> None:
    world = World([one(*engines(1))])
    await world.looks(5)
    began = world.now
    world.says["uid-0"] = reading(2, 4)
    while world.state()[0] == 1:
        await world.looks()
    assert world.now - INTERVAL_SECONDS - began <= INTERVAL_SECONDS
    assert world.state() == (3, Reason.SCALING_UP, "over")


async def test_reconcile_is_told_of_changes_only() -> None:
    world = World([one(*engines(1))])
    assert world.published() is None
    await world.looks()
    assert world.changes == [KEY]
    await world.looks(500)
    assert world.changes == [KEY], "an idle deployment costs nothing"
    for number in range(200):
        world.says["uid-0"] = reading(1 + number % 2)
        await world.looks()
    assert world.changes == [KEY, KEY], "requests come and go, the class of the load changed once"


@pytest.mark.parametrize("says", [reading(), reading(2), reading(2, 9), GONE], ids=["idle", "busy", "queue", "blind"])
async def test_a_restart_goes_on_from_what_the_status_shows(says: Reading | Trouble) -> None:
    """An operator that comes up tells nothing new while nothing is new, and nothing at all before it knows."""
    members = engines(1 if says == reading() else 3)
    before = World([one(*members, bounds=Bounds(1, 3, 300.0))], {member.uid: says for member in members})
    await before.looks(400)
    shown = before.published()
    after = World([replace(before.fleets[0], shown=shown)], before.says)
    await after.looks(20)
    assert after.changes == []
    assert after.published() == shown


@pytest.mark.parametrize(
    ("wanted", "members"),
    [(1, (engine(0), engine(1, ready=False))), (3, engines(2))],
    ids=["one is being replaced", "one was just evicted"],
)
async def test_a_restart_amid_a_replacement_changes_no_size(wanted: int, members: tuple[EnginePod, ...]) -> None:
    """A drain of a node takes the operator along, while pods are started beside those that they will replace."""
    shown = ScalingState(wanted, Reason.STEADY, "as it was", active=True, load="idle")
    world = World([replace(one(*members), shown=shown, size=wanted)])
    sizes = set()
    for _ in range(100):
        await world.looks()
        sizes.add(world.state()[0])
    assert sizes == {wanted}


async def test_handing_back_amid_a_replacement_keeps_the_size() -> None:
    """spec.replicas was 1 and is taken away while a pod is started beside the one on a cordoned node."""
    world = World([replace(one(engine(0, cordoned=True), engine(1, ready=False)), size=1)])
    world.says["uid-0"] = reading(1)
    await world.looks(3)
    assert world.state()[0] == 1


async def test_one_missed_look_after_a_restart_starts_no_replica() -> None:
    shown = ScalingState(3, Reason.STEADY, "as it was", active=True, load="high")
    world = World([replace(one(*engines(3)), shown=shown, size=3)])
    world.says |= {"uid-0": reading(2, 1), "uid-1": reading(2, 1), "uid-2": GONE}
    await world.looks(1)
    world.says |= {f"uid-{number}": reading(2) for number in range(3)}
    await world.looks(5)
    assert world.state()[0] == 3


async def test_a_draining_engine_that_cannot_be_read_holds_no_answer() -> None:
    """It may drain for a day, and a restarted operator would say for so long what was true before."""
    shown = ScalingState(2, Reason.STEADY, "as it was", active=True, load="high")
    members = (engine(0, draining=True), engine(1, ready=False), engine(2, ready=False))
    world = World([replace(one(*members), shown=shown)], {"uid-0": GONE})
    await world.looks(10)
    state = world.published()
    assert state is not None
    assert (state.reason, state.active, state.load) == (Reason.NOTHING_TO_MEASURE, False, "-")


async def test_the_numbers_told_are_those_of_the_decision() -> None:
    world = World([one(*engines(3))])
    world.says |= {f"uid-{number}": reading(2) for number in range(3)}
    await world.looks(3)
    before = world.published()
    world.says["uid-0"] = reading(1)
    await world.looks(3)
    assert world.published() == before


async def test_the_order_of_removal_follows_the_load_without_a_change() -> None:
    world = World([one(*engines(2, limit=9), bounds=None)])
    world.says |= {"uid-0": reading(1), "uid-1": reading(2)}
    await world.looks(2)
    before = len(world.changes)
    first = world.published()
    world.says |= {"uid-0": reading(2), "uid-1": reading(1)}
    await world.looks(2)
    second = world.published()
    assert first is not None
    assert second is not None
    assert (first.removal_order[0], second.removal_order[0]) == ("demo-12345678-0", "demo-12345678-1")
    assert len(world.changes) == before


async def test_without_scaling_only_the_load_is_told() -> None:
    world = World([one(*engines(1), bounds=None)])
    world.says["uid-0"] = reading(2, 9)
    await world.looks(3)
    assert world.state() == (None, Reason.NOT_CONFIGURED, "over")
    world.fleets = [one(*engines(1))]
    await world.looks(2)
    assert world.state()[0] == 6


async def test_blind_in_thirty_seconds_and_back() -> None:
    world = World([one(*engines(2))])
    world.says |= {"uid-0": reading(2), "uid-1": reading(2)}
    await world.looks(5)
    began = world.now
    world.says |= dict.fromkeys(("uid-0", "uid-1"), GONE)
    while world.state()[1] != Reason.METRICS_MISSING:
        await world.looks()
    assert world.now - INTERVAL_SECONDS - began <= 30
    assert world.state() == (2, Reason.METRICS_MISSING, "?")
    world.says.clear()
    await world.looks()
    assert world.state() == (2, Reason.STEADY, "idle")


async def test_draining_pods() -> None:
    world = World([one(engine(0), engine(1, draining=True), bounds=None)])
    world.says["uid-1"] = reading(1, 2)
    await world.looks(2)
    state = world.published()
    assert state is not None
    assert not state.idle
    assert state.unfinished == {"uid-1": 3}
    world.says["uid-1"] = reading()
    await world.looks(2)
    state = world.published()
    assert state is not None
    assert state.idle == {"uid-1"}
    assert state.unfinished == {"uid-1": 0}


async def test_a_fault_of_one_deployment_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    world = World([one(engine(1), key=("team", "bad")), one(engine(0))])
    world.says["uid-1"] = RuntimeError("boom")
    await world.looks(2)
    assert world.state() == (1, Reason.STEADY, "idle")
    assert world.published(("team", "bad")) is None
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "scaling step failed"
    ] * 2


async def test_a_recording_that_fails_keeps_no_decision_from_reconcile() -> None:
    world = World([one(*engines(1))])

    def broken(_looked: object) -> None:
        raise TypeError("no line of JSON")

    world.scaler = Autoscaler(
        Sources(lambda: world.fleets, world), world.changes.append, Pace(clock=lambda: world.now), on_look=broken
    )
    await world.looks(3)
    assert world.changes == [KEY]


async def test_one_line_per_decision_and_per_trouble(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World([one(*engines(1))])
    await world.looks(5)
    world.says["uid-0"] = reading(2, 4)
    await world.looks(10)
    world.says["uid-0"] = GONE
    await world.looks(10)
    world.says["uid-0"] = reading()
    await world.looks(3)
    lines = [(record.message, vars(record).get("replicas")) for record in caplog.records]
    decision, trouble = "scaling decision", "engine metrics cannot be read"
    assert lines == [(decision, 1), (decision, 3), (trouble, None), (decision, 3), (decision, 3)]
    assert vars(caplog.records[2])["pods"] == {"demo-12345678-0": "no answer within 1.5 s"}


async def test_numbers_that_stand_still_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Frozen(World):
        async def read(self, engine: EnginePod) -> Reading | Trouble:
            return reading(1)

    caplog.set_level(logging.INFO)
    world = Frozen([one(*engines(1))])
    await world.looks(12)
    assert world.state()[1] == Reason.METRICS_FROZEN
    assert vars(caplog.records[-2])["pods"] == {"demo-12345678-0": "MetricsFrozen"}


async def test_what_is_gone_is_forgotten_and_a_namesake_is_new() -> None:
    world = World([one(*engines(3))])
    world.says |= {f"uid-{number}": reading(2) for number in range(3)}
    await world.looks(5)
    world.fleets = [replace(one(*engines(1)), uid="another")]
    # It may be asked for before it was looked at.
    assert world.published(uid="another") is None
    await world.looks(2)
    state = world.published(uid="another")
    assert state is not None
    assert state.wanted == 1
    world.fleets = []
    await world.looks()
    assert world.published() is None
    assert (world.scaler.samples(), world.scaler.ages()) == ({}, {})


async def test_samples_and_ages_are_for_metrics() -> None:
    world = World([one(*engines(2)), one(key=("team", "empty"))])
    world.says["uid-0"] = reading(1, 2)
    await world.looks(2)
    assert [load.requests for load in world.scaler.samples()[KEY].engines] == [3, 0]
    world.says["uid-1"] = GONE
    await world.looks(4)
    assert world.scaler.ages() == {KEY: 10.0}
    world = World([one(*engines(1))], says={"uid-0": GONE})
    await world.looks(2)
    assert world.scaler.ages() == {KEY: 4.0}


async def test_the_loop_looks_every_two_seconds_and_ends_with_what_is_no_deployments_fault() -> None:
    world = World([one(*engines(1))])
    with pytest.raises(KeyboardInterrupt):
        await world.scaler.run()
    assert world.slept == pytest.approx([2.1, 2.1, 2.1])

    def broken() -> list[ScaledDeployment]:
        raise RuntimeError("the view is broken")

    view: Callable[[], list[ScaledDeployment]] = broken
    with pytest.raises(RuntimeError, match="view"):
        await Autoscaler(Sources(view, world), world.changes.append).run()


def test_the_first_to_go() -> None:
    fleet = (
        engine(0),
        engine(1),
        engine(2),
        engine(3, ready=False),
        engine(4, ready=False),
        engine(5, draining=True),
        engine(6),
        engine(7, pod="demo-12345678-extra"),
    )
    loads = [load(0, 1), load(1, 0, 0, 5), load(2, 0, 0, 5), load(5, 9), load(7, 0, 0, 1)]
    order = [name.rpartition("-")[2] for name in removal_order(fleet, sample(0.0, loads))]
    assert order == ["4", "3", "5", "extra", "2", "1", "0", "6"]


def sleeper(name: str, *members: EnginePod) -> ScaledDeployment:
    return replace(one(*members, bounds=Bounds(0, 3, 300.0, 60.0), key=("team", name)), names=(name,), size=0)


async def test_a_sleeper_wakes_within_a_second() -> None:
    world = World([sleeper("a"), sleeper("b"), one(*engines(1))])
    world.demand = Demand({"a": ModelDemand()}, ready=1, read=1)
    await world.looks()
    with pytest.raises(KeyboardInterrupt):
        await world.scaler.run()
    assert max(world.slept) <= LOOK_SECONDS + INTERVAL_SECONDS * JITTER, "it looks between two scrapes"
    changes = len(world.changes)
    world.demand = Demand({"a": ModelDemand(held=1)}, ready=1, read=1)
    await world.scaler.wake()
    assert world.changes[changes:] == [("team", "a")]
    assert world.state(("team", "a"))[:2] == (1, Reason.WAKING)
    assert world.state(("team", "b"))[:2] == (0, Reason.ASLEEP)


async def test_sleepers_with_slow_engines_wake_at_the_same_time() -> None:
    """An engine that drains is asked too, and one that hangs takes the whole time of a page."""
    world = World([sleeper(name, engine(number, draining=True)) for number, name in enumerate("abc")])
    await world.looks()
    world.together = asyncio.Barrier(3)
    world.demand = Demand({name: ModelDemand(held=1) for name in "abc"}, ready=1, read=1)
    async with asyncio.timeout(5):
        await world.scaler.wake()
    assert {world.state(("team", name))[1] for name in "abc"} == {Reason.WAKING}


SILENCE = Demand(ready=1, read=1, hears=True)
"""Nobody asks for anything."""


def named(name: str, *members: EnginePod) -> ScaledDeployment:
    return replace(one(*members, key=("team", name)), names=(name,))


async def test_idle_engines_are_read_less_often_and_the_first_request_is_seen_within_a_second() -> None:
    idle, busy = named("idle", engine(0)), named("busy", engine(1))
    world = World([idle, busy], {"uid-1": reading(1)}, demand=SILENCE)
    await world.looks(60)
    before = world.reads.copy()
    await world.looks(100)
    often, seldom = world.reads["uid-1"] - before["uid-1"], world.reads["uid-0"] - before["uid-0"]
    assert often == 100
    # The chance is always one half in this world, so it has its turn after 15 s.
    assert seldom == 13

    world.says["uid-0"] = reading(2, 4)
    world.demand = replace(SILENCE, models={"idle": ModelDemand(came=0.2)})
    await world.scaler.wake()
    assert world.state(idle.key)[0] == 1, "one look does not start a replica"
    world.now += LOOK_SECONDS
    await world.scaler.wake()
    assert world.state(idle.key) == (3, Reason.SCALING_UP, "over")


async def test_without_the_gateway_every_round_has_all_engines() -> None:
    world = World([named("idle", engine(0))], demand=SILENCE)
    await world.looks(60)
    before = world.reads["uid-0"]
    world.demand = replace(SILENCE, read=0)
    await world.looks(10)
    assert world.reads["uid-0"] == before + 10


async def test_a_change_of_what_was_idle_has_its_turn_at_once() -> None:
    world = World([named("idle", engine(0))], demand=SILENCE)
    await world.looks(60)
    changed = world.fleets[0]
    for change in (replace(changed, bounds=Bounds(2, 8, 300.0)), replace(changed, engines=engines(1, pending=1))):
        await world.looks(50)
        before, world.fleets = world.reads["uid-0"], [change]
        await world.scaler.scrape()
        assert world.reads["uid-0"] == before + 1


async def test_a_model_that_may_sleep_is_read_in_every_round() -> None:
    """It sleeps soon, and the time until then counts from look to look."""
    world = World([replace(named("a", engine(0)), bounds=Bounds(0, 3, 300.0, 600.0), size=1)], demand=SILENCE)
    await world.looks(100)
    assert world.reads["uid-0"] == 100


async def test_an_interval_that_grows_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World([one(*engines(1))], takes=10.0)

    async def rounds() -> None:
        world.slept.clear()
        with pytest.raises(KeyboardInterrupt):
            await world.scaler.run()

    await rounds()
    # What follows a long round leaves time for others.
    assert world.slept == pytest.approx([2.5] * 3)
    assert world.scaler.interval == pytest.approx(12.5)
    world.takes = 0.0
    await rounds()
    assert world.scaler.interval == pytest.approx(2.1)
    assert [record.message for record in caplog.records if "engines are read" in record.message] == [
        "engines are read every 12.5 s, because it takes so long to read all",
        "engines are read every 2.1 s again",
    ]


async def test_a_round_that_takes_long_lets_the_first_request_for_an_idle_model_through() -> None:
    others = [named(f"busy-{number}", engine(number)) for number in range(1, 6)]
    world = World([named("idle", engine(0)), *others], {f"uid-{number}": reading(1) for number in range(1, 6)})
    world.demand = SILENCE
    await world.looks(60)
    order: list[str] = []
    world.takes, asked = 1.0, world.read

    async def read(engine: EnginePod) -> Reading | Trouble:
        order.append(engine.uid)
        world.demand = replace(SILENCE, models={"idle": ModelDemand(came=0.0)})
        # A busy process reads one page after the other.
        return await asked(engine)

    world.read = read  # type: ignore[method-assign]
    world.scaler._in_hand = InHand(1)
    await world.scaler.scrape()
    assert order.index("uid-0") < len(order) - 1, "it did not wait for the end of the round"


async def quiet_fleet(number: int) -> World:
    """So many deployments whose turn is not soon."""
    world = World([named(f"m{index}", engine(index)) for index in range(number)], demand=SILENCE)
    await world.looks(60)
    await world.scaler.scrape()
    world.now += LOOK_SECONDS
    world.reads.clear()
    return world


@pytest.mark.parametrize(
    "demand",
    [replace(SILENCE, read=0), replace(SILENCE, models={f"m{index}": ModelDemand(came=0.1) for index in range(200)})],
    ids=["a gateway pod cannot be read", "somebody asks for all"],
)
async def test_many_quiet_deployments_wake_without_a_wave_of_reads(demand: Demand) -> None:
    world, now = await quiet_fleet(200), Counter[str]()
    most, asked = 0, world.read

    async def read(engine: EnginePod) -> Reading | Trouble:
        nonlocal most
        now[engine.uid] += 1
        most = max(most, now.total())
        await asyncio.sleep(0)
        now[engine.uid] -= 1
        return await asked(engine)

    world.read = read  # type: ignore[method-assign]
    world.demand = demand
    await world.scaler.wake()
    woken = world.reads.total()
    world.now += LOOK_SECONDS
    await world.scaler.scrape()
    assert most <= AT_ONCE
    assert woken == (0 if demand.read == 0 else 200)
    assert min(world.reads[f"uid-{index}"] for index in range(200)) >= 1, "each has its turn"


async def test_a_wave_of_requests_for_quiet_models_and_the_others_take_turns() -> None:
    quiet = [named(f"m{index}", engine(index)) for index in range(50)]
    busy = [named(f"busy-{index}", engine(100 + index)) for index in range(50)]
    world = World([*busy, *quiet], {f"uid-{100 + index}": reading(1) for index in range(50)}, demand=SILENCE)
    await world.looks(60)
    order: list[int] = []
    asked = world.read

    async def read(engine: EnginePod) -> Reading | Trouble:
        order.append(int(engine.uid.removeprefix("uid-")))
        world.now += LOOK_SECONDS if len(order) == 1 else 0.001
        world.demand = replace(SILENCE, models={f"m{index}": ModelDemand(came=0.0) for index in range(50)})
        return await asked(engine)

    world.read = read  # type: ignore[method-assign]
    world.scaler._in_hand = InHand(1)
    await world.scaler.scrape()
    assert sorted(set(order)) == [*range(50), *range(100, 150)]
    assert len(order) == 100, "nobody is read twice"
    assert 20 <= sum(number >= 100 for number in order[:50]) <= 30
