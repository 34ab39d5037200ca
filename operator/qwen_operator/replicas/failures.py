"""Why a container of a pod ended: from what the kubelet says and what the runtime left as termination message.

Pure. An end that was asked for is none: a deletion, or a SIGTERM that was obeyed. The kubelet's own SIGTERM after
failed probes is told from others by what the runtime wrote when it came: how far the engine was, and whether it had
answered its health checks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qwen_operator import objects
from qwen_operator.api.advice import ADVICE
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import ENGINE_CONTAINER, Manifest

CRASH_LOOP_RESTARTS = 3
CRASH_LOOP_SECONDS = 600.0
"""The kubelet's own measure: what ran for longer is restarted without a back-off."""

_SERVING = "Serving"
_SIGKILLED = 137
_ON_REQUEST = frozenset({0, 130, 143})
_NOT_RUN = ("StartError", "ContainerCannotRun")
_NODE_ENDED = frozenset({"Evicted", "Terminated", "NodeShutdown", "Preempting"})
# What a process prints or suffers when another one of its group was taken away.
_CONSEQUENCES = frozenset({Reason.UNKNOWN, Reason.NCCL_FAILURE, Reason.HUNG, Reason.ENGINE_KILLED})
# A line may be glued to one before it that had no end.
_STAMP = re.compile(r"^.*\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] ")
_BACK_OFF = re.compile(r"back-off (\S+) restarting")


@dataclass(frozen=True, slots=True)
class Restarts:
    """How the kubelet starts it again: how often it did, and what it waits between two tries ("40s"), if it waits.

    `soon`: it died before it served, or soon after its start. `looping`: it did so again and again, and nothing says
    that the next try ends otherwise.
    """

    count: int = 0
    back_off: str = ""
    soon: bool = False
    looping: bool = False


NO_RESTARTS = Restarts()


def death(pod: Manifest) -> tuple[Failure | None, Restarts]:
    """The last end of the engine that nobody asked for, or else of an init container, and what follows from it."""
    status = objects.mapping(pod, "status")
    if evicted(status):
        return _eviction(pod), NO_RESTARTS
    main = [item for item in objects.members(status, "containerStatuses") if item.get("name") == ENGINE_CONTAINER]
    for container in [*main, *objects.members(status, "initContainerStatuses")]:
        ended = _last_end(container)
        failure = _failure(pod, container, ended) if ended else None
        if ended and failure is not None:
            return failure, _restarts(container, ended, failure)
    return None, NO_RESTARTS


def evicted(status: Mapping[str, Any]) -> bool:
    """Whether the kubelet ended the whole pod: short of memory or disk, or the node is shut down."""
    return status.get("phase") == "Failed" and status.get("reason") in _NODE_ENDED


def served(status: Mapping[str, Any]) -> bool:
    """Whether the engine served before its last end, as its own report says."""
    engine = objects.named(objects.members(status, "containerStatuses"), ENGINE_CONTAINER)
    return report_of(_last_end(engine) or {}).get("phase") == _SERVING


