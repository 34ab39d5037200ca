"""Why a QwenDeployment has no revision for its present spec. Only data."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.actions.types import Action, Kind
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubQuery
from qwen_operator.planning.types import NoFit


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


def by_foreign_object(kind: Kind, name: str) -> Blocked:
    """An object that does not belong to this QwenDeployment has a name that the operator needs."""
    return Blocked(Reason.FOREIGN_OBJECT, foreign_message(kind, name), waiting=False)


def foreign_message(kind: Kind, name: str) -> str:
    return (
        f"the {kind} {name} already exists and does not belong to this QwenDeployment, so the operator leaves it "
        "alone: delete it, or give this QwenDeployment another name"
    )
