"""Plans the revision of the spec, or says whether a pinned one would be planned differently today. Pure."""

from __future__ import annotations

from dataclasses import replace

from qwen_operator.actions.blocked import Blocked
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.pods import engine_template, same_template
from qwen_operator.manifests.revisions import PinnedRevision, as_stored
from qwen_operator.planning import plan as planning
from qwen_operator.planning.types import NoFit, Plan
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.sources import registry


def plan(course: Course) -> Step:
    """A plan for the facts, or what they lack."""
    if course.target is not None:
        return Step(replace(course, newer=_would_differ(course, course.target)))
    if course.facts is None:
        return Step(course)
    planned = _planned(course, course.facts)
    if isinstance(planned, NoFit):
        message = f"{planned.message}; {course.facts_remark}" if course.facts_remark else planned.message
        blocked = Blocked(planned.reason, message, waiting=False, facts=course.facts, no_fit=planned)
        return Step(replace(course, blocked=blocked))
    if course.query is not None:
        # An old answer of the hub is good enough to say what does not fit, not to be pinned.
        return Step(replace(course, blocked=registry.pending(course.query)))
    if course.facts_remark:
        planned = replace(planned, warnings=(*planned.warnings, course.facts_remark))
    return Step(replace(course, plan=planned))


def _planned(course: Course, facts: Checkpoint) -> Plan | NoFit:
    return planning.runnable(planning.plan(course.spec, facts, course.observed.inventory, course.config.engine), facts)


def _would_differ(course: Course, target: PinnedRevision) -> bool:
    """Whether the same spec, planned today, would run differently."""
    today = _planned(course, target.facts)
    return not isinstance(today, NoFit) and not same_template(template_of(course, today), target.template)


def template_of(course: Course, planned: Plan) -> dict[str, object]:
    """The pod of every replica but for its name, as it comes back from the API server."""
    template = engine_template(course.observed.owner, course.revision, course.spec, planned, course.config.image)
    stored: dict[str, object] = as_stored(template)
    return stored
