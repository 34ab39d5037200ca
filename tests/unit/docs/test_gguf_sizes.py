"""The table of GGUF files in docs/sizing.md, by the rules with which llama.cpp chose the types of the official ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_runtime.checkpoints.gguf import TYPES

PAGE = Path(__file__).parents[3] / "docs/sizing.md"
FORMATS = {
    "q2_k": "Q2_K", "q3_k_m": "Q3_K", "q4_0": "Q4_0", "q4_k_m": "Q4_K", "q5_0": "Q5_0", "q5_k_m": "Q5_K",
    "q6_k": "Q6_K", "q8_0": "Q8_0", "fp16": "F16",
}  # fmt: skip
"""By the name in a file's name: the type of most of its matrices."""
SIZES = ("0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B")
# In place of a type whose blocks a row does not fill.
OTHERWISE = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
BY_NAME = {one.name: one for one in TYPES.values()}
HEADERS = range(5_900_000, 6_000_000)
"""Bytes of the headers of these files, nearly all of them the vocabulary."""


def gguf(size: str) -> catalog.CatalogEntry:
    found = catalog.entry(f"Qwen/Qwen1.5-{size}-Chat-GGUF")
    assert found is not None
    return found


def chosen(file: str, matrix: str, layer: int, facts: Checkpoint) -> str:
    """The type of a matrix, as llama.cpp's `quantize` of spring 2024 chose it."""
    layers, few = facts.layers, facts.heads // facts.kv_heads >= 4
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    usual = FORMATS[file]
    if file in ("q4_k_m", "q5_k_m") and matrix in ("attn_v", "ffn_down") and more:
        usual = "Q6_K"
    elif file == "q3_k_m" and matrix in ("attn_v", "ffn_down"):
        usual = "Q5_K" if layer < (2 if matrix == "attn_v" else layers // 16) else "Q4_K"
    elif file == "q3_k_m" and matrix == "attn_output":
        usual = "Q4_K"
    elif file == "q2_k" and matrix in ("attn_v", "attn_output", "ffn_down"):
        usual = "Q4_K" if matrix == "attn_v" and few else "Q3_K"
    elif matrix == "output" and file not in ("q8_0", "fp16"):
        usual = "Q6_K"
    # Models of 80 layers count as the 70B of Llama 2.
    return "Q5_K" if matrix == "attn_v" and layers == 80 and usual in ("Q3_K", "Q4_K") else usual


def tensor_bytes(file: str, facts: Checkpoint) -> int:
    hidden, query, kv = facts.hidden, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    total = 0

    def add(matrix: str, layer: int, row: int, rows: int) -> None:
        nonlocal total
        kind = BY_NAME[chosen(file, matrix, layer, facts)]
        if row % kind.block:
            kind = BY_NAME[OTHERWISE[kind.name]]
        total += kind.size(row * rows)

    for outer in ("token_embd", "output"):
        add(outer, 0, hidden, facts.vocab)
    for layer in range(facts.layers):
        for matrix, rows in (("attn_q", query), ("attn_k", kv), ("attn_v", kv), ("ffn_gate", facts.intermediate)):
            add(matrix, layer, hidden, rows)
        add("ffn_up", layer, hidden, facts.intermediate)
        add("attn_output", layer, query, hidden)
        add("ffn_down", layer, facts.intermediate, hidden)
    small = hidden + facts.layers * (2 * hidden + query + 2 * kv)
    return total + 4 * small


@pytest.mark.parametrize("size", SIZES)
def test_the_rules_give_the_official_files_to_the_byte_of_their_headers(size: str) -> None:
    entry = gguf(size)
    file = entry.notes[0].removeprefix("the file of ").partition(";")[0]
    assert entry.checkpoint.weight_bytes - tensor_bytes(file, entry.checkpoint) in HEADERS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("file", FORMATS)
def test_the_catalog_has_each_file(size: str, file: str) -> None:
    usual = gguf(size)
    name = f"qwen1_5-{size.lower()}-chat-{file}.gguf".replace("0.5b", "0_5b").replace("1.8b", "1_8b")
    entry = catalog.file_entry(usual.repository, name)
    assert entry is not None
    assert entry.checkpoint.weight_bytes - tensor_bytes(file, usual.checkpoint) in HEADERS
    assert entry.checkpoint.quantization_name == f"gguf {FORMATS[file].lstrip('QF').partition('_')[0]} bit"
    assert entry.verified == (entry.checkpoint.weight_bytes == usual.checkpoint.weight_bytes)


@pytest.mark.parametrize("file", ["model.gguf", "qwen1_5-7b-chat-iq4_xs.gguf", "qwen1_5-7b-chat-q4_k_m.bin"])
def test_the_catalog_knows_no_other_file(file: str) -> None:
    assert catalog.file_entry("Qwen/Qwen1.5-7B-Chat-GGUF", file) is None
    assert catalog.file_entry("somebody/else", "qwen1_5-7b-chat-q4_k_m.gguf") is None


def test_the_page_has_these_sizes() -> None:
    lines = [f"| | {' | '.join(SIZES)} |"]
    for file in FORMATS:
        cells = (f"{tensor_bytes(file, gguf(size).checkpoint) / 2**30:.2f}" for size in SIZES)
        lines.append(f"| `{file}` | {' | '.join(cells)} |")
    page = PAGE.read_text(encoding="utf-8")
    assert [line for line in lines if line not in page] == []
