"""A simulated fleet: pods that start, serve, drain and end, a router, and a scaling rule that looks every 2 s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.autoscaling.engine import Done, Engine, Request, Speed
from qwen_operator.scaling.types import EngineLoad, EnginePod, Sample, Work

LOOK_SECONDS = 2.0
# The router sees the end of a request at most this late.
ROUTER_SECONDS = 0.2
FIRST_TOKEN_SECONDS = 2.0
LONG_PROMPT = 2.5
OUTPUT_TOKEN_SECONDS = 0.1
LEAST_OUTPUT = 32


class Rule(Protocol):
    """A scaling rule. It has a state; use a new one for each run."""

    def wanted(self, sample: Sample, engines: tuple[EnginePod, ...], /) -> int:
        """The number of replicas after this look."""


@dataclass(slots=True)
class Pod:
    """`engine` is None until the pod is ready."""

    name: str
    created: float
    ready: float
    engine: Engine | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated. `unscored`: seconds at the start that count for nothing. The fleet starts with one replica."""

    requests: Sequence[Request]
    speed: Speed
    start: float = 180.0
    unscored: float = 0.0
    least: int = 1
    most: int = 64


@dataclass(frozen=True, slots=True)
class Result:
    """`kept`: the share of requests within the objective. `late`: those with a late first token; `slow`: with slow
    decoding. `gpu_hours`: from the creation of each pod to its end. `changes`: how often the wanted size changed."""

    kept: float
    late: float
    slow: float
    gpu_hours: float
    changes: int
    largest: int


@dataclass(slots=True)
class _Score:
    case: Case
    total: int = 0
    late: int = 0
    slow: int = 0
    missed: int = 0

    def done(self, done: Done) -> None:
        request = done.request
        if request.arrival < self.case.unscored:
            return
        limit = max(FIRST_TOKEN_SECONDS, LONG_PROMPT * self.case.speed.unloaded_prefill(request.prompt))
        late = done.first - request.arrival > limit
        slow = done.last - done.first > OUTPUT_TOKEN_SECONDS * max(LEAST_OUTPUT, request.output - 1)
        self.total += 1
        self.late += late
        self.slow += slow
        self.missed += late or slow


@dataclass(slots=True)
class _Fleet:
    case: Case
    done: Callable[[Done], None]
    pods: list[Pod] = field(default_factory=list)
    held: list[Request] = field(default_factory=list)
    number: int = 0
    gpu_seconds: float = 0.0

    def grow(self, at: float, start: float) -> None:
        self.pods.append(Pod(f"pod-{self.number}", at, at + start))
        self.number += 1

    def advance(self, at: float) -> None:
        """All engines up to `at`; pods become ready, and drained pods end."""
        for pod in list(self.pods):
            if pod.engine is None and pod.ready <= at:
                pod.engine = Engine(self.case.speed, at, self.done)
            if pod.engine is not None:
                pod.engine.advance(at)
                if pod.draining and not pod.engine.requests:
                    self.end(pod, at)
        if self.held and any(pod.engine and not pod.draining for pod in self.pods):
            held, self.held = self.held, []
            for request in held:
                self.route(request, at)

    def end(self, pod: Pod, at: float) -> None:
        self.gpu_seconds += self.cost(pod, at)
        self.pods.remove(pod)

    def cost(self, pod: Pod, at: float) -> float:
        return max(0.0, at - max(pod.created, self.case.unscored)) * self.case.speed.gpus

    def route(self, request: Request, at: float) -> None:
        """To the engine with the fewest requests. Without an engine the request is held."""
        engines = [pod.engine for pod in self.pods if pod.engine is not None and not pod.draining]
        if not engines:
            self.held.append(request)
            return
        engine = min(engines, key=lambda each: each.requests)
        engine.advance(at)
        engine.add(request)

    def resize(self, wanted: int, at: float) -> None:
        """Starts pods, or removes them: first those that still start, then those with the fewest requests.

        Draining pods come back before new ones start, as in the operator.
        """
        staying = [pod for pod in self.pods if not pod.draining]
        for pod in [pod for pod in self.pods if pod.draining][: max(0, wanted - len(staying))]:
            pod.draining = False
            staying.append(pod)
        for _ in range(wanted - len(staying)):
            self.grow(at, self.case.start)
        staying.sort(key=lambda pod: (pod.engine is not None, pod.engine.requests if pod.engine else -pod.created))
        for pod in staying[: max(0, len(staying) - wanted)]:
            pod.draining = True
            if pod.engine is None:
                self.end(pod, at)

    def look(self, at: float) -> tuple[Sample, tuple[EnginePod, ...]]:
        engines, loads = [], []
        for pod in self.pods:
            engine = pod.engine
            limit = self.case.speed.slots
            engines.append(EnginePod(pod.name, pod.name, ready=engine is not None, draining=pod.draining, limit=limit))
            if engine is not None:
                work = Work(engine.prefilled, engine.shown_decoded, engine.idle)
                running, queued = engine.running, engine.queued
                load = EngineLoad(
                    pod.name, pod.name, running, queued, engine.used, self.case.speed.pool, running + queued, work
                )
                loads.append(load)
        return Sample(at, tuple(loads)), tuple(engines)


