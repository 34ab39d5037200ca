"""How many requests kept the objective: from counters of engines to percentages of the last hour and day."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.objective import Objective
from qwen_operator.scaling import attainment
from qwen_operator.scaling.attainment import DAY, HOUR, SHOW_SECONDS, Attainment, Share
from qwen_operator.scaling.types import UNKNOWN, Answers, Attained, EngineLoad
from tests.unit.scaling.world import engine, load, sample

OBJECTIVE = Objective()
HOUR_SECONDS, DAY_SECONDS = 3600, 86400


class Watch:
    """Some engines with their counters, looked at as often as a test wants."""

    def __init__(self, shown: Attained = UNKNOWN) -> None:
        self.at = 1000.0
        self.objective = OBJECTIVE
        self.counters: dict[int, Answers | None] = {0: Answers()}
        self.memory: Attainment = attainment.begin(OBJECTIVE, self.at, shown)
        self.look(0)

    def look(self, seconds: float = 2.0) -> None:
        self.at += seconds
        loads = [replace(load(number), answers=answers) for number, answers in self.counters.items()]
        self.see(loads)

    def see(self, loads: list[EngineLoad]) -> None:
        pods = tuple(engine(number) for number in self.counters)
        self.memory = attainment.watch(self.memory, sample(self.at, loads), pods, self.objective)

    def serve(self, *numbers: int, number: int = 0, seconds: float = 2.0) -> None:
        """`numbers`: begun, soon, ended, fast."""
        before = self.counters.get(number)
        assert before is not None
        self.counters[number] = before + Answers(*numbers)
        self.look(seconds)

    def share(self, window: str = HOUR) -> Share | None:
        return attainment.shares(self.memory, self.at).get(window)


def test_both_limits_count_and_all_misses_as_different_requests() -> None:
    watch = Watch()
    watch.serve(1000, 995, 800, 792)
    share = watch.share()
    assert share == Share(1000, 0.995, 0.99)
    assert share is not None
    assert share.both == pytest.approx(0.985)
    assert watch.share(DAY) == share


PARTS: dict[str, tuple[Answers, Share | None]] = {
    "nothing": (Answers(), None),
    "embeddings have no output tokens": (Answers(10, 9), Share(10, 0.9, None)),
    "long answers end later": (Answers(0, 0, 4, 3), Share(4, None, 0.75)),
    "more misses than requests": (Answers(10, 2, 10, 3), Share(10, 0.2, 0.3)),
}


@pytest.mark.parametrize(("answers", "share"), PARTS.values(), ids=PARTS.keys())
def test_what_was_not_measured_is_not_shown(answers: Answers, share: Share | None) -> None:
    watch = Watch()
    watch.serve(answers.begun, answers.soon, answers.ended, answers.fast)
    assert watch.share() == share
    assert share is None or 0 <= share.both <= 1


def test_what_an_engine_did_before_it_was_seen_does_not_count() -> None:
    """Its warm-up, and what an earlier leader has counted."""
    watch = Watch()
    watch.counters[1] = Answers(500, 0, 500, 0)
    watch.look()
    assert watch.share() is None
    watch.serve(1, 1, 0, 0, number=1)
    assert watch.share() == Share(1, 1.0, None)


def test_a_restarted_engine_counts_from_zero() -> None:
    watch = Watch()
    watch.serve(100, 100, 100, 100)
    watch.counters[0] = Answers(2, 1, 1, 1)
    watch.look()
    assert watch.share() == Share(100, 1.0, 1.0)
    watch.serve(100, 0, 0, 0)
    assert watch.share() == Share(200, 0.5, 1.0)


def test_a_gap_in_the_scrapes_loses_nothing() -> None:
    watch = Watch()
    for missing in (None, Answers(7, 7, 7, 7)):
        watch.counters[0] = None
        watch.look(60)
        watch.counters[0] = missing or Answers(5, 5, 5, 5)
        watch.look()
    watch.at += 2
    watch.see([])
    watch.serve(3, 3, 3, 3)
    assert watch.share() == Share(10, 1.0, 1.0)


def test_an_engine_that_is_gone_is_forgotten_and_its_requests_are_not() -> None:
    watch = Watch()
    watch.serve(10, 5, 0, 0)
    watch.counters = {1: Answers()}
    watch.look()
    assert list(watch.memory.counters) == ["uid-1"]
    assert watch.share() == Share(10, 0.5, None)


def test_the_windows_move_on() -> None:
    watch = Watch()
    watch.serve(10, 0, 0, 0)
    watch.serve(10, 10, 0, 0, seconds=HOUR_SECONDS + 300)
    assert watch.share(HOUR) == Share(10, 1.0, None)
    assert watch.share(DAY) == Share(20, 0.5, None)
    watch.look(DAY_SECONDS + 1800)
    assert (watch.share(HOUR), watch.share(DAY)) == (None, None)


@pytest.mark.parametrize(
    ("change", "requests"),
    [
        ({"time_to_first_token_milliseconds": 4000}, None),
        ({"time_per_output_token_milliseconds": 50}, None),
        ({"attainment_percent": 95}, 10),
        ({"long_prompt_percent": 300}, 10),
    ],
)
def test_another_limit_begins_anew(change: dict[str, int], requests: int | None) -> None:
    watch = Watch()
    watch.serve(10, 10, 10, 10)
    watch.objective = Objective(**change)
    watch.look()
    share = watch.share()
    assert (share and share.requests) == requests


def test_the_status_changes_rarely_and_is_rounded_down() -> None:
    watch = Watch()
    watch.serve(1000, 989, 0, 0)
    assert watch.memory.shown == UNKNOWN
    watch.look(60)
    assert watch.memory.shown == Attained(98, 98)
    seen = set()
    for _ in range(int(SHOW_SECONDS / 2) - 1):
        watch.serve(1000, 1000, 0, 0)
        seen.add(watch.memory.shown)
    assert seen == {Attained(98, 98)}
    watch.look()
    assert watch.memory.shown == Attained(99, 99)


@pytest.mark.parametrize("kept", range(101))
def test_whole_percents_are_exact(kept: int) -> None:
    watch = Watch()
    watch.serve(100, kept, 0, 0, seconds=60)
    assert watch.memory.shown.hour == kept


def test_a_new_leader_keeps_what_the_status_shows_for_an_hour() -> None:
    watch = Watch(Attained(97, 99))
    for _ in range(59):
        watch.serve(10, 10, 10, 10, seconds=60)
        assert watch.memory.shown == Attained(97, 99)
    watch.look(60)
    assert watch.memory.shown == Attained(100, 100)


COUNTS = st.builds(Answers, *[st.integers(0, 10**15)] * 4)


@given(st.lists(st.tuples(COUNTS, st.integers(0, 3), st.floats(0, 9000)), max_size=50))
def test_whatever_engines_count_the_shares_stay_shares_and_the_memory_small(
    looks: list[tuple[Answers, int, float]],
) -> None:
    watch = Watch()
    for answers, number, seconds in looks:
        watch.counters[number] = answers
        watch.look(seconds)
        for share in attainment.shares(watch.memory, watch.at).values():
            assert 0 <= share.both <= 1
            assert share.requests > 0
    assert [len(watch.memory.steps.get(window, ())) <= most for window, most in ((HOUR, 13), (DAY, 49))] == [True, True]
