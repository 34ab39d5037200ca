"""config.json: what it means, in every generation's spelling, and what is refused with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import catalog, records
from qwen_operator.checkpoints.config import from_config, parameters
from qwen_operator.checkpoints.facts import HUB, LinearAttention, Module, Quantization, RopeScaling
from qwen_runtime.checkpoints.reading import InvalidFactsError, parse_json
from tests.unit.checkpoints.configs import DENSE, FP8, GPTQ, HYBRID, MOE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, {"kv_heads": 16}),
        ({"head_dim": 128}, {"head_dim": 128}),
        ({"torch_dtype": None, "dtype": "float16"}, {"dtype": "float16"}),
        ({"torch_dtype": "half"}, {"dtype": "float16"}),
        ({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768}}, {"rope": None}),
        ({"tie_word_embeddings": None}, {"tied": False}),
        ({"num_experts": 0}, {"experts": None, "dense_layers": 24}),
        ({"quantization_config": {}}, {"quantization": None}),
        ({"quantization_config": GPTQ}, {"quantization": Quantization("gptq", 4, 128, True, False)}),
        (
            {"quantization_config": GPTQ | {"group_size": -1}},
            {"quantization": Quantization("gptq", 4, None, True, False)},
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}},
            {"quantization": Quantization("awq", 4, 64, symmetric=False)},
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}},
            {"quantization": Quantization("awq", 4, 64)},
        ),
        ({"quantization_config": FP8}, {"quantization": Quantization("fp8", 8, None, block=128)}),
        ({"quantization_config": {"quant_method": "fp8"}}, {"quantization": Quantization("fp8", 8, None)}),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, {"rope": None}),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}},
            {"rope": RopeScaling("yarn", 4.0, 32768)},
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, {"rope": RopeScaling("yarn", 2.0, None)}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope": None}),
    ],
)  # fmt: skip
def test_fields_mean_what_engines_take_them_for(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = from_config(DENSE | changes)
    assert {key: getattr(facts, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"experts": 8, "expert_intermediate": 384, "shared_intermediate": None, "dense_layers": 0}),
        ({"intermediate_size": None}, {"intermediate": 384}),
        ({"mlp_only_layers": [0, 3]}, {"dense_layers": 2}),
        ({"decoder_sparse_step": 2}, {"dense_layers": 12}),
        ({"shared_expert_intermediate_size": 512}, {"shared_intermediate": 512}),
        ({"shared_expert_intermediate_size": 0}, {"shared_intermediate": None}),
    ],
)
def test_experts(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = from_config(MOE | changes)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_hybrids_have_a_cache_in_some_layers_only() -> None:
    linear = LinearAttention(18, 32, 16, 128, 128, 4, 4)
    facts = from_config(HYBRID)
    assert (facts.attention_layers, facts.linear) == (6, linear)
    assert from_config(HYBRID | {"full_attention_interval": 8}).attention_layers == 3
    types = ["linear_attention", "full_attention"] * 12
    assert from_config(HYBRID | {"layer_types": types}).attention_layers == 12
    assert from_config(HYBRID | {"layer_types": ["full_attention"] * 24}).linear is None
    half = from_config(HYBRID | {"mamba_ssm_dtype": "bfloat16"}).linear
    assert half is not None
    assert half.state_value_bytes == 2


def test_biases_and_gates_count() -> None:
    """Per layer: Qwen2 has biases of Q, K and V; Qwen3 may switch all four on; a hybrid's gate is as wide as Q."""
    qkv = 24 * (1024 + 2 * 512)
    moe2 = MOE | {"architectures": ["Qwen2MoeForCausalLM"]}
    assert parameters(moe2) - parameters(moe2 | {"qkv_bias": False}) == qkv
    assert parameters(MOE | {"attention_bias": True}) - parameters(MOE) == qkv + 24 * 1024
    assert parameters(HYBRID) - parameters(HYBRID | {"attn_output_gate": False}) == 6 * 1024 * 1024


