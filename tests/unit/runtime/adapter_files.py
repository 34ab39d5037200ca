"""LoRA adapters as PEFT 0.17 writes them, with tensor data of zeros, for the tests of inspection and planning."""

import json
from pathlib import Path
from typing import Any

from tests.unit.checkpoints.configs import DENSE

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_HEAD = DENSE["hidden_size"] // DENSE["num_attention_heads"]
WIDTHS = (DENSE["hidden_size"], DENSE["hidden_size"], DENSE["num_key_value_heads"] * _HEAD, DENSE["intermediate_size"])
"""Of the base of the tests: hidden, query, key and value, intermediate."""


def config(rank: int = 8, modules: tuple[str, ...] = ATTENTION, **more: Any) -> dict[str, Any]:
    """adapter_config.json."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": "team/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **more,
    }


def shapes(
    rank: int = 8, modules: tuple[str, ...] = ATTENTION, layers: int = 2, widths: tuple[int, ...] = WIDTHS
) -> dict[str, list[int]]:
    """The tensors of adapter_model.safetensors with their shapes."""
    hidden, query, key_value, middle = widths
    sides = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, middle),
        "up_proj": (hidden, middle),
        "down_proj": (middle, hidden),
    }
    tensors: dict[str, list[int]] = {}
    for layer in range(layers):
        for module in modules:
            part = "self_attn" if module in ATTENTION else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = [rank, sides[module][0]]
            tensors[f"{prefix}.lora_B.weight"] = [sides[module][1], rank]
    return tensors


def weights(tensors: dict[str, list[int]]) -> bytes:
    """A complete safetensors file of bfloat16."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (first, second) in tensors.items():
        end = position + 2 * first * second
        entries[name] = {"dtype": "BF16", "shape": [first, second], "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


def adapter(folder: Path, rank: int = 8, modules: tuple[str, ...] = ATTENTION, **more: Any) -> Path:
    """A complete folder. `more` are members of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config(rank, modules, **more)))
    (folder / "adapter_model.safetensors").write_bytes(weights(shapes(rank, modules)))
    return folder
