"""The method of a checkpoint's quantization: where files name it, and what SGLang wants of their fields.

SGLang also reads files beside config.json, and loads GPTQ and AWQ only with some values of their fields
(configs/model_config.py, `_parse_quant_hf_config`; layers/quantization/gptq/gptq.py and awq/awq.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError

MEASURED = ("gptq", "awq", "fp8", "compressed-tensors")
"""The methods whose bytes are worked out from the shapes."""
_RIGHT = "one of " + ", ".join(MEASURED)
_MLX = "mlx"
_SECTIONS = ("quantization_config", "compression_config")
# Files that hold the quantization where config.json does not, and the tools that write them.
_BESIDE = {"hf_quant_config.json": "ModelOpt", "quant_model_description.json": "ModelSlim"}
# Marlin runs these groups; -1 is one for each column.
_GPTQ_GROUPS = (-1, 32, 64, 128)
_OTHER_LAYOUTS = ("gemv", "gemv_fast", "marlin")


def section(top: Fields, text: Fields) -> Fields | None:
    """The part of a config.json that describes the quantization, None for plain weights.

    The top level's counts, as in SGLang; a nested one only where the top level has none. Files that llm-compressor
    wrote before 2024 call it `compression_config`, which SGLang reads as well. MLX writes `quantization`.
    """
    for name in _SECTIONS:
        owner = top if top.has(name) or not text.has(name) else text
        if owner.values.get(name) not in (None, {}):
            return owner.nested(name)
    apple = top.values.get("quantization")
    return top.nested("quantization") if isinstance(apple, Mapping) and "group_size" in apple else None


def named(fields: Fields) -> str:
    """The method. ModelOpt and MLX leave `quant_method` out. Raises InvalidFactsError."""
    if not fields.has("quant_method"):
        if fields.has("quant_algo"):
            return "modelopt"
        if fields.has("group_size") and fields.has("bits"):
            return _MLX
        raise fields.refuse("quant_method", _RIGHT)
    return fields.name("quant_method").lower()


def check_measured(fields: Fields) -> None:
    """Raises InvalidFactsError for a method whose bytes cannot be worked out from the shapes."""
    if named(fields) == _MLX:
        raise InvalidFactsError(
            f"{fields.prefix.rstrip('.')} has group_size and bits and no quant_method, as MLX writes it for Macs: "
            f"SGLang loads such weights on no GPU; choose a checkpoint for GPUs"
        )
    if named(fields) not in MEASURED:
        raise fields.refuse("quant_method", _RIGHT)


def check_beside(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises InvalidFactsError if a file beside config.json, and not config.json, describes the quantization.

    `names` are the files of the checkpoint. SGLang reads these files, and the weights are not those of config.json.
    """
    found = next((name for name in _BESIDE if name in names), None)
    if found is None or any(config.get(name) for name in _SECTIONS):
        return
    raise InvalidFactsError(
        f"{found} says that {_BESIDE[found]} quantized the weights, which this version of the operator cannot plan; "
        f"choose weights of 16 bits, or quantized with {', '.join(MEASURED)}"
    )


def unloadable(fields: Fields, method: str) -> str:
    """Why SGLang loads no such checkpoint, in a clause, or "". Only what the fields of the method itself say."""
    if fields.prefix.startswith("text_config."):
        name = fields.prefix.removeprefix("text_config.").rstrip(".")
        return f"{name} stands in text_config only, and SGLang looks for it at the top of config.json: move it there"
    return _gptq(fields) if method == "gptq" else _awq(fields) if method == "awq" else ""


def _awq(fields: Fields) -> str:
    version = fields.values.get("version")
    if not isinstance(version, str) or version.lower() not in _OTHER_LAYOUTS:
        return ""
    return f"the AWQ version is {version.lower()}, and SGLang reads the layout of gemm only"


def _gptq(fields: Fields) -> str:
    if fields.values.get("checkpoint_format") == "marlin" or fields.values.get("is_marlin_format") is True:
        return "the files are in the layout of Marlin, and SGLang reads the one of GPTQ only"
    missing = [name for name in ("sym", "desc_act") if not fields.has(name)]
    if missing:
        return f"quantization_config has no {' and no '.join(missing)}, without which SGLang chooses no kernel for GPTQ"
    group = fields.values.get("group_size")
    if group not in _GPTQ_GROUPS:
        return f"group_size is {group}, and SGLang runs GPTQ with groups of {', '.join(map(str, _GPTQ_GROUPS))} only"
    return ""
