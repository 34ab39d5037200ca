"""The LOAD column: its classes, and that it changes rarely."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.load import HOLD_SECONDS, LoadClass, LoadMemory, classify, settle
from qwen_operator.scaling.types import EngineLoad, EnginePod
from tests.unit.scaling.world import engine, engines, load, sample

CLASSES: dict[str, tuple[tuple[EnginePod, ...], tuple[EngineLoad, ...], LoadClass]] = {
    "no engine": ((), (), LoadClass.NONE),
    "none ready": (engines(0, pending=1), (), LoadClass.NONE),
    "not read yet": (engines(1), (), LoadClass.NONE),
    "only a draining one": ((engine(0, draining=True),), (load(0, 1),), LoadClass.NONE),
    "no request": (engines(2), (load(0), load(1)), LoadClass.IDLE),
    "a quarter": (engines(2), (load(0, 1), load(1)), LoadClass.LOW),
    "half": (engines(2), (load(0, 1), load(1, 1)), LoadClass.HIGH),
    "half the tokens": (engines(1, limit=0), (load(0, 1, used=5000),), LoadClass.HIGH),
    "few tokens": (engines(1, limit=0), (load(0, 1, used=4999),), LoadClass.LOW),
    "nothing to compare with": (engines(1, limit=0), (load(0, 1, capacity=0),), LoadClass.LOW),
    "one waits": (engines(2), (load(0, 2, 1), load(1)), LoadClass.OVER),
}


@pytest.mark.parametrize(("fleet", "loads", "expected"), CLASSES.values(), ids=CLASSES.keys())
def test_classes(fleet: tuple[EnginePod, ...], loads: tuple[EngineLoad, ...], expected: LoadClass) -> None:
    assert classify(sample(0.0, loads), fleet) == expected


def test_what_cannot_be_read_is_not_guessed() -> None:
    assert classify(sample(0.0, [load(0)], {"x": Reason.METRICS_MISSING}), engines(2)) == LoadClass.BLIND


def _shown(classes: list[LoadClass], step: float = 2.0) -> list[LoadClass]:
    memory: LoadMemory | None = None
    shown = []
    for number, now in enumerate(classes):
        memory = settle(memory, now, number * step)
        shown.append(memory.shown)
    return shown


def test_up_with_the_second_look_and_down_after_a_minute() -> None:
    calm = int(HOLD_SECONDS / 2)
    shown = _shown([LoadClass.IDLE, LoadClass.OVER, LoadClass.OVER, LoadClass.LOW, *[LoadClass.IDLE] * calm])
    assert shown[:4] == [LoadClass.IDLE, LoadClass.IDLE, LoadClass.OVER, LoadClass.OVER]
    assert shown[2 + calm - 1 :] == [LoadClass.OVER, LoadClass.LOW, LoadClass.IDLE]


def test_a_trickle_shows_one_class() -> None:
    shown = _shown([LoadClass.LOW if number % 10 < 2 else LoadClass.IDLE for number in range(1000)])
    assert sum(one != two for one, two in pairwise(shown)) == 0


def test_nothing_known_shows_at_once() -> None:
    assert _shown([LoadClass.OVER, LoadClass.OVER, LoadClass.BLIND, LoadClass.IDLE, LoadClass.NONE, LoadClass.LOW]) == [
        LoadClass.OVER,
        LoadClass.OVER,
        LoadClass.BLIND,
        LoadClass.IDLE,
        LoadClass.NONE,
        LoadClass.LOW,
    ]
