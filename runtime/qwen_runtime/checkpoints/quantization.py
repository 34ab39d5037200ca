"""How a checkpoint's weights are stored, from the `quantization_config` of its config.json.

A method's own fields describe most layers. Its lists and rules say which ones differ. The engine's reading counts:
SGLang loads Q, K and V as one layer, gate and up as one, and the experts of a layer as one, so their parts have to be
stored alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwen_runtime.checkpoints import compressed, methods
from qwen_runtime.checkpoints.exclusions import MOST_RULES, Exceptions, Hits, Match, names_in
from qwen_runtime.checkpoints.formats import Format, FormatKind, Stored, base, plain_kinds, steps_of, uniform_steps
from qwen_runtime.checkpoints.model import MAX_BITS, MAX_WIDTH, Linear, Quantization
from qwen_runtime.checkpoints.modules import Held, Modules, Unit, linears
from qwen_runtime.checkpoints.reading import Fields

_PACKED_BITS = (4, 8)
_IMPLIED_BITS = {
    "fp8": 8, "fbgemm_fp8": 8, "ptpc_fp8": 8, "mxfp8": 8, "w8a8_fp8": 8, "w8a8_int8": 8, "modelopt_fp8": 8,
    "mxfp4": 4, "modelopt_fp4": 4, "nvfp4": 4,
}  # fmt: skip
_MODELOPT_BITS = {"FP8": 8, "NVFP4": 4}


@dataclass(frozen=True, slots=True)
class Decided:
    """The facts, and the formats behind them; `stored` is None where bytes are not worked out."""

    quantization: Quantization | None
    stored: Stored | None


def decide(top: Fields, text: Fields, modules: Modules, held: Held | None = None) -> Decided:
    """No quantization for plain weights, else the format, whatever its method; raises InvalidFactsError.

    `held` is what files hold. It decides which layers have 16 bits; without it, config.json does.
    """
    fields = methods.section(top, text)
    if fields is None:
        return Decided(None, None)
    method = methods.named(fields)
    bits, group = _width(fields, method)
    quantization = Quantization(
        method=method,
        bits=bits,
        group_size=group,
        symmetric=_symmetric(fields, method),
        desc_act=None if method in ("awq", "fp8") else fields.optional_flag("desc_act"),
        block=_block(fields) if method == "fp8" else None,
    )
    if method not in methods.MEASURED:
        return Decided(quantization, None)
    rules = _rules(fields, quantization, modules)
    stored, refused = _from_files(held, rules, modules) if held else _from_config(rules, modules)
    plain, steps = plain_kinds(stored), steps_of(stored)
    blocks = {one.block for formats in stored.values() for one in formats if one and one.block}
    block = max(blocks, default=quantization.block)
    refused = methods.unloadable(fields, method) or refused
    quantization = replace(quantization, plain=plain, block=block, refused=refused)
    known = method != "compressed-tensors" and (not stored or steps == uniform_steps(quantization, stored))
    return Decided(quantization if known else replace(quantization, steps=steps), stored)


def check_known(top: Fields, text: Fields) -> None:
    """Raises InvalidFactsError for a method or a width whose bytes cannot be computed from the shapes."""
    fields = methods.section(top, text)
    if fields is None:
        return
    methods.check_measured(fields)
    method = methods.named(fields)
    right = {"gptq": _PACKED_BITS, "awq": (4,)}.get(method)
    if right and fields.values.get("bits") not in right:
        raise fields.refuse("bits", f"{' or '.join(map(str, right))} with quant_method {method}")


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
    """The group of compressed-tensors that holds the linear layers in most published checkpoints."""
    groups = fields.nested("config_groups")
    if not groups.values:
        raise fields.refuse("config_groups", "an object with at least one group")
    return groups.nested(sorted(groups.values)[0])


def _bits(fields: Fields, method: str) -> int:
    algorithm = fields.values.get("quant_algo")
    if method == "modelopt" and isinstance(algorithm, str) and algorithm in _MODELOPT_BITS:
        return _MODELOPT_BITS[algorithm]
    if method in methods.MEASURED:
        return fields.whole("bits", MAX_BITS)
    # No plan is made of these, so a width that is nowhere stated decides nothing.
    return fields.optional("bits", MAX_BITS) or _IMPLIED_BITS.get(method, 8)


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


@dataclass(frozen=True, slots=True)
class _Rules:
    """What differs from `default`, in the order in which the engine looks; the first match counts.

    `merged`: the engine compares the names of merged layers, so these have to match as their parts do. `skips_experts`:
    the engine ignores the rules for experts. `by_target`: layers that no rule names fall back on their parts. `unread`
    has the fields that leave layers out and that the engine ignores.
    """

    method: str
    default: Format | None
    rules: tuple[tuple[Hits, Format | None], ...]
    merged: bool = False
    skips_experts: bool = False
    by_target: bool = False
    unread: tuple[str, ...] = ()

    def matches(self, layer: int) -> _Matches:
        """The rules that match anything in a layer, with what they match."""
        matching = ((hits(layer), one) for hits, one in self.rules)
        return tuple((names, one) for names, one in matching if names)


_Matches = tuple[tuple[frozenset[str], Format | None], ...]
_Alike = tuple[tuple[bool, bool], _Matches]


def _rules(fields: Fields, quantization: Quantization, modules: Modules) -> _Rules:
    method, exceptions = quantization.method, Exceptions(modules, fields.prefix)
    if method == "compressed-tensors":
        return _Rules(method, *compressed.rules(fields, exceptions), merged=True, by_target=True)
    one = base(quantization)
    match = Match.TEXT if method == "awq" else Match.PATH
    lists = {
        field: exceptions.listed(names_in(fields, field), match, field)
        for field in ("modules_to_not_convert", "ignored_layers")
        if fields.has(field)
    }
    if method == "gptq":
        return _gptq(fields, one, lists | _only_these(fields, modules), exceptions)
    return _Rules(method, one, tuple((hits, None) for hits in lists.values()), merged=method == "awq")


def _gptq(fields: Fields, one: Format, lists: Mapping[str, Hits], exceptions: Exceptions) -> _Rules:
    """SGLang reads `dynamic` only (layers/quantization/gptq/gptq.py:156), and not for experts (gptq.py:441)."""
    layers = range(exceptions.modules.layers)
    unread = tuple(field for field, hits in lists.items() if any(map(hits, layers)))
    named: list[tuple[Hits, Format | None]] = [(hits, None) for hits in lists.values()]
    rules = (*named, *_dynamic(fields, one, exceptions))
    return _Rules("gptq", one, rules, merged=True, skips_experts=True, unread=unread)


def _only_these(fields: Fields, modules: Modules) -> dict[str, Hits]:
    """The names that `modules_in_block_to_quantize` of GPTQ leaves out; it lists those that are quantized."""
    field = "modules_in_block_to_quantize"
    blocks = fields.values.get(field) or []
    if not isinstance(blocks, list):
        raise fields.refuse(field, "a list of lists of module names")
    names = [name for block in blocks for name in (block if isinstance(block, list) else [block])]
    if not all(isinstance(name, str) for name in names) or len(names) > MOST_RULES:
        raise fields.refuse(field, "a list of lists of module names")
    if not names:
        return {}
    kept = set(names)
    left = frozenset(name for shape in _shapes(modules) for unit in modules.units(shape) for _, name in unit.parts)
    left -= {name for name in left if name in kept or any(name.endswith(f".{one}") for one in kept)}
    return {field: lambda _: left}


def _dynamic(fields: Fields, one: Format, exceptions: Exceptions) -> tuple[tuple[Hits, Format | None], ...]:
    """GPTQModel's rules: `-:REGEX` leaves layers out, `+:REGEX` or `REGEX` changes fields of their format."""
    rules = fields.nested("dynamic") if fields.has("dynamic") else Fields({})
    if len(rules.values) > MOST_RULES:
        raise fields.refuse("dynamic", f"an object with at most {MOST_RULES} rules")
    exceptions_by_rule: list[tuple[Hits, Format | None]] = []
    for text, change in rules.values.items():
        if text.startswith("-:"):
            exceptions_by_rule.append((exceptions.rule(text[2:], "dynamic"), None))
        else:
            if not isinstance(change, Mapping):
                raise rules.refuse(text, "an object")
            exceptions_by_rule.append(
                (exceptions.rule(text.removeprefix("+:"), "dynamic"), _changed(one, Fields(change, rules.prefix)))
            )
    return tuple(exceptions_by_rule)


