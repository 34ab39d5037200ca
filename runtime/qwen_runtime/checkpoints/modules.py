"""The linear layers of a model by name: as checkpoints write them, and as SGLang merges them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwen_runtime.checkpoints.model import Linear

Held = Mapping[tuple[int, str], bool]
"""Linear layers that files hold, by layer number and name within the layer: whether they have 16 bits or more."""

_NAME = re.compile(r"(?:^|\.)layers\.(\d{1,4})\.((?:self_attn|linear_attn|mlp)\..+)")
_EXPERT = re.compile(r"^mlp\.experts\.\d+\.")
_INPUTS = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z")
# Classes with one tensor for the experts of a layer.
_STACKED = {
    "mlp.experts.gate_up_proj": (Linear.EXPERT_GATE, Linear.EXPERT_UP),
    "mlp.experts.down_proj": (Linear.EXPERT_DOWN,),
}


@dataclass(frozen=True, slots=True)
class Unit:
    """What SGLang loads as one layer under the name `merged`: the linear layers and their names in checkpoints."""

    merged: str
    parts: tuple[tuple[Linear, str], ...]

    @property
    def experts(self) -> bool:
        """Whether these are the routed experts of a layer."""
        return self.merged == "mlp.experts"


def _unit(merged: str, *parts: Linear) -> Unit:
    return Unit(merged, tuple((part, part.value) for part in parts))


_ATTENTION = (_unit("self_attn.qkv_proj", Linear.Q, Linear.K, Linear.V), _unit("self_attn.o_proj", Linear.O))
_LINEAR_OUT = _unit("linear_attn.out_proj", Linear.LINEAR_OUT)
_MLP = (_unit("mlp.gate_up_proj", Linear.GATE, Linear.UP), _unit("mlp.down_proj", Linear.DOWN))
_SHARED = (
    _unit("mlp.shared_expert.gate_up_proj", Linear.SHARED_GATE, Linear.SHARED_UP),
    _unit("mlp.shared_expert.down_proj", Linear.SHARED_DOWN),
)


@dataclass(frozen=True, slots=True)
class Modules:
    """Which layers of a model have what.

    `attention` and `dense` are numbers of layers; the others have linear attention and experts. `split_input`: the
    input projection of linear attention is stored in two parts. `nested`: the language model is a part of a larger
    one, so that names have a prefix more.
    """

    layers: int
    attention: frozenset[int]
    dense: frozenset[int]
    experts: int
    shared: bool
    split_input: bool
    nested: bool

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What stands before the number of a layer, in every spelling that checkpoints use."""
        nested = ("model.language_model.layers.", "language_model.model.layers.") if self.nested else ()
        return ("model.layers.", *nested)

    def shape(self, layer: int) -> tuple[bool, bool]:
        """What decides the units of a layer."""
        return layer in self.attention, layer in self.dense

    def units(self, shape: tuple[bool, bool]) -> tuple[Unit, ...]:
        """The layers that SGLang loads in a decoder layer of this shape."""
        attention, dense = shape
        first = _ATTENTION if attention else (self._linear_input(), _LINEAR_OUT)
        if dense:
            return (*first, *_MLP)
        return (*first, self._experts(), *(_SHARED if self.shared else ()))

    def names(self) -> tuple[str, ...]:
        """Every name within a layer that a rule may match: of checkpoints and of SGLang."""
        shapes = {self.shape(layer) for layer in range(self.layers)}
        units = [unit for shape in sorted(shapes) for unit in self.units(shape)]
        return tuple(dict.fromkeys(name for unit in units for name in (unit.merged, *(part for _, part in unit.parts))))

    def _linear_input(self) -> Unit:
        names = _INPUTS if self.split_input else (Linear.LINEAR_IN.value,)
        return Unit(Linear.LINEAR_IN.value, tuple((Linear.LINEAR_IN, name) for name in names))

    def _experts(self) -> Unit:
        three = (Linear.EXPERT_GATE, Linear.EXPERT_UP, Linear.EXPERT_DOWN)
        parts = (
            (linear, linear.value.replace("experts", f"experts.{expert}"))
            for expert in range(self.experts)
            for linear in three
        )
        return Unit("mlp.experts", tuple(parts))


def held(names: Iterable[tuple[str, bool]]) -> Held:
    """The linear layers among tensors, given by their module's name and whether they have 16 bits or more."""
    return {(int(match[1]), match[2]): plain for name, plain in names if (match := _NAME.search(name))}


def linears(name: str) -> Iterator[Linear]:
    """Which linear layers a name within a layer stands for; none for a norm, a router and alike."""
    if name in _STACKED:
        yield from _STACKED[name]
    elif name in _INPUTS:
        yield Linear.LINEAR_IN
    else:
        single = _EXPERT.sub("mlp.experts.", name)
        yield from (linear for linear in Linear if linear.value == single)
