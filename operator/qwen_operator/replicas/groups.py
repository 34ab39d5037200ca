"""Replicas: groups of one or more pods that run one engine together, and that start and end together. Pure.

The first pod of a group is its leader. The gateway routes to it, and its labels and annotations hold what the operator
plans with the group.

A planned removal has three steps. The leader shows each of them, so that any operator process can take the next one:

1. The leader loses its routable label and gets the time of that: the replica is *draining* and gets no new requests.
2. The replica is idle, or its time is over.
3. The operator deletes its pods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.names import (
    LABEL_ROLE,
    ROLE_INSPECTION,
    Manifest,
    engine_pod_names,
    is_adapter_pod_name,
    is_fetch_pod_name,
)
from qwen_operator.manifests.ownership import Ownership, ownership
from qwen_operator.replicas.failures import ENDED_WITH_ANOTHER
from qwen_operator.replicas.node_health import NodeHealth, stays_when_cordoned
from qwen_operator.replicas.pod_state import PodState

# The steps to an engine that answers.
_STEPS = (Reason.WAITING_FOR_NODE, Reason.WAITING_FOR_GPUS, Reason.STARTING, Reason.LOADING)
# The longest possible drain. A time further in the future comes from a wrong clock or from an edited annotation.
_FARTHEST_AHEAD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Replica:
    """The existing pods of one replica, sorted by rank; at least one. `pods` of them make it whole.

    `serves_as`: the revision that its engine runs by now, if it started with another one; else "".
    """

    members: tuple[PodState, ...]
    pods: int = 1
    serves_as: str = ""

    @property
    def leader(self) -> PodState:
        """The first member. If the group lost it, the first of the remaining members."""
        return self.members[0]

    @property
    def name(self) -> str:
        return self.leader.replica

    @property
    def revision(self) -> str:
        return self.serves_as or self.leader.revision

    @property
    def index(self) -> int | None:
        """The index of the replica; None if the operator does not give such names to pods."""
        return self.leader.index

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """The ranks whose pods do not exist."""
        there = {member.rank for member in self.members}
        return tuple(rank for rank in range(self.pods) if rank not in there)

    @property
    def whole(self) -> bool:
        return not self.missing_ranks

    @property
    def up(self) -> bool:
        """Whether the engine answers. The gateway may not use it yet."""
        return self.whole and all(member.up for member in self.members)

    @property
    def ready(self) -> bool:
        """Whether it answers directly and through the gateway."""
        return self.up and not self.settles_in

    @property
    def settles_in(self) -> float:
        """Seconds until a replica that is up becomes ready."""
        return max(member.settles_in for member in self.members)

    @property
    def rests_in(self) -> float:
        """Seconds for which a replica stays although its node ended it before it ran."""
        return max(member.rests_in for member in self.members)

    @property
    def started(self) -> bool:
        """Whether its engine came up once. If it does not answer now, it may answer again."""
        return all(member.started for member in self.members)

    @property
    def deleting(self) -> bool:
        """Whether at least one of its pods is being deleted."""
        return any(member.deleting for member in self.members)

    @property
    def broken(self) -> bool:
        """Whether it lost a member: a pod has ended finally, or is missing although another one has started."""
        ended = any(member.ended for member in self.members)
        return ended or (not self.whole and any(member.started for member in self.members))

    @property
    def draining(self) -> bool:
        """Whether it gets no new requests because the operator removes it."""
        return self.leader.draining_since is not None

    @property
    def routable(self) -> bool:
        """Whether the gateway may send it requests once it is ready."""
        return self.leader.rank == 0 and self.leader.routable

    @property
    def bound(self) -> bool:
        """Whether every one of its pods has a node."""
        return self.whole and all(member.node for member in self.members)

    @property
    def crash_looping(self) -> bool:
        return any(member.crash_looping for member in self.members)

    @property
    def on_the_way(self) -> bool:
        """Not ready yet, but nothing prevents it from becoming ready."""
        return not self.ready and all(member.ready or member.on_the_way for member in self.members)

    @property
    def _explaining_member(self) -> PodState:
        """The member whose reason counts for the replica.

        Rather a stuck one than one that is still starting, rather the one that ended first than one that ended with it,
        and of those that start the one that is furthest behind.
        """

        def place(member: PodState) -> tuple[bool, bool, int]:
            behind = _STEPS.index(member.reason) if member.reason in _STEPS else 0
            return member.on_the_way, member.reason in ENDED_WITH_ANOTHER, behind

        return min((member for member in self.members if not member.ready), key=place, default=self.leader)

    @property
    def explaining_pod(self) -> str:
        """The name of the pod whose reason counts for the replica."""
        return self._explaining_member.name

    @property
    def reason(self) -> Reason:
        if self._explaining_member.ready and not self.whole:
            return Reason.STARTING
        return self._explaining_member.reason

    @property
    def message(self) -> str:
        if self._explaining_member.ready and not self.whole:
            ranks = ", ".join(str(rank) for rank in self.missing_ranks)
            return f"{self.name} waits for its pods of rank {ranks}"
        return self._explaining_member.message

    def drains_since(self, now: datetime) -> datetime | None:
        """When the drain began; None if the annotation is invalid."""
        return _noted(self.leader.draining_since, now)

    def drains_for(self, now: datetime) -> float:
        """Seconds since the drain began."""
        return seconds_since(self.drains_since(now), now)

    def cordoned_for(self, now: datetime) -> float | None:
        """Seconds since the operator noted that one of its nodes is cordoned; None without such a note."""
        stamp = self.leader.cordoned_since
        return None if stamp is None else seconds_since(_noted(stamp, now), now)

    def cordoned_node(self, nodes: NodeHealth) -> str:
        """The cordoned node that it must leave; "" if there is none."""
        for member in self.members:
            if member.node in nodes.cordoned and not stays_when_cordoned(member.manifest):
                return member.node
        return ""

    def lost_node(self, nodes: NodeHealth) -> str:
        """The deleted node on which one of its members had come up; "" if there is none."""
        return next((member.node for member in self.members if member.started and nodes.gone(member.node)), "")


@dataclass(frozen=True, slots=True)
class SortedReplicas:
    """All replicas of a deployment, sorted by what the operator does with them.

    `fresh`: replicas of the revision to run. While another revision is held back, all replicas that came up.
    `leaving`: of another revision or on a cordoned node. They serve until a fresh replica answers in their place.
    `draining`: without new requests, before their deletion.
    `ended`: a pod has ended finally.
    `never_started`: of another revision, and they never came up.
    `held`: of a revision that is held back, and they have not come up. They stay, so that people can read their logs.
    `misnamed`: pods that carry the deployment's marks, but not a name that the operator gives.
    `gone`: being deleted, or on a node that no longer exists. They do not count any more.

    A replica that has not come up yet is never `gone` because of its node: the node may be newer than the operator's
    view of the nodes. Kubernetes itself deletes the pods of a node that is gone.
    """

    fresh: tuple[Replica, ...] = ()
    leaving: tuple[Replica, ...] = ()
    draining: tuple[Replica, ...] = ()
    ended: tuple[Replica, ...] = ()
    never_started: tuple[Replica, ...] = ()
    held: tuple[Replica, ...] = ()
    misnamed: tuple[Replica, ...] = ()
    gone: tuple[Replica, ...] = ()

    @property
    def serving(self) -> tuple[Replica, ...]:
        """All replicas that get requests or will get them."""
        return (*self.fresh, *self.leaving, *self.never_started, *self.held)

    def with_messages(self, messages: Mapping[str, str]) -> SortedReplicas:
        """The same with the message why some replicas, by their names, wait for GPUs."""
        if not messages:
            return self
        places = {part.name: getattr(self, part.name) for part in fields(self)}
        return SortedReplicas(
            **{name: tuple(_with_message(one, messages) for one in group) for name, group in places.items()}
        )

    def without(self, names: Collection[str]) -> SortedReplicas:
        """The same without the replicas of these names."""
        if not names:
            return self
        places = {part.name: getattr(self, part.name) for part in fields(self)}
        return SortedReplicas(
            **{name: tuple(one for one in group if one.name not in names) for name, group in places.items()}
        )

    @property
    def all(self) -> tuple[Replica, ...]:
        return (*self.serving, *self.draining, *self.ended, *self.misnamed, *self.gone)

    def count(self, wanted: int, max_surge: int) -> int:
        """The number of replicas that exist. Successors beside the replicas that they will replace do not count."""
        total = len(self.serving)
        if not (self.leaving or self.held):
            return total
        # A cordoned node's replica has a successor beside it even if max_surge is 0.
        return total - min(max(1, max_surge), max(0, total - wanted))

    def answering(self, wanted: int, max_surge: int) -> int:
        """The number of replicas that answer."""
        return min(self.count(wanted, max_surge), sum(replica.ready for replica in self.serving))


def is_engine_of(pod: Manifest, deployment: Manifest) -> bool:
    """Whether the pod belongs to a replica of exactly this deployment, and not of an earlier one of its name."""
    name, own = pod["metadata"]["name"], deployment["metadata"]["name"]
    inspection = name.endswith("-inspect") or objects.labels(pod).get(LABEL_ROLE) == ROLE_INSPECTION
    fetch = is_fetch_pod_name(own, name) or is_adapter_pod_name(own, name)
    return not inspection and not fetch and ownership(pod, deployment) is Ownership.OWNED


def is_fetch_of(pod: Manifest, deployment: Manifest) -> bool:
    """Whether the pod fetches a model for exactly this deployment before engine pods need it."""
    named = is_fetch_pod_name(deployment["metadata"]["name"], pod["metadata"]["name"])
    return named and ownership(pod, deployment) is Ownership.OWNED


def fetches_adapter_of(pod: Manifest, deployment: Manifest) -> bool:
    """Whether the pod fetches an adapter for engines of exactly this deployment that serve."""
    named = is_adapter_pod_name(deployment["metadata"]["name"], pod["metadata"]["name"])
    return named and ownership(pod, deployment) is Ownership.OWNED


def groups_of(states: Iterable[PodState], pods_of_revisions: Mapping[str, int] | None = None) -> tuple[Replica, ...]:
    """The replicas that these pods form, sorted by name.

    `pods_of_revisions`: how many pods a replica of each pinned revision has. For another revision the annotation of
    the pods counts, which anybody may edit. A pod that has no place in its replica is a misnamed replica of its own,
    so that no foreign pod can make a serving replica look broken.
    """
    sizes = pods_of_revisions or {}
    groups: dict[str, list[PodState]] = {}
    for state in states:
        groups.setdefault(state.replica, []).append(state)
    replicas: list[Replica] = []
    for name, group in groups.items():
        size = sizes.get(group[0].revision) or _size_by_annotation(name, group)
        names = engine_pod_names(name, size)
        members = [state for state in group if state.name in names]
        if members:
            replicas.append(Replica(tuple(sorted(members, key=lambda member: member.rank)), size))
        replicas += [
            Replica((replace(state, replica=state.name, index=None, rank=0),))
            for state in group
            if state.name not in names
        ]
    return tuple(sorted(replicas, key=lambda replica: replica.name))


def _size_by_annotation(name: str, group: Sequence[PodState]) -> int:
    """A pod without a rank in its name is a whole replica, whatever its annotation says."""
    if any(state.name == name for state in group):
        return 1
    return max(2, *(state.replica_pods for state in group))


def sort_replicas(
    replicas: Sequence[Replica], revision: str, nodes: NodeHealth, held: Collection[str] = ()
) -> SortedReplicas:
    """Sort the replicas. `revision` is the revision to run; "" if there is none.

    `held`: the names of the replicas that are held back. If there are any, no rollout goes on.
    """
    places: dict[str, list[Replica]] = {}
    for replica in replicas:
        places.setdefault(_place(replica, revision, nodes, held), []).append(replica)
    return SortedReplicas(**{place: tuple(group) for place, group in places.items()})


def _place(replica: Replica, revision: str, nodes: NodeHealth, held: Collection[str]) -> str:
    other = replica.revision != revision
    checks = (
        (replica.deleting or replica.lost_node(nodes), "gone"),
        (replica.index is None, "misnamed"),
        (replica.broken and not replica.rests_in, "ended"),
        (replica.draining, "draining"),
        (replica.name in held, "held"),
        (other and not replica.started, "never_started"),
        (other and not held, "leaving"),
        (replica.started and replica.cordoned_node(nodes), "leaving"),
    )
    return next((place for holds, place in checks if holds), "fresh")


def _with_message(replica: Replica, messages: Mapping[str, str]) -> Replica:
    message = messages.get(replica.name)
    if message is None:
        return replica
    members = (replace(member, reason=Reason.WAITING_FOR_GPUS, message=message) for member in replica.members)
    return replace(replica, members=tuple(members))


def seconds_since(then: datetime | None, now: datetime) -> float:
    """Returns infinity for an invalid timestamp, so that a bad annotation cannot block a drain."""
    return float("inf") if then is None else (now - then).total_seconds()


def _noted(stamp: object, now: datetime) -> datetime | None:
    """The time in an annotation of the operator; None if it is invalid or too far in the future."""
    then = objects.moment(stamp)
    return None if then is None or then - now > _FARTHEST_AHEAD else then
