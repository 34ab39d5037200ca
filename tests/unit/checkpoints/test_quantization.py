"""Which layers a quantization leaves out, what that costs, and which splits it forbids."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import parallel, records
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError, Module, Quantization, Steps, Tower
from qwen_runtime import weights
from qwen_runtime.checkpoints.config import read
from qwen_runtime.report import LIMIT_BYTES, bounded
from qwen_runtime.safetensors import Tensor

SIZING = Path(__file__).parent / "data/sizing"
GIB = 1 << 30
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
# Qwen3-235B-A22B: 94 layers of 128 experts.
MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_experts": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
PARTS = ("gate_proj", "up_proj", "down_proj")


def case(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((SIZING / f"{name}.json").read_text())
    return config


DENSE_7B = case("c4_float32_merge") | {"torch_dtype": "bfloat16"}
DENSE_72B = case("c13h_72b_awq_unpadded_layer0_plain")
CT = case("c10_ct_w4a16")["quantization_config"]


def quantized(config: dict[str, Any], base: dict[str, Any], **changes: Any) -> Checkpoint:
    return from_config(config | {"quantization_config": base | changes})


def ranks(facts: Checkpoint) -> list[int]:
    return sorted({tp for tp, _ in parallel.valid(facts, 16)})


def test_one_plain_layer_keeps_the_rule_of_the_others() -> None:
    """vllm#13640: the other 79 layers have MLPs of 14784 on two GPUs, which is no multiple of 128."""
    facts = from_config(DENSE_72B, 42_800_000_000)
    assert facts.weight_bytes == 42_800_000_000
    assert ranks(facts) == [1]
    assert parallel.refusal(facts, 2) == (
        "MLP width 29568 / TP 2 = 14784 is not a multiple of 128, the step of its quantization"
    )


@pytest.mark.parametrize(
    ("name", "gib"),
    [("c13e_awq_one_layer_mlp_32b", 18.6), ("c13d_gptq_dynamic_skip", 13.9), ("c10_ct_w4a16", 5.2)],
)
def test_bytes_follow_each_layer(name: str, gib: float) -> None:
    assert round(from_config(case(name)).weight_bytes / GIB, 1) == gib


def test_a_float32_file_is_loaded_at_16_bits() -> None:
    config = case("c4_float32_merge")
    in_full = from_config(config)
    assert in_full.weight_bytes == 15_231_233_024
    assert from_config(config, 2 * in_full.weight_bytes) == in_full
    # The config.json of a merge may say float32 of files with 16 bits.
    assert from_config(config, in_full.weight_bytes) == in_full


TOWERS = {
    "c23_qwen25vl_3b_full": ([1, 2, 4], "MLP width 3420 of the vision tower is not divisible by TP 8"),
    "c2_qwen25vl_3b_awq": ([1, 2], ""),
    "a2_qwen2vl_72b_gptq": ([1], ""),
}


@pytest.mark.parametrize(("name", "valid", "why"), [(name, *row) for name, row in TOWERS.items()], ids=TOWERS.keys())
def test_a_sparse_vision_config_has_the_defaults_of_its_class(name: str, valid: list[int], why: str) -> None:
    facts = from_config(case(name))
    assert (ranks(facts), facts.multimodal) == (valid, True)
    if why:
        assert parallel.refusal(facts, 8) == why
    # What is written out in full weighs the same.
    config, full = case(name), {"depth": 32, "patch_size": 14, "num_heads": 16, "temporal_patch_size": 2}
    generation = {"embed_dim": 1280, "mlp_ratio": 4} if name[0] == "a" else {"intermediate_size": 3420}
    written = config | {"vision_config": full | generation | {"spatial_merge_size": 2} | config["vision_config"]}
    assert from_config(written) == facts


