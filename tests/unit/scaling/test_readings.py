"""Overdue engines, schedulers that hang, and drained pods that are idle."""

from __future__ import annotations

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.readings import FROZEN_SECONDS, GRACE_SECONDS, Memory, idle, take_sample
from qwen_operator.scaling.types import EnginePod, Sample
from tests.unit.scaling.world import engine

STEP = 2.0
GONE = Trouble(Reason.METRICS_MISSING, "no answer within 1.5 s")


def reading(running: int = 0, queued: int = 0, beat: float = 0.0, ticking: bool = True) -> Reading:
    return Reading(running, queued, running + queued, 10, 100, beat, ticking)


class Look:
    """One engine, looked at every two seconds."""

    def __init__(self, watched: EnginePod | None = None) -> None:
        self.engine = watched or engine(0)
        self.memories: dict[str, Memory] = {}
        self.at = 0.0

    def __call__(self, result: Reading | Trouble) -> Sample:
        self.memories, sample = take_sample(self.memories, (self.engine,), {self.engine.uid: result}, self.at)
        self.at += STEP
        return sample

    @property
    def idle(self) -> frozenset[str]:
        return idle(self.memories, (self.engine,), self.at - STEP)


def test_the_last_numbers_count_until_an_engine_is_overdue() -> None:
    look = Look()
    look(reading(3))
    samples = [look(GONE) for _ in range(int(GRACE_SECONDS / STEP))]
    assert [[load.running for load in one.engines] for one in samples] == [[3], [3], [3], [3], []]
    assert [dict(one.problems) for one in samples[-2:]] == [{}, {"demo-12345678-0": Reason.METRICS_MISSING}]
    assert [load.running for load in look(reading(1, beat=1.0)).engines] == [1]


RUNNING = {
    # requests inside, those that wait, the limit -> running
    "all parts of the stages run": (7, 2, 8, 5),
    "never more than the limit": (30, 2, 8, 8),
    "no limit is known": (7, 2, 0, 5),
    "never less than what is reported": (3, 3, 8, 3),
}


@pytest.mark.parametrize(("inside", "queued", "limit", "running"), RUNNING.values(), ids=RUNNING.keys())
def test_with_stages_the_requests_of_all_of_them_run(inside: int, queued: int, limit: int, running: int) -> None:
    page = Reading(3, queued, inside, 10, 100, 0.0, True)
    for stages, shown in ((1, 3), (2, running)):
        look = Look(engine(0, limit=limit, stages=stages))
        assert [one.running for one in look(page).engines] == [shown]


def test_one_look_that_fails_is_not_enough_however_long_ago_the_last_was() -> None:
    look = Look()
    look(reading(3))
    look.at += 3 * GRACE_SECONDS
    first, second = look(GONE), look(GONE)
    assert [one.running for one in first.engines] == [3]
    assert not first.problems
    assert second.problems == {"demo-12345678-0": Reason.METRICS_MISSING}


def test_an_engine_that_was_never_read_is_given_time_too() -> None:
    look = Look()
    samples = [look(Trouble(Reason.METRICS_UNAUTHORIZED, "401")) for _ in range(6)]
    assert [len(one.engines) + len(one.problems) for one in samples] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("ticking", "running"), [(True, 0), (True, 2), (False, 2)])
def test_a_scheduler_that_shows_no_life_is_frozen_and_recovers(ticking: bool, running: int) -> None:
    look = Look()
    samples = [look(reading(running, beat=7.0, ticking=ticking)) for _ in range(11)]
    assert [bool(one.problems) for one in samples] == [False] * 10 + [True]
    assert samples[-1].at == FROZEN_SECONDS
    assert samples[-1].problems == {"demo-12345678-0": Reason.METRICS_FROZEN}
    assert samples[-1].engines == ()
    assert not look(reading(running, beat=8.0, ticking=ticking)).problems


def test_an_old_engine_without_ticks_may_rest() -> None:
    look = Look()
    assert not any(look(reading(0, beat=7.0, ticking=False)).problems for _ in range(100))


def test_a_restarted_container_is_alive() -> None:
    look = Look()
    assert not any(look(reading(1, beat=float(100 - number))).problems for number in range(50))


def test_a_pod_that_is_not_looked_at_is_forgotten() -> None:
    look = Look()
    look(reading())
    memories, sample = take_sample(look.memories, (engine(0, ready=False),), {}, 2.0)
    assert (memories, sample.engines) == ({}, ())


IDLE: dict[str, tuple[list[Reading | Trouble], bool]] = {
    "one look": ([reading(beat=1)], False),
    "two looks": ([reading(beat=1), reading(beat=2)], True),
    "a request between": ([reading(beat=1), reading(0, 1, beat=2), reading(beat=3)], False),
    "after a request": ([reading(1, beat=1), reading(beat=2), reading(beat=3)], True),
    "a look that failed": ([reading(beat=1), GONE, reading(beat=3)], False),
    "only failed looks": ([GONE, GONE], False),
    "numbers that stand still": ([reading()] * 20, False),
}


@pytest.mark.parametrize(("results", "is_idle"), IDLE.values(), ids=IDLE.keys())
def test_a_draining_pod_is_idle_after_two_looks(results: list[Reading | Trouble], is_idle: bool) -> None:
    look = Look(engine(0, draining=True))
    for result in results:
        look(result)
    assert look.idle == ({"uid-0"} if is_idle else set())


def test_a_request_that_only_the_http_server_knows_keeps_a_draining_pod() -> None:
    look = Look(engine(0, draining=True))
    for beat in (1.0, 2.0, 3.0):
        look(Reading(0, 0, 1, 0, 100, beat, ticking=True))
    assert look.idle == frozenset()


def test_only_draining_pods_are_called_idle_and_they_are_no_problem() -> None:
    look = Look()
    assert [look(reading(beat=beat)) for beat in (1.0, 2.0, 3.0)]
    assert look.idle == frozenset()
    draining = Look(engine(0, draining=True))
    assert not any(draining(GONE).problems for _ in range(20))
    assert idle({}, (engine(1, draining=True),), 0.0) == frozenset()
