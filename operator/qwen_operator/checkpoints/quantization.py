"""How a checkpoint's weights are stored, from the `quantization_config` of its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qwen_operator.checkpoints.facts import MAX_WIDTH, Module, Quantization
from qwen_operator.checkpoints.reading import Fields

METHODS = ("gptq", "awq", "fp8")
# One layer of each kind by the end of its name: the one that stands for its kind when names are left out.
SAMPLES = {
    Module.ATTENTION: "self_attn.o_proj",
    Module.LINEAR_ATTENTION: "linear_attn.out_proj",
    Module.MLP: "mlp.down_proj",
    Module.EXPERTS: "mlp.experts.0.down_proj",
    Module.SHARED_EXPERT: "mlp.shared_expert.down_proj",
}
_BITS = {"awq": (4,), "gptq": (4, 8)}


def read(top: Fields, text: Fields) -> Quantization | None:
    """None for plain weights; InvalidFactsError for a method or a width that SGLang does not serve."""
    owner = top if top.has("quantization_config") or not text.has("quantization_config") else text
    if owner.values.get("quantization_config") in (None, {}):
        return None
    fields = owner.nested("quantization_config")
    method = fields.one_of("quant_method", METHODS)
    plain = _plain(fields)
    if method == "fp8":
        return Quantization("fp8", 8, None, block=_block(fields), plain=plain)
    bits = fields.whole("bits", 16)
    if bits not in _BITS[method]:
        raise fields.refuse("bits", " or ".join(map(str, _BITS[method])) + f" with quant_method {method}")
    # -1 is how GPTQ writes "one scale per column".
    group = None if fields.values.get("group_size") == -1 else fields.whole("group_size", MAX_WIDTH)
    if method == "awq":
        zero_point = fields.optional_flag("zero_point")
        return Quantization(method, bits, group, symmetric=None if zero_point is None else not zero_point, plain=plain)
    symmetric, desc_act = fields.optional_flag("sym"), fields.optional_flag("desc_act")
    return Quantization(method, bits, group, symmetric=symmetric, desc_act=desc_act, plain=plain)


def _block(fields: Fields) -> int | None:
    """The edge of FP8's blocks; None where scales are per channel or per tensor."""
    if not fields.has("weight_block_size"):
        return None
    block = fields.values["weight_block_size"]
    if not isinstance(block, list) or len(block) != 2 or block[0] != block[1]:
        raise fields.refuse("weight_block_size", "a list of two equal whole numbers, for example [128, 128]")
    return Fields({"weight_block_size[0]": block[0]}, fields.prefix).whole("weight_block_size[0]", MAX_WIDTH)


def _plain(fields: Fields) -> tuple[Module, ...]:
    """Kinds of layers that were left at 16 bits; a kind counts as such if any of its layers was."""
    names = list(_left_out(fields))
    return tuple(sorted(module for module, sample in SAMPLES.items() if any(name in sample for name in names)))


def _left_out(fields: Fields) -> Iterator[str]:
    """Names from the lists of AWQ and FP8 and from GPTQModel's negative rules, without the layer's number.

    The rules are regular expressions; foreign ones are not run, their plain words are compared instead.
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
