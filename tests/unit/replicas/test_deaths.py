"""Ends of engines as the kubelet reports them: which are failures, of what reason, and what is said about them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from qwen_operator.api.advice import ADVICE
from qwen_operator.api.conditions import MESSAGE_LIMIT, Reason
from qwen_operator.kube import Manifest
from qwen_operator.replicas.pod_state import PodState, as_of, last_failure, read_pod
from qwen_runtime.reasons import ReportReason

NOW = datetime(2026, 11, 24, 13, 0, tzinfo=UTC)
STARTED = "2026-11-24T12:00:00Z"
LIMIT_SECONDS = 600
REPORT = {"version": 1, "reason": "BadFlag", "phase": "Starting", "exitCode": 2, "log": ["a", "unrecognized: --x"]}
FROZEN = {"version": 1, "asked": True, "reason": "Hung", "phase": "Serving", "log": ["Health check failed."]}
SERVED = {"version": 1, "asked": True, "phase": "Serving", "log": ["a"]}
LOADED = {"version": 1, "asked": True, "phase": "LoadWeights", "log": ["Load weight begin."]}
BACK_OFF = {
    "reason": "CrashLoopBackOff",
    "message": "back-off 2m40s restarting failed container=engine pod=chat",
}


def ended(code: int, report: Manifest | str = "", reason: str = "Error", seconds: int = 60) -> Manifest:
    return {
        "exitCode": code,
        "reason": reason,
        "message": report if isinstance(report, str) else json.dumps(report),
        "startedAt": STARTED,
        "finishedAt": f"2026-11-24T{12 + seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z",
    }


def pod(end: Manifest, *, restarts: int = 1, deleting: bool = False, state: Manifest | None = None) -> Manifest:
    probe = {"periodSeconds": 5, "failureThreshold": LIMIT_SECONDS // 5}
    engine = {"name": "engine", "restartCount": restarts, "state": state or {"running": {}}}
    return {
        "metadata": {"name": "chat-0a1b2c3d-0", "uid": "u", **({"deletionTimestamp": STARTED} if deleting else {})},
        "spec": {"containers": [{"name": "side"}, {"name": "engine", "startupProbe": probe}]},
        "status": {"phase": "Running", "containerStatuses": [{**engine, "lastState": {"terminated": end}}]},
    }


def state(manifest: Manifest) -> PodState:
    return as_of(read_pod(manifest, "chat"), NOW)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ended(2, REPORT), "BadFlag"),
        # All processes at once: nobody was left to report, the kubelet says why.
        (ended(137, reason="OOMKilled"), "HostOutOfMemory"),
        (ended(137), "EngineKilled"),
        (ended(137, "", "ContainerStatusUnknown"), "Unknown"),
        (ended(128, "exec: python3: not found", "StartError"), "PodRefused"),
        (ended(1, "not a report"), "Unknown"),
        (ended(1, {**REPORT, "reason": "OfANewerRuntime"}), "Unknown"),
        # The kubelet saw an OOM kill that the report could not explain, or that has nothing to do with it.
        (ended(1, {**REPORT, "reason": "EngineKilled"}, "OOMKilled"), "HostOutOfMemory"),
        (ended(1, REPORT, "OOMKilled"), "BadFlag"),
        # Told to end by a failed liveness probe: whether it then ends in peace, or not within the grace period.
        (ended(0, FROZEN, "Completed"), "Hung"),
        (ended(137, FROZEN), "Hung"),
        (ended(137, SERVED), "Hung"),
        # Told to end by the start-up probe after all of its time, or by somebody before.
        (ended(143, LOADED, seconds=LIMIT_SECONDS), "StartupOverdue"),
        (ended(137, LOADED, seconds=LIMIT_SECONDS + 30), "StartupOverdue"),
        (ended(143, LOADED, seconds=LIMIT_SECONDS - 10), None),
        # Told to end by somebody, and it did.
        (ended(0, SERVED, "Completed"), None),
        (ended(0, "", "Completed"), None),
        (ended(143), None),
        (ended(130), None),
    ],
)
def test_the_end_of_an_engine_has_one_reason(end: Manifest, reason: str | None) -> None:
    failure = state(pod(end)).failure

    assert (failure.reason.value if failure else None) == reason


@pytest.mark.parametrize(
    ("end", "failed"),
    [
        (ended(0, "", "Completed"), False),
        (ended(137), False),
        (ended(137, FROZEN), False),
        (ended(137, SERVED), False),
        (ended(143, LOADED, seconds=LIMIT_SECONDS), False),
        (ended(7, REPORT), True),
    ],
)
def test_a_pod_that_is_deleted_fails_only_if_its_engine_crashed(end: Manifest, failed: bool) -> None:
    pod_state = state(pod(end, deleting=True))

    assert (pod_state.failure is not None, pod_state.crash_looping) == (failed, False)


def test_what_is_said_has_cause_advice_and_the_wait_for_the_next_try() -> None:
    waiting = state(pod(ended(2, REPORT), restarts=4, state={"waiting": BACK_OFF}))

    assert waiting.message == (
        "chat-0a1b2c3d-0 ended with exit code 2 while in Starting: unrecognized: --x. "
        "Correct or remove that item of spec.engine.args. Attempt 6 starts after a back-off of 2m40s"
    )
    assert (waiting.restarts.count, waiting.restarts.back_off) == (4, "2m40s")
    running = state(pod(ended(2, REPORT), restarts=5))
    assert running.message.endswith("engine.args. Attempt 6 is running")
    assert running.restarts.back_off == ""


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (ended(137), "ended with exit code 137. Find out"),
        (ended(137, "", "OOMKilled"), "ended with exit code 137: OOMKilled. Raise"),
        # The kernel leaves no line, so the last one is no cause.
        (
            ended(137, {**REPORT, "reason": "EngineKilled", "log": ["Loading shards: 40%"]}, "OOMKilled"),
            ": the kernel ended it for lack of memory; its last line was 'Loading shards: 40%'. Raise",
        ),
        # What changes with every try, or belongs to the line before, is left out.
        (ended(1, {**REPORT, "log": ["ready![2026-11-24 16:40:46 TP0] Subprocess died..."]}), ": Subprocess died. "),
    ],
)
def test_a_message_has_the_words_that_matter(end: Manifest, says: str) -> None:
    assert says in state(pod(end)).message


@pytest.mark.parametrize(
    ("restarts", "end", "looping"),
    [
        (2, ended(2, REPORT), False),
        (3, ended(2, REPORT), True),
        # A model that takes long to load and dies before it serves, again and again.
        (3, ended(1, {**REPORT, "phase": "CaptureGraphs"}, seconds=2000), True),
        (3, ended(1, {**REPORT, "phase": "Serving"}, seconds=60), True),
        # Once a day is no loop.
        (30, ended(1, {**REPORT, "phase": "Serving"}, seconds=2000), False),
        (3, ended(143), False),
    ],
)
def test_a_crash_loop_is_one_whose_tries_die_soon(restarts: int, end: Manifest, looping: bool) -> None:
    assert state(pod(end, restarts=restarts)).crash_looping is looping


@pytest.mark.parametrize(
    ("report", "seconds", "counts"),
    [
        ({**REPORT, "phase": "Serving"}, 60, [1, 2, 3]),
        # It takes long to load, and never serves.
        ({**REPORT, "phase": "LoadWeights"}, 2000, [1, 2, 3]),
        # It served for half an hour each time: never the same trouble in a row.
        ({**REPORT, "phase": "Serving"}, 2000, [1, 1, 1]),
    ],
)
def test_an_engine_that_served_for_long_begins_the_count_anew(
    report: Manifest, seconds: int, counts: list[int]
) -> None:
    record: Manifest = {}
    counted = []
    for day in (20, 21, 22):
        end = ended(1, report, seconds=seconds)
        end |= {key: end[key].replace("-24T", f"-{day}T") for key in ("startedAt", "finishedAt")}
        failure = last_failure(record, [state(pod(end, restarts=1))])
        assert failure is not None
        counted.append(failure.count)
        record = {"reason": failure.reason, "time": failure.time, "count": failure.count, "pod": failure.pod}
    assert counted == counts


MEMBER = {"version": 1, "reason": "MemberEnded", "phase": "Serving", "exitCode": 137, "log": ["rank 1 ended first"]}
KILLED = {"version": 1, "reason": "EngineKilled", "phase": "Serving", "exitCode": 137, "log": ["terminated with -9"]}


def of_rank(rank: int, report: Manifest, seconds: int) -> PodState:
    manifest = pod(ended(137, report, seconds=seconds))
    manifest["metadata"]["name"] = f"chat-0a1b2c3d-0-{rank}"
    return state(manifest)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(60, "EngineKilled"), (58, "EngineKilled"), (75, "EngineKilled"), (0, "MemberEnded")],
)
def test_the_cause_of_a_replica_replaces_a_consequence_that_was_told_first(seconds: int, reason: str) -> None:
    first = last_failure({}, [of_rank(0, MEMBER, 60)])
    assert first is not None
    assert first.reason == "MemberEnded"
    record = {"reason": first.reason, "time": first.time, "count": first.count, "pod": first.pod}
    # A minute before is another end.
    cause = of_rank(1, KILLED, seconds)
    for states in ([cause, of_rank(0, MEMBER, 60)], [cause]):
        told = last_failure(record, states)
        assert told is not None
        assert told.reason == reason


def test_a_consequence_does_not_replace_the_cause() -> None:
    cause = last_failure({}, [of_rank(1, KILLED, 60), of_rank(0, MEMBER, 61)])
    assert cause is not None
    record = {"reason": cause.reason, "time": cause.time, "count": cause.count, "pod": cause.pod}
    again = last_failure(record, [of_rank(0, MEMBER, 60)])
    assert again is not None
    assert (again.reason, again.pod) == ("EngineKilled", "chat-0a1b2c3d-0-1")


def test_a_pod_that_answers_again_is_in_no_loop() -> None:
    serving = pod(ended(2, REPORT), restarts=9)
    serving["status"]["conditions"] = [{"type": "Ready", "status": "True"}]

    assert not state(serving).crash_looping


def test_an_eviction_is_the_nodes_doing_and_not_the_engines() -> None:
    gone = pod(ended(137, SERVED), state={"terminated": ended(137, SERVED)})
    gone["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    pod_state = state(gone)

    assert pod_state.reason is Reason.EVICTED
    assert "low on resource: memory. The operator replaces the pod" in pod_state.message
    assert pod_state.failure is not None
    assert (pod_state.failure.reason, pod_state.failure.exit_code) == (Reason.EVICTED, 137)
    never_ran: dict[str, Any] = {"metadata": gone["metadata"], "status": {"phase": "Failed", "reason": "Evicted"}}
    assert (state(never_ran).reason, state(never_ran).failure) == (Reason.EVICTED, None)


def test_an_init_container_that_fails_is_told_and_one_that_is_done_is_not() -> None:
    for code, reason in ((1, Reason.UNKNOWN), (0, Reason.STARTING)):
        manifest = pod({})
        init = {"name": "runtime", "state": {"terminated": ended(code, "no space")}}
        manifest["status"] = {"phase": "Pending", "initContainerStatuses": [init]}
        assert state(manifest).reason is reason


def test_every_reason_that_an_engine_can_end_with_has_its_advice() -> None:
    # The inspection's own reason is that of the engine's words for the same fault.
    assert {reason.value for reason in ReportReason} <= set(ADVICE)
    told_by_the_kubelet = {Reason.STARTUP_OVERDUE, Reason.EVICTED}
    assert set(ADVICE) == {Reason(reason.value) for reason in ReportReason} | told_by_the_kubelet
    for text in ADVICE.values():
        assert text[0].isupper()
        assert not text.endswith(".")
        assert len(text) < 160


def test_a_message_keeps_its_advice_however_long_the_line() -> None:
    pod_state = state(pod(ended(2, {**REPORT, "log": ["x" * 5000]}), state={"waiting": BACK_OFF}))

    assert len(pod_state.message) < MESSAGE_LIMIT
    assert ADVICE[Reason.BAD_FLAG] in pod_state.message


def fetching(**fetch: Any) -> dict[str, Any]:
    """A pod whose first container is done and whose second fetches the model."""
    manifest = pod({})
    done = {"name": "runtime", "state": {"terminated": {"exitCode": 0}}}
    manifest["status"] = {"phase": "Pending", "initContainerStatuses": [done, {"name": "fetch", **fetch}]}
    return manifest


def test_a_fetch_is_told_while_it_runs_and_when_it_fails() -> None:
    failed = {"terminated": ended(1, {"reason": "GatedModel", "phase": "Download", "log": ["accept its terms"]})}
    running = state(fetching(state={"running": {}}, lastState=failed))
    assert (running.reason, running.on_the_way) == (Reason.DOWNLOADING, True)
    broken = state(fetching(state={"waiting": BACK_OFF}, lastState=failed, restartCount=3))
    assert (broken.reason, broken.on_the_way, broken.crash_looping) == (Reason.GATED_MODEL, False, True)
    assert "while in Download: accept its terms" in broken.message
    # The report says itself what to do; the advice for engines would be wrong.
    refused = {"terminated": ended(1, {"reason": "AuthRequired", "phase": "Download", "log": ["no"]})}
    assert "spec.engine.env" not in state(fetching(state=refused)).message


@pytest.mark.parametrize("code", [0, 143])
def test_a_fetch_that_is_done_or_asked_to_end_is_no_failure(code: int) -> None:
    assert state(fetching(state={"terminated": ended(code, "")})).reason is Reason.STARTING
