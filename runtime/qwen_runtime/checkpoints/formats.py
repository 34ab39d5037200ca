"""How the matrix of one linear layer is stored: its bytes, and what each rank's share of it must be a multiple of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from qwen_runtime.checkpoints.model import Linear, Module, Quantization, Steps

# Row-parallel layers and the Marlin kernels of packed weights need inputs in steps of 128, whatever the group size is.
_KERNEL_STEP = 128
# Their outputs come in steps of 64.
_OUTPUT_STEP = 64
# Scaled products of 8-bit matrices without blocks need dimensions in steps of 16.
_SCALED_STEP = 16
_FP4_GROUP = 16


class FormatKind(Enum):
    """Families of formats with the same layout."""

    PACKED = "packed"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"


@dataclass(frozen=True, slots=True)
class Format:
    """The format of a matrix of `inputs` x `outputs`; None stands for 16 bits per value.

    `group_size` inputs share a scale (None: a column does), or a `block` x `block` square does (None: the matrix does,
    or each output with `channel`). `zeros` and `index`: packed weights with zero points, and with the group of each
    input. `problem` says in a clause why SGLang does not load it, "" if it does.
    """

    kind: FormatKind
    bits: int = 8
    group_size: int | None = None
    block: int | None = None
    channel: bool = False
    zeros: bool = False
    index: bool = False
    problem: str = ""

    def matrix_bytes(self, inputs: int, outputs: int) -> int:
        """Bytes of one matrix.

        Packed: values, per group of inputs and output a 16-bit scale and a packed zero point, and the group index of
        each input (4 bytes). FP8 and INT8: one byte a value, a 32-bit scale per block, output or matrix. FP4: half a
        byte a value, one byte per 16 inputs, one 32-bit scale.
        """
        if self.kind is FormatKind.PACKED:
            groups = -(-inputs // self.group_size) if self.group_size else 1
            packed = (inputs + (groups if self.zeros else 0)) * outputs * self.bits // 8
            return packed + groups * outputs * 2 + (4 * inputs if self.index else 0)
        if self.kind is FormatKind.FP4:
            return inputs * outputs // 2 + -(-inputs // _FP4_GROUP) * outputs + 4
        scales = outputs if self.channel else 1
        if self.block is not None:
            scales = -(-inputs // self.block) * -(-outputs // self.block)
        return inputs * outputs + 4 * scales

    @property
    def _packed(self) -> bool:
        return self.kind in (FormatKind.PACKED, FormatKind.FP4)

    @property
    def input_step(self) -> int:
        """What a rank's share of the inputs must be a multiple of."""
        return math.lcm(_KERNEL_STEP, self.group_size or 1) if self._packed else self.block or _SCALED_STEP

    @property
    def output_step(self) -> int:
        """What a rank's share of the outputs must be a multiple of. Packed layers are checked after they are merged."""
        return 1 if self._packed else self.block or _SCALED_STEP

    @property
    def merged_step(self) -> int:
        """What the outputs of a merged layer on one rank must be a multiple of."""
        return _OUTPUT_STEP if self._packed else 1


Stored = Mapping[Linear, Mapping[Format | None, int]]
"""How many matrices of each linear layer are stored in each format."""


def base(quantization: Quantization) -> Format:
    """The format that a method's own fields describe, without exceptions."""
    if quantization.method == "fp8":
        return Format(FormatKind.FP8, block=quantization.block)
    gptq = quantization.method == "gptq"
    return Format(FormatKind.PACKED, quantization.bits, quantization.group_size, zeros=True, index=gptq)


def steps_of(stored: Stored) -> Steps:
    """The rules of a split that hold for every layer."""
    step = dict.fromkeys(Steps.__slots__, 1)
    pairs = ((linear, one) for linear, formats in stored.items() for one in formats if one is not None)
    for linear, one in pairs:
        for name, value in _required(linear, one):
            step[name] = math.lcm(step[name], value)
    return Steps(**step)


def _required(linear: Linear, one: Format) -> tuple[tuple[str, int], ...]:
    """What one layer in this format adds to which rule."""
    if linear.module is Module.ATTENTION:
        if linear is Linear.O:
            return (("attention", one.input_step),)
        width = "attention" if linear is Linear.Q else "kv"
        return ((width, one.output_step), ("qkv", one.merged_step))
    if linear.module is Module.LINEAR_ATTENTION:
        if linear is Linear.LINEAR_OUT:
            return (("linear", one.input_step),)
        return (("linear", one.output_step), ("linear_key", one.output_step))
    name = linear.module.value.removeprefix("mlp.")
    if linear.value.endswith("down_proj"):
        return ((name, one.input_step),)
    # Gate and up are merged, so each has half of the outputs.
    return ((name, math.lcm(one.output_step, one.merged_step // 2 or 1)),)


def uniform_steps(quantization: Quantization, linears: Iterable[Linear] = Linear) -> Steps:
    """The rules of a split if all these layers are stored as the method says, but for the kinds in `plain`."""
    one = base(quantization)
    return steps_of({linear: {one: 1} for linear in linears if linear.module not in quantization.plain})


def plain_kinds(stored: Stored) -> tuple[Module, ...]:
    """The kinds of layers of which every one has 16 bits per value."""
    kinds: dict[Module, bool] = {}
    for linear, formats in stored.items():
        if formats:
            kinds[linear.module] = kinds.get(linear.module, True) and set(formats) == {None}
    return tuple(sorted(kind for kind, plain in kinds.items() if plain))
