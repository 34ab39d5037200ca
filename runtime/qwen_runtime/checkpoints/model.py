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


class Linear(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """The linear layers of one decoder layer that may be quantized; the values are their names in checkpoints.

    Names of experts lack the expert's number. The input projection of linear attention may be stored in two parts.
    """

    Q = "self_attn.q_proj"
    K = "self_attn.k_proj"
    V = "self_attn.v_proj"
    O = "self_attn.o_proj"  # noqa: E741 - the checkpoint's own name
    LINEAR_IN = "linear_attn.in_proj_qkvz"
    LINEAR_OUT = "linear_attn.out_proj"
    GATE = "mlp.gate_proj"
    UP = "mlp.up_proj"
    DOWN = "mlp.down_proj"
    EXPERT_GATE = "mlp.experts.gate_proj"
    EXPERT_UP = "mlp.experts.up_proj"
    EXPERT_DOWN = "mlp.experts.down_proj"
    SHARED_GATE = "mlp.shared_expert.gate_proj"
    SHARED_UP = "mlp.shared_expert.up_proj"
    SHARED_DOWN = "mlp.shared_expert.down_proj"

    @property
    def module(self) -> Module:
        """The kind of layers that it belongs to."""
        return Module(self.value.rpartition(".")[0])


@dataclass(frozen=True, slots=True)
class Steps:
    """What each rank's share of a width must be a multiple of; 1 where any share is right.

    `attention` and `linear` are for the widths of the attention outputs, `kv` for K and for V, `linear_key` for the
    keys of linear attention, `qkv` for the outputs of Q, K and V together, the others for the widths of the MLPs.
    """

    attention: int = 1
    kv: int = 1
    qkv: int = 1
    linear: int = 1
    linear_key: int = 1
    mlp: int = 1
    experts: int = 1
    shared_expert: int = 1


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the linear layers are stored.

    `group_size` is None where scales are not per group. `block` is the edge of FP8's square blocks, or None where a
    scale covers a channel or the whole tensor. `symmetric` and `desc_act` are None where the files do not say. `plain`
    are the kinds of layers that were left at 16 bits, every one of them.

    These describe most layers. `steps` is set where single layers are stored in another way, so that the rules of a
    split do not follow from the rest. `refused` says in a clause why SGLang cannot load the checkpoint, "" if it can.
    `types` are the types of a GGUF file's tensors with their bytes, the largest first.
    """

    method: str
    bits: int
    group_size: int | None
    symmetric: bool | None = None
    desc_act: bool | None = None
    block: int | None = None
    plain: tuple[Module, ...] = ()
    steps: Steps | None = None
    refused: str = ""
    types: tuple[tuple[str, int], ...] = ()

    def to_record(self) -> dict[str, Any]:
        """JSON values by the names of the fields. What is not set is left out, as in records before it existed."""
        lists = {"plain": [module.value for module in self.plain], "types": [list(one) for one in self.types]}
        record = asdict(self) | lists
        return {key: value for key, value in record.items() if key not in ("steps", "refused", "types") or value}


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
class Tower:
    """What tensor parallelism divides in a vision tower: heads, the width of the MLPs, and that of the merger."""

    heads: int
    intermediate: int
    merger: int


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """The scaling in config.json that extends the context beyond the trained positions. `type` is for example yarn."""

    type: str
    factor: float
    original_max_positions: int | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of a config.json. `architecture` may be an unknown class.

    `intermediate` is the width of the plain MLP, used by `dense_layers` layers (all of a dense model, usually none of a
    model with experts). `experts` is the number of routed experts or None, `expert_intermediate` the width of one,
    `shared_intermediate` that of the shared expert. `attention_layers` have a KV cache; `linear` are the others.
    `tower` is None for text models, and for a vision tower whose numbers cannot be read.
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
    tower: Tower | None = None

    def to_report(self) -> dict[str, Any]:
        """The members of an inspection report that come from config.json, as JSON values."""
        record = asdict(self)
        if self.quantization is not None:
            record["quantization"] = self.quantization.to_record()
        if self.tower is None:
            del record["tower"]
        return report_names(record)


def report_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the field names of a report, on every level: `kv_heads` becomes `kvHeads`."""
    return {
        _REPORT_NAMES.get(key, re.sub(r"_(\w)", lambda match: match[1].upper(), key)): (
            report_names(value) if isinstance(value, Mapping) else value
        )
        for key, value in record.items()
    }
