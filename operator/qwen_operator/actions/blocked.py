"""Why a QwenDeployment has no revision that its present spec asks for. Only data."""

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
    """`waiting`: it may pass by itself. `failure` is an inspection that ended badly. `facts` and `no_fit` are known
    where the checkpoint does not fit.

    `actions`, `requeue_after` (seconds) and `query` are what may end it: steps of the operator, time, and the answer
    of a hub.
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
    """One of our names is taken by somebody else's object."""
    return Blocked(Reason.FOREIGN_OBJECT, foreign_message(kind, name), waiting=False)


def foreign_message(kind: Kind, name: str) -> str:
    return (
        f"the {kind} {name} exists and does not belong to this QwenDeployment: it is left alone; "
        "delete it, or give this object another name"
    )
