"""Makes the status from the results of the other phases, and Events from its changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.events import (
    LostReplica,
    failure_events,
    grant_events,
    lost_node_events,
    resize_events,
    rfc3339,
    transition_event,
)
from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import transitions
from qwen_operator.arbiter.messages import short_of_gpus
from qwen_operator.manifests.names import Manifest
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.adapters import failures
from qwen_operator.replicas.waiting import node_lost
from qwen_operator.sources.inspection import PHASE as INSPECTION
from qwen_operator.status.adapters import why_replaced
from qwen_operator.status.build import build_status
from qwen_operator.status.types import StatusInput


def status(course: Course) -> Step:
    """Set the complete status, and the Events of its changes."""
    assert course.wanted is not None
    assert course.rules is not None
    observed, stamp = course.observed, rfc3339(course.now)
    short = _short_of_gpus(course)
    new = build_status(
        observed.deployment,
        StatusInput(
            spec=course.spec,
            revision=course.revision,
            target=course.target,
            blocked=course.blocked,
            running=course.running,
            replicas=course.replicas,
            wanted=course.wanted,
            rules=course.rules,
            foreign=course.foreign,
            names=observed.names,
            refusal=observed.refusal,
            full=course.full,
            newer=course.newer,
            hold_seconds=course.config.gateway.hold_seconds,
            hold=course.hold,
            pages=observed.pages,
            unplaced=course.unplaced,
            short_of_gpus=short,
            granted=observed.grant.replicas if short and observed.grant else None,
            prefetch=course.prefetch,
            given_back=course.given_back,
            adapter_failures=failures(course.replicas.serving, observed.adapter_pages),
            adapter_downloads=course.downloads.told,
            why_replaced=_why_replaced(course),
        ),
        stamp,
    )
    events = status_events(observed.deployment, new, stamp, _lost_nodes(course))
    events += grant_events(observed.deployment, new, short, stamp)
    return Step(replace(course, status=new, events=events), requeue_after=observed.names.wait(course.now))


def _why_replaced(course: Course) -> str:
    earlier = (*course.replicas.leaving, *course.replicas.draining)
    # It may serve as a later revision, but what its pods loaded at their start decides.
    old = next((replica.leader.revision for replica in earlier), "")
    return why_replaced(course.target, course.observed.readable.get(old))


def _short_of_gpus(course: Course) -> str:
    observed = course.observed
    if observed.grant is None or course.ask is None:
        return ""
    return short_of_gpus(observed.grant, observed.owner.namespace)


def _lost_nodes(course: Course) -> tuple[LostReplica, ...]:
    gone = ((replica, replica.lost_node(course.observed.nodes)) for replica in course.replicas.gone)
    return tuple(LostReplica(replica.leader.uid, node_lost(node, replica.name)) for replica, node in gone if node)


def status_events(
    deployment: Manifest, new: Manifest, stamp: str, lost: Sequence[LostReplica] = ()
) -> tuple[Manifest, ...]:
    """The Events of the changes between the present and a new status; `stamp` is RFC 3339.

    `lost`: replicas whose node is lost. A failure that a condition reports gets no second Event.
    """
    changes = transitions(objects.members(deployment, "status", "conditions"), new["conditions"])
    posted = [transition_event(deployment, event, stamp) for event in changes]
    reasons = {event.reason for event in changes}
    if Reason.NODE_LOST not in reasons:
        posted += lost_node_events(deployment, lost, stamp)
    failure = objects.mapping(new, "lastFailure")
    if failure.get("reason") not in reasons and failure.get("phase") != INSPECTION:
        posted += failure_events(deployment, failure, stamp)
    return (*posted, *resize_events(deployment, new, stamp))
