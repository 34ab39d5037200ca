"""The headroom, learned from how the demand grew during starts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.scaling.growth import FIRST_GUESS, Growth, watch, with_headroom


def _watched(demands: list[float], start: float = 60.0, miss_share: float = 0.05) -> Growth:
    growth = Growth()
    for number, demand in enumerate(demands):
        growth = watch(growth, number * 10.0, demand, start, miss_share)
    return growth


def test_a_constant_demand_needs_no_headroom_after_hours() -> None:
    assert _watched([4.0]).headroom == FIRST_GUESS
    assert _watched([4.0] * 1000).headroom == 0.0


def test_steps_need_headroom() -> None:
    """The demand doubles every ten minutes and falls again."""
    growth = _watched([2.0 if number // 60 % 2 else 4.0 for number in range(1000)])
    assert with_headroom(growth, 2.0) >= 4.0 - 1e-9


def test_a_longer_start_sees_more_growth() -> None:
    rising = [number / 100 for number in range(900)]
    assert _watched(rising, 600.0).headroom > _watched(rising, 60.0).headroom


def test_who_may_miss_more_keeps_less_headroom() -> None:
    steps = [4.0 if number % 60 == 30 else 2.0 for number in range(1000)]
    assert _watched(steps, miss_share=0.2).headroom < _watched(steps, miss_share=0.05).headroom


def test_nothing_happens_between_ticks() -> None:
    growth = _watched([4.0])
    assert watch(growth, 5.0, 100.0, 60.0, 0.05) is growth


@given(st.lists(st.floats(0, 100), max_size=900), st.floats(0, 1800))
def test_it_remembers_little_and_never_goes_below_the_demand(demands: list[float], start: float) -> None:
    growth = _watched(demands, start)
    assert len(growth.seen) <= 720
    assert len(growth.recent) <= 181
    assert growth.headroom >= 0
    assert with_headroom(growth, 3.0) >= 3.0
