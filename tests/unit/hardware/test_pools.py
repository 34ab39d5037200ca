"""Declared pools: money without rounding surprises, and faults in words."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.hardware.pools import details, dollars, thousandths


@pytest.mark.parametrize(
    ("value", "amount"), [("2.90", 2900), (2.9, 2900), (3, 3000), ("0", 0), ("0.0005", 0), ("0.526", 526)]
)
def test_money_is_read_in_thousandths(value: object, amount: int) -> None:
    assert thousandths("p", value) == amount


@pytest.mark.parametrize(("amount", "text"), [(2900, "2.90"), (11600, "11.60"), (526, "0.526"), (0, "0.00")])
def test_money_is_written_in_dollars(amount: int, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize("value", ["free", "NaN", "-1", True, "1e9", None, []])
def test_what_is_no_money_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"p\.costPerGpuHour is .*: it must be dollars .* for example \"2\.90\""):
        thousandths("p.costPerGpuHour", value)


def test_optional_members() -> None:
    pool = {"maxNodes": 4, "costPerGpuHour": "2.90", "computeCapability": 9.0}
    assert details("p", pool) == {"max_nodes": 4, "cost_per_gpu_hour": 2900, "compute_capability": (9, 0)}
    assert set(details("p", {}).values()) == {None}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"maxNodes": 0}, "p.maxNodes is 0: it must be a whole number of at least 1"),
    ({"maxNodes": True}, "p.maxNodes is True"),
    ({"maxNodes": "2"}, "p.maxNodes is '2'"),
    ({"computeCapability": "sm90"}, "p.computeCapability is 'sm90': it must be MAJOR.MINOR"),
]


@pytest.mark.parametrize(("pool", "says"), WRONG)
def test_wrong_members(pool: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        details("p", pool)
