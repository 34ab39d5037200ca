"""The vocabulary of reconcile: what was observed, what was decided, and which deeds there are. Only data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubAnswer, HubQuery
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import ANNOTATION_OWNER_UID, Manifest
from qwen_operator.planning.types import NoFit, Plan
from qwen_operator.scaling.types import ScalingState


class Kind(StrEnum):
    """The kinds of objects that the operator writes for a QwenDeployment."""

    POD = "Pod"
    CONTROLLER_REVISION = "ControllerRevision"
    POD_DISRUPTION_BUDGET = "PodDisruptionBudget"


class Why(StrEnum):
    """Why an action is taken; a log key and a metric label."""

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
    BUDGET_MISSING = "BudgetMissing"
    REPLICAS_CHANGED = "ReplicasChanged"
    POD_ENDED = "PodEnded"
    SURPLUS = "Surplus"
    DRIFTED = "Drifted"
    REVISION_OBSOLETE = "RevisionObsolete"


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object; the name being taken means that the view was stale."""

    kind: Kind
    manifest: Manifest
    why: Why


@dataclass(frozen=True, slots=True)
class Patch:
    """Strategic merge patch of an object of ours. `notice` is an Event that is posted before."""

    kind: Kind
    name: str
    patch: Manifest
    why: Why
    notice: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object of this uid and no other.

    `version`: only in the state of this resourceVersion. `grace_seconds` overrides the pod's own period, 0 removes it
    without waiting for its node. `notice` is an Event that is posted before.
    """

    kind: Kind
    name: str
    uid: str
    why: Why
    version: str | None = None
    grace_seconds: int | None = None
    notice: Manifest | None = None


Action = Create | Patch | Delete


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server's no to an action: repeating it at once does not help."""

    kind: Kind
    name: str
    message: str
    deletion: bool = False


@dataclass(frozen=True, slots=True)
class Nodes:
    """What the nodes mean for pods that are on them; `names` are those that exist, none if they may not be read.

    `cordoned`: nothing new is to run there, and what runs is about to be moved. `silent`: their kubelet does not
    answer. `out_of_service`: a person says that nothing runs there any more.
    """

    names: frozenset[str] = frozenset()
    cordoned: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    out_of_service: frozenset[str] = frozenset()

    def gone(self, name: str) -> bool:
        """Whether the node existed once, as a pod was bound to it, and exists no more."""
        return bool(name) and bool(self.names) and name not in self.names


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one decision depends on, besides configuration and time.

    The children are those of the deployment and those that merely have one of its names. `lost_names` maps client
    names that an older QwenDeployment claims to that object's "namespace/name". `quotas` are the ResourceQuotas of
    its namespace; `scaling` is what the load says, None while nothing is known of it. `hub` is the answer to
    this deployment's last query, None while there is none.
    """

    deployment: Manifest
    pods: tuple[Manifest, ...] = ()
    revisions: tuple[Manifest, ...] = ()
    budgets: tuple[Manifest, ...] = ()
    quotas: tuple[Manifest, ...] = ()
    nodes: Nodes = field(default_factory=Nodes)
    scaling: ScalingState | None = None
    inventory: Inventory = field(default_factory=Inventory)
    lost_names: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal | None = None
    hub: HubAnswer | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in order; the complete status; Events of this step; seconds until time alone changes the answer;
    and a query to send to a hub.

    Deletions come last: they run after the status is written, because they remove the evidence it reports.
    """

    actions: tuple[Action, ...]
    status: dict[str, Any]
    events: tuple[Manifest, ...] = ()
    requeue_after: float | None = None
    ask: HubQuery | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A revision that is pinned, or about to be: what its pods look like."""

    revision: str
    number: int
    facts: Checkpoint
    plan: Plan
    template: Manifest


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why there is no target for the present spec.

    `waiting`: it may pass by itself. `failure` is an inspection that ended badly. `ask`: a query to a hub whose
    answer would help.
    """

    reason: Reason
    message: str
    waiting: bool
    facts: Checkpoint | None = None
    no_fit: NoFit | None = None
    failure: Failure | None = None
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    ask: HubQuery | None = None


class Standing(StrEnum):
    """Whose object it is that has one of our names."""

    OURS = "Ours"
    LEFTOVER = "Leftover"
    FOREIGN = "Foreign"


def standing(child: Manifest, deployment: Manifest) -> Standing:
    """OURS: controlled by this very deployment, or marked with its uid and controlled by nobody.

    LEFTOVER: of an earlier deployment of the same name; the garbage collector takes it. Anything else is FOREIGN
    and never touched.
    """
    uid, name = deployment["metadata"]["uid"], deployment["metadata"]["name"]
    meta = child["metadata"]
    controllers = [owner for owner in meta.get("ownerReferences") or () if owner.get("controller")]
    if not controllers:
        marked = (meta.get("annotations") or {}).get(ANNOTATION_OWNER_UID) == uid
        return Standing.OURS if marked else Standing.FOREIGN
    if controllers[0].get("uid") == uid:
        return Standing.OURS
    predecessor = controllers[0].get("kind") == "QwenDeployment" and controllers[0].get("name") == name
    return Standing.LEFTOVER if predecessor else Standing.FOREIGN


def deleting(child: Manifest) -> bool:
    """Whether the object is on its way out."""
    return "deletionTimestamp" in child["metadata"]
