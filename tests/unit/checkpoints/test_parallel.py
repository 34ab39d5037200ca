"""Splits: which are valid, and what the refusal of each other one says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import catalog, parallel, records
from qwen_operator.checkpoints.facts import Checkpoint, LinearAttention, Module, Quantization
from tests.unit.checkpoints.reports import REPORT

G128 = Quantization("gptq", 4, 128)
FP8 = Quantization("fp8", 8, None, block=128)
LINEAR = LinearAttention(18, 32, 16, 128, 128, 4)


def facts(**changes: Any) -> Checkpoint:
    return replace(records.from_inspection(REPORT), **changes)


SPLITS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "0.5B": ({}, [1, 2, 4, 8, 16]),
    "7B": ({"heads": 32, "kv_heads": 32, "head_dim": 128, "intermediate": 11008}, [1, 2, 4, 8, 16, 32]),
    "4B, 20 heads": ({"heads": 20, "kv_heads": 20, "head_dim": 128, "intermediate": 6912}, [1, 2, 4]),
    "grouped query": ({"heads": 40, "kv_heads": 8, "intermediate": 27392}, [1, 2, 4, 8]),
    "replicated KV": ({"heads": 32, "kv_heads": 4, "intermediate": 8192}, [1, 2, 4, 8, 16, 32]),
    "KV heads that do not copy": ({"heads": 12, "kv_heads": 3, "intermediate": 1200}, [1, 3, 6, 12]),
    "0.5B GPTQ": ({"quantization": G128}, [1, 2]),
    "1.8B GPTQ": ({"head_dim": 128, "intermediate": 5504, "quantization": G128}, [1]),
    "72B GPTQ": (
        {"heads": 64, "kv_heads": 64, "head_dim": 128, "intermediate": 24576, "quantization": G128},
        [1, 2, 4, 8, 16, 32, 64],
    ),
    "odd output width": ({"heads": 14, "kv_heads": 2, "intermediate": 4864, "quantization": G128}, [1]),
    "per column": ({"quantization": Quantization("gptq", 4, None)}, [1, 2]),
    "small groups": ({"quantization": Quantization("awq", 4, 32)}, [1, 2]),
    "large groups": ({"quantization": Quantization("awq", 4, 1024), "intermediate": 4096}, [1]),
    "GGUF": ({"quantization": Quantization("gguf", 4, None)}, [1]),
    "FP8": (
        {"heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 12288, "quantization": FP8},
        [1, 2, 4, 8, 16, 32],
    ),
    "FP8, narrow KV": ({"heads": 32, "kv_heads": 8, "intermediate": 12288, "quantization": FP8}, [1, 2, 4]),
    "FP8 without blocks": (
        {"heads": 32, "kv_heads": 8, "intermediate": 12288, "quantization": Quantization("fp8", 8, None)},
        [1, 2, 4, 8, 16, 32],
    ),
    "hybrid": ({"linear": LINEAR, "heads": 32, "kv_heads": 2, "intermediate": 8192}, [1, 2, 4, 8, 16]),
    "hybrid GPTQ": (
        {"linear": replace(LINEAR, value_dim=64), "heads": 32, "kv_heads": 2, "intermediate": 8192, "head_dim": 128,
         "quantization": G128},
        [1, 2, 4, 8, 16],
    ),
    "hybrid FP8 with narrow keys": (
        {"linear": replace(LINEAR, key_dim=64), "heads": 32, "kv_heads": 2, "head_dim": 128, "intermediate": 8192,
         "quantization": FP8},
        [1, 2, 4, 8],
    ),
    "experts": ({"experts": 4, "dense_layers": 0, "expert_intermediate": 2816}, [1, 2, 4]),
    "unknown experts": ({"experts": 60, "dense_layers": 0, "quantization": G128}, [1]),
    "unknown plain experts": ({"experts": 60, "dense_layers": 0}, [1, 2, 4, 8, 16]),
    "experts, some layers without": (
        {"experts": 64, "dense_layers": 2, "expert_intermediate": 256, "intermediate": 2820}, [1, 2, 4]
    ),
    "attention left at 16 bits": (
        {"quantization": replace(G128, plain=(Module.ATTENTION,)), "intermediate": 4096, "head_dim": 16},
        [1, 2, 4, 8, 16],
    ),
    "narrow QKV outputs": (
        {"quantization": G128, "heads": 16, "kv_heads": 1, "head_dim": 48, "intermediate": 768}, [1]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "valid"), SPLITS.values(), ids=SPLITS.keys())
def test_valid_splits(shape: dict[str, Any], valid: list[int]) -> None:
    checkpoint = facts(**shape)
    assert [tp for tp in range(65) if parallel.refusal(checkpoint, tp) is None] == valid
    assert [tp for tp, ep in parallel.valid(checkpoint, 64) if ep == 1] == valid


def of(model: str) -> Checkpoint:
    checkpoint = catalog.lookup(f"Qwen/{model}")
    assert checkpoint is not None
    return checkpoint


STEP = "the step of its quantization"
REFUSALS: list[tuple[Checkpoint, int, int, str]] = [
    (facts(), 0, 1, "TP 0 is not a number of GPUs: it must be at least 1"),
    (facts(), 2, 0, "EP 0 is not a number of GPUs: it must be at least 1"),
    (facts(), 4, 2, "EP 2 needs a model with experts, but Qwen2ForCausalLM has none: EP must be 1"),
    (facts(), 3, 1, "16 attention heads are not divisible by TP 3"),
    (facts(heads=24, kv_heads=8), 6, 1, "8 KV heads are not divisible by TP 6"),
    (facts(heads=12, kv_heads=3), 4, 1, "TP 4 is not a multiple of the 3 KV heads, so SGLang cannot copy them evenly"),
    (facts(linear=LINEAR, heads=32), 32, 1, "16 key heads of the linear attention are not divisible by TP 32"),
    (
        facts(linear=replace(LINEAR, value_heads=48, key_heads=32), heads=32), 32, 1,
        "48 value heads of the linear attention are not divisible by TP 32",
    ),
    (facts(intermediate=2817), 2, 1, "MLP width 2817 is not divisible by TP 2"),
    (facts(quantization=Quantization("gguf", 4, None)), 2, 1, "GGUF weights run on one GPU only, not on TP 2"),
    (of("Qwen2.5-7B"), 8, 1, "28 attention heads are not divisible by TP 8"),
    (of("Qwen1.5-14B-Chat-AWQ"), 2, 1, f"MLP width 13696 / TP 2 = 6848 is not a multiple of 128, {STEP}"),
    (of("Qwen2-0.5B-Instruct-AWQ"), 2, 1, f"attention output width 896 / TP 2 = 448 is not a multiple of 128, {STEP}"),
    (
        facts(heads=32, kv_heads=8, intermediate=12288, quantization=FP8), 8, 1,
        f"KV projection width 512 / TP 8 = 64 is not a multiple of 128, {STEP}",
    ),
    (
        facts(quantization=G128, heads=16, kv_heads=1, head_dim=48, intermediate=3072), 1, 1, "",
    ),
    (
        facts(quantization=G128, heads=64, kv_heads=1, head_dim=40, intermediate=2560), 4, 1,
        f"QKV projection at TP 4 has 720 outputs, which is not a multiple of 64, {STEP}",
    ),
    (
        of("Qwen3-235B-A22B-FP8"), 8, 1,
        f"expert width 1536 / (TP 8 / EP 1) = 192 is not a multiple of 128, {STEP}; EP 2 makes it 384",
    ),
    (
        of("Qwen3-Coder-480B-A35B-Instruct-FP8"), 8, 1,
        f"expert width 2560 / (TP 8 / EP 1) = 320 is not a multiple of 128, {STEP}; EP 2 makes it 640",
    ),
    (
        of("Qwen3-235B-A22B-FP8"), 8, 3,
        "TP 8 is not a multiple of EP 3: every expert group needs the same number of GPUs",
    ),
    (
        of("Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4"), 2, 1,
        f"expert width 1408 / (TP 2 / EP 1) = 704 is not a multiple of 128, {STEP}; EP 2 makes it 1408",
    ),
    (
        of("Qwen3-Next-80B-A3B-Instruct-FP8"), 8, 8,
        f"shared expert width 512 / TP 8 = 64 is not a multiple of 128, {STEP}",
    ),
    (facts(experts=2, dense_layers=0), 4, 1, "TP 4 is more than the 2 experts"),
    (facts(experts=6, dense_layers=0), 4, 4, "6 experts are not divisible by EP 4"),
    (
        facts(experts=5, dense_layers=0, expert_intermediate=704), 4, 1, "",
    ),
    (
        facts(experts=5, dense_layers=0, expert_intermediate=705), 4, 1,
        "expert width 705 / (TP 4 / EP 1) is not a whole number",
    ),
    (
        facts(experts=60, dense_layers=0, quantization=G128), 4, 2,
        "the facts do not have the width of one quantized expert, so TP 4 with EP 2 cannot be checked",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("checkpoint", "tp", "ep", "why"), REFUSALS)
def test_a_refusal_says_why(checkpoint: Checkpoint, tp: int, ep: int, why: str) -> None:
    assert (parallel.refusal(checkpoint, tp, ep) or "") == why


def test_valid_pairs_come_with_fewer_gpus_first_then_the_smaller_ep() -> None:
    valid = parallel.valid(of("Qwen3-235B-A22B-FP8"), 8)
    assert valid == ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 2), (8, 4), (8, 8))
    assert parallel.valid(of("Qwen2.5-7B"), 8) == ((1, 1), (2, 1), (4, 1))


@settings(deadline=None)
@given(st.sampled_from(catalog.names()), st.integers(-1, 70), st.integers(-1, 70))
def test_the_valid_set_is_what_is_not_refused_and_refusals_name_numbers(model: str, tp: int, ep: int) -> None:
    checkpoint = catalog.lookup(model)
    assert checkpoint is not None
    why = parallel.refusal(checkpoint, tp, ep)
    assert ((tp, ep) in parallel.valid(checkpoint, 70)) == (why is None)
    assert why is None or (any(character.isdigit() for character in why) and "\n" not in why)
