"""Fleets, loads and a replay of the rule over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.engines.types import MetricNames
from qwen_operator.scaling import policy
from qwen_operator.scaling.page import KNOWN_NAMES, Page, Reading, Trouble
from qwen_operator.scaling.policy import History
from qwen_operator.scaling.types import Bounds, EngineLoad, EnginePod, Sample, ScalingDecision

TOKENS = 10_000


def engine(number: int, **changes: object) -> EnginePod:
    members: dict[str, object] = {"pod": f"demo-12345678-{number}", "uid": f"uid-{number}", "address": "10.0.0.1"}
    return EnginePod(**(members | {"limit": 2} | changes))  # type: ignore[arg-type] # any member of EnginePod


def engines(ready: int, pending: int = 0, limit: int = 2) -> tuple[EnginePod, ...]:
    return tuple(engine(number, ready=number < ready, limit=limit) for number in range(ready + pending))


def load(number: int, running: int = 0, queued: int = 0, used: int = 0, capacity: int = TOKENS) -> EngineLoad:
    return EngineLoad(f"demo-12345678-{number}", f"uid-{number}", running, queued, used, capacity)


def sample(at: float, loads: Iterable[EngineLoad] = (), problems: Mapping[str, Reason] | None = None) -> Sample:
    return Sample(at, tuple(loads), problems or {})


class Replay:
    """The rule with its history; every step is one look."""

    def __init__(self, bounds: Bounds, step: float = 2.0) -> None:
        self.bounds = bounds
        self.step = step
        self.at = 0.0
        self.history: History | None = None

    def look(
        self,
        fleet: tuple[EnginePod, ...],
        loads: Iterable[EngineLoad] = (),
        problems: Mapping[str, Reason] | None = None,
    ) -> ScalingDecision:
        self.history = policy.remember(self.history, sample(self.at, loads, problems), fleet, self.bounds)
        self.at += self.step
        return policy.decide(self.history, self.bounds, fleet)

    def looks(self, times: int, fleet: tuple[EnginePod, ...], loads: Sequence[EngineLoad] = ()) -> ScalingDecision:
        decision = self.look(fleet, loads)
        for _ in range(times - 1):
            decision = self.look(fleet, loads)
        return decision


def read_page(
    text: str,
    model: str,
    names_of_versions: Sequence[MetricNames] = KNOWN_NAMES,
    objective: Objective | None = None,
) -> Reading | Trouble:
    """What is read of a whole page."""
    page = Page(objective, names_of_versions)
    page.feed(text.encode("utf-8", "replace"))
    return page.read(model)
