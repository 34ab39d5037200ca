"""Plans the revision of the spec. If it is pinned already, checks whether a new plan would differ. Pure."""

from __future__ import annotations

from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import hash_without_adapters
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.adapters import same_but_adapters, with_adapters
from qwen_operator.manifests.cached_adapters import same_credentials, shares_adapters
from qwen_operator.manifests.engine_pods import engine_template, same_template
from qwen_operator.manifests.mount_paths import mountable
from qwen_operator.manifests.multi_node import connected
from qwen_operator.manifests.names import Manifest, PodIdentity
from qwen_operator.manifests.revisions import PinnedRevision, as_stored, replan_of
from qwen_operator.planning import adapters as adapter_planning
from qwen_operator.planning import plan as planning
from qwen_operator.planning.types import EngineDefaults, NoFit, Plan
from qwen_operator.reconcile.plan_memory import PlanInputs
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.adapters import obstacle
from qwen_operator.sources import adapters as adapter_sources
from qwen_operator.sources import registry
from qwen_operator.tenancy.models import place_of


def plan(course: Course) -> Step:
    """Set the plan for the facts, or the reason why there is none."""
    if course.target is not None:
        return Step(replace(course, newer=_newer(course, course.target)))
    if course.facts is None:
        return Step(course)
    facts, kept = course.facts, _kept(course, course.facts.checkpoint)
    if kept is not None:
        facts = replace(facts, checkpoint=_with_base_of(kept, facts.checkpoint))
        course = replace(course, facts=facts)
    planned: Plan | NoFit
    source = registry.engine_source(course.spec, facts.checkpoint, course.config.engine)
    if kept is not None:
        own = adapter_sources.like(kept.template, course.spec, source)
        planned = adapter_planning.with_adapters(kept.plan, facts.checkpoint, dict(own.adapters))
        course = replace(course, template=with_adapters(kept.template, course.revision, own))
    else:
        planned = _mounted_by_all(course, _planned(course, facts.checkpoint, _kept_engine(course)))
    planned = mountable(planned, course.spec, source, course.observed.owner.namespace)
    if isinstance(planned, NoFit):
        message = f"{planned.message}; {facts.remark}" if facts.remark else planned.message
        blocked = Blocked(planned.reason, message, waiting=False, facts=facts.checkpoint, no_fit=planned)
        return Step(replace(course, blocked=blocked))
    if facts.pending is not None:
        return Step(replace(course, blocked=facts.pending))
    if facts.remark:
        planned = replace(planned, warnings=(*planned.warnings, facts.remark))
    return Step(replace(course, plan=planned))


def without_adapters(course: Course) -> str:
    """The hash of the present spec without its adapters; "" if it has none."""
    deployment = course.observed.deployment
    if not course.spec.adapters:
        return ""
    return hash_without_adapters(deployment["spec"], objects.annotations(deployment))


def _kept(course: Course, facts: Checkpoint) -> PinnedRevision | None:
    """The revision that runs, if its engines can take up these adapters, and nothing else has changed.

    Then its plan stays: replicas of another plan would have to replace them.
    """
    running, rest = course.observed.last_served, without_adapters(course)
    if running is None or not rest or running.without_adapters != rest:
        return None
    if running.source not in ("", str(place_of(course.observed.deployment["spec"], course.config.engine.hub))):
        # The chart's default hub is another one now.
        return None
    # They load the commit of their start, whatever the branch is now.
    if replace(facts, commit=running.facts.commit) != (facts := _with_base_of(running, facts)):
        return None
    if obstacle(running, facts):
        return None
    source = registry.engine_source(course.spec, facts, course.config.engine)
    if not (shares_adapters(running.template) or same_credentials(running.template, source)):
        return None
    fits = all(adapter_planning.mismatch(facts, adapter) is None for adapter in facts.adapters)
    return running if fits else None


def _with_base_of(running: PinnedRevision, facts: Checkpoint) -> Checkpoint:
    """The facts of the model that runs, with these adapters."""
    return replace(running.facts, adapters=facts.adapters)


def _newer(course: Course, target: PinnedRevision) -> bool:
    observed = course.observed
    inputs = PlanInputs(target, observed.inventory, course.config)
    return observed.plans.would_differ(observed.owner.uid, inputs, lambda: _would_differ(course, target))


def _kept_engine(course: Course) -> EngineDefaults:
    """The chart's engine, with the SGLang version that runs: an edit of the spec is no upgrade of SGLang.

    The annotation qwen-operator.dev/replan asks for the chart's version, spec.engine for its own.
    """
    running, engine, own = course.observed.last_served, course.config.engine, course.spec.engine
    if own.image or own.version or running is None or running.own_engine:
        return engine
    asked = running.replan != replan_of(course.observed.deployment)
    return engine if asked else engine.at_version_of(running.plan)


def _planned(course: Course, facts: Checkpoint, engine: EngineDefaults) -> Plan | NoFit:
    source = registry.engine_source(course.spec, facts, engine)
    planned = planning.plan(course.spec, facts, course.observed.inventory, engine, source)
    return planning.runnable(planned, facts, source, course.spec.hardware.max_nodes_per_replica)


def _mounted_by_all(course: Course, planned: Plan | NoFit) -> Plan | NoFit:
    """The plan, or a refusal if pods on its nodes cannot all mount the claim with the weights."""
    claim = course.observed.claim
    if isinstance(planned, NoFit) or planned.nodes_per_replica == 1 or claim is None or not claim.single_node:
        return planned
    message = (
        f'the claim "{claim.name}" has the access mode {claim.single_node}, so only pods on one node can mount it, but '
        f"a replica needs {planned.nodes_per_replica} nodes ({planned.message}): use a claim with ReadOnlyMany or "
        "ReadWriteMany, or GPUs that hold the model on one node"
    )
    return NoFit(Reason.DOES_NOT_FIT, message, planned.steps)


def _would_differ(course: Course, target: PinnedRevision) -> bool:
    """Whether a plan that is made today would run the same spec differently."""
    today = _planned(course, target.facts, course.config.engine)
    if isinstance(today, NoFit):
        return False
    template = template_of(course, target.facts, today)
    return not (same_template(template, target.template) or same_but_adapters(template, target.template))


def template_of(course: Course, facts: Checkpoint, planned: Plan) -> Manifest:
    """The pod of every replica without its name, in the form in which the API server returns it."""
    identity = PodIdentity(course.observed.owner, course.revision)
    source = registry.engine_source(course.spec, facts, course.config.engine)
    made = engine_template(identity, course.spec, planned, source, course.config.image)
    template: Manifest = as_stored(connected(made, planned, course.config.multi_nodes))
    return template
