"""Why a QwenDeployment has no revision for its present spec. Only data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_operator.actions.types import Action, Kind
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubQuery
from qwen_operator.manifests.names import ANNOTATION_OWNER_UID, LABEL_DEPLOYMENT, Manifest
from qwen_operator.planning.types import NoFit

MOST_NAMED = 8
"""How many foreign objects a message names."""


@dataclass(frozen=True, slots=True)
class ForeignObject:
    """An object of another owner with a name that the operator needs.

    `former`: an earlier QwenDeployment of the same name left it behind, for example a restore or a deletion that
    orphans children.
    """

    kind: Kind
    name: str
    former: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """The reason for it, and what may end it.

    `waiting`: the operator expects it to end without a person. `failure`: the inspection that failed. `facts` and
    `no_fit` are set if the checkpoint does not fit.

    Three things may end it: `actions` of the operator, time (`requeue_after`, in seconds), and a hub's answer to
    `query`.
    """

    reason: Reason
    message: str
    waiting: bool
    facts: Checkpoint | None = None
    no_fit: NoFit | None = None
    failure: Failure | None = None
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    query: HubQuery | None = None


def by_foreign_objects(foreign: Sequence[ForeignObject], deployment: Manifest) -> Blocked:
    """Objects that do not belong to this QwenDeployment have names that the operator needs."""
    return Blocked(Reason.FOREIGN_OBJECT, foreign_message(foreign, deployment), waiting=False)


def foreign_message(foreign: Sequence[ForeignObject], deployment: Manifest) -> str:
    """One sentence about all of them, and how to adopt those that an earlier object of this name left behind."""
    one = len(foreign) == 1
    them = "it" if one else "them"
    named = _joined([f"the {item.kind} {item.name}" for item in foreign])
    exist = "already exists and does" if one else "already exist and do"
    message = f"{named} {exist} not belong to this QwenDeployment, so the operator leaves {them} alone"
    if not all(item.former for item in foreign):
        return f"{message}: delete {them}, or give this QwenDeployment another name"
    meta = deployment["metadata"]
    kinds = ",".join(sorted({str(item.kind).lower() for item in foreign}))
    return (
        f"{message}: an earlier QwenDeployment of this name made {them}. To adopt {them}: kubectl annotate --overwrite "
        f"-n {meta['namespace']} {kinds} -l {LABEL_DEPLOYMENT}={meta['name']} {ANNOTATION_OWNER_UID}={meta['uid']}. "
        f"Or delete {them}"
    )


def _joined(parts: Sequence[str]) -> str:
    shown, rest = parts[:MOST_NAMED], len(parts) - MOST_NAMED
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
