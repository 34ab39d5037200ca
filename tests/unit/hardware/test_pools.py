"""Declared pools: money without rounding surprises."""

from __future__ import annotations

import pytest

from qwen_operator.hardware.pools import dollars, thousandths


@pytest.mark.parametrize(
    ("value", "amount"), [("2.90", 2900), (2.9, 2900), (3, 3000), ("0", 0), ("0.0005", 0), ("0.526", 526)]
)
def test_money_is_read_in_thousandths(value: object, amount: int) -> None:
    assert thousandths(value) == amount


@pytest.mark.parametrize(("amount", "text"), [(2900, "2.90"), (11600, "11.60"), (526, "0.526"), (0, "0.00")])
def test_money_is_written_in_dollars(amount: int, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize("value", ["free", "NaN", "-1", True, "1e9", None, []])
def test_what_is_no_money_is_none(value: object) -> None:
    assert thousandths(value) is None