def _changed(one: Format, change: Fields) -> Format:
    bits = change.optional("bits", MAX_BITS) or one.bits
    group = one.group_size
    if change.has("group_size"):
        group = None if change.values["group_size"] == -1 else change.whole("group_size", MAX_WIDTH)
    problem = one.problem
    if bits not in _PACKED_BITS:
        problem = f"a rule of quantization_config.dynamic has {bits} bits; SGLang runs 4 and 8 bits"
    elif change.optional_flag("sym") is False:
        problem = (
            "a rule of quantization_config.dynamic is asymmetric (sym: false); SGLang removed that kernel in 0.5.21"
        )
    return replace(one, bits=bits, group_size=group, problem=problem)


def _shapes(modules: Modules) -> list[tuple[bool, bool]]:
    return sorted({modules.shape(layer) for layer in range(modules.layers)})


def _first(matches: _Matches, name: str, default: Format | None) -> Format | None:
    return next((one for names, one in matches if name in names), default)


def _from_config(rules: _Rules, modules: Modules) -> tuple[Stored, str]:
    """What is stored how, and why the engine cannot load it or "". Layers with the same matches are decided once."""
    layers: Counter[_Alike] = Counter()
    refusals: dict[_Alike, str] = {}
    refused = ""
    for layer in range(modules.layers):
        alike = (modules.shape(layer), rules.matches(layer))
        layers[alike] += 1
        if alike not in refusals:
            conflicts = (_conflict(rules, alike[1], unit) for unit in modules.units(alike[0]))
            refusals[alike] = next(filter(None, conflicts), "")
            refused = refused or (refusals[alike] and f"layer {layer}: {refusals[alike]}")
    stored: dict[Linear, Counter[Format | None]] = {}
    for (shape, matches), count in layers.items():
        for unit in modules.units(shape):
            for linear, name in unit.parts:
                stored.setdefault(linear, Counter())[_first(matches, name, rules.default)] += count
    if rules.unread:
        refused = f"SGLang ignores {' and '.join(rules.unread)} of quantization_config with GPTQ; it reads dynamic"
    return stored, refused or _unsupported(rules.method, stored)


