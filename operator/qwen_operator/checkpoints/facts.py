"""The facts of a model, in bytes and shapes. They decide how it can be split and how much memory it needs.

Facts come from the catalog that ships with the operator, from a public hub, or from an inspection of the real files.
The size in a model's name is never used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwen_operator.checkpoints import adapters
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.heads import tower_decides
from qwen_runtime.checkpoints.chat import ChatFormat, Task, Thinking, ToolFormat
from qwen_runtime.checkpoints.model import (
    DTYPES,
    MAX_BITS,
    MAX_BYTES,
    MAX_EXPERTS,
    MAX_FACTOR,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_WIDTH,
    LinearAttention,
    Module,
    Quantization,
    RopeScaling,
    Steps,
    Tower,
    report_names,
)
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError

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

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_MAX_TEXT = 128
_LONGEST_REFUSAL = 512
_MOST_TYPES = 64
_TYPE_NAME = re.compile(r"[A-Z0-9_]{1,16}")

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

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `to_json`. Raises InvalidFactsError for anything else.

        It also reads the records of earlier versions. They lack the fields after `digest`, so these are derived.
        """
        facts = _read(Fields(report_names(record)), _text(Fields(record), "source"))
        facts = replace(facts, adapters=adapters.read(record.get("adapters")))
        return replace(facts, commit=_text(Fields(record), "commit")) if record.get("commit") else facts

    @classmethod
    def from_inspection(cls, report: Mapping[str, Any]) -> Checkpoint:
        """Facts from the inspection's success report (version 1 or 2). Raises InvalidFactsError.

        The report on a hub's repository has its `commit` too.
        """
        if report.get("version") not in (1, 2):
            raise InvalidFactsError(f"version is {report.get('version')!r:.80}, this operator reads versions 1 and 2")
        facts = _read(Fields(report), INSPECTION)
        return replace(facts, commit=_commit(Fields(report))) if report.get("commit") else facts

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


def _read(report: Fields, source: str) -> Checkpoint:
    shape = _shape(report)
    layers, experts = shape["layers"], shape["experts"]
    attention_layers = report.optional("attentionLayers", layers)
    dense_layers = report.optional("denseLayers", layers, low=0)
    kv, replicated = _parts(report, shape)
    facts = Checkpoint(
        **shape,
        dtype=report.one_of("dtype", DTYPES),
        quantization=_quantization(report),
        source=source,
        digest=_digest(report),
        attention_layers=layers if attention_layers is None else attention_layers,
        dense_layers=dense_layers if dense_layers is not None else layers if experts is None else 0,
        linear=_linear(report, layers),
        rope=_rope(report),
        multimodal=bool(report.optional_flag("multimodal")),
        replicated_bytes=replicated,
        kv_weight_bytes=kv,
        chat=_chat(report),
    )
    return facts.with_tower(_tower(report))


def _chat(report: Fields) -> ChatFormat | None:
    if not report.has("chat"):
        return None
    fields = report.nested("chat")
    return ChatFormat(
        template=fields.flag("template"),
        tools=ToolFormat(fields.one_of("tools", tuple(one.value for one in ToolFormat))),
        thinking=Thinking(fields.one_of("thinking", tuple(one.value for one in Thinking))),
        task=Task(fields.one_of("task", tuple(one.value for one in Task))),
        ranks=bool(fields.optional_flag("ranks")),
    )


def _tower(report: Fields) -> Tower | None:
    if not report.has("tower"):
        return None
    fields = report.nested("tower")
    return Tower(
        heads=fields.whole("heads", MAX_HEADS),
        intermediate=fields.whole("intermediate", MAX_WIDTH),
        merger=fields.whole("merger", MAX_BYTES),
    )


def _shape(report: Fields) -> dict[str, Any]:
    """The plain numbers, by the names of Checkpoint's fields."""
    layers = report.whole("layers", MAX_LAYERS)
    heads = report.whole("heads", MAX_HEADS)
    kv_heads = report.whole("kvHeads", MAX_HEADS)
    if heads % kv_heads:
        raise InvalidFactsError(f"heads {heads} is not a multiple of kvHeads {kv_heads}")
    return {
        "architecture": report.name("architecture"),
        "layers": layers,
        "hidden": report.whole("hidden", MAX_HIDDEN),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": report.whole("headDim", MAX_HEADS),
        "intermediate": report.whole("intermediate", MAX_WIDTH),
        "vocab": report.whole("vocab", MAX_WIDTH),
        "max_positions": report.whole("maxPositions", MAX_POSITIONS),
        "tied": report.flag("tieWordEmbeddings"),
        "experts": report.optional("experts", MAX_EXPERTS),
        "expert_intermediate": report.optional("expertIntermediate", MAX_WIDTH),
        "shared_intermediate": report.optional("sharedIntermediate", MAX_WIDTH),
        "weight_bytes": _resident_bytes(report),
    }


def _resident_bytes(report: Fields) -> int:
    """An inspection counts the bytes of all tensors, and in `idleBytes` those that engines do not load."""
    total = report.whole("weightBytes", MAX_BYTES)
    return total - (report.optional("idleBytes", total - 1, low=0) or 0)


