"""The children that are configuration: PodDisruptionBudget and ControllerRevisions. Pure.

A ControllerRevision pins what a revision runs: the facts, the plan and the rendered pod. While it is there, nothing
is inspected or planned again for that revision, whatever else changes in the cluster or in the operator.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from qwen_operator.actions.types import (
    Action,
    Create,
    Delete,
    Kind,
    Observed,
    Patch,
    Standing,
    Target,
    Why,
    deleting,
    standing,
)
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.drift import subset
from qwen_operator.manifests.names import Manifest, Owner, budget_name
from qwen_operator.manifests.objects import controller_revision, disruption_budget
from qwen_operator.planning.types import Plan

KEPT_REVISIONS = 2
"""How many revisions are kept besides the present one and those that have pods."""


class UnreadableRevisionError(Exception):
    """A ControllerRevision of ours that this version of the operator cannot read."""


def own_revisions(observed: Observed) -> dict[str, Manifest]:
    """The ControllerRevisions of this deployment by their hash: the end of the name, which nobody can edit."""
    return {
        str(item["metadata"]["name"][-8:]): item
        for item in observed.revisions
        if standing(item, observed.deployment) is Standing.OURS and not deleting(item)
    }


def read_revision(revision: str, manifest: Manifest) -> Target:
    """What the ControllerRevision pins; raises UnreadableRevisionError."""
    try:
        data = manifest["data"]
        return Target(
            revision=revision,
            number=int(manifest["revision"]),
            facts=Checkpoint.from_json(data["facts"]),
            plan=Plan.from_json(data["plan"]),
            template=dict(data["template"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        name = manifest["metadata"]["name"]
        raise UnreadableRevisionError(
            f"ControllerRevision {name} cannot be read ({type(error).__name__}: {error}): "
            "delete it, and the revision is planned anew"
        ) from error


def revision_manifest(owner: Owner, target: Target) -> Manifest:
    """The ControllerRevision that pins the target."""
    data = {"facts": target.facts.to_json(), "plan": target.plan.to_json(), "template": target.template}
    return controller_revision(owner, target.revision, target.number, data)


def plain(value: Any) -> Any:
    """The value as it comes back from the API server: tuples are lists, enums are texts."""
    return json.loads(json.dumps(value))


def budget_actions(
    owner: Owner, observed: Observed, min_available: int, told: Manifest | None = None
) -> tuple[Action, ...]:
    """Create the PodDisruptionBudget, or set it right. None is made that would protect nothing; one that is there
    stays, or every stop and start would cost two writes more. `told` is posted before it is lowered."""
    desired = disruption_budget(owner, min_available)
    name = budget_name(owner.name)
    budget = next((item for item in observed.budgets if item["metadata"]["name"] == name), None)
    if budget is None:
        return (Create(Kind.POD_DISRUPTION_BUDGET, desired, Why.BUDGET_MISSING),) if min_available else ()
    if standing(budget, observed.deployment) is not Standing.OURS or deleting(budget):
        return ()
    meta = {part: desired["metadata"][part] for part in ("labels", "annotations")}
    same_meta = subset(meta, budget["metadata"]) and _owned(desired, budget)
    if same_meta and budget.get("spec") == desired["spec"]:
        return ()
    number = (budget.get("spec") or {}).get("minAvailable")
    why = Why.REPLICAS_CHANGED if number != min_available else Why.DRIFTED
    # maxUnavailable excludes minAvailable, and the API server replaces the selector as a whole.
    patch = {
        "metadata": {**meta, "ownerReferences": desired["metadata"]["ownerReferences"]},
        "spec": {**dict.fromkeys(set(budget.get("spec") or {}) - set(desired["spec"])), **desired["spec"]},
    }
    return (Patch(Kind.POD_DISRUPTION_BUDGET, name, patch, why, told),)


def revision_repairs(
    owner: Owner, targets: Mapping[str, Target], manifests: Mapping[str, Manifest]
) -> tuple[Action, ...]:
    """Repair labels, annotations and owners of ControllerRevisions. Their data is immutable in the API server."""
    actions: list[Action] = []
    for revision, target in targets.items():
        observed = manifests.get(revision)
        if observed is None:
            continue
        meta = revision_manifest(owner, target)["metadata"]
        wanted = {part: meta[part] for part in ("labels", "annotations") if part in meta}
        if not subset(wanted, observed["metadata"]) or not _owned({"metadata": meta}, observed):
            patch = {"metadata": {**wanted, "ownerReferences": meta["ownerReferences"]}}
            actions.append(Patch(Kind.CONTROLLER_REVISION, meta["name"], patch, Why.DRIFTED))
    return tuple(actions)


def obsolete(manifests: Mapping[str, Manifest], in_use: Iterable[str]) -> tuple[Action, ...]:
    """Delete the oldest ControllerRevisions that are neither present nor have pods, all but the newest two."""
    used = set(in_use)
    idle = sorted(
        (item for revision, item in manifests.items() if revision not in used),
        key=lambda item: int(item.get("revision") or 0),
        reverse=True,
    )
    return tuple(
        Delete(Kind.CONTROLLER_REVISION, item["metadata"]["name"], item["metadata"]["uid"], Why.REVISION_OBSOLETE)
        for item in idle[KEPT_REVISIONS:]
    )


def _owned(desired: Manifest, observed: Manifest) -> bool:
    """Whether our owner reference is there as it should be; others may be there too."""
    references = observed["metadata"].get("ownerReferences") or []
    return all(
        any(subset(wanted, found) for found in references)
        for wanted in desired["metadata"].get("ownerReferences") or ()
    )
