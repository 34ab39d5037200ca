"""Methods of quantization as people's files name them: in config.json, beside it, or nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.records import from_inspection
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.checkpoints.configs import DENSE, GPTQ
from tests.unit.runtime.checkpoint import checkpoint, shard

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
MLX = {"group_size": 64, "bits": 4, "mode": "affine"}
# What SGLang loads on no GPU although it knows the method: the change of the fields, and why.
UNLOADABLE: dict[str, tuple[dict[str, Any], str]] = {
    # GPTQModel writes groups that Marlin, SGLang's only kernel, does not have.
    "group": (
        GPTQ | {"group_size": 256},
        "group_size is 256, and SGLang runs GPTQ with groups of -1, 32, 64, 128",
    ),
    "small group": (GPTQ | {"group_size": 16}, "group_size is 16, and SGLang"),
    "marlin": (GPTQ | {"checkpoint_format": "marlin"}, "the files are in the layout of Marlin"),
    "marlin of AutoGPTQ 0.7": (GPTQ | {"is_marlin_format": True}, "the files are in the layout of Marlin"),
    "no sym": ({key: value for key, value in GPTQ.items() if key != "sym"}, "quantization_config has no sym, without"),
    "neither": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        "quantization_config has no sym and no desc_act, without which SGLang chooses no kernel for GPTQ",
    ),
    "gemv": (AWQ | {"version": "GEMV"}, "the AWQ version is gemv, and SGLang reads the layout of gemm only"),
}


@pytest.mark.parametrize(("quantization", "why"), UNLOADABLE.values(), ids=UNLOADABLE.keys())
def test_a_checkpoint_without_a_kernel_is_refused_with_the_field(quantization: dict[str, Any], why: str) -> None:
    refused = from_config(DENSE | {"quantization_config": quantization}).quantization
    assert refused is not None
    assert refused.refused.startswith(why)


@pytest.mark.parametrize(
    "quantization",
    [GPTQ, GPTQ | {"group_size": -1}, GPTQ | {"checkpoint_format": "gptq_v2", "is_marlin_format": False}, AWQ],
)
def test_others_are_not(quantization: dict[str, Any]) -> None:
    loaded = from_config(DENSE | {"quantization_config": quantization}).quantization
    assert loaded is not None
    assert loaded.refused == ""


def test_a_quantization_in_the_text_part_alone_is_one_that_sglang_does_not_see() -> None:
    """SGLang 0.5.23 finds no method in such a file, and would load the values of the packed weights as plain ones."""
    multimodal = DENSE | {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}
    nested = from_config(multimodal | {"text_config": DENSE | {"quantization_config": GPTQ}}).quantization
    assert nested is not None
    assert nested.refused.startswith("quantization_config stands in text_config only")
    both = multimodal | {"quantization_config": GPTQ, "text_config": DENSE | {"quantization_config": GPTQ}}
    above = from_config(both).quantization
    assert above is not None
    assert above.refused == ""


# Methods that the operator does not plan, as files write them: what an inspection says of the method and its bits.
OTHERS: dict[str, tuple[dict[str, Any], tuple[str, int]]] = {
    "mlx-community, new": ({"quantization": MLX, "quantization_config": MLX}, ("mlx", 4)),
    "mlx-community, old": ({"quantization": {"group_size": 64, "bits": 8}}, ("mlx", 8)),
    # nvidia/Qwen3.6-27B-NVFP4 (sglang#27906): no width at all.
    "ModelOpt mixed": (
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {}}},
        ("modelopt", 8),
    ),
    "ModelOpt without its name": ({"quantization_config": {"quant_algo": "NVFP4", "group_size": 16}}, ("modelopt", 4)),
    "torchao": (
        {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnly"}}}},
        ("torchao", 8),
    ),
    "quark": ({"quantization_config": {"quant_method": "quark", "global_quant_config": {}}}, ("quark", 8)),
    "AutoRound": (
        {"quantization_config": {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}},
        ("auto-round", 4),
    ),
}


@pytest.mark.parametrize(("changes", "method"), OTHERS.values(), ids=OTHERS.keys())
def test_other_methods_are_read_by_name_and_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], method: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    report, complete = examine(checkpoint(tmp_path, DENSE | changes))
    assert complete, report
    quantization = from_inspection(report).quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits) == method
    with pytest.raises(InvalidFactsError, match=r"quant_method is '|as MLX writes it for Macs|quant_method is missing"):
        from_config(DENSE | changes)


def test_a_quantization_without_any_name_is_refused() -> None:
    with pytest.raises(
        InvalidFactsError, match=r"quantization_config\.quant_method is missing, it must be one of gptq"
    ):
        from_config(DENSE | {"quantization_config": {"w_bit": 4, "q_group_size": 128}})


@pytest.mark.parametrize(
    ("file", "tool"), [("hf_quant_config.json", "ModelOpt"), ("quant_model_description.json", "ModelSlim")]
)
def test_a_file_beside_the_config_counts(
    tmp_path: Path, file: str, tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """nvidia/Qwen3-8B-FP8 and others: config.json describes plain weights, and SGLang reads the other file."""
    folder = checkpoint(tmp_path)
    (folder / file).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    report, complete = examine(folder)
    says = f"{file} says that {tool} quantized the weights"
    assert not complete
    assert says in report["error"]["message"]
    given = ["--checkpoint-config", str(folder / "config.json"), "--gpu", "H100-80GB=1x1"]
    assert cli.main(["plan", "--model", "m", *given]) == 2
    assert says in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps(DENSE | {"quantization_config": GPTQ}))
    assert examine(folder)[1]


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.0.self_attn.q_proj.qweight",
        "model.layers.0.self_attn.q_proj.weight_packed",
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.0.mlp.gate_proj.weight.absmax",
        "model.layers.0.mlp.gate_proj.scales",
    ],
)
def test_packed_weights_without_a_quantization_in_config_are_refused(tmp_path: Path, tensor: str) -> None:
    """unsloth#1597: a 4-bit upload whose config.json had lost quantization_config."""
    folder = checkpoint(tmp_path)
    shard(folder / "model.safetensors", {"model.embed_tokens.weight": 64, tensor: 36})
    report, complete = examine(folder)
    assert not complete
    assert report["error"]["message"].startswith(f"'{tensor}' belongs to quantized weights, but config.json has no ")
