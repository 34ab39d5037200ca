"""Which pods are engines of a deployment, and what the loop has to know of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAINING_SINCE,
    ANNOTATION_OWNER_UID,
    LABEL_ROLE,
    Manifest,
)
from qwen_operator.replicas.groups import Replica, groups_of, is_engine_of
from qwen_operator.replicas.pod_state import read_pod
from qwen_operator.replicas.scaling_view import scaled_deployment, scaled_deployments, shown
from qwen_operator.scaling.types import Attained, Bounds, EnginePod, ScaledDeployment, ScalingState


def deployment(**spec: Any) -> Manifest:
    return {"metadata": {"name": "demo", "namespace": "team", "uid": "uid-demo"}, "spec": {"model": "m"} | spec}


def pod(
    number: int = 0, *, command: list[str] | None = None, owner: str = "uid-demo", role: str = "engine"
) -> Manifest:
    return {
        "metadata": {
            "name": f"demo-12345678-{number}",
            "uid": f"uid-{number}",
            "labels": {LABEL_ROLE: role},
            "annotations": {ANNOTATION_OWNER_UID: owner},
        },
        "spec": {"containers": [{"name": "sidecar"}, {"name": "engine", "command": command or []}]},
        "status": {"phase": "Running", "podIP": "fd00::7", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def replicas(owner: Manifest, pods: Iterable[Manifest]) -> tuple[Replica, ...]:
    return groups_of(read_pod(pod, "demo") for pod in pods if is_engine_of(pod, owner))


def scaled(owner: Manifest, pods: Iterable[Manifest]) -> ScaledDeployment:
    return scaled_deployment(owner, replicas(owner, pods))


def _with(manifest: Manifest, part: str, **members: Any) -> Manifest:
    return {**manifest, part: {**manifest[part], **members}}


def test_a_pod_that_answers() -> None:
    command = ["x", "launch", "--", "--served-model-name=org/m", "--max-running-requests", "2"]
    view = scaled(deployment(scaling={"maxReplicas": 3}), [pod(command=command)])
    assert (view.key, view.uid, view.bounds) == (("team", "demo"), "uid-demo", Bounds(1, 3, 300.0))
    assert view.policy == "Queue"
    assert scaled(deployment(scaling={"maxReplicas": 3, "policy": "Objective"}), []).policy == "Objective"
    assert view.engines == (
        EnginePod("demo-12345678-0", "uid-0", "fd00::7", limit=2, model="org/m", replica="demo-12345678-0"),
    )


@pytest.mark.parametrize(
    ("observed", "seconds"),
    [
        ({"hash": "b", "startupSeconds": 45}, 45),
        ({"hash": "a", "startupSeconds": 45}, 90),
        ({"hash": "b", "startupSeconds": "45"}, 90),
        ({"hash": "b", "startupSeconds": 10**9}, 90),
        ({}, 90),
    ],
)
def test_what_a_start_took_or_should_take_reaches_the_policy(observed: Any, seconds: int) -> None:
    plan = {"hash": "b", "startupSeconds": 90}
    owner = deployment(scaling={"maxReplicas": 3}) | {"status": {"plan": plan, "observed": observed}}
    assert scaled(owner, []).bounds == Bounds(1, 3, 300.0, start_seconds=seconds)


def test_the_objective_reaches_the_engines_whatever_decides_the_size() -> None:
    fast = {"timeToFirstTokenMilliseconds": 500}
    for spec in ({"replicas": 2}, {"suspend": True}, {}):
        view = scaled(deployment(scaling={"maxReplicas": 3, "objective": fast}, **spec), [pod()])
        assert view.objective == view.engines[0].objective == Objective(500)
    assert scaled(deployment(), [pod()]).engines[0].objective == Objective()


@pytest.mark.parametrize(
    ("written", "attained"),
    [
        ({"hour": 99, "day": 0}, Attained(99, 0)),
        ({"day": 98}, Attained(None, 98)),
        ({"hour": "99", "day": 101}, Attained()),
        ([99], Attained()),
    ],
)
def test_what_the_status_shows_of_the_objective(written: Any, attained: Attained) -> None:
    its = {"scaling": {"wanted": 1, "reason": "Steady", "attainmentPercent": written}, "summary": {"load": "idle"}}
    state = shown({**deployment(), "status": its})
    assert state is not None
    assert state.attained == attained


OPTIONS: dict[str, tuple[list[str], int]] = {
    "none": ([], 0),
    "one word": (["--max-running-requests=7"], 7),
    "two words": (["--max-running-requests", "7"], 7),
    "the last one wins": (["--max-running-requests=7", "--max-running-requests", "9"], 9),
    "no number": (["--max-running-requests=many"], 0),
    "cut off": (["--max-running-requests"], 0),
    "another option": (["--max-running-requests-x=7"], 0),
}


@pytest.mark.parametrize(("command", "limit"), OPTIONS.values(), ids=OPTIONS.keys())
def test_how_many_requests_an_engine_runs(command: list[str], limit: int) -> None:
    assert scaled(deployment(), [pod(command=command)]).engines[0].limit == limit


@pytest.mark.parametrize(("option", "stages"), [("--pp-size=2", 2), ("--pp-size=0", 1), ("--pp-size=x", 1), ("-x", 1)])
def test_how_many_stages_an_engine_has(option: str, stages: int) -> None:
    assert scaled(deployment(), [pod(command=[option])]).engines[0].stages == stages


def test_arguments_count_like_the_command() -> None:
    manifest = pod()
    manifest["spec"]["containers"][1]["args"] = ["--max-running-requests=3"]
    assert scaled(deployment(), [manifest]).engines[0].limit == 3
    assert scaled(deployment(), [_with(pod(), "spec", containers=[])]).engines[0].limit == 0


READY: dict[str, tuple[dict[str, Any], bool]] = {
    "ready": ({}, True),
    "not ready": ({"conditions": [{"type": "Ready", "status": "False"}]}, False),
    "no address": ({"podIP": ""}, False),
    "no conditions": ({"conditions": None}, False),
}


@pytest.mark.parametrize(("status", "ready"), READY.values(), ids=READY.keys())
def test_ready(status: dict[str, Any], ready: bool) -> None:
    assert scaled(deployment(), [_with(pod(), "status", **status)]).engines[0].ready is ready


def test_a_draining_pod() -> None:
    manifest = pod()
    manifest["metadata"]["annotations"][ANNOTATION_DRAINING_SINCE] = "2026-11-24T10:00:00Z"
    assert scaled(deployment(), [manifest]).engines[0].draining


def test_a_pod_on_a_cordoned_node() -> None:
    manifest = pod()
    manifest["metadata"]["annotations"][ANNOTATION_CORDONED_SINCE] = "2026-11-24T10:00:00Z"
    assert [engine.cordoned for engine in scaled(deployment(), [manifest, pod(1)]).engines] == [True, False]


NO_ENGINES: dict[str, Manifest] = {
    "somebody else's": pod(owner="another"),
    "an inspection": pod(role="inspection"),
    "being deleted": _with(pod(), "metadata", deletionTimestamp="2026-11-24T10:00:00Z"),
    "at its end": _with(pod(), "status", phase="Failed"),
    "bare": {"metadata": {"name": "demo-1", "uid": "x"}},
}


@pytest.mark.parametrize("manifest", NO_ENGINES.values(), ids=NO_ENGINES.keys())
def test_what_is_no_engine(manifest: Manifest) -> None:
    assert [one.pod for one in scaled(deployment(), [manifest, pod(2), pod(1)]).engines] == [
        "demo-12345678-1",
        "demo-12345678-2",
    ]


def test_deployments_that_are_being_deleted_are_not_looked_at() -> None:
    leaving = _with(deployment(), "metadata", deletionTimestamp="2026-11-24T10:00:00Z")
    views = list(scaled_deployments([leaving, deployment()], lambda owner: replicas(owner, [pod()])))
    assert [len(one.engines) for one in views] == [1]
    assert scaled({"metadata": deployment()["metadata"]}, []).bounds is None


def _status(reason: str, load: str = "low", active: str = "True") -> Manifest:
    report = {"wanted": 3, "reason": reason, "message": "as counted"}
    condition = {"type": "ScalingActive", "status": active}
    return {"status": {"scaling": report, "summary": {"load": load}, "conditions": [condition]}}


SHOWN: dict[str, tuple[Manifest, ScalingState | None]] = {
    "by load": (_status("Steady"), ScalingState(3, Reason.STEADY, "as counted", active=True, load="low")),
    "blind": (
        _status("MetricsMissing", "?", "False"),
        ScalingState(3, Reason.METRICS_MISSING, "as counted", active=False, load="?"),
    ),
    "a number that was set": (
        _status("ReplicasSet", "idle", "False"),
        ScalingState(None, Reason.REPLICAS_SET, "as counted", active=False, load="idle"),
    ),
    "words of another version": (_status("Elsewhere"), None),
    "a load of another version": (_status("Steady", "34%"), None),
    "no status": ({}, None),
}


@pytest.mark.parametrize(("deployment", "state"), SHOWN.values(), ids=SHOWN.keys())
def test_what_the_status_shows(deployment: Manifest, state: ScalingState | None) -> None:
    assert shown(deployment) == state
