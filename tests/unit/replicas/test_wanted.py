"""How many replicas are wanted, and who decided it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.api.schedules import Schedule
from qwen_operator.api.spec import Scaling, Spec
from qwen_operator.replicas.wanted import (
    Decider,
    SizeRule,
    WantedReplicas,
    last_wanted,
    size_rule,
    wanted_replicas,
    written_size_rule,
)
from qwen_operator.scaling.types import Bounds, ScalingState

SCALING = Scaling(4, 2)
WRITER = ("kubectl", "2026-11-24T10:00:00Z")


def _state(wanted: int | None, reason: Reason = Reason.STEADY, active: bool = True) -> ScalingState:
    return ScalingState(wanted, reason, "as counted", active, load="low")


BY_LOAD = Spec("m", scaling=SCALING)
Case = tuple[Spec, ScalingState | None, int]
Answer = tuple[int, Reason, bool, str]
CASES: dict[str, tuple[Case, Answer]] = {
    "nothing said": ((Spec("m"), _state(None), 3), (1, Reason.NOT_CONFIGURED, False, "neither spec.scaling nor")),
    "a number": (
        (Spec("m", replicas=0), None, 3),
        (0, Reason.REPLICAS_SET, False, "spec.replicas is 0, set by kubectl at 2026-11-24T10:00:00Z"),
    ),
    "a number over the load": (
        (Spec("m", replicas=8, scaling=SCALING), _state(3), 3),
        (
            8,
            Reason.REPLICAS_SET,
            False,
            "only advises until you remove spec.replicas; spec.scaling would want 3: as counted",
        ),
    ),
    "the load": ((BY_LOAD, _state(3), 1), (3, Reason.STEADY, True, "as counted")),
    "bounds that were lowered since": ((BY_LOAD, _state(9), 1), (4, Reason.STEADY, True, "as counted")),
    "not measured": ((BY_LOAD, None, 3), (3, Reason.NOTHING_TO_MEASURE, False, "not measured the load yet")),
    "not measured, and new": (
        (BY_LOAD, _state(None), 0),
        (2, Reason.NOTHING_TO_MEASURE, False, "not measured the load yet"),
    ),
    "not measured, and may sleep": (
        (Spec("m", scaling=Scaling(4, 0)), None, 0),
        (0, Reason.ASLEEP, True, "the next request waits in the gateway and wakes it"),
    ),
    "not measured, may sleep, and runs": (
        (Spec("m", scaling=Scaling(4, 0)), None, 1),
        (1, Reason.NOTHING_TO_MEASURE, False, "not measured the load yet"),
    ),
    "advice from before the load decides": (
        (BY_LOAD, replace(_state(1), advises=True), 2),
        (2, Reason.NOTHING_TO_MEASURE, False, "not measured the load yet"),
    ),
    "advice": (
        (Spec("m", scaling=Scaling(4, mode="Advisory")), _state(3), 2),
        (2, Reason.ADVISORY, False, "the number of replicas stays; spec.scaling would want 3: as counted"),
    ),
    "advice for a new deployment": (
        (Spec("m", scaling=Scaling(4, 0, mode="Advisory")), None, 0),
        (1, Reason.ADVISORY, False, "the number of replicas stays"),
    ),
    "suspended": (
        (Spec("m", suspend=True, replicas=3, scaling=SCALING), _state(3), 3),
        (0, Reason.SUSPENDED, False, "spec.suspend is true"),
    ),
    "blind": ((BY_LOAD, _state(3, Reason.METRICS_FROZEN, False), 1), (3, Reason.METRICS_FROZEN, False, "as counted")),
}


def _wanted(spec: Spec, state: ScalingState | None, writer: tuple[str, str] | None, existing: int) -> WantedReplicas:
    return wanted_replicas(size_rule(spec.replicas, spec.scaling, suspend=spec.suspend), state, writer, existing)


@pytest.mark.parametrize(("case", "answer"), CASES.values(), ids=CASES.keys())
def test_who_decides(case: Case, answer: Answer) -> None:
    spec, state, existing = case
    number, reason, by_load, says = answer
    wanted = _wanted(spec, state, WRITER, existing)
    assert (wanted.number, wanted.reason, wanted.by_load) == (number, reason, by_load)
    assert says in wanted.message


def test_what_the_load_would_give_is_a_number_too() -> None:
    by_hand, advice = Spec("m", replicas=8, scaling=SCALING), Spec("m", scaling=Scaling(4, mode="Advisory"))
    assert [_wanted(spec, _state(3), None, 2).advised for spec in (by_hand, advice, BY_LOAD)] == [3, 3, None]
    assert _wanted(by_hand, None, None, 2).advised is None


def test_a_writer_that_is_not_known_is_not_named() -> None:
    message = _wanted(Spec("m", replicas=2), None, None, 0).message
    assert message == "spec.replicas is 2, set through the scale subresource (kubectl scale or an autoscaler)"


FAST = Objective(500, 250, 100, 99)
RULES: dict[str, tuple[dict[str, Any], SizeRule]] = {
    "nothing said": ({}, SizeRule(Decider.DEFAULT, 1, 1)),
    "a number": ({"replicas": 0}, SizeRule(Decider.SPEC_REPLICAS, 0, 0)),
    "by load": ({"scaling": {"maxReplicas": 4}}, SizeRule(Decider.LOAD, 1, 4, Bounds(1, 4, 300.0), True)),
    "by load with a policy": (
        {"scaling": {"maxReplicas": 4, "policy": "Objective"}},
        SizeRule(Decider.LOAD, 1, 4, Bounds(1, 4, 300.0), True, "Objective"),
    ),
    "by load with an objective": (
        {"scaling": {"maxReplicas": 4, "objective": {"timeToFirstTokenMilliseconds": 500}}},
        SizeRule(Decider.LOAD, 1, 4, Bounds(1, 4, 300.0, objective=FAST), True, objective=FAST),
    ),
    "an objective that nobody can promise": (
        {"scaling": {"maxReplicas": 4, "objective": {"attainmentPercent": 100}}},
        SizeRule(Decider.DEFAULT, 1, 1),
    ),
    "a policy that does not exist": (
        {"scaling": {"maxReplicas": 4, "policy": "Magic"}},
        SizeRule(Decider.DEFAULT, 1, 1),
    ),
    "from nothing": (
        {"scaling": {"maxReplicas": 4, "minReplicas": 0}},
        SizeRule(Decider.LOAD, 0, 4, Bounds(0, 4, 300.0, 600.0), True),
    ),
    "advice": (
        {"scaling": {"maxReplicas": 4, "minReplicas": 0, "mode": "Advisory"}},
        SizeRule(Decider.ADVISORY, 1, 4, Bounds(0, 4, 300.0, 600.0), True),
    ),
    "suspended": (
        {"scaling": {"maxReplicas": 4}, "replicas": 8, "suspend": True},
        SizeRule(Decider.SPEC_SUSPEND, 0, 0, scaling_configured=True),
    ),
    "by load from two": (
        {"scaling": {"minReplicas": 2, "maxReplicas": 2, "stabilizationSeconds": 9}},
        SizeRule(Decider.LOAD, 2, 2, Bounds(2, 2, 9.0), True),
    ),
    "a number over the load": (
        {"scaling": {"maxReplicas": 4}, "replicas": 8},
        SizeRule(Decider.SPEC_REPLICAS, 8, 8, Bounds(1, 4, 300.0), True),
    ),
    "an invalid number": ({"scaling": {"maxReplicas": 4}, "replicas": "x"}, SizeRule(Decider.DEFAULT, 1, 1)),
    "not a number": ({"replicas": True}, SizeRule(Decider.DEFAULT, 1, 1)),
    "bounds out of order": ({"scaling": {"minReplicas": 5, "maxReplicas": 4}}, SizeRule(Decider.DEFAULT, 1, 1)),
    "no object": ({"scaling": 5}, SizeRule(Decider.DEFAULT, 1, 1)),
}


@pytest.mark.parametrize(("spec", "rule"), RULES.values(), ids=RULES.keys())
def test_the_rule_of_a_spec_that_nobody_checked(spec: dict[str, Any], rule: SizeRule) -> None:
    assert written_size_rule({"spec": {"model": "m", **spec}}) == rule


@pytest.mark.parametrize("status", [{}, {"scaling": None}, {"scaling": {"wanted": "3"}}, {"scaling": {}}, None])
def test_a_status_without_a_number_says_none(status: Any) -> None:
    assert last_wanted({"status": status}) is None
    assert last_wanted({"status": {"scaling": {"wanted": 3}}}) == 3


def test_a_schedule_sets_the_bounds_while_it_is_in_force() -> None:
    noon, evening = (datetime(2026, 11, 24, hour, tzinfo=UTC) for hour in (12, 20))
    day = Schedule("day", "0 8 * * *", "0 19 * * *", min_replicas=3, max_replicas=5)
    scaling = Scaling(4, 0, schedules=(day,))
    by_day, by_night = (size_rule(None, scaling, now=now) for now in (noon, evening))
    assert [(rule.least, rule.most, rule.schedules) for rule in (by_day, by_night)] == [(3, 5, ("day",)), (0, 4, ())]
    assert (by_day.waits(noon), by_night.waits(evening)) == ((7 * 3600,), (12 * 3600,))
    assert by_night.bounds == Bounds(0, 4, 300.0, 600.0)

    wanted = wanted_replicas(by_day, _state(1), WRITER, 1)
    assert (wanted.number, wanted.schedules) == (3, ("day",))
    sets = "the schedule day sets minReplicas 3 and maxReplicas 5 until 2026-11-24T19:00:00Z"
    assert (wanted.message, wanted.explained) == ("as counted", f"as counted; {sets}")
    asleep = wanted_replicas(by_day, _state(0, Reason.ASLEEP), WRITER, 0)
    assert (asleep.number, asleep.reason) == (3, Reason.NOTHING_TO_MEASURE), "the schedule ended the sleep"
    fixed = size_rule(2, scaling, now=noon)
    assert fixed.waits(noon) == (7 * 3600,), "the advice changes"
    assert wanted_replicas(fixed, None, WRITER, 2).explained.endswith(f"; {sets}")
