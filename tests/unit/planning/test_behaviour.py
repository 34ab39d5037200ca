"""Contexts beyond the model's own."""

from __future__ import annotations

import json
from dataclasses import replace

from qwen_operator.checkpoints.facts import RopeScaling
from qwen_operator.planning.behaviour import longest_context, model_overrides
from tests.unit.planning.models import facts


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
