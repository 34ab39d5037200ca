"""Whether nodes have room for all pods of a replica over several nodes. Pure.

A node that looks free may be taken, where the operator may not read the pods of others. Then a pod stays without a
node, and `placing` gives back what the replica has.

Older replicas come first. So two replicas never wait for each other over the last nodes: whoever decides about the
younger one leaves the older one its room. A pod that nobody places keeps others out only for a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from qwen_operator import objects
from qwen_operator.manifests.names import (
    ANNOTATION_RELEASED_AT,
    LABEL_REPLICA,
    Manifest,
)
from qwen_operator.replicas.places import Need, Neighbours, Place, need_of, places_of
from qwen_operator.replicas.pod_state import is_gated, replica_pods

READ_AT_ONCE = 16
"""So many nodes are read in one round."""
_UNREAD = (
    "waits until the operator has read which pods of others run on its nodes: its pods take no GPU before, and then "
    "start by themselves"
)
_Key = tuple[str, str]
_SHOWN = 4
_PENDING_SECONDS = 660.0
"""As long as a replica may wait for the last of its nodes. Who waits for longer keeps nobody out."""
_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(slots=True)
class Room:
    """What became of the replicas that were asked about.

    `lacks`: those whose pods cannot all be placed now, and why. All their pods are held back. `blocks`: for each of the
    others whose nodes must share the value of a label, this label and the value of the nodes that have room. `unread`:
    nodes that must be read before a replica may have them. It is held back until then.
    """

    lacks: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, dict[str, str]] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


def room_for(
    replicas: Collection[str], namespace: str, neighbours: Neighbours, now: datetime, future_nodes: int = 0
) -> Room:
    """Whether all pods of these replicas can be placed now.

    `future_nodes`: how many nodes a declared pool may still grow by.
    """
    places, distinct = places_of(neighbours), neighbours.distinct_nodes
    hosts = _hosts(neighbours.pods) if distinct else {}
    found = Room()
    asked = {(namespace, replica) for replica in replicas}
    groups = [group for group in _groups(neighbours.pods, places, asked) if group.ours or group.takes_room(now)]
    pools = [group.need.selector for group in groups if group.ours]
    for group in groups:
        need, pods, replica = group.need, len(group.pods), group.key[1]
        suitable = group.suitable(places, hosts.get(group.key, ()))
        blocks = _blocks(suitable, need, distinct=distinct)
        block, room = _best_block(blocks, pods, neighbours.failures if group.ours else 0)
        short = max(0, pods - len(room))
        if short > (future_nodes if need.selector in pools else 0):
            if group.ours:
                found.lacks[replica] = _sentence(replica, pods, need, suitable)
            continue
        future_nodes -= short
        if group.ours and block and not short:
            found.blocks[replica] = {need.topology: block}
        room = sorted(room, key=lambda place: (place.free.get(need.resource, 0), place.name))
        if group.ours and (unread := _unread(room, pods, neighbours.read)):
            found.unread |= unread
            found.lacks[replica] = f"{replica} {_UNREAD}"
        for place in room[:pods]:
            place.take(need.takes)
    return found


def _unread(room: Sequence[Place], pods: int, read: Collection[str] | None) -> set[str]:
    """The nodes to read before these pods may have the first of the places, and some that may be needed instead."""
    if read is None or all(place.name in read for place in room[:pods]):
        return set()
    return set(list(dict.fromkeys(place.name for place in room if place.name not in read))[:READ_AT_ONCE])


@dataclass(frozen=True, slots=True)
class _Group:
    """The pods of a replica that have no node. `ours`: whether the caller asks about this replica."""

    key: _Key
    pods: list[Manifest]
    need: Need
    ours: bool

    def suitable(self, places: Sequence[Place], taken: Collection[str]) -> list[Place]:
        """The places where its pods may run, without the nodes `taken` by other pods of the replica."""
        # The arbiter may have sent each of the pods to a node of its own.
        needs = [need_of(pod) for pod in self.pods]
        return [place for place in places if place.name not in taken and any(place.suits(one) for one in needs)]

    def takes_room(self, now: datetime) -> bool:
        """Whether these pods of others may get nodes before a younger replica."""
        if not self.need.gpus:
            # For example an inspection: it takes no GPU from anybody.
            return False
        if is_gated(self.pods[0]):
            # A replica cannot be placed before all its pods exist.
            return len(self.pods) >= replica_pods(self.pods[0])
        if any(objects.members(pod, "spec", "schedulingGates") for pod in self.pods):
            # Somebody else queues them, for example Kueue.
            return False
        # The scheduler had its chance. It sees more than the operator, such as rules about other pods.
        pending = (then for pod in self.pods if (then := _pending_since(pod, now)))
        return any((now - then).total_seconds() < _PENDING_SECONDS for then in pending)


def _groups(pods: Iterable[Manifest], places: Sequence[Place], asked: Collection[_Key]) -> Iterator[_Group]:
    """The pods without a node, by replica: those that come first are first. `asked`: the replicas in question."""
    # What no node offers may come from somewhere that the operator does not see, such as DRA. The scheduler decides.
    offered = {name for place in places for name in place.offered}
    for key, group in _in_order(pods):
        need = need_of(group[0])
        more = {name: number for name, number in need.more.items() if name in offered}
        yield _Group(key, group, replace(need, more=more), key in asked)


_Block = tuple[str, list[Place]]


def _blocks(places: Sequence[Place], need: Need, *, distinct: bool) -> list[_Block]:
    """Each value of the label that the nodes must share, "" for none, with a place there for each pod that fits.

    Those with the least room come first.
    """
    blocks: dict[str, list[Place]] = {}
    for place in places:
        value = place.labels.get(need.topology, "") if need.topology else ""
        if value or not need.topology:
            blocks.setdefault(value, []).extend([place] * place.slots(need, distinct=distinct))
    return sorted(blocks.items(), key=lambda item: (len(item[1]), item[0]))


def _best_block(blocks: Sequence[_Block], pods: int, failures: int = 0) -> _Block:
    """The block with the least room that does, or else the one with the most.

    What the operator does not see may make a block impossible, so after each failure it is the next one that does.
    """
    enough = [item for item in blocks if len(item[1]) >= pods]
    return enough[failures % len(enough)] if enough else blocks[-1] if blocks else ("", [])


def _pending_since(pod: Manifest, now: datetime) -> datetime | None:
    """Since when the scheduler may place the pod. Anybody may edit the annotation, so no time far ahead counts."""
    created = objects.moment(objects.text(pod, "metadata", "creationTimestamp"))
    released = objects.moment(objects.annotations(pod).get(ANNOTATION_RELEASED_AT))
    times = (then for then in (created, released) if then is not None and then - now < _CLOCKS_DIFFER)
    return max(times, default=None)


def _sentence(replica: str, nodes: int, need: Need, suitable: Sequence[Place]) -> str:
    room = sum(place.has(need) for place in suitable)
    shown = ", ".join(
        _shown(place, need) for place in sorted(suitable, key=lambda place: (place.has(need), place.name))[:_SHOWN]
    )
    have = f"{room} of {len(suitable)} nodes {'has' if room == 1 else 'have'} them"
    block = ""
    if need.topology:
        most, places = _best_block(_blocks(suitable, need, distinct=True), nodes)
        best = f"of which {most or 'no value'} has {len(places)} of these nodes"
        block = f", and must share the label {need.topology}, {best}"
    return (
        f"{replica} needs {nodes} nodes with {need} each, {have}{f' ({shown})' if shown else ''}{block}: its pods take "
        "no GPU before all of them fit, and then start by themselves"
    )


def _shown(place: Place, need: Need) -> str:
    """What a node has of the GPUs, and of what it lacks besides."""
    short = [name for name, number in need.more.items() if place.free.get(name, 0) < number]
    # A node that has just started does not offer its GPUs yet, and may have pods already.
    amounts = [(name, max(0, place.free.get(name, 0)), place.offered.get(name, 0)) for name in (need.resource, *short)]
    (_, free, offered), *others = amounts
    return f"{place.name} has {free} of {offered}" + "".join(f" and {has} of {of} {name}" for name, has, of in others)


def _hosts(pods: Iterable[Manifest]) -> dict[_Key, set[str]]:
    """The nodes that a replica over several nodes has already."""
    hosts: dict[_Key, set[str]] = {}
    for pod in pods:
        if objects.node_of(pod) and LABEL_REPLICA in objects.labels(pod):
            hosts.setdefault(_key(pod), set()).add(objects.node_of(pod))
    return hosts


def _in_order(pods: Iterable[Manifest]) -> list[tuple[_Key, list[Manifest]]]:
    """The pods without a node, by replica: first those that the scheduler may place already, then the oldest.

    Within a replica the pods that the scheduler may place come first.
    """
    groups: dict[_Key, list[Manifest]] = {}
    for pod in pods:
        if not (objects.node_of(pod) or objects.is_deleting(pod) or objects.has_ended(pod)):
            groups.setdefault(_key(pod), []).append(pod)

    def age(item: tuple[_Key, list[Manifest]]) -> tuple[bool, str, _Key]:
        created = min(objects.text(pod, "metadata", "creationTimestamp") for pod in item[1])
        return all(is_gated(pod) for pod in item[1]), created, item[0]

    return [(key, sorted(group, key=is_gated)) for key, group in sorted(groups.items(), key=age)]


def _key(pod: Manifest) -> _Key:
    return objects.text(pod, "metadata", "namespace"), _replica(pod)


def _replica(pod: Manifest) -> str:
    return str(objects.labels(pod).get(LABEL_REPLICA) or pod["metadata"]["name"])
