"""The LOAD column: a class of the load that changes rarely, since every change is a write of the status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qwen_operator.scaling.policy import TOKEN_TARGET, measure
from qwen_operator.scaling.types import Engine, Sample, ScalingState

HOLD_SECONDS = 60.0
_HIGH = 0.5


class Load(StrEnum):
    """Classes in rising order; the first two say that nothing is known."""

    NONE = "-"
    BLIND = "?"
    IDLE = "idle"
    LOW = "low"
    HIGH = "high"
    OVER = "over"


_RANKS = tuple(Load)


@dataclass(frozen=True, slots=True)
class LoadMemory:
    """`shown` is the class to show; `peaks` the classes of the last HOLD_SECONDS, from the oldest, each higher than
    all later ones; `last` the class of the last look."""

    shown: Load
    last: Load
    peaks: tuple[tuple[float, Load], ...]


def classify(sample: Sample, engines: tuple[Engine, ...]) -> Load:
    """idle: no request; over: some wait; high: half of what the replicas take (requests or KV tokens); else low."""
    ready = sum(engine.ready and not engine.draining for engine in engines)
    if sample.problems:
        return Load.BLIND
    if not ready or not sample.engines:
        return Load.NONE
    need = measure(sample, engines)
    if need.queued:
        return Load.OVER
    if not need.running:
        return Load.IDLE
    by_requests = need.running / (need.slots * ready) if need.slots else 0.0
    by_tokens = need.tokens * TOKEN_TARGET / (need.room * ready) if need.room else 0.0
    return Load.HIGH if max(by_requests, by_tokens) >= _HIGH else Load.LOW


def settle(memory: LoadMemory | None, now: Load, at: float) -> LoadMemory:
    """Up when two looks agree, down after HOLD_SECONDS; from and to "-" and "?" at once."""
    if memory is None or now in (Load.NONE, Load.BLIND) or memory.last in (Load.NONE, Load.BLIND):
        return LoadMemory(now, now, ((at, now),))
    confirmed = min(memory.last, now, key=_RANKS.index)
    peaks = tuple(
        (since, load)
        for since, load in memory.peaks
        if at - since < HOLD_SECONDS and _RANKS.index(load) > _RANKS.index(confirmed)
    )
    peaks = (*peaks, (at, confirmed))
    return LoadMemory(peaks[0][1], now, peaks)


def resume(state: ScalingState | None) -> LoadMemory | None:
    """The memory of an operator that has nothing but what the status shows."""
    return LoadMemory(Load(state.load), Load(state.load), ()) if state else None
