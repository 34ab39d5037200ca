"""What a model is, in bytes and shapes: the facts that decide how it can be split and what it costs.

Facts come from the catalog that ships with the operator or from an inspection of the real files; they are
never guessed from the size in a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CATALOG = "Catalog"
INSPECTION = "Inspection"

DTYPES = ("bfloat16", "float16", "float32")
# SGLang's `--dtype auto` serves float32 checkpoints as float16, and its KV cache has the dtype of the model.
KV_BYTES_PER_VALUE = 2
# FP8 checkpoints scale their weights in blocks of 128 x 128.
_BLOCK = 128

# Above these a report is broken or hostile, not a model. Values are (name in the report, upper bound).
_COUNTS = {
    "layers": ("layers", 4096),
    "hidden": ("hidden", 1 << 20),
    "heads": ("heads", 1 << 14),
    "kv_heads": ("kvHeads", 1 << 14),
    "head_dim": ("headDim", 1 << 14),
    "intermediate": ("intermediate", 1 << 24),
    "vocab": ("vocab", 1 << 24),
    "max_positions": ("maxPositions", 1 << 28),
    "weight_bytes": ("weightBytes", 1 << 46),
}
_MAX_EXPERTS = 1 << 16
_MAX_BITS = 16
_TEXT_LIMIT = 128


class InvalidFactsError(ValueError):
    """A report or a stored record that cannot be facts; the text names the field, the value and the bound."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the linear layers are stored. `group_size` is None where scales are not per group."""

    method: str
    bits: int
    group_size: int | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts of one checkpoint; sizes in bytes, counts as they stand in its config.json.

    `intermediate` is the width of the MLP, `experts` the number of routed experts or None for a dense model.
    `source` is "Catalog" or "Inspection"; `digest` the SHA-256 of the inspected config.json, "" for the catalog.
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

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `to_json`; raises InvalidFactsError on anything else."""
        quantization = record.get("quantization")
        report = {name: record.get(key) for key, (name, _) in _COUNTS.items()}
        report |= {key: record.get(key) for key in ("architecture", "dtype", "experts")}
        report |= {"version": 1, "tieWordEmbeddings": record.get("tied"), "configSha256": record.get("digest")}
        if isinstance(quantization, Mapping):
            quantization = {**quantization, "groupSize": quantization.get("group_size")}
        return _read({**report, "quantization": quantization}, _text(record, "source"))

    @classmethod
    def from_inspection(cls, report: Mapping[str, Any]) -> Checkpoint:
        """Facts from the inspection's success report (version 1); raises InvalidFactsError."""
        if report.get("version") != 1:
            raise InvalidFactsError(f"version is {report.get('version')!r}, this operator reads version 1")
        return _read(report, INSPECTION)

    @property
    def quantization_name(self) -> str:
        """For people: the weights' format, e.g. "bfloat16" or "gptq 4 bit"."""
        return f"{self.quantization.method} {self.quantization.bits} bit" if self.quantization else self.dtype

    def kv_bytes_per_token(self, tp: int) -> int:
        """Bytes of KV cache per token and GPU: 2 (K and V) x KV heads on one GPU x head dim x layers x 2 bytes.

        With more GPUs than KV heads SGLang replicates the heads, so the value stops shrinking at one head.
        """
        return 2 * max(1, self.kv_heads // tp) * self.head_dim * self.layers * KV_BYTES_PER_VALUE

    def tensor_parallel_refusal(self, tp: int) -> str | None:
        """None if SGLang can split this checkpoint over `tp` GPUs, else the reason as a sentence.

        The rules are those that SGLang 0.5.23 asserts while it loads: attention and KV heads, MLP width, number of
        experts, and the alignment of each GPU's share with the quantization groups.
        """
        if tp < 1:
            return f"TP {tp} is not a number of GPUs: it must be at least 1"
        if tp == 1:
            return None
        return self._uneven_split(tp) or self._unaligned_groups(tp)

    def _uneven_split(self, tp: int) -> str | None:
        if self.heads % tp:
            return f"{self.heads} attention heads are not divisible by TP {tp}"
        if self.kv_heads >= tp and self.kv_heads % tp:
            return f"{self.kv_heads} KV heads are not divisible by TP {tp}"
        if self.kv_heads < tp and tp % self.kv_heads:
            return f"TP {tp} is not a multiple of the {self.kv_heads} KV heads, which would have to be copied"
        if self.experts is not None and tp > self.experts:
            return f"TP {tp} is more than the {self.experts} experts"
        if self.experts is None and self.intermediate % tp:
            return f"the MLP width {self.intermediate} is not divisible by TP {tp}"
        return None

    def _unaligned_groups(self, tp: int) -> str | None:
        if self.quantization is None:
            return None
        if self.quantization.method == "gguf":
            return f"GGUF weights run on one GPU only, not on TP {tp}"
        if self.experts is not None:
            return f"the width of one quantized expert is not among the facts, so TP {tp} cannot be checked"
        group = self.quantization.group_size
        if self.quantization.method in ("fp8", "gptq", "awq"):
            # SGLang's row-parallel layers and the Marlin kernels take steps of 128 whatever the group size is; a bad
            # split is not refused at load and fails late.
            group = max(_BLOCK, group or _BLOCK)
        widths = {"attention output": self.heads * self.head_dim, "MLP": self.intermediate}
        if self.quantization.method == "fp8":
            widths["KV projection"] = self.kv_heads * self.head_dim * max(1, tp // self.kv_heads)
        for name, width in widths.items():
            if group is not None and width % (tp * group):
                return f"{name} width {width} / TP {tp} is not a multiple of the quantization group of {group}"
        return None


def _read(report: Mapping[str, Any], source: str) -> Checkpoint:
    counts = {key: _count(report, name, limit) for key, (name, limit) in _COUNTS.items()}
    if counts["heads"] % counts["kv_heads"]:
        raise InvalidFactsError(f"heads {counts['heads']} is not a multiple of kvHeads {counts['kv_heads']}")
    tied = report.get("tieWordEmbeddings")
    if not isinstance(tied, bool):
        raise InvalidFactsError(f"tieWordEmbeddings is {tied!r}, it must be true or false")
    dtype = _text(report, "dtype")
    if dtype not in DTYPES:
        raise InvalidFactsError(f"dtype is {dtype!r}, it must be one of {', '.join(DTYPES)}")
    digest = report.get("configSha256")
    if not isinstance(digest, str) or len(digest) > _TEXT_LIMIT:
        raise InvalidFactsError(f"configSha256 is {digest!r:.80}, it must be text of at most {_TEXT_LIMIT} characters")
    return Checkpoint(
        architecture=_text(report, "architecture"),
        dtype=dtype,
        tied=tied,
        quantization=_quantization(report.get("quantization")),
        experts=None if report.get("experts") is None else _count(report, "experts", _MAX_EXPERTS),
        source=source,
        digest=digest,
        **counts,
    )


def _quantization(value: Any) -> Quantization | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidFactsError(f"quantization is {value!r:.80}, it must be null or an object")
    # -1 is how GPTQ writes "one scale per column", which puts no bound on the split.
    per_group = value.get("groupSize") not in (None, -1)
    return Quantization(
        method=_text(value, "method").lower(),
        bits=_count(value, "bits", _MAX_BITS),
        group_size=_count(value, "groupSize", _COUNTS["intermediate"][1]) if per_group else None,
    )


def _count(report: Mapping[str, Any], name: str, limit: int) -> int:
    value = report.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise InvalidFactsError(f"{name} is {value!r:.80}, it must be a whole number from 1 to {limit}")
    return value


def _text(report: Mapping[str, Any], name: str) -> str:
    value = report.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _TEXT_LIMIT:
        raise InvalidFactsError(f"{name} is {value!r:.80}, it must be text of 1 to {_TEXT_LIMIT} characters")
    return value
