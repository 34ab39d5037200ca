"""The ControllerRevision: what it pins, and how the operator writes and reads it.

While it exists, the operator does not inspect or plan that revision again, whatever else changes in the cluster or in
the operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator import objects
from qwen_operator.api.spec import REPLAN_ANNOTATION, UNKEPT
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.kept import data_fault
from qwen_operator.manifests.names import ENGINE_CONTAINER, GROUP, Manifest, Owner
from qwen_operator.manifests.objects import controller_revision
from qwen_operator.planning.types import Plan

ANNOTATION_ENGINE = f"{GROUP}/engine"
ANNOTATION_SOURCE = f"{GROUP}/source"
ANNOTATION_WITHOUT_ADAPTERS = f"{GROUP}/without-adapters"
_OWN = "spec"


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """What a revision runs: the facts, the plan, and the pod of every replica without its name.

    `revision` is the hash of the spec. `number` grows with each revision of a QwenDeployment. `replan` is the value of
    the object's annotation of this name, "" if it had none. `own_engine`: spec.engine chose the image or the version,
    not the chart. `source`: where the weights come from, as `tenancy.models.Place` writes it; "" if the version that
    pinned the revision did not say. `without_adapters`: the hash of the spec without its adapters; "" if it has none.
    """

    revision: str
    number: int
    facts: Checkpoint
    plan: Plan
    template: Manifest
    replan: str = ""
    own_engine: bool = False
    source: str = ""
    without_adapters: str = ""


class UnreadableRevisionError(Exception):
    """A ControllerRevision of ours that this version of the operator cannot read."""


def replan_of(manifest: Mapping[str, Any]) -> str:
    """The value of the annotation qwen-operator.dev/replan, of a QwenDeployment or of a ControllerRevision."""
    return str(objects.annotations(manifest).get(REPLAN_ANNOTATION, ""))


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
            facts=records.from_json(data["facts"]),
            plan=Plan.from_json(data["plan"]),
            template=_template(data["template"]),
            replan=replan_of(manifest),
            own_engine=objects.annotations(manifest).get(ANNOTATION_ENGINE) == _OWN,
            source=str(objects.annotations(manifest).get(ANNOTATION_SOURCE, "")),
            without_adapters=str(objects.annotations(manifest).get(ANNOTATION_WITHOUT_ADAPTERS, "")),
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        name = manifest["metadata"]["name"]
        raise UnreadableRevisionError(
            f"ControllerRevision {name} cannot be read ({type(error).__name__}: {error}): "
            "delete it, and the operator plans the revision again"
        ) from error


def _template(template: Any) -> Manifest:
    """The template if pods can be made of it, and compared with it. Raises ValueError or TypeError.

    The API server never checked it, because to it the data of a ControllerRevision is any JSON.
    """
    meta, spec = template["metadata"], template["spec"]
    for part in ("labels", "annotations"):
        if not all(isinstance(text, str) for text in (*meta[part], *dict(meta[part]).values())):
            raise ValueError(f"template.metadata.{part} are not texts")
    for part in ("containers", "initContainers"):
        containers = spec[part] if part == "containers" else spec.get(part, [])
        if not isinstance(containers, list) or not all(_is_container(entry) for entry in containers):
            raise ValueError(f"template.spec.{part} is not a list of containers with names and images")
    if not any(entry["name"] == ENGINE_CONTAINER for entry in spec["containers"]):
        raise ValueError(f"template.spec.containers has no {ENGINE_CONTAINER}")
    for part in ("volumes", "tolerations", "imagePullSecrets"):
        entries = spec.get(part, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"template.spec.{part} is not a list of objects")
    return dict(template)


def _is_container(entry: object) -> bool:
    texts = all(isinstance(objects.mapping(entry).get(part), str) for part in ("name", "image"))
    lists = all(isinstance(objects.mapping(entry).get(part, []), list) for part in ("command", "args", "env"))
    return texts and lists


def revision_manifest(owner: Owner, pinned: PinnedRevision) -> Manifest:
    """The ControllerRevision that pins this content."""
    data = {"facts": pinned.facts.to_json(), "plan": pinned.plan.to_json(), "template": pinned.template}
    manifest = controller_revision(owner, pinned.revision, pinned.number, data)
    marks = {
        REPLAN_ANNOTATION: pinned.replan,
        ANNOTATION_ENGINE: _OWN if pinned.own_engine else "",
        ANNOTATION_SOURCE: pinned.source,
        ANNOTATION_WITHOUT_ADAPTERS: pinned.without_adapters,
    }
    manifest["metadata"]["annotations"] |= {name: value for name, value in marks.items() if value}
    return manifest


def revision_metadata(owner: Owner, revision: str) -> Manifest:
    """The part of a ControllerRevision that may be repaired: the API server lets nobody change its data."""
    metadata: Manifest = controller_revision(owner, revision, 0, {})["metadata"]
    return metadata


def as_stored(value: Any) -> Any:
    """The value in the form that the API server returns: tuples are lists, enums are texts."""
    return json.loads(json.dumps(value))
