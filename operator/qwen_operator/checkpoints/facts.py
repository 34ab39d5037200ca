"""The facts of a model, in bytes and shapes. They decide how it can be split and how much memory it needs.

Facts come from the catalog that ships with the operator, from a public hub, or from an inspection of the real files.
The size in a model's name is never used.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.heads import tower_decides
from qwen_runtime.checkpoints.chat import ChatFormat, Task, Thinking, ToolFormat
from qwen_runtime.checkpoints.model import (
    LinearAttention,
    Module,
    Quantization,
    RopeScaling,
    Steps,
    Tower,
)
from qwen_runtime.checkpoints.reading import InvalidFactsError

__all__ = [
    "CATALOG",
    "HUB",
    "INSPECTION",
    "ChatFormat",
    "Checkpoint",
    "InvalidFactsError",
    "LinearAttention",
    "Module",
    "Quantization",
    "RopeScaling",
    "Steps",
    "Task",
    "Thinking",
    "ToolFormat",
    "Tower",
]

CATALOG = "Catalog"
HUB = "Hub"
INSPECTION = "Inspection"

# SGLang's `--dtype auto` serves float32 checkpoints as float16, and its KV cache has the dtype of the model.
KV_BYTES_PER_VALUE = 2
# The vocabulary is padded to this many rows and to the number of ranks.
_VOCAB_STEP = 64

_HEADS = re.compile(r"(For(CausalLM|ConditionalGeneration|RewardModel|SequenceClassification)|Model)$")
_FAMILIES = {
    "Qwen2": "Qwen2", "Qwen2Moe": "Qwen2", "Qwen2VL": "Qwen2-VL", "Qwen2_5_VL": "Qwen2.5-VL",
    "Qwen3": "Qwen3", "Qwen3Moe": "Qwen3", "Qwen3VL": "Qwen3-VL", "Qwen3VLMoe": "Qwen3-VL", "Qwen3Next": "Qwen3-Next",
    "Qwen3_5": "Qwen3.5", "Qwen3_5Moe": "Qwen3.5",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts of one checkpoint. Sizes are in bytes, and counts have the values of its config.json.

    `intermediate` is the width of the plain MLP. `dense_layers` layers use it: all of a dense model, usually none of a
    model with experts. `experts` is the number of routed experts or None, `expert_intermediate` the width of one, and
    `shared_intermediate` the width of the shared expert. `attention_layers` have a KV cache; `linear` are the others.

    `weight_bytes` is what stays in the memory of one GPU without a split. Of it, `replicated_bytes` (norms, router) are
    on every rank. `kv_weight_bytes` (K and V projections) are copied if there are more ranks than KV heads. The rest is
    divided. `source` is "Catalog", "Hub" or "Inspection". `digest` is the SHA-256 of the config.json, "" for the
    catalog. `commit` is the commit of the hub's repository, "" for other sources. `tower` is set only if the vision
    tower rejects a number of ranks that the heads of the language model accept. `chat` is None if nobody read the chat
    template: records of earlier versions, and a config.json alone. `adapters` are LoRA adapters that engines load
    beside it.
    """

    architecture: str
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
    weight_bytes: int
    source: str
    digest: str
    attention_layers: int
    dense_layers: int
    expert_intermediate: int | None
    shared_intermediate: int | None
    linear: LinearAttention | None
    rope: RopeScaling | None
    multimodal: bool
    replicated_bytes: int
    kv_weight_bytes: int
    commit: str = ""
    tower: Tower | None = None
    chat: ChatFormat | None = None
    adapters: tuple[InspectedAdapter, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal value."""
        record = asdict(self)
        if self.quantization is not None:
            record["quantization"] = self.quantization.to_record()
        if self.tower is None:
            del record["tower"]
        del record["chat"], record["adapters"]
        if self.chat is not None:
            record["chat"] = self.chat.to_record()
        return record | ({"adapters": [one.to_json() for one in self.adapters]} if self.adapters else {})

    def with_tower(self, tower: Tower | None) -> Checkpoint:
        """These facts with a vision tower, which they keep only if it decides something."""
        return replace(self, tower=tower if tower is not None and tower_decides(tower, self) else None)

    @property
    def family(self) -> str:
        """The generation that the model class belongs to, e.g. "Qwen3", or "" for an unknown class.

        Qwen1.5, Qwen2 and Qwen2.5 share one class and are all "Qwen2": no file of a checkpoint distinguishes them.
        """
        return _FAMILIES.get(_HEADS.sub("", self.architecture), "")

    @property
    def gguf(self) -> bool:
        """Whether the weights are in a GGUF file."""
        return self.quantization is not None and self.quantization.method == "gguf"

    @property
    def quantization_name(self) -> str:
        """The format of the weights for people, e.g. "bfloat16" or "gptq 4 bit"."""
        return f"{self.quantization.method} {self.quantization.bits} bit" if self.quantization else self.dtype

    def weight_bytes_per_rank(self, tp: int, ep: int = 1) -> int:
        """Bytes of weights on the fullest of `tp` ranks.

        `ep` changes which part of the experts a rank holds, but not how much. Each of the ep groups has 1/ep of the
        experts, and each of its tp / ep members has 1/(tp / ep) of every expert in the group.
        """
        del ep
        copied = self.kv_weight_bytes * max(1, self.kv_heads // tp) // self.kv_heads
        divided = self.weight_bytes - self.replicated_bytes - self.kv_weight_bytes + self._padding_bytes(tp)
        return self.replicated_bytes + copied + -(-divided // tp)

    def _padding_bytes(self, tp: int) -> int:
        rows = -self.vocab % math.lcm(_VOCAB_STEP, tp)
        return rows * self.hidden * 2 * (1 if self.tied else 2)

    def kv_bytes_per_token(self, tp: int, value_bytes: int = KV_BYTES_PER_VALUE) -> int:
        """Bytes of KV cache per token and rank: K and V x KV heads on the rank x head dim x layers with a cache.

        If there are more ranks than KV heads, SGLang replicates the heads, so every rank has at least one head.
        """
        return 2 * max(1, self.kv_heads // tp) * self.head_dim * self.attention_layers * value_bytes

    def state_bytes_per_request(self, tp: int) -> int:
        """Bytes per rank that one request of any length needs for the linear-attention layers; 0 if there are none."""
        linear = self.linear
        if linear is None:
            return 0
        state = linear.value_heads * linear.key_dim * linear.value_dim * linear.state_value_bytes
        channels = 2 * linear.key_heads * linear.key_dim + linear.value_heads * linear.value_dim
        return linear.layers * -(-(state + channels * (linear.conv_kernel - 1) * 2) // tp)