VISION2 = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14, "in_chans": 3, "spatial_merge_size": 2,
           "temporal_patch_size": 2, "hidden_size": 3584}  # fmt: skip
VISION25 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14, "out_hidden_size": 3584}
VISION3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "out_hidden_size": 4096,
           "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
QWEN2_7B = {"architectures": ["Qwen2VLForConditionalGeneration"], "vocab_size": 152064, "hidden_size": 3584,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
            "tie_word_embeddings": False, "vision_config": VISION2}  # fmt: skip
QWEN3_8B = {"model_type": "qwen3_vl_text", "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
            "dtype": "bfloat16", "max_position_embeddings": 262144}  # fmt: skip
MULTIMODAL = {
    "Qwen2-VL-7B": (DENSE | QWEN2_7B, 8_291_375_616),
    "Qwen2.5-VL-7B": (
        DENSE | QWEN2_7B | {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": VISION25},
        8_292_166_656,
    ),
    "Qwen3-VL-8B": (
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "text_config": QWEN3_8B,
            "vision_config": VISION3,
            "tie_word_embeddings": False,
        },
        8_767_123_696,
    ),
}


@pytest.mark.parametrize(("config", "count"), MULTIMODAL.values(), ids=MULTIMODAL.keys())
def test_vision_towers_count_as_published(config: dict[str, Any], count: int) -> None:
    """The counts are those that the model hub shows for the published repositories."""
    facts = from_config(config)
    assert (parameters(config), facts.weight_bytes) == (count, 2 * count)
    assert facts.multimodal


def test_known_bytes_win_and_an_unknown_tower_does_not_matter_then() -> None:
    config = DENSE | QWEN2_7B | {"vision_config": {"depth": "many"}}
    with pytest.raises(InvalidFactsError, match=r"vision_config.depth is 'many', it must be a whole number"):
        from_config(config)
    facts = from_config(config, weight_bytes=16_000_000_000, digest="ab")
    assert (facts.weight_bytes, facts.source, facts.digest) == (16_000_000_000, HUB, "ab")
    tiny = from_config(DENSE, weight_bytes=10)
    assert (tiny.kv_weight_bytes, tiny.replicated_bytes) == (10, 0)
    with pytest.raises(InvalidFactsError, match="the weights have 0 bytes"):
        from_config(DENSE, weight_bytes=0)


def test_two_levels_that_disagree_on_tying_count_two_matrices() -> None:
    config, _ = MULTIMODAL["Qwen3-VL-8B"]
    assert not from_config(config | {"text_config": QWEN3_8B | {"tie_word_embeddings": True}}).tied


@pytest.mark.parametrize(
    ("quantization", "plain"),
    [
        (GPTQ | {"dynamic": {"-:.*attn.*": {}, "-:.*shared_expert.*": {}, "+:.*mlp.*": {"bits": 8}, "-:": {}}},
         (Module.LINEAR_ATTENTION, Module.SHARED_EXPERT, Module.ATTENTION)),
        (FP8 | {"ignored_layers": ["self_attn"]}, (Module.ATTENTION,)),
        (FP8 | {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.input_layernorm",
                                           "model.layers.0.linear_attn.in_proj_ba"]}, ()),
        (GPTQ | {"modules_to_not_convert": ["mlp"]}, (Module.EXPERTS, Module.SHARED_EXPERT)),
    ],
)  # fmt: skip
def test_layers_that_a_quantization_leaves_out(quantization: dict[str, Any], plain: tuple[Module, ...]) -> None:
    facts = from_config(HYBRID | {"quantization_config": quantization})
    assert facts.quantization is not None
    assert set(facts.quantization.plain) == set(plain)
    bare = {key: quantization[key] for key in quantization.keys() & (GPTQ.keys() | FP8.keys())}
    full = from_config(HYBRID | {"quantization_config": bare})
    assert (facts.weight_bytes > full.weight_bytes) == bool(plain)


