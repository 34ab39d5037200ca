"""Whether the platform team's lists allow the present spec. Pure.

A revision that is pinned is never judged again, so its pods stay and are replaced as before. An entry that the running
revision has may stay in the next one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.expansion import unescaped
from qwen_operator.manifests.names import ENGINE_CONTAINER, Manifest
from qwen_operator.manifests.quantities import canonical_quantities
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.planning.engine import choose
from qwen_operator.planning.engine_args import RefusedArgsError
from qwen_operator.reconcile.types import Course
from qwen_operator.tenancy import models
from qwen_operator.tenancy.judge import refused
from qwen_operator.tenancy.lists import Setting

SHOWN = 3
"""How many entries a message names."""


def not_allowed(course: Course) -> Blocked | None:
    """The reason if the lists do not allow the spec, else None."""
    owner, tenancy = course.observed.owner, course.config.tenancy
    if not tenancy.judges(owner.namespace, owner.name):
        return None
    spec = canonical_quantities(course.observed.deployment["spec"])
    running = course.observed.last_served
    before = spec_of(running, spec) if running is not None else None
    refusals = refused(spec, tenancy, owner.namespace, before)
    if any(one.setting is Setting.ENGINE_ARGS for one in refusals) and _has_wrong_options(course):
        # Planning refuses these, and says what would be right.
        refusals = tuple(one for one in refusals if one.setting is not Setting.ENGINE_ARGS)
    if not refusals:
        return None
    count = f"{len(refusals)} entries, of which the first: " if len(refusals) > SHOWN else ""
    message = count + "; ".join(one.message for one in refusals[:SHOWN])
    return Blocked(Reason.NOT_ALLOWED, message, waiting=False)


def _has_wrong_options(course: Course) -> bool:
    try:
        choose(course.spec.engine, course.config.engine)
    except RefusedArgsError:
        return True
    return False


def spec_of(running: PinnedRevision, spec: Mapping[str, Any]) -> Manifest:
    """What a revision has of the fields that are judged, in the form of a spec.

    An image in `spec` without a tag counts as the template's image if that has the tag which the operator appends.
    """
    pod, metadata = objects.mapping(running.template, "spec"), objects.mapping(running.template, "metadata")
    engines = [one for one in objects.members(pod, "containers") if one.get("name") == ENGINE_CONTAINER]
    engine = engines[0] if engines else {}
    image, written = str(engine.get("image")), str(objects.mapping(spec, "engine").get("image"))
    place = models.parsed(running.source)
    return {
        "source": {"uri": place.uri, "revision": place.revision},
        "adapters": [{"source": {"uri": one.uri}} for one in running.facts.adapters],
        "pod": {
            "labels": metadata.get("labels"),
            "annotations": metadata.get("annotations"),
            "resources": engine.get("resources"),
            "volumeMounts": engine.get("volumeMounts"),
            **pod,
        },
        "engine": {
            "image": written if image.startswith(f"{written}:v") else image,
            "args": [unescaped(word) for word in engine.get("command", ())],
            "env": [_as_written(variable) for variable in engine.get("env", ())],
        },
    }


def _as_written(variable: Mapping[str, Any]) -> Manifest:
    value = variable.get("value")
    return dict(variable) if value is None else {**variable, "value": unescaped(value)}
