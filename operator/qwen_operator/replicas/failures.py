"""Why a container of a pod ended, from the kubelet's status and the runtime's termination message. Pure.

A requested end is not a failure: a deletion, or a SIGTERM that the engine obeyed. The kubelet also sends SIGTERM after
failed probes. The runtime's report makes the difference: it says how far the engine was when the signal came, and
whether it had answered its health checks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.advice import ADVICE
from qwen_operator.api.conditions import FETCH_FAILURES, Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import ENGINE_CONTAINER, FETCH_CONTAINER, Manifest
from qwen_runtime.reasons import ReportReason

MOST_RESTARTS = 1_000_000
CRASH_LOOP_RESTARTS = 3
CRASH_LOOP_SECONDS = 600.0
"""The kubelet's limit: it restarts a container that ran for longer without a back-off."""

DOWNLOAD = "Download"
"""The phase of a failed fetch. Its report says itself what to do."""
_SERVING = "Serving"
_REPORTED = frozenset(Reason(reason.value) for reason in ReportReason) | FETCH_FAILURES
_LINE = 200
_MOST_PROBE = 1_000_000
_WORD = 63
_SIGKILLED = 137
_TERMINATED = 143
_ON_REQUEST = frozenset({0, 130, 143})
_NOT_RUN = ("StartError", "ContainerCannotRun")
_NODE_ENDED = frozenset({"Evicted", "Terminated", "NodeShutdown", "Preempting"})
# The kubelet's words for a pod that the scheduler sent to it and that it does not run.
_NOT_ADMITTED = frozenset(
    {"UnexpectedAdmissionError", "TopologyAffinityError", "NodeAffinity", "NodeName", "NodePorts", "InvalidNodeInfo"}
)
_OUT_OF = "OutOf"
# The reasons that a process reports when the kernel killed another process of its group.
_CONSEQUENCES = frozenset({Reason.UNKNOWN, Reason.NCCL_FAILURE, Reason.HUNG, Reason.ENGINE_KILLED})
ENDED_WITH_ANOTHER = frozenset({Reason.MEMBER_ENDED, Reason.GROUP_INCOMPLETE})
"""The reasons of a pod whose cause is in another pod of its replica."""
_OF_THE_NODE = (
    "The kubelet of its node refused it, and the operator makes it again until a node takes it. If that lasts, look at "
    "the device plugin of the node, or cordon it"
)
# A line may follow a line without a line break.
_STAMP = re.compile(r"^.*\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] ")
_MEMORY = re.compile(r"memory|oom", re.IGNORECASE)
_BACK_OFF = re.compile(r"back-off (\S{1,32}) restarting")


@dataclass(frozen=True, slots=True)
class Restarts:
    """How the kubelet restarts the container.

    `count`: the number of restarts. `back_off`: the kubelet's present delay ("40s"), "" if there is none. `soon`: the
    container ended before it served, or soon after its start. `looping`: that happened repeatedly, and nothing suggests
    that the next attempt will be different.
    """

    count: int = 0
    back_off: str = ""
    soon: bool = False
    looping: bool = False


NO_RESTARTS = Restarts()


def failure_of(pod: Manifest) -> tuple[Failure | None, Restarts]:
    """The last unrequested end of the engine, or else of an init container, with the kubelet's restarts."""
    status = objects.mapping(pod, "status")
    if evicted(status):
        return _end_of_the_pod(pod, Reason.EVICTED), NO_RESTARTS
    if refused_by_node(status):
        return _end_of_the_pod(pod, Reason.POD_REFUSED), NO_RESTARTS
    engine = [item for item in objects.members(status, "containerStatuses") if item.get("name") == ENGINE_CONTAINER]
    for container in [*engine, *objects.members(status, "initContainerStatuses")]:
        ended = _last_end(container)
        failure = _failure(pod, container, ended) if ended else None
        if failure is not None:
            return failure, _restarts(container, ended, failure)
    return None, NO_RESTARTS


def evicted(status: Mapping[str, Any]) -> bool:
    """Whether the kubelet ended the whole pod, because of a lack of memory or disk or a node shutdown."""
    return status.get("phase") == "Failed" and objects.text(status, "reason") in _NODE_ENDED


def refused_by_node(status: Mapping[str, Any]) -> bool:
    """Whether the kubelet did not admit the pod, for example because a device plugin had no healthy GPU for it."""
    reason = objects.text(status, "reason")
    return status.get("phase") == "Failed" and (reason in _NOT_ADMITTED or reason.startswith(_OUT_OF))


