"""The windows that the published table uses, by suite. The traces are not part of this repository (traces.SOURCES)."""

from __future__ import annotations

from dataclasses import dataclass

AZURE, MOONCAKE = "azure2023_conv", "mooncake_conversation_dejitter"
DAY01, DAY10 = "servegen_mlarge_day01", "servegen_mlarge_day10"
_HOUR, _QUARTER = 3600.0, 900.0


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of a trace, served by `model` (a key of engine.SPEEDS) whose replicas take `start` seconds to start."""

    trace: str
    model: str
    start_hour: float = 0.0
    hours: float | None = None
    unscored: float = _QUARTER
    start: float = 180.0

    @property
    def name(self) -> str:
        hours = "" if self.hours is None else f" {self.start_hour:g}-{self.start_hour + self.hours:g} h"
        return f"{self.trace}{hours}, {self.model}, start {self.start:g} s"


def _eight(trace: str, model: str, start_hour: float, start: float = 180.0) -> Window:
    return Window(trace, model, start_hour, 8.0, _HOUR, start)


SUITES: dict[str, tuple[Window, ...]] = {
    "design": (
        Window(AZURE, "72b-mha"),
        Window(MOONCAKE, "7b-gqa"),
        _eight(DAY01, "72b-gqa", 6),
        _eight(DAY10, "7b-mha", 12),
    ),
    "held-out": (
        _eight(DAY01, "72b-gqa", 14),
        _eight(DAY01, "72b-mha", 14),
        _eight(DAY10, "7b-mha", 4),
        _eight(DAY10, "7b-gqa", 4),
        Window(AZURE, "7b-mha"),
        Window(MOONCAKE, "72b-gqa"),
        _eight(DAY01, "72b-gqa", 14, 60),
        _eight(DAY01, "72b-gqa", 14, 600),
    ),
}
"""The constants of the policy `Objective` were chosen on `design`. The other windows, models and start times were only
used to judge them."""
