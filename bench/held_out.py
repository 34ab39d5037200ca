"""Whether the constants of the memory formula hold for runs that did not set them.

The planner's constants come from public logs, and some of these are scored. So this module sets the constants for the
context and for weights beyond their tensors again from one half of the logs, and predicts the other half with them. It
does so both ways: even ids, then odd ones. The communication buffers come from logs that are not among the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import prediction
from bench.prediction import Point, Report, Result

_GIB = 2**30
# "Init torch distributed ends. mem usage": 0.26 GB on 2 x 4090 (sgl-project/sglang#16920), 1.25 GB on 8 x H100.
_PCIE_GIB, _NVLINK_GIB = 0.26, 1.25
_NVLINK_MIB = 61440


@dataclass(frozen=True, slots=True)
class Constants:
    """GiB taken before the weights: `base` + `share` x total. GiB of weights beyond the tensors: `alone` on one GPU,
    `split` on several."""

    base: float
    share: float
    alone: float
    split: float


def both_ways(points: Sequence[Point]) -> dict[str, Report]:
    """Errors on the odd points with constants of the even ones, and the reverse."""
    even = [point for point in points if int(str(point["id"])[1:]) % 2 == 0]
    odd = [point for point in points if point not in even]
    return {"set on even, tested on odd": tested(even, odd), "set on odd, tested on even": tested(odd, even)}


def tested(training: Sequence[Point], unseen: Sequence[Point]) -> Report:
    """Errors on `unseen` with constants from the memory in the logs of `training`."""
    constants = fitted(training)
    results = []
    for point in unseen:
        scored = prediction.inputs(point)
        if isinstance(scored, str):
            continue
        tp, total = scored.tp, scored.memory_mib / 1024
        free = total - constants.base - constants.share * total - _communication(scored.memory_mib, tp)
        extra = constants.alone if tp == 1 else constants.split
        weights = scored.checkpoint.weight_bytes_per_rank(tp) / _GIB + extra
        pool = free * scored.fraction - weights
        tokens = int(pool * _GIB / scored.checkpoint.kv_bytes_per_token(tp))
        results.append(Result(str(point["id"]), tokens, int(point["max_total_num_tokens"]), scored.fraction))
    return Report(tuple(results), ())


def fitted(points: Sequence[Point]) -> Constants:
    """Constants from the logged memory of some runs: a line by least squares, and means of the extra for weights."""
    taken = [
        (mib / 1024, mib / 1024 - point["avail_before_load_gib"] - _communication(mib, point["tp"]))
        for point in points
        if (mib := point.get("gpu_mem_mib")) and point.get("avail_before_load_gib")
    ]
    base, share = _line(taken)
    extras: dict[bool, list[float]] = {True: [], False: []}
    for point in points:
        scored = prediction.inputs(point)
        if isinstance(scored, str) or not point.get("weights_gib"):
            continue
        tensors = scored.checkpoint.weight_bytes_per_rank(scored.tp) / _GIB
        extras[scored.tp == 1].append(point["weights_gib"] - tensors)
    alone, split = (_mean(extras[one]) for one in (True, False))
    return Constants(base, share, alone, split or alone)


def _communication(memory_mib: int, tp: int) -> float:
    if tp == 1:
        return 0.0
    return _NVLINK_GIB if memory_mib >= _NVLINK_MIB else _PCIE_GIB


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    x_mean, y_mean = _mean([x for x, _ in pairs]), _mean([y for _, y in pairs])
    spread = sum((x - x_mean) ** 2 for x, _ in pairs)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in pairs) / spread if spread else 0.0
    return y_mean - slope * x_mean, slope


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
