"""What one decision depends on, what it is, and what its phases hand on. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.types import Action, OrderedActions, Refusal
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.hubs import HubAnswer, HubQuery
from qwen_operator.config import Config
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Manifest, Owner
from qwen_operator.manifests.ownership import Children
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError
from qwen_operator.planning.types import Plan
from qwen_operator.reconcile.plan_memory import PlanMemory
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.groups import SortedReplicas
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.replicas.wanted import WantedReplicas
from qwen_operator.scaling.types import ScalingState
from qwen_operator.sources.scheme import Facts


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one decision depends on, besides configuration and time; read once.

    `pods`, `revisions` and `budgets` are the objects that name the deployment or have a name that it needs.
    `engine_pods` are the states of its own engine pods. `pinned` maps revision hashes to what its ControllerRevisions
    pin, or to why this version cannot read one.
    `quotas` are the ResourceQuotas of its namespace. `scaling` is what the load says, None while nothing is known.
    `lost_names` maps client names that an older QwenDeployment claims to that object's "namespace/name".
    `hub` is the answer to this deployment's last query, None while there is none. `plans` remembers answers that depend
    on the rest of it alone.
    """

    deployment: Manifest
    pods: Children = field(default_factory=Children)
    engine_pods: tuple[PodState, ...] = ()
    revisions: Children = field(default_factory=Children)
    pinned: Mapping[str, PinnedRevision | UnreadableRevisionError] = field(default_factory=dict)
    budgets: Children = field(default_factory=Children)
    quotas: tuple[Manifest, ...] = ()
    nodes: NodeHealth = field(default_factory=NodeHealth)
    inventory: Inventory = field(default_factory=Inventory)
    scaling: ScalingState | None = None
    lost_names: Mapping[str, str] = field(default_factory=dict)
    hub: HubAnswer | None = None
    refusal: Refusal | None = None
    plans: PlanMemory = field(default_factory=PlanMemory)

    @property
    def owner(self) -> Owner:
        meta = self.deployment["metadata"]
        return Owner(meta["name"], meta["namespace"], meta["uid"])

    @property
    def readable(self) -> dict[str, PinnedRevision]:
        """What the ControllerRevisions pin that this version can read, by revision hash."""
        return {name: one for name, one in self.pinned.items() if isinstance(one, PinnedRevision)}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in the order of the writes; the complete status; Events of this step; seconds until time alone
    changes the answer; and what to ask a hub."""

    actions: OrderedActions
    status: dict[str, Any]
    events: tuple[Manifest, ...] = ()
    requeue_after: float | None = None
    query: HubQuery | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """What the phases of one decision know so far. Each phase fills in its own part.

    `revision`: the hash of the present spec. Until the spec's revision is pinned, `facts` and `plan` lead to it;
    then there is a `target`, or else `blocked` says why not.
    `running`: the revision whose replicas are to run: the target or, without one, what served before the spec was
    changed. `newer`: planned today, the same spec would run differently.
    `unasked`: no client can ask for this deployment, so no new replica is made.
    `foreign`: sentences about objects of others under names that are needed. `full`: which quota has no room.
    `query`: what to ask a hub. `status` and `events` are the last phase's.
    """

    observed: Observed
    config: Config
    now: datetime
    spec: Spec
    revision: str
    actions: tuple[Action, ...] = ()
    query: HubQuery | None = None
    facts: Facts | None = None
    plan: Plan | None = None
    blocked: Blocked | None = None
    target: PinnedRevision | None = None
    running: PinnedRevision | None = None
    newer: bool = False
    unasked: bool = False
    replicas: SortedReplicas = field(default_factory=SortedReplicas)
    wanted: WantedReplicas | None = None
    rules: RolloutRules | None = None
    foreign: tuple[str, ...] = ()
    full: str | None = None
    status: Manifest | None = None
    events: tuple[Manifest, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What one phase adds: the course with its findings, its actions, and in how many seconds time alone changes
    what it found."""

    course: Course
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None

    @property
    def next_course(self) -> Course:
        """The course for the next phase, which knows all actions so far."""
        return replace(self.course, actions=(*self.course.actions, *self.actions))
