"""Facts from a checkpoint's own config.json, by the reader in the runtime package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qwen_operator.checkpoints.facts import HUB, Checkpoint
from qwen_runtime.checkpoints.config import measure
from qwen_runtime.checkpoints.model import MAX_BYTES, ModelConfig
from qwen_runtime.checkpoints.reading import InvalidFactsError

_SHARED = {field.name for field in fields(ModelConfig)} & {field.name for field in fields(Checkpoint)} - {"tower"}


def from_config(
    config: Mapping[str, Any], weight_bytes: int | None = None, source: str = HUB, digest: str = ""
) -> Checkpoint:
    """Facts of a checkpoint from its parsed config.json.

    `weight_bytes` is the size of its tensors if it is known. Otherwise it is computed from the shapes. Raises
    InvalidFactsError, which names the field, its value, and what would be right.
    """
    model, weights = measure(config, towers=weight_bytes is None)
    total = weights.bytes if weight_bytes is None else _resident_bytes(model, weight_bytes, weights.bytes)
    if not 1 <= total <= MAX_BYTES:
        raise InvalidFactsError(f"the weights have {total} bytes, it must be a number from 1 to {MAX_BYTES}")
    kv = min(weights.kv_bytes, total)
    facts = Checkpoint(
        **{name: getattr(model, name) for name in _SHARED},
        weight_bytes=total,
        kv_weight_bytes=kv,
        replicated_bytes=min(weights.replicated_bytes, total - kv),
        source=source,
        digest=digest,
    )
    return facts.with_tower(model.tower)


def _resident_bytes(model: ModelConfig, stored: int, computed: int) -> int:
    """What an engine keeps of `stored` bytes: 16 of each 32 bits of a float32 checkpoint.

    A config.json may say float32 of files with 16 bits. So the result is not below the bytes computed from the shapes,
    unless less is stored.
    """
    if model.dtype != "float32" or model.quantization is not None:
        return stored
    return max(stored // 2, min(stored, computed))


def parameters(config: Mapping[str, Any]) -> int:
    """The exact number of parameters that stay in memory. Raises InvalidFactsError as `from_config` does."""
    return measure(config)[1].parameters