def _digest(report: Fields) -> str:
    digest = report.values.get("configSha256")
    if not isinstance(digest, str) or len(digest) > _MAX_TEXT:
        raise report.refuse("configSha256", f"text of at most {_MAX_TEXT} characters")
    return digest


def _parts(report: Fields, shape: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of the K and V projections, and of what every rank holds.

    They come from the report, or are derived from the projections at 16 bits, the norms, and the router. A value that
    is too large makes a rank's weights larger, never smaller.
    """
    total: int = shape["weight_bytes"]
    if report.has("kvWeightBytes"):
        kv = report.whole("kvWeightBytes", total, low=0)
        return kv, report.whole("replicatedBytes", total - kv, low=0)
    layers, hidden = shape["layers"], shape["hidden"]
    kv = min(total, 2 * layers * hidden * 2 * shape["kv_heads"] * shape["head_dim"])
    return kv, min(total - kv, 2 * hidden * (2 * layers + 1 + layers * (shape["experts"] or 0)))


def _quantization(report: Fields) -> Quantization | None:
    if not report.has("quantization"):
        return None
    value = report.values["quantization"]
    if not isinstance(value, Mapping):
        raise report.refuse("quantization", "null or an object")
    fields = Fields(value)
    method = fields.name("method").lower()
    # GPTQ writes -1 for "one scale per column", which does not limit the split.
    group = None if value.get("groupSize") == -1 else fields.optional("groupSize", MAX_WIDTH)
    # Reports before version 2 have the edge of FP8's blocks in the group size.
    block = fields.optional("block", MAX_WIDTH) or (group if method == "fp8" else None)
    return Quantization(
        method=method,
        bits=fields.whole("bits", MAX_BITS),
        group_size=group,
        symmetric=fields.optional_flag("symmetric"),
        desc_act=fields.optional_flag("descAct"),
        block=block,
        plain=_plain(fields),
        steps=_steps(fields),
        refused=_refused(fields),
        types=_types(fields),
    )


def _steps(fields: Fields) -> Steps | None:
    if not fields.has("steps"):
        return None
    steps = fields.nested("steps")
    names = report_names(dict.fromkeys(Steps.__slots__, 1))
    values = zip(Steps.__slots__, names, strict=True)
    return Steps(**{name: steps.whole(reported, MAX_BYTES) for name, reported in values})


def _refused(fields: Fields) -> str:
    why = fields.values.get("refused") or ""
    if not isinstance(why, str) or len(why) > _LONGEST_REFUSAL:
        raise fields.refuse("refused", f"text of at most {_LONGEST_REFUSAL} characters")
    return why


def _types(fields: Fields) -> tuple[tuple[str, int], ...]:
    pairs = fields.values.get("types") or []
    right = f"a list of at most {_MOST_TYPES} pairs of a type's name and its bytes"
    if not isinstance(pairs, (list, tuple)) or len(pairs) > _MOST_TYPES:
        raise fields.refuse("types", right)
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise fields.refuse("types", right)
    sizes = Fields(dict(pairs), "types.")
    if not all(_TYPE_NAME.fullmatch(name) for name in sizes.values):
        raise fields.refuse("types", right)
    return tuple((name, sizes.whole(name, MAX_BYTES)) for name in sizes.values)


def _plain(fields: Fields) -> tuple[Module, ...]:
    names = fields.values.get("plain") or []
    right = [module.value for module in Module]
    if not isinstance(names, (list, tuple)) or not all(name in right for name in names):
        raise fields.refuse("plain", "a list out of " + ", ".join(right))
    return tuple(sorted({Module(name) for name in names}))


def _linear(report: Fields, layers: int) -> LinearAttention | None:
    if not report.has("linear"):
        return None
    fields = report.nested("linear")
    value_bytes = fields.optional("stateValueBytes", 8)
    return LinearAttention(
        layers=fields.whole("layers", layers),
        value_heads=fields.whole("valueHeads", MAX_HEADS),
        key_heads=fields.whole("keyHeads", MAX_HEADS),
        key_dim=fields.whole("keyDim", MAX_HEADS),
        value_dim=fields.whole("valueDim", MAX_HEADS),
        conv_kernel=fields.whole("convKernel", MAX_HEADS),
        state_value_bytes=4 if value_bytes is None else value_bytes,
    )


def _rope(report: Fields) -> RopeScaling | None:
    if not report.has("rope"):
        return None
    fields = report.nested("rope")
    return RopeScaling(
        type=fields.name("type"),
        factor=fields.number("factor", MAX_FACTOR),
        original_max_positions=fields.optional("originalMaxPositions", MAX_POSITIONS),
    )


def _commit(record: Fields) -> str:
    value = record.values.get("commit")
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise record.refuse("commit", "a commit of 40 hexadecimal digits")
    return value


def _text(record: Fields, name: str) -> str:
    value = record.values.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT:
        raise record.refuse(name, f"text of 1 to {_MAX_TEXT} characters")
    return value
