"""Makes a sample from the readings of single engines: overdue, frozen and idle engines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.types import EngineLoad, EnginePod, Reported, Sample

# A busy machine sometimes misses a scrape. For this time, the last numbers count.
GRACE_SECONDS = 10.0
# SGLang's scheduler ticks every second, but not within a batch. A long prefill or the first compilation of a kernel
# takes seconds. SGLang's own watchdog waits for 300 s.
FROZEN_SECONDS = 20.0
IDLE_SECONDS = 2.0
# Each change is a write of the status, and an engine that is broken or hostile could change it with every page.
REPORT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the loop remembers of a pod. All times are monotonic seconds.

    `first_at`: its first scrape. `read_at`: its last readable scrape, with `load`. `beat_at`: the last change of
    `beat`, which shows that the scheduler is alive. `idle_since`: since when it has had no request. `missed`: the last
    scrape was not readable.
    """

    first_at: float
    read_at: float | None = None
    load: EngineLoad | None = None
    beat: float | None = None
    beat_at: float = 0.0
    idle_since: float | None = None
    missed: bool = False


Memories = Mapping[str, Memory]


@dataclass(frozen=True, slots=True)
class Reports:
    """`known`: what each engine reports of its start, by uid. `change_at`: when that of a known engine may change."""

    known: Mapping[str, Reported] = field(default_factory=dict)
    change_at: float = -math.inf


def watch_reports(reports: Reports, memories: Memories, at: float) -> Reports:
    """The reports with one more look. A new engine counts at once, other numbers every REPORT_SECONDS at most."""
    now = {uid: memory.load.reported for uid, memory in memories.items() if memory.load}
    if at < reports.change_at:
        now = {uid: reports.known.get(uid, new) for uid, new in now.items()}
    changed = any(reports.known.get(uid, new) != new for uid, new in now.items())
    return Reports(now, at + REPORT_SECONDS if changed else reports.change_at)


def take_sample(
    memories: Memories, engines: tuple[EnginePod, ...], results: Mapping[str, Reading | Trouble], at: float
) -> tuple[dict[str, Memory], Sample]:
    """The new memories and the sample of this moment. Both maps are by pod uid; `results` has the ready engines.

    For GRACE_SECONDS, and once in any case, an unreadable pod keeps its last numbers. Then it is a problem. Numbers
    that do not change for FROZEN_SECONDS are a problem too. A draining pod is never a problem, because no decision
    depends on it.
    """
    kept: dict[str, Memory] = {}
    loads: list[EngineLoad] = []
    problems: dict[str, Reason] = {}
    for engine in engines:
        if engine.uid not in results:
            continue
        memory = memories.get(engine.uid) or Memory(first_at=at, beat_at=at)
        kept[engine.uid], outcome = _step(memory, engine, results[engine.uid], at)
        if isinstance(outcome, EngineLoad):
            loads.append(outcome)
        elif outcome is not None and not engine.draining:
            problems[engine.pod] = outcome
    return kept, Sample(at, tuple(loads), problems)


def idle(memories: Memories, engines: tuple[EnginePod, ...], at: float) -> frozenset[str]:
    """The uids of draining pods without requests in two scrapes at least IDLE_SECONDS apart, and in all between."""
    return frozenset(
        engine.uid
        for engine in engines
        if engine.draining
        and (memory := memories.get(engine.uid)) is not None
        and memory.idle_since is not None
        and at - memory.idle_since >= IDLE_SECONDS
    )


def _running(engine: EnginePod, result: Reading) -> int:
    """The running requests.

    With pipeline stages, SGLang divides them into one part for each stage and reports only the part whose turn it is
    (managers/scheduler_components/metrics_reporter.py:1076 of 0.5.23). Then all that do not wait run, up to the limit.
    """
    if engine.stages == 1:
        return result.running
    return max(result.running, min(result.inside - result.queued, engine.limit or result.inside))


def _step(
    memory: Memory, engine: EnginePod, result: Reading | Trouble, at: float
) -> tuple[Memory, EngineLoad | Reason | None]:
    if isinstance(result, Trouble):
        again, memory = memory.missed, replace(memory, idle_since=None, missed=True)
        # Looks may be further apart than that: one that fails is not enough.
        if not again or at - (memory.first_at if memory.read_at is None else memory.read_at) < GRACE_SECONDS:
            return memory, memory.load
        return memory, result.reason
    alive = memory.beat != result.beat or not (result.ticking or result.inside)
    beat_at = at if alive else memory.beat_at
    memory = replace(memory, beat=result.beat, beat_at=beat_at, missed=False)
    if at - beat_at >= FROZEN_SECONDS:
        return replace(memory, idle_since=None), Reason.METRICS_FROZEN
    numbers = (result.queued, result.tokens_used, result.tokens_capacity, result.inside, result.work)
    load = EngineLoad(engine.pod, engine.uid, _running(engine, result), *numbers, result.answers, result.reported)
    idle_since = None if load.requests else memory.idle_since if memory.idle_since is not None else at
    return replace(memory, read_at=at, load=load, idle_since=idle_since), load
