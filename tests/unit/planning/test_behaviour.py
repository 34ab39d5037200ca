"""Contexts beyond the model's own, and media."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwen_operator.api.spec import parse
from qwen_operator.checkpoints.facts import Checkpoint, RopeScaling
from qwen_operator.hardware.inventory import inventory
from qwen_operator.planning.behaviour import longest_context, media_domains, model_overrides
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, NoFit, Plan
from qwen_operator.sources import registry
from tests.unit.planning.models import facts
from tests.unit.world import deployment, node


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


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_a_scaling_that_is_not_yarn_is_kept_up_to_its_own_length(kind: str) -> None:
    """SGLang 0.5.23 derives 65536 from such a config.json of 32768 positions and a factor of 2."""
    stretched = replace(facts("Qwen3-8B"), max_positions=32768, rope=RopeScaling(kind, 2.0, None))
    assert longest_context(stretched) == 65536
    assert model_overrides(stretched, 65536) is None
    longer = parse(deployment(model="Qwen/Qwen3-8B", contextTokens=65537))
    defaults = EngineDefaults("lmsysorg/sglang", "0.5.23")
    source = registry.engine_source(longer, stretched, defaults)
    refused = plan(longer, stretched, inventory([node("n")], ()), defaults, source)
    assert isinstance(refused, NoFit)
    assert refused.message.endswith(f"is 32768 (65536 with {kind}): set at most 65536")


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


def test_an_engine_fetches_nothing_that_a_client_names_unless_the_chart_names_hosts() -> None:
    assert media_domains(facts("Qwen3-8B")) is None
    checkpoint = facts("Qwen3.5-27B")
    assert planned(checkpoint).count("--allowed-media-domains=none.invalid") == 1
    args = planned(checkpoint, "--allowed-media-domains=images.example.com")
    assert [arg for arg in args if "media" in arg] == ["--allowed-media-domains=images.example.com"]


def planned(checkpoint: Checkpoint, *chart: str) -> tuple[str, ...]:
    defaults = EngineDefaults("lmsysorg/sglang", "0.5.23", args=chart)
    spec = parse(deployment(model="Qwen/Qwen3.5-27B"))
    source = registry.engine_source(spec, checkpoint, defaults)
    result = plan(spec, checkpoint, inventory([node(gpus=8)], ()), defaults, source)
    assert isinstance(result, Plan)
    assert not [warning for warning in result.warnings if "media" in warning]
    return result.args
