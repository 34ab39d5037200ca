"""The interface of a scheme of sources, and its input. Only data."""

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
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import EngineDefaults, EngineSource


@dataclass(frozen=True, slots=True)
class VolumeClaim:
    """A PersistentVolumeClaim, as far as an inspection or a plan depends on it.

    `storage_class` is "" if it names none. `single_node`: its access mode if pods on one node only can mount it, "" if
    others can.
    """

    name: str
    bound: bool
    storage_class: str = ""
    single_node: str = ""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Everything that the facts of one revision's source depend on.

    `deployment`: the whole QwenDeployment. `inspection`: the pod with the name of the revision's inspection pod, which
    may have another owner. `claim`: the claim with the files; None if it is unknown. `answer`: the hub's answer to the
    deployment's last query. `online`: the operator may ask hubs. `now` is timezone-aware. `known`: the facts of the
    model, if the present revision differs from the one that runs only in its adapters, and no pod reads the model.
    `running`: the facts of the model that runs, if it has the same source; None otherwise.
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
    claim: VolumeClaim | None = None
    answer: HubAnswer | None = None
    known: Checkpoint | None = None
    running: Checkpoint | None = None

    @property
    def identity(self) -> PodIdentity:
        """The identity of the inspection pod."""
        meta = self.deployment["metadata"]
        return PodIdentity(Owner(meta["name"], meta["namespace"], meta["uid"]), self.revision)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of the checkpoint. `remark` says what is missing or uncertain about them.

    `pending` is set if the facts are too old. They still show whether the model fits, but the operator pins a revision
    only after the answer that `pending` waits for.
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

    `resolve` gives the facts of the checkpoint, or the reason why they are missing. It also decides the reasons,
    messages and retries of this scheme. `engine_source` gives what SGLang loads. `hub_query` gives the query for the
    hub; None if there is no hub. `inspected` gives what the inspection pod mounts or runs; no pod reads the files if it
    or its result is None.
    """

    form: UriForm
    resolve: Callable[[SourceContext], Facts | Blocked]
    engine_source: Callable[[Spec, Checkpoint, EngineDefaults], EngineSource]
    hub_query: Callable[[Spec], HubQuery] | None = None
    inspected: Callable[[Spec, EngineDefaults], EngineSource | None] | None = None
