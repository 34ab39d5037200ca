"""Pins the plan in a ControllerRevision, chooses the revision to run, and removes old ControllerRevisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from qwen_operator import objects
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.manifests.drift import is_owned, subset
from qwen_operator.manifests.kept import CUT
from qwen_operator.manifests.names import ANNOTATION_CACHED_ON, Manifest
from qwen_operator.manifests.revisions import (
    ANNOTATION_SOURCE,
    PinnedRevision,
    replan_of,
    revision_manifest,
    revision_metadata,
    revision_of,
)
from qwen_operator.reconcile.phases.plan import template_of, without_adapters
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.adapters import loaded_note, remembering, running_note
from qwen_operator.replicas.cached_nodes import noted
from qwen_operator.sources.inspection import leftovers
from qwen_operator.tenancy.models import place_of

KEPT_REVISIONS = 2
"""How many revisions the operator keeps besides the present one and those that have pods."""


def pin(course: Course) -> Step:
    """Set the target of the present spec, and the revision whose replicas should run."""
    actions: list[Action] = []
    if course.plan is not None and course.facts is not None:
        number = max((number_of(item) for item in course.observed.revisions.owned.values()), default=0) + 1
        facts = course.facts.checkpoint
        engine = course.spec.engine
        target = PinnedRevision(
            revision=course.revision,
            number=number,
            facts=facts,
            plan=course.plan,
            template=course.template or template_of(course, facts, course.plan),
            replan=replan_of(course.observed.deployment),
            own_engine=bool(engine.image or engine.version),
            source=_source(course),
            without_adapters=without_adapters(course),
        )
        manifest = revision_manifest(course.observed.owner, target)
        actions.append(Create(Kind.CONTROLLER_REVISION, manifest, ActionReason.PIN_REVISION))
        course = replace(course, target=target)
    course = replace(course, running=course.target or course.observed.last_served)
    return Step(
        course,
        (
            *actions,
            *_repairs(course),
            *leftovers(course.observed.pods, course.observed.owner.name, _awaited_inspection(course)),
            *_obsolete(course),
        ),
    )


def number_of(manifest: Manifest) -> int:
    """The number of a ControllerRevision; 0 if it has none."""
    return int(manifest.get("revision") or 0)


def _source(course: Course) -> str:
    """Where the weights of the present spec come from."""
    return str(place_of(course.observed.deployment["spec"], course.config.engine.hub))


def _awaited_inspection(course: Course) -> str:
    """The revision whose inspection is not finished; "" if there is none."""
    return course.revision if course.target is None else ""


def _present(course: Course) -> Iterable[Manifest]:
    """The ControllerRevisions of this deployment that are not being deleted."""
    return (item for item in course.observed.revisions.owned.values() if not objects.is_deleting(item))


def _repairs(course: Course) -> Iterator[Patch]:
    """Repair labels, annotations and owners of ControllerRevisions. Their data is immutable in the API server."""
    readable = course.observed.readable
    for item in _present(course):
        pinned = readable.get(revision_of(item))
        if pinned is None:
            continue
        meta = revision_metadata(course.observed.owner, pinned.revision)
        wanted: Manifest = {part: meta[part] for part in ("labels", "annotations") if part in meta}
        if pinned.revision == course.revision and not pinned.source:
            # An earlier version pinned it. Its hash says that it runs the present spec.
            wanted["annotations"] = {**wanted["annotations"], ANNOTATION_SOURCE: _source(course)}
        pods = (*course.observed.engine_pods, *course.observed.fetch_pods)
        cached = noted(item, pinned, pods, course.observed.nodes, claims=course.spec.prefetch)
        cache = {ANNOTATION_CACHED_ON: cached} if cached else {}
        loaded = _loaded(course, pinned)
        wanted["annotations"] = {**wanted["annotations"], **cache, **loaded}
        known = CUT in item or subset(wanted, item["metadata"])
        if not known or not is_owned({"metadata": meta}, item):
            patch = {"metadata": {**wanted, "ownerReferences": meta["ownerReferences"]}}
            yield Patch(Kind.CONTROLLER_REVISION, meta["name"], patch, _why(item, cache, loaded))


def _loaded(course: Course, pinned: PinnedRevision) -> dict[str, str]:
    observed, running = course.observed, course.running
    if running is not None and pinned.revision == running.revision:
        return running_note(running, observed.revisions.owned, observed.readable, observed.engine_pods)
    return loaded_note(pinned, observed.engine_pods)


def _why(item: Manifest, cache: Mapping[str, str], loaded: Mapping[str, str]) -> ActionReason:
    if not subset(cache, objects.annotations(item)):
        return ActionReason.MODEL_CACHED
    return ActionReason.DRIFTED if subset(loaded, objects.annotations(item)) else ActionReason.ADAPTERS_CHANGED


def _obsolete(course: Course) -> Iterator[Delete]:
    """Delete unused ControllerRevisions except the newest KEPT_REVISIONS.

    The revisions of the present spec and of existing pods are in use. So is the one in the status, which runs while
    the present one is held back, and the newest one that says which adapters engines have had.
    """
    observed = course.observed
    known = remembering(course.running, observed.revisions.owned, observed.readable)
    newest = max(known, key=lambda pinned: pinned.number, default=None)
    used = {course.revision, *(state.revision for state in course.observed.engine_pods)}
    used |= {pinned.revision for pinned in (course.running, newest, observed.last_served) if pinned is not None}
    idle = [item for item in _present(course) if revision_of(item) not in used]
    for item in sorted(idle, key=number_of, reverse=True)[KEPT_REVISIONS:]:
        meta = item["metadata"]
        yield Delete(Kind.CONTROLLER_REVISION, meta["name"], meta["uid"], ActionReason.REVISION_OBSOLETE)
