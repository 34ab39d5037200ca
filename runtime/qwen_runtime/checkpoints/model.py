"""A language model as its config.json describes it (shapes, storage format, context), and the limits of its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")

# A number above these is broken or hostile, not a model.
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
MAX_HEADS = 1 << 14
MAX_HIDDEN = 1 << 20
MAX_VOCAB = 10_000_000
MAX_POSITIONS = 1 << 28
MAX_BYTES = 1 << 46
MAX_EXPERTS = 1 << 16
MAX_BITS = 16
MAX_FACTOR = 4096.0

_REPORT_NAMES = {"tied": "tieWordEmbeddings", "digest": "configSha256"}


class Module(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """Kinds of linear layers that a quantization may leave out. The values are their names in checkpoints."""

    ATTENTION = "self_attn"
    LINEAR_ATTENTION = "linear_attn"
    MLP = "mlp"
    EXPERTS = "mlp.experts"
    SHARED_EXPERT = "mlp.shared_expert"


SAMPLES = {
    Module.ATTENTION: "self_attn.o_proj",
    Module.LINEAR_ATTENTION: "linear_attn.out_proj",
    Module.MLP: "mlp.down_proj",
    Module.EXPERTS: "mlp.experts.0.down_proj",
    Module.SHARED_EXPERT: "mlp.shared_expert.down_proj",
}
"""One layer of each kind, by the end of its name. If a quantization leaves this layer out, it leaves the kind out."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the linear layers are stored.

    `group_size` is None if scales are not per group. `block` is the edge of FP8's square blocks, or None if a scale
    covers a channel or the whole tensor. `symmetric` and `desc_act` are None if the files do not have them. `plain` are
    the kinds of layers that stay at 16 bits.
    """

    method: str
    bits: int
    group_size: int | None
    symmetric: bool | None = None
    desc_act: bool | None = None
    block: int | None = None
    plain: tuple[Module, ...] = ()


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """The layers of a hybrid that have a state of fixed size per request instead of a KV cache (gated delta net).

    `conv_kernel` is the width of the causal convolution, and `state_value_bytes` is the size of one value of the state.
    """

    layers: int
    value_heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    state_value_bytes: int = 4


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """The scaling in config.json that extends the context beyond the trained positions. `type` is for example yarn."""

    type: str
    factor: float
    original_max_positions: int | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of a config.json. `architecture` may be an unknown class.

    `intermediate` is the width of the plain MLP. `dense_layers` layers use it: all of a dense model, usually none of a
    model with experts. `experts` is the number of routed experts or None, `expert_intermediate` the width of one, and
    `shared_intermediate` the width of the shared expert. `attention_layers` have a KV cache; `linear` are the others.
    """

    architecture: str
    model_type: str
    dtype: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    tied: bool
    quantization: Quantization | None
    experts: int | None
    attention_layers: int
    dense_layers: int
    expert_intermediate: int | None
    shared_intermediate: int | None
    linear: LinearAttention | None
    rope: RopeScaling | None
    multimodal: bool

    def to_report(self) -> dict[str, Any]:
        """The members of an inspection report that come from config.json, as JSON values."""
        report = report_names(asdict(self))
        if self.quantization is not None:
            report["quantization"]["plain"] = [module.value for module in self.quantization.plain]
        return report


def report_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the field names of a report, on every level: `kv_heads` becomes `kvHeads`."""
    return {
        _REPORT_NAMES.get(key, re.sub(r"_(\w)", lambda match: match[1].upper(), key)): (
            report_names(value) if isinstance(value, Mapping) else value
        )
        for key, value in record.items()
    }
