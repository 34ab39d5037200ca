"""Reads the facts of a folder with a LoRA adapter, as PEFT, LLaMA-Factory and Axolotl write it.

Nothing in the folder is trusted, as for a checkpoint. Tensor data is never read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFacts, read_adapter
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.faults import Fault, parsed
from qwen_runtime.reasons import ReportReason
from qwen_runtime.safetensors import opened, read_exactly, read_shard

_LARGEST_CONFIG = 1 << 20
_LARGEST_HEADER = 16 << 20
"""An adapter of all projections of 128 layers has a header of 300 KB."""


def inspect_adapters(folders: Sequence[tuple[str, Path]]) -> list[list[int]]:
    """The records of adapters by name and folder, in their order. Raises Fault, whose message names the adapter."""
    return [inspect_adapter(name, folder).to_record() for name, folder in folders]


def inspect_adapter(name: str, folder: Path) -> AdapterFacts:
    """The facts of one adapter."""
    try:
        return _inspect(folder)
    except InvalidFactsError as error:
        message = f"spec.adapters[{name}] in {folder}: {error}."
        raise Fault(ReportReason.ADAPTER_MISMATCH, message, ADAPTER_CONFIG) from None
    except Fault as fault:
        fault.message = f"spec.adapters[{name}]: {fault.message}"
        raise


def _inspect(folder: Path) -> AdapterFacts:
    with opened(folder / ADAPTER_CONFIG, ADAPTER_CONFIG) as descriptor:
        raw = read_exactly(descriptor, _LARGEST_CONFIG + 1, ADAPTER_CONFIG)
    config = parsed(raw, ADAPTER_CONFIG, _LARGEST_CONFIG)
    _refuse_pickle(folder)
    shard = read_shard(folder / ADAPTER_WEIGHTS, ADAPTER_WEIGHTS)
    return read_adapter(config, _shapes(folder / ADAPTER_WEIGHTS), shard.data_bytes)


def _refuse_pickle(folder: Path) -> None:
    pickle = "adapter_model.bin"
    if not os.path.lexists(folder / ADAPTER_WEIGHTS) and os.path.lexists(folder / pickle):
        message = f"{folder} has {pickle} and no {ADAPTER_WEIGHTS}: save the adapter as safetensors."
        raise Fault(ReportReason.MODEL_NOT_FOUND, message, ADAPTER_WEIGHTS)


def _shapes(path: Path) -> Mapping[str, Sequence[int]]:
    """The shapes in a header that `read_shard` has accepted."""
    with opened(path, ADAPTER_WEIGHTS) as descriptor:
        length = int.from_bytes(read_exactly(descriptor, 8, ADAPTER_WEIGHTS), "little")
        if length > _LARGEST_HEADER:
            raise InvalidFactsError(f"the header of {ADAPTER_WEIGHTS} has {length} bytes, more than an adapter needs")
        header = parsed(read_exactly(descriptor, length, ADAPTER_WEIGHTS), ADAPTER_WEIGHTS, _LARGEST_HEADER)
    return {name: _shape(entry) for name, entry in header.items() if name != "__metadata__"}


def _shape(entry: Any) -> Sequence[int]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    sides = shape if isinstance(shape, list) else []
    return [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
