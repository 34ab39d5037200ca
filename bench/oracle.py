"""The smallest number of GPUs that holds a model, calculated without the operator's code.

Splits come from data/models.json, and free memory per GPU comes from public start-up logs (data/memory_points.json
names them). The oracle is coarse on purpose: if the needed memory is within 5 % of the existing memory, it gives no
answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
GIB = 2**30
BOUNDARY = 0.05


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU product on nodes of `per_node`: total memory in MiB, compute capability, fraction for weights and KV."""

    product: str
    mib: int
    capability: float
    fraction: float
    per_node: int = 8


# The label values and totals of GPU feature discovery. Logged fractions are 0.90 on 80 GB (M02), 0.93 (M11), and 0.80
# on 24 GB (M05, four cards). The fractions here leave 3 GiB on 16 and 24 GB, 5 on 48, 8 on 80 and 11 on 141 GB.
CARDS = (
    Card("Tesla-T4", 15360, 7.5, 0.78),
    Card("NVIDIA-L4", 23034, 8.9, 0.85),
    Card("NVIDIA-GeForce-RTX-4090", 24564, 8.9, 0.85),
    Card("NVIDIA-L40S", 46068, 8.9, 0.88),
    Card("NVIDIA-A100-SXM4-80GB", 81920, 8.0, 0.90),
    Card("NVIDIA-H100-80GB-HBM3", 81559, 9.0, 0.90),
    Card("NVIDIA-H200", 143771, 9.0, 0.92),
    Card("NVIDIA-B200", 183359, 10.0, 0.92),
)
# (total MiB, GiB free before the weights are loaded, one GPU): M08, M05 (+ 0.13 of communication), M01, M19.
_LOGGED_FREE = ((16303, 15.16), (24564, 23.21), (81559, 78.48), (143771, 139.13))
# Communication between GPUs takes the largest logged value: 0.13, 0.26 and 0.39 GiB on up to 4 PCIe cards, 1.3 on 2
# H100, 2.0 on 8 H200. There is no log of 8 PCIe cards.
_NVLINK_MIB = 61440


@dataclass(frozen=True, slots=True)
class Model:
    """A published checkpoint: sizes in bytes, and counts. `splits` are the accepted (tp, smallest ep)."""

    repository: str
    format: str
    verified: bool
    layers: int
    kv_heads: int
    head_dim: int
    weight_bytes: int
    splits: tuple[tuple[int, int], ...]
    state_bytes: int

    @property
    def sizes(self) -> frozenset[int]:
        """The accepted tensor parallel sizes."""
        return frozenset(tp for tp, _ in self.splits)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The smallest number of GPUs (None: not on one node). `boundary` is true if it is too close to decide."""

    gpus: int | None
    boundary: bool
    why: str = ""


def smallest(model: Model, card: Card, context: int) -> Verdict:
    """The smallest number of GPUs of one node that holds one request of `context` tokens."""
    if why := _no_kernels(model, card):
        return Verdict(None, boundary=False, why=why)
    for tp in sorted(model.sizes):
        if tp > card.per_node:
            break
        load = need_gib(model, tp, context) / static_gib(card, tp)
        if abs(load - 1) <= BOUNDARY:
            return Verdict(None, boundary=True)
        if load < 1:
            return Verdict(tp, boundary=False)
    return Verdict(None, boundary=False, why="not on one node")


def static_gib(card: Card, tp: int) -> float:
    """GiB of one GPU for weights and KV cache."""
    return (_free_gib(card.mib) - _communication_gib(card.mib, tp)) * card.fraction


def need_gib(model: Model, tp: int, context: int) -> float:
    """GiB that one of `tp` GPUs needs: its share of the weights, KV of `context` tokens, one request's state."""
    heads = max(1, model.kv_heads // tp)
    kv = 2 * heads * model.head_dim * model.layers * 2 * context
    return ((model.weight_bytes + model.state_bytes) / tp + kv) / GIB + (0.05 if tp == 1 else 0.25)


@cache
def models() -> tuple[Model, ...]:
    """The rows of data/models.json with known bytes and splits. Fine-tunes get the values of their base model."""
    rows = json.loads((DATA / "models.json").read_text(encoding="utf-8"))["rows"]
    whole = {(row["repository"], row["format"]): row for row in rows if "sameAs" not in row}
    complete = [{**whole[row.get("sameAs", row["repository"]), row["format"]], **row} for row in rows]
    return tuple(_model(row) for row in complete if row["weightBytes"] and row["split"])


def _model(row: Mapping[str, Any]) -> Model:
    return Model(
        repository=row["repository"],
        format=row["format"],
        verified=bool(row["verified"]),
        layers=row["layers"],
        kv_heads=row["kvHeads"],
        head_dim=row["headDim"],
        weight_bytes=row["weightBytes"],
        splits=tuple((tp, ep) for tp, ep in row["split"]),
        state_bytes=_state_bytes(row.get("linear")),
    )


def _state_bytes(linear: Mapping[str, int] | None) -> int:
    """Bytes of one request's state in layers of linear attention: 4-byte state, 2-byte convolution window."""
    if not linear:
        return 0
    state = linear["valueHeads"] * linear["keyDim"] * linear["valueDim"] * 4
    width = 2 * linear["keyHeads"] * linear["keyDim"] + linear["valueHeads"] * linear["valueDim"]
    return linear["layers"] * (state + width * (linear["kernel"] - 1) * 2)


def _no_kernels(model: Model, card: Card) -> str:
    """SGLang since 0.5.21 has GPTQ only as Marlin, and FP8 only natively or as Marlin: both from 8.0 on."""
    if card.capability < 8.0 and model.format.startswith(("gptq", "fp8")):
        return f"no kernels for {model.format} below compute capability 8.0"
    return ""


def _free_gib(mib: int) -> float:
    """Linear between the logged cards. Beyond them, the line through the nearest two continues."""
    pairs = list(pairwise(_LOGGED_FREE))
    (low, low_free), (high, high_free) = next((pair for pair in pairs if mib <= pair[1][0]), pairs[-1])
    return low_free + (high_free - low_free) * (mib - low) / (high - low)


def _communication_gib(mib: int, tp: int) -> float:
    if tp == 1:
        return 0.0
    if tp > 4:
        return 2.0
    return 0.4 if mib < _NVLINK_MIB else 1.3
