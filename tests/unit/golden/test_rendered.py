"""A refactoring renders what commit 57853e4 rendered, byte for byte: the same revision hashes, the same pods."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.golden.cases import rendered

EXPECTED = json.loads((Path(__file__).parent / "rendered.json").read_text())


def test_every_case_renders_the_same_objects() -> None:
    changed = {name: value for name, value in rendered().items() if EXPECTED.get(name) != value}
    assert not changed
