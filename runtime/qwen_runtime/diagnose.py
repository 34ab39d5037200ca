"""From how an engine ended, and what it logged, to the report that it leaves behind."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwen_runtime.classify import Classification, classify
from qwen_runtime.engine_log import EngineLog
from qwen_runtime.reasons import ReportReason
from qwen_runtime.report import LOG_LINES

_CONSEQUENCES = (ReportReason.UNKNOWN, ReportReason.NCCL_FAILURE, ReportReason.HUNG, ReportReason.ENGINE_KILLED)
_CLEAN_WHEN_ASKED = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_RAISED = re.compile(r"(?:^|\] )(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b: ")


@dataclass(frozen=True, slots=True)
class Ending:
    """How the engine's main process ended. `status` is an exit code, or minus the number of a signal."""

    status: int
    asked: bool  # we were told to end and passed it on
    hung: bool  # we killed it after a deadline
    oom_kills: int | None  # processes killed for want of memory meanwhile; None = the kernel does not tell

    @property
    def exit_code(self) -> int:
        """The container's exit code: a signal is 128 + n, and an end in peace that nobody asked for is 1."""
        if self.status < 0:
            return 128 - self.status
        return self.status if self.status or self.asked else 1

    @property
    def clean(self) -> bool:
        """Whether this is the end that was asked for."""
        return self.asked and not self.hung and self.exit_code in _CLEAN_WHEN_ASKED


def verdict(ending: Ending, log: EngineLog, exists: Callable[[str], bool]) -> Classification:
    """The reason of an unclean end, with the line that tells it best.

    SIGKILL is the OOM killer's or somebody's: the kernel's count of OOM kills decides, and where it does not tell,
    want of memory is by far the likelier. The same count explains what the log shows only the consequences of.
    """
    found = _in_log(log, exists)
    # The engine kills itself with this signal only after it has logged a crash.
    silent_kill = ending.status == -signal.SIGKILL and not ending.hung and not log.crashed()
    if found.reason is ReportReason.UNKNOWN and silent_kill:
        found = Classification(ReportReason.ENGINE_KILLED)
    elif found.reason is ReportReason.UNKNOWN and (ending.hung or log.frozen):
        found = Classification(ReportReason.HUNG, log.frozen or found.line)
    unexplained = ending.oom_kills is None and found.reason is ReportReason.ENGINE_KILLED
    if unexplained or (ending.oom_kills and found.reason in _CONSEQUENCES):
        return Classification(ReportReason.HOST_OUT_OF_MEMORY, found.line)
    return found


def _in_log(log: EngineLog, exists: Callable[[str], bool]) -> Classification:
    """What came before the crash is the cause; the rest is worth a look if that says nothing."""
    before, recent = log.before_crash(), log.recent()
    found = classify(before, log.known, exists)
    if found.reason is not ReportReason.UNKNOWN:
        return found
    later = classify(recent, log.known, exists)
    # In a crash the engine kills its own processes: that one of them was killed tells something only before it.
    if later.reason is not ReportReason.UNKNOWN and not (log.crashed() and later.reason is ReportReason.ENGINE_KILLED):
        return later
    raised = [line for line in before or recent if _RAISED.search(line)]
    return Classification(ReportReason.UNKNOWN, raised[-1] if raised else "")


def failure_report(ending: Ending, log: EngineLog, found: Classification) -> dict[str, Any]:
    """The termination message of an end that nobody asked for. Its log ends with the line that gave the reason."""
    report = {
        "version": 1,
        "reason": found.reason.value,
        "phase": log.phase.value,
        "exitCode": ending.exit_code,
        "log": log.tail(LOG_LINES, until=found.line),
    }
    # Killed as it did not obey: of a pod that is deleted, this is no failure.
    return report | {"asked": True} if ending.asked and found.reason is ReportReason.HUNG else report


def asked_report(log: EngineLog) -> dict[str, Any]:
    """The termination message of an engine that was told to end, while it does.

    Whether the pod is deleted or the kubelet's probes failed is not known here. So it says how far the engine was,
    and that it hung if its last health check failed.
    """
    phase = log.phase_when_asked or log.phase
    report = {"version": 1, "asked": True, "phase": phase.value, "log": log.tail(LOG_LINES, until=log.frozen)}
    return report | {"reason": ReportReason.HUNG.value} if log.frozen else report
