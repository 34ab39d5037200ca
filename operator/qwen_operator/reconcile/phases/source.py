"""Gets the facts of the checkpoint, unless the revision of the spec is pinned already. Pure."""

from __future__ import annotations

from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked, by_foreign_objects
from qwen_operator.actions.refusals import explain
from qwen_operator.actions.types import Kind
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import hash_without_adapters
from qwen_operator.manifests.inspection_pods import reads_alike
from qwen_operator.manifests.names import controller_revision_name, inspection_pod_name
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError, replan_of
from qwen_operator.reconcile.allowed import not_allowed
from qwen_operator.reconcile.foreign import foreign_objects
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas import quotas
from qwen_operator.sources import registry
from qwen_operator.sources.scheme import Facts, SourceContext
from qwen_operator.tenancy.models import place_of


def source(course: Course) -> Step:
    """Set the pinned revision if there is one, else the facts of the source, or the reason why they are missing."""
    pinned = course.observed.pinned.get(course.revision)
    if isinstance(pinned, UnreadableRevisionError):
        return _blocked(course, Blocked(Reason.UNKNOWN, str(pinned), waiting=False))
    if pinned is not None:
        return Step(replace(course, target=pinned))
    if (refused := not_allowed(course)) is not None:
        return _blocked(course, refused)
    if (occupied := _occupied(course)) is not None:
        return _blocked(course, occupied)
    facts = _known_facts(course) or registry.resolve(_context(course))
    if isinstance(facts, Blocked):
        return _blocked(course, facts)
    return Step(replace(course, facts=facts, query=facts.query))


def _known_facts(course: Course) -> Facts | None:
    """The facts of the same files from an earlier revision; None if a pod must read them.

    Another placement or other labels of the pods do not change the files. Each adapter may be known from another
    revision.
    """
    known = _with_same_model(course)
    adapters = {(one.name, one.uri): one for pinned in known for one in pinned.facts.adapters}
    wanted = [(one.name, one.source.place) for one in course.spec.sorted_adapters]
    if not known or not adapters.keys() >= set(wanted):
        return None
    return Facts(replace(known[-1].facts, adapters=tuple(adapters[one] for one in wanted)))


def _with_same_model(course: Course) -> list[PinnedRevision]:
    """The revisions whose facts of the model hold for the present spec, the best one last.

    If no pod reads the model, its hub may say something else today: then only the revision that runs counts, and only
    the adapters may differ.
    """
    observed, mounted = course.observed, registry.inspected(course.spec, course.config.engine)
    replan, running = replan_of(observed.deployment), observed.last_served
    if mounted is None:
        return [running] if running and running.replan == replan and _has_same_base(course, running) else []
    known = (pinned for pinned in observed.readable.values() if pinned.replan == replan)
    alike = [pinned for pinned in known if reads_alike(pinned.template, course.spec.pod, mounted)]
    return sorted(alike, key=lambda pinned: pinned.number)


def _has_same_base(course: Course, pinned: PinnedRevision) -> bool:
    deployment = course.observed.deployment
    rest = hash_without_adapters(deployment["spec"], objects.annotations(deployment))
    # The cache has models by their commit.
    usable = bool(pinned.facts.commit) or course.config.engine.cache is None
    return usable and _has_same_place(course, pinned) and (pinned.without_adapters or pinned.revision) == rest


def _has_same_place(course: Course, pinned: PinnedRevision) -> bool:
    place = place_of(course.observed.deployment["spec"], course.config.engine.hub)
    return pinned.source == str(place)


def _context(course: Course) -> SourceContext:
    observed, config = course.observed, course.config
    known = _with_same_model(course) if registry.inspected(course.spec, config.engine) is None else []
    running = observed.last_served
    name = inspection_pod_name(observed.owner.name, course.revision)
    return SourceContext(
        spec=course.spec,
        revision=course.revision,
        deployment=observed.deployment,
        defaults=config.engine,
        runtime=config.image,
        inventory=observed.inventory,
        online=config.hub_lookup,
        now=course.now,
        inspection=observed.pods.get(name),
        claim=observed.claim,
        answer=observed.hub,
        known=replace(known[-1].facts, adapters=()) if known else None,
        running=replace(running.facts, adapters=()) if running and _has_same_place(course, running) else None,
    )


def _occupied(course: Course) -> Blocked | None:
    """The reason to wait if another object has a needed name: a foreign one, or a ControllerRevision in deletion."""
    revisions = course.observed.revisions
    name = controller_revision_name(course.observed.owner.name, course.revision)
    pod = (Kind.POD, inspection_pod_name(course.observed.owner.name, course.revision))
    if foreign := foreign_objects(course.observed, ((Kind.CONTROLLER_REVISION, name), pod)):
        return by_foreign_objects(foreign, course.observed.deployment)
    if name in revisions:
        return Blocked(Reason.PENDING, f"waiting until {name} is removed", waiting=True)
    return None


def _blocked(course: Course, blocked: Blocked) -> Step:
    """Set the reason and add the actions that may end it.

    If a quota has no room for them, or the API server rejects one of them, that is the reason.
    """
    actions, full = quotas.within_quotas(blocked.actions, course.observed.quotas)
    if full is not None and blocked.waiting:
        blocked = replace(blocked, reason=Reason.QUOTA_EXCEEDED, message=full)
    refusal = course.observed.refusal
    if refusal is not None and any(refusal.rejects(action) for action in actions):
        reason, message = explain(refusal)
        blocked = replace(blocked, reason=reason, message=message, waiting=reason is Reason.QUOTA_EXCEEDED)
    return Step(
        replace(course, blocked=blocked, query=blocked.query, full=full),
        actions,
        requeue_after=blocked.requeue_after,
    )
