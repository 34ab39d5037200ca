"""Every tensor of a Qwen model from its numbers: exact parameter counts, bytes by format, and how each is split.

The layouts are those of the Hugging Face classes Qwen2, Qwen2Moe, Qwen2-VL, Qwen2.5-VL, Qwen3, Qwen3Moe, Qwen3-VL,
Qwen3-Next and Qwen3.5. A layer for multi-token prediction does not count, because an engine loads it only for
speculative decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from qwen_runtime.checkpoints.formats import Format, Stored
from qwen_runtime.checkpoints.model import Linear, LinearAttention, ModelConfig, Tower


class Part(Enum):
    """How a tensor is placed on several ranks."""

    DIVIDED = "divided"
    KV = "kv"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True)
class Tensors:
    """`count` equal tensors of `inputs` x `outputs`; those of a `linear` layer may be stored in quantized formats."""

    inputs: int
    outputs: int
    count: int
    part: Part = Part.DIVIDED
    linear: Linear | None = None

    @property
    def parameters(self) -> int:
        """Values in all of them."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors that depend on the model class: biases, norms of Q and K, and a gate as wide as Q on the output.

    `headless` classes have no output matrix over the vocabulary. Of `score_layers` matrices that make a score of the
    last hidden state, the last one has one output.
    """

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    headless: bool = False
    score_layers: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Totals of a model: the number of values, and the bytes by their placement on several ranks."""

    parameters: int
    bytes: int
    replicated_bytes: int
    kv_bytes: int


def weigh(tensors: Iterable[Tensors], stored: Stored | None) -> Weights:
    """Add up; what is not quantized has 16 bits per value, as engines load it."""
    parameters = 0
    size = dict.fromkeys(Part, 0)
    for group in tensors:
        parameters += group.parameters
        for one, count in _formats(group, stored):
            plain = 2 * group.inputs * group.outputs
            size[group.part] += count * (plain if one is None else one.matrix_bytes(group.inputs, group.outputs))
    return Weights(parameters, sum(size.values()), size[Part.REPLICATED], size[Part.KV])


def _formats(group: Tensors, stored: Stored | None) -> Iterator[tuple[Format | None, int]]:
    """How the matrices of a group are stored: each format with its number of matrices; None is 16 bits per value.

    `stored` may count in another unit (a projection in two parts counts twice), so its counts are shares.
    """
    formats = stored.get(group.linear) if stored and group.linear else None
    if not formats:
        yield None, group.count
        return
    total, left = sum(formats.values()), group.count
    for one, count in formats.items():
        if one is not None:
            share = group.count * count // total
            left -= share
            yield one, share
    yield None, left


def language_model(model: ModelConfig, layout: Layout) -> Iterator[Tensors]:
    """The tensors of the language model."""
    yield Tensors(model.vocab, model.hidden, 1 if model.tied else 2)
    yield Tensors(1, model.hidden, 2 * model.layers + 1, Part.REPLICATED)
    if layout.score_layers:
        # The engine does not divide these.
        yield Tensors(model.hidden + 1, model.hidden, layout.score_layers - 1, Part.REPLICATED)
        yield Tensors(model.hidden + 1, 1, 1, Part.REPLICATED)
    yield from _attention(model, layout)
    if model.linear is not None:
        yield from _linear_attention(model.hidden, model.linear)
    yield from _mlp(model.hidden, model.intermediate, model.dense_layers, _MLP)
    sparse = model.layers - model.dense_layers
    if model.experts is not None and model.expert_intermediate is not None:
        yield Tensors(model.hidden, model.experts, sparse, Part.REPLICATED)
        yield from _mlp(model.hidden, model.expert_intermediate, sparse * model.experts, _EXPERTS)
    if model.shared_intermediate is not None:
        yield Tensors(model.hidden, 1, sparse, Part.REPLICATED)
        yield from _mlp(model.hidden, model.shared_intermediate, sparse, _SHARED)


