"""Replicas: groups of one or more pods that run one engine together, live and end together. Pure.

The first pod of a group, its leader, is the one that the gateway routes to and whose labels and annotations say what
is planned with the group. A planned removal takes three steps, each of which can be seen in the leader, so that any
process can take the next one: without the routable label and with the time of that the replica is *draining* and gets
no new requests; it is idle, or out of time; its pods are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.names import LABEL_ROLE, ROLE_INSPECTION, Manifest
from qwen_operator.manifests.ownership import Ownership, ownership
from qwen_operator.replicas.node_health import NodeHealth, stays_when_cordoned
from qwen_operator.replicas.pod_state import PodState

# The longest drain. Clocks that differ by more are no clocks, and who edits an annotation may write any time.
_FARTHEST_AHEAD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Replica:
    """The pods of one replica that exist, by rank; at least one."""

    members: tuple[PodState, ...]

    @property
    def leader(self) -> PodState:
        """The first member; of a group that lost it, the first that is left."""
        return self.members[0]

    @property
    def name(self) -> str:
        return self.leader.replica

    @property
    def revision(self) -> str:
        return self.leader.revision

    @property
    def index(self) -> int | None:
        """Which replica it is; None for a pod that has no name of ours."""
        return self.leader.index

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """The ranks whose pods do not exist."""
        there = {member.rank for member in self.members}
        return tuple(rank for rank in range(self.leader.replica_pods) if rank not in there)

    @property
    def whole(self) -> bool:
        return not self.missing_ranks

    @property
    def up(self) -> bool:
        """Whether the engine answers, be it that the gateway does not send it anything yet."""
        return self.whole and all(member.up for member in self.members)

    @property
    def ready(self) -> bool:
        """Whether it answers, also through the gateway."""
        return self.up and not self.settles_in

    @property
    def settles_in(self) -> float:
        """Seconds until a replica that is up is ready."""
        return max(member.settles_in for member in self.members)

    @property
    def started(self) -> bool:
        """Whether its engine came up, so that it may answer again if it does not now."""
        return all(member.started for member in self.members)

    @property
    def deleting(self) -> bool:
        """Whether it is on its way out, as soon as one of its pods is."""
        return any(member.deleting for member in self.members)

    @property
    def broken(self) -> bool:
        """Whether a member came to its end: a pod ended for good, or is gone after another one had started."""
        ended = any(member.ended for member in self.members)
        return ended or (not self.whole and any(member.started for member in self.members))

    @property
    def draining(self) -> bool:
        """Whether it gets no new requests because it is about to be removed."""
        return self.leader.draining_since is not None

    @property
    def routable(self) -> bool:
        """Whether the gateway may send it requests once it is ready."""
        return self.leader.rank == 0 and self.leader.routable

    @property
    def bound(self) -> bool:
        """Whether every pod of it has a node."""
        return self.whole and all(member.node for member in self.members)

    @property
    def crash_looping(self) -> bool:
        return any(member.crash_looping for member in self.members)

    @property
    def on_the_way(self) -> bool:
        """Not ready, but nothing says that it will not be."""
        return not self.ready and all(member.ready or member.on_the_way for member in self.members)

    @property
    def _telling(self) -> PodState:
        """The member whose reason says most: one that cannot go on before one that is on its way."""
        waiting = [member for member in self.members if not member.ready]
        return min(waiting, key=lambda member: member.on_the_way, default=self.leader)

    @property
    def reason(self) -> Reason:
        if self._telling.ready and not self.whole:
            return Reason.STARTING
        return self._telling.reason

    @property
    def message(self) -> str:
        if self._telling.ready and not self.whole:
            ranks = ", ".join(str(rank) for rank in self.missing_ranks)
            return f"{self.name} waits for its pods of rank {ranks}"
        return self._telling.message

    def drains_since(self, now: datetime) -> datetime | None:
        """When it was made unroutable; None if that cannot be read."""
        return _noted(self.leader.draining_since, now)

    def drains_for(self, now: datetime) -> float:
        """Seconds since it was made unroutable."""
        return seconds_since(self.drains_since(now), now)

    def cordoned_for(self, now: datetime) -> float | None:
        """Seconds since the operator saw that a node of it is cordoned; None if it has not noted that yet."""
        stamp = self.leader.cordoned_since
        return None if stamp is None else seconds_since(_noted(stamp, now), now)

    def cordoned_node(self, nodes: NodeHealth) -> str:
        """The node of it that is to be emptied, "" where there is none."""
        on = (one.node for one in self.members if one.node in nodes.cordoned and not stays_when_cordoned(one.manifest))
        return next(on, "")

    def lost_node(self, nodes: NodeHealth) -> str:
        """The node that does not exist any more on which a member came up, "" where there is none."""
        return next((one.node for one in self.members if one.started and nodes.gone(one.node)), "")


@dataclass(frozen=True, slots=True)
class SortedReplicas:
    """All replicas of a deployment by what is to become of them.

    `fresh`: of the revision to run, they count. `leaving`: they serve until a fresh one answers in their place,
    because they are of another revision or on a cordoned node. `draining`: on their way out. `ended`: a pod of it
    ended for good. `useless`: of another revision and never came up. `strange`: ours by mark, but without a name of
    ours.

    `gone`: being deleted, or on a node that exists no more; nothing is asked of them. What has not come up yet is not
    among the latter: its node may be newer than the operator's view of the nodes, and Kubernetes itself removes the
    pods of a node that is gone.
    """

    fresh: tuple[Replica, ...] = ()
    leaving: tuple[Replica, ...] = ()
    draining: tuple[Replica, ...] = ()
    ended: tuple[Replica, ...] = ()
    useless: tuple[Replica, ...] = ()
    strange: tuple[Replica, ...] = ()
    gone: tuple[Replica, ...] = ()

    @property
    def serving(self) -> tuple[Replica, ...]:
        """All that get requests, or will."""
        return (*self.fresh, *self.leaving, *self.useless)

    @property
    def all(self) -> tuple[Replica, ...]:
        return (*self.serving, *self.draining, *self.ended, *self.strange, *self.gone)

    def count(self, wanted: int) -> int:
        """Replicas that exist: one that is started beside the one it will replace is not another one."""
        total = len(self.serving)
        return total - 1 if self.leaving and total > wanted else total

    def answering(self, wanted: int) -> int:
        """Replicas that answer."""
        return min(self.count(wanted), sum(replica.ready for replica in self.serving))


def is_engine_of(pod: Manifest, deployment: Manifest) -> bool:
    """Whether the pod belongs to a replica of this very deployment."""
    inspection = pod["metadata"]["name"].endswith("-inspect") or objects.labels(pod).get(LABEL_ROLE) == ROLE_INSPECTION
    return not inspection and ownership(pod, deployment) is Ownership.OWNED


def groups_of(states: Iterable[PodState]) -> tuple[Replica, ...]:
    """The replicas that these pods make, in order of names."""
    members: dict[str, list[PodState]] = {}
    for state in states:
        members.setdefault(state.replica, []).append(state)
    return tuple(Replica(tuple(sorted(group, key=lambda member: member.rank))) for _, group in sorted(members.items()))


def sort_replicas(replicas: Sequence[Replica], revision: str, nodes: NodeHealth) -> SortedReplicas:
    """The replicas sorted; `revision` is the one to run, "" if there is none."""
    places: dict[str, list[Replica]] = {}
    for replica in replicas:
        places.setdefault(_place(replica, revision, nodes), []).append(replica)
    return SortedReplicas(**{place: tuple(group) for place, group in places.items()})


def _place(replica: Replica, revision: str, nodes: NodeHealth) -> str:
    checks = (
        (replica.deleting or replica.lost_node(nodes), "gone"),
        (replica.index is None, "strange"),
        (replica.broken, "ended"),
        (replica.draining, "draining"),
        (replica.revision != revision, "leaving" if replica.started else "useless"),
        (replica.started and replica.cordoned_node(nodes), "leaving"),
    )
    return next((place for holds, place in checks if holds), "fresh")


def seconds_since(then: datetime | None, now: datetime) -> float:
    """Returns infinity for an invalid timestamp, so that a bad annotation cannot block a drain."""
    return float("inf") if then is None else (now - then).total_seconds()


def _noted(stamp: object, now: datetime) -> datetime | None:
    """The time that an annotation of ours names; None for what is no time, or one that lies too far ahead."""
    then = objects.moment(stamp)
    return None if then is None or then - now > _FARTHEST_AHEAD else then
