"""The steps of a planned removal: unroute, wait until idle or out of time, delete; and the way back. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from qwen_operator.actions.events import notice, stamp_of
from qwen_operator.actions.types import Action, Delete, Kind, Nodes, Patch, Why
from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import Event
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAIN_REASON,
    ANNOTATION_DRAINING_SINCE,
    LABEL_ROUTABLE,
    Manifest,
)
from qwen_operator.manifests.pods import grace_seconds
from qwen_operator.replicas.groups import Fleet, annotations, cordoned, cordoned_for, drains_for, moment, since, up
from qwen_operator.replicas.node_health import node_of
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.scaling.types import ScalingState

UNROUTED_SECONDS = 6.0
"""How long after it is unrouted a pod may still get a request: the gateways have to see it, and to tell their router.
Before that, being idle says nothing. Five seconds, and one for stamps, which are cut to whole seconds."""


@dataclass(frozen=True, slots=True)
class Orders:
    """How many replicas, and by which rules pods come and go.

    `startup_seconds` is the time that a replica is planned to take until it answers.
    """

    deployment: Manifest
    wanted: int
    drain_seconds: int
    startup_seconds: int
    now: datetime
    scaling: ScalingState | None = None
    nodes: Nodes = field(default_factory=Nodes)

    @property
    def drain_limit(self) -> float:
        return max(float(self.drain_seconds), UNROUTED_SECONDS)


def remove(state: PodState, why: Why, orders: Orders) -> Action:
    """The first step for a pod that is to go: unroute it, or delete it at once if it does not answer anyway."""
    if not up(state):
        return Delete(Kind.POD, state.name, state.uid, why)
    patch = {
        "labels": {LABEL_ROUTABLE: None},
        "annotations": {
            ANNOTATION_DRAINING_SINCE: stamp_of(orders.now),
            ANNOTATION_DRAIN_REASON: str(why),
        },
    }
    return Patch(Kind.POD, state.name, _guarded(state, patch), why)


def restore(state: PodState) -> Patch:
    """The way back: it answers still, and gets requests as soon as the gateway sees the label."""
    patch = {
        "labels": {LABEL_ROUTABLE: "true"},
        "annotations": {ANNOTATION_DRAINING_SINCE: None, ANNOTATION_DRAIN_REASON: None},
    }
    return Patch(Kind.POD, state.name, _guarded(state, patch), Why.LOAD_RETURNED)


def unrouting_repair(state: PodState) -> Patch | None:
    """Take away a routable label that somebody put on a draining pod."""
    if LABEL_ROUTABLE not in (state.pod["metadata"].get("labels") or {}):
        return None
    return Patch(Kind.POD, state.name, _guarded(state, {"labels": {LABEL_ROUTABLE: None}}), Why.DRIFTED)


def _guarded(state: PodState, metadata: Manifest) -> Manifest:
    """Only in the state that was observed: a label must not be put on, or taken from, a successor of the same name."""
    return {"metadata": {"resourceVersion": state.pod["metadata"]["resourceVersion"], **metadata}}


def deletion(state: PodState, orders: Orders) -> Delete | None:
    """The last step for a draining pod, None while its requests are waited for."""
    version = str(state.pod["metadata"]["resourceVersion"])
    if not up(state):
        return Delete(Kind.POD, state.name, state.uid, Why.STOPPED_ANSWERING, version)
    elapsed = drains_for(state, orders.now)
    idle = orders.scaling is not None and state.uid in orders.scaling.idle
    if idle and elapsed >= UNROUTED_SECONDS:
        return Delete(Kind.POD, state.name, state.uid, Why.DRAINED, version)
    if elapsed < orders.drain_limit:
        return None
    told = _timed_out(state, orders)
    # The time for its requests is over; what is left is for an orderly end.
    return Delete(Kind.POD, state.name, state.uid, Why.DRAIN_TIMED_OUT, version, grace_seconds(0), told)


def _timed_out(state: PodState, orders: Orders) -> Manifest:
    running = orders.scaling.unfinished.get(state.uid) if orders.scaling else None
    cut = (
        "an unknown number of requests is"
        if running is None
        else f"{running} request{'s are' if running != 1 else ' is'}"
    )
    text = (
        f"{state.name} still worked after {orders.drain_seconds} s of draining: {cut} cut; "
        "set spec.rollout.drainSeconds to the length of your longest answer"
    )
    event = Event("Warning", str(Reason.DRAIN_TIMED_OUT), text)
    return notice(orders.deployment, event, [state.uid], stamp_of(orders.now))


def cordon_marks(fleet: Fleet, orders: Orders) -> list[Patch]:
    """Note since when a pod's node is cordoned, as nobody else does, and forget it when the cordon is lifted."""
    marks = [
        _mark(state, stamp_of(orders.now), Why.CORDONED, _cordon_notice(state, orders))
        for state in fleet.leaving
        if cordoned(state, orders.nodes) and ANNOTATION_CORDONED_SINCE not in annotations(state)
    ]
    return marks + [
        _mark(state, None, Why.UNCORDONED, None)
        for state in (*fleet.fresh, *fleet.leaving)
        if ANNOTATION_CORDONED_SINCE in annotations(state) and not cordoned(state, orders.nodes)
    ]