def _attention(model: ModelConfig, layout: Layout) -> Iterator[Tensors]:
    layers, hidden = model.attention_layers, model.hidden
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    gated = q * (2 if layout.output_gate else 1)
    yield Tensors(hidden, gated, layers, linear=Linear.Q)
    yield Tensors(hidden, kv, layers, Part.KV, linear=Linear.K)
    yield Tensors(hidden, kv, layers, Part.KV, linear=Linear.V)
    yield Tensors(q, hidden, layers, linear=Linear.O)
    if layout.qkv_bias:
        yield Tensors(1, gated, layers)
        yield Tensors(1, kv, 2 * layers, Part.KV)
    if layout.output_bias:
        yield Tensors(1, hidden, layers, Part.REPLICATED)
    if layout.qk_norm:
        yield Tensors(1, model.head_dim, 2 * layers, Part.REPLICATED)


def _linear_attention(hidden: int, linear: LinearAttention) -> Iterator[Tensors]:
    """Gated delta net: projections of Q, K, V and the gate Z, of beta and decay, a convolution, a norm, the output."""
    key, value = linear.key_heads * linear.key_dim, linear.value_heads * linear.value_dim
    yield Tensors(hidden, 2 * key + 2 * value, linear.layers, linear=Linear.LINEAR_IN)
    yield Tensors(hidden, 2 * linear.value_heads, linear.layers)
    yield Tensors(linear.conv_kernel, 2 * key + value, linear.layers)
    yield Tensors(1, 2 * linear.value_heads, linear.layers)
    yield Tensors(1, linear.value_dim, linear.layers, Part.REPLICATED)
    yield Tensors(value, hidden, linear.layers, linear=Linear.LINEAR_OUT)


_MLP = (Linear.GATE, Linear.UP, Linear.DOWN)
_EXPERTS = (Linear.EXPERT_GATE, Linear.EXPERT_UP, Linear.EXPERT_DOWN)
_SHARED = (Linear.SHARED_GATE, Linear.SHARED_UP, Linear.SHARED_DOWN)


def _mlp(hidden: int, intermediate: int, count: int, linears: tuple[Linear, Linear, Linear]) -> Iterator[Tensors]:
    gate, up, down = linears
    yield Tensors(hidden, intermediate, count, linear=gate)
    yield Tensors(hidden, intermediate, count, linear=up)
    yield Tensors(intermediate, hidden, count, linear=down)


@dataclass(frozen=True, slots=True)
class Vision:
    """The numbers of a vision tower, which counts as not quantized.

    `out` is the language model's width, `patch` is the number of values of one patch (channels x frames x edge
    squared), `merged` is how many patches become one token, and `deepstack` is how many layers feed the language model
    directly. `gated` towers (Qwen2.5-VL) have RMS norms and a gate in the MLP. `positions` is None if there are only
    rotary ones.
    """

    depth: int
    width: int
    intermediate: int
    out: int
    patch: int
    merged: int
    gated: bool = False
    positions: int | None = None
    deepstack: int = 0
    heads: int = 16

    @property
    def split(self) -> Tower:
        """What tensor parallelism divides in it."""
        return Tower(self.heads, self.intermediate, self.width * self.merged)


def vision_tower(vision: Vision) -> Iterator[Tensors]:
    """The tensors of the tower. Norms, patches and positions are on every rank."""
    width, depth = vision.width, vision.depth
    norm = 1 if vision.gated else 2
    yield Tensors(vision.patch, width, 1, Part.REPLICATED)
    yield Tensors(norm, width, 2 * depth, Part.REPLICATED)
    yield Tensors(width + 1, 3 * width, depth)
    yield Tensors(width + 1, width, depth)
    yield Tensors(width + 1, vision.intermediate, (2 if vision.gated else 1) * depth)
    yield Tensors(vision.intermediate + 1, width, depth)
    if vision.positions is not None:
        yield Tensors(1, width, 1, Part.REPLICATED)
        yield Tensors(vision.positions, width, 1, Part.REPLICATED)
    merged = width * vision.merged
    yield Tensors(norm, width, 1, Part.REPLICATED)
    yield Tensors(norm, merged, vision.deepstack, Part.REPLICATED)
    yield Tensors(merged + 1, merged, 1 + vision.deepstack)
    yield Tensors(merged + 1, vision.out, 1 + vision.deepstack)
