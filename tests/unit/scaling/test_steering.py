"""The share of prefill, steered by the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.objective import Objective
from qwen_operator.scaling.steering import LARGEST_SHARE, SMALLEST_SHARE, Steering, Traffic, steer

DEFAULT = Objective()
CALM = Traffic(queued=0, arriving=5.0, prefilling=0.3, ready=4)
# A request that waits, waits 2 / (5 * 0.3) = 1.3 s on average. So about 3 % of all requests wait for more than 3 s.
WAITING = replace(CALM, queued=2)


def _after(
    traffic: Traffic, seconds: int, steering: Steering | None = None, objective: Objective = DEFAULT
) -> Steering:
    steering = steering or Steering()
    for _ in range(0, seconds, 2):
        steering = steer(steering, traffic, 2.0, objective)
    return steering


def test_a_queue_lowers_the_share_and_calm_raises_it_again() -> None:
    waiting = _after(WAITING, 3600)
    assert waiting.share == SMALLEST_SHARE
    assert _after(CALM, 7200, waiting).share == LARGEST_SHARE


def test_a_short_wait_is_no_reason() -> None:
    assert _after(replace(CALM, queued=1, arriving=20.0), 3600).share == LARGEST_SHARE


LENIENT = {
    "a late first token is early enough": Objective(time_to_first_token_milliseconds=8000),
    "a prompt may wait for long": Objective(long_prompt_percent=900),
    "more requests may be late": Objective(attainment_percent=90),
}


@pytest.mark.parametrize("objective", LENIENT.values(), ids=LENIENT.keys())
def test_who_may_wait_longer_keeps_the_share(objective: Objective) -> None:
    assert _after(WAITING, 3600, objective=objective).share == LARGEST_SHARE


def test_a_burst_counts_as_one_request_for_each_replica() -> None:
    assert _after(replace(CALM, queued=4), 600) == _after(replace(CALM, queued=4000), 600)


@given(st.integers(0, 10**6), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 64), st.floats(0, 1e6))
def test_the_share_stays_in_its_limits(
    queued: int, arriving: float, prefill: float, ready: int, seconds: float
) -> None:
    share = steer(Steering(), Traffic(queued, arriving, prefill, ready), seconds, DEFAULT).share
    assert SMALLEST_SHARE <= share <= LARGEST_SHARE
