"""The input and the output of one decision, and what its phases pass on. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.types import Action, OrderedActions, Refusal
from qwen_operator.api.claims import NameShare
from qwen_operator.api.spec import Spec
from qwen_operator.api.status import Failure
from qwen_operator.arbiter.types import Ask, Grant
from qwen_operator.checkpoints.hubs import HubAnswer, HubQuery
from qwen_operator.config.types import Config
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Manifest, Owner
from qwen_operator.manifests.ownership import Children
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError
from qwen_operator.planning.types import Plan
from qwen_operator.reconcile.plan_memory import PlanMemory
from qwen_operator.replicas.adapter_downloads import NOTHING as NO_DOWNLOADS
from qwen_operator.replicas.adapter_downloads import AdapterDownloads
from qwen_operator.replicas.adapters import Pages
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.giving_back import NOTHING as NONE_GIVEN_BACK
from qwen_operator.replicas.giving_back import GivenBack
from qwen_operator.replicas.groups import SortedReplicas
from qwen_operator.replicas.holding import Hold
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.places import Neighbours
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.replicas.prefetch import NOTHING, Prefetch
from qwen_operator.replicas.wanted import WantedReplicas
from qwen_operator.scaling.types import ScalingState
from qwen_operator.sources.scheme import Facts, VolumeClaim
from qwen_operator.status.progress import ProgressPage


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one decision depends on, except configuration and time. It is read once.

    `pods`, `revisions`, `budgets`: the objects that name the deployment or have a name that it needs.
    `engine_pods`: the states of its own engine pods. `fetch_pods`: of its pods that fetch a model before those need it.
    `adapter_pods`: of its pods that fetch adapters while engines serve.
    `pinned`: what its ControllerRevisions pin, by revision hash, or why this version cannot read one.
    `quotas`: the ResourceQuotas of its namespace.
    `scaling`: the scaling state; None while nothing is known.
    `names`: which of its served names it holds, and why it does not hold the others.
    `hub`: the answer to this deployment's last query; None while there is none.
    `claim`: the claim with the files that are still to be inspected; None if it is unknown. `cache_claim`: the one
    that spec.prefetch is to fill.
    `refusal`: the action that the API server rejected; None if there is none.
    `neighbours`: all nodes and engine pods; None if none of its own pods waits for the others of its replica and
    spec.prefetch is not set, or if the operator may not read nodes.
    `plans`: remembers answers that depend on the rest of it alone.
    `pages`: how far the downloads of pods are, by the pods' uids. `adapter_pages`: which adapters engines have.
    `grant`: what the arbiter leaves it of the GPUs; None if nobody arbitrates.
    """

    deployment: Manifest
    pods: Children = field(default_factory=Children)
    engine_pods: tuple[PodState, ...] = ()
    fetch_pods: tuple[PodState, ...] = ()
    adapter_pods: tuple[PodState, ...] = ()
    revisions: Children = field(default_factory=Children)
    pinned: Mapping[str, PinnedRevision | UnreadableRevisionError] = field(default_factory=dict)
    budgets: Children = field(default_factory=Children)
    quotas: tuple[Manifest, ...] = ()
    nodes: NodeHealth = field(default_factory=NodeHealth)
    inventory: Inventory = field(default_factory=Inventory)
    scaling: ScalingState | None = None
    names: NameShare = field(default_factory=NameShare)
    hub: HubAnswer | None = None
    claim: VolumeClaim | None = None
    cache_claim: VolumeClaim | None = None
    refusal: Refusal | None = None
    plans: PlanMemory = field(default_factory=PlanMemory)
    pages: Mapping[str, ProgressPage] = field(default_factory=dict)
    adapter_pages: Pages = field(default_factory=dict)
    neighbours: Neighbours | None = None
    grant: Grant | None = None

    @property
    def owner(self) -> Owner:
        meta = self.deployment["metadata"]
        return Owner(meta["name"], meta["namespace"], meta["uid"])

    @property
    def pods_of_revisions(self) -> dict[str, int]:
        """How many pods a replica of each pinned revision has, by revision hash."""
        return {name: pinned.plan.nodes_per_replica for name, pinned in self.readable.items()}

    @property
    def readable(self) -> dict[str, PinnedRevision]:
        """The pinned revisions that this version can read, by revision hash."""
        return {name: pinned for name, pinned in self.pinned.items() if isinstance(pinned, PinnedRevision)}

    @property
    def last_served(self) -> PinnedRevision | None:
        """The revision in the status, or else the one with the highest number.

        The number alone does not show it: when a user restores an earlier spec, its revision keeps its old number.
        """
        shown = objects.mapping(self.deployment, "status", "plan").get("hash")
        readable = self.readable
        return readable.get(str(shown)) or max(readable.values(), key=lambda revision: revision.number, default=None)


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of one decision.

    `actions` are in the order of the writes. `status` is complete. `events` belong to the change of the status. After
    `requeue_after` seconds, time alone changes the decision. `query` is the question for a hub. `ask`: what the
    arbiter is asked for; None if it does not decide about this deployment. `unread`: nodes whose pods must be read
    before replicas may have them.
    """

    actions: OrderedActions
    status: dict[str, Any]
    events: tuple[Manifest, ...] = ()
    requeue_after: float | None = None
    query: HubQuery | None = None
    ask: Ask | None = None
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Course:
    """What the phases of one decision know so far. Each phase sets its own fields.

    `spec`: the present spec with the chart's defaults of spec.pod. `revision`: the hash of the spec as it is written.
    `facts`, `plan`: set on the way to a new revision. `template`: its pod, if that does not follow from the plan alone.
    `target`: the pinned revision of the present spec. Without it, `blocked` is the reason.
    `running`: the revision whose replicas should run: the target or, if there is none or it is held back, the revision
    that served before. `hold`: why that revision is held back; None if none is.
    `newer`: a plan that is made today would run the same spec differently.
    `unreachable`: no client can reach this deployment, so the operator makes no new replica.
    `unplaced`: the record of a replica that could not be placed as a whole.
    `foreign`: the message about objects of other owners with names that the operator needs; "" if there are none.
    `full`: the message about a quota without room.
    `query`: the question for a hub. `ask`: what the arbiter is asked for. `unread`: nodes to read.
    `prefetch`: what is downloaded before engine pods need it. `downloads`: the adapters that are, while engines serve.
    `given_back`: replicas whose model cannot be fetched.
    `status`, `events`: set by the last phase.
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
    template: Manifest | None = None
    blocked: Blocked | None = None
    target: PinnedRevision | None = None
    running: PinnedRevision | None = None
    newer: bool = False
    unreachable: bool = False
    replicas: SortedReplicas = field(default_factory=SortedReplicas)
    wanted: WantedReplicas | None = None
    rules: RolloutRules | None = None
    hold: Hold | None = None
    unplaced: Failure | None = None
    foreign: str = ""
    full: str | None = None
    ask: Ask | None = None
    unread: frozenset[str] = frozenset()
    prefetch: Prefetch = NOTHING
    downloads: AdapterDownloads = NO_DOWNLOADS
    given_back: GivenBack = NONE_GIVEN_BACK
    status: Manifest | None = None
    events: tuple[Manifest, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one phase: the course with its fields set, and its actions.

    After `requeue_after` seconds, time alone changes the result.
    """

    course: Course
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None

    @property
    def next_course(self) -> Course:
        """The course for the next phase, which knows all actions so far."""
        return replace(self.course, actions=(*self.course.actions, *self.actions))
