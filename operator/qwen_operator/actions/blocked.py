"""Why a QwenDeployment has no revision for its present spec. Only data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_operator.actions.types import Action, Kind
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubQuery
from qwen_operator.manifests.names import ANNOTATION_OWNER_UID, Manifest
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
    """What to do about all of them, and how to adopt those that an earlier object of this name left behind."""
    former = [item for item in foreign if item.former]
    others = [item for item in foreign if not item.former]
    earlier = "earlier QwenDeployment of this name made"
    if not others:
        return f"{_left_alone(former)}: an {earlier} {_them(former)}. {_adoption(former, deployment)}"
    message = f"{_left_alone(others)}: delete {_them(others)}, or give this QwenDeployment another name"
    return f"{message}. An {earlier} {_listed(former)}. {_adoption(former, deployment)}" if former else message


def _left_alone(foreign: Sequence[ForeignObject]) -> str:
    exist = "already exists and does" if len(foreign) == 1 else "already exist and do"
    alone = f"the operator leaves {_them(foreign)} alone"
    return f"{_listed(foreign)} {exist} not belong to this QwenDeployment, so {alone}"


def _adoption(former: Sequence[ForeignObject], deployment: Manifest) -> str:
    """How to adopt them. The command has names and no label, because an object of somebody else may have the label."""
    meta, first = deployment["metadata"], former[:MOST_NAMED]
    them = _them(former) if len(first) == len(former) else f"the first {MOST_NAMED}"
    names = " ".join(f"{item.kind.lower()}/{item.name}" for item in first)
    command = f"kubectl annotate --overwrite -n {meta['namespace']} {names} {ANNOTATION_OWNER_UID}={meta['uid']}"
    return f"To adopt {them}: {command}. Or delete {_them(former)}"


def _them(foreign: Sequence[ForeignObject]) -> str:
    return "it" if len(foreign) == 1 else "them"


def _listed(foreign: Sequence[ForeignObject]) -> str:
    return _joined([f"the {item.kind} {item.name}" for item in foreign])


def _joined(parts: Sequence[str]) -> str:
    shown, rest = parts[:MOST_NAMED], len(parts) - MOST_NAMED
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
