"""Runs an engine as the child of a proper init, and tells why it ended.

SGLang as process 1 ignores SIGTERM while it loads, exits 0 after most crashes, and hangs after some. As a child of
this process it gets every signal, its death shows as it was, and a hang is ended. The signal goes to the engine's
main process alone: it drains its own children, and killing those at once would cut running answers.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from qwen_runtime import processes
from qwen_runtime.classify import Verdict, classify
from qwen_runtime.engine_log import EngineLog, Patience
from qwen_runtime.output import start_pump
from qwen_runtime.reasons import Reason
from qwen_runtime.report import LOG_LINES, bounded, complain, deliver

FORWARDED = (signal.SIGTERM, signal.SIGINT)
_OUTPUT_SECONDS = 5.0
_CONSEQUENCES = (Reason.UNKNOWN, Reason.NCCL_FAILURE, Reason.HUNG)
_CLEAN_WHEN_ASKED = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)


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


def verdict(ending: Ending, log: EngineLog, exists: Callable[[str], bool]) -> Verdict:
    """The reason of an unclean end.

    The kernel's count of OOM kills explains what the log only shows the consequences of. SIGKILL without any word
    in the log is the OOM killer too where the kernel does not tell: the engine kills itself with that signal only
    after it has logged a crash.
    """
    found = classify(log.before_crash(), exists)
    if found.reason is Reason.UNKNOWN:
        found = classify(log.recent(), exists)
    if ending.oom_kills and found.reason in _CONSEQUENCES:
        return Verdict(Reason.HOST_OUT_OF_MEMORY, found.line)
    if found.reason is not Reason.UNKNOWN:
        return found
    if ending.hung:
        return Verdict(Reason.HUNG)
    silent_kill = ending.status == -signal.SIGKILL and not log.crashed()
    return Verdict(Reason.HOST_OUT_OF_MEMORY if silent_kill and ending.oom_kills is None else Reason.UNKNOWN)


def failure_report(ending: Ending, log: EngineLog, found: Verdict) -> dict[str, Any]:
    """The termination message. The line that gave the reason is always among the last lines, as the last if need be."""
    lines = log.tail(LOG_LINES)
    if found.line and found.line not in lines:
        lines = [*lines[1:], found.line]
    return {
        "version": 1,
        "reason": found.reason.value,
        "phase": log.phase.value,
        "exitCode": ending.exit_code,
        "log": lines,
    }


@dataclass(slots=True)
class Supervisor:
    """One run of one command. Uses process-wide state (signal handlers, every child), so one per process."""

    patience: Patience
    log: EngineLog = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending: list[int] = field(default_factory=list)
    _asked: bool = False
    _hung: bool = False
    _wake_read: int = -1
    _wake_write: int = -1

    def __post_init__(self) -> None:
        self.log = EngineLog(self.patience, time.monotonic)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in FORWARDED:
            self._pending.append(number)

    def run(self, command: Sequence[str]) -> Ending:
        """Run the command to its end; returns when its output is passed on and no descendant is left."""
        processes.adopt_orphans()
        kills_before = processes.oom_kills()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return self._not_started(command, error)
        pumps = self._start_pumps(child)
        status = self._wait(child.pid)
        child.returncode = status  # reaped here, not by subprocess
        processes.end_descendants()
        for thread in pumps:
            thread.join(_OUTPUT_SECONDS)
        return Ending(status, self._asked, self._hung, _difference(kills_before, processes.oom_kills()))

    def _not_started(self, command: Sequence[str], error: OSError) -> Ending:
        line = f"cannot run {command[0]}: {error.strerror}"
        self._observe(line)
        complain(line)
        return Ending(127 if isinstance(error, FileNotFoundError) else 126, self._asked, hung=False, oom_kills=None)

    def _start_pumps(self, child: "subprocess.Popen[bytes]") -> list[threading.Thread]:
        pumps = []
        for stream, sink in ((child.stdout, 1), (child.stderr, 2)):
            if stream is not None:
                pumps.append(start_pump(os.dup(stream.fileno()), sink, self._observe))
                stream.close()
        return pumps

    def _observe(self, line: str) -> None:
        with self._lock:
            before = self.log.deadline
            self.log.observe(line)
            changed = self.log.deadline != before
        if changed:
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # a full pipe wakes as well

    def _wait(self, pid: int) -> int:
        while True:
            while self._pending:
                self._asked = True
                processes.kill(pid, self._pending.pop(0))
            status = processes.reap(pid)
            if status is not None:
                return status
            left = self._seconds_left()
            if left is not None and left <= 0 and not self._hung:
                self._hung = True
                processes.kill(pid, signal.SIGKILL, group=True)
                continue
            self._sleep(None if self._hung else left)

    def _seconds_left(self) -> float | None:
        with self._lock:
            return None if self.log.deadline is None else self.log.deadline - time.monotonic()

    def _sleep(self, seconds: float | None) -> None:
        select.select([self._wake_read], [], [], seconds)
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def launch(command: Sequence[str], patience: Patience, termination_log: Path | None) -> int:
    """Run an engine and return the container's exit code; an unclean end leaves a report in the termination log."""
    supervisor = Supervisor(patience)
    ending = supervisor.run(command)
    if ending.clean:
        return ending.exit_code
    found = verdict(ending, supervisor.log, os.path.lexists)
    report = failure_report(ending, supervisor.log, found)
    deliver(bounded(report), termination_log)
    how = f"signal {-ending.status}" if ending.status < 0 else f"exit code {ending.status}"
    hung = ", killed because it did not end by itself" if ending.hung else ""
    complain(f"the engine ended with {how}{hung}: {found.reason.value} in phase {report['phase']}")
    return ending.exit_code
