"""For how long GPUs were held, and for what: the bill of a deployment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from qwen_operator.objects import ObjectKey
from qwen_operator.replicas.groups import Replica
from qwen_operator.scaling.types import EngineLoad

# Between two pages that are further apart, nobody knows what happened.
_LONGEST_GAP_SECONDS = 600.0

Phase = str


def gpus_by_phase(
    replicas: Iterable[Replica], gpus_per_replica: int, engines: Iterable[EngineLoad]
) -> Mapping[Phase, int]:
    """The GPUs of the replicas that have their nodes: loading, serving, idle or draining.

    A pod that has ended holds none. Idle is an engine that reports no request. Without a report it counts as serving.
    """
    idle = {engine.uid for engine in engines if not engine.requests}
    phases = Counter(_phase(replica, idle) for replica in replicas if replica.bound and not replica.broken)
    return {phase: count * gpus_per_replica for phase, count in phases.items()}


def _phase(replica: Replica, idle: Collection[str]) -> Phase:
    if replica.deleting or replica.draining:
        return "draining"
    if not replica.up:
        return "loading"
    return "idle" if replica.leader.uid in idle else "serving"


@dataclass(slots=True)
class GpuSeconds:
    """GPU seconds by namespace, deployment, GPU product and phase, since this process leads.

    They grow with each page of metrics: the GPUs of the last page times the seconds since then, at most ten minutes.
    """

    totals: dict[tuple[str, ...], float] = field(default_factory=dict)
    _held: dict[ObjectKey, tuple[datetime, str, Mapping[Phase, int]]] = field(default_factory=dict)

    def note(self, key: ObjectKey, product: str, held: Mapping[Phase, int], now: datetime) -> None:
        """Count what was held since the last page, and remember what is held now."""
        then, before_product, before = self._held.get(key, (now, product, {}))
        seconds = min(max(0.0, (now - then).total_seconds()), _LONGEST_GAP_SECONDS)
        for phase, gpus in before.items():
            series = (*key, before_product, phase)
            self.totals[series] = self.totals.get(series, 0.0) + gpus * seconds
        self._held[key] = (now, product, held)

    def pause(self) -> None:
        """Another process counts from now on."""
        self._held.clear()

    def keep(self, known: Collection[ObjectKey]) -> None:
        """Forget what other deployments than these held."""
        self._held = {key: held for key, held in self._held.items() if key in known}