def _conflict(rules: _Rules, matches: _Matches, unit: Unit) -> str:
    """Why the engine cannot load a unit as the files must hold it, or ""."""
    formats = {_first(matches, name, rules.default) for _, name in unit.parts}
    if len(formats) > 1:
        return _parts_differ(unit)
    stored = formats.pop()
    if unit.experts and rules.skips_experts:
        same = stored == rules.default
        return "" if same else "SGLang ignores the exceptions of quantization_config for experts with GPTQ"
    if not rules.merged or (rules.by_target and stored is None):
        return ""
    engine = _first(matches, unit.merged, rules.default)
    if engine == stored or (unit.experts and rules.by_target):
        return ""
    if rules.by_target and engine is not None and engine.problem:
        return ""
    return (
        f"SGLang compares the exceptions of quantization_config with its own name {unit.merged}, which they do not "
        "match as they match its parts"
    )


def _parts_differ(unit: Unit) -> str:
    if unit.experts:
        return "SGLang loads all experts of a layer as one, so all must be stored alike"
    names = " and ".join(name.rpartition(".")[2] for _, name in unit.parts)
    return f"SGLang loads {names} as one layer ({unit.merged}), so all must be stored alike"


def _unsupported(method: str, stored: Stored) -> str:
    """Why the engine has no kernel for one of the formats, or ""."""
    problems = sorted({one.problem for formats in stored.values() for one in formats if one and one.problem})
    if problems:
        return problems[0]
    experts = (Linear.EXPERT_GATE, Linear.EXPERT_UP, Linear.EXPERT_DOWN)
    if any(one and one.kind is FormatKind.INT8 for linear in experts for one in stored.get(linear, ())):
        return f"SGLang runs experts with 8-bit integers ({method} int-quantized) on NPUs only"
    return ""


def _from_files(held: Held, rules: _Rules, modules: Modules) -> tuple[Stored, str]:
    """As `_from_config`, with the dtype in the files deciding which layers have 16 bits."""
    stored: dict[Linear, Counter[Format | None]] = {}
    by_layer: dict[int, list[tuple[str, bool]]] = {}
    for (layer, name), plain in held.items():
        by_layer.setdefault(layer, []).append((name, plain))
    refused = ""
    for layer in sorted(by_layer):
        matches: _Matches = tuple((names, one) for names, one in rules.matches(layer) if one is not None)
        formats: dict[str, Format | None] = {}
        for name, plain in by_layer[layer]:
            one = None if plain else _first(matches, name, rules.default)
            formats[name] = one
            for linear in linears(name):
                stored.setdefault(linear, Counter())[one] += 1
        for unit in modules.units(modules.shape(layer)):
            if not refused and len({formats[name] for _, name in unit.parts if name in formats}) > 1:
                refused = f"layer {layer}: {_parts_differ(unit)}"
    return stored, refused or _unsupported(rules.method, stored)
