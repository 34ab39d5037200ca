"""Which generation of GPUs runs which format, and what the engine is told about types."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import Engine
from qwen_operator.checkpoints.facts import Quantization
from qwen_operator.hardware.inventory import GpuPool, inventory
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import NoFit, Plan
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pools, spec

REFUSED = {
    "V100": ("Qwen1.5-0.5B", "V100-32GB", "Auto", "SGLang 0.5.23 needs compute capability 7.5, Tesla-V100-SXM2-32GB"),
    "GPTQ on a T4": ("Qwen1.5-7B-Chat-GPTQ-Int4", "T4", "Auto", "GPTQ weights need compute capability 8.0, Tesla-T4"),
    "FP8 on a T4": ("Qwen3-30B-A3B-FP8", "T4", "Auto", "FP8 weights need compute capability 8.0"),
    "FP8 cache on an A100": ("Qwen1.5-7B", "A100-80GB", "Fp8E4m3", "kvCacheType Fp8E4m3 needs compute capability 8.9"),
    "BFloat16 cache on a T4": ("Qwen1.5-0.5B", "T4", "BFloat16", "kvCacheType BFloat16 needs compute capability 8.0"),
}


@pytest.mark.parametrize(("model", "gpu", "cache", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_generation_cannot_run(model: str, gpu: str, cache: str, says: str) -> None:
    result = plan(spec(engine=Engine(kv_cache_type=cache)), facts(model), pools(gpu), DEFAULTS, DOWNLOADED)
    assert isinstance(result, NoFit)
    assert result.reason is Reason.DOES_NOT_FIT
    assert says in result.message
    assert all(one.gpu_product != "Tesla-T4" or one.changes for one in result.alternatives)


def test_another_product_is_taken_and_the_barred_one_named_where_none_fits() -> None:
    checkpoint = facts("Qwen1.5-7B-Chat-GPTQ-Int4")
    taken = plan(spec(), checkpoint, pools("T4", "L4"), DEFAULTS, DOWNLOADED)
    assert isinstance(taken, Plan)
    assert taken.gpu_product == "NVIDIA-L4"
    refused = plan(spec(), facts("Qwen1.5-72B-Chat-GPTQ-Int8"), pools("T4", "L4"), DEFAULTS, DOWNLOADED)
    assert isinstance(refused, NoFit)
    assert "Tesla-T4: 15.00 GiB per GPU, 8 per node; GPTQ weights need" in "\n".join(refused.steps)


def test_a_t4_serves_bfloat16_models_in_float16() -> None:
    result = plan(spec(), facts("Qwen1.5-0.5B"), pools("T4"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert "--dtype=float16" in result.args
    assert "dtype: float16, because compute capability 7.5 has no bfloat16 (8.0)" in result.steps
    newer = plan(spec(), facts("Qwen1.5-0.5B"), pools("L4"), DEFAULTS, DOWNLOADED)
    assert isinstance(newer, Plan)
    assert not [one for one in newer.args if one.startswith("--dtype")]
    half = plan(spec(), replace(facts("Qwen1.5-0.5B"), dtype="float16"), pools("T4"), DEFAULTS, DOWNLOADED)
    assert isinstance(half, Plan)
    assert not [one for one in half.args if one.startswith("--dtype")]


CACHES = [("Auto", "auto", 2), ("BFloat16", "bf16", 2), ("Fp8E4m3", "fp8_e4m3", 1)]


@pytest.mark.parametrize(("kind", "name", "value_bytes"), CACHES)
def test_types_of_the_cache(kind: str, name: str, value_bytes: int) -> None:
    checkpoint = facts("Qwen1.5-7B")
    result = plan(spec(engine=Engine(kv_cache_type=kind)), checkpoint, pools("H100-80GB"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert f"--kv-cache-dtype={name}" in result.args
    assert result.kv_cache_dtype == name
    assert result.kv_bytes_per_token_per_rank == checkpoint.kv_bytes_per_token(1) * value_bytes // 2


def test_a_board_that_nobody_knows_is_taken_with_a_word() -> None:
    unknown = inventory([], [GpuPool("p", "Strange", 81559, 8)])
    result = plan(spec(), facts("Qwen1.5-7B-Chat-GPTQ-Int4"), unknown, DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert any("not known: the compute capability of Strange" in line for line in result.steps)


def test_fp8_weights_on_an_a100_are_said_to_be_unpacked() -> None:
    result = plan(spec(), facts("Qwen3-30B-A3B-FP8"), pools("A100-80GB"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert any("8.0 has no FP8 cores" in line for line in result.steps)


DROPPED = {
    "asymmetric": (Quantization("gptq", 4, 128, symmetric=False), "asymmetric GPTQ"),
    "three bits": (Quantization("gptq", 3, 128, symmetric=True), "3-bit GPTQ; SGLang runs 4 and 8 bits"),
    "AWQ of eight bits": (Quantization("awq", 8, 128, symmetric=False), "8-bit AWQ; SGLang runs 4 bits"),
    "not sized": (Quantization("moe_wna16", 4, 128), "weights are moe_wna16, which the operator cannot plan"),
    "not loaded": (Quantization("hqq", 4, 128), "weights are hqq, which SGLang 0.5.23 does not load; use awq"),
}


@pytest.mark.parametrize(("quantization", "says"), DROPPED.values(), ids=DROPPED.keys())
def test_formats_that_the_engine_dropped(quantization: Quantization, says: str) -> None:
    checkpoint = replace(facts("Qwen1.5-7B-Chat-GPTQ-Int4"), quantization=quantization)
    result = plan(spec(), checkpoint, pools("H100-80GB"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, NoFit)
    assert says in result.message
    assert "more memory" not in result.message
