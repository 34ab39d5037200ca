"""A replica that was needed again soon after its removal stays longer the next time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.scaling.regret import KEEP_SECONDS, SOON_SECONDS, Regret, kept, note


def _changed(*steps: tuple[float, int], regret: Regret | None = None, size: int = 3) -> Regret:
    """After these changes of the size: (time, new size)."""
    regret = regret or Regret()
    for at, after in steps:
        regret, size = note(regret, size, after, at), after
    return regret


def test_who_comes_back_soon_stays() -> None:
    regret = _changed((0, 2), (600, 3))
    assert kept(regret, 2, 601) == 3
    assert kept(regret, 2, 600 + KEEP_SECONDS) == 2


def test_a_removal_that_nobody_regrets_is_repeated() -> None:
    regret = _changed((0, 2), (SOON_SECONDS + 1, 3))
    assert kept(regret, 2, SOON_SECONDS + 2) == 2


def test_growth_alone_is_no_regret() -> None:
    assert _changed((0, 4), (10, 5)) == Regret()
    assert _changed((0, 2), (10, 3), (20, 4)).size == 3, "one removal is regretted once"


def test_a_later_regret_counts_from_its_own_time() -> None:
    regret = _changed((0, 2), (60, 3))
    regret = _changed((KEEP_SECONDS + 60, 2), (KEEP_SECONDS + 120, 3), regret=regret)
    assert regret.until == 2 * KEEP_SECONDS + 120


def test_of_a_burst_only_one_replica_stays() -> None:
    regret = _changed((0, 2), (60, 9))
    assert [kept(regret, needed, 61) for needed in (1, 2, 8, 9, 12)] == [2, 3, 9, 9, 12]


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(1, 100)), max_size=30), st.integers(1, 100))
def test_never_fewer_than_needed_and_at_most_one_more(steps: list[tuple[float, int]], needed: int) -> None:
    regret = _changed(*sorted(steps))
    assert kept(regret, needed, 20_000) in (needed, needed + 1)
    assert kept(regret, needed + 1, 20_000) >= kept(regret, needed, 20_000)