def never_ran(status: Mapping[str, Any]) -> bool:
    """Whether the kubelet ended the whole pod before any of its containers ran."""
    containers = [*objects.members(status, "containerStatuses"), *objects.members(status, "initContainerStatuses")]
    return (evicted(status) or refused_by_node(status)) and not any(_last_end(one) for one in containers)


def served(status: Mapping[str, Any]) -> bool:
    """Whether the engine served before its last end, by its own report."""
    engine = objects.named(objects.members(status, "containerStatuses"), ENGINE_CONTAINER)
    return report_of(_last_end(engine)).get("phase") == _SERVING


def report_of(ended: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON object in the message of a terminated container; {} if there is none. Whoever runs there wrote it."""
    return untrusted.report(ended.get("message"))


def reason_of(name: object) -> Reason | None:
    """The reason with this name; None if there is none."""
    try:
        return Reason(str(name))
    except ValueError:
        return None


def reported_reason(report: Mapping[str, Any]) -> Reason | None:
    """The reason in a report. None if it has none, or one that no report can have, such as Serving."""
    reason = reason_of(report.get("reason"))
    return reason if reason in _REPORTED else None


def failure_message(failure: Failure, restarts: Restarts) -> str:
    """What happened, what to do about it, and when the kubelet tries again."""
    phase = f" while in {failure.phase}" if failure.phase else ""
    last = _STAMP.sub("", failure.log[-1]) if failure.log else ""
    code = f" with exit code {failure.exit_code}" if failure.exit_code >= 0 else ""
    end = f"{failure.pod} ended{code}{phase}"
    if failure.reason is Reason.HOST_OUT_OF_MEMORY and not _MEMORY.search(last):
        # The kernel gives a process no time to write a cause, so the last line is about something else.
        parts = [f"{end}: the kernel ended it for lack of memory" + (f"; its last line was {last!r}" if last else "")]
    else:
        parts = [f"{end}: {last}" if last else end]
    if failure.reason is Reason.POD_REFUSED and failure.exit_code < 0:
        parts.append(_OF_THE_NODE)
    if failure.phase != DOWNLOAD and (advice := ADVICE.get(failure.reason)):
        parts.append(advice)
    if restarts.back_off:
        parts.append(f"Attempt {restarts.count + 2} starts after a back-off of {restarts.back_off}")
    elif restarts.count:
        parts.append(f"Attempt {restarts.count + 1} is running")
    return ". ".join(part.rstrip(". ") for part in parts)


def _last_end(container: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `terminated` state of the container's last end; {} if it never ended."""
    ends = (objects.mapping(container, part, "terminated") for part in ("state", "lastState"))
    # The kubelet always writes the exit code.
    return next((ended for ended in ends if "exitCode" in ended), {})


def _failure(pod: Manifest, container: Mapping[str, Any], ended: Mapping[str, Any]) -> Failure | None:
    report = report_of(ended)
    if objects.is_deleting(pod) and (not report or report.get("asked")):
        # The deletion stopped it, and its init process reports no problem.
        return None
    if container.get("name") != ENGINE_CONTAINER:
        fetches = container.get("name") == FETCH_CONTAINER
        asked = exit_code(ended) == 0 or (fetches and exit_code(ended) == _TERMINATED)
        reason = None if asked else (reported_reason(report) if fetches else None) or _unreported(ended)
    elif report.get("asked"):
        reason = _after_sigterm(pod, ended, report)
    else:
        reason = _without_sigterm(ended, report)
    return None if reason is None else _record(pod, container, ended, reason)


def _without_sigterm(ended: Mapping[str, Any], report: Mapping[str, Any]) -> Reason | None:
    reason = reported_reason(report)
    if reason is None:
        # The init process turns an exit code of 0 into 1 if nobody requested the end. So these codes mean a request.
        return None if exit_code(ended) in _ON_REQUEST and not report else _unreported(ended)
    oom = ended.get("reason") == "OOMKilled"
    return Reason.HOST_OUT_OF_MEMORY if oom and reason in _CONSEQUENCES else reason


def _unreported(ended: Mapping[str, Any]) -> Reason:
    """The reason of an end without a report: the kernel may have killed all processes at once."""
    if ended.get("reason") == "OOMKilled":
        return Reason.HOST_OUT_OF_MEMORY
    if ended.get("reason") in _NOT_RUN:
        return Reason.POD_REFUSED
    killed = ended.get("exitCode") == _SIGKILLED and ended.get("reason") == "Error"
    return Reason.ENGINE_KILLED if killed else Reason.UNKNOWN


def _after_sigterm(pod: Manifest, ended: Mapping[str, Any], report: Mapping[str, Any]) -> Reason | None:
    """The reason of an end after a SIGTERM, from the kubelet after failed probes or from a person."""
    if (reason := reported_reason(report)) is not None:
        return reason
    if report.get("phase") != _SERVING:
        return Reason.STARTUP_OVERDUE if _overdue(pod, ended) else None
    return Reason.HUNG if ended.get("exitCode") == _SIGKILLED else None


def _overdue(pod: Manifest, ended: Mapping[str, Any]) -> bool:
    """Whether it ran for as long as the start-up probe allows, give or take one period."""
    ran = _seconds(ended)
    engine = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    probe = objects.mapping(engine, "startupProbe")
    if not probe or ran is None:
        return False
    allowed = untrusted.whole(probe.get("failureThreshold"), 1, _MOST_PROBE, 3) - 1
    return ran >= allowed * untrusted.whole(probe.get("periodSeconds"), 1, _MOST_PROBE, 10)


def _record(pod: Manifest, container: Mapping[str, Any], ended: Mapping[str, Any], reason: Reason) -> Failure:
    report = report_of(ended)
    # "Error" is the kubelet's word for any exit code except 0.
    kubelet_text = [ended.get("message") or objects.text(ended, "reason").removesuffix("Error")]
    log = report.get("log") if report else kubelet_text
    entries = log if isinstance(log, list) else []
    return Failure(
        reason=reason,
        phase=untrusted.clean(report.get("phase") or "", _WORD),
        pod=pod["metadata"]["name"],
        exit_code=exit_code(report if "exitCode" in report else ended),
        time=untrusted.clean(ended.get("finishedAt") or "", _WORD),
        count=max(1, _restart_count(container)),
        log=tuple(text for line in entries[-10:] if (text := untrusted.clean(line, _LINE))),
    )


def _end_of_the_pod(pod: Manifest, reason: Reason) -> Failure | None:
    """The failure of a pod that the kubelet ended as a whole; None if it gives no time at all."""
    status = objects.mapping(pod, "status")
    containers = [*objects.members(status, "containerStatuses"), *objects.members(status, "initContainerStatuses")]
    ends = [ended for container in containers if (ended := _last_end(container))]
    # A pod that was evicted before its containers started has only the time when the kubelet took it.
    stamps = [ended.get("finishedAt") for ended in ends] + [status.get("startTime")]
    times = [untrusted.clean(stamp, _WORD) for stamp in stamps if stamp]
    if not times:
        return None
    return Failure(
        reason=reason,
        phase="",
        pod=pod["metadata"]["name"],
        exit_code=exit_code(ends[0]) if ends else -1,
        time=max(times),
        count=1,
        log=(untrusted.clean(status.get("message") or status["reason"], _LINE),),
    )


def _restarts(container: Mapping[str, Any], ended: Mapping[str, Any], failure: Failure) -> Restarts:
    count = _restart_count(container)
    waiting = objects.mapping(container, "state", "waiting")
    looped = waiting.get("reason") == "CrashLoopBackOff"
    back_off = _BACK_OFF.search(objects.text(waiting, "message")) if looped else None
    # An engine that served for longer was healthy.
    soon = failure.phase not in ("", _SERVING) or (_seconds(ended) or 0.0) < CRASH_LOOP_SECONDS
    return Restarts(count, back_off[1] if back_off else "", soon, looping=soon and count >= CRASH_LOOP_RESTARTS)


def _restart_count(container: Mapping[str, Any]) -> int:
    return untrusted.whole(container.get("restartCount"), 0, MOST_RESTARTS, 0)


def exit_code(ended: Mapping[str, Any]) -> int:
    """The exit code in a terminated state or in a report; -1 if there is none."""
    return untrusted.whole(ended.get("exitCode"), -(2**31), 2**31 - 1, -1)


def _seconds(ended: Mapping[str, Any]) -> float | None:
    """How many seconds it ran; None if the kubelet does not say."""
    begun, finished = (objects.moment(ended.get(key)) for key in ("startedAt", "finishedAt"))
    return (finished - begun).total_seconds() if begun and finished else None
