"""Reads facts that are stored: those of a pinned revision, and the reports of inspections. Pure.

Both come from outside, so every value is checked against its bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwen_operator.checkpoints import adapters
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint
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

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_MAX_TEXT = 128
_LONGEST_REFUSAL = 512
_MOST_TYPES = 64
_TYPE_NAME = re.compile(r"[A-Z0-9_]{1,16}")


def from_json(record: Mapping[str, Any]) -> Checkpoint:
    """The inverse of `Checkpoint.to_json`. Raises InvalidFactsError for anything else.

    It also reads the records of earlier versions. They lack the fields after `digest`, so these are derived.
    """
    facts = _read(Fields(report_names(record)), _text(Fields(record), "source"))
    facts = replace(facts, adapters=adapters.read(record.get("adapters")))
    return replace(facts, commit=_text(Fields(record), "commit")) if record.get("commit") else facts


def from_inspection(report: Mapping[str, Any]) -> Checkpoint:
    """Facts from the inspection's success report (version 1 or 2). Raises InvalidFactsError.

    The report on a hub's repository has its `commit` too.
    """
    if report.get("version") not in (1, 2):
        raise InvalidFactsError(f"version is {report.get('version')!r:.80}, this operator reads versions 1 and 2")
    facts = _read(Fields(report), INSPECTION)
    return replace(facts, commit=_commit(Fields(report))) if report.get("commit") else facts


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
