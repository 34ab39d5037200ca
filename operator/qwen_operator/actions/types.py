"""What the operator can do to the objects that a QwenDeployment owns. Only data. Every action has a reason."""

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
    ROOM_FOR_ALL = "RoomForAll"
    LEADER_KNOWN = "LeaderKnown"
    NOT_PLACED = "NotPlaced"
    FETCH_FAILED = "FetchFailed"
    POD_ENDED = "PodEnded"
    SURPLUS = "Surplus"
    DRIFTED = "Drifted"
    ADAPTERS_CHANGED = "AdaptersChanged"
    MODEL_CACHED = "ModelCached"
    PREFETCH = "Prefetch"
    PREFETCH_DONE = "PrefetchDone"
    ADAPTER_MISSING = "AdapterMissing"
    ADAPTER_FETCHED = "AdapterFetched"
    REVISION_OBSOLETE = "RevisionObsolete"


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object. If the name is taken, the operator's view was stale."""

    kind: Kind
    manifest: Manifest
    reason: ActionReason

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Patch:
    """Strategic merge patch of an object that the QwenDeployment owns. The operator posts `event` before the patch."""

    kind: Kind
    name: str
    patch: Manifest
    reason: ActionReason
    event: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object that has this uid, and no other.

    `version`: delete only the state that has this resourceVersion. `grace_seconds` overrides the pod's own grace
    period; with 0 the API server does not wait for the pod's node. The operator posts `event` before the deletion.
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
    """The API server rejected an action, and an immediate retry does not help.

    `deletion`: the action was a Delete. `answered`: false if there was no answer in time, several times in a row.
    """

    kind: Kind
    name: str
    message: str
    deletion: bool = False
    answered: bool = True

    def rejects(self, action: Action) -> bool:
        """Whether it is the rejection of this action."""
        same = (action.kind, action.name) == (self.kind, self.name)
        return same and isinstance(action, Delete) == self.deletion


@dataclass(frozen=True, slots=True)
class OrderedActions:
    """All actions of one decision in the order of the writes.

    The operator writes the status between the two groups. Deletions come last because they remove the evidence that
    the status reports.
    """

    before_status: tuple[Create | Patch, ...] = ()
    after_status: tuple[Delete, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before_status or self.after_status)


# A ControllerRevision comes before the pods of its revision, and is deleted after them. The PodDisruptionBudget comes
# before the pods, so that it protects the replicas before the operator touches one of them.
_CREATION_ORDER = (Kind.CONTROLLER_REVISION, Kind.POD_DISRUPTION_BUDGET, Kind.POD)


def in_order(actions: Iterable[Action]) -> OrderedActions:
    """The order of the writes. Actions on the same kind keep the order in which they were decided."""
    decided = tuple(actions)
    writes = [action for action in decided if not isinstance(action, Delete)]
    deletions = [action for action in decided if isinstance(action, Delete)]
    return OrderedActions(
        before_status=tuple(sorted(writes, key=lambda action: _CREATION_ORDER.index(action.kind))),
        after_status=tuple(sorted(deletions, key=lambda action: -_CREATION_ORDER.index(action.kind))),
    )
