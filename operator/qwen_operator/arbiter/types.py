"""The input and the answer of the arbiter. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_operator.objects import ObjectKey


@dataclass(frozen=True, slots=True)
class Seat:
    """One replica that exists. `node`: "" while it has none. `draining`: it goes, unless somebody cancels that."""

    name: str
    node: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What one deployment wants of a pool.

    `priority`: the value of its PriorityClass. `gpus`: GPUs of one replica. `least`: the replicas that are guaranteed,
    from minReplicas or spec.replicas. `wanted`: the replicas that it wants. `seats`: its replicas, those first that it
    would give up first. `nodes`: the nodes on which it may run.
    """

    key: ObjectKey
    priority: int
    gpus: int
    least: int
    wanted: int
    seats: tuple[Seat, ...] = ()
    nodes: frozenset[str] = frozenset()

    @property
    def guaranteed(self) -> int:
        """The replicas that no extra replica of others may take. A model that somebody asks for keeps its first one."""
        return min(self.wanted, max(self.least, 1))


@dataclass(frozen=True, slots=True)
class Pool:
    """The GPUs of each node, and the GPUs for which the quotas of a namespace have room (absent: no limit)."""

    nodes: Mapping[str, int]
    quotas: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer for one deployment.

    `replicas`: how many it may have now, at most `wanted`. `drains`: names of its replicas that it must give up for
    others. `returns`: names of its draining replicas that stay. `waits_for`: why it gets no more, if it wants more: the
    deployments that hold GPUs on its nodes, the largest first.
    """

    replicas: int
    drains: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    waits_for: tuple[ObjectKey, ...] = ()
