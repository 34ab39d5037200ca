"""From what the operator knows of deployments, pods and nodes to the claims on each pool of GPUs. Pure.

A pool is all nodes that offer one resource, such as nvidia.com/gpu or a MIG slice. GPUs of pods that take no part are
taken off the pool: those of other owners, and those of deployments that nobody arbitrates.

Deployments whose pods can never meet on a node do not compete. So a contest has the deployments that share nodes, and
what one team does on its nodes changes nothing for another team on other nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil

from qwen_operator import objects
from qwen_operator.arbiter.fits import HOSTNAME, depends_on_pods, requested
from qwen_operator.arbiter.types import Ask, Claim, Grant, Pool, Seat
from qwen_operator.manifests.names import ANNOTATION_RELEASED_AT, Manifest
from qwen_operator.objects import ObjectKey
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.node_affinity import takes
from qwen_operator.replicas.places import Need, Neighbours, Place, need_of, places_of
from qwen_operator.replicas.pod_state import PodState, is_gated

STUCK_SECONDS = 60.0
"""A pod that the scheduler has refused to place for so long, although its node has room, goes back."""
UNDECIDED_SECONDS = 900.0
"""So does one that the scheduler has not refused. It may wait for its volume: kube-scheduler gives that 600 seconds.

And so does one that is held back with its replica, although its nodes have room. Otherwise it would keep them for ever.
A deployment that comes before it takes them at once (see `decide`).
"""
LATE_SECONDS = 60.0
"""A pod that should have ended so long ago does not end soon: for example its node or its GPU is dead."""


@dataclass(frozen=True, slots=True)
class Party:
    """One deployment that takes part: what it asks for, the value of its PriorityClass, and its replicas."""

    key: ObjectKey
    ask: Ask
    priority: int
    replicas: tuple[Replica, ...]

    @property
    def is_served(self) -> bool:
        """Whether it has what it wants, and needs no decision."""
        return len(self.replicas) == self.ask.wanted and all(
            replica.bound and not (replica.draining or replica.deleting or replica.broken) for replica in self.replicas
        )


def served(party: Party) -> Grant:
    """What a deployment gets that has all that it wants."""
    return Grant(party.ask.wanted, asked=party.ask.wanted)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the claims are made of.

    `others`: the bound engine pods of deployments that take no part, and the pods of other owners on the nodes that
    were read. `full`: nodes on which a pod of a deployment has no room for another reason than GPUs.
    """

    parties: Sequence[Party]
    nodes: Sequence[Manifest]
    others: Iterable[Manifest]
    now: datetime
    full: frozenset[tuple[ObjectKey, str]] = frozenset()


@dataclass(slots=True)
class Contest:
    """The claims on the GPUs of one resource by deployments that share nodes."""

    pool: Pool
    claims: list[Claim] = field(default_factory=list)

    @property
    def priorities(self) -> frozenset[int]:
        """The priorities of its claims. If there is only one, kube-scheduler ends no pod of them for another one."""
        return frozenset(claim.priority for claim in self.claims)

    def free(self) -> Counter[str]:
        """The GPUs of each node that no replica has or is about to get."""
        free = Counter(dict(self.pool.nodes))
        for claim in self.claims:
            for seat in claim.seats:
                free.subtract(dict.fromkeys((*seat.nodes, *seat.pins), claim.size(seat)))
        return free


def contests(scene: Scene) -> list[Contest]:
    """The claims, apart by resource, and by nodes that no two of them share."""
    needs = {party.key: need_of(party.ask.pod) for party in scene.parties}
    hosts = hostnames(scene.nodes)
    names = {label: name for name, label in hosts.items()}
    places = [place for place in places_of(Neighbours(tuple(scene.nodes))) if place.name in hosts]
    pools = _pools(scene, needs, places)
    suitable: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    found: dict[str, list[tuple[Claim, frozenset[str]]]] = {}
    for party in scene.parties:
        resource = needs[party.key].resource
        # Most deployments ask the same of a node.
        like = _like(party)
        if like not in suitable:
            suits = frozenset(place.name for place in places if place.suits(needs[party.key]))
            suitable[like] = suits, _reach(party.ask.pod, scene.nodes)
        nodes, reach = suitable[like]
        claim = _claim(party, nodes & pools[resource].nodes.keys(), scene, names)
        held = {node for seat in claim.seats for node in (*seat.nodes, *seat.pins) if node}
        found.setdefault(resource, []).append((claim, reach | held))
    return [Contest(pools[resource], claims) for resource in found for claims in _connected(found[resource])]


def _pools(scene: Scene, needs: Mapping[ObjectKey, Need], places: Sequence[Place]) -> dict[str, Pool]:
    """The GPUs of each resource that somebody asks for."""
    strangers = [*scene.others]
    for party in scene.parties:
        strangers += [pod for pod in _pods(party.replicas) if need_of(pod).resource != needs[party.key].resource]
    taken = _taken(strangers)
    coming = _taken(pod for pod in strangers if _ends(pod, scene.now))
    pools = {}
    for resource in {need.resource for need in needs.values()}:
        gpus = {
            place.name: place.offered[resource] - taken[place.name, resource]
            for place in places
            if resource in place.offered
        }
        soon = {name: coming[name, resource] for name in gpus if coming[name, resource]}
        pools[resource] = Pool(gpus, scene.full, soon)
    return pools


