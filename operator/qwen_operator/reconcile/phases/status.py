"""Makes the status from the results of the other phases, and Events from its changes. Pure."""

from __future__ import annotations

from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.events import resize_events, rfc3339, transition_event
from qwen_operator.api.events import transitions
from qwen_operator.manifests.names import Manifest
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.status.conditions import StatusInput, build_status


def status(course: Course) -> Step:
    """Set the complete status, and the Events of its changes."""
    assert course.wanted is not None
    assert course.rules is not None
    observed, stamp = course.observed, rfc3339(course.now)
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
        ),
        stamp,
    )
    events = status_events(observed.deployment, new, stamp)
    return Step(replace(course, status=new, events=events), requeue_after=observed.names.wait(course.now))


def status_events(deployment: Manifest, new: Manifest, stamp: str) -> tuple[Manifest, ...]:
    """The Events of the changes between the present and a new status; `stamp` is RFC 3339."""
    old = objects.members(deployment, "status", "conditions")
    changes = (transition_event(deployment, event, stamp) for event in transitions(old, new["conditions"]))
    return (*changes, *resize_events(deployment, new, stamp))
