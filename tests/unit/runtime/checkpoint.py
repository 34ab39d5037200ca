"""Small checkpoints for the tests of the inspection: real files, tensor data of zeros."""

import json
from pathlib import Path
from typing import Any

from tests.unit.checkpoints.configs import DENSE

CONFIG = DENSE


def header(sizes: dict[str, int], dtype: str = "BF16") -> bytes:
    """A safetensors header with its length field, for tensors of the given bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, size in sizes.items():
        entries[name] = {"dtype": dtype, "shape": [size // 2], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def shard(path: Path, sizes: dict[str, int], dtype: str = "BF16") -> Path:
    """One complete safetensors file."""
    path.write_bytes(header(sizes, dtype) + bytes(sum(sizes.values())))
    return path


def checkpoint(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A complete checkpoint of one shard with two tensors of 64 and 36 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    shard(folder / "model.safetensors", {"model.embed_tokens.weight": 64, "model.norm.weight": 36})
    return folder


def index(folder: Path, weight_map: dict[str, Any]) -> None:
    """An index file that names shards by tensor."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