def _reach(pod: Manifest, nodes: Iterable[Manifest]) -> frozenset[str]:
    """All nodes with the right labels: also those that take no pods now, or that offer no GPUs yet."""
    need = need_of(pod)
    labels = {str(objects.mapping(node, "metadata").get("name")): objects.labels(node) for node in nodes}
    return frozenset(
        name
        for name, have in labels.items()
        if all(have.get(key) == value for key, value in need.selector.items()) and takes(need.terms, name, have)
    )


def _connected(claims: Iterable[tuple[Claim, frozenset[str]]]) -> list[list[Claim]]:
    """The claims that share nodes with each other, directly or over others between them."""
    alike: dict[frozenset[str], list[Claim]] = {}
    for claim, reach in claims:
        alike.setdefault(reach, []).append(claim)
    groups: list[tuple[set[str], list[Claim]]] = []
    for reach, members in alike.items():
        meeting = [group for group in groups if not reach.isdisjoint(group[0])]
        groups = [group for group in groups if reach.isdisjoint(group[0])]
        nodes = set(reach).union(*(group[0] for group in meeting))
        groups.append((nodes, [*(claim for group in meeting for claim in group[1]), *members]))
    return [members for _, members in groups]


def hostnames(nodes: Iterable[Manifest]) -> dict[str, str]:
    """The label by which a pod can be sent to a node, by the node's name. Nodes that share one are left out."""
    labels = {str(objects.mapping(node, "metadata").get("name")): objects.labels(node).get(HOSTNAME) for node in nodes}
    shared = Counter(labels.values())
    return {name: str(label) for name, label in labels.items() if label and shared[label] == 1}


def _taken(pods: Iterable[Manifest]) -> Counter[tuple[str, str]]:
    """What pods take, by node and resource."""
    taken: Counter[tuple[str, str]] = Counter()
    for pod in pods:
        if objects.node_of(pod) and not objects.has_ended(pod):
            taken.update({(objects.node_of(pod), name): ceil(number) for name, number in requested(pod).items()})
    return taken


def _ends(pod: Manifest, now: datetime) -> bool:
    """Whether the pod ends soon."""
    overdue = _overdue(pod, now)
    return overdue is not None and overdue <= LATE_SECONDS


def _overdue(pod: Manifest, now: datetime) -> float | None:
    """For how many seconds the grace period of the pod is over, which is its deletionTimestamp; None without one."""
    due = objects.moment(objects.mapping(pod, "metadata").get("deletionTimestamp"))
    return None if due is None else (now - due).total_seconds()


def _pods(replicas: Iterable[Replica]) -> list[Manifest]:
    return [member.manifest for replica in replicas for member in replica.members]


def _like(party: Party) -> str:
    spec = party.ask.pod["spec"]
    return repr([spec.get(part) for part in ("nodeSelector", "tolerations", "affinity")])


def _claim(party: Party, nodes: Collection[str], scene: Scene, hosts: Mapping[str, str]) -> Claim:
    need = need_of(party.ask.pod)
    alone = depends_on_pods(party.ask.pod)
    if alone:
        # Where no pod of a lower priority runs, the scheduler can end none, whatever rule forbids the place.
        lower = {pod.node for other in scene.parties if other.priority < party.priority for pod in _states(other)}
        nodes = set(nodes) - lower
    rank = {name: place for place, name in enumerate(party.ask.order)}
    replicas = [one for one in party.replicas if _resource(one) == need.resource]
    replicas.sort(key=lambda one: (rank.get(one.name, -1), one.name))
    return Claim(
        key=party.key,
        priority=party.priority,
        gpus=need.gpus,
        least=party.ask.least,
        wanted=party.ask.wanted,
        seats=tuple(_seat(one, hosts, scene.now) for one in replicas),
        nodes=frozenset(nodes),
        pods=party.ask.pods,
        drains_others=not alone,
        resource=need.resource,
    )


def _states(party: Party) -> Iterable[PodState]:
    return (member for replica in party.replicas for member in replica.members)


def _resource(replica: Replica) -> str:
    return need_of(replica.leader.manifest).resource


def _seat(replica: Replica, hosts: Mapping[str, str], now: datetime) -> Seat:
    alive = [member for member in replica.members if not member.ended]
    waiting = [member for member in alive if not member.node]
    labels = [objects.mapping(member.manifest, "spec", "nodeSelector").get(HOSTNAME) for member in waiting]
    return Seat(
        name=replica.name,
        nodes=tuple(member.node for member in alive if member.node),
        draining=replica.draining or replica.deleting or replica.broken or replica.index is None,
        # A node that is gone has no room, so the pod goes back.
        pins=() if None in labels else tuple(hosts.get(str(label), "") for label in labels),
        gpus=need_of(replica.leader.manifest).gpus,
        stuck=any(_waits(member, now) > _patience(member) for member in waiting),
        late=tuple(one.node for one in alive if one.node and (_overdue(one.manifest, now) or 0.0) > LATE_SECONDS),
        gated=bool(alive) and all(is_gated(member.manifest) for member in alive),
    )


def _patience(state: PodState) -> float:
    scheduled = objects.condition(state.manifest, "PodScheduled")
    refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return STUCK_SECONDS if refused else UNDECIDED_SECONDS


def _waits(state: PodState, now: datetime) -> float:
    """For how many seconds the scheduler could have placed the pod, or the pod is held back."""
    gated = is_gated(state.manifest)
    released = None if gated else objects.moment(objects.annotations(state.manifest).get(ANNOTATION_RELEASED_AT))
    created = objects.moment(objects.text(state.manifest, "metadata", "creationTimestamp"))
    return min(((now - time).total_seconds() for time in (released, created) if time is not None), default=0.0)
