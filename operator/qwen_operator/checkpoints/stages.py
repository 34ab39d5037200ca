"""How the layers of a model are divided into pipeline stages, and what each stage holds.

From SGLang 0.5.23: distributed/utils.py:110 (`get_pp_indices`) gives each stage the same number of layers, and the last
stages one more where that leaves a rest. models/qwen2.py:369 and 535 put the embedding on the first stage and the
output head on the last one, as a table of its own also where the two are tied. models/qwen2_moe.py:1237 and
qwen3_moe.py:1018 put the output head on every stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_operator.checkpoints.facts import KV_BYTES_PER_VALUE, Checkpoint
from qwen_runtime.checkpoints.formats import uniform_steps

_TABLE_VALUE_BYTES = 2
_VOCAB_STEP = 64


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage: its number of layers, and how many tables of the vocabulary it has besides."""

    layers: int
    tables: int


def refusal(checkpoint: Checkpoint, count: int) -> str | None:
    """Why the layers cannot be divided into so many stages, or None. The sizes of stages must be known."""
    if count > checkpoint.layers:
        return f"the model has {checkpoint.layers} layers, so it has no {count} stages"
    if checkpoint.gguf:
        return "GGUF weights run on one GPU only"
    if checkpoint.linear is not None or checkpoint.multimodal:
        kind = "linear attention" if checkpoint.linear is not None else "images"
        return f"the operator cannot calculate the memory of one stage of a model with {kind}"
    quantization = checkpoint.quantization
    if quantization is not None and quantization.steps not in (None, uniform_steps(quantization)):
        return "its layers are quantized in different ways, and the operator does not know the size of each"
    if checkpoint.experts is not None and checkpoint.dense_layers:
        return "some of its layers have experts and others have none, and the operator does not know the size of each"
    return None


def divide(layers: int, count: int, *, head_on_all: bool = False) -> tuple[Stage, ...]:
    """The stages in order. `head_on_all`: each has the output head."""
    base, rest = divmod(layers, count)
    return tuple(
        Stage(base + (stage >= count - rest), int(stage == 0) + int(head_on_all or stage == count - 1))
        for stage in range(count)
    )


def weight_bytes_per_rank(checkpoint: Checkpoint, stage: Stage, tp: int) -> int:
    """Bytes of weights on the fullest of the `tp` ranks of a stage, with all layers of the model of equal size."""
    table = checkpoint.vocab * checkpoint.hidden * _TABLE_VALUE_BYTES
    copied = checkpoint.kv_weight_bytes * max(1, checkpoint.kv_heads // tp) // checkpoint.kv_heads
    whole = checkpoint.replicated_bytes + checkpoint.kv_weight_bytes + table * (1 if checkpoint.tied else 2)
    divided = _share(max(0, checkpoint.weight_bytes - whole), stage, checkpoint)
    rows = checkpoint.vocab + -checkpoint.vocab % math.lcm(_VOCAB_STEP, tp)
    tables = stage.tables * rows * checkpoint.hidden * _TABLE_VALUE_BYTES
    own = _share(checkpoint.replicated_bytes, stage, checkpoint) + _share(copied, stage, checkpoint)
    return own + -(-(divided + tables) // tp)


def fullest(checkpoint: Checkpoint, stages: Sequence[Stage], tp: int) -> Stage:
    """The stage with most bytes of weights on a rank."""
    return max(stages, key=lambda stage: weight_bytes_per_rank(checkpoint, stage, tp))


def kv_bytes_per_token(
    checkpoint: Checkpoint, stages: Sequence[Stage], tp: int, value_bytes: int = KV_BYTES_PER_VALUE
) -> int:
    """Bytes of KV cache per token on each rank of the stage with most layers."""
    most = max(stage.layers for stage in stages)
    return checkpoint.kv_bytes_per_token(tp, value_bytes) * most // checkpoint.layers


def _share(size: int, stage: Stage, checkpoint: Checkpoint) -> int:
    return -(-size * stage.layers // checkpoint.layers)
