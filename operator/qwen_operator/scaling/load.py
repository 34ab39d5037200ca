"""The LOAD column: a class of the load. It must change rarely, because every change is a write of the status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qwen_operator.scaling.policy import TOKEN_TARGET, measure
from qwen_operator.scaling.types import EnginePod, Sample, ScalingState

HOLD_SECONDS = 60.0
_HIGH = 0.5


class LoadClass(StrEnum):
    """Classes in rising order. The first two mean that the load is unknown."""

    NONE = "-"
    BLIND = "?"
    IDLE = "idle"
    LOW = "low"
    HIGH = "high"
    OVER = "over"


_RANKS = tuple(LoadClass)


@dataclass(frozen=True, slots=True)
class LoadMemory:
    """`shown`: the class to show. `last`: the class of the last scrape.

    `peaks`: classes of the last HOLD_SECONDS with their times, the oldest first, each higher than all later ones.
    """

    shown: LoadClass
    last: LoadClass
    peaks: tuple[tuple[float, LoadClass], ...]


def classify(sample: Sample, engines: tuple[EnginePod, ...]) -> LoadClass:
    """idle: no requests. over: requests wait. high: at least half of the capacity (requests or KV tokens). Else low."""
    ready = sum(engine.ready and not engine.draining for engine in engines)
    if sample.problems:
        return LoadClass.BLIND
    if not ready or not sample.engines:
        return LoadClass.NONE
    need = measure(sample, engines)
    if need.queued:
        return LoadClass.OVER
    if not need.running:
        return LoadClass.IDLE
    by_requests = need.running / (need.slots * ready) if need.slots else 0.0
    by_tokens = need.tokens * TOKEN_TARGET / (need.room * ready) if need.room else 0.0
    return LoadClass.HIGH if max(by_requests, by_tokens) >= _HIGH else LoadClass.LOW


def settle(memory: LoadMemory | None, now: LoadClass, at: float) -> LoadMemory:
    """The class rises when two scrapes agree, and falls after HOLD_SECONDS. Changes from and to "-" and "?" are
    immediate."""
    if memory is None or now in (LoadClass.NONE, LoadClass.BLIND) or memory.last in (LoadClass.NONE, LoadClass.BLIND):
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
    """The memory of a new leader, which knows only the status."""
    return LoadMemory(LoadClass(state.load), LoadClass(state.load), ()) if state else None
