"""The rule, replayed: what it says of one look, and what it does over time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.answers import existing
from qwen_operator.scaling.policy import measure
from qwen_operator.scaling.sizes import LARGEST_NEED
from qwen_operator.scaling.types import Bounds, EngineLoad, EnginePod
from tests.unit.scaling.world import TOKENS, Replay, engine, engines, load, sample

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
WINDOW = 300.0


MEASURES: dict[str, tuple[tuple[EnginePod, ...], tuple[EngineLoad, ...], int]] = {
    "nothing": (engines(1), (load(0),), 0),
    "one runs": (engines(1), (load(0, 1),), 1),
    "full but nobody waits": (engines(1), (load(0, 2),), 1),
    "four wait": (engines(1), (load(0, 2, 4),), 3),
    "over two replicas": (engines(2), (load(0, 2, 1), load(1, 2)), 3),
    "a draining one's requests are load": ((engine(0), engine(1, draining=True)), (load(0, 2), load(1, 1)), 2),
    "tokens at the target": (engines(1, limit=0), (load(0, 9, used=6000),), 1),
    "tokens above it": (engines(1, limit=0), (load(0, 9, used=6001),), 2),
    "waiting requests bring tokens": (engines(1, limit=0), (load(0, 2, 4, used=6000),), 3),
    "one long request needs one replica": (engines(1, limit=0), (load(0, 1, used=9999),), 1),
    "the smallest cache counts": (engines(2, limit=0), (load(0, 9, used=6000), load(1, 9, 0, 6000, 20000)), 2),
    "no cache known": (engines(1, limit=0), (load(0, 9, used=0, capacity=0),), 1),
    "no limit, some wait": (engines(1, limit=0), (load(0, 40, 20),), 2),
    "a guess at most doubles": (engines(2, limit=0), (load(0, 1, 30), load(1)), 4),
    "the fuller engine shows what runs at once": (engines(2, limit=0), (load(0, 1, 3), load(1, 30)), 2),
    "all wait, nothing runs": (engines(1, limit=0), (load(0, 0, 5),), 1),
    "thousands wait": (engines(1), (load(0, 2, 5000),), LARGEST_NEED),
}


@pytest.mark.parametrize(("fleet", "loads", "wanted"), MEASURES.values(), ids=MEASURES.keys())
def test_the_size_that_one_look_calls_for(
    fleet: tuple[EnginePod, ...], loads: tuple[EngineLoad, ...], wanted: int
) -> None:
    assert measure(sample(0.0, loads), fleet).replicas == wanted


def test_it_grows_to_the_size_needed_with_the_second_look() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    replay.looks(3, engines(1), [load(0)])
    assert replay.look(engines(1), [load(0, 2, 4)]).replicas == 1
    decision = replay.look(engines(1), [load(0, 2, 4)])
    assert (decision.replicas, decision.reason, decision.active) == (3, Reason.SCALING_UP, True)
    assert decision.message == "4 queued + 2 running, 2 run at once per replica: 3 replicas wanted"


def test_replicas_that_start_are_counted() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    replay.looks(5, engines(1), [load(0, 2, 4)])
    decision = replay.looks(50, engines(1, pending=2), [load(0, 2, 4)])
    assert (decision.replicas, decision.reason) == (3, Reason.SCALING_UP)


def test_a_request_that_waits_in_one_look_only_starts_nothing() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    sizes = {replay.look(engines(1), [load(0, 2, 1 - number % 2)]).replicas for number in range(100)}
    assert sizes == {1}


def test_it_shrinks_to_the_highest_need_of_the_window_and_not_before_its_end() -> None:
    replay = Replay(Bounds(1, 8, 60.0), step=1.0)
    replay.looks(10, engines(1), [load(0, 2, 4)])
    fleet, low, lower = engines(3), [load(0, 2), load(1, 1), load(2)], [load(0, 1), load(1), load(2)]
    assert replay.looks(30, fleet, low).replicas == 3
    assert replay.looks(29, fleet, lower).replicas == 3
    # The last look with a need of three was 60 s ago, the last one with two 30 s.
    decision = replay.looks(1, fleet, lower)
    assert (decision.replicas, decision.reason) == (2, Reason.SCALING_DOWN)
    assert "3 running, 2 run at once per replica: 2 replicas wanted, the most within 60 s" in decision.message
    assert replay.looks(30, engines(2), lower[:2]).replicas == 1


def test_a_replica_that_is_replaced_because_of_its_node_is_no_change_of_size() -> None:
    replay = Replay(Bounds(1, 8, 60.0), step=1.0)
    replay.looks(10, (engine(0, cordoned=True),), [load(0, 1)])
    both = (engine(0, cordoned=True), engine(1))
    decision = replay.looks(10, both, [load(0, 1), load(1)])
    assert (decision.replicas, decision.reason) == (1, Reason.STEADY)


def test_a_window_of_nothing_follows_the_load() -> None:
    replay = Replay(Bounds(1, 8, 0.0))
    replay.looks(10, engines(1), [load(0)])
    assert [replay.look(engines(1), [load(0, 2, 2)]).replicas for _ in range(2)] == [1, 2]
    assert replay.look(engines(2), [load(0, 2), load(1)]).replicas == 1


BLIND: dict[Reason, str] = {
    Reason.METRICS_MISSING: "do not answer",
    Reason.METRICS_UNAUTHORIZED: "HTTP 401",
    Reason.METRICS_FROZEN: "do not change",
    Reason.METRICS_INVALID: "without the load",
}


@pytest.mark.parametrize(("reason", "says"), BLIND.items())
@pytest.mark.parametrize("window", [0.0, WINDOW])
def test_nothing_shrinks_while_the_load_is_not_known(reason: Reason, says: str, window: float) -> None:
    replay = Replay(Bounds(1, 8, window))
    replay.looks(10, engines(3), [load(0, 2), load(1, 2), load(2, 2)])
    fleet, problems = engines(3), {f"demo-12345678-{number}": reason for number in range(3)}
    for _ in range(500):
        decision = replay.look(fleet, [], problems)
    assert (decision.replicas, decision.reason, decision.active) == (3, reason, False)
    assert says in decision.message
    assert "3 of 3 engine pods" in decision.message
    assert replay.look(fleet, [load(number) for number in range(3)]).active


def test_an_engine_that_cannot_be_read_counts_as_busy() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    replay.looks(3, engines(2), [load(0, 2), load(1, 2)])
    problems = {"demo-12345678-1": Reason.METRICS_MISSING}
    for _ in range(3):
        decision = replay.look(engines(2), [load(0, 2, 2)], problems)
    assert (decision.replicas, decision.active) == (3, False)
    assert decision.message == (
        "1 of 2 engine pods do not answer /metrics on port 8000; they count as busy, and the operator does not "
        "scale down: 3 replicas"
    )


def test_the_commonest_problem_is_named_and_the_others_counted() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    problems = dict.fromkeys(("a", "b"), Reason.METRICS_MISSING) | {"c": Reason.METRICS_FROZEN}
    decision = replay.look(engines(3), [], problems)
    assert decision.reason == Reason.METRICS_MISSING
    assert "2 of 3" in decision.message
    assert "1 more cannot be read either" in decision.message


def test_a_new_engine_that_was_not_read_yet_is_no_reason_to_shrink() -> None:
    replay = Replay(Bounds(1, 8, 0.0))
    replay.looks(10, engines(2), [load(0, 2), load(1, 2)])
    decision = replay.look(engines(2), [load(0)])
    assert (decision.replicas, decision.active) == (2, True)


def test_a_new_engine_that_missed_one_look_is_no_reason_to_grow() -> None:
    replay = Replay(Bounds(1, 8, 300.0))
    replay.looks(3, engines(1), [load(0, 2, 2)])
    assert replay.look(engines(2), [load(0, 2, 2)]).replicas == 2


def test_a_hold_is_followed_by_a_whole_window() -> None:
    replay = Replay(Bounds(1, 8, 60.0), step=1.0)
    replay.looks(100, engines(2), [load(0, 2), load(1, 1)])
    for _ in range(100):
        replay.look(engines(2), [], {"demo-12345678-0": Reason.METRICS_MISSING})
    decision = replay.looks(59, engines(2), [load(0), load(1)])
    assert decision.replicas == 2
    assert decision.message == (
        "2 replicas kept while the load was unknown; the operator removes none until it has measured the load for 60 s"
    )
    assert replay.look(engines(2), [load(0), load(1)]).replicas == 1


@pytest.mark.parametrize(("window", "held"), [(60.0, 60), (0.0, 10)])
def test_a_restart_keeps_what_it_finds_until_a_window_has_passed(window: float, held: int) -> None:
    replay = Replay(Bounds(1, 8, window), step=1.0)
    idle = [load(0), load(1), load(2)]
    decision = replay.looks(held, engines(3), idle)
    assert (decision.replicas, decision.reason) == (3, Reason.STEADY)
    assert "3 replicas at the first scrape" in decision.message
    assert replay.look(engines(3), idle).replicas == 1


def test_two_revisions_of_a_replica_are_one() -> None:
    old = engine(0)
    fleet = (old, EnginePod("demo-87654321-0", "uid-new", ready=False), engine(1, draining=True))
    assert existing(fleet) == 1
    assert Replay(Bounds(1, 8, WINDOW)).look(fleet, [load(0)]).replicas == 1


def test_nothing_is_decided_while_nobody_answers() -> None:
    replay = Replay(Bounds(2, 8, WINDOW))
    decision = replay.look((), [])
    assert (decision.replicas, decision.reason, decision.active) == (2, Reason.NOTHING_TO_MEASURE, False)
    replay = Replay(Bounds(1, 8, WINDOW))
    replay.looks(10, engines(1), [load(0, 2, 4)])
    for _ in range(1000):
        decision = replay.look(engines(0, pending=3))
    assert decision.replicas == 3


BOUNDS: dict[str, tuple[Bounds, tuple[EngineLoad, ...], int, Reason, str]] = {
    "at the least": (Bounds(2, 8, 10.0), (load(0), load(1)), 2, Reason.STEADY, "minReplicas is 2"),
    "at the most": (Bounds(1, 2, 10.0), (load(0, 2, 2), load(1, 2)), 2, Reason.AT_MAXIMUM, "maxReplicas is 2"),
    "between": (Bounds(1, 3, 10.0), (load(0, 2), load(1, 1)), 2, Reason.STEADY, "2 replicas wanted"),
    "by tokens": (
        Bounds(1, 3, 10.0),
        (load(0, 1, used=6000), load(1, 1, used=6000)),
        2,
        Reason.STEADY,
        "0 queued + 2 running with 12000 KV tokens, 6000 per replica (60% of its cache): 2 replicas wanted",
    ),
}


@pytest.mark.parametrize(("bounds", "loads", "wanted", "reason", "says"), BOUNDS.values(), ids=BOUNDS.keys())
def test_the_bounds_and_what_is_said(
    bounds: Bounds, loads: tuple[EngineLoad, ...], wanted: int, reason: Reason, says: str
) -> None:
    decision = Replay(bounds).looks(20, engines(2), list(loads))
    assert (decision.replicas, decision.reason) == (wanted, reason)
    assert says in decision.message


def test_what_is_said_without_a_limit() -> None:
    replay = Replay(Bounds(1, 8, WINDOW))
    decision = replay.looks(3, engines(1, limit=0), [load(0, 40, 20)])
    assert "20 queued + 40 running, 40 ran at once per replica while others waited: 2" in decision.message
    assert (
        Replay(Bounds(1, 8, 0.0))
        .looks(9, engines(1, limit=0), [load(0, 1)])
        .message.startswith("0 queued + 1 running: 1 replica wanted")
    )


LOADS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, TOKENS)), min_size=1, max_size=5)
LIMITS = st.sampled_from([0, 1, 2, 7])


def _loads(numbers: list[tuple[int, int, int]]) -> list[EngineLoad]:
    return [load(index, *one) for index, one in enumerate(numbers)]


@UNHURRIED
@given(
    st.lists(st.tuples(LOADS, st.sets(st.integers(0, 4)), st.integers(0, 2)), max_size=40),
    st.integers(1, 5),
    st.integers(0, 5),
    st.sampled_from([0.0, 10.0, 300.0]),
)
def test_it_never_leaves_the_bounds_and_remembers_little(
    looks: list[tuple[list[tuple[int, int, int]], set[int], int]], least: int, more: int, window: float
) -> None:
    replay = Replay(Bounds(least, least + more, window))
    for numbers, unreadable, pending in looks:
        loads = [one for index, one in enumerate(_loads(numbers)) if index not in unreadable]
        problems = {f"demo-12345678-{index}": Reason.METRICS_MISSING for index in unreadable}
        decision = replay.look(engines(len(numbers), pending), loads, problems)
        assert least <= decision.replicas <= least + more
        assert replay.history is not None
        peaks = [peak.size for peak in replay.history.peaks]
        assert peaks == sorted(set(peaks), reverse=True)


@UNHURRIED
@given(LOADS, st.integers(0, 4), st.integers(0, 5), LIMITS)
def test_more_that_wait_never_need_fewer(
    numbers: list[tuple[int, int, int]], where: int, more: int, limit: int
) -> None:
    fleet, where = engines(len(numbers), limit=limit), where % len(numbers)
    more_numbers = list(numbers)
    running, queued, used = numbers[where]
    more_numbers[where] = (running, queued + more, used)
    before = measure(sample(0.0, _loads(numbers)), fleet).replicas
    assert measure(sample(0.0, _loads(more_numbers)), fleet).replicas >= before


@UNHURRIED
@given(LOADS, st.integers(0, 4), st.integers(0, 5), st.integers(1, 7))
def test_more_that_run_never_need_fewer_under_a_limit(
    numbers: list[tuple[int, int, int]], where: int, more: int, limit: int
) -> None:
    fleet, where = engines(len(numbers), limit=limit), where % len(numbers)
    running, queued, used = numbers[where]
    more_numbers = [*numbers[:where], (running + more, queued, used + more * TOKENS), *numbers[where + 1 :]]
    before = measure(sample(0.0, _loads(numbers)), fleet).replicas
    assert measure(sample(0.0, _loads(more_numbers)), fleet).replicas >= before


@UNHURRIED
@given(LOADS, LIMITS, st.sampled_from([0.0, 10.0, 300.0]))
def test_a_constant_load_settles_and_stays(numbers: list[tuple[int, int, int]], limit: int, window: float) -> None:
    replay = Replay(Bounds(1, 50, window))
    fleet, loads = engines(len(numbers), limit=limit), _loads(numbers)
    replay.looks(200, fleet, loads)
    assert len({(replay.look(fleet, loads).replicas) for _ in range(50)}) == 1


@UNHURRIED
@given(st.lists(LOADS, min_size=1, max_size=10), st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1))
def test_missing_metrics_never_shrink(looks: list[list[tuple[int, int, int]]], missing: list[set[int]]) -> None:
    replay = Replay(Bounds(1, 50, 0.0))
    for numbers in looks:
        decision = replay.look(engines(5), _loads([*numbers, *[(0, 0, 0)] * 5][:5]))
    for unreadable in missing:
        loads = [load(index) for index in range(5) if index not in unreadable]
        problems = {f"demo-12345678-{index}": Reason.METRICS_FROZEN for index in unreadable}
        before, decision = decision, replay.look(engines(5), loads, problems)
        assert decision.replicas >= before.replicas
