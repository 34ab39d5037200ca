"""The speed that the counters of engines show."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from qwen_operator.scaling.speed import LEAST_BLOCKS, Meter, Speed, measured, observe
from qwen_operator.scaling.types import EngineLoad, Sample, Work

CAPACITY = 100_000
TRUE = Speed(0.02, 0.0001, 4e-7)


def _run(true: Speed, seconds: int, seed: int = 1, idle: int = 1) -> Meter:
    """An engine whose load changes every 20 s, and that computes exactly as `true` says.

    Of `idle` looks, it is busy before one; with 0 it never is.
    """
    chance, meter, work = random.Random(seed), Meter(), Work(0.0, 0.0, 0.0)
    running, used, share = 1, 0, 0.0
    for at in range(0, seconds, 2):
        if at % 20 == 0:
            running, share = chance.randint(1, 60), chance.random() * 0.6
            used = running * chance.randint(100, 1500)
        load = EngineLoad("a", "u", 0, 0, 0, CAPACITY, 0, replace(work, idle=work.idle + 2))
        if idle and at % (2 * idle) == 0:
            tokens = 2 * (1 - share) / (true.floor + true.cached * used) * running
            work = Work(work.prefilled + 2 * share / true.prefill, work.decoded + tokens, work.idle)
            load = EngineLoad("a", "u", running, 0, used, CAPACITY, running, work)
        assert load.work is not None
        work = load.work
        meter = observe(meter, Sample(float(at), (load,)))
    return meter


@pytest.mark.parametrize("idle", [1, 2])
@pytest.mark.parametrize("true", [TRUE, Speed(0.009, 6e-5, 5e-8), Speed(0.05, 0.0004, 1e-6)])
def test_the_speed_is_found(true: Speed, idle: int) -> None:
    speed = measured(_run(true, 3600, idle=idle), CAPACITY)
    assert speed is not None
    assert speed.floor == pytest.approx(true.floor, rel=0.25)
    assert speed.prefill == pytest.approx(true.prefill, rel=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_short_requests_are_counted_by_the_engine_and_not_by_the_scrapes(seed: int) -> None:
    """A scrape finds any number of requests, mostly none. Two decode at a time, for half of the time."""
    chance, meter, work, used = random.Random(seed), Meter(), Work(0.0, 0.0, 0.0, 0.0), 1200
    for at in range(0, 3600, 2):
        busy, share = chance.uniform(0.4, 1.6), chance.uniform(0.1, 0.5)
        tokens = busy * (1 - share) / (TRUE.floor + TRUE.cached * used) * 2
        assert work.decoding is not None
        work = Work(
            work.prefilled + busy * share / TRUE.prefill,
            work.decoded + tokens,
            work.idle + 2 - busy,
            work.decoding + 2 * busy,
        )
        seen = chance.choice([0, 0, 0, 1, 2, 5])
        load = EngineLoad("a", "u", seen, 0, seen * used // 2, CAPACITY, seen, work)
        meter = observe(meter, Sample(float(at), (load,)))
    speed = measured(meter, CAPACITY)
    assert speed is not None
    assert speed.floor == pytest.approx(TRUE.floor, rel=0.3)
    assert speed.prefill == pytest.approx(TRUE.prefill, rel=0.3)


def test_a_step_decodes_at_least_one_token() -> None:
    """Without the engine's own sum, one request that a scrape happens to see would stand for thousands of steps."""
    load = EngineLoad("a", "u", 0, 0, 0, CAPACITY, 0, Work(0.0, 0.0, 0.0))
    seen = EngineLoad("a", "u", 1, 0, 100, CAPACITY, 1, Work(1000.0, 1000.0, 0.0))
    meter = observe(observe(Meter(), Sample(0.0, (load,))), Sample(19.0, (load,)))
    meter = observe(meter, Sample(20.0, (seen,)))
    assert meter.products[0] == 1000.0**2


def test_a_change_of_the_speed_is_followed() -> None:
    meter = _run(TRUE, 3600)
    for at in range(3600, 14400, 2):
        work = Work(0.0, at / 0.05 * 8, 0.0)
        meter = observe(meter, Sample(float(at), (EngineLoad("a", "v", 8, 0, 800, CAPACITY, 8, work),)))
    speed = measured(meter, CAPACITY)
    assert speed is not None
    assert speed.floor == pytest.approx(0.05, rel=0.15)


def test_it_is_unknown_before_enough_was_seen() -> None:
    assert measured(_run(TRUE, 100), CAPACITY) is None
    assert measured(_run(TRUE, 20 * int(LEAST_BLOCKS) + 60), CAPACITY) is not None
    assert measured(_run(TRUE, 3600), 0) is None


def test_idle_engines_and_restarts_teach_nothing() -> None:
    assert _run(TRUE, 600, idle=0).blocks == 0
    load = EngineLoad("a", "u", 4, 0, 400, CAPACITY, 4, Work(1e6, 1e6, 0.0))
    meter = observe(Meter(), Sample(0.0, (load,)))
    meter = observe(meter, Sample(30.0, (replace(load, work=Work(10.0, 10.0, 0.0)),)))
    assert meter.blocks == 0
    assert meter.marks[0].began == 30.0


def test_an_engine_without_counters_is_left_out() -> None:
    meter = observe(Meter(), Sample(0.0, (EngineLoad("a", "u", 4, 0, 400, CAPACITY),)))
    assert meter == Meter()