def test_an_empty_vision_config_of_qwen3_vl_is_the_published_tower() -> None:
    config = MOE | {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    tower = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
             "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
    assert from_config(config | {"vision_config": {}}) == from_config(config | {"vision_config": tower})
    assert from_config(config | {"vision_config": {}}).tower == Tower(16, 4304, 4608)
    # A tower that decides nothing is not a fact.
    narrow = config | {"num_attention_heads": 16, "num_key_value_heads": 4}
    assert from_config(narrow | {"vision_config": {}}).tower is None


def test_a_text_only_qwen35_is_a_hybrid() -> None:
    facts = from_config(case("c3_qwen35_4b_textonly"))
    assert (facts.family, facts.attention_layers, facts.multimodal) == ("Qwen3.5", 8, False)
    assert round(facts.weight_bytes / 1e9, 1) == 8.4


SIBLINGS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "every MLP": (AWQ, {"modules_to_not_convert": ["mlp"]}, [1, 2, 4, 8, 16]),
    "every down_proj: gate and up need 32": (AWQ, {"modules_to_not_convert": ["down_proj"]}, [1, 2, 4]),
    "layer 1, and by its text 10 to 19": (AWQ, {"modules_to_not_convert": ["model.layers.1"]}, [1]),
    "all layers but one by looking ahead": (GPTQ, {"dynamic": {r"-:^(?!.*layers\.0\.).*$": {}}}, [1]),
    "groups of 32 change nothing": (GPTQ, {"dynamic": {".*down.*": {"group_size": 32}}}, [1]),
    "a component, not a text": (FP8, {"ignored_layers": ["mlp.gate", "layers.1"]}, [1]),
    "a parent is no end of a path": (CT, {"ignore": ["model.layers.0.mlp"]}, [1]),
    "ends of paths and expressions": (CT, {"ignore": ["lm_head", "mlp.down_proj", r"re:.*mlp\.(gate|up)_proj"]},
                                      [1, 2, 4, 8, 16]),
}  # fmt: skip


@pytest.mark.parametrize(("base", "changes", "valid"), SIBLINGS.values(), ids=SIBLINGS.keys())
def test_splits_follow_the_layers_that_are_quantized(
    base: dict[str, Any], changes: dict[str, Any], valid: list[int]
) -> None:
    facts = quantized(DENSE_72B, base, **changes)
    assert ranks(facts) == valid
    assert facts.quantization is not None
    assert facts.quantization.refused == ""


def test_a_text_that_ends_in_a_layer_number_counts_as_autoawq_and_sglang_read_it() -> None:
    """SGLang 0.5.23 layers/quantization/awq/awq.py:60 looks for the text anywhere in the name."""
    one = quantized(DENSE_72B, AWQ, modules_to_not_convert=["model.layers.1."])
    eleven = quantized(DENSE_72B, AWQ, modules_to_not_convert=["model.layers.1"])
    none = quantized(DENSE_72B, AWQ)
    assert eleven.weight_bytes - none.weight_bytes == 11 * (one.weight_bytes - none.weight_bytes)


def test_widths_of_single_layers_follow_their_rule() -> None:
    plain = quantized(DENSE_7B, GPTQ)
    eight = quantized(DENSE_7B, GPTQ, dynamic={r"+:.*\.(?:1[4-9]|2[0-7])\..*": {"bits": 8, "group_size": 64}})
    assert plain.weight_bytes < eight.weight_bytes < quantized(DENSE_7B, GPTQ, bits=8, group_size=64).weight_bytes
    wide = quantized(DENSE_7B, GPTQ, dynamic={".*down.*": {"group_size": 256}})
    assert (ranks(plain), ranks(wide)) == ([1, 2, 4], [1, 2])
    assert wide.quantization is not None
    assert wide.quantization.steps == Steps(attention=128, qkv=64, mlp=256)
    # The first rule that matches counts.
    first = quantized(DENSE_7B, GPTQ, dynamic={"+:.*": {}, "-:.*": {}})
    assert first.weight_bytes == plain.weight_bytes


FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
INT8 = FLOAT8 | {"type": "int"}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
BLOCK = FLOAT8 | {"strategy": "block", "block_structure": [128, 128]}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}


def group(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None, *targets: str) -> dict[str, Any]:
    return {"format": layout, "weights": weights, "input_activations": inputs, "targets": list(targets or ("Linear",))}


