"""The vocabulary of scaling: what was measured, between which bounds, and what reconcile is told. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_operator.api.conditions import Reason
from qwen_operator.objects import ObjectKey


@dataclass(frozen=True, slots=True)
class EnginePod:
    """The pod of a replica that answers requests, its leader, as the cluster describes it.

    `limit` is the most requests that it runs at once (--max-running-requests), 0 where that is left to SGLang.
    `cordoned`: it goes as soon as another one answers in its place.
    `model` is the value of the label model_name in its metrics, "" where it is not known.
    `replica` is the name of its replica, "" where that is the pod's own.
    """

    pod: str
    uid: str
    address: str = ""
    ready: bool = True
    draining: bool = False
    cordoned: bool = False
    limit: int = 0
    model: str = ""
    replica: str = ""

    @property
    def index(self) -> str:
        """The last part of the replica's name: which replica it is, in every revision."""
        return (self.replica or self.pod).rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which sizes the load decides, and for how many seconds a larger need is remembered."""

    least: int
    most: int
    window: float


@dataclass(frozen=True, slots=True)
class ScaledDeployment:
    """A QwenDeployment with its engine pods that are not being deleted; `bounds` None: the load does not decide.

    `shown` is the state that its status shows, from which an operator goes on that knows nothing yet; `size` the
    number that was wanted last, whoever decided it, None where nobody has yet.
    """

    key: ObjectKey
    uid: str
    engines: tuple[EnginePod, ...] = ()
    bounds: Bounds | None = None
    shown: ScalingState | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine said of itself. `queued` are requests in its scheduler's queues; tokens are those of its KV cache
    (0 of 0 where the engine does not say). `inside` counts every request that it has not finished with, at least
    those that run and wait."""

    pod: str
    uid: str
    running: int
    queued: int
    tokens_used: int
    tokens_capacity: int
    inside: int = 0

    @property
    def requests(self) -> int:
        """Requests that would be cut if the engine ended now."""
        return max(self.inside, self.running + self.queued)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all ready engines of a deployment at the monotonic second `at`.

    `problems` has an entry for each pod that cannot be read, or whose numbers stand still; such a pod is in
    `engines` no more. A pod that was never read and is not overdue, or that cannot be read and is draining, is in
    neither.
    """

    at: float
    engines: tuple[EngineLoad, ...] = ()
    problems: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What reconcile is told. A state that differs is a reason to look at the deployment again.

    wanted: size by the rule; None where nothing is known yet or the load does not decide.
    reason, message: for ScalingActive and status.scaling; the numbers are those of the decision, not of now.
    active: whether the load decides at present (ScalingActive).
    load: the LOAD column, a class that changes rarely: "-", "?", idle, low, high or over.
    removal_order: names of the engine pods, the first to go first. It follows every request, and is therefore no
        reason by itself to look again.
    idle: uids of draining pods in which two looks, at least two seconds apart, found no request.
    unfinished: requests in each draining pod by the last look, by uid; no reason to look again either.
    """

    wanted: int | None
    reason: Reason
    message: str
    active: bool
    load: str = "-"
    removal_order: tuple[str, ...] = field(default=(), compare=False)
    idle: frozenset[str] = frozenset()
    unfinished: Mapping[str, int] = field(default_factory=dict, compare=False)
