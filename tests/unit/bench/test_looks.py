"""The measurement reads what it says it reads."""

from __future__ import annotations

import pytest

from bench.looks import measure
from qwen_operator.controller import scraper


@pytest.mark.parametrize(("busy", "pages"), [(0, 0.0), (50, 4.0), (100, 8.0)])
def test_only_deployments_with_requests_are_in_every_round(
    busy: int, pages: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The measurement changes it.
    monkeypatch.setattr(scraper, "TIMEOUT_SECONDS", scraper.TIMEOUT_SECONDS)
    result = measure(deployments=4, replicas=2, percent=busy, rounds=2)
    assert (result.pages, result.missed) == (pages, 0)
    assert result.cpu_seconds > 0
