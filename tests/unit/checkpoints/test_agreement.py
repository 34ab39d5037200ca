"""Two readers of config.json, one in the operator and one in the inspection pod, must come to the same facts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.checkpoints import catalog, shapes
from qwen_operator.checkpoints.config import LAYOUTS, from_config
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint
from qwen_runtime import config as runtime
from qwen_runtime import weights
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.safetensors import Tensor
from tests.unit.checkpoints.configs import FP8, HYBRID

DATA = json.loads((Path(catalog.__file__).parent / "catalog.json").read_text())["models"]


@pytest.mark.parametrize("model", DATA, ids=lambda model: model["family"])
def test_both_readers_agree_on_every_catalog_row(model: dict[str, Any]) -> None:
    for row in model["checkpoints"]:
        if row["format"] != "gguf":
            agree(model["config"] | row.get("config", {}))


def agree(config: dict[str, Any]) -> None:
    known = from_config(config, source=INSPECTION)
    report = runtime.facts(config, runtime.Hints(None, has_lm_head=True)) | {
        "version": 2,
        "weightBytes": known.weight_bytes,
        "replicatedBytes": known.replicated_bytes,
        "kvWeightBytes": known.kv_weight_bytes,
        "configSha256": "",
    }
    if known.quantization is not None:
        report["quantization"]["plain"] = list(known.quantization.plain)
    assert Checkpoint.from_inspection(report) == known


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
    found = Checkpoint.from_inspection(report)
    assert replace(found, digest="") == known


@pytest.mark.parametrize(
    ("left_out", "plain"),
    [(("self_attn", "linear_attn"), ["linear_attn", "self_attn"]), (("mlp.shared_expert",), ["mlp.shared_expert"])],
)
def test_layers_left_at_16_bits_are_found_by_their_dtype(left_out: tuple[str, ...], plain: list[str]) -> None:
    model = from_config(HYBRID | {"num_hidden_layers": 8, "quantization_config": FP8})
    tensors = {
        name: Tensor("BF16" if any(f".{kind}." in name for kind in left_out) else "F8_E4M3", count)
        for name, (count, _) in names_of(model).items()
    }
    assert weights.plain_modules(tensors) == plain


def test_every_layout_is_a_class_with_a_family() -> None:
    config = HYBRID | {"vision_config": {"depth": 1}}
    for architecture, layout in LAYOUTS.items():
        assert isinstance(layout, shapes.Layout)
        assert from_config(config | {"architectures": [architecture]}, weight_bytes=10**10).family
