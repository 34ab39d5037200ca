"""One reader of config.json: a claim's inspection and a hub's file come to the same facts, which are the right ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.checkpoints import catalog, records
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint, LinearAttention, Quantization, RopeScaling
from qwen_runtime import weights
from qwen_runtime.checkpoints.config import LAYOUTS, TensorHints, read
from qwen_runtime.checkpoints.model import ModelConfig, Module
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.safetensors import Tensor
from tests.unit.checkpoints.configs import DENSE, FP8, GPTQ, HYBRID, MOE
from tests.unit.runtime.checkpoint import checkpoint

DATA = json.loads((Path(catalog.__file__).parent / "catalog.json").read_text())["models"]


@pytest.mark.parametrize("model", DATA, ids=lambda model: model["family"])
def test_a_report_carries_every_fact_of_every_catalog_row(model: dict[str, Any]) -> None:
    for row in model["checkpoints"]:
        if row["format"] != "gguf":
            config = model["config"] | row.get("config", {})
            known = from_config(config, source=INSPECTION)
            assert records.from_inspection(_report(read(config), known)) == known


def _report(model: ModelConfig, known: Checkpoint) -> dict[str, Any]:
    sizes = {
        "version": 2,
        "weightBytes": known.weight_bytes,
        "replicatedBytes": known.replicated_bytes,
        "kvWeightBytes": known.kv_weight_bytes,
        "configSha256": "",
    }
    report: dict[str, Any] = json.loads(json.dumps(model.to_report() | sizes))
    return report


TEXT = {key: value for key, value in DENSE.items() if key not in ("architectures", "tie_word_embeddings")}
VL = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": False}
LINEAR = LinearAttention(18, 32, 16, 128, 128, 4)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}

# Inputs on which the operator and the inspection once came to different facts, with the right one. The engine's rules
# are those of SGLang 0.5.23 and its AutoConfig.
RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text_config counts where there is one": (
        DENSE | VL | {"text_config": TEXT | {"num_hidden_layers": 36}},
        {"layers": 36},
    ),
    "a vocabulary that only the top level has": (
        VL | {"vocab_size": 1000, "text_config": {key: TEXT[key] for key in TEXT if key != "vocab_size"}},
        {"vocab": 1000},
    ),
    "two levels that disagree on tying": (
        VL | {"text_config": TEXT | {"tie_word_embeddings": True}},
        {"tied": False},
    ),
    "the top level's quantization wins": (
        VL | {"quantization_config": FP8, "text_config": TEXT | {"quantization_config": GPTQ}},
        {"quantization": Quantization("fp8", 8, None, block=128)},
    ),
    "another name of a dtype": (DENSE | {"torch_dtype": "float"}, {"dtype": "float32"}),
    "a class without linear attention has none": (
        HYBRID | {"architectures": ["Qwen3MoeForCausalLM"]},
        {"attention_layers": 24, "linear": None},
    ),
    "a hybrid by its class": (HYBRID, {"attention_layers": 6, "linear": LINEAR}),
    "experts of a class that has none": (
        DENSE | {"num_local_experts": 8, "n_routed_experts": 8},
        {"experts": None, "dense_layers": 24},
    ),
    "experts under the name that transformers 5 writes": (
        {**{key: value for key, value in MOE.items() if key != "num_experts"}, "num_local_experts": MOE["num_experts"]},
        {"experts": MOE["num_experts"]},
    ),
    "an unused layer list": (DENSE | {"mlp_only_layers": [0]}, {"dense_layers": 24}),
    "a method in capitals": (
        DENSE | {"quantization_config": GPTQ | {"quant_method": "GPTQ"}},
        {"quantization": Quantization("gptq", 4, 128, True, False)},
    ),
    # An export of the text part alone keeps the class, and SGLang makes the tower that the class has by default.
    "a multimodal class without vision_config": (VL | {"text_config": TEXT}, {"multimodal": True}),
    "GPTQ is symmetric by sym alone": (
        DENSE | {"quantization_config": GPTQ | {"zero_point": True}},
        {"quantization": Quantization("gptq", 4, 128, True, False)},
    ),
    "AWQ is symmetric by zero_point alone": (
        DENSE | {"quantization_config": AWQ | {"sym": True, "desc_act": True}},
        {"quantization": Quantization("awq", 4, 128, symmetric=False)},
    ),
    "FP8 has neither": (
        DENSE | {"quantization_config": FP8 | {"sym": True, "desc_act": True, "bits": 8, "group_size": 64}},
        {"quantization": Quantization("fp8", 8, None, block=128)},
    ),
    "rope of the text part": (
        VL | {"text_config": TEXT | {"rope_parameters": {"rope_type": "yarn", "factor": 2}}},
        {"rope": RopeScaling("yarn", 2.0, None)},
    ),
}


@pytest.mark.parametrize(("config", "right"), RIGHT.values(), ids=RIGHT.keys())
def test_claim_and_hub_take_a_field_for_the_same(tmp_path: Path, config: dict[str, Any], right: dict[str, Any]) -> None:
    report, complete = examine(checkpoint(tmp_path, config))
    assert complete, report
    for facts in (records.from_inspection(report), from_config(config)):
        assert {name: getattr(facts, name) for name in right} == right


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model type": (DENSE | {"model_type": None}, "model_type is null, it must be a name"),
    "a text_config without numbers": (
        DENSE | VL | {"text_config": {"model_type": "qwen3_vl_text"}},
        "text_config.num_hidden_layers is missing, it must be",
    ),
    "more layers than any model has": (DENSE | {"num_hidden_layers": 5000}, "num_hidden_layers is 5000, it must be a"),
    "a dtype that is not served": (DENSE | {"torch_dtype": "float64"}, "torch_dtype is 'float64', it must be one of"),
    "a dense model without its width": (
        DENSE | {"intermediate_size": None, "moe_intermediate_size": 768},
        "intermediate_size is null, it must be a whole number",
    ),
    "a hybrid without its heads": (
        {key: HYBRID[key] for key in HYBRID if key != "linear_num_value_heads"},
        "linear_num_value_heads is missing, it must be",
    ),
    "a hybrid of three layers": (HYBRID | {"num_hidden_layers": 3}, "num_hidden_layers is 3, it must be large enough"),
    "an unknown kind of layer": (HYBRID | {"layer_types": ["full_attention", "mamba"] * 12}, "layer_types is a list"),
    "names for layer numbers": (MOE | {"mlp_only_layers": ["0"]}, "mlp_only_layers is a list, it must be a list of"),
    "GPTQ without groups": (
        DENSE | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config.group_size is missing, it must be a whole number",
    ),
    "blocks that are not square": (
        DENSE | {"quantization_config": FP8 | {"weight_block_size": [128, 64]}},
        "quantization_config.weight_block_size is a list, it must be a list of two equal whole numbers",
    ),
    "no list of what is left out": (
        DENSE | {"quantization_config": FP8 | {"ignored_layers": "lm_head"}},
        "quantization_config.ignored_layers is 'lm_head', it must be a list of module names",
    ),
}


@pytest.mark.parametrize(("config", "says"), WRONG.values(), ids=WRONG.keys())
def test_claim_and_hub_refuse_a_field_with_the_same_words(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    report, complete = examine(checkpoint(tmp_path, config))
    assert not complete
    with pytest.raises(InvalidFactsError) as refused:
        from_config(config)
    assert report["error"]["message"] == f"config.json: {refused.value}."
    assert str(refused.value).startswith(says)


# An inspection reports what it counted in the files. Bytes from shapes need a class and a format that are known.
ONLY_COUNTED: dict[str, tuple[dict[str, Any], str]] = {
    "another class": (DENSE | {"architectures": ["LlamaForCausalLM"]}, "architectures[0] is 'LlamaForCausalLM', it"),
    "another hybrid": (HYBRID | {"architectures": ["Qwen4ForCausalLM"]}, "architectures[0] is 'Qwen4ForCausalLM'"),
    "another method": (
        DENSE | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantization_config.quant_method is 'bitsandbytes', it must be one of gptq, awq, fp8, compressed-",
    ),
    "MXFP8, whose blocks are rows": (
        DENSE | {"quantization_config": {"quant_method": "mxfp8", "weight_block_size": [1, 32]}},
        "quantization_config.quant_method is 'mxfp8', it must be one of gptq, awq, fp8, compressed-",
    ),
    "another width": (
        DENSE | {"quantization_config": GPTQ | {"bits": 3}},
        "quantization_config.bits is 3, it must be 4 or 8 with quant_method gptq",
    ),
    "an expert without width": (
        MOE | {"moe_intermediate_size": None},
        "moe_intermediate_size is null, it must be a whole number from 1 to",
    ),
}


@pytest.mark.parametrize(("config", "says"), ONLY_COUNTED.values(), ids=ONLY_COUNTED.keys())
def test_what_has_no_computed_bytes_is_reported_from_files_all_the_same(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    report, complete = examine(checkpoint(tmp_path, config))
    assert complete, report
    assert records.from_inspection(report).architecture == config["architectures"][0]
    with pytest.raises(InvalidFactsError) as refused:
        from_config(config)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("name", ["torch_dtype", "tie_word_embeddings"])
def test_tensors_speak_only_where_config_is_silent(name: str) -> None:
    hints = TensorHints("float16", has_lm_head=True)
    silent = {key: value for key, value in DENSE.items() if key != name}
    spoken = read(DENSE, hints)
    assert (spoken.dtype, spoken.tied) == ("bfloat16", True)
    expected = {"torch_dtype": ("float16", True), "tie_word_embeddings": ("bfloat16", False)}
    assert (read(silent, hints).dtype, read(silent, hints).tied) == expected[name]
    assert read(DENSE | {"tie_word_embeddings": None}, replace(hints, has_lm_head=False)).tied


def names_of(model: Checkpoint) -> dict[str, tuple[int, str]]:
    """Values and dtype of the tensors of a small hybrid with experts, by the names of the Hugging Face class."""
    hidden, q, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    tensors = {"model.embed_tokens.weight": model.vocab * hidden, "model.norm.weight": hidden, "lm_head.weight": 7}
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        tensors |= {at + "input_layernorm.weight": hidden, at + "post_attention_layernorm.weight": hidden}
        if (layer + 1) % 4:
            key, value = 16 * 128, 32 * 128
            tensors |= {
                at + "linear_attn.in_proj_qkvz.weight": hidden * (2 * key + 2 * value),
                at + "linear_attn.in_proj_ba.weight": hidden * 64,
                at + "linear_attn.conv1d.weight": (2 * key + value) * 4,
                at + "linear_attn.A_log": 32,
                at + "linear_attn.dt_bias": 32,
                at + "linear_attn.norm.weight": 128,
                at + "linear_attn.out_proj.weight": hidden * value,
            }
        else:
            tensors |= {
                at + "self_attn.q_proj.weight": hidden * 2 * q,
                at + "self_attn.k_proj.weight": hidden * kv,
                at + "self_attn.v_proj.weight": hidden * kv,
                at + "self_attn.o_proj.weight": hidden * q,
                at + "self_attn.q_norm.weight": model.head_dim,
                at + "self_attn.k_norm.weight": model.head_dim,
            }
        tensors |= {at + "mlp.gate.weight": hidden * 8, at + "mlp.shared_expert_gate.weight": hidden}
        for part in ("gate_proj", "up_proj", "down_proj"):
            tensors[at + f"mlp.shared_expert.{part}.weight"] = hidden * 512
            tensors |= {at + f"mlp.experts.{expert}.{part}.weight": hidden * 384 for expert in range(8)}
    tensors |= {"mtp.layers.0.self_attn.q_proj.weight": 11, "mtp.norm.weight": 13}
    return {name: (count, "BF16") for name, count in tensors.items()}


def test_an_inspected_checkpoint_weighs_what_its_shapes_say(tmp_path: Path) -> None:
    """A sparse file with real names and real sizes, whose extra tensors are not loaded."""
    config = HYBRID | {"num_hidden_layers": 8, "model_type": "qwen3_next"}
    known = from_config(config, source=INSPECTION)
    entries: dict[str, Any] = {}
    position = 0
    for name, (count, dtype) in names_of(known).items():
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": [position, position + 2 * count]}
        position += 2 * count
    header = json.dumps(entries).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    report, complete = examine(tmp_path)
    assert complete, report
    assert (report["weightBytes"], report["idleBytes"]) == (position, 2 * (7 + 11 + 13))
    inspected = records.from_inspection(report)
    assert replace(inspected, digest="", chat=None) == known


@pytest.mark.parametrize(
    ("left_out", "plain"),
    [
        (("self_attn", "linear_attn"), (Module.LINEAR_ATTENTION, Module.ATTENTION)),
        (("mlp.shared_expert",), (Module.SHARED_EXPERT,)),
    ],
)
def test_layers_left_at_16_bits_are_found_by_their_dtype(left_out: tuple[str, ...], plain: tuple[Module, ...]) -> None:
    model = from_config(HYBRID | {"num_hidden_layers": 8, "quantization_config": FP8})
    tensors = {
        name: Tensor("BF16" if any(f".{kind}." in name for kind in left_out) else "F8_E4M3", count)
        for name, (count, _) in names_of(model).items()
    }
    read_again = read(
        HYBRID | {"num_hidden_layers": 8, "quantization_config": FP8}, held=weights.linear_layers(tensors)
    )
    assert read_again.quantization is not None
    assert read_again.quantization.plain == plain


def test_every_layout_is_a_class_with_a_family() -> None:
    config = HYBRID | {"vision_config": {"depth": 1}}
    for architecture in LAYOUTS:
        assert from_config(config | {"architectures": [architecture]}, weight_bytes=10**10).family
