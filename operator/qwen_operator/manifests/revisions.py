"""The ControllerRevision: what it pins, and how the operator writes and reads it.

While it exists, the operator does not inspect or plan that revision again, whatever else changes in the cluster or in
the operator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.spec import REPLAN_ANNOTATION
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.names import GROUP, Manifest, Owner
from qwen_operator.manifests.objects import controller_revision
from qwen_operator.planning.types import Plan

# A spec has at most 32 levels. A pod and the record of a revision add a few.
MOST_LEVELS = 64
ANNOTATION_ENGINE = f"{GROUP}/engine"
_OWN = "spec"


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """What a revision runs: the facts, the plan, and the pod of every replica without its name.

    `revision` is the hash of the spec. `number` grows with each revision of a QwenDeployment. `replan` is the value of
    the object's annotation of this name, "" if it had none. `own_engine`: spec.engine chose the image or the version,
    not the chart.
    """

    revision: str
    number: int
    facts: Checkpoint
    plan: Plan
    template: Manifest
    replan: str = ""
    own_engine: bool = False


class UnreadableRevisionError(Exception):
    """A ControllerRevision of ours that this version of the operator cannot read."""


def replan_of(manifest: Manifest) -> str:
    """The value of the annotation qwen-operator.dev/replan, of a QwenDeployment or of a ControllerRevision."""
    return str(objects.annotations(manifest).get(REPLAN_ANNOTATION, ""))


def revision_of(manifest: Manifest) -> str:
    """The hash of one of our ControllerRevisions: the end of its name, because names cannot be edited."""
    return str(manifest["metadata"]["name"][-8:])


def read_revision(manifest: Manifest) -> PinnedRevision:
    """The content of a ControllerRevision. Raises UnreadableRevisionError."""
    try:
        data = manifest["data"]
        if (size := untrusted.size_of(data)).levels > MOST_LEVELS:
            raise ValueError(f"it has {size.levels} levels, it must have at most {MOST_LEVELS}")
        return PinnedRevision(
            revision=revision_of(manifest),
            number=int(manifest["revision"]),
            facts=Checkpoint.from_json(data["facts"]),
            plan=Plan.from_json(data["plan"]),
            template=dict(data["template"]),
            replan=replan_of(manifest),
            own_engine=objects.annotations(manifest).get(ANNOTATION_ENGINE) == _OWN,
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        name = manifest["metadata"]["name"]
        raise UnreadableRevisionError(
            f"ControllerRevision {name} cannot be read ({type(error).__name__}: {error}): "
            "delete it, and the operator plans the revision again"
        ) from error


def revision_manifest(owner: Owner, pinned: PinnedRevision) -> Manifest:
    """The ControllerRevision that pins this content."""
    data = {"facts": pinned.facts.to_json(), "plan": pinned.plan.to_json(), "template": pinned.template}
    manifest = controller_revision(owner, pinned.revision, pinned.number, data)
    marks = {REPLAN_ANNOTATION: pinned.replan, ANNOTATION_ENGINE: _OWN if pinned.own_engine else ""}
    manifest["metadata"]["annotations"] |= {name: value for name, value in marks.items() if value}
    return manifest


def revision_metadata(owner: Owner, revision: str) -> Manifest:
    """The part of a ControllerRevision that may be repaired: the API server lets nobody change its data."""
    metadata: Manifest = controller_revision(owner, revision, 0, {})["metadata"]
    return metadata


def as_stored(value: Any) -> Any:
    """The value in the form that the API server returns: tuples are lists, enums are texts."""
    return json.loads(json.dumps(value))
