"""Scaling rules for the simulator: the operator's own policies, simple published rules of others, and a fixed size."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.autoscaling.fleet import Rule
from bench.autoscaling.peers import HpaConcurrency, HpaKv, KedaQueue, WvaV2
from qwen_operator.scaling.policies import POLICIES, Policy
from qwen_operator.scaling.types import Bounds, EnginePod, Sample

_MOST = 64


class Own:
    """A policy of the operator, with the very code that the operator runs."""

    def __init__(self, policy: Policy, window: float, least: int = 1, most: int = _MOST) -> None:
        self._policy = policy
        self._bounds = Bounds(least, most, window)
        self._history: Any = None

    def wanted(self, sample: Sample, engines: tuple[EnginePod, ...]) -> int:
        self._history = self._policy.remember(self._history, sample, engines, self._bounds, None)
        return self._policy.decide(self._history, self._bounds, engines).replicas


class Static:
    """Always the same size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def wanted(self, _sample: Sample, _engines: tuple[EnginePod, ...], /) -> int:
        return self._size


class _Paced:
    """A rule that decides every `period` seconds, from the fleet's total of a metric."""

    period = 10.0

    def __init__(self) -> None:
        self._next = 0.0
        self._size = 1

    def wanted(self, sample: Sample, engines: tuple[EnginePod, ...]) -> int:
        if sample.at >= self._next:
            self._next = sample.at + self.period
            self._size = max(1, self.decide(sample, engines))
        return self._size

    def decide(self, sample: Sample, engines: tuple[EnginePod, ...], /) -> int:
        raise NotImplementedError


class AibrixKpa(_Paced):
    """AIBrix KPA on KV use: windows of 180 s and 60 s, panic at 2 times, tolerance 10 %, at most twice or half of the
    ready pods in a step, down at the earliest 300 s after the last higher wish."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self._target = target
        self._totals: deque[tuple[float, float]] = deque()
        self._panic_until = -1.0
        self._wishes: deque[tuple[float, int]] = deque()

    def decide(self, sample: Sample, engines: tuple[EnginePod, ...], /) -> int:
        at, ready = sample.at, max(1, sum(engine.ready and not engine.draining for engine in engines))
        use = sum(load.tokens_used / load.tokens_capacity for load in sample.engines)
        self._totals.append((at, use))
        while at - self._totals[0][0] >= 180:
            self._totals.popleft()
        stable = _mean([value for _, value in self._totals])
        panic = _mean([value for since, value in self._totals if at - since < 60])
        if stable and panic / stable > 2:
            self._panic_until = at + 60
        total = max(panic, stable) if at < self._panic_until else stable
        if abs(total / ready / self._target - 1) <= 0.1:
            wish = self._size
        else:
            wish = min(max(math.ceil(total / self._target), ready // 2), ready * 2)
        if at < self._panic_until:
            wish = max(wish, self._size)
        self._wishes.append((at, wish))
        while at - self._wishes[0][0] >= 300:
            self._wishes.popleft()
        return max(each for _, each in self._wishes) if wish < self._size else wish


class KubeAi(_Paced):
    """KubeAI: the mean of active requests over 10 minutes, divided by a target; down after 3 lower values."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self._target = target
        self._active: deque[float] = deque([0.0] * 60, maxlen=60)
        self._lower = 0

    def decide(self, sample: Sample, _engines: tuple[EnginePod, ...], /) -> int:
        self._active.append(sum(load.requests for load in sample.engines))
        wish = max(1, math.ceil(_mean(list(self._active)) / self._target))
        self._lower = self._lower + 1 if wish < self._size else 0
        return self._size if wish < self._size and self._lower < 3 else wish


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """A rule of somebody else with one number to choose. `published`: the number in its own defaults or documentation.

    `best`: the number of `tried` that keeps the objective on most design windows, and then costs least; if none keeps
    it on any, the one that keeps most. `also`: numbers that the table shows besides.
    """

    name: str
    make: Callable[[float], Rule]
    published: float
    best: float
    tried: tuple[float, ...]
    also: tuple[float, ...] = ()

    @property
    def shown(self) -> tuple[float, ...]:
        """The numbers in the table."""
        return tuple(dict.fromkeys((self.published, self.best, *self.also)))

    def rule(self, number: float) -> tuple[str, Callable[[], Rule]]:
        """The name in the table, and what makes the rule."""
        return f"{self.name} {_short(number)}{' (default)' * (number == self.published)}", partial(self.make, number)


def _short(number: float) -> str:
    return f"{number:g}".removeprefix("0") if 0 < number < 1 else f"{number:g}"


FAMILIES = (
    Family("AIBrix KPA, KV", AibrixKpa, 0.5, 0.05, (0.5, 0.2, 0.1, 0.05, 0.03)),
    Family("KubeAI,", KubeAi, 100, 2, (100, 16, 8, 4, 2), also=(4,)),
    Family("HPA, KV", HpaKv, 0.5, 0.03, (0.5, 0.2, 0.1, 0.05, 0.03)),
    Family("HPA, requests", HpaConcurrency, 16, 4, (32, 16, 8, 4, 2)),
    Family("KEDA, queue", KedaQueue, 5, 1, (10, 5, 2, 1)),
    Family("WVA v2, cache", WvaV2, 0.8, 0.1, (0.8, 0.4, 0.2, 0.1, 0.05)),
)
"""Sources: HPA's target of the KV cache is that of AIBrix's published comparison, its requests per pod llm-d's running
target; KEDA's threshold is that of vLLM's production-stack. AIBrix, KubeAI and WVA: their defaults."""

RULES: Mapping[str, Callable[[], Rule]] = {
    **{f"{name} (ours), 300 s": partial(Own, policy, 300.0) for name, policy in POLICIES.items()},
    **dict(family.rule(number) for family in FAMILIES for number in family.shown),
}
SWEEP: Mapping[str, Callable[[], Rule]] = dict(
    family.rule(number) for family in FAMILIES for number in dict.fromkeys((family.published, *family.tried))
)
"""All numbers that were tried."""
