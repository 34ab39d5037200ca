"""The GPUs that OME and KAITO would take for a model, by their own rules. data/peers.json names the sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.oracle import GIB, Card, Model

DATA = Path(__file__).parent / "data"
# KAITO's own constants.
_WEIGHTS_FACTOR = 1.02
_USABLE = 0.84
_RESERVE_BYTES = 2.3 * GIB
_MODEL_LENGTH = 2048
_OVERHEAD = 1.05
_DATA_PARALLEL_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PeerChoice:
    """GPUs of one replica and its tensor parallel size. `refused` is true if the engine would reject the split."""

    gpus: int
    tensor_parallel: int
    refused: bool


def ome(model: Model) -> PeerChoice | None:
    """The fixed size in OME's runtime for this repository, for any GPU. None without a runtime."""
    tp = _peers()["ome"]["tensorParallel"].get(model.repository)
    if tp is None:
        return None
    return PeerChoice(tp, tp, tp not in model.sizes)


def kaito(model: Model, card: Card) -> PeerChoice:
    """KAITO on nodes of `card.per_node` GPUs: enough nodes for the weights, and all GPUs of these nodes.

    If the weights fill less than half of one GPU, every GPU of the node gets a copy of the model, so a replica has one
    GPU. Otherwise the split is over all GPUs of a node, with pipeline stages over several nodes. KAITO reserves KV
    cache for one sequence of 2048 tokens.
    """
    reserve = _RESERVE_BYTES + _MODEL_LENGTH * 2 * model.layers * model.kv_heads * model.head_dim * 2 / card.per_node
    available = (card.mib * 2**20 * _USABLE - reserve) / _OVERHEAD
    least = int(model.weight_bytes * _WEIGHTS_FACTOR / available) + 1
    nodes = -(-least // card.per_node)
    copies = model.weight_bytes < _DATA_PARALLEL_SHARE * card.mib * 2**20
    tp = 1 if copies else card.per_node
    return PeerChoice(1 if copies else nodes * card.per_node, tp, tp not in model.sizes)


@cache
def _peers() -> Mapping[str, Any]:
    peers: Mapping[str, Any] = json.loads((DATA / "peers.json").read_text(encoding="utf-8"))
    return peers
