"""The steps of a planned removal, and its reversal. Pure.

The steps: stop new requests, wait until the replica is idle or its time is over, delete it. The group leader has the
labels and annotations of a replica. The operator deletes the whole group, the leader first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from qwen_operator import objects
from qwen_operator.actions.events import action_event, rfc3339
from qwen_operator.actions.types import Action, ActionReason, Delete, Kind, Patch
from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import Event
from qwen_operator.manifests.engine_pods import grace_seconds
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAIN_REASON,
    ANNOTATION_DRAINING_SINCE,
    LABEL_ROUTABLE,
    Manifest,
)
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.groups import Replica, SortedReplicas, seconds_since
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.scaling.types import ScalingState

UNROUTED_SECONDS = 6.0
"""How long a pod may still get requests after its routable label is removed, in seconds.

Every gateway must first see the change and update its router, so an idle pod does not count as idle before that. Five
seconds, and one more because time stamps have whole seconds only.
"""

_SHORTEST_DEADLINE = 600
# The kubelet restarts a container that takes more than twice the planned time, so one more restart changes nothing.
_STARTS = 2


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """How many replicas are wanted, and the rules for creating and removing them.

    `startup_seconds` is how long it takes until a replica answers, planned or seen, the longer one. `allow_one`: one
    ready replica at a time may be evicted without a replacement. `max_surge`, `max_unavailable`: numbers of replicas.
    `deadline_seconds`: how long a replica of a new revision may take until it answers; None for the default. `held`:
    the revision that is held back; "" if there is none. `distinct_nodes`: no two pods of a replica are on one node.
    `yields`: names of replicas that go first, because others get their GPUs. `returns`: names of
    the draining replicas that may stay; None for all of them. `starts`: the revision that runs, with the
    adapters with which new replicas start, if these are not all.
    """

    deployment: Manifest
    wanted: int
    drain_seconds: int
    startup_seconds: int
    now: datetime
    scaling: ScalingState | None = None
    nodes: NodeHealth = field(default_factory=NodeHealth)
    allow_one: bool = False
    max_surge: int = 1
    max_unavailable: int = 0
    deadline_seconds: int | None = None
    held: str = ""
    distinct_nodes: bool = True
    yields: frozenset[str] = frozenset()
    returns: frozenset[str] | None = None
    starts: PinnedRevision | None = None

    @property
    def drain_limit(self) -> float:
        return max(float(self.drain_seconds), UNROUTED_SECONDS)

    @property
    def deadline(self) -> float:
        """How long a replica of a new revision may take until it answers, in seconds."""
        return float(self.deadline_seconds or max(_SHORTEST_DEADLINE, _STARTS * self.startup_seconds))


def remove(replica: Replica, reason: ActionReason, rules: RolloutRules) -> tuple[Action, ...]:
    """The first step of a removal: stop new requests, or delete at once if the replica does not answer anyway."""
    if not replica.up:
        return delete_members(replica, reason)
    metadata = {
        "labels": {LABEL_ROUTABLE: None},
        "annotations": {
            ANNOTATION_DRAINING_SINCE: rfc3339(rules.now),
            ANNOTATION_DRAIN_REASON: str(reason),
        },
    }
    return (_patch(replica.leader, metadata, reason),)


def delete_members(replica: Replica, reason: ActionReason) -> tuple[Delete, ...]:
    """Delete all pods of the replica that are not being deleted yet."""
    return tuple(Delete(Kind.POD, member.name, member.uid, reason) for member in replica.members if not member.deleting)


def restore(replica: Replica) -> Patch:
    """Cancel a drain. The replica still answers, and gets requests again as soon as the gateway sees the label."""
    metadata = {
        "labels": {LABEL_ROUTABLE: "true"},
        "annotations": {ANNOTATION_DRAINING_SINCE: None, ANNOTATION_DRAIN_REASON: None},
    }
    return _patch(replica.leader, metadata, ActionReason.LOAD_RETURNED)


def unrouting_repair(state: PodState) -> Patch | None:
    """Remove the routable label if somebody added it to a draining pod."""
    if LABEL_ROUTABLE not in objects.labels(state.manifest):
        return None
    return _patch(state, {"labels": {LABEL_ROUTABLE: None}}, ActionReason.DRIFTED)


def _patch(state: PodState, metadata: Manifest, reason: ActionReason, event: Manifest | None = None) -> Patch:
    """A patch of the observed state only, so that it can never change a successor of the same name."""
    guarded = {"metadata": {"resourceVersion": _version(state), **metadata}}
    return Patch(Kind.POD, state.name, guarded, reason, event)


def _version(state: PodState) -> str:
    return str(state.manifest["metadata"]["resourceVersion"])


def deletion(replica: Replica, rules: RolloutRules) -> tuple[Delete, ...]:
    """The last step of a drain; no action while the operator waits for the replica's requests."""
    if not replica.up:
        return _delete_drained(replica, ActionReason.STOPPED_ANSWERING)
    elapsed = replica.drains_for(rules.now)
    idle = rules.scaling is not None and replica.leader.uid in rules.scaling.idle
    if idle and elapsed >= UNROUTED_SECONDS:
        return _delete_drained(replica, ActionReason.DRAINED)
    if elapsed < rules.drain_limit:
        return ()
    # The time for the requests is over. The remaining grace period is only for an orderly shutdown.
    return _delete_drained(
        replica, ActionReason.DRAIN_TIMED_OUT, grace_seconds(0), event=_timed_out_event(replica, rules)
    )


