"""What the status is made of: the results of a decision. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.types import Refusal
from qwen_operator.api.claims import NameShare
from qwen_operator.api.spec import Spec
from qwen_operator.api.status import Failure
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.adapter_downloads import Told
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.giving_back import NOTHING as NONE_GIVEN_BACK
from qwen_operator.replicas.giving_back import GivenBack
from qwen_operator.replicas.groups import Replica, SortedReplicas
from qwen_operator.replicas.holding import Hold
from qwen_operator.replicas.prefetch import NOTHING, Prefetch
from qwen_operator.replicas.wanted import WantedReplicas
from qwen_operator.status.progress import ProgressPage


@dataclass(frozen=True, slots=True)
class StatusInput:
    """The input of the status. Either `target` (the revision of the present spec) or `blocked` is set.

    `running`: the target or, without one, the revision that still runs.
    `replicas`: all replicas of the deployment, of any revision.
    `foreign`: the message about objects of other owners with names that the operator needs; "" if there are none.
    `full`: the message about a quota without room.
    `newer`: a plan that is made today would run the same spec differently.
    `unplaced`: the record of a replica that could not be placed as a whole.
    `hold_seconds`: how long a request may wait in the gateway. `hold`: why a revision is held back; None if none is.
    `pages`: how far the downloads and starts of pods are, by uid. `progress` is `status.progress`; `build_status` sets
    it.
    `short_of_gpus`: why other deployments have the GPUs of wanted replicas; "" if they do not.
    `granted`: for how many the GPUs suffice then. `adapter_failures`: why engines could not load adapters, by name.
    `adapter_downloads`: about adapters that are fetched while engines serve, by name.
    `why_replaced`: why a change of adapters replaces replicas; "" if it does not.
    `prefetch`: what is downloaded before engine pods need it. `given_back`: replicas whose model cannot be fetched.
    """

    spec: Spec
    revision: str
    target: PinnedRevision | None
    blocked: Blocked | None
    running: PinnedRevision | None
    replicas: SortedReplicas
    wanted: WantedReplicas
    rules: RolloutRules
    foreign: str
    names: NameShare
    refusal: Refusal | None
    full: str | None
    newer: bool
    hold_seconds: int = 0
    hold: Hold | None = None
    pages: Mapping[str, ProgressPage] = field(default_factory=dict)
    progress: Mapping[str, Any] | None = None
    unplaced: Failure | None = None
    short_of_gpus: str = ""
    granted: int | None = None
    adapter_failures: Mapping[str, str] = field(default_factory=dict)
    adapter_downloads: Mapping[str, Told] = field(default_factory=dict)
    why_replaced: str = ""
    prefetch: Prefetch = NOTHING
    given_back: GivenBack = NONE_GIVEN_BACK

    @property
    def ready(self) -> list[Replica]:
        return [replica for replica in self.replicas.serving if replica.ready]

    @property
    def answering(self) -> int:
        """The number of replicas that answer."""
        return self.replicas.answering(self.wanted.number, self.rules.max_surge)

    @property
    def current(self) -> list[Replica]:
        """The replicas of the present spec's revision that serve or will serve."""
        return [replica for replica in self.replicas.serving if replica.revision == self.revision]

    @property
    def outdated(self) -> bool:
        """Whether there are replicas of another revision, including replicas that are being removed."""
        return any(replica.revision != self.revision for replica in self.replicas.all)

    @property
    def replacing(self) -> bool:
        """Whether replicas of another revision serve, which successors replace."""
        return any(replica.revision != self.revision and replica.started for replica in self.replicas.serving)

    @property
    def unreachable(self) -> bool:
        """Whether no client can reach it, because other QwenDeployments hold all its names."""
        return all_names_lost(self.spec, self.names)


def all_names_lost(spec: Spec, names: NameShare) -> bool:
    """Whether this deployment has none of the served names of its spec."""
    lost = names.lost_names
    return bool(spec.names) and all(name in lost for name in spec.names)
