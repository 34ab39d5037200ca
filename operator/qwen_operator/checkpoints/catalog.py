"""Facts of published Qwen checkpoints, so that the operator can plan a well-known model without reading a file.

The data file holds the config.json of each model, what its chat template shows, the changes of its variants, and the
source of the values of each row. The same code that reads a real config.json derives the facts. Weight bytes are those
of the tensors in GPU memory, computed from the shapes. A file on disk can be larger (a tied embedding that is stored
twice, a layer for multi-token prediction).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import CATALOG, ChatFormat, Checkpoint, Quantization, Thinking, ToolFormat


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One published repository.

    `family` names generation and size, e.g. "Qwen1.5-72B". `format` is bf16, gptq_int4, gptq_int8, awq_int4, fp8 or
    gguf. `verified` is false if a value was inferred and neither a config.json nor a published total confirms it;
    `notes` then say which.
    """

    repository: str
    family: str
    format: str
    checkpoint: Checkpoint
    verified: bool
    notes: tuple[str, ...] = ()

    @property
    def doubt(self) -> str:
        """What is uncertain, as the end of a sentence."""
        return f": {'; '.join(self.notes)}" if self.notes else ""


def lookup(model: str) -> Checkpoint | None:
    """The catalog's facts for a repository id such as Qwen/Qwen1.5-7B-Chat, or None."""
    row = entry(model)
    return None if row is None else row.checkpoint


@cache
def entry(model: str) -> CatalogEntry | None:
    """The catalog's row for a repository id, or None."""
    row = _rows().get(model)
    if row is None:
        return None
    base, variant = row
    checkpoint, notes = _checkpoint(base, variant), tuple(variant.get("notes", ()))
    return CatalogEntry(model, base["family"], variant["format"], checkpoint, variant["verified"], notes)


def names() -> tuple[str, ...]:
    """All repository ids of the catalog, sorted."""
    return tuple(sorted(_rows()))


def entries() -> tuple[CatalogEntry, ...]:
    """All rows, in the order of the data: by generation, then size, then format."""
    return tuple(row for name in _rows() if (row := entry(name)) is not None)


def _checkpoint(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Checkpoint:
    config = base["config"] | variant.get("config", {})
    chat = variant.get("chat", base["chat"])
    facts = replace(
        from_config(config, weight_bytes=variant.get("weight_bytes"), source=CATALOG),
        chat=ChatFormat(True, ToolFormat(chat["tools"]), Thinking(chat["thinking"])),
    )
    if variant["format"] == "gguf":
        return replace(facts, quantization=Quantization("gguf", variant["bits"], None))
    return facts


@cache
def _rows() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    data = json.loads(files(__package__).joinpath("catalog.json").read_text(encoding="utf-8"))
    return {row["repository"]: (model, row) for model in data["models"] for row in model["checkpoints"]}
