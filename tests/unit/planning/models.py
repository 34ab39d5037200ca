"""Checkpoints and hardware in a line, for the tests of planning."""

from __future__ import annotations

from typing import Any

from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.hardware.boards import board
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.planning.types import EngineDefaults, EngineSource

DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
DOWNLOADED = EngineSource("team/model", downloads=True)


def facts(model: str) -> Checkpoint:
    """The catalog's facts; the organisation may be left out."""
    checkpoint = catalog.lookup(f"Qwen/{model}")
    assert checkpoint is not None, model
    return checkpoint


def pools(*names: str, gpus: int = 8, nodes: int | None = None) -> Inventory:
    """Declared pools of products by their short names."""
    return inventory([], [pool(name, gpus, max_nodes=nodes) for name in names])


def pool(name: str, gpus: int = 8, **optional: Any) -> GpuPool:
    """One declared pool of a known board."""
    known = board(name)
    assert known is not None, name
    return GpuPool(name, known.product, known.memory_mib, gpus, **optional)


def spec(**changes: Any) -> Spec:
    """A spec of a model that is planned with whatever facts a test gives."""
    return Spec(model="Qwen/Qwen1.5-72B-Chat", **changes)
