"""The plans of the catalog, compared with the oracle's smallest number of GPUs and with the peers' choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import oracle, peers
from bench.cases import Case
from bench.oracle import Model, Verdict
from bench.peers import PeerChoice
from qwen_operator.planning.types import Plan

NO_DATA, BOUNDARY = "noIndependentData", "withinFivePercent"


@dataclass(frozen=True, slots=True)
class Row:
    """One case with all results. GPUs are None if no number on one node is enough. `model` is None without data."""

    case: Case
    model: Model | None
    verdict: Verdict | None
    ome: PeerChoice | None
    kaito: PeerChoice | None

    @property
    def planned(self) -> int | None:
        """GPUs of the plan on one node; None without a plan."""
        plan = self.case.plan
        return plan.gpus_per_replica if isinstance(plan, Plan) and plan.nodes_per_replica == 1 else None

    @property
    def left_out(self) -> str | None:
        """Why the case is not compared."""
        if self.verdict is None:
            return NO_DATA
        return BOUNDARY if self.verdict.boundary else None

    @property
    def agrees(self) -> bool:
        return self.verdict is not None and self.planned == self.verdict.gpus

    def to_json(self) -> dict[str, Any]:
        verdict, plan = self.verdict, self.case.plan
        return {
            "model": self.case.entry.repository,
            "format": self.case.entry.format,
            "product": self.case.card.product,
            "gpus": self.planned,
            "tensorParallel": plan.tensor_parallel if isinstance(plan, Plan) else None,
            "smallestValid": verdict.gpus if verdict else None,
            "leftOut": self.left_out,
            "ome": self.ome.gpus if self.ome else None,
            "omeRefused": self.ome.refused if self.ome else None,
            "kaito": self.kaito.gpus if self.kaito else None,
            "kaitoTensorParallel": self.kaito.tensor_parallel if self.kaito else None,
            "kaitoRefused": self.kaito.refused if self.kaito else None,
        }


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's choices in the compared cases for which it has one.

    `ratio` is the mean of GPUs per replica / smallest valid. `refused` counts splits that the engine rejects, `too_few`
    choices with less memory than the model needs.
    """

    cases: int
    ratio: float
    refused: int
    too_few: int


@dataclass(frozen=True, slots=True)
class Summary:
    """`ratio` is the mean of GPUs / smallest valid, over the compared cases that have both."""

    rows: tuple[Row, ...]
    compared: tuple[Row, ...]
    ratio: float
    disagreements: tuple[Row, ...]
    ome: Peer
    kaito: Peer

    def left_out(self, reason: str) -> int:
        return sum(row.left_out == reason for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "cases": len(self.rows),
            "compared": len(self.compared),
            "leftOut": {reason: self.left_out(reason) for reason in (NO_DATA, BOUNDARY)},
            "ratio": round(self.ratio, 4),
            "disagreements": [row.to_json() for row in self.disagreements],
            "peers": {name: _peer_json(peer) for name, peer in (("ome", self.ome), ("kaito", self.kaito))},
            "rows": [row.to_json() for row in self.rows],
        }


def summarize(cases: Iterable[Case]) -> Summary:
    """All cases, compared with the oracle and the peers."""
    models = {(model.repository, model.format): model for model in oracle.models()}
    rows = tuple(_row(case, models.get((case.entry.repository, case.entry.format))) for case in cases)
    compared = tuple(row for row in rows if row.left_out is None)
    pairs = [(row.planned, row.verdict.gpus) for row in compared if row.verdict]
    ratios = [planned / smallest for planned, smallest in pairs if planned and smallest]
    return Summary(
        rows=rows,
        compared=compared,
        ratio=sum(ratios) / len(ratios) if ratios else 0.0,
        disagreements=tuple(row for row in compared if not row.agrees),
        ome=_peer([(row, row.ome) for row in compared]),
        kaito=_peer([(row, row.kaito) for row in compared]),
    )


def _row(case: Case, model: Model | None) -> Row:
    if model is None:
        return Row(case, None, None, None, None)
    context = case.entry.checkpoint.max_positions
    verdict = oracle.smallest(model, case.card, context)
    return Row(case, model, verdict, peers.ome(model), peers.kaito(model, case.card))


def _peer(choices: Sequence[tuple[Row, PeerChoice | None]]) -> Peer:
    ratios, refused, too_few = [], 0, 0
    for row, choice in choices:
        if choice is None or row.verdict is None or row.verdict.gpus is None or row.model is None:
            continue
        ratios.append(choice.gpus / row.verdict.gpus)
        refused += choice.refused
        too_few += not choice.refused and _too_small(row.model, row.case, choice)
    return Peer(len(ratios), sum(ratios) / len(ratios) if ratios else 0.0, refused, too_few)


def _too_small(model: Model, case: Case, choice: PeerChoice) -> bool:
    """Whether one request of the model's own context does not fit. Unknown, so False, with pipeline stages."""
    if choice.gpus != choice.tensor_parallel:
        return False
    need = oracle.need_gib(model, choice.tensor_parallel, case.entry.checkpoint.max_positions)
    return need > oracle.static_gib(case.card, choice.tensor_parallel) * (1 + oracle.BOUNDARY)


def _peer_json(peer: Peer) -> dict[str, Any]:
    return {
        "cases": peer.cases,
        "ratio": round(peer.ratio, 3),
        "refusedByTheEngine": peer.refused,
        "tooFewGpus": peer.too_few,
    }
