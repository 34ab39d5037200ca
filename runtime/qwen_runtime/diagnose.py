"""From the end of an engine and its log to the report in the termination message."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwen_runtime.classify import Classification, classify
from qwen_runtime.engine_log import EngineLog
from qwen_runtime.reasons import ReportReason
from qwen_runtime.report import LOG_LINES
from qwen_runtime.witness import Killed

_CONSEQUENCES = (ReportReason.UNKNOWN, ReportReason.NCCL_FAILURE, ReportReason.HUNG, ReportReason.ENGINE_KILLED)
_CLEAN_WHEN_ASKED = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_RAISED = re.compile(r"(?:^|\] )(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b: ")


@dataclass(frozen=True, slots=True)
class Ending:
    """How the engine's main process ended. `status` is an exit code, or minus the number of a signal."""

    status: int
    asked: bool  # this process got a signal to end and forwarded it
    hung: bool  # this process killed the engine after a deadline
    oom_kills: int | None  # processes that the OOM killer ended during the run; None if the kernel has no such counter
    member: str = ""  # how another member of the engine's group ended; "" if none has
    killed: Killed | None = None  # the process of this member that a signal ended before anything else failed
    cut: bool = False  # it was asked to end while it started, and this process killed it if it did not end soon

    @property
    def exit_code(self) -> int:
        """The container's exit code: 128 + n for a signal, and 1 for an exit with 0 that nobody asked for."""
        if self.asked and self.member and not self.hung:
            return 0
        if self.cut and self.status == -signal.SIGKILL:
            return 128 + signal.SIGTERM
        if self.status < 0:
            return 128 - self.status
        return self.status if self.status or self.asked else 1

    @property
    def clean(self) -> bool:
        """Whether the engine ended as it was asked to."""
        return self.asked and not self.hung and self.exit_code in _CLEAN_WHEN_ASKED


def verdict(ending: Ending, log: EngineLog, exists: Callable[[str], bool]) -> Classification:
    """The reason of an unclean end, with the line that shows it best.

    SIGKILL comes from the OOM killer or from somebody else. The kernel's count of OOM kills decides which. Without that
    count, the OOM killer is by far the more likely. The count also explains an end whose log has only consequences.
    """
    cause = _in_log(log, exists)
    if ending.killed is not None and is_consequence(cause.reason):
        killed = ending.killed.number == signal.SIGKILL
        cause = Classification(ReportReason.ENGINE_KILLED if killed else ReportReason.UNKNOWN, ending.killed.line)
    elif ending.member and is_consequence(cause.reason):
        return Classification(ReportReason.MEMBER_ENDED, ending.member)
    elif cause.reason is ReportReason.UNKNOWN:
        cause = _without_a_cause_in_the_log(ending, log, cause)
    unexplained = ending.oom_kills is None and cause.reason is ReportReason.ENGINE_KILLED
    if unexplained or (ending.oom_kills and cause.reason in _CONSEQUENCES):
        return Classification(ReportReason.HOST_OUT_OF_MEMORY, cause.line)
    return cause


def _without_a_cause_in_the_log(ending: Ending, log: EngineLog, cause: Classification) -> Classification:
    # The engine sends this signal to itself only after it has logged a crash.
    if ending.status == -signal.SIGKILL and not ending.hung and not log.crashed():
        return Classification(ReportReason.ENGINE_KILLED)
    if ending.hung or log.frozen:
        return Classification(ReportReason.HUNG, log.frozen or cause.line)
    return cause


def is_consequence(reason: ReportReason) -> bool:
    """Whether the reason may have its cause in another process."""
    return reason in _CONSEQUENCES


def _in_log(log: EngineLog, exists: Callable[[str], bool]) -> Classification:
    """The cause in the lines before the crash, or else in all recent lines."""
    before, recent = log.before_crash(), log.recent()
    cause = classify(before, log.log_lines, exists)
    if cause.reason is not ReportReason.UNKNOWN:
        return cause
    later = classify(recent, log.log_lines, exists)
    # After a crash the engine kills its own processes, so a killed process is a cause only before the crash.
    if later.reason is not ReportReason.UNKNOWN and not (log.crashed() and later.reason is ReportReason.ENGINE_KILLED):
        return later
    raised = [line for line in before or recent if _RAISED.search(line)]
    return Classification(ReportReason.UNKNOWN, raised[-1] if raised else "")


def failure_report(ending: Ending, log: EngineLog, cause: Classification) -> dict[str, Any]:
    """The termination message of an end that nobody asked for. Its log ends with the line that shows the reason."""
    report = {
        "version": 1,
        "reason": cause.reason.value,
        "phase": log.phase.value,
        "exitCode": ending.exit_code,
        "log": log.tail(LOG_LINES, until=cause.line),
    }
    # The engine was asked to end, hung, and was killed. If its pod is deleted, this is no failure.
    return report | {"asked": True} if ending.asked and cause.reason is ReportReason.HUNG else report


def asked_report(log: EngineLog) -> dict[str, Any]:
    """The termination message of an engine that was asked to end, while it is ending.

    This process cannot know whether somebody deleted the pod or the kubelet's probes failed. So the message has the
    engine's phase, and the reason Hung if its last health check failed.
    """
    phase = log.phase_when_asked or log.phase
    report = {"version": 1, "asked": True, "phase": phase.value, "log": log.tail(LOG_LINES, until=log.frozen)}
    return report | {"reason": ReportReason.HUNG.value} if log.frozen else report