def _delete_drained(
    replica: Replica, reason: ActionReason, grace: int | None = None, *, event: Manifest | None = None
) -> tuple[Delete, ...]:
    return tuple(
        Delete(
            Kind.POD,
            member.name,
            member.uid,
            reason,
            _version(member),
            grace,
            event if member is replica.leader else None,
        )
        for member in replica.members
    )


def _timed_out_event(replica: Replica, rules: RolloutRules) -> Manifest:
    running = rules.scaling.unfinished.get(replica.leader.uid) if rules.scaling else None
    cut = "an unknown number of requests" if running is None else f"{running} request{'s' if running != 1 else ''}"
    text = (
        f"{replica.name} was not idle after {rules.drain_seconds} s of draining, so the operator deletes it and cuts "
        f"{cut}; set spec.rollout.drainSeconds to the duration of your longest answer"
    )
    event = Event("Warning", str(Reason.DRAIN_TIMED_OUT), text)
    return action_event(rules.deployment, event, [replica.leader.uid], rfc3339(rules.now))


def cordon_marks(replicas: SortedReplicas, rules: RolloutRules) -> list[Patch]:
    """Note when the operator saw that a node of a replica is cordoned, and remove the note after an uncordon.

    Kubernetes itself does not store that time.
    """
    marks = [
        _mark(replica, rfc3339(rules.now), ActionReason.CORDONED, _cordon_event(replica, rules))
        for replica in replicas.leaving
        if replica.cordoned_node(rules.nodes) and replica.leader.cordoned_since is None
    ]
    return marks + [
        _mark(replica, None, ActionReason.UNCORDONED, None)
        for replica in (*replicas.fresh, *replicas.leaving)
        if replica.leader.cordoned_since is not None and not replica.cordoned_node(rules.nodes)
    ]


def _mark(replica: Replica, stamp: str | None, reason: ActionReason, event: Manifest | None) -> Patch:
    return _patch(replica.leader, {"annotations": {ANNOTATION_CORDONED_SINCE: stamp}}, reason, event)


def _cordon_event(replica: Replica, rules: RolloutRules) -> Manifest:
    node = replica.cordoned_node(rules.nodes)
    text = f"node {node} is cordoned: the operator removes {replica.name} when another replica answers in its place"
    event = Event("Normal", str(Reason.NODE_CORDONED), text)
    return action_event(rules.deployment, event, [replica.leader.uid, node], rfc3339(rules.now))


def overdue(replicas: SortedReplicas, rules: RolloutRules) -> list[Replica]:
    """Replicas on cordoned nodes whose successor does not answer yet, although it had enough time."""
    limit = _patience(replicas, rules)
    return [
        replica
        for replica in replicas.leaving
        if replica.cordoned_node(rules.nodes) and (replica.cordoned_for(rules.now) or 0.0) >= limit
    ]


def overdue_event(replica: Replica, rules: RolloutRules) -> Manifest:
    """The Event that explains why a drain of the node may now evict a replica without a successor."""
    text = (
        f"no other replica answers yet in place of {replica.name} on the cordoned node "
        f"{replica.cordoned_node(rules.nodes)}: {replica.name} may be evicted now, and its requests then have "
        f"{grace_seconds(rules.drain_seconds)} s to finish"
    )
    event = Event("Warning", str(Reason.DRAIN_TIMED_OUT), text)
    about = [replica.leader.uid, replica.leader.cordoned_since or ""]
    return action_event(rules.deployment, event, about, rfc3339(rules.now))


def _patience(replicas: SortedReplicas, rules: RolloutRules) -> float:
    """Seconds that a drain of a node waits for a successor. A successor that has a node gets time to start."""
    coming = any(replica.on_the_way and replica.bound for replica in replicas.fresh)
    return float(rules.drain_seconds + (rules.startup_seconds if coming else 0))


def is_lost(state: PodState, nodes: NodeHealth, now: datetime) -> bool:
    """Whether a pod in deletion waits for a node that will never answer again."""
    if not state.deleting or not state.node:
        return False
    return state.node in nodes.out_of_service or (nodes.gone(state.node) and _remaining(state, now) <= 0)


def _remaining(state: PodState, now: datetime) -> float:
    """Seconds until the end of the grace period of a pod in deletion, which its deletionTimestamp names."""
    return -seconds_since(objects.moment(state.manifest["metadata"].get("deletionTimestamp")), now)


def waits(replicas: SortedReplicas, rules: RolloutRules) -> Iterator[float]:
    """For every replica that waits: the seconds until time alone allows its next step."""
    for replica in replicas.draining:
        elapsed = replica.drains_for(rules.now)
        yield from (left for left in (UNROUTED_SECONDS - elapsed, rules.drain_limit - elapsed) if left > 0)
    for replica in replicas.leaving:
        age = replica.cordoned_for(rules.now)
        if age is not None and (left := _patience(replicas, rules) - age) > 0:
            yield left
    for replica in replicas.gone:
        for member in replica.members:
            ending = member.deleting and rules.nodes.gone(member.node)
            if ending and (left := _remaining(member, rules.now)) > 0:
                yield left