COMPRESSED: dict[str, tuple[dict[str, Any], float]] = {
    "FP8 per channel": ({"a": group("float-quantized", FLOAT8, TOKEN)}, 8.11),
    "FP8 per block": ({"a": group("float-quantized", BLOCK, TOKEN)}, 8.11),
    "FP8 without activations": ({"a": group("naive-quantized", FLOAT8, None)}, 8.11),
    "8-bit integers": ({"a": group("int-quantized", INT8, TOKEN | {"type": "int"})}, 8.11),
    "NVFP4": ({"a": group("nvfp4-pack-quantized", NVFP4, NVFP4)}, 5.45),
    "4 bits with zero points": (
        {"a": group("pack-quantized", CT["config_groups"]["group_0"]["weights"] | {"symmetric": False}, None)}, 5.19
    ),
    "attention in FP8, MLP in 4 bits": (
        {
            "a": group("pack-quantized", CT["config_groups"]["group_0"]["weights"], None, "re:.*mlp.*"),
            "b": group("float-quantized", FLOAT8, TOKEN, "re:.*self_attn.*"),
        },
        5.54,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "gib"), COMPRESSED.values(), ids=COMPRESSED.keys())
def test_schemes_of_compressed_tensors_that_sglang_has(groups: dict[str, Any], gib: float) -> None:
    facts = quantized(DENSE_7B, CT, config_groups=groups, format="mixed-precision")
    assert facts.quantization is not None
    assert (round(facts.weight_bytes / GIB, 2), facts.quantization.refused) == (gib, "")
    assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts


