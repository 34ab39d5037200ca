"""The types of scaling: measurements, bounds, and the state that reconcile gets. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.objects import ObjectKey


@dataclass(frozen=True, slots=True)
class EnginePod:
    """The leader of a replica: the pod that answers requests.

    `limit`: the most requests that it runs at once (--max-running-requests); 0 if SGLang chooses it.
    `stages`: how many pipeline stages share these requests out among themselves.
    `cordoned`: the operator removes it as soon as another replica answers in its place.
    `model`: the value of the label model_name in its metrics; "" if it is unknown.
    `replica`: the name of its replica; "" if that is the name of the pod.
    `objective`: how soon its answers should come.
    """

    pod: str
    uid: str
    address: str = ""
    ready: bool = True
    draining: bool = False
    cordoned: bool = False
    limit: int = 0
    stages: int = 1
    model: str = ""
    replica: str = ""
    objective: Objective = field(default_factory=Objective)

    @property
    def index(self) -> str:
        """The last part of the replica's name. A replica and its successor of another revision can share it."""
        return (self.replica or self.pod).rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The smallest and largest size, and for how many seconds (`window`) a larger need counts.

    `idle_seconds`: with a `least` of 0, how long the model must be without requests before it sleeps. `objective`: how
    soon answers should come. `start_seconds`: what a start took here or should take, 0 if neither is known.
    """

    least: int
    most: int
    window: float
    idle_seconds: float = 0.0
    objective: Objective = field(default_factory=Objective)
    start_seconds: int = 0


@dataclass(frozen=True, slots=True)
class ScaledDeployment:
    """A QwenDeployment with its engine pods that are not being deleted.

    `bounds`: None if the load neither decides nor advises. `advises`: something else decides the size at present.
    `shown`: the state in its status, with which a new leader starts. `size`: the last wanted number, also if the spec
    decided it; None if there is none yet. `policy`: its name; "" for the default. `names`: the served names that it
    holds. `objective`: how soon its answers should come, also without bounds.
    """

    key: ObjectKey
    uid: str
    engines: tuple[EnginePod, ...] = ()
    bounds: Bounds | None = None
    advises: bool = False
    shown: ScalingState | None = None
    size: int | None = None
    policy: str = ""
    names: tuple[str, ...] = ()
    objective: Objective = field(default_factory=Objective)

    @property
    def may_sleep(self) -> bool:
        """Whether it may have no replicas while nobody asks for it."""
        return self.bounds is not None and self.bounds.least == 0


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine has done since its start: prompt tokens computed, tokens decoded, and seconds without work.

    `decoding`: the seconds that requests took for their tokens after the first, summed over the requests. Over a time,
    it grows by the integral of the requests that decode. None if the page does not say it.
    """

    prefilled: float
    decoded: float
    idle: float
    decoding: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """How many answers there were, and how many of them in time.

    `begun`: requests that got their first token, and `soon`: how many of them got it within the objective's limit.
    `ended`: complete answers of at least two tokens, and `fast`: how many of them kept the limit of time per token.
    """

    begun: int = 0
    soon: int = 0
    ended: int = 0
    fast: int = 0

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.begun + other.begun, self.soon + other.soon, self.ended + other.ended, self.fast + other.fast
        )

    def since(self, before: Answers) -> Answers:
        """What an engine answered between two of its counts; nothing if it restarted in between."""
        begun, soon = self.begun - before.begun, self.soon - before.soon
        ended, fast = self.ended - before.ended, self.fast - before.fast
        if min(begun, soon, ended, fast) < 0:
            return Answers()
        return Answers(begun, min(soon, begun), ended, min(fast, ended))


@dataclass(frozen=True, slots=True)
class Attained:
    """At least this percentage of the requests kept the objective; None if it is unknown."""

    hour: int | None = None
    day: int | None = None


UNKNOWN = Attained()


@dataclass(frozen=True, slots=True)
class Reported:
    """What an engine reports of its start. None: it does not report this.

    `kv_tokens`: tokens for which the whole KV cache has room. `weight_bytes`: what the weights took on the fullest GPU.
    `free_bytes`: what was free on the fullest GPU when the engine was ready. `startup_seconds`: how long that took.
    """

    kv_tokens: int | None = None
    weight_bytes: int | None = None
    free_bytes: int | None = None
    startup_seconds: int | None = None


NOTHING_REPORTED = Reported()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load that one engine reports.

    `queued`: requests in its scheduler's queues. The tokens are those of its KV cache (0 of 0 if it reports none).
    `inside`: all requests that it has not finished, at least the running and waiting ones. `work` and `answers`, since
    its start: None if it does not report all of these counters.
    """

    pod: str
    uid: str
    running: int
    queued: int
    tokens_used: int
    tokens_capacity: int
    inside: int = 0
    work: Work | None = None
    answers: Answers | None = None
    reported: Reported = NOTHING_REPORTED

    @property
    def requests(self) -> int:
        """The number of requests that would be cut if the engine ended now."""
        return max(self.inside, self.running + self.queued)


@dataclass(frozen=True, slots=True)
class Sample:
    """One scrape of all ready engines of a deployment at the monotonic second `at`.

    `problems` has an entry for each pod that is unreadable or whose numbers do not change. Such a pod is not in
    `engines`. Two kinds of pods are in neither: a pod that was never read and is not overdue, and an unreadable
    draining pod.
    """

    at: float
    engines: tuple[EngineLoad, ...] = ()
    problems: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many replicas, and why. If `active` is False, the number is kept because the load is unknown."""

    replicas: int
    reason: Reason
    message: str
    active: bool = True


@dataclass(frozen=True, slots=True)
class ScalingState:
    """The result of the scaling loop for one deployment. A changed state causes a reconcile.

    wanted: the size; None if nothing is known yet, or if the load neither decides nor advises.
    advises: something else decided the size when this was made. So `wanted` is advice, and never becomes the size.
    reason, message: for ScalingActive and status.scaling. The numbers are from the moment of the decision.
    active: whether the load decides at present (ScalingActive).
    load: the LOAD column, a class that changes rarely: "-", "?", idle, low, high or over.
    removal_order: names of the engine pods in the order of their removal. It changes with every request, so a change of
        it alone causes no reconcile.
    idle: uids of draining pods without requests in two scrapes at least two seconds apart.
    attained: how many requests kept the objective. It changes rarely.
    unfinished: requests in each draining pod at the last scrape, by uid. A change of it alone causes no reconcile.
    reported: what each ready engine reports of its start, by the pod's uid. It changes rarely.
    """

    wanted: int | None
    reason: Reason
    message: str
    active: bool
    advises: bool = False
    load: str = "-"
    removal_order: tuple[str, ...] = field(default=(), compare=False)
    idle: frozenset[str] = frozenset()
    attained: Attained = UNKNOWN
    unfinished: Mapping[str, int] = field(default_factory=dict, compare=False)
    reported: Mapping[str, Reported] = field(default_factory=dict)
