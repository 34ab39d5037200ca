"""The LOAD column: its classes, and that it changes rarely."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.load import HOLD_SECONDS, Load, LoadMemory, classify, settle
from qwen_operator.scaling.types import Engine, EngineLoad
from tests.unit.scaling.world import engine, engines, load, sample

CLASSES: dict[str, tuple[tuple[Engine, ...], tuple[EngineLoad, ...], Load]] = {
    "no engine": ((), (), Load.NONE),
    "none ready": (engines(0, pending=1), (), Load.NONE),
    "not read yet": (engines(1), (), Load.NONE),
    "only a draining one": ((engine(0, draining=True),), (load(0, 1),), Load.NONE),
    "no request": (engines(2), (load(0), load(1)), Load.IDLE),
    "a quarter": (engines(2), (load(0, 1), load(1)), Load.LOW),
    "half": (engines(2), (load(0, 1), load(1, 1)), Load.HIGH),
    "half the tokens": (engines(1, limit=0), (load(0, 1, used=5000),), Load.HIGH),
    "few tokens": (engines(1, limit=0), (load(0, 1, used=4999),), Load.LOW),
    "nothing to compare with": (engines(1, limit=0), (load(0, 1, capacity=0),), Load.LOW),
    "one waits": (engines(2), (load(0, 2, 1), load(1)), Load.OVER),
}


@pytest.mark.parametrize(("fleet", "loads", "expected"), CLASSES.values(), ids=CLASSES.keys())
def test_classes(fleet: tuple[Engine, ...], loads: tuple[EngineLoad, ...], expected: Load) -> None:
    assert classify(sample(0.0, loads), fleet) == expected


def test_what_cannot_be_read_is_not_guessed() -> None:
    assert classify(sample(0.0, [load(0)], {"x": Reason.METRICS_MISSING}), engines(2)) == Load.BLIND


def _shown(classes: list[Load], step: float = 2.0) -> list[Load]:
    memory: LoadMemory | None = None
    shown = []
    for number, now in enumerate(classes):
        memory = settle(memory, now, number * step)
        shown.append(memory.shown)
    return shown


def test_up_with_the_second_look_and_down_after_a_minute() -> None:
    calm = int(HOLD_SECONDS / 2)
    shown = _shown([Load.IDLE, Load.OVER, Load.OVER, Load.LOW, *[Load.IDLE] * calm])
    assert shown[:4] == [Load.IDLE, Load.IDLE, Load.OVER, Load.OVER]
    assert shown[2 + calm - 1 :] == [Load.OVER, Load.LOW, Load.IDLE]


def test_a_trickle_shows_one_class() -> None:
    shown = _shown([Load.LOW if number % 10 < 2 else Load.IDLE for number in range(1000)])
    assert sum(one != two for one, two in pairwise(shown)) == 0


def test_nothing_known_shows_at_once() -> None:
    assert _shown([Load.OVER, Load.OVER, Load.BLIND, Load.IDLE, Load.NONE, Load.LOW]) == [
        Load.OVER,
        Load.OVER,
        Load.BLIND,
        Load.IDLE,
        Load.NONE,
        Load.LOW,
    ]
