"""How the pods of a replica over several nodes get their nodes: all of them, or none. Pure.

1. The operator creates the pods with a scheduling gate. A gated pod takes no GPU.
2. When there is room for all of them, the operator removes the gates.
3. As soon as the first pod has an address, the operator tells it to the others. The runtime in the pods starts no
   engine before all of them have met.

If a pod has no node after `PLACING_SECONDS`, the operator deletes all pods of the replica. So they give back the GPUs
that they have. It creates them again at once, and waits longer after each failure before it removes the gates again.
`status.lastFailure` is the memory of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from zlib import crc32

from qwen_operator import objects
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.types import Action, ActionReason, Delete, Kind, Patch
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.multi_node import topology_of
from qwen_operator.manifests.names import (
    ANNOTATION_GROUP_LEADER,
    ANNOTATION_RELEASED_AT,
    GROUP_GATE,
    Manifest,
)
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.places import Neighbours
from qwen_operator.replicas.pod_state import PodState, is_gated, stored_failure
from qwen_operator.replicas.room import Room, room_for

PLACING_SECONDS = 600.0
"""How long the pods of a replica may wait for the last of them to get a node. A pool may need to boot it."""

CHECK_SECONDS = 15.0
"""After this time the operator looks again whether there is room. Pods of others may have ended without a trace."""

_SPREAD_SECONDS = 60
_FIRST_PAUSE = 60.0
_LONGEST_PAUSE = 1800.0
_FARTHEST_AHEAD = timedelta(minutes=5)
# A failure that is older than this does not count for the next pause.
_REMEMBERED = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Placing:
    """What is known for placing replicas.

    `neighbours` is None if the operator may not read nodes: then the scheduler alone decides. `future_nodes`: how many
    nodes a declared pool may still grow by. `failure`: the last failure in the status.
    """

    namespace: str
    now: datetime
    neighbours: Neighbours | None
    future_nodes: int = 0
    failure: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """The next steps. `failure`: a replica could not be placed. `waits`: seconds until time alone changes something.

    `messages`: for each replica that is held back, why. `unread`: see Room.
    """

    actions: tuple[Action, ...] = ()
    failure: Failure | None = None
    messages: Mapping[str, str] = field(default_factory=dict)
    waits: tuple[float, ...] = ()
    unread: frozenset[str] = frozenset()


def place(replicas: Iterable[Replica], placing: Placing) -> Placed:
    """The next steps for all replicas over several nodes that are wanted and lose no pod."""
    actions: list[Action] = []
    waits: list[float] = []
    failure = None
    held_back: list[Replica] = []
    for one in replicas:
        if one.pods == 1 or one.deleting:
            continue
        left = _left(one, placing.now)
        if left is not None and left <= 0:
            actions += _given_back(one)
            failure = _not_placed(one, placing)
            continue
        waits += [] if left is None else [left]
        gated = [member for member in one.members if is_gated(member.manifest)]
        if one.whole and len(gated) == len(one.members):
            held_back.append(one)
        elif one.whole:
            # The operator stopped while it removed the gates.
            actions += [_released(member, placing.now, _block_of(one)) for member in gated]
        actions += _introductions(one)
    room, pause = _kept_back(held_back, placing)
    actions += [
        _released(member, placing.now, room.blocks.get(one.name, {}))
        for one in held_back
        if one.name not in room.lacks
        for member in one.members
    ]
    return Placed(
        tuple(actions), failure, room.lacks, (*waits, *([pause] if room.lacks else [])), frozenset(room.unread)
    )


def _block_of(replica: Replica) -> dict[str, str]:
    """The label and its value that the operator chose for the nodes of the replica; empty if it chose none."""
    for member in replica.members:
        key, must_share = topology_of(member.manifest)
        value = objects.mapping(member.manifest, "spec", "nodeSelector").get(key)
        if must_share and value is not None:
            return {key: str(value)}
    return {}


def _kept_back(replicas: Sequence[Replica], placing: Placing) -> tuple[Room, float]:
    """The replicas that stay held back, with the reasons, and for how many seconds at least."""
    pause = _pause(placing)
    if pause > 0:
        until = rfc3339(placing.now + timedelta(seconds=pause))
        text = "was not placed as a whole, and gave its GPUs back: its pods try again at"
        return Room({one.name: f"{one.name} {text} {until}" for one in replicas}), pause
    if placing.neighbours is None or not replicas:
        return Room(), 0.0
    names = {one.name for one in replicas}
    neighbours = replace(placing.neighbours, failures=_failures(placing))
    return room_for(names, placing.namespace, neighbours, placing.now, placing.future_nodes), CHECK_SECONDS


def _failures(placing: Placing) -> int:
    """How many attempts have failed, up to the last one, if that was not too long ago."""
    before = stored_failure(placing.failure or {})
    if before is None or before.reason is not Reason.GROUP_NOT_PLACED:
        return 0
    then = objects.moment(before.time)
    return before.count if then is not None and placing.now - then < _REMEMBERED else 0


def _pause(placing: Placing) -> float:
    """Seconds until the next attempt, after the last one failed."""
    record = placing.failure or {}
    if record.get("reason") != Reason.GROUP_NOT_PLACED:
        return 0.0
    failed, stored = objects.moment(record.get("time")), stored_failure(record)
    if failed is None or stored is None:
        return 0.0
    pause = min(_FIRST_PAUSE * 2.0 ** min(stored.count - 1, 10), _LONGEST_PAUSE)
    left = pause - (placing.now - failed).total_seconds()
    # A time in the future comes from another clock.
    return left if left <= pause else 0.0


def _left(replica: Replica, now: datetime) -> float | None:
    """Seconds until the replica gives back what it has; None if it has all its nodes, or takes none yet.

    Also pods that take no GPU count against quotas: an incomplete replica must not hold them for ever.
    """
    waiting = [member for member in replica.members if not (member.node or member.started or member.up)]
    if replica.whole and not waiting:
        return None
    if any(member.started for member in replica.members):
        return None
    held_back = all(is_gated(member.manifest) for member in replica.members)
    if replica.whole and (held_back or _queued(replica)):
        return None
    since = _begun(replica, now)
    return None if since is None else _limit(replica) - (now - since).total_seconds()


def _queued(replica: Replica) -> bool:
    """Whether another controller, for example Kueue, keeps pods back, and none has a node yet. Then it decides."""
    gated = any(objects.members(member.manifest, "spec", "schedulingGates") for member in replica.members)
    return gated and not any(member.node for member in replica.members)


def _begun(replica: Replica, now: datetime) -> datetime | None:
    """Since when the first pod of the replica waits for the others; None if none does yet."""
    held_back = all(is_gated(member.manifest) for member in replica.members)
    times = (_since(member, now, held_back=held_back) for member in replica.members)
    return min((then for then in times if then is not None), default=None)


def _since(member: PodState, now: datetime, *, held_back: bool) -> datetime | None:
    if is_gated(member.manifest) and not held_back:
        # It has just been made, or the operator stopped while it removed the gates.
        return None
    released = objects.moment(objects.annotations(member.manifest).get(ANNOTATION_RELEASED_AT))
    if held_back or released is None or released - now > _FARTHEST_AHEAD:
        # Anybody may edit the annotation, and a wrong clock may have written it.
        return objects.moment(objects.text(member.manifest, "metadata", "creationTimestamp"))
    return released


def _limit(replica: Replica) -> float:
    """The time to place it. It differs a little, so that two replicas that block each other do not go on doing so."""
    uid = objects.text(replica.leader.manifest, "metadata", "uid")
    return PLACING_SECONDS + crc32(uid.encode()) % _SPREAD_SECONDS


def _given_back(replica: Replica) -> Iterator[Delete]:
    for member in replica.members:
        yield Delete(Kind.POD, member.name, member.uid, ActionReason.NOT_PLACED)


def _not_placed(replica: Replica, placing: Placing) -> Failure:
    """The record of it. Made again after a crash, it is the same."""
    waiting = [member for member in replica.members if not member.node]
    lacks = waiting[0] if waiting else replica.leader
    if replica.missing_ranks:
        ranks = ", ".join(str(rank) for rank in replica.missing_ranks)
        text = f"the pods of rank {ranks} of {replica.name} do not exist, and the others wait for them"
    else:
        text = f"{len(waiting)} of {replica.pods} pods of {replica.name} have no node: {lacks.message}"
    since = _begun(replica, placing.now) or placing.now
    time = rfc3339(since + timedelta(seconds=_limit(replica)))
    before = stored_failure(placing.failure or {})
    count = 1
    if before is not None and before.reason is Reason.GROUP_NOT_PLACED:
        count = before.count if before.time == time else _failures(placing) + 1
    return Failure(Reason.GROUP_NOT_PLACED, "", lacks.name, -1, time, count, (text,))


def _released(member: PodState, now: datetime, block: Mapping[str, str]) -> Patch:
    """Remove the operator's gate, and no gate of others. `block`: the nodes of the replica must have this label.

    The scheduler places one pod after the other, so it might begin in a block without room for the others.
    """
    gates: Manifest = {"schedulingGates": [{"$patch": "delete", "name": GROUP_GATE}]}
    selector = {"nodeSelector": dict(block)} if block else {}
    patch = {
        "metadata": {
            "resourceVersion": str(member.manifest["metadata"]["resourceVersion"]),
            "annotations": {ANNOTATION_RELEASED_AT: rfc3339(now)},
        },
        "spec": {**gates, **selector},
    }
    return Patch(Kind.POD, member.name, patch, ActionReason.ROOM_FOR_ALL)


def _introductions(replica: Replica) -> Iterator[Patch]:
    """Tell the other pods the address of the first, as soon as it has one."""
    leader = replica.leader
    if leader.rank or not leader.address or leader.deleting or leader.ended:
        return
    words = f"{leader.address} {leader.uid}"
    for member in replica.members[1:]:
        known = objects.annotations(member.manifest).get(ANNOTATION_GROUP_LEADER) == words
        if not known and not member.deleting and not member.ended and not is_gated(member.manifest):
            metadata: Manifest = {
                "resourceVersion": str(member.manifest["metadata"]["resourceVersion"]),
                "annotations": {ANNOTATION_GROUP_LEADER: words},
            }
            yield Patch(Kind.POD, member.name, {"metadata": metadata}, ActionReason.LEADER_KNOWN)
