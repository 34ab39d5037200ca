"""Facts of published Qwen checkpoints, so that the operator can plan a well-known model without reading a file.

The data file holds the config.json of each model, what its chat template shows, the changes of its variants, and the
source of the values of each row. The same code that reads a real config.json derives the facts. Weight bytes are those
of the tensors in GPU memory, computed from the shapes. A file on disk can be larger (a tied embedding that is stored
twice, a layer for multi-token prediction).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import CATALOG, ChatFormat, Checkpoint, Quantization, Thinking, ToolFormat

# The format at the end of a GGUF file's name, as in qwen1_5-7b-chat-q4_k_m.gguf.
_FILE_FORMAT = re.compile(r"[-_.](q\d(?:_\w+)?|fp16)\.gguf$", re.IGNORECASE)
_CALCULATED = (
    "its bytes are calculated from the shapes of the tensors, and where SGLang merges tensors of different types it "
    "takes a little more"
)


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


@cache
def file_entry(repository: str, file: str) -> CatalogEntry | None:
    """The row of one GGUF file of a published repository, by the name of its format in the file's name; or None.

    Only the bytes of the repository's best known file are published. Those of the others are its shapes times the types
    that llama.cpp chose for each tensor.
    """
    row, name = _rows().get(repository), _FILE_FORMAT.search(file)
    size = row[1].get("file_bytes", {}).get(name[1].lower()) if row and name else None
    if row is None or name is None or size is None:
        return None
    base, variant = row
    published = size == variant["weight_bytes"]
    notes = () if published else (_CALCULATED,)
    of_file = {**variant, "weight_bytes": size, "bits": _bits(name[1].lower())}
    return CatalogEntry(repository, base["family"], "gguf", _checkpoint(base, of_file), published, notes)


def _bits(name: str) -> int:
    """The bits per value in the name of a GGUF format: q4_k_m -> 4."""
    return int(name.lstrip("qfp").partition("_")[0])


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
