"""What the operator can do to the children of a QwenDeployment, as data: every action has a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from qwen_operator.manifests.names import Manifest


class Kind(StrEnum):
    """The kinds of objects that the operator writes for a QwenDeployment."""

    POD = "Pod"
    CONTROLLER_REVISION = "ControllerRevision"
    POD_DISRUPTION_BUDGET = "PodDisruptionBudget"


class ActionReason(StrEnum):
    """Why the operator takes an action; the value of the log key `why`."""

    PIN_REVISION = "PinRevision"
    INSPECT = "Inspect"
    INSPECT_AGAIN = "InspectAgain"
    INSPECTION_DONE = "InspectionDone"
    REPLICA_MISSING = "ReplicaMissing"
    NEW_REVISION = "NewRevision"
    REPLACED = "Replaced"
    OLD_NOT_READY = "OldNotReady"
    SCALED_DOWN = "ScaledDown"
    CORDONED = "Cordoned"
    UNCORDONED = "Uncordoned"
    LOAD_RETURNED = "LoadReturned"
    DRAINED = "Drained"
    DRAIN_TIMED_OUT = "DrainTimedOut"
    STOPPED_ANSWERING = "StoppedAnswering"
    NODE_LOST = "NodeLost"
    MEMBER_LOST = "MemberLost"
    BUDGET_MISSING = "BudgetMissing"
    REPLICAS_CHANGED = "ReplicasChanged"
    POD_ENDED = "PodEnded"
    SURPLUS = "Surplus"
    DRIFTED = "Drifted"
    REVISION_OBSOLETE = "RevisionObsolete"


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object. If the name is taken, the view was stale."""

    kind: Kind
    manifest: Manifest
    reason: ActionReason

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Patch:
    """Strategic merge patch of an object of ours. `event` is an Event that is posted before."""

    kind: Kind
    name: str
    patch: Manifest
    reason: ActionReason
    event: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object of this uid and no other.

    `version`: only in the state of this resourceVersion. `grace_seconds` overrides the pod's own period, 0 removes it
    without waiting for its node. `event` is an Event that is posted before.
    """

    kind: Kind
    name: str
    uid: str
    reason: ActionReason
    version: str | None = None
    grace_seconds: int | None = None
    event: Manifest | None = None

    def same_object(self, other: Delete) -> bool:
        """Whether both delete the same object."""
        return (self.kind, self.name, self.uid) == (other.kind, other.name, other.uid)


Action = Create | Patch | Delete


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server refused an action: repeating it at once does not help. `deletion`: the action was a Delete."""

    kind: Kind
    name: str
    message: str
    deletion: bool = False


@dataclass(frozen=True, slots=True)
class OrderedActions:
    """All actions of one decision in the order of the writes. The operator writes the status between the two groups:
    after what creates and repairs, and before the deletions, which remove the evidence that the status reports."""

    before_status: tuple[Create | Patch, ...] = ()
    after_status: tuple[Delete, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before_status or self.after_status)


# What pins a revision comes before everything that runs it, and goes after everything that ran it. The budget protects
# the replicas before one of them is touched.
_CREATION_ORDER = (Kind.CONTROLLER_REVISION, Kind.POD_DISRUPTION_BUDGET, Kind.POD)


def in_order(actions: Iterable[Action]) -> OrderedActions:
    """The order of the writes; actions of the same rank keep the order in which they were decided."""
    every = tuple(actions)
    writes = [action for action in every if not isinstance(action, Delete)]
    deletions = [action for action in every if isinstance(action, Delete)]
    return OrderedActions(
        before_status=tuple(sorted(writes, key=lambda action: _CREATION_ORDER.index(action.kind))),
        after_status=tuple(sorted(deletions, key=lambda action: -_CREATION_ORDER.index(action.kind))),
    )
