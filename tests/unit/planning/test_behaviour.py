"""Parsers by family, and contexts beyond the model's own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwen_operator import engines
from qwen_operator.checkpoints.facts import RopeScaling
from qwen_operator.planning.behaviour import longest_context, model_overrides, parsers
from tests.unit.planning.models import facts

NAMES = engines.newest().parsers
PARSERS = [
    ("Qwen1.5-7B-Chat", None, None),
    ("Qwen2.5-7B-Instruct", "qwen", None),
    ("Qwen3-8B", "qwen", "qwen3"),
    ("Qwen3-30B-A3B", "qwen", "qwen3"),
    ("Qwen3-Coder-480B-A35B-Instruct", "qwen3_coder", None),
    ("Qwen3-Next-80B-A3B-Instruct", "qwen", None),
    ("Qwen3.5-27B", "qwen3_coder", "qwen3"),
]


@pytest.mark.parametrize(("model", "tools", "reasoning"), PARSERS)
def test_parsers_of_published_models(model: str, tools: str | None, reasoning: str | None) -> None:
    assert parsers(facts(model), f"Qwen/{model}", NAMES) == (tools, reasoning)


def test_parsers_of_other_names_and_classes() -> None:
    dense = facts("Qwen3-8B")
    assert parsers(dense, "team/support-bot", NAMES) == ("qwen", "qwen3")
    assert parsers(dense, "Qwen/Qwen3-4B-Thinking-2507", NAMES) == ("qwen", "qwen3-thinking")
    assert parsers(facts("Qwen2.5-7B"), "Qwen/QwQ-32B", NAMES) == ("qwen", "qwen3-thinking")
    assert parsers(replace(dense, architecture="Qwen2_5_VLForConditionalGeneration"), "a/b", NAMES) == (None, None)
    assert parsers(replace(dense, architecture="Other"), "a/b", NAMES) == (None, None)
    assert parsers(replace(dense, architecture="Qwen3_5ForCausalLM"), "a/b", NAMES) == ("qwen3_coder", "qwen3")


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-Embedding-8B", "team/qwen3-reranker-4b", "Alibaba-NLP/gte-Qwen2-7B-instruct"]
)
def test_embedding_models_have_no_answers_to_parse(name: str) -> None:
    assert parsers(facts("Qwen3-8B"), name, NAMES) == (None, None)


@pytest.mark.parametrize("vocab", [151665, 151669])
def test_an_embedding_model_under_another_name_is_known_by_its_vocabulary(vocab: int) -> None:
    assert parsers(replace(facts("Qwen3-8B"), vocab=vocab), "team/search", NAMES) == (None, None)


def test_qwq_states_more_positions_than_it_was_trained_for() -> None:
    checkpoint = facts("QwQ-32B")
    assert (checkpoint.max_positions, longest_context(checkpoint)) == (40960, 131072)
    assert json.loads(model_overrides(checkpoint, 131072) or "")["rope_scaling"]["factor"] == 4.0
    assert facts("Qwen2-57B-A14B").max_positions == 131072
    assert model_overrides(facts("Qwen2-57B-A14B"), 131072) is None


def test_yarn_sets_both_fields() -> None:
    checkpoint = replace(facts("Qwen3-8B"), max_positions=32768, rope=None)
    assert longest_context(checkpoint) == 131072
    assert model_overrides(checkpoint, 32768) is None
    record = json.loads(model_overrides(checkpoint, 50000) or "")
    assert record["max_position_embeddings"] == 50000
    assert record["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 1.5259,
        "original_max_position_embeddings": 32768,
    }
    # rounded up: a factor that is a little too small would reach less than what was asked for
    assert record["rope_scaling"]["factor"] * 32768 >= 50000


def test_a_checkpoint_that_is_stretched_already_starts_from_what_it_was_trained_for() -> None:
    rope = RopeScaling("yarn", 2.0, 32768)
    checkpoint = replace(facts("Qwen3-8B"), max_positions=65536, rope=rope)
    assert longest_context(checkpoint) == 131072
    assert json.loads(model_overrides(checkpoint, 131072) or "")["rope_scaling"]["factor"] == 4.0
    # without the original length the stated one counts
    bare = replace(checkpoint, rope=replace(rope, original_max_positions=None))
    assert longest_context(bare) == 4 * 65536


def test_qwen3_states_more_than_it_was_trained_for() -> None:
    checkpoint = facts("Qwen3-8B")
    assert (checkpoint.max_positions, longest_context(checkpoint)) == (40960, 131072)
    assert json.loads(model_overrides(checkpoint, 131072) or "")["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }


def test_models_that_see_keep_their_own_limit() -> None:
    assert longest_context(replace(facts("Qwen3-8B"), multimodal=True)) == facts("Qwen3-8B").max_positions
