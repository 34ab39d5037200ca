"""Conditions, Events and the status that users read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api import reading, status
from qwen_operator.api.conditions import ALWAYS, MESSAGE_LIMIT, ConditionType, Reason, Verdict, set_conditions
from qwen_operator.api.events import transitions
from qwen_operator.api.fields import camel
from qwen_operator.api.schema import object_schema
from qwen_operator.api.status import Failure, Observation, ScalingReport
from qwen_operator.api.status_size import BUDGETS, SIZE_LIMIT, size_of
from qwen_operator.api.status_types import Status

READY, PLANNED, LOADED = ConditionType.READY, ConditionType.PLANNED, ConditionType.MODEL_LOADED
ACTIVE, LIMITED = ConditionType.SCALING_ACTIVE, ConditionType.SCALING_LIMITED
NOW, LATER = "2026-11-24T10:00:00Z", "2026-11-24T10:05:00Z"


def _verdicts(ready: bool | None, reason: Reason, *more: Verdict) -> tuple[Verdict, ...]:
    return (
        Verdict(READY, ready, reason, f"ready because {reason}"),
        Verdict(PLANNED, True, Reason.FITS, "4 GPUs"),
        Verdict(LOADED, ready, Reason.LOADED if ready else reason, "model"),
        Verdict(ACTIVE, False, Reason.NOT_CONFIGURED, "one replica"),
        *more,
    )


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = set_conditions([], _verdicts(False, Reason.STARTING), 1, NOW)
    second = set_conditions(first, _verdicts(False, Reason.LOADING), 2, LATER)
    third = set_conditions(second, _verdicts(True, Reason.SERVING), 2, LATER)
    assert [one[0]["lastTransitionTime"] for one in (first, second, third)] == [NOW, NOW, LATER]
    assert [one[0]["reason"] for one in (first, second, third)] == ["Starting", "Loading", "Serving"]
    assert [one[0]["observedGeneration"] for one in (first, second, third)] == [1, 2, 2]
    assert third[1]["lastTransitionTime"] == NOW


def test_optional_conditions_are_there_only_while_true() -> None:
    stalled = Verdict(ConditionType.STALLED, True, Reason.DOES_NOT_FIT, "change it")
    over = Verdict(ConditionType.RECONCILING, False, Reason.SERVING, "")
    types = [one["type"] for one in set_conditions([], _verdicts(None, Reason.UNKNOWN, stalled, over), 1, NOW)]
    assert types == ["Ready", "Planned", "ModelLoaded", "ScalingActive", "Stalled"]


def test_a_long_message_is_cut() -> None:
    condition = set_conditions([], [Verdict(READY, None, Reason.UNKNOWN, "x" * 2000)], 1, NOW)[0]
    assert (len(condition["message"]), condition["status"]) == (MESSAGE_LIMIT, "Unknown")


def _step(before: tuple[Verdict, ...], after: tuple[Verdict, ...]) -> list[tuple[str, str]]:
    old = set_conditions([], before, 1, NOW)
    return [(event.type, event.reason) for event in transitions(old, set_conditions(old, after, 1, LATER))]


def _refused(reason: Reason) -> tuple[Verdict, ...]:
    stalled = Verdict(ConditionType.STALLED, True, reason, "change it")
    return (Verdict(READY, False, reason, "a"), Verdict(PLANNED, False, reason, "b"), stalled)


def _scaling(active: bool, reason: Reason) -> tuple[Verdict, ...]:
    return (*_verdicts(True, Reason.SERVING)[:3], Verdict(ACTIVE, active, reason, ""))


EVENTS = {
    "a plan": ((), _verdicts(False, Reason.STARTING), []),
    "nothing new": (_verdicts(True, Reason.SERVING), _verdicts(True, Reason.SERVING), []),
    "progress": (_verdicts(False, Reason.STARTING), _verdicts(False, Reason.LOADING), []),
    "it serves": (_verdicts(False, Reason.LOADING), _verdicts(True, Reason.SERVING), [("Normal", "Serving")]),
    "one event per fault": ((), _refused(Reason.DOES_NOT_FIT), [("Warning", "DoesNotFit")]),
    "a fault is told once": (
        _verdicts(False, Reason.HUNG),
        _verdicts(False, Reason.HUNG, Verdict(ConditionType.STALLED, True, Reason.HUNG, "")),
        [],
    ),
    "another fault": (_verdicts(False, Reason.HUNG), _verdicts(False, Reason.UNKNOWN), [("Warning", "Unknown")]),
    "scaled to zero": (_verdicts(True, Reason.SERVING), _verdicts(True, Reason.SCALED), [("Normal", "Scaled")]),
    "degraded": (
        _verdicts(True, Reason.SERVING),
        _verdicts(True, Reason.SERVING, Verdict(ConditionType.DEGRADED, True, Reason.REPLICA_LOST, "")),
        [("Warning", "ReplicaLost")],
    ),
    "the load is not seen any more": (
        _scaling(True, Reason.STEADY),
        _scaling(False, Reason.METRICS_FROZEN),
        [("Warning", "MetricsFrozen")],
    ),
    "the load decides again": (_scaling(False, Reason.METRICS_FROZEN), _scaling(True, Reason.STEADY), []),
    "a person decides": (_scaling(True, Reason.STEADY), _scaling(False, Reason.REPLICAS_SET), []),
    "more would be needed": (
        _scaling(True, Reason.STEADY),
        (*_scaling(True, Reason.AT_MAXIMUM), Verdict(LIMITED, True, Reason.AT_MAXIMUM, "")),
        [("Warning", "AtMaximum")],
    ),
    "still moving": (
        _verdicts(True, Reason.SERVING),
        _verdicts(True, Reason.SERVING, Verdict(ConditionType.RECONCILING, True, Reason.HUNG, "")),
        [],
    ),
}


@pytest.mark.parametrize(("before", "after", "events"), EVENTS.values(), ids=EVENTS.keys())
def test_events_are_transitions(
    before: tuple[Verdict, ...], after: tuple[Verdict, ...], events: list[tuple[str, str]]
) -> None:
    assert _step(before, after) == events


def _observation(**changes: Any) -> Observation:
    observation = Observation(
        generation=3,
        replicas=2,
        ready=1,
        wanted=2,
        selector="qwen-operator.dev/deployment=a,qwen-operator.dev/role=engine",
        names=("a",),
        verdicts=_verdicts(True, Reason.SERVING),
        gpus="4xH100-80GB",
        model={"architecture": "A", "quantization": "bfloat16", "weightBytes": 1, "factsFrom": "Catalog"},
        plan={
            "hash": "12345678",
            "gpuProduct": "NVIDIA-H100-80GB-HBM3",
            "gpusPerReplica": 4,
            "parallelism": {"tensor": 4},
            "contextTokens": 1,
            "kvTokens": 1,
            "startupSeconds": 1,
            "engineVersion": "0.5.23",
            "args": ["--a"],
            "steps": ["one"],
        },
    )
    return replace(observation, **changes)


FAILURE = Failure(Reason.HUNG, "Serving", "a-12345678-0", 1, NOW, 2, tuple(f"line {n}" for n in range(20)))


@pytest.mark.parametrize(
    "observation",
    [
        _observation(),
        _observation(last_failure=FAILURE),
        _observation(scaling=ScalingReport(2, Reason.STEADY, "0 queued", 1, 100, 99), load="idle"),
        _observation(model=None, plan=None, gpus="", no_fit={"steps": ["x"], "alternatives": []}),
    ],
)
def test_the_status_is_what_the_schema_says(observation: Observation) -> None:
    built = status.build(observation, {}, NOW)
    assert reading.problems(built, object_schema(Status), "status") == []
    assert {"replicas": 2, "readyReplicas": 1, "observedGeneration": 3}.items() <= built.items()
    assert ("lastFailure" in built) is bool(observation.last_failure)
    assert "plan" in built or built["summary"]["gpus"] == "-"


def test_the_log_keeps_its_end() -> None:
    assert status.build(_observation(last_failure=FAILURE), {}, NOW)["lastFailure"]["log"][-1] == "line 19"


def test_a_status_is_never_larger_than_its_limit() -> None:
    plan = dict(_observation().plan or {}, steps=["s" * 90] * 100, args=["a" * 90] * 100)
    failure = replace(FAILURE, log=("l" * 900,) * 30)
    more = [Verdict(kind, True, Reason.HUNG, "") for kind in (ConditionType.STALLED, ConditionType.DEGRADED, LIMITED)]
    verdicts = tuple(replace(verdict, message="m" * 1000) for verdict in _verdicts(True, Reason.SERVING, *more))
    scaling = ScalingReport(2, Reason.STEADY, "m" * 2000)
    built = status.build(_observation(plan=plan, last_failure=failure, verdicts=verdicts, scaling=scaling), {}, NOW)
    assert len(json.dumps(built, separators=(",", ":"))) <= SIZE_LIMIT
    assert built["plan"]["steps"] == []
    assert [line[0] for line in built["lastFailure"]["log"]] == ["l"], "the line with the cause gets shorter and stays"
    assert all(condition["message"] for condition in built["conditions"]), "a long plan takes no condition its words"
    assert len(plan["steps"]) == 100, "the input is not touched"


def test_the_budgets_of_all_parts_make_the_whole() -> None:
    assert set(BUDGETS) == {camel(name) for name in get_type_hints(Status)}
    assert sum(BUDGETS.values()) <= SIZE_LIMIT


TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=1024)


@given(
    st.lists(TEXT, max_size=64),
    st.lists(TEXT, max_size=64),
    st.lists(TEXT, max_size=30),
    TEXT,
    st.booleans(),
)
def test_whatever_is_long_the_rest_keeps_its_budget(
    steps: list[str], args: list[str], log: list[str], message: str, full: bool
) -> None:
    """The largest values that the schema allows in every part, with parts of any length."""
    # Nothing is Stalled and Reconciling at once.
    kinds = tuple(kind for kind in ConditionType if kind is not ConditionType.RECONCILING) if full else ALWAYS
    verdicts = tuple(Verdict(kind, True, Reason.INSPECTION_FAILED, message) for kind in kinds)
    observation = _observation(
        generation=10**6,
        names=tuple(f"{number}" + "n" * 95 for number in range(4)),
        verdicts=verdicts,
        model={
            "architecture": "Qwen2_5_VLForConditionalGeneration",
            "quantization": "q" * 60,
            "weightBytes": 10**12,
            "factsFrom": "Inspection",
            "commit": "c" * 40,
        },
        plan=dict(_observation().plan or {}, gpuProduct="p" * 63, steps=steps, args=args),
        no_fit={"steps": steps, "alternatives": [{"kind": "Nodes", "patch": "{}"}] * 6} if full else None,
        last_failure=replace(FAILURE, pod="p" * 60, log=tuple(log)),
        scaling=ScalingReport(64, Reason.METRICS_UNAUTHORIZED, message, 64, 100, 100, ("s" * 40,) * 16),
        adapters={
            "ready": 0,
            "total": 16,
            "waiting": [{"name": f"{number:040}", "reason": "InspectionFailed"} for number in range(16)],
        },
    )
    built = status.build(observation, {}, NOW)
    assert size_of(built) <= SIZE_LIMIT
    for part, value in built.items():
        if part in ("endpoint", "model", "selector"):
            assert size_of({part: value}) <= BUDGETS[part] + 2


def test_many_short_lines_stay_within_the_schema() -> None:
    plan = dict(_observation().plan or {}, steps=["s"] * 100)
    assert len(status.build(_observation(plan=plan), {}, NOW)["plan"]["steps"]) == 64


SUMMARIES = {
    "serving": (_verdicts(True, Reason.SERVING), "Serving"),
    "serving though a rollout is stuck": (_verdicts(True, Reason.SERVING, *_refused(Reason.HUNG)[2:]), "Serving"),
    "waiting": (_verdicts(False, Reason.WAITING_FOR_GPUS), "WaitingForGpus"),
    "stalled": (_verdicts(False, Reason.STARTING, *_refused(Reason.HUNG)[2:]), "Hung"),
}


@pytest.mark.parametrize(("verdicts", "word"), SUMMARIES.values(), ids=SUMMARIES.keys())
def test_the_summary_is_one_word(verdicts: tuple[Verdict, ...], word: str) -> None:
    summary = status.summary(_observation(verdicts=verdicts))
    assert (summary["gpus"], summary["ready"], summary["status"]) == ("4xH100-80GB", "1/2", word)


def test_attainment_is_shown_where_it_is_known() -> None:
    def built(hour: int | None, day: int | None) -> Any:
        report = ScalingReport(2, Reason.STEADY, "a", hour_percent=hour, day_percent=day)
        return status.build(_observation(scaling=report), {}, NOW)["scaling"].get("attainmentPercent")

    assert [built(0, 99), built(None, 99), built(None, None)] == [{"hour": 0, "day": 99}, {"day": 99}, None]


def test_scaling_says_since_when_the_number_or_its_reason_holds() -> None:
    def step(old: dict[str, Any], wanted: int, reason: Reason, text: str, now: str) -> dict[str, Any]:
        return status.build(_observation(scaling=ScalingReport(wanted, reason, text), load="high"), old, now)

    first = step({}, 2, Reason.STEADY, "a", NOW)
    assert first["scaling"] == {"wanted": 2, "ready": 1, "reason": "Steady", "message": "a", "since": NOW}
    assert first["summary"]["load"] == "high"
    assert step(first, 2, Reason.STEADY, "b", LATER)["scaling"]["since"] == NOW
    assert step(first, 3, Reason.STEADY, "a", LATER)["scaling"]["since"] == LATER
    assert step(first, 2, Reason.SCALING_UP, "a", LATER)["scaling"]["since"] == LATER