def test_a_nested_quantization_is_found() -> None:
    config, _ = MULTIMODAL["Qwen3-VL-8B"]
    facts = from_config(config | {"text_config": QWEN3_8B | {"quantization_config": FP8}})
    assert facts.quantization_name == "fp8 8 bit"


def test_a_merge_under_any_name_is_what_its_config_says() -> None:
    row = catalog.lookup("Qwen/Qwen2.5-7B")
    assert row is not None
    config = DENSE | QWEN2_7B | {
        "_name_or_path": "someone/Llama-3-405B-not-at-all", "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 131072, "vision_config": None, "mergekit": {"models": 3},
    }  # fmt: skip
    assert from_config(config, source=row.source) == replace(row, chat=None)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"architectures": None}, "architectures is null, it must be a list whose first entry is one"),
    "empty": ({"architectures": []}, "architectures is a list, it must be a list whose first entry is one of"),
    "another model": (
        {"architectures": ["LlamaForCausalLM"]},
        "architectures[0] is 'LlamaForCausalLM', it must be one of Qwen2ForCausalLM, Qwen2MoeForCausalLM,",
    ),
    "odd": ({"architectures": [7]}, "architectures[0] is 7, it must be one of"),
    "text": ({"hidden_size": "1024"}, "hidden_size is '1024', it must be a whole number from 1 to 1048576"),
    "negative": ({"num_hidden_layers": -24}, "num_hidden_layers is -24, it must be a whole number from 1 to 4096"),
    "absurd": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, it must be a whole number"),
    "fraction": ({"num_attention_heads": 16.0}, "num_attention_heads is 16.0, it must be a whole number"),
    "truth": ({"vocab_size": True}, "vocab_size is true, it must be a whole number"),
    "no number": ({"hidden_size": float("nan")}, "hidden_size is nan, it must be a whole number"),
    "infinite": ({"hidden_size": float("inf")}, "hidden_size is inf, it must be a whole number"),
    "uneven": ({"hidden_size": 1025}, "hidden_size is 1025, it must be a multiple of num_attention_heads, which is 16"),
    "groups": ({"num_key_value_heads": 5}, "num_key_value_heads is 5, it must be a divisor of num_attention_heads"),
    "many groups": ({"num_key_value_heads": 32}, "num_key_value_heads is 32, it must be a whole number from 1 to 16"),
    "dtype": ({"torch_dtype": "int8"}, "torch_dtype is 'int8', it must be one of bfloat16, float16, float32"),
    # AutoConfig of transformers 5.19 ends with: module 'torch' has no attribute 'torch.float16'.
    "dtype with its module": ({"torch_dtype": "torch.float16"}, "torch_dtype is 'torch.float16', it must be one of"),
    "dtype to choose": ({"torch_dtype": "auto"}, "torch_dtype is 'auto', it must be one of"),
    "tied": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, it must be true or false"),
    "method": (
        {"quantization_config": {"quant_method": "hqq"}},
        "quantization_config.quant_method is 'hqq', it must be one of gptq, awq, fp8",
    ),
    "not an object": ({"quantization_config": "gptq"}, "quantization_config is 'gptq', it must be an object"),
    "three bits": (
        {"quantization_config": GPTQ | {"bits": 3}},
        "quantization_config.bits is 3, it must be 4 or 8 with quant_method gptq",
    ),
    "AWQ of eight bits": (
        {"quantization_config": {"quant_method": "awq", "bits": 8, "group_size": 128}},
        "quantization_config.bits is 8, it must be 4 with quant_method awq",
    ),
    "group": ({"quantization_config": GPTQ | {"group_size": 0}}, "quantization_config.group_size is 0, it must be"),
    "block": (
        {"quantization_config": FP8 | {"weight_block_size": [128, 64]}},
        "quantization_config.weight_block_size is a list, it must be a list of two equal whole numbers",
    ),
    "block entries": (
        {"quantization_config": FP8 | {"weight_block_size": [0, 0]}},
        "quantization_config.weight_block_size[0] is 0, it must be a whole number",
    ),
    "left out": (
        {"quantization_config": FP8 | {"ignored_layers": "lm_head"}},
        "quantization_config.ignored_layers is 'lm_head', it must be a list of module names",
    ),
    "rope": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', it must be an object"),
    "factor": ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor is '4', it must be a number"),
    "text_config": ({"text_config": [1]}, "text_config is a list, it must be an object"),
    "vision": ({"vision_config": {"hidden_size": 0}}, "vision_config.hidden_size is 0, it must be a whole number"),
}  # fmt: skip
BAD_EXPERTS: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"moe_intermediate_size": None}, "moe_intermediate_size is null, it must be a whole number"),
    "count": ({"num_experts": -8}, "num_experts is -8, it must be a whole number from 0 to 65536"),
    "plain layers": ({"mlp_only_layers": "0"}, "mlp_only_layers is '0', it must be a list of layer numbers"),
    "plain layer": ({"mlp_only_layers": ["0"]}, "mlp_only_layers is a list, it must be a list of layer numbers"),
    "interval": ({"full_attention_interval": 25}, "full_attention_interval is 25, it must be a whole number from 1"),
    "layer types": ({"layer_types": ["full_attention"]}, "layer_types is a list, it must be a list of 24 entries out"),
    "no cache": ({"layer_types": ["linear_attention"] * 24}, "num_hidden_layers is 24, it must be large enough for"),
    "linear": ({"linear_num_key_heads": None}, "linear_num_key_heads is null, it must be a whole number"),
    "state": ({"mamba_ssm_dtype": "int8"}, "mamba_ssm_dtype is 'int8', it must be one of float32, bfloat16, float16"),
    "deepstack": (
        {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "vision_config": VISION3 | {"deepstack_visual_indexes": 3},
        },
        "vision_config.deepstack_visual_indexes is 3, it must be a list of layer numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "says"),
    [(DENSE | changes, says) for changes, says in BAD.values()]
    + [(HYBRID | changes, says) for changes, says in BAD_EXPERTS.values()],
    ids=[*BAD, *BAD_EXPERTS],
)
def test_bad_values_are_refused_with_field_value_and_what_is_right(config: dict[str, Any], says: str) -> None:
    if "vision_config" in config and "Qwen2" in config["architectures"][0]:
        config = config | {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    with pytest.raises(InvalidFactsError) as refused:
        from_config(config)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


# Model class, and the KV heads and the width of a head that AutoConfig of transformers 5.19 has for it, with 32
# attention heads, a hidden size of 4096, and neither field in config.json.
SILENT = {
    "Qwen2ForCausalLM": (32, 128),
    "Qwen3ForCausalLM": (32, 128),
    "Qwen3MoeForCausalLM": (4, 128),
    "Qwen3VLForConditionalGeneration": (32, 128),
    "Qwen3NextForCausalLM": (2, 256),
    "Qwen3_5ForConditionalGeneration": (4, 256),
    "Qwen3_5MoeForCausalLM": (2, 256),
    "Qwen3ForSequenceClassification": (32, 128),
}


@pytest.mark.parametrize("architecture", SILENT)
def test_where_a_config_is_silent_the_default_of_its_class_counts(architecture: str) -> None:
    silent = HYBRID | {"architectures": [architecture], "num_attention_heads": 32, "hidden_size": 4096}
    del silent["num_key_value_heads"], silent["head_dim"]
    facts = from_config(silent)
    assert (facts.kv_heads, facts.head_dim) == SILENT[architecture]
    facts = from_config(silent | {"num_key_value_heads": None, "head_dim": None, "hidden_size": 2048})
    assert (facts.kv_heads, facts.head_dim) == (32, 64)


def test_the_heads_of_a_small_qwen3_are_wider_than_its_hidden_size_divided() -> None:
    small = DENSE | {"architectures": ["Qwen3ForCausalLM"]}
    assert from_config(small).head_dim == 128


@pytest.mark.parametrize("field", [key for key in DENSE if key != "tie_word_embeddings"])
def test_a_missing_field_is_named(field: str) -> None:
    config = {key: value for key, value in DENSE.items() if key != field}
    if field == "torch_dtype":
        # As SGLang does: like float32, which it loads at 16 bits.
        assert from_config(config).dtype == "float32"
        assert from_config(config).weight_bytes == from_config(DENSE).weight_bytes
        return
    with pytest.raises(InvalidFactsError, match=f"{field} is missing, it must be "):
        from_config(config)


TEXTS = {
    "ten megabytes": (b'{"a": "' + b"x" * 10_000_000 + b'"}', "config.json has 10000009 bytes, it must have at most"),
    "no JSON": (b"<html>", "config.json is not valid JSON: Expecting value"),
    "no text": (b'{"a": "\xff"}', "config.json is not valid JSON: it is not UTF-8 text"),
    "a list": (b"[1]", "config.json holds a list, it must hold a JSON object"),
    "a number": (b"7", "config.json holds 7, it must hold a JSON object"),
    "deep": (b"[" * 100_000, "config.json is nested too deeply to be read"),
    "many values": (b'{"a": [' + b"[]," * 250_000 + b"[]]}", "config.json has more than 400000 values, it must have"),
}


@pytest.mark.parametrize(("text", "says"), TEXTS.values(), ids=TEXTS.keys())
def test_text_that_is_no_config_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(InvalidFactsError) as refused:
        parse_json(text, "config.json", 1 << 20)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_matters_only_where_it_is_used(value: str) -> None:
    """The engine's own reader takes these too, and published files have them in fields such as time_step_limit."""
    unused = parse_json(json.dumps(DENSE)[:-1] + f', "time_step_limit": [0.0, {value}]}}', "config.json", 1 << 20)
    assert from_config(unused) == from_config(DENSE)
    used = parse_json(json.dumps(DENSE)[:-1] + f', "hidden_size": {value}}}', "config.json", 1 << 20)
    with pytest.raises(InvalidFactsError, match=r"hidden_size is -?(nan|inf), it must be a whole number"):
        from_config(used)


def test_of_two_equal_keys_the_last_counts_as_in_the_engine() -> None:
    """Whoever adds YaRN by hand often leaves the "rope_scaling": null that was there."""
    yarn = '{"rope_scaling": null, "rope_scaling": {"type": "yarn", "factor": 4.0}, '
    facts = from_config(parse_json(yarn + json.dumps(DENSE)[1:], "config.json", 1 << 20))
    assert facts.rope == RopeScaling("yarn", 4.0, None)


def test_a_number_of_a_million_digits_costs_nothing() -> None:
    parsed = parse_json(b'{"hidden_size": ' + b"9" * 1_000_000 + b"}", "config.json", 1 << 20)
    with pytest.raises(InvalidFactsError, match="hidden_size is inf"):
        from_config(DENSE | parsed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
configs = st.sampled_from([DENSE, MOE, HYBRID, MULTIMODAL["Qwen3-VL-8B"][0]]).flatmap(
    lambda config: st.dictionaries(
        st.sampled_from(
            [*HYBRID, "quantization_config", "rope_scaling", "text_config", "vision_config", "layer_types"]
        ),
        json_values | st.sampled_from([GPTQ, FP8, VISION3]),
        max_size=3,
    ).map(lambda changes: config | changes)
)


@settings(max_examples=200, deadline=None)
@given(configs)
def test_any_config_is_facts_or_a_refusal_in_one_line(config: dict[str, Any]) -> None:
    try:
        facts = from_config(config)
    except InvalidFactsError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1, lines
        return
    assert facts.replicated_bytes + facts.kv_weight_bytes <= facts.weight_bytes
    assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts
