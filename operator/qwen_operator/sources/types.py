"""What a source is asked with, and what it answers. Only data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubAnswer, HubQuery
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.ownership import Children
from qwen_operator.manifests.pods import RuntimeImage
from qwen_operator.planning.types import EngineDefaults


@dataclass(frozen=True, slots=True)
class SourceContext:
    """All that a source may look at. `online`: the operator may read hubs."""

    spec: Spec
    revision: str
    deployment: Manifest
    pods: Children
    inventory: Inventory
    hub: HubAnswer | None
    engine: EngineDefaults
    runtime: RuntimeImage
    online: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """`remark` says what is wrong with where they come from; `query` that the hub's answer has become old: good
    enough to say what does not fit, not to be pinned."""

    checkpoint: Checkpoint
    remark: str = ""
    query: HubQuery | None = None