def _mark(state: PodState, stamp: str | None, why: Why, told: Manifest | None) -> Patch:
    patch = _guarded(state, {"annotations": {ANNOTATION_CORDONED_SINCE: stamp}})
    return Patch(Kind.POD, state.name, patch, why, told)


def _cordon_notice(state: PodState, orders: Orders) -> Manifest:
    text = f"node {node_of(state.pod)} is cordoned: {state.name} goes when another replica answers in its place"
    event = Event("Normal", str(Reason.NODE_CORDONED), text)
    return notice(orders.deployment, event, [state.uid, node_of(state.pod)], stamp_of(orders.now))


def overdue(fleet: Fleet, orders: Orders) -> list[PodState]:
    """Pods on cordoned nodes in whose place none answers, although there was time for it."""
    limit = _patience(fleet, orders)
    return [
        state
        for state in fleet.leaving
        if cordoned(state, orders.nodes) and (cordoned_for(state, orders.now) or 0.0) >= limit
    ]


def overdue_notice(state: PodState, orders: Orders) -> Manifest:
    """The Event that says why a node may now be drained although that takes a replica away."""
    text = (
        f"no replica answers in place of {state.name} on the cordoned node {node_of(state.pod)} yet: "
        f"it may be evicted now, and its requests have {grace_seconds(orders.drain_seconds)} s to end"
    )
    event = Event("Warning", str(Reason.DRAIN_TIMED_OUT), text)
    about = [state.uid, annotations(state).get(ANNOTATION_CORDONED_SINCE, "")]
    return notice(orders.deployment, event, about, stamp_of(orders.now))


def _patience(fleet: Fleet, orders: Orders) -> float:
    """Seconds that a drain of a node waits for a replacement: one that found a node may also start."""
    coming = any(state.on_the_way and node_of(state.pod) for state in fleet.fresh)
    return float(orders.drain_seconds + (orders.startup_seconds if coming else 0))


def lost(state: PodState, nodes: Nodes, now: datetime) -> bool:
    """Whether a pod that is being deleted waits for a node that will never answer again."""
    node = node_of(state.pod)
    if not state.deleting or not node:
        return False
    return node in nodes.out_of_service or (nodes.gone(node) and _remaining(state, now) <= 0)


def _remaining(state: PodState, now: datetime) -> float:
    """Seconds until a pod that is being deleted ought to be gone: deletionTimestamp is the end of its grace period."""
    return -since(moment(state.pod["metadata"].get("deletionTimestamp")), now)


def waits(fleet: Fleet, orders: Orders) -> Iterator[float]:
    """Seconds until time alone allows the next step, for every pod that waits for one."""
    for state in fleet.draining:
        elapsed = drains_for(state, orders.now)
        yield from (left for left in (UNROUTED_SECONDS - elapsed, orders.drain_limit - elapsed) if left > 0)
    for state in fleet.leaving:
        age = cordoned_for(state, orders.now)
        if age is not None and (left := _patience(fleet, orders) - age) > 0:
            yield left
    for state in fleet.gone:
        if state.deleting and orders.nodes.gone(node_of(state.pod)) and (left := _remaining(state, orders.now)) > 0:
            yield left
