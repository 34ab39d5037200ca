"""A simulated fleet: pods that start, serve, drain and end, a router, and a scaling rule that looks every 2 s."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.autoscaling.engine import Done, Engine, Request, Speed
from qwen_operator.scaling.types import EngineLoad, EnginePod, Sample, Work

LOOK_SECONDS = 2.0
# The router sees the end of a request at most this late.
ROUTER_SECONDS = 0.2
# The operator's looks are up to so much later (autoscaler.JITTER).
JITTER = 0.1
PERCENTILES = (0.5, 0.95, 0.99)
MOMENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep.

    Its first token comes within `first_token` seconds, or within `long_prompt` times the prefill of its prompt on an
    idle replica if that is more. Decoding takes at most `output_token` seconds per token, of at least `least_output`
    tokens.
    """

    first_token: float = 2.0
    long_prompt: float = 2.5
    output_token: float = 0.1
    least_output: int = 32


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
    """What is simulated. The fleet has `least` replicas at first.

    `unscored`: seconds at the start that count for nothing. `seed`: if set, the looks have the operator's jitter;
    otherwise each is 2 s after the last.
    """

    requests: Sequence[Request]
    speed: Speed
    start: float = 180.0
    unscored: float = 0.0
    least: int = 1
    most: int = 64
    objective: Objective = Objective()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """`kept`: the share of requests within the objective. `late`: those with a late first token; `slow`: with slow
    decoding. `gpu_hours`: from the creation of each pod to its end. `changes`: how often the wanted size changed.

    `first_token`, `output_token`: seconds at PERCENTILES, the second of requests with more than one token.
    `replicas`: the mean number of pods.
    """

    kept: float
    late: float
    slow: float
    gpu_hours: float
    changes: int
    largest: int
    first_token: tuple[float, ...] = ()
    output_token: tuple[float, ...] = ()
    replicas: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A look: the wanted size, pods that answer, all pods, and requests in the system."""

    at: float
    wanted: int
    ready: int
    pods: int
    requests: int


@dataclass(slots=True)
class Story:
    """How a run went, for a picture: one moment in MOMENT_SECONDS, and when the requests arrived that were missed."""

    moments: list[Moment] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Score:
    case: Case
    total: int = 0
    late: int = 0
    slow: int = 0
    missed: int = 0
    story: Story | None = None
    first: array[float] = field(default_factory=lambda: array("d"))
    token: array[float] = field(default_factory=lambda: array("d"))

    def done(self, done: Done) -> None:
        request = done.request
        if request.arrival < self.case.unscored:
            return
        objective = self.case.objective
        limit = max(objective.first_token, objective.long_prompt * self.case.speed.unloaded_prefill(request.prompt))
        waited, decoding = done.first - request.arrival, done.last - done.first
        late = waited > limit
        slow = decoding > objective.output_token * max(objective.least_output, request.output - 1)
        self.total += 1
        self.late += late
        self.slow += slow
        self.missed += late or slow
        self.first.append(waited)
        if request.output > 1:
            self.token.append(decoding / (request.output - 1))
        if self.story is not None and (late or slow):
            self.story.missed.append(request.arrival)


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

    def moment(self, at: float, wanted: int) -> Moment:
        ready = sum(pod.engine is not None and not pod.draining for pod in self.pods)
        inside = sum(pod.engine.requests for pod in self.pods if pod.engine is not None)
        return Moment(at, wanted, ready, len(self.pods), inside + len(self.held))

    def look(self, at: float) -> tuple[Sample, tuple[EnginePod, ...]]:
        engines, loads = [], []
        for pod in self.pods:
            engine = pod.engine
            limit = self.case.speed.slots
            engines.append(EnginePod(pod.name, pod.name, ready=engine is not None, draining=pod.draining, limit=limit))
            if engine is not None:
                work = Work(engine.prefilled, engine.shown_decoded, engine.idle, engine.decoding)
                running, queued = engine.running, engine.queued
                load = EngineLoad(
                    pod.name, pod.name, running, queued, engine.used, self.case.speed.pool, running + queued, work
                )
                loads.append(load)
        return Sample(at, tuple(loads)), tuple(engines)


def simulate(case: Case, rule: Rule, story: Story | None = None) -> Result:
    """Replays the requests open-loop, whatever the fleet does with them. Fills the story, if there is one."""
    score = _Score(case, story=story)
    fleet = _Fleet(case, score.done)
    for _ in range(case.least):
        fleet.grow(0.0, 0.0)
    fleet.advance(0.0)
    chance = random.Random(case.seed)
    look, wanted, changes, largest, at = LOOK_SECONDS, case.least, 0, case.least, 0.0
    waiting = iter(case.requests)
    request = next(waiting, None)
    end = case.requests[-1].arrival if case.requests else 0.0
    while request is not None:
        at += ROUTER_SECONDS
        while request is not None and request.arrival <= at:
            fleet.route(request, request.arrival)
            request = next(waiting, None)
        fleet.advance(at)
        if at >= look - 1e-6:
            look, before = at + LOOK_SECONDS * (1 + (JITTER * chance.random() if case.seed is not None else 0)), wanted
            wanted = min(max(rule.wanted(*fleet.look(at)), case.least), case.most)
            changes += wanted != before and at >= case.unscored
            largest = max(largest, wanted)
            fleet.resize(wanted, at)
            if story is not None and (not story.moments or at - story.moments[-1].at >= MOMENT_SECONDS):
                story.moments.append(fleet.moment(at, wanted))
    cost = fleet.gpu_seconds + sum(fleet.cost(pod, end) for pod in fleet.pods)
    # The requests inside finish; this time costs nothing for any rule.
    while any(pod.engine and pod.engine.requests for pod in fleet.pods) or fleet.held:
        at += 10.0
        fleet.advance(at)
    total = max(1, score.total)
    kept = 1 - score.missed / total
    hours = cost / 3600
    scored = max(1e-9, end - case.unscored)
    return Result(
        kept=kept,
        late=score.late / total,
        slow=score.slow / total,
        gpu_hours=hours,
        changes=changes,
        largest=largest,
        first_token=percentiles(score.first),
        output_token=percentiles(score.token),
        replicas=cost / case.speed.gpus / scored,
    )


def percentiles(values: array[float]) -> tuple[float, ...]:
    """The values at PERCENTILES; () if there are none."""
    ranked = sorted(values)
    return tuple(ranked[min(len(ranked) - 1, int(len(ranked) * share))] for share in PERCENTILES) if ranked else ()


def lower_bound(case: Case, bucket: float = 60.0) -> float:
    """GPU-hours that no schedule undercuts by much: the least work of each minute's requests, at least `least`.

    The least work of a request is its own prefill, its KV reads, and its share of decode steps in the largest batch
    that the step time, the slots and the cache allow. The fleet may have any fraction of a replica, and starts at once.
    """
    scored = work_of(case, bucket)[int(case.unscored // bucket) :]
    return sum(max(case.least * bucket, each) for each in scored) * case.speed.gpus / 3600


def work_of(case: Case, bucket: float) -> list[float]:
    """The least work of the requests of each bucket, in seconds of one replica."""
    speed, limit = case.speed, case.objective.output_token
    if not case.requests:
        return []
    work = [0.0] * (int(case.requests[-1].arrival // bucket) + 1)
    for request in case.requests:
        context = request.prompt + request.output / 2
        batch = min((limit - speed.floor) / (speed.cached * context), speed.pool / context, speed.slots)
        share = speed.floor / max(1.0, batch) + speed.cached * context
        prefill = speed.prefill * request.prompt + speed.attention * request.prompt**2 / 2
        work[int(request.arrival // bucket)] += prefill + request.output * share
    return work
