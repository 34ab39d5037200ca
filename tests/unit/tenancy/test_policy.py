"""The chart's copy of the rules."""

from __future__ import annotations

from pathlib import Path

from qwen_operator.tenancy import policy

FILE = Path(__file__).parents[3] / "charts/qwen-operator/files/tenancy-rules.json"


def test_the_chart_carries_the_rules() -> None:
    """After a change: python -m qwen_operator.tenancy.policy > charts/qwen-operator/files/tenancy-rules.json"""
    assert FILE.read_text() == policy.text()
