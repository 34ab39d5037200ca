"""What the status says about the number of replicas, whoever decides."""

from __future__ import annotations

import pytest

from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.api.spec import Scaling, Spec
from qwen_operator.replicas.wanted import report
from qwen_operator.scaling.types import ScalingState

SCALING = Scaling(4, 2)
WRITER = ("kubectl", "2026-11-24T10:00:00Z")


def _state(wanted: int | None, reason: Reason = Reason.STEADY, active: bool = True) -> ScalingState:
    return ScalingState(wanted, reason, "as counted", active, load="low")


BY_LOAD = Spec("m", scaling=SCALING)
Case = tuple[Spec, ScalingState | None, int]
Answer = tuple[int, Reason, bool, str]
CASES: dict[str, tuple[Case, Answer]] = {
    "nothing said": ((Spec("m"), _state(None), 3), (1, Reason.NOT_CONFIGURED, False, "neither spec.scaling nor")),
    "a number": (
        (Spec("m", replicas=0), None, 3),
        (0, Reason.REPLICAS_SET, False, "spec.replicas is 0, set by kubectl at 2026-11-24T10:00:00Z"),
    ),
    "a number over the load": (
        (Spec("m", replicas=8, scaling=SCALING), _state(3), 3),
        (8, Reason.REPLICAS_SET, False, "spec.scaling rests until the field is removed"),
    ),
    "the load": ((BY_LOAD, _state(3), 1), (3, Reason.STEADY, True, "as counted")),
    "bounds that were lowered since": ((BY_LOAD, _state(9), 1), (4, Reason.STEADY, True, "as counted")),
    "not looked at": ((BY_LOAD, None, 3), (3, Reason.NOTHING_TO_MEASURE, False, "not looked at yet")),
    "not looked at, and new": ((BY_LOAD, _state(None), 0), (2, Reason.NOTHING_TO_MEASURE, False, "not looked at yet")),
    "blind": ((BY_LOAD, _state(3, Reason.METRICS_FROZEN, False), 1), (3, Reason.METRICS_FROZEN, False, "as counted")),
}


@pytest.mark.parametrize(("case", "answer"), CASES.values(), ids=CASES.keys())
def test_who_decides(case: Case, answer: Answer) -> None:
    spec, state, held = case
    wanted, reason, active, says = answer
    found = report(spec, state, WRITER, held)
    verdict, limited = found.verdicts
    assert (found.wanted, found.scaling.reason, verdict.reason, verdict.status) == (wanted, reason, reason, active)
    assert says in verdict.message
    assert (verdict.type, limited.type) == (ConditionType.SCALING_ACTIVE, ConditionType.SCALING_LIMITED)
    assert limited.status is False
    assert found.load == ("low" if state else "-")


def test_at_the_most_it_is_limited_and_says_what_to_do() -> None:
    limited = report(Spec("m", scaling=SCALING), _state(4, Reason.AT_MAXIMUM), None, 4).verdicts[1]
    assert (limited.status, limited.reason) == (True, Reason.AT_MAXIMUM)
    assert limited.message == "as counted: raise spec.scaling.maxReplicas, or requests wait"


def test_a_writer_that_is_not_known_is_not_named() -> None:
    said = report(Spec("m", replicas=2), None, None, 0).scaling.message
    assert said == "spec.replicas is 2, set through the scale subresource (kubectl scale or an autoscaler)"
