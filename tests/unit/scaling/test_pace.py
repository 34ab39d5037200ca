"""When engines are read less often, and what ends that."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.pace import (
    ELSEWHERE_SECONDS,
    QUIET_INTERVAL_SECONDS,
    QUIET_SECONDS,
    Quiet,
    next_at,
    wakes,
    watch,
)
from qwen_operator.scaling.types import EngineLoad, EnginePod, Sample, Work
from tests.unit.scaling.world import engine, engines, load, sample

NOBODY = Look(ModelDemand(), complete=True, silent=False, hears=True)
SOMEBODY = replace(NOBODY, demand=ModelDemand(came=1.5))
DEAF = replace(NOBODY, hears=False)


def done(number: int, prompts: float = 100.0, running: int = 0) -> EngineLoad:
    return replace(load(number, running), work=Work(prompts, 5.0, 1.0))


def look(at: float, *loads: EngineLoad) -> Sample:
    return sample(at, loads or (done(0),))


def seen(*looks: tuple[Sample, Look], fleet: tuple[EnginePod, ...] = engines(1)) -> Quiet:
    """The memory after these looks."""
    quiet: Quiet | None = None
    for one, at_gateway in looks:
        quiet = watch(quiet, at_gateway, one, fleet)
    assert quiet is not None
    return quiet


def test_engines_without_requests_are_quiet_after_a_minute() -> None:
    quiet = seen(*((look(2.0 * number), NOBODY) for number in range(30)))
    assert quiet.begins == QUIET_SECONDS
    assert next_at(quiet, 58.0, 0.5) == 58.0, "the next look has them"
    assert next_at(quiet, 60.0, 0.0) == 60.0 + QUIET_INTERVAL_SECONDS / 2
    assert next_at(quiet, 60.0, 1.0) == 60.0 + QUIET_INTERVAL_SECONDS


NOT_QUIET = {
    "somebody asked": (look(80.0), SOMEBODY, engines(1)),
    "somebody waits": (look(80.0), replace(NOBODY, demand=ModelDemand(held=1)), engines(1)),
    "nobody knows who asked": (look(80.0), DEAF, engines(1)),
    "one starts": (look(80.0), NOBODY, engines(1, pending=1)),
    "one drains": (look(80.0, done(0), done(1)), NOBODY, (engine(0), engine(1, draining=True))),
    "one is being replaced": (look(80.0), NOBODY, (engine(0, cordoned=True),)),
    "one is not read": (sample(80.0), NOBODY, engines(1)),
    "one is unreadable": (sample(80.0, (), {"demo-12345678-0": Reason.METRICS_MISSING}), NOBODY, engines(1)),
    "there are none": (sample(80.0), NOBODY, ()),
}


@pytest.mark.parametrize(("now", "at_gateway", "fleet"), NOT_QUIET.values(), ids=NOT_QUIET.keys())
def test_what_ends_the_quiet(now: Sample, at_gateway: Look, fleet: tuple[EnginePod, ...]) -> None:
    quiet = watch(Quiet(60.0, {"uid-0": (100.0, 5.0), "uid-1": (100.0, 5.0)}), at_gateway, now, fleet)
    assert quiet.begins == 80.0 + QUIET_SECONDS


@pytest.mark.parametrize("busy", [done(0, running=1), done(0, prompts=200.0)], ids=["a request", "work since"])
def test_requests_past_the_gateway_keep_the_pace_for_an_hour(busy: EngineLoad) -> None:
    """The gateway does not show them, so only the engines do."""
    past = seen((look(0.0), NOBODY), (look(70.0, busy), NOBODY))
    assert past.begins == 70.0 + ELSEWHERE_SECONDS
    through = seen((look(0.0), NOBODY), (look(70.0, busy), SOMEBODY))
    assert through.begins == 70.0 + QUIET_SECONDS
    # The end of a request that came through the gateway, a long time ago.
    ending = seen((look(0.0), NOBODY), (look(30.0, busy), NOBODY))
    assert ending.begins == 30.0 + QUIET_SECONDS


@pytest.mark.parametrize(
    ("at_gateway", "expected"),
    [
        (NOBODY, False),
        (DEAF, True),
        (SOMEBODY, True),
        (replace(NOBODY, demand=ModelDemand(held=1, came=inf)), True),
        (replace(NOBODY, demand=ModelDemand(came=QUIET_SECONDS + 1)), False),
    ],
)
def test_what_wakes(at_gateway: Look, expected: bool) -> None:
    assert wakes(at_gateway) is expected
