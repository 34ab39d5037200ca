"""The input and the answer of the arbiter. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_operator.manifests.names import Manifest
from qwen_operator.objects import ObjectKey


@dataclass(frozen=True, slots=True)
class Ask:
    """What the last decision about a deployment would do if nobody limited it.

    `wanted`: the replicas that it would have, with the successors of a rollout. `least`: how many of them minReplicas
    or spec.replicas guarantees. `pod`: the first pod of a new replica, and `pods` how many it has. `order`: names of
    its replicas, those first that it would give up first. `creates`: how many it would create now.
    """

    uid: str
    wanted: int
    least: int
    pod: Manifest
    pods: int = 1
    order: tuple[str, ...] = ()
    creates: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """What a new replica takes: so many pods with so many GPUs each."""

    resource: str
    gpus: int
    pods: int


@dataclass(frozen=True, slots=True)
class Seat:
    """One replica that exists.

    `nodes`: the nodes that its pods have. `pins`: the only nodes that its other pods may get; () if any node will do.
    `draining`: it goes, unless somebody cancels that. `gpus`: GPUs of one pod, 0 for those of the claim. `stuck`: it
    has waited for a node for too long. `late`: those of its nodes that it does not give back soon, although it goes.
    `gated`: all its pods are held back, so it has no GPU, and none can get one without the operator.
    """

    name: str
    nodes: tuple[str, ...] = ()
    draining: bool = False
    pins: tuple[str, ...] = ()
    gpus: int = 0
    stuck: bool = False
    late: tuple[str, ...] = ()
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What one deployment wants of a pool.

    `priority`: the value of its PriorityClass. `gpus`: GPUs of one pod. `least`: the replicas that are guaranteed, from
    minReplicas or spec.replicas. `wanted`: the replicas that it wants. `seats`: its replicas, those first that it would
    give up first. `nodes`: the nodes on which its pods may run. `pods`: pods of one replica, each on its own node.
    `drains_others`: others may have to drain for it. `resource`: the resource of the pool.
    """

    key: ObjectKey
    priority: int
    gpus: int
    least: int
    wanted: int
    seats: tuple[Seat, ...] = ()
    nodes: frozenset[str] = frozenset()
    pods: int = 1
    drains_others: bool = True
    resource: str = ""

    def size(self, seat: Seat) -> int:
        """The GPUs of one pod of a replica. An earlier revision may have had more or fewer."""
        return seat.gpus or self.gpus

    @property
    def guaranteed(self) -> int:
        """The replicas that no extra replica of others may take. A model that somebody asks for keeps its first one."""
        return min(self.wanted, max(self.least, 1))


@dataclass(frozen=True, slots=True)
class Pool:
    """The GPUs of each node that no pod of somebody else has. `full`: nodes on which a deployment's pod has no room for
    another reason, such as memory. `coming`: GPUs of each node that pods of somebody else are about to give back."""

    nodes: Mapping[str, int]
    full: frozenset[tuple[ObjectKey, str]] = frozenset()
    coming: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer for one deployment.

    `replicas`: how many it may have now, at most `wanted`. `drains`: names of its replicas that it must give up for
    others. `returns`: names of its draining replicas that stay. `waits_for`: why it gets no more, if it wants more: the
    deployments that hold GPUs on its nodes, the largest first. `places`: for each replica that it may create now, the
    nodes of its pods. `size`: the replicas for which these have room. `awaited`: the nodes that get empty for it.
    `asked`: how many it asked for. `unlimited`: nobody competes with it by priority.
    """

    replicas: int
    drains: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    waits_for: tuple[ObjectKey, ...] = ()
    places: tuple[tuple[str, ...], ...] = ()
    awaited: tuple[str, ...] = field(default=(), compare=False)
    asked: int = 0
    unlimited: bool = False
    size: Size | None = None

    @property
    def is_short(self) -> bool:
        """Whether it may have fewer than it asked for."""
        return self.replicas < self.asked


UNLIMITED = Grant(replicas=1_000_000, unlimited=True)

HOLD = Grant(replicas=1_000_000)
"""Until the arbiter has looked: nothing drains, and nothing is created."""
