"""Facts from a `config.json`, believed only where type and range are plausible.

A number that is wrong here becomes a wrong plan and a crash minutes later on a rented GPU, so nothing is coerced:
a boolean is no number, 24.0 is no whole number, and NaN, which Python's JSON accepts, is refused by range.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_runtime.faults import Fault, shown
from qwen_runtime.reasons import ReportReason as Reason

FILE = "config.json"
DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,96}")
_LONGEST_INTEGER = 25
_IMPLIED_BITS = {
    "fp8": 8, "fbgemm_fp8": 8, "ptpc_fp8": 8, "mxfp8": 8, "w8a8_fp8": 8, "w8a8_int8": 8, "modelopt_fp8": 8,
    "mxfp4": 4, "modelopt_fp4": 4, "nvfp4": 4,
}  # fmt: skip
_MODELOPT_BITS = {"FP8": 8, "NVFP4": 4}


@dataclass(frozen=True, slots=True)
class Hints:
    """What the tensors say where config.json is silent: the dtype of most bytes, and whether `lm_head` is stored."""

    dtype: str | None
    has_lm_head: bool


def parse_json(data: bytes, file: str) -> dict[str, Any]:
    """A JSON object from a foreign file; InvalidConfig for anything else."""
    try:
        value = json.loads(data, parse_int=_integer)
    except RecursionError:
        raise Fault(Reason.INVALID_CONFIG, f"{file} is nested too deeply to be read.", file) from None
    except ValueError as error:
        detail = str(error) if isinstance(error, json.JSONDecodeError) else "it is not valid UTF-8 text"
        raise Fault(Reason.INVALID_CONFIG, f"{file} is not valid JSON: {detail}.", file) from None
    if not isinstance(value, dict):
        raise Fault(Reason.INVALID_CONFIG, f"{file} holds {shown(value)}; it must hold a JSON object.", file)
    return value


def _integer(text: str) -> int | float:
    # int() takes quadratic time on long digit strings; what is this long is out of every range anyway
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed reading of one JSON object; `prefix` names it in messages, e.g. `text_config.`."""

    values: Mapping[str, Any]
    prefix: str = ""

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def refuse(self, name: str, right: str) -> Fault:
        """The fault for a field: names it, its value, and what would be right."""
        label = self.prefix + name
        if not self.has(name):
            return Fault(Reason.INVALID_CONFIG, f"{label} is missing from {FILE}; it must be {right}.", FILE)
        value = shown(self.values[name])
        return Fault(Reason.INVALID_CONFIG, f"{label} in {FILE} is {value}; it must be {right}.", FILE)

    def whole(self, name: str, high: int, low: int = 1) -> int:
        """A required whole number from `low` to `high`."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"a whole number from {low} to {high}")
        return value

    def name(self, name: str) -> str:
        """A required identifier."""
        value = self.values.get(name)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.refuse(name, "a name of letters, digits and _ . + - with at most 96 characters")
        return value

    def flag(self, name: str) -> bool:
        """A required true or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def nested(self, name: str) -> "Fields":
        """A required object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return Fields(value, f"{self.prefix}{name}.")


def facts(config: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    """The architecture part of a report, or InvalidConfig that names the field.

    Multimodal checkpoints keep the language model's numbers in `text_config`; they are taken from there when the
    top level has no `num_hidden_layers`. Defaults are those of the Hugging Face Qwen2 and Qwen3 configurations:
    no `num_key_value_heads` = one per head, no `head_dim` = hidden_size / num_attention_heads.
    """
    top = Fields(config)
    architecture = _architecture(top)
    text = top
    if not top.has("num_hidden_layers") and top.has("text_config"):
        text = top.nested("text_config")
    layers = text.whole("num_hidden_layers", 10_000)
    hidden = text.whole("hidden_size", 1_000_000)
    heads = text.whole("num_attention_heads", 10_000)
    experts = _experts(text)
    attention_layers = _attention_layers(text, layers)
    return {
        "architecture": architecture,
        "modelType": top.name("model_type"),
        "dtype": _dtype(text, top, hints),
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kvHeads": _kv_heads(text, heads),
        "headDim": _head_dim(text, hidden, heads),
        "intermediate": _intermediate(text),
        "vocab": _either(text, top, "vocab_size").whole("vocab_size", 10_000_000),
        "maxPositions": text.whole("max_position_embeddings", 100_000_000),
        "tieWordEmbeddings": _tied(text, top, hints),
        "quantization": _quantization(text, top),
        "experts": experts,
        "attentionLayers": attention_layers,
        "denseLayers": _dense_layers(text, layers) if experts else layers,
        "expertIntermediate": _width(text, "moe_intermediate_size") if experts else None,
        "sharedIntermediate": _width(text, "shared_expert_intermediate_size") if experts else None,
        "linear": _linear(text, layers - attention_layers),
        "rope": _rope(text),
        "multimodal": top.has("vision_config"),
    }


def _either(text: Fields, top: Fields, name: str) -> Fields:
    return text if text.has(name) or not top.has(name) else top


def _architecture(top: Fields) -> str:
    names = top.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise top.refuse("architectures", "a list with the name of the model class, for example Qwen2ForCausalLM")
    return Fields({"architectures[0]": names[0]}).name("architectures[0]")


def _dtype(text: Fields, top: Fields, hints: Hints) -> str:
    for fields in (text, top):
        for name in ("dtype", "torch_dtype"):
            if fields.has(name):
                value = fields.values[name]
                plain = value.removeprefix("torch.") if isinstance(value, str) else ""
                if plain not in DTYPES:
                    raise fields.refuse(name, "one of " + ", ".join(DTYPES))
                return plain
    if hints.dtype is None:
        raise text.refuse("torch_dtype", "one of " + ", ".join(DTYPES))
    return hints.dtype


def _kv_heads(text: Fields, heads: int) -> int:
    if not text.has("num_key_value_heads"):
        return heads
    kv_heads = text.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise text.refuse("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    return kv_heads


def _head_dim(text: Fields, hidden: int, heads: int) -> int:
    if text.has("head_dim"):
        return text.whole("head_dim", 65_536)
    if hidden % heads:
        raise text.refuse("hidden_size", f"a multiple of num_attention_heads, which is {heads}, as head_dim is not set")
    return hidden // heads


def _intermediate(text: Fields) -> int:
    for name in ("intermediate_size", "moe_intermediate_size"):
        if text.has(name):
            return text.whole(name, 10_000_000)
    return text.whole("intermediate_size", 10_000_000)


def _experts(text: Fields) -> int | None:
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if text.has(name):
            return text.whole(name, 100_000, low=0) or None
    return None


def _width(text: Fields, name: str) -> int | None:
    """None where the field is absent or 0, which is how a model without a shared expert writes it."""
    return (text.whole(name, 10_000_000, low=0) or None) if text.has(name) else None


def _dense_layers(text: Fields, layers: int) -> int:
    """Layers of a model with experts that have a plain MLP instead."""
    step = text.whole("decoder_sparse_step", 10_000) if text.has("decoder_sparse_step") else 1
    plain = text.values.get("mlp_only_layers") or []
    if not isinstance(plain, list):
        raise text.refuse("mlp_only_layers", "a list of layer numbers")
    return sum(index in plain or (index + 1) % step != 0 for index in range(layers))


def _attention_layers(text: Fields, layers: int) -> int:
    """Layers with a KV cache. Hybrids list them in `layer_types`, or have every `full_attention_interval`th (4)."""
    if not text.has("linear_num_value_heads"):
        return layers
    if text.has("layer_types"):
        types = text.values["layer_types"]
        count = types.count("full_attention") if isinstance(types, list) and len(types) == layers else 0
        if count == 0:
            raise text.refuse("layer_types", f"a list of {layers} entries, at least one of them full_attention")
        return count
    interval = text.whole("full_attention_interval", layers) if text.has("full_attention_interval") else 4
    return max(1, layers // interval)


def _linear(text: Fields, layers: int) -> dict[str, int] | None:
    if layers == 0:
        return None
    state = text.values.get("mamba_ssm_dtype") or "float32"
    if state not in ("float32", "bfloat16", "float16"):
        raise text.refuse("mamba_ssm_dtype", "one of float32, bfloat16, float16")
    return {
        "layers": layers,
        "valueHeads": text.whole("linear_num_value_heads", 10_000),
        "keyHeads": text.whole("linear_num_key_heads", 10_000),
        "keyDim": text.whole("linear_key_head_dim", 10_000),
        "valueDim": text.whole("linear_value_head_dim", 10_000),
        "convKernel": text.whole("linear_conv_kernel_dim", 10_000),
        "stateValueBytes": 4 if state == "float32" else 2,
    }


def _rope(text: Fields) -> dict[str, Any] | None:
    """Scaling that extends the context; None for plain and for multimodal rotary embeddings, which have no factor."""
    name = "rope_scaling" if text.has("rope_scaling") else "rope_parameters"
    if not text.has(name):
        return None
    fields = text.nested(name)
    if not fields.has("factor"):
        return None
    factor = fields.values["factor"]
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= 4096:
        raise fields.refuse("factor", "a number from 1 to 4096")
    original = "original_max_position_embeddings"
    return {
        "type": fields.name("rope_type" if fields.has("rope_type") else "type"),
        "factor": float(factor),
        "originalMaxPositions": fields.whole(original, 100_000_000) if fields.has(original) else None,
    }


def _tied(text: Fields, top: Fields, hints: Hints) -> bool:
    fields = _either(text, top, "tie_word_embeddings")
    return fields.flag("tie_word_embeddings") if fields.has("tie_word_embeddings") else not hints.has_lm_head


def _quantization(text: Fields, top: Fields) -> dict[str, Any] | None:
    owner = _either(text, top, "quantization_config")
    if owner.values.get("quantization_config") in (None, {}):
        return None
    fields = owner.nested("quantization_config")
    method = fields.name("quant_method")
    if method == "compressed-tensors" and fields.has("config_groups"):
        bits, group = _compressed_tensors(fields)
    elif method == "bitsandbytes":
        bits, group = (4 if fields.has("load_in_4bit") and fields.flag("load_in_4bit") else 8), None
    else:
        bits, group = _bits(fields, method), _group_size(fields)
    block = group if fields.has("weight_block_size") else None
    return {"method": method, "bits": bits, "groupSize": None if block else group, "block": block} | _signs(fields)


def _signs(fields: Fields) -> dict[str, bool | None]:
    """Whether values are symmetric around zero and, for GPTQ, in the order of activations; None where not said."""
    symmetric = fields.flag("sym") if fields.has("sym") else None
    if fields.has("zero_point"):
        symmetric = not fields.flag("zero_point")
    return {"symmetric": symmetric, "descAct": fields.flag("desc_act") if fields.has("desc_act") else None}


def _bits(fields: Fields, method: str) -> int:
    algorithm = fields.values.get("quant_algo")
    if method == "modelopt" and isinstance(algorithm, str) and algorithm in _MODELOPT_BITS:
        return _MODELOPT_BITS[algorithm]
    if not fields.has("bits") and method in _IMPLIED_BITS:
        return _IMPLIED_BITS[method]
    return fields.whole("bits", 16)


def _group_size(fields: Fields) -> int | None:
    """None where scales are per channel or per tensor (absent, or -1 in GPTQ and AWQ)."""
    block = fields.values.get("weight_block_size")
    if isinstance(block, list) and block:
        return Fields({"weight_block_size[0]": block[0]}, fields.prefix).whole("weight_block_size[0]", 1_000_000)
    if not fields.has("group_size") or fields.values["group_size"] == -1:
        return None
    return fields.whole("group_size", 1_000_000)


def _compressed_tensors(fields: Fields) -> tuple[int, int | None]:
    """Bits and group size of the first group: the one that holds the linear layers in every published checkpoint."""
    groups = fields.nested("config_groups")
    if not groups.values:
        raise fields.refuse("config_groups", "an object with at least one group")
    weights = groups.nested(sorted(groups.values)[0]).nested("weights")
    return weights.whole("num_bits", 16), _group_size(weights)
