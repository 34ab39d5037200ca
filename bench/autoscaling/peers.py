"""Rules of other projects that are not in rules.py: Kubernetes' HPA, KEDA and llm-d's WVA v2, as published.

All see the pods' numbers of this moment. In a real cluster these come through Prometheus and an adapter, and are
older.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from qwen_operator.scaling.types import EngineLoad, EnginePod, Sample

SYNC_SECONDS = 15.0
TOLERANCE = 0.1
DOWN_SECONDS = 300.0
MOST = 64


class Hpa:
    """HPA v2 with default behaviour: a metric of each pod against a target average (`Pods` and `AverageValue`).

    It looks every 15 s. A pod without a metric counts as 0 on the way up, and as the target on the way down. Up: at
    most four pods or twice the size within 15 s. Down: to the largest wish of 300 s. At most 64.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._next = 0.0
        self._size = 1
        self._wishes: deque[tuple[float, int]] = deque()

    def value(self, load: EngineLoad) -> float:
        """The metric of one pod."""
        raise NotImplementedError

    def wish(self, sample: Sample, engines: Sequence[EnginePod], /) -> int:
        """The size before limits and windows."""
        staying = {engine.uid for engine in engines if not engine.draining}
        values = [self.value(load) for load in sample.engines if load.uid in staying]
        if not values:
            return self._size
        ratio = sum(values) / len(values) / self._target
        missing = len(staying) - len(values)
        if not missing:
            return self._size if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * len(values))
        filled = 0.0 if ratio > 1 else self._target * missing
        whole = (sum(values) + filled) / len(staying) / self._target
        turned = (ratio > 1) != (whole > 1)
        wish = math.ceil(whole * len(staying))
        # With the assumed values, it never scales against the direction that the real values show.
        against = wish < self._size if ratio > 1 else wish > self._size
        return self._size if turned or abs(whole - 1) <= TOLERANCE or against else wish

    def wanted(self, sample: Sample, engines: tuple[EnginePod, ...]) -> int:
        if sample.at >= self._next:
            self._next = sample.at + SYNC_SECONDS
            self._size = self._limited(sample.at, max(1, self.wish(sample, engines)))
        return self._size

    def _limited(self, at: float, wish: int) -> int:
        self._wishes.append((at, wish))
        while at - self._wishes[0][0] >= DOWN_SECONDS:
            self._wishes.popleft()
        if wish > self._size:
            return min(wish, max(self._size + 4, self._size * 2), MOST)
        return min(self._size, max(each for _, each in self._wishes))


class HpaKv(Hpa):
    """HPA on the share of the KV cache in use."""

    def value(self, load: EngineLoad) -> float:
        return load.tokens_used / load.tokens_capacity


class HpaConcurrency(Hpa):
    """HPA on the requests in a pod, running and waiting."""

    def value(self, load: EngineLoad) -> float:
        return load.running + load.queued


class KedaQueue(Hpa):
    """KEDA on waiting requests: from one replica on it is an HPA on an external metric, ceil(sum / threshold)."""

    def value(self, load: EngineLoad) -> float:
        return load.queued

    def wish(self, sample: Sample, _engines: Sequence[EnginePod], /) -> int:
        total = sum(self.value(load) for load in sample.engines)
        usage = total / (self._target * self._size)
        return self._size if abs(usage - 1) <= TOLERANCE else math.ceil(total / self._target)


class WvaV2(Hpa):
    """llm-d's Workload Variant Autoscaler, saturation analyzer v2, with one variant. An HPA follows its wish.

    Every 60 s: the capacity of a replica is the smaller of k1 = `target` times its KV tokens and k2, the tokens in use
    when at least five requests waited (the mean of the last ten such looks; k1 before the first). The median counts.
    Demand is the tokens in use and, for each waiting request, the mean input. The size grows to demand / 0.85, and
    falls while the supply of ready replicas exceeds demand / 0.70. Two simplifications: the mean input is the mean
    context of a running request, and k2 is not kept apart by classes of output lengths.
    """

    UP, DOWN, QUEUE, PERIOD = 0.85, 0.70, 5, 60.0

    def __init__(self, target: float) -> None:
        super().__init__(target)
        self._decides = 0.0
        self._desired = 1
        self._observed: deque[float] = deque(maxlen=10)

    def wish(self, sample: Sample, engines: Sequence[EnginePod], /) -> int:
        if sample.at >= self._decides:
            self._decides = sample.at + self.PERIOD
            self._desired = self._decided(sample, engines)
        return self._size if abs(self._desired / self._size - 1) <= TOLERANCE else self._desired

    def _decided(self, sample: Sample, engines: Sequence[EnginePod]) -> int:
        staying = {engine.uid for engine in engines if not engine.draining}
        loads = [load for load in sample.engines if load.uid in staying]
        if not loads:
            return self._size
        running = sum(load.running for load in loads)
        prompt = sum(load.tokens_used for load in loads) / running if running else 0.0
        capacity = median(self._capacity(load) for load in loads)
        demand = sum(load.tokens_used + load.queued * prompt for load in loads)
        required = demand / self.UP - capacity * len(staying)
        spare = capacity * len(loads) - demand / self.DOWN
        if required > 0:
            return len(staying) + math.ceil(required / capacity)
        return max(1, len(staying) - max(0, math.floor(spare / capacity)))

    def _capacity(self, load: EngineLoad) -> float:
        by_cache = self._target * load.tokens_capacity
        if load.queued >= self.QUEUE and load.tokens_used:
            self._observed.append(load.tokens_used)
            return min(by_cache, load.tokens_used)
        return min(by_cache, sum(self._observed) / len(self._observed)) if self._observed else by_cache