W4 = CT["config_groups"]["group_0"]["weights"]
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # qwen2.py:193, quantization/utils.py:116: merged layers have one format.
    "one of three": (DENSE_7B, GPTQ | {"dynamic": {"-:.*q_proj.*": {}}},
                     "layer 0: SGLang loads q_proj and k_proj and v_proj as one layer (self_attn.qkv_proj)"),
    # awq.py:60: the text has to be in the merged name.
    "parts by their names": (DENSE_7B, AWQ | {"modules_to_not_convert": [f"layers.3.mlp.{part}" for part in PARTS]},
                             "layer 3: SGLang compares the exceptions of quantization_config with its own name "
                             "mlp.gate_up_proj"),
    # gptq.py:447: GPTQMarlinMoEMethod never sees dynamic.
    "experts of GPTQ": (MOE, GPTQ | {"dynamic": {"-:.*experts.*": {}}}, "layer 0: SGLang ignores the exceptions of"),
    "an eighth of an expert": (MOE, FP8 | {"ignored_layers": ["model.layers.7.mlp.experts.5.down_proj"]},
                               "layer 7: SGLang loads all experts of a layer as one"),
    "the router by a text": (MOE, AWQ | {"modules_to_not_convert": ["gate"]}, "layer 0: SGLang loads all experts"),
    # utils.py:240: TYPE_MAP has 4 and 8 bits, symmetric.
    "three bits by a rule": (DENSE_7B, GPTQ | {"dynamic": {"+:.*down.*": {"bits": 3}}}, "has 3 bits; SGLang runs 4"),
    "asymmetric by a rule": (DENSE_7B, GPTQ | {"dynamic": {".*down.*": {"sym": False}}}, "is asymmetric (sym: false)"),
    # gptq.py:156 reads dynamic and no list.
    "a list that GPTQ has not": (DENSE_7B, GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"]]},
                                 "SGLang ignores modules_in_block_to_quantize of quantization_config with GPTQ"),
    # compressed_tensors.py:722 (Sparse24), 697 (no scheme), 936 (int8 experts), 1055 (sparsity).
    "2 of 4": (DENSE_7B, CT | {"format": "marlin-24"}, "SGLang has no kernel for marlin-24 weights of 4 bits"),
    "two bits": (DENSE_7B, CT | {"config_groups": {"a": group("pack-quantized", W4 | {"num_bits": 2}, None)}},
                 "SGLang has no kernel for pack-quantized weights of 2 bits"),
    "int8 experts": (MOE, CT | {"config_groups": {"a": group("int-quantized", INT8, TOKEN | {"type": "int"})}},
                     "SGLang runs experts with 8-bit integers"),
    "sparse": (DENSE_7B, CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "no kernel for sparse weights"),
    "no target": (DENSE_7B, CT | {"config_groups": {"a": group("pack-quantized", W4, None, "re:.*mlp.*")}},
                  "no config_group of quantization_config has a target for one of its layers"),
    "a target for a part": (DENSE_7B, CT | {"config_groups": {"a": group("pack-quantized", W4, None), "b": group(
        "float-quantized", FLOAT8, TOKEN, r"re:.*\.(q|k|v)_proj")}},
        "layer 0: SGLang compares the exceptions of quantization_config with its own name self_attn.qkv_proj"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "base", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_sglang_cannot_load_is_said_in_the_facts(config: dict[str, Any], base: dict[str, Any], says: str) -> None:
    facts = quantized(config, base)
    assert facts.quantization is not None
    assert says in facts.quantization.refused
    assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "backreference": (GPTQ | {"dynamic": {r"-:(.)\1": {}}}, r"dynamic has the regular expression '(.)\\1', which uses"),
    "in ignore": (CT | {"ignore": [r"re:a\b"]}, r"ignore has the regular expression 'a\\b', which uses \b; it must"),
    "no object": (GPTQ | {"dynamic": {"+:a": 4}}, "quantization_config.dynamic.+:a is 4, it must be an object"),
    "a long name": (AWQ | {"modules_to_not_convert": ["a" * 600]}, "of at most 512 characters"),
    "names without a layer": (AWQ | {"modules_to_not_convert": [f"x{n}" for n in range(600)]}, "has 600 names without"),
    "rules": (GPTQ | {"dynamic": {f"-:a{n}": {} for n in range(5000)}}, "an object with at most 4096 rules"),
    "a name in two lines": (CT | {"config_groups": {"a\nb": None}}, r"config_groups.'a\nb' is null, it must"),
    "no names": (CT | {"ignore": "lm_head"}, "quantization_config.ignore is 'lm_head', it must be a list of module"),
    "blocks": (GPTQ | {"modules_in_block_to_quantize": [[7]]}, "must be a list of lists of module names"),
    "edges": (CT | {"config_groups": {"a": group("float-quantized", BLOCK | {"block_structure": "128x64"}, TOKEN)}},
              "block_structure is '128x64', it must be a list of two equal whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("base", "says"), INVALID.values(), ids=INVALID.keys())
def test_what_cannot_be_read_is_refused_by_name(base: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidFactsError) as refused:
        quantized(DENSE_7B, base)
    assert says in str(refused.value)


MANY: dict[str, dict[str, Any]] = {
    "an expression per layer": GPTQ | {"dynamic": {rf"-:.*\.{n}\.self_attn\..*": {} for n in range(1, 94)}},
    "expressions that change the width": GPTQ | {
        "dynamic": {rf"+:model\.layers\.{n}\.self_attn\..*": {"group_size": 2**(n % 12)} for n in range(94)}
    },
    "every expert by name": FP8 | {
        "modules_to_not_convert": [
            f"model.layers.{n}.mlp.experts.{one}.{part}" for n in range(90) for one in range(128) for part in PARTS
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("base", MANY.values(), ids=MANY.keys())
def test_94_layers_with_exceptions_of_their_own_are_read_quickly_into_a_short_report(base: dict[str, Any]) -> None:
    started = time.process_time()
    model = read(MOE | {"quantization_config": base})
    assert time.process_time() - started < 0.8
    report = bounded(model.to_report())
    assert len(report) < LIMIT_BYTES / 2


@pytest.mark.parametrize(
    "base",
    [
        GPTQ | {"dynamic": {rf"-:.*\.{n}\.x.*": {} for n in range(4096)}},
        FP8 | {"modules_to_not_convert": [f"model.layers.{n}.a{n}" for n in range(4096)]},
    ],
)
def test_more_exceptions_than_can_be_compared_are_refused_in_bounded_time(base: dict[str, Any]) -> None:
    huge = MOE | {"num_hidden_layers": 4096, "num_experts": 65536, "quantization_config": base}
    started = time.process_time()
    with pytest.raises(
        InvalidFactsError, match="quantization_config has more exceptions than can be compared with 4096"
    ):
        from_config(huge)
    assert time.process_time() - started < 6


LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")  # fmt: skip
SMALL = DENSE_72B | {"num_hidden_layers": 12, "vocab_size": 64}
excluded = st.sets(st.tuples(st.integers(0, 11), st.sampled_from(LINEARS)), max_size=30)
SPELLINGS = {
    "awq": (AWQ, "modules_to_not_convert", "model.layers.{}.{}"),
    "awq nested": (AWQ, "modules_to_not_convert", "model.language_model.layers.{}.{}"),
    "fp8": (FP8, "ignored_layers", "layers.{}.{}"),
    "fp8 other list": (FP8, "modules_to_not_convert", "model.layers.{}.{}"),
    "compressed-tensors": (CT, "ignore", "model.layers.{}.{}"),
    "by expression": (CT, "ignore", r"re:.*\.{}\.{}$"),
    "gptq": (GPTQ, "dynamic", r"-:model\.layers\.{}\.{}"),
    "gptq loosely": (GPTQ, "dynamic", r"-:.*layers\.{}\.{}.*"),
}


def exclude(spelling: str, names: list[tuple[int, str]]) -> Checkpoint:
    base, field, text = SPELLINGS[spelling]
    spelled = [text.format(layer, name) for layer, name in names]
    return quantized(SMALL, base, **{field: {one: {} for one in spelled} if field == "dynamic" else spelled})


@settings(max_examples=60, deadline=None)
@given(excluded, st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_order_or_spelling(names: set[tuple[int, str]], random_: random.Random) -> None:
    for alike in (("awq", "awq nested"), ("fp8", "fp8 other list"), ("compressed-tensors", "by expression"),
                  ("gptq", "gptq loosely")):  # fmt: skip
        facts = []
        for spelling in alike:
            order = sorted(names)
            random_.shuffle(order)
            facts.append(exclude(spelling, order))
        assert facts[0] == facts[1]
        # Each layer that is left out weighs the same, wherever it stands in the file.
        assert exclude(alike[0], sorted(names)) == facts[0]


@settings(max_examples=60, deadline=None)
@given(excluded, st.tuples(st.integers(0, 11), st.sampled_from(LINEARS)), st.sampled_from(sorted(SPELLINGS)))
def test_leaving_a_layer_out_saves_nothing_and_frees_no_other(
    names: set[tuple[int, str]], more: tuple[int, str], spelling: str
) -> None:
    before, after = exclude(spelling, sorted(names)), exclude(spelling, sorted(names | {more}))
    assert after.weight_bytes >= before.weight_bytes
    for kept in {name for name in LINEARS if any((layer, name) not in names | {more} for layer in range(12))}:
        for tp in forbidden_by(spelling, kept):
            assert parallel.refusal(after, tp)


@cache
def forbidden_by(spelling: str, kept: str) -> tuple[int, ...]:
    """The numbers of ranks that are refused if only this kind of layers is quantized."""
    alone = [(layer, name) for layer in range(12) for name in LINEARS if name != kept]
    facts = exclude(spelling, alone)
    return tuple(tp for tp in (2, 3, 4, 8, 16) if parallel.refusal(facts, tp))


def files(config: dict[str, Any], plain: Callable[[str], bool], quantized_as: tuple[str, str]) -> Checkpoint:
    """What an inspection finds in files with these linear layers: BF16 where they are `plain`, the others quantized."""
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name in LINEARS:
            module = f"model.layers.{layer}.{name}"
            part, dtype = ("weight", "BF16") if plain(module) else quantized_as
            tensors[f"{module}.{part}"] = Tensor(dtype, 10**6)
    report = read(config, held=weights.linear_layers(tensors)).to_report()
    sizes = {"version": 2, "weightBytes": 10**9, "configSha256": "", "kvWeightBytes": 0, "replicatedBytes": 0}
    return records.from_inspection(json.loads(json.dumps(report | sizes)))


@pytest.mark.parametrize(
    ("name", "plain", "quantized_as"),
    [
        ("c13h_72b_awq_unpadded_layer0_plain", r"\.0\.mlp\.", ("qweight", "I32")),
        ("c13e_awq_one_layer_mlp_32b", r"\.0\.mlp\.", ("qweight", "I32")),
        ("c13d_gptq_dynamic_skip", r"\.([1-9]|1[0-9]|2[0-7])\.", ("qweight", "I32")),
        ("c10_ct_w4a16", "nothing", ("weight_packed", "I32")),
    ],
)
def test_files_and_config_lead_to_the_same_rules(name: str, plain: str, quantized_as: tuple[str, str]) -> None:
    config = case(name)
    inspected = files(config, lambda module: bool(re.search(plain, module)), quantized_as)
    assert inspected.quantization == from_config(config).quantization
    assert ranks(inspected) == ranks(from_config(config))


def test_files_decide_where_config_says_nothing() -> None:
    config = DENSE_72B | {"quantization_config": AWQ}
    none_left = files(config, lambda module: "mlp" in module, ("qweight", "I32"))
    assert none_left.quantization is not None
    assert (none_left.quantization.plain, ranks(none_left)) == ((Module.MLP,), [1, 2, 4, 8, 16])
    some = files(config, lambda module: module.endswith("layers.3.mlp.up_proj"), ("qweight", "I32"))
    assert some.quantization is not None
    assert some.quantization.refused.startswith("layer 3: SGLang loads gate_proj and up_proj as one layer")
    eight = config | {"quantization_config": GPTQ | {"dynamic": {".*down.*": {"bits": 8, "group_size": 256}}}}
    wide = files(eight, lambda _: False, ("qweight", "I32"))
    assert wide.quantization == from_config(eight).quantization


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
GROUP_FIELDS = ("num_bits", "type", "strategy", "group_size", "symmetric", "dynamic", "actorder", "block_structure")
FIELDS = ("ignore", "format", "config_groups", "dynamic", "modules_to_not_convert", "ignored_layers", "group_size",
          "modules_in_block_to_quantize", "sparsity_config", "quant_method", "bits")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([CT, GPTQ, AWQ, FP8]),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=2),
    st.dictionaries(st.sampled_from(GROUP_FIELDS), json_values | st.sampled_from(["block", "float", 8]), max_size=3),
    st.dictionaries(st.sampled_from(["targets", "format", "weights", "input_activations"]), json_values, max_size=2),
)
def test_any_quantization_is_facts_or_a_refusal_in_one_line(
    base: dict[str, Any], changes: dict[str, Any], weights_: dict[str, Any], group_: dict[str, Any]
) -> None:
    config = base | changes
    if base is CT and "config_groups" not in changes:
        config |= {"config_groups": {"a": group("pack-quantized", W4 | weights_, None) | group_}}
    try:
        facts = from_config(SMALL | {"quantization_config": config})
    except InvalidFactsError as error:
        lines = str(error).splitlines()
    else:
        lines = [facts.quantization.refused if facts.quantization else ""]
        assert len(lines[0].splitlines()) < 2
        assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert len(lines) == 1


def test_the_facts_of_a_uniform_checkpoint_have_no_new_members() -> None:
    record = quantized(DENSE_7B, AWQ).to_json()
    assert "tower" not in record
    assert record["quantization"] == {
        "method": "awq", "bits": 4, "group_size": 128, "symmetric": False, "desc_act": None, "block": None, "plain": [],
    }  # fmt: skip
    report = read(DENSE_7B | {"quantization_config": AWQ}).to_report()
    assert report["quantization"].keys() == {"method", "bits", "groupSize", "symmetric", "descAct", "block", "plain"}
    assert "tower" not in report


def test_facts_from_before_there_were_steps_keep_their_meaning() -> None:
    facts = quantized(DENSE_7B, AWQ)
    old = facts.to_json() | {"quantization": facts.to_json()["quantization"] | {"plain": ["mlp"]}}
    restored = records.from_json(old)
    assert restored.quantization == Quantization("awq", 4, 128, symmetric=False, plain=(Module.MLP,))
    assert ranks(restored) == [1, 2, 4]
