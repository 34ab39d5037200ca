"""A look survives its line, and what is no look is a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling import recording
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.page import KNOWN_NAMES, MOST_SERIES, Page, Reading
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import Bounds, EnginePod, ScaledDeployment, ScalingState, Work

STATE = ScalingState(2, Reason.STEADY, "2 replicas wanted", active=True)
LOOKED = Looked(
    deployment=ScaledDeployment(
        key=("team", "chat"),
        uid="u",
        engines=(EnginePod("chat-1-0", "a", limit=256, model="m"), EnginePod("chat-1-1", "b", ready=False)),
        bounds=Bounds(1, 3, 300.0, 600.0),
        shown=STATE,
        size=2,
        policy="Objective",
        names=("m",),
    ),
    at=12.5,
    state=STATE,
    readings={
        "a": Reading(3, 1, 5, 900, 1000, 7.25, ticking=True, work=Work(10.0, 20.0, 0.5)),
        "b": Reason.METRICS_MISSING,
    },
    demand=Look(ModelDemand(held=2, oldest=1.5, asked=0.25), complete=True, silent=False),
    run="r",
    number=4,
    time=1e9,
)


def test_a_look_survives_its_line() -> None:
    assert recording.looked_of(recording.line(LOOKED)) == LOOKED
    bare = Looked(ScaledDeployment(("", "x"), ""), 0.0, replace(STATE, wanted=None))
    assert recording.looked_of(recording.line(bare)) == bare


def test_a_page_with_the_largest_numbers_does_not_spoil_the_recording() -> None:
    names, series = KNOWN_NAMES[0], [f'{{dp_rank="{rank}"}} 1e+15' for rank in range(MOST_SERIES)]
    of_all = (f"{name}{one}" for name in (*names.ticks, *names.work, f"{names.first_token}_count") for one in series)
    bucket = (f'{names.first_token}_bucket{{le="1.0",x="{number}"}} 1e+15' for number in range(MOST_SERIES))
    load = (f"{names.running} 1", f"{names.queued} 0", f"{names.token_usage} 0.5", f"{names.weights_gib} {1 << 20}")
    page = Page()
    page.feed("\n".join([*load, *of_all, *bucket, ""]).encode())
    reading = page.read("")
    assert isinstance(reading, Reading)
    assert reading.beat > 1e16
    looked = replace(LOOKED, readings={"a": reading})
    assert recording.looked_of(recording.line(looked)) == looked


def test_a_line_has_no_addresses_and_no_names_of_pods_to_remove() -> None:
    engines = (EnginePod("chat-1-0", "a", address="10.9.8.7"),)
    state = replace(STATE, removal_order=("chat-1-0",), idle=frozenset({"a"}), unfinished={"a": 1})
    text = recording.line(replace(LOOKED, deployment=replace(LOOKED.deployment, engines=engines), state=state))
    assert "10.9.8.7" not in text
    assert "removal_order" not in text
    assert recording.looked_of(text).state == STATE


def test_fields_of_a_later_version_are_ignored() -> None:
    later = json.loads(recording.line(LOOKED)) | {"later": {"a": [1]}}
    assert recording.looked_of(json.dumps(later)) == LOOKED


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "it is not JSON"),
    "no object": ([], "the line is a list: it must be an object"),
    "empty": ({}, "deployment is missing"),
    "no time": ({"at": None}, "at is None: it must be a number of at least 0"),
    "negative": ({"at": -1}, "at is -1: it must be a number of at least 0"),
    "huge": ({"at": 1e300}, "at is 1e+300: it must be a number of at least 0"),
    "infinite": ({"at": float("inf")}, "at is inf: it must be a number of at least 0"),
    "a text": ({"number": "7"}, "number is 7: it must be a whole number of at least 0"),
    "a truth": ({"number": True}, "number is True: it must be a whole number of at least 0"),
    "reason": (
        {"readings": {"a": "Gone\x1b[31m"}},
        "readings.a is Gone [31m: it must be a Reason that this version knows",
    ),
    "reading": ({"readings": {"a": {"running": 1}}}, "readings.a.queued is missing"),
    "key": ({"deployment": {"key": ["a"], "uid": ""}}, "deployment.key is a list: it must be a list of 2 entries"),
    "engines": ({"deployment": {"key": ["a", "b"], "uid": "", "engines": {}}}, "deployment.engines is an object"),
    "bounds": (
        {"deployment": {"key": ["a", "b"], "uid": "", "bounds": {"least": 3, "most": 2, "window": 1}}},
        "deployment.bounds.least is 3: it must be at most deployment.bounds.most",
    ),
    "deep": ({"deployment": json.loads("[" * 50 + "]" * 50)}, "deployment is a list: it must be an object"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_look_is_one_sentence(change: Any, message: str) -> None:
    text = change if isinstance(change, str) else json.dumps(change)
    if isinstance(change, dict) and change:
        text = json.dumps(json.loads(recording.line(LOOKED)) | change)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is checked as a whole
        recording.looked_of(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_line_of_any_size_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        recording.looked_of(b" " * (recording.LINE_BYTES + 1))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS: list[tuple[str | int, ...]] = [
    ("deployment",),
    ("deployment", "bounds"),
    ("deployment", "bounds", "window"),
    ("deployment", "engines", 0),
    ("deployment", "engines", 0, "limit"),
    ("deployment", "shown", "reason"),
    ("deployment", "names"),
    ("readings",),
    ("readings", "a"),
    ("readings", "a", "work"),
    ("readings", "b"),
    ("demand", "demand", "asked"),
    ("state", "reason"),
    ("number",),
]


@given(st.sampled_from(PATHS), ANYTHING)
def test_whatever_a_line_holds_it_is_a_look_or_a_sentence(path: tuple[str | int, ...], value: Any) -> None:
    content = json.loads(recording.line(LOOKED))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        looked = recording.looked_of(json.dumps(content))
    except ValueError as error:
        problem = str(error)
    else:
        problem = ""
        assert recording.looked_of(recording.line(looked)) == looked
    assert "\n" not in problem
