"""Facts of a LoRA adapter, from its adapter_config.json and the shapes of its tensors. Pure.

An adapter of rank r adds, to a projection with `width` inputs and `height` outputs, the product of lora_B [height, r]
and lora_A [r, width]. SGLang serves adapters of the projections in MODULES. It ignores what is refused here, and would
answer wrongly without a word, or ends while it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_runtime.checkpoints.model import MAX_BYTES, MAX_LAYERS, MAX_WIDTH
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError, shown

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 1024
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TENSOR = re.compile(
    r"base_model\.model\.(?:[A-Za-z_]+\.)*layers\.(\d{1,5})\.(self_attn|mlp)\.([a-z_]+)\.lora_(A|B)\.weight", re.ASCII
)
_ATTENTION = frozenset(MODULES[:4])
# By the place in `Dimensions` of a projection's inputs and outputs.
_SIDES = {
    "q_proj": (0, 1),
    "k_proj": (0, 2),
    "v_proj": (0, 2),
    "o_proj": (1, 0),
    "gate_proj": (0, 3),
    "up_proj": (0, 3),
    "down_proj": (3, 0),
}
_SHOWN = 3
_EVERY_LINEAR = ("all-linear", "all")
# Of PEFT 0.21. SGLang 0.5.23 reads none of them.
_IGNORED = (
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter needs of its base. `modules` are in the order of MODULES, and `layers` is one more than the
    highest layer.

    `hidden`, `query`, `key_value` and `intermediate` are the widths of the base that its tensors have; 0 for those
    that no tensor has.
    """

    rank: int
    modules: tuple[str, ...]
    layers: int
    hidden: int
    query: int
    key_value: int
    intermediate: int
    weight_bytes: int

    def to_record(self) -> list[int]:
        """A short list of numbers, because an inspection reports all adapters in one message."""
        mask = sum(1 << index for index, name in enumerate(MODULES) if name in self.modules)
        widths = (self.hidden, self.query, self.key_value, self.intermediate)
        return [self.rank, mask, self.layers, *widths, self.weight_bytes]

    @classmethod
    def from_record(cls, record: object) -> AdapterFacts:
        """The inverse of `to_record`. Raises InvalidFactsError."""
        limits = (MAX_RANK, (1 << len(MODULES)) - 1, MAX_LAYERS, MAX_WIDTH, MAX_WIDTH, MAX_WIDTH, MAX_WIDTH, MAX_BYTES)
        numbers = list(record) if isinstance(record, (list, tuple)) else []
        if len(numbers) != len(limits):
            raise InvalidFactsError(f"the record of an adapter is {shown(record)}, it must have {len(limits)} numbers")
        read = [
            Fields({"number": number}, "adapter.").whole("number", limit, low=1 if index < 3 else 0)
            for index, (number, limit) in enumerate(zip(numbers, limits, strict=True))
        ]
        modules = tuple(name for index, name in enumerate(MODULES) if read[1] >> index & 1)
        return cls(read[0], modules, *read[2:])


def read_adapter(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], weight_bytes: int) -> AdapterFacts:
    """The facts, from the content of the config and the tensors' shapes. Raises InvalidFactsError, which names a field.

    `weight_bytes` is the size of all tensors.
    """
    rank = _rank(config)
    targets = _targets(config)
    widths, layers, found = [0, 0, 0, 0], 0, set()
    for name in sorted(shapes):
        layer, module, side = _parts(name)
        layers = max(layers, layer + 1)
        found.add(module)
        width = _width(name, shapes[name], rank, side)
        place = _SIDES[module][0 if side == "A" else 1]
        if widths[place] not in (0, width):
            raise InvalidFactsError(
                f"{ADAPTER_WEIGHTS}: tensor {name} is for a width of {width}, other tensors are for {widths[place]}"
            )
        widths[place] = width
    if not found:
        raise InvalidFactsError(f"{ADAPTER_WEIGHTS} has no tensors")
    modules = tuple(name for name in MODULES if name in found | targets)
    return AdapterFacts(rank, modules, layers, widths[0], widths[1], widths[2], widths[3], weight_bytes)


def _rank(config: Mapping[str, Any]) -> int:
    fields = Fields(config, f"{ADAPTER_CONFIG}: ")
    fields.one_of("peft_type", ("LORA",))
    for name in ("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias"):
        if config.get(name):
            raise fields.refuse(name, "false, because SGLang does not support it: merge the adapter into its base")
    if config.get("bias", "none") != "none":
        raise fields.refuse("bias", "none, because SGLang does not load biases of an adapter")
    for name in _IGNORED:
        if config.get(name):
            raise fields.refuse(name, "empty, because SGLang ignores it: merge the adapter into its base")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise fields.refuse("lora_alpha", "a number, by which SGLang scales the adapter")
    return fields.whole("r", MAX_RANK)


def _targets(config: Mapping[str, Any]) -> set[str]:
    """The projections that the config names. SGLang must allow all of them, also those without tensors."""
    fields = Fields(config, f"{ADAPTER_CONFIG}: ")
    names = config.get("target_modules")
    right = f"a list out of {', '.join(MODULES)}"
    if names in _EVERY_LINEAR:
        # The operator lists the modules of the tensors to SGLang, which then accepts PEFT's words for all of them.
        return set()
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise fields.refuse("target_modules", right)
    targets = {name.rpartition(".")[2] for name in names}
    if others := sorted(targets - set(MODULES)):
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        listed = ", ".join(shown(name) for name in others[:_SHOWN])
        raise InvalidFactsError(f"{ADAPTER_CONFIG}: target_modules has {listed}{more}, it must be {right}")
    return targets


def _parts(name: str) -> tuple[int, str, str]:
    match = _TENSOR.fullmatch(name)
    module = match[3] if match else ""
    if match is None or module not in MODULES or (module in _ATTENTION) != (match[2] == "self_attn"):
        raise InvalidFactsError(
            f"{ADAPTER_WEIGHTS}: tensor {shown(name)} is for no projection that SGLang adapts, which are "
            f"{', '.join(MODULES)} of the layers of the language model, and not those of experts"
        )
    layer = int(match[1])
    if layer >= MAX_LAYERS:
        raise InvalidFactsError(f"{ADAPTER_WEIGHTS}: tensor {name} is for a layer beyond {MAX_LAYERS}")
    return layer, module, match[4]


def _width(name: str, shape: Sequence[int], rank: int, side: str) -> int:
    """The side of a tensor that is the base's. The other one is the rank."""
    if len(shape) != 2 or not all(0 < number <= MAX_WIDTH for number in shape):
        raise InvalidFactsError(
            f"{ADAPTER_WEIGHTS}: tensor {name} has the shape {_written(shape)}, it must have two sides"
        )
    found, width = (shape[0], shape[1]) if side == "A" else (shape[1], shape[0])
    if found != rank:
        raise InvalidFactsError(
            f"{ADAPTER_CONFIG}: r is {rank}, but tensor {name} of {ADAPTER_WEIGHTS} has rank {found}: the two files "
            "are of different adapters"
        )
    return width


def _written(shape: Iterable[int]) -> str:
    return "x".join(str(number) for number in shape) or "none"
