"""The decision about one QwenDeployment: from an observation to actions and a status.

Pure: no clock, no I/O, no randomness. The same observation gives the same decision. So if a process dies between two
writes, the next process continues there. If everything is done, it writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from qwen_operator import objects
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.types import OrderedActions, in_order
from qwen_operator.api.pod import with_defaults
from qwen_operator.api.spec import InvalidSpec, Spec, parse, revision_hash
from qwen_operator.config.types import Config
from qwen_operator.reconcile.phases.budget import budget
from qwen_operator.reconcile.phases.pin import pin
from qwen_operator.reconcile.phases.plan import plan
from qwen_operator.reconcile.phases.replicas import replicas
from qwen_operator.reconcile.phases.source import source
from qwen_operator.reconcile.phases.status import status, status_events
from qwen_operator.reconcile.types import Course, Decision, Observed, Step
from qwen_operator.replicas.groups import groups_of, sort_replicas
from qwen_operator.replicas.pod_state import as_of
from qwen_operator.status.build import invalid_status
from qwen_operator.status.types import all_names_lost

PHASES: tuple[Callable[[Course], Step], ...] = (source, plan, pin, replicas, budget, status)
"""The phases of a decision, in this order.

source: get the facts of the checkpoint. plan: choose GPUs and options. pin: store the plan in a ControllerRevision.
replicas: start, drain, replace and repair pods. budget: protect them. status: report all of it.
"""


def decide(observed: Observed, config: Config, now: datetime) -> Decision:
    """What to do about one QwenDeployment; `now` is timezone-aware."""
    try:
        spec = parse(observed.deployment)
    except InvalidSpec as error:
        return _rejected(observed, error, now)
    course = _begin(observed, config, now, spec)
    appointments: list[float] = []
    for phase in PHASES:
        step = phase(course)
        course = step.next_course
        if step.requeue_after:
            appointments.append(step.requeue_after)
    assert course.status is not None
    return Decision(
        actions=in_order(course.actions),
        status=course.status,
        events=course.events,
        requeue_after=min(appointments, default=None),
        query=course.query,
        ask=course.ask,
        unread=course.unread,
    )


def _begin(observed: Observed, config: Config, now: datetime, spec: Spec) -> Course:
    return Course(
        observed=observed,
        config=config,
        now=now,
        spec=replace(spec, pod=with_defaults(spec.pod, config.pod)),
        revision=revision_hash(observed.deployment["spec"], objects.annotations(observed.deployment)),
        unreachable=all_names_lost(spec, observed.names),
    )


def _rejected(observed: Observed, error: InvalidSpec, now: datetime) -> Decision:
    """The decision about an invalid spec: it changes only the status, and the pods keep running."""
    existing = groups_of((as_of(state, now) for state in observed.engine_pods), observed.pods_of_revisions)
    stamp = rfc3339(now)
    record = observed.names.record(observed.owner.uid, now)
    new = invalid_status(observed.deployment, error, sort_replicas(existing, "", observed.nodes), record, stamp)
    events = status_events(observed.deployment, new, stamp)
    return Decision(OrderedActions(), new, events, observed.names.wait(now))
