"""The format of a checkpoint's weights, from the `quantization_config` of its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qwen_runtime.checkpoints.model import MAX_BITS, MAX_WIDTH, SAMPLES, Module, Quantization
from qwen_runtime.checkpoints.reading import Fields

MEASURED = ("gptq", "awq", "fp8")
"""The methods whose bytes can be computed from the shapes."""
_PACKED_BITS = (4, 8)
_IMPLIED_BITS = {
    "fp8": 8, "fbgemm_fp8": 8, "ptpc_fp8": 8, "mxfp8": 8, "w8a8_fp8": 8, "w8a8_int8": 8, "modelopt_fp8": 8,
    "mxfp4": 4, "modelopt_fp4": 4, "nvfp4": 4,
}  # fmt: skip
_MODELOPT_BITS = {"FP8": 8, "NVFP4": 4}


def read(top: Fields, text: Fields) -> Quantization | None:
    """The format of any method, None for plain weights. Raises InvalidFactsError."""
    fields = _fields(top, text)
    if fields is None:
        return None
    method = fields.name("quant_method").lower()
    bits, group = _width(fields, method)
    return Quantization(
        method=method,
        bits=bits,
        group_size=group,
        symmetric=_symmetric(fields, method),
        desc_act=None if method in ("awq", "fp8") else fields.optional_flag("desc_act"),
        block=_block(fields) if method == "fp8" else None,
        plain=_plain(fields) if method in MEASURED else (),
    )


def check_known(top: Fields, text: Fields) -> None:
    """Raises InvalidFactsError for a method or a width whose bytes cannot be computed from the shapes."""
    fields = _fields(top, text)
    if fields is None:
        return
    method = fields.values.get("quant_method")
    if not isinstance(method, str) or method.lower() not in MEASURED:
        raise fields.refuse("quant_method", "one of " + ", ".join(MEASURED))
    if method.lower() != "fp8" and fields.values.get("bits") not in _PACKED_BITS:
        raise fields.refuse("bits", f"{' or '.join(map(str, _PACKED_BITS))} with quant_method {method}")


def _fields(top: Fields, text: Fields) -> Fields | None:
    """The quantization of the top level, as in SGLang, or the nested one if the top level has none."""
    owner = top if top.has("quantization_config") or not text.has("quantization_config") else text
    if owner.values.get("quantization_config") in (None, {}):
        return None
    return owner.nested("quantization_config")


def _width(fields: Fields, method: str) -> tuple[int, int | None]:
    """Bits of a value, and the number of values that share a scale, or None."""
    if method == "compressed-tensors" and fields.has("config_groups"):
        weights = _first_group(fields).nested("weights")
        return weights.whole("num_bits", MAX_BITS), _group(weights)
    if method == "bitsandbytes":
        return (4 if fields.optional_flag("load_in_4bit") else 8), None
    if method == "fp8":
        return 8, None
    if method in ("gptq", "awq"):
        bits = fields.whole("bits", MAX_BITS)
        # SGLang rejects these methods without a group size. They write -1 for "one scale per column".
        return bits, None if fields.values.get("group_size") == -1 else fields.whole("group_size", MAX_WIDTH)
    return _bits(fields, method), _group(fields)


def _first_group(fields: Fields) -> Fields:
    """The first group of compressed-tensors. In every published checkpoint it has the linear layers."""
    groups = fields.nested("config_groups")
    if not groups.values:
        raise fields.refuse("config_groups", "an object with at least one group")
    return groups.nested(sorted(groups.values)[0])


def _bits(fields: Fields, method: str) -> int:
    algorithm = fields.values.get("quant_algo")
    if method == "modelopt" and isinstance(algorithm, str) and algorithm in _MODELOPT_BITS:
        return _MODELOPT_BITS[algorithm]
    if not fields.has("bits") and method in _IMPLIED_BITS:
        return _IMPLIED_BITS[method]
    return fields.whole("bits", MAX_BITS)


def _group(fields: Fields) -> int | None:
    """The group size, None if scales are per channel or per tensor (no group size, or -1)."""
    return None if fields.values.get("group_size") == -1 else fields.optional("group_size", MAX_WIDTH)


def _symmetric(fields: Fields, method: str) -> bool | None:
    """Whether values are symmetric around zero: `sym` in GPTQ, no `zero_point` in AWQ, either one in others."""
    if method == "fp8":
        return None
    symmetric = None if method == "awq" else fields.optional_flag("sym")
    zero_point = None if method == "gptq" else fields.optional_flag("zero_point")
    return symmetric if zero_point is None else not zero_point


def _block(fields: Fields) -> int | None:
    """The edge of FP8's blocks, None if scales are per channel or per tensor."""
    if not fields.has("weight_block_size"):
        return None
    block = fields.values["weight_block_size"]
    if not isinstance(block, list) or len(block) != 2 or block[0] != block[1]:
        raise fields.refuse("weight_block_size", "a list of two equal whole numbers, for example [128, 128]")
    return Fields({"weight_block_size[0]": block[0]}, fields.prefix).whole("weight_block_size[0]", MAX_WIDTH)


def _plain(fields: Fields) -> tuple[Module, ...]:
    """Kinds of layers that stay at 16 bits. One layer is enough for its kind."""
    names = list(_left_out(fields))
    return tuple(sorted(module for module, sample in SAMPLES.items() if any(name in sample for name in names)))


def _left_out(fields: Fields) -> Iterator[str]:
    """Names from the lists of AWQ and FP8 and from GPTQModel's negative rules, without the layer's number.

    The rules are regular expressions of unknown origin. They are not run; their plain words are compared instead.
    """
    for field in ("modules_to_not_convert", "ignored_layers"):
        names = fields.values.get(field) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise fields.refuse(field, "a list of module names")
        yield from (word for name in names if (word := re.sub(r"^.*\blayers\.\d+\.", "", name)))
    rules = fields.nested("dynamic").values if fields.has("dynamic") else {}
    for rule in rules:
        word = re.sub(r"\.[*+]|[\\^$]", "", rule.removeprefix("-:"))
        if rule.startswith("-:") and word:
            yield word