def simulate(case: Case, rule: Rule) -> Result:
    """Replays the requests open-loop, whatever the fleet does with them."""
    score = _Score(case)
    fleet = _Fleet(case, score.done)
    fleet.grow(0.0, 0.0)
    fleet.advance(0.0)
    looked, wanted, changes, largest, at = 0.0, 1, 0, 1, 0.0
    waiting = iter(case.requests)
    request = next(waiting, None)
    end = case.requests[-1].arrival if case.requests else 0.0
    while request is not None:
        at += ROUTER_SECONDS
        while request is not None and request.arrival <= at:
            fleet.route(request, request.arrival)
            request = next(waiting, None)
        fleet.advance(at)
        if at - looked >= LOOK_SECONDS - 1e-6:
            looked, before = at, wanted
            wanted = min(max(rule.wanted(*fleet.look(at)), case.least), case.most)
            changes += wanted != before and at >= case.unscored
            largest = max(largest, wanted)
            fleet.resize(wanted, at)
    cost = fleet.gpu_seconds + sum(fleet.cost(pod, end) for pod in fleet.pods)
    # The requests inside finish; this time costs nothing for any rule.
    while any(pod.engine and pod.engine.requests for pod in fleet.pods) or fleet.held:
        at += 10.0
        fleet.advance(at)
    total = max(1, score.total)
    kept = 1 - score.missed / total
    return Result(kept, score.late / total, score.slow / total, cost / 3600, changes, largest)


def lower_bound(case: Case, bucket: float = 60.0) -> float:
    """GPU-hours that no schedule undercuts by much: the least work of each minute's requests, at least `least`.

    The least work of a request is its own prefill, its KV reads, and its share of decode steps in the largest batch
    that the step time, the slots and the cache allow. The fleet may have any fraction of a replica, and starts at once.
    """
    speed = case.speed
    if not case.requests:
        return 0.0
    work = [0.0] * (int(case.requests[-1].arrival // bucket) + 1)
    for request in case.requests:
        context = request.prompt + request.output / 2
        batch = min((OUTPUT_TOKEN_SECONDS - speed.floor) / (speed.cached * context), speed.pool / context, speed.slots)
        share = speed.floor / max(1.0, batch) + speed.cached * context
        prefill = speed.prefill * request.prompt + speed.attention * request.prompt**2 / 2
        work[int(request.arrival // bucket)] += prefill + request.output * share
    scored = work[int(case.unscored // bucket) :]
    return sum(max(case.least * bucket, each) for each in scored) * speed.gpus / 3600
