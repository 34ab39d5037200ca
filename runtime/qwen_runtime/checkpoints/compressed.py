"""The groups of compressed-tensors: which layers they are for, and which of them SGLang 0.5.23 has a kernel for.

The rules are those of layers/quantization/compressed_tensors/compressed_tensors.py (`_get_scheme_from_parts`, line 697)
and utils.py (`find_matched_target`, `should_ignore_layer`) in the SGLang package.
"""

from __future__ import annotations

import re
from typing import Any

from qwen_runtime.checkpoints.exclusions import MOST_RULES, Exceptions, Hits, Match, names_in
from qwen_runtime.checkpoints.formats import Format, FormatKind
from qwen_runtime.checkpoints.model import MAX_BITS, MAX_WIDTH
from qwen_runtime.checkpoints.reading import Fields, shown

_ACTIVATIONS = ("naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "pack-quantized")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,40}")
_UNTARGETED = Format(
    FormatKind.INT8, problem="no config_group of quantization_config has a target for one of its layers"
)
Rules = tuple[Format | None, tuple[tuple[Hits, Format | None], ...]]


def rules(fields: Fields, exceptions: Exceptions) -> Rules:
    """The format of the layers that no name is for, and the exceptions in the order in which SGLang looks."""
    whole = _whole_file(fields)
    exceptions_by_name: list[tuple[Hits, Format | None]] = [
        (hits, None) for hits in _hits(names_in(fields, "ignore"), exceptions, "ignore")
    ]
    named: dict[str, Format | None] = {}
    classes: dict[str, Format | None] = {}
    groups = fields.nested("config_groups") if fields.has("config_groups") else Fields({})
    if len(groups.values) > MOST_RULES:
        raise fields.refuse("config_groups", f"at most {MOST_RULES} groups")
    for name in groups.values:
        group = groups.nested(name)
        one = whole or _format(group, fields.values.get("format"))
        for target in names_in(group, "targets"):
            # SGLang looks for the text of a target in its own class names, which are all "…Linear".
            kind = classes if "linear".endswith(target.lower()) or target == "Linear" else named
            kind[target] = one
    for target, one in named.items():
        exceptions_by_name += [(hits, one) for hits in _hits([target], exceptions, "config_groups")]
    return next(iter(classes.values()), whole or _UNTARGETED), tuple(exceptions_by_name)


def _whole_file(fields: Fields) -> Format | None:
    """What stands for every layer because SGLang does not load the file, or None."""
    sparse = fields.values.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format") not in (None, "dense"):
        return Format(FormatKind.INT8, problem="SGLang has no kernel for sparse weights (sparsity_config)")
    if fields.has("linear_fp8_config"):
        return Format(FormatKind.INT8, problem="linear_fp8_config of quantization_config cannot be planned yet")
    return None


def _hits(names: list[str], exceptions: Exceptions, field: str) -> list[Hits]:
    plain = [name for name in names if not name.startswith("re:")]
    hits = [exceptions.listed(plain, Match.END, field)] if plain else []
    return hits + [exceptions.rule(name[3:], field) for name in names if name.startswith("re:")]


def _format(group: Fields, whole_format: Any) -> Format | None:
    """The format of a group's matrices. `problem` says which of its fields SGLang has no kernel for."""
    if not group.has("weights"):
        return None
    weights = group.nested("weights")
    activations = group.nested("input_activations") if group.has("input_activations") else None
    layout = group.values.get("format") or whole_format
    bits = weights.whole("num_bits", MAX_BITS)
    size = None if weights.values.get("group_size") == -1 else weights.optional("group_size", MAX_WIDTH)
    strategy = weights.values.get("strategy") or (
        "group" if size else "channel" if weights.has("group_size") else "tensor"
    )
    kind = weights.values.get("type") or "int"
    problem = (
        f"SGLang has no kernel for {_word(layout)} weights of {bits} bits ({_word(kind)}, {_word(strategy)}) in "
        "compressed-tensors"
    )
    if kind == "int" and activations is None:
        return _packed(weights, layout, bits, size if strategy == "group" else None, problem)
    static = weights.optional_flag("symmetric") is not False and not weights.optional_flag("dynamic")
    if layout not in _ACTIVATIONS or not static:
        return Format(FormatKind.INT8, problem=problem)
    if kind == "float" and bits == 4:
        same = activations is None or (
            (activations.values.get("num_bits"), activations.values.get("strategy")) == (4, "tensor_group")
        )
        right = same and strategy == "tensor_group" and size == 16
        return Format(FormatKind.FP4, 4, size, problem="" if right else problem)
    if kind == "float" and bits == 8:
        return _fp8(weights, activations, strategy, problem)
    return _int8(activations, bits, strategy, problem)


def _word(value: object) -> str:
    """A foreign value in a sentence that facts keep."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else shown(value)[:40]


def _packed(weights: Fields, layout: Any, bits: int, size: int | None, problem: str) -> Format:
    strategy = weights.values.get("strategy") or ("group" if size else "channel")
    right = layout == "pack-quantized" and bits in (4, 8) and strategy in ("group", "channel")
    right = right and not weights.optional_flag("dynamic") and (strategy == "channel" or size is not None)
    zeros = weights.optional_flag("symmetric") is False
    index = weights.values.get("actorder") == "group"
    return Format(FormatKind.PACKED, bits, size, zeros=zeros, index=index, problem="" if right else problem)


def _fp8(weights: Fields, activations: Fields | None, strategy: Any, problem: str) -> Format:
    if strategy == "block" and activations is not None:
        block = weights.values.get("block_structure")
        if isinstance(block, str):
            block = [int(edge) if edge.isdecimal() and len(edge) < 10 else edge for edge in block.split("x")]
        if not isinstance(block, list) or len(block) != 2 or block[0] != block[1]:
            raise weights.refuse("block_structure", "a list of two equal whole numbers, for example [128, 128]")
        edge = Fields({"block_structure[0]": block[0]}, weights.prefix).whole("block_structure[0]", MAX_WIDTH)
        return Format(FormatKind.FP8, block=edge)
    right = strategy in ("tensor", "channel")
    if activations is not None and not activations.optional_flag("dynamic"):
        right = right and activations.values.get("strategy") == "tensor"
    return Format(FormatKind.FP8, channel=strategy == "channel", problem="" if right else problem)


def _int8(activations: Fields | None, bits: int, strategy: Any, problem: str) -> Format:
    right = activations is not None and bits == 8 == activations.values.get("num_bits")
    if right and activations is not None:
        wanted = "token" if activations.optional_flag("dynamic") else "tensor"
        right = strategy in ("tensor", "channel") and activations.values.get("strategy") == wanted
    return Format(FormatKind.INT8, channel=strategy == "channel", problem="" if right else problem)
