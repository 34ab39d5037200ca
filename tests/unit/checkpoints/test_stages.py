"""How layers are divided into pipeline stages, and what each stage holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.checkpoints import stages
from qwen_operator.checkpoints.facts import Checkpoint, Quantization, Steps
from qwen_operator.checkpoints.stages import Stage
from tests.unit.planning.models import facts

DIVIDED = {
    # The last stages have one layer more where that leaves a rest, as SGLang's get_pp_indices says.
    "even": (80, 2, [40, 40]),
    "one more": (61, 2, [30, 31]),
    "two of three have more": (95, 3, [31, 32, 32]),
    "one layer each": (3, 3, [1, 1, 1]),
    "one stage": (28, 1, [28]),
}


@pytest.mark.parametrize(("layers", "count", "expected"), DIVIDED.values(), ids=DIVIDED.keys())
def test_how_layers_are_divided(layers: int, count: int, expected: list[int]) -> None:
    assert [stage.layers for stage in stages.divide(layers, count)] == expected


def test_the_first_stage_has_the_embedding_and_the_last_one_the_output_head() -> None:
    assert [stage.tables for stage in stages.divide(12, 4)] == [1, 0, 0, 1]
    assert [stage.tables for stage in stages.divide(12, 4, head_on_all=True)] == [2, 1, 1, 1]
    assert stages.divide(12, 1) == (Stage(12, 2),)


@given(st.sampled_from(["Qwen1.5-72B-Chat", "Qwen3-235B-A22B", "Qwen1.5-7B-Chat-GPTQ-Int4"]), st.integers(1, 12))
def test_all_stages_together_have_the_weights_of_the_model_and_little_more(model: str, count: int) -> None:
    checkpoint = facts(model)
    all_of_it = sum(
        stages.weight_bytes_per_rank(checkpoint, stage, 1) for stage in stages.divide(checkpoint.layers, count)
    )
    assert 0 <= all_of_it - checkpoint.weight_bytes < 0.001 * checkpoint.weight_bytes


def test_tied_tables_are_there_twice() -> None:
    checkpoint = facts("Qwen2.5-0.5B")
    table = checkpoint.vocab * checkpoint.hidden * 2
    first, last = stages.divide(checkpoint.layers, 2)
    both = sum(stages.weight_bytes_per_rank(checkpoint, stage, 1) for stage in (first, last))
    assert checkpoint.tied
    assert both - checkpoint.weight_bytes == pytest.approx(table, rel=0.001)


def test_the_fullest_stage_by_hand() -> None:
    """Qwen1.5-72B: 80 layers, 152064 x 8192 values in each table. The first and the last stage hold the same."""
    checkpoint = facts("Qwen1.5-72B-Chat")
    table = 152064 * 8192 * 2
    stage = stages.fullest(checkpoint, stages.divide(80, 2), 8)
    expected = (checkpoint.weight_bytes - 2 * table) / 2 / 8 + table / 8
    assert stages.weight_bytes_per_rank(checkpoint, stage, 8) == pytest.approx(expected, rel=0.001)
    assert stages.kv_bytes_per_token(checkpoint, stages.divide(80, 3), 8) == checkpoint.kv_bytes_per_token(8) * 27 // 80


REFUSED: dict[str, tuple[Checkpoint, int, str]] = {
    "more stages than layers": (facts("Qwen2.5-0.5B"), 25, "the model has 24 layers, so it has no 25 stages"),
    "a GGUF file": (facts("Qwen1.5-7B-Chat-GGUF"), 2, "GGUF weights run on one GPU only"),
    "states": (facts("Qwen3.5-27B"), 2, "of a model with linear attention"),
    "images": (replace(facts("Qwen2.5-7B"), multimodal=True), 2, "of a model with images"),
    "layers of two formats": (
        replace(
            facts("Qwen1.5-7B-Chat-GPTQ-Int4"), quantization=Quantization("gptq", 4, 128, steps=Steps(attention=256))
        ),
        2,
        "quantized in different ways",
    ),
    "layers without experts": (replace(facts("Qwen3-30B-A3B"), dense_layers=3), 2, "and others have none"),
}


@pytest.mark.parametrize(("checkpoint", "count", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_divided(checkpoint: Checkpoint, count: int, says: str) -> None:
    assert says in (stages.refusal(checkpoint, count) or "")


@pytest.mark.parametrize("model", ["Qwen1.5-72B-Chat", "Qwen3-235B-A22B-FP8", "Qwen1.5-72B-Chat-GPTQ-Int4"])
def test_what_can(model: str) -> None:
    assert stages.refusal(facts(model), 2) is None
