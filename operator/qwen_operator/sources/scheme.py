"""What every scheme of sources answers, and what it may look at for that. Only data."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.spec import Spec
from qwen_operator.api.uris import UriForm
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubAnswer, HubQuery
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Manifest, Owner, PodIdentity
from qwen_operator.manifests.pods import RuntimeImage
from qwen_operator.planning.types import EngineDefaults, EngineSource


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Everything that the facts of one revision's source depend on.

    `deployment` is the whole QwenDeployment, `inspection` the pod under the name of the revision's inspection pod,
    whoever owns it, `answer` the hub's answer to the deployment's last query. `online`: hubs may be read. `now` is
    timezone-aware.
    """

    spec: Spec
    revision: str
    deployment: Manifest
    defaults: EngineDefaults
    runtime: RuntimeImage
    inventory: Inventory
    online: bool
    now: datetime
    inspection: Manifest | None = None
    answer: HubAnswer | None = None

    @property
    def identity(self) -> PodIdentity:
        """Whose inspection pod it is."""
        meta = self.deployment["metadata"]
        return PodIdentity(Owner(meta["name"], meta["namespace"], meta["uid"]), self.revision)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the checkpoint; `remark` says what is wrong with where it comes from.

    `pending` is set when the facts have become old: they are good enough to say what does not fit, but a revision is
    pinned only after the answer that `pending` waits for.
    """

    checkpoint: Checkpoint
    remark: str = ""
    pending: Blocked | None = None

    @property
    def query(self) -> HubQuery | None:
        """The query that would bring newer facts."""
        return self.pending.query if self.pending else None


@dataclass(frozen=True, slots=True)
class Scheme:
    """One scheme of sources.

    `resolve` gives the facts of the checkpoint, or what they wait for: its reasons, sentences and repeated tries are
    what progress and failures mean here. `engine_source` is what SGLang gets. `hub_query` is what a hub is asked for,
    None where there is no hub. `inspected` is what the inspection pod mounts, None where no pod reads the files.
    """

    form: UriForm
    resolve: Callable[[SourceContext], Facts | Blocked]
    engine_source: Callable[[Spec, Checkpoint, EngineDefaults], EngineSource]
    hub_query: Callable[[Spec], HubQuery] | None = None
    inspected: Callable[[Spec], EngineSource] | None = None
