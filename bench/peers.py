"""What OME and KAITO would take for a model, by their own rules; their sources are named in data/peers.json."""

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
    """GPUs of one replica and its tensor parallel size; `refused` says that the engine would not start so."""

    gpus: int
    tensor_parallel: int
    refused: bool


def ome(model: Model) -> PeerChoice | None:
    """The literal of OME's runtime for this repository, whatever the GPU is; None without a runtime."""
    tp = _peers()["ome"]["tensorParallel"].get(model.repository)
    if tp is None:
        return None
    return PeerChoice(tp, tp, tp not in model.sizes)


def kaito(model: Model, card: Card) -> PeerChoice:
    """KAITO on nodes of `card.per_node` GPUs: enough nodes for the weights, and every GPU of them.

    Weights below half of one GPU: a copy of the model on every GPU of the node, so one GPU per replica. Otherwise the
    split is all GPUs of a node, and over several nodes pipeline stages. KV cache is reserved for one sequence of 2048
    tokens.
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
