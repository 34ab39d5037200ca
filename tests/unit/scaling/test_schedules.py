"""Which schedules are in force, and until when, across weekends, overlaps and changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.api.schedules import Schedule, cron_fault
from qwen_operator.api.spec import Scaling
from qwen_operator.scaling import schedules
from qwen_operator.scaling.schedules import Limits, limits

OFFICE = Schedule("office", "0 8 * * MON-FRI", "0 19 * * MON-FRI", "UTC", 3, 8)
NIGHT = Schedule("night", "0 22 * * *", "0 6 * * *", "UTC", min_replicas=0)
LUNCH = Schedule("lunch", "0 12 * * *", "0 14 * * *", "UTC", 5, 6)
BERLIN = Schedule("berlin", "30 2 * * *", "30 3 * * *", "Europe/Berlin", 2)
JUBILEE = Schedule("jubilee", "0 0 29 2 *", "0 0 1 3 *", "UTC", 2)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# 2026-11-23 is a Monday. The clocks of Berlin go back at 2026-10-25T01:00 UTC, and forward at 2026-03-29T01:00 UTC.
CASES: dict[str, tuple[tuple[Schedule, ...], str, Limits]] = {
    "no schedule": ((), "2026-11-23T08:00", Limits(1, 4)),
    "before": ((OFFICE,), "2026-11-23T07:59:59", Limits(1, 4, (), at("2026-11-23T08:00"))),
    "from the first moment": ((OFFICE,), "2026-11-23T08:00", Limits(3, 8, ("office",), at("2026-11-23T19:00"))),
    "to the last moment": ((OFFICE,), "2026-11-23T18:59:59", Limits(3, 8, ("office",), at("2026-11-23T19:00"))),
    "over": ((OFFICE,), "2026-11-23T19:00", Limits(1, 4, (), at("2026-11-24T08:00"))),
    "weekend": ((OFFICE,), "2026-11-28T12:00", Limits(1, 4, (), at("2026-11-30T08:00"))),
    "over midnight": ((NIGHT,), "2026-11-24T03:00", Limits(0, 4, ("night",), at("2026-11-24T06:00"))),
    "two, the larger of each": (
        (OFFICE, LUNCH),
        "2026-11-23T13:00",
        Limits(5, 8, ("office", "lunch"), at("2026-11-23T14:00")),
    ),
    "a rare day": ((JUBILEE,), "2026-11-23T13:00", Limits(1, 4, (), at("2028-02-29T00:00"))),
    "summer in Berlin": ((BERLIN,), "2026-07-01T00:30", Limits(2, 4, ("berlin",), at("2026-07-01T01:30"))),
    "winter in Berlin": ((BERLIN,), "2026-12-01T01:30", Limits(2, 4, ("berlin",), at("2026-12-01T02:30"))),
    # 02:30 does not exist, so the schedule begins when the clock shows 03:00.
    "the clock leaves the start out": (
        (BERLIN,),
        "2026-03-29T01:00",
        Limits(2, 4, ("berlin",), at("2026-03-29T01:30")),
    ),
    "and before that": ((BERLIN,), "2026-03-29T00:59", Limits(1, 4, (), at("2026-03-29T01:00"))),
    # 02:30 comes twice; the first time counts, and the schedule has not ended when the clock shows 02:10 again.
    "the clock shows the start twice": (
        (BERLIN,),
        "2026-10-25T00:30",
        Limits(2, 4, ("berlin",), at("2026-10-25T02:30")),
    ),
    "and is set back after it": ((BERLIN,), "2026-10-25T01:10", Limits(2, 4, ("berlin",), at("2026-10-25T02:30"))),
}


@pytest.mark.parametrize(("schedules", "now", "expected"), CASES.values(), ids=CASES.keys())
def test_the_limits_at_a_moment(schedules: tuple[Schedule, ...], now: str, expected: Limits) -> None:
    assert limits(Scaling(4, schedules=schedules), at(now)) == expected


def test_without_a_time_no_schedule_counts() -> None:
    assert limits(Scaling(4, schedules=(OFFICE,)), None) == Limits(1, 4)


FIELDS = st.tuples(
    st.sampled_from(["0", "30", "*/7", "*", "59"]),
    st.sampled_from(["*", "2", "1-3", "23", "*/5"]),
    st.sampled_from(["*", "1", "L", "29"]),
    st.just("*"),
    st.sampled_from(["*", "MON-FRI", "SUN", "5L", "MON#1"]),
).map(" ".join)
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Asia/Kolkata"]
)
CHANGES = st.sampled_from(["2026-03-08T07:00", "2026-03-29T01:00", "2026-10-25T01:00", "2026-11-01T06:00"])


@settings(max_examples=60, deadline=None)
@given(FIELDS, FIELDS, ZONES, CHANGES, st.integers(-2000, 2000))
def test_nothing_changes_before_the_time_that_is_named(
    start: str, end: str, zone: str, change: str, minutes: int
) -> None:
    """Otherwise the operator would not look when it must. Around the hours in which clocks are set."""
    scaling = Scaling(4, schedules=(Schedule("one", start, end, zone, 2),))
    now = at(change) + timedelta(minutes=minutes)
    # Backwards, because a later answer says nothing about an earlier moment. So each one is calculated.
    found = [limits(scaling, now + timedelta(minutes=step)) for step in reversed(range(200))][::-1]
    assert [limits(scaling, now + timedelta(minutes=step)) for step in range(200)] == found
    for step, (before, after) in enumerate(pairwise(found)):
        moment = now + timedelta(minutes=step)
        assert before.until is not None
        assert before.until > moment
        if before.until > moment + timedelta(minutes=1):
            assert after == before


def test_a_look_calculates_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaling loop looks every two seconds, and tenants may have many schedules."""
    asked: list[str] = []

    def counted(expression: str, *rest: Any, **named: Any) -> CronSim:
        asked.append(expression)
        return CronSim(expression, *rest, **named)

    monkeypatch.setattr(schedules, "CronSim", counted)
    many = tuple(Schedule(f"s{number}", f"{number} 8 3 * *", f"{number} 9 3 * *") for number in range(16))
    for minute in range(120):
        limits(Scaling(4, schedules=many), at("2026-11-23T12:00") + timedelta(minutes=minute))
    assert len(asked) == 3 * len(many)
    for number in range(16):
        alike = Schedule(f"other{number}", many[0].start, many[0].end, min_replicas=number)
        limits(Scaling(20, schedules=(alike,)), at("2026-11-23T12:30"))
    assert len(asked) == 3 * len(many)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 8 * * MON-FRI", ""),
        ("0  8 * * mon", ""),
        ("0 8 * * MON#5", ""),
        ("0 25 * * *", "hour is wrong"),
        ("0 8 * * 9", "day of week is wrong"),
        ("0 0 31 2 *", "day of month is wrong"),
        ("* * */20 * 1L", "No day is like that"),
        ("0 0 8 * * *", "Right would be"),
        ("@daily", "Right would be"),
        ("0 8 * *", "Right would be"),
        ("", "Right would be"),
    ],
)
def test_a_wrong_expression_is_explained(expression: str, says: str) -> None:
    assert says in cron_fault(expression)
    assert bool(says) == bool(cron_fault(expression))


@settings(deadline=None)
@given(st.lists(st.text("0123456789*/-,#LWMONFRIJA", min_size=1, max_size=9), min_size=5, max_size=5).map(" ".join))
def test_any_text_is_an_expression_or_is_explained(expression: str) -> None:
    if not cron_fault(expression):
        limits(
            Scaling(4, schedules=(Schedule("one", expression, "0 0 * * *", min_replicas=2),)), at("2026-11-23T13:00")
        )
