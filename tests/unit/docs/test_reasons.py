"""The page of reasons is the public list of them: it names each one, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from qwen_operator.api.conditions import ConditionType, Reason

PAGE = Path(__file__).resolve().parents[3] / "docs/reasons.md"


def test_every_reason_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)

    assert sorted(set(rows) - set(ConditionType)) == sorted(Reason)
    assert len(rows) == len(set(rows))
