"""The ControllerRevision: what it pins, and how the operator writes and reads it.

While it exists, the operator does not inspect or plan that revision again, whatever else changes in the cluster or in
the operator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.spec import UNKEPT
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.kept import data_fault
from qwen_operator.manifests.names import Manifest, Owner
from qwen_operator.manifests.objects import controller_revision
from qwen_operator.planning.types import Plan


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """What a revision runs: the facts, the plan, and the pod of every replica without its name.

    `revision` is the hash of the spec. `number` grows with each revision of a QwenDeployment.
    """

    revision: str
    number: int
    facts: Checkpoint
    plan: Plan
    template: Manifest


class UnreadableRevisionError(Exception):
    """A ControllerRevision of ours that this version of the operator cannot read."""


def revision_of(manifest: Manifest) -> str:
    """The hash of one of our ControllerRevisions: the end of its name, because names cannot be edited."""
    return str(manifest["metadata"]["name"][-8:])


def read_revision(manifest: Manifest) -> PinnedRevision:
    """The content of a ControllerRevision. Raises UnreadableRevisionError."""
    try:
        data = manifest["data"]
        if fault := manifest.get(UNKEPT) or data_fault(data):
            raise ValueError(fault)
        return PinnedRevision(
            revision=revision_of(manifest),
            number=int(manifest["revision"]),
            facts=Checkpoint.from_json(data["facts"]),
            plan=Plan.from_json(data["plan"]),
            template=dict(data["template"]),
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
    return controller_revision(owner, pinned.revision, pinned.number, data)


def revision_metadata(owner: Owner, revision: str) -> Manifest:
    """The part of a ControllerRevision that may be repaired: the API server lets nobody change its data."""
    metadata: Manifest = controller_revision(owner, revision, 0, {})["metadata"]
    return metadata


def as_stored(value: Any) -> Any:
    """The value in the form that the API server returns: tuples are lists, enums are texts."""
    return json.loads(json.dumps(value))
