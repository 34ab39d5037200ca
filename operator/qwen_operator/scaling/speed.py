"""The speed of an engine, measured from its counters. Pure.

While an engine is busy, its time goes to three things: decode steps, reading the KV cache in these steps, and prefill.

    busy seconds = floor * steps + cached * (tokens in use, summed over the steps) + prefill * prompt tokens

The counters give everything but the three factors. Recursive least squares with forgetting finds them. So the operator
needs no table of GPUs, and it follows the engine's real options, quantization and mix of requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen_operator.scaling.types import EngineLoad, Sample, Work

BLOCK_SECONDS = 20.0
"""Counters are compared over this time. SGLang updates the decode counter only every 40 steps."""
HALF_LIFE_BLOCKS = 60.0
"""After so many blocks, a measurement has half of its weight."""
LEAST_BLOCKS = 6.0
"""The speed is unknown until engines were busy for so many blocks."""
_SMALLEST_STEP = 0.0005
# One decode step takes about as long as the prefill of so many tokens: the weights are read once in both.
_TOKENS_PER_STEP = 150.0
# How strongly the three scaled factors are drawn together, as a share of the squared steps. The requests that run are
# seen only every 2 s, so the steps have an error. Without this, a small share of prefill would explain all of it.
_RIDGE = 0.1
_ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per decode step without context (`floor`), per prompt token (`prefill`), and for each KV token that a
    decode step reads (`cached`)."""

    floor: float
    prefill: float
    cached: float


@dataclass(frozen=True, slots=True)
class Mark:
    """One engine since the start of its block.

    `running` and `used` are integrals over time of requests and tokens, from what each scrape saw.
    """

    uid: str
    began: float
    work: Work
    at: float
    running: float = 0.0
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class Meter:
    """The normal equations of the least squares: six different products, three right sides, and the blocks in them."""

    marks: tuple[Mark, ...] = ()
    products: tuple[float, ...] = (0.0,) * 6
    sides: tuple[float, ...] = (0.0,) * 3
    blocks: float = 0.0


def observe(meter: Meter, sample: Sample) -> Meter:
    """The meter with one more scrape."""
    before = {mark.uid: mark for mark in meter.marks}
    marks: list[Mark] = []
    rows: list[tuple[float, float, float, float]] = []
    for load in sample.engines:
        if load.work is None:
            continue
        mark = before.get(load.uid)
        if mark is None or _restarted(mark.work, load.work):
            marks.append(Mark(load.uid, sample.at, load.work, sample.at))
            continue
        passed = sample.at - mark.at
        mark = replace(
            mark,
            at=sample.at,
            running=mark.running + load.running * passed,
            used=mark.used + load.tokens_used * passed,
        )
        if sample.at - mark.began >= BLOCK_SECONDS:
            rows += _row(mark, load, load.work)
            mark = Mark(load.uid, sample.at, load.work, sample.at)
        marks.append(mark)
    meter = replace(meter, marks=tuple(marks))
    return _fitted(meter, rows) if rows else meter


def _restarted(before: Work, now: Work) -> bool:
    less = now.prefilled < before.prefilled or now.decoded < before.decoded or now.idle < before.idle
    return less or (now.decoding or 0.0) < (before.decoding or 0.0)


def _row(mark: Mark, load: EngineLoad, work: Work) -> list[tuple[float, float, float, float]]:
    """Scaled steps, KV reads and prompt tokens of the block, and its busy seconds. Nothing for an idle block."""
    busy = mark.at - mark.began - (work.idle - mark.work.idle)
    decoded = work.decoded - mark.work.decoded
    if busy < BLOCK_SECONDS / 4 or mark.running <= 0 or decoded <= 0 or not load.tokens_capacity:
        return []
    # Ten scrapes say little about requests that are shorter than the time between two. The engine's own sum is exact.
    running = mark.running
    if work.decoding is not None:
        running = work.decoding - (mark.work.decoding or 0.0)
    # A step decodes at least one token.
    steps = min(decoded, decoded * busy / running) if running > 0 else decoded
    used = mark.used * running / mark.running
    reads = steps * used / busy / load.tokens_capacity
    return [(steps, reads, (work.prefilled - mark.work.prefilled) / _TOKENS_PER_STEP, busy)]


def _fitted(meter: Meter, rows: list[tuple[float, float, float, float]]) -> Meter:
    """The meter with these rows, and the speed that fits best. Rows of one scrape weigh one block together."""
    keep, weight = 0.5 ** (1 / HALF_LIFE_BLOCKS), 1 / len(rows)
    products = [value * keep for value in meter.products]
    sides = [value * keep for value in meter.sides]
    for steps, reads, prompts, busy in rows:
        pairs = (steps * steps, steps * reads, steps * prompts, reads * reads, reads * prompts, prompts * prompts)
        products = [value + weight * pair for value, pair in zip(products, pairs, strict=True)]
        sides = [value + weight * busy * each for value, each in zip(sides, (steps, reads, prompts), strict=True)]
    return replace(meter, products=tuple(products), sides=tuple(sides), blocks=meter.blocks * keep + 1)


def measured(meter: Meter, capacity: int) -> Speed | None:
    """The speed of an engine with a KV cache of `capacity` tokens. None until enough was seen."""
    if meter.blocks < LEAST_BLOCKS or not capacity:
        return None
    ss, sr, sp, rr, rp, pp = meter.products
    ridge = _RIDGE * ss
    steps, reads, prompts = meter.sides
    floor = cached = prefill = max(_SMALLEST_STEP, steps / ss if ss else 0.0)
    # Coordinate descent: each line is the best value of one factor for the two others. None may be negative.
    for _ in range(_ROUNDS):
        floor = max(
            _SMALLEST_STEP, (steps - sr * cached - sp * prefill + ridge * (cached + prefill)) / (ss + 2 * ridge)
        )
        cached = max(0.0, (reads - sr * floor - rp * prefill + ridge * floor) / (rr + ridge))
        prefill = max(floor / 10, (prompts - sp * floor - rp * cached + ridge * floor) / (pp + ridge))
    return Speed(floor, prefill / _TOKENS_PER_STEP, cached / capacity)