def report_of(ended: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON object in a terminated container's message, {} if there is none."""
    try:
        report = json.loads(ended.get("message") or "")
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def reason_of(word: object) -> Reason | None:
    """The reason of that name, None if there is none."""
    try:
        return Reason(str(word))
    except ValueError:
        return None


def failure_message(failure: Failure, restarts: Restarts) -> str:
    """What happened, what to do about it, and when the next try is."""
    phase = f" while in {failure.phase}" if failure.phase else ""
    last = f": {_STAMP.sub('', failure.log[-1])}" if failure.log else ""
    parts = [f"{failure.pod} ended with exit code {failure.exit_code}{phase}{last}"]
    if advice := ADVICE.get(failure.reason):
        parts.append(advice)
    if restarts.back_off:
        parts.append(f"Try {restarts.count + 2} follows a back-off of {restarts.back_off}")
    elif restarts.count:
        parts.append(f"Try {restarts.count + 1} is under way")
    return ". ".join(part.rstrip(". ") for part in parts)


def _last_end(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    ended = objects.mapping(container, "state", "terminated") or objects.mapping(container, "lastState", "terminated")
    return ended or None


def _failure(pod: Manifest, container: Mapping[str, Any], ended: Mapping[str, Any]) -> Failure | None:
    report, code = report_of(ended), ended.get("exitCode")
    asked = objects.is_deleting(pod)
    if asked and (not report or report.get("asked")):
        # It was told to stop, and its init found nothing wrong with how it did.
        return None
    if container.get("name") != ENGINE_CONTAINER:
        reason = None if code == 0 else _unreported(ended)
    elif report.get("asked"):
        reason = _asked(pod, ended, report)
    else:
        reason = _unasked(ended, report)
    return None if reason is None else _record(pod, container, ended, reason)


def _unasked(ended: Mapping[str, Any], report: Mapping[str, Any]) -> Reason | None:
    reason = reason_of(report.get("reason"))
    if reason is None:
        # The init in the container makes every end in peace that nobody asked for exit code 1.
        return None if ended.get("exitCode") in _ON_REQUEST and not report else _unreported(ended)
    oom = ended.get("reason") == "OOMKilled"
    return Reason.HOST_OUT_OF_MEMORY if oom and reason in _CONSEQUENCES else reason


def _unreported(ended: Mapping[str, Any]) -> Reason:
    """All processes at once leave no report."""
    if ended.get("reason") == "OOMKilled":
        return Reason.HOST_OUT_OF_MEMORY
    if ended.get("reason") in _NOT_RUN:
        return Reason.POD_REFUSED
    killed = ended.get("exitCode") == _SIGKILLED and ended.get("reason") == "Error"
    return Reason.ENGINE_KILLED if killed else Reason.UNKNOWN


def _asked(pod: Manifest, ended: Mapping[str, Any], report: Mapping[str, Any]) -> Reason | None:
    """A pod that stays was told to stop by the kubelet after failed probes, or by a person."""
    if (reason := reason_of(report.get("reason"))) is not None:
        return reason
    if report.get("phase") != _SERVING:
        return Reason.STARTUP_OVERDUE if _overdue(pod, ended) else None
    return Reason.HUNG if ended.get("exitCode") == _SIGKILLED else None


def _overdue(pod: Manifest, ended: Mapping[str, Any]) -> bool:
    """Whether it ran for as long as the start-up probe lets it, to one period."""
    ran = _seconds(ended)
    engine = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    probe = objects.mapping(engine, "startupProbe")
    if not probe or ran is None:
        return False
    allowed = int(probe.get("failureThreshold") or 3) - 1
    return ran >= allowed * int(probe.get("periodSeconds") or 10)


def _record(pod: Manifest, container: Mapping[str, Any], ended: Mapping[str, Any], reason: Reason) -> Failure:
    report = report_of(ended)
    # "Error" is the kubelet's word for any exit code but 0.
    said = [ended.get("message") or str(ended.get("reason") or "").removesuffix("Error")]
    log = report.get("log") if report else said
    code = report.get("exitCode", ended.get("exitCode"))
    return Failure(
        reason=reason,
        phase=str(report.get("phase") or ""),
        pod=pod["metadata"]["name"],
        exit_code=code if isinstance(code, int) else -1,
        time=str(ended.get("finishedAt") or ""),
        count=max(1, int(container.get("restartCount") or 0)),
        log=tuple(str(line)[:200] for line in (log if isinstance(log, list) else ()) if line)[-10:],
    )


def _eviction(pod: Manifest) -> Failure | None:
    """None without a time: the status of a pod that the kubelet never started has none."""
    status = objects.mapping(pod, "status")
    containers = [*objects.members(status, "containerStatuses"), *objects.members(status, "initContainerStatuses")]
    ends = [ended for container in containers if (ended := _last_end(container))]
    times = [str(ended["finishedAt"]) for ended in ends if ended.get("finishedAt")]
    if not times:
        return None
    code = ends[0].get("exitCode")
    return Failure(
        reason=Reason.EVICTED,
        phase="",
        pod=pod["metadata"]["name"],
        exit_code=code if isinstance(code, int) else -1,
        time=max(times),
        count=1,
        log=(str(status.get("message") or status["reason"])[:200],),
    )


def _restarts(container: Mapping[str, Any], ended: Mapping[str, Any], failure: Failure) -> Restarts:
    count = int(container.get("restartCount") or 0)
    waiting = objects.mapping(container, "state", "waiting")
    found = _BACK_OFF.search(str(waiting.get("message") or "")) if waiting.get("reason") == "CrashLoopBackOff" else None
    # What served for longer was well.
    soon = failure.phase not in ("", _SERVING) or (_seconds(ended) or 0.0) < CRASH_LOOP_SECONDS
    return Restarts(count, found[1] if found else "", soon, looping=soon and count >= CRASH_LOOP_RESTARTS)


def _seconds(ended: Mapping[str, Any]) -> float | None:
    """How long it ran, None if the kubelet does not say."""
    try:
        begun, finished = (datetime.fromisoformat(str(ended.get(key))) for key in ("startedAt", "finishedAt"))
    except ValueError:
        return None
    return (finished - begun).total_seconds()
