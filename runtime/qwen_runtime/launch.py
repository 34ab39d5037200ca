"""Runs an engine as the child of an init process, and reports why it ended.

As process 1, SGLang ignores SIGTERM while it loads, exits with 0 after most crashes, and hangs after some. As a child
of this process it gets every signal, its real exit status is visible, and a hang is ended. This process sends a signal
only to the engine's main process, which drains its own children. Killing those at once would cut running answers.
"""

import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from qwen_runtime import guard, processes, serving
from qwen_runtime.adapters import Loader
from qwen_runtime.classify import Classification
from qwen_runtime.diagnose import Ending, asked_report, failure_report, is_consequence, verdict
from qwen_runtime.engine_log import EngineLog, Patience
from qwen_runtime.group import AskedToEnd, Group, GroupError, Member, join
from qwen_runtime.log_lines import LogLines
from qwen_runtime.output import start_pump
from qwen_runtime.page import showing
from qwen_runtime.progress import start_page
from qwen_runtime.reasons import Phase, ReportReason
from qwen_runtime.report import bounded, complain, deliver
from qwen_runtime.stillness import FOLDER_VARIABLE, Stillness
from qwen_runtime.witness import LOG_SECONDS, Killed, Witness

FORWARDED = (signal.SIGTERM, signal.SIGINT)
_OUTPUT_SECONDS = 5.0
# After rank 0 has ended, SGLang's own broadcast ends the other ranks. One that is stuck is killed after this time.
_FOLLOW_SECONDS = 5.0
_STOPPED_STEP_SECONDS = 5.0
# What another rank has said about its waiting is true for so long.
_WAITING_SECONDS = 15.0
# A rank may see its broken connections before the rank that broke them has ended and said why.
_CAUSE_SECONDS = 10.0


@dataclass(slots=True)
class Supervisor:
    """One run of one command. It uses process-wide state (signal handlers, all children): only one per process.

    `archive` is the path of this program, which also guards the engine's processes (see `guard`).
    `on_asked` is called once, after the first signal to end has arrived and before the engine gets it. `group`: the
    other members, if the engine runs over several pods. `member_ended` says which of them ended, and why.
    `killed` is the process of this pod whose end caused the others. `hangs`: a process of this pod that hangs is the
    cause. `adapters`: what changes the adapters of the engine; None if nothing does.
    """

    log_lines: LogLines
    patience: Patience
    archive: str
    on_asked: Callable[[EngineLog], None]
    log: EngineLog = field(init=False)
    group: Group | None = None
    adapters: Loader | None = None
    member_ended: str = ""
    killed: Killed | None = None
    hangs: bool = False
    _witness: Witness = field(init=False)
    _end_by: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending: list[int] = field(default_factory=list)
    _asked: bool = False
    _hung: bool = False
    _cut: bool = False
    _stopped: dict[int, float] = field(default_factory=dict)
    _stillness: Stillness | None = None
    _other_waits_at: float = -math.inf
    _wake_read: int = -1
    _wake_write: int = -1

    def __post_init__(self) -> None:
        self.log = EngineLog(self.log_lines, self.patience, time.monotonic)
        self._witness = Witness(self.log_lines.processes, time.monotonic)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in FORWARDED:
            self._pending.append(number)

    @property
    def signalled(self) -> bool:
        """Whether a signal to end has arrived that nobody has handled yet."""
        return bool(self._pending)

    def run(self, command: Sequence[str]) -> Ending:
        """Run the command to its end. Returns when all its output is forwarded and no descendant is left."""
        processes.adopt_orphans()
        kills_before = processes.oom_kills()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**guard.environment(os.environ, self.archive, command), **self._stacks()},
                start_new_session=True,
            )
        except OSError as error:
            return self._not_started(command, error)
        pumps = self._start_pumps(child)
        status = self._wait(child.pid, command)
        child.returncode = status  # reaped here, not by subprocess
        self._witness.close()
        if self._stillness is not None:
            shutil.rmtree(self._stillness.folder, ignore_errors=True)
        processes.end_descendants()
        for thread in pumps:
            thread.join(_OUTPUT_SECONDS)
        kills = _difference(kills_before, processes.oom_kills())
        self.killed = self._killed_first(status)
        return Ending(status, self._asked, self._hung, kills, self.member_ended, self.killed, self._cut)

    def _stacks(self) -> dict[str, str]:
        """The environment in which the engine's processes tell their stacks, if it runs over several pods."""
        if self.group is None:
            return {}
        try:
            folder = tempfile.mkdtemp(prefix="qwen-stacks-")
        except OSError:
            return {}
        self._stillness = Stillness(self.log_lines.schedulers, Path(folder), self.patience.stopped_seconds)
        return {FOLDER_VARIABLE: folder}

    def _not_started(self, command: Sequence[str], error: OSError) -> Ending:
        line = f"cannot run {command[0]}: {error.strerror}"
        self._observe(line)
        complain(line)
        return Ending(127 if isinstance(error, FileNotFoundError) else 126, self._asked, hung=False, oom_kills=None)

    def _start_pumps(self, child: "subprocess.Popen[bytes]") -> list[threading.Thread]:
        pumps = []
        for stream, sink in ((child.stdout, 1), (child.stderr, 2)):
            if stream is not None:
                pumps.append(start_pump(os.dup(stream.fileno()), sink, self._observe, self._glance))
                stream.close()
        return pumps

    def _observe(self, line: str) -> None:
        with self._lock:
            before = self.log.deadline
            self.log.observe(line)
            changed = self.log.deadline != before
        if changed:
            self._wake()

    def _glance(self, unfinished: str) -> None:
        with self._lock:
            self.log.glance(unfinished)

    def page(self) -> bytes:
        """How far the start is, and which adapters the engine has."""
        adapters = self.adapters.page() if self.adapters else None
        with self._lock:
            return start_page(self.log, adapters)

    def wake(self) -> None:
        """Let the supervisor look again. Any thread may call it."""
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # a full pipe wakes as well

    def _wait(self, pid: int, command: Sequence[str]) -> int:
        killed = False
        while True:
            self._heed_killed()
            self._heed_group()
            self._heed_stopped()
            self._heed_still()
            while self._pending:
                self._note_asked(command)
                processes.kill(pid, self._pending.pop(0))
            status = processes.reap(pid)
            if status is not None:
                return status
            left = self._seconds_left()
            if left is not None and left <= 0 and not killed:
                killed, self._hung = True, self._end_by is None
                processes.kill(pid, signal.SIGKILL, group=True)
                continue
            self._sleep(self._look_again(None if killed else left))

    def _heed_group(self) -> None:
        """Take over what happened to the other members.

        If one of them is asked to end, the engine of rank 0 finishes its requests. If one has ended, no rank can go on.
        """
        while self.group is not None and not self.group.events.empty():
            event = self.group.events.get()
            if event.waits:
                self._other_waits_at = time.monotonic()
                continue
            if event.asked:
                if not self._asked and self.group.member.rank == 0:
                    self._pending.append(signal.SIGTERM)
                continue
            self.member_ended = self.member_ended or event.why
            patience = _FOLLOW_SECONDS if self._asked or event.rank == 0 else 0.0
            self._end_by = self._end_by or time.monotonic() + patience

    def _heed_killed(self) -> None:
        """Let the others know at once that a process of this engine was killed.

        SGLang notices some of these ends late or never, and then the other ranks hang.
        """
        if self.group is None or self._asked or self._hung or self._end_by is not None:
            return
        self._witness.look()
        waits = self._witness.killed is not None and time.monotonic() < self._witness.killed.time + LOG_SECONDS
        if not waits and self._killed_first() is not None:
            self._end_by = time.monotonic() + _FOLLOW_SECONDS
            self.group.ending()

    def _killed_first(self, status: int = 0) -> Killed | None:
        """The process of this member that a signal ended before anything else failed; None if there is none.

        `status`: how the engine's main process ended.
        """
        if self.group is None or self._asked:
            return None
        with self._lock:
            logged, crashed_at = self.log.killed, self.log.crashed_at
        seen = self._witness.killed
        if seen is not None and seen.precedes(crashed_at):
            return replace(seen, line=f"{seen.line} of {self.group.member.place}")
        others = self._hung or self._end_by is not None or crashed_at is not None
        if logged is None and not others and status == -signal.SIGKILL:
            return Killed(signal.SIGKILL, f"SIGKILL ended the main process of {self.group.member.place}", 0.0)
        return logged

    def _heed_stopped(self) -> None:
        """End an engine of which a signal stopped a process for too long. The other ranks wait for it and do not end.

        SGLang's own watchdog is in the stopped process, and the health check of rank 0 does not say which rank hangs.
        """
        if self.group is None or self._hung:
            return
        now, names = time.monotonic(), processes.stopped(os.getpid())
        self._stopped = {pid: self._stopped.get(pid, now) for pid in names}
        for pid, since in self._stopped.items():
            if now - since >= self.patience.stopped_seconds:
                self.hangs = True
                with self._lock:
                    self.log.hangs(f"the process {names[pid]} of {self.group.member.place} is stopped")

    def _heed_still(self) -> None:
        """End an engine with a scheduler that does nothing while another one waits for it."""
        if self.group is None or self._stillness is None or self._hung or self._asked or self._end_by is not None:
            return
        with self._lock:
            serves = self.log.phase is Phase.SERVING
        found = self._stillness.look() if serves else []
        if any(one.waits for one in found):
            self.group.waiting()
            self._other_waits_at = time.monotonic()
        hanging = [one for one in found if not one.waits]
        if hanging and time.monotonic() - self._other_waits_at <= _WAITING_SECONDS:
            self.hangs = True
            where = f" in {hanging[0].where}" if hanging[0].where else ""
            with self._lock:
                place = self.group.member.place
                self.log.hangs(f"the process {hanging[0].name} of {place} hangs{where}, and other ranks wait for it")

    def await_cause(self) -> None:
        """Wait a moment for the member that ended first to say so."""
        # Who has told that it ended waits itself for an earlier cause.
        until = time.monotonic() + _CAUSE_SECONDS * (1 if self._end_by is None else 1.5)
        while self.group is not None and not self.member_ended and time.monotonic() < until:
            self._heed_group()
            time.sleep(0.1)

    def _note_asked(self, command: Sequence[str]) -> None:
        if self._asked:
            return
        self._asked = True
        # Before the engine gets the signal: after it, it answers that it is not ready.
        starts = self.log.phase is not Phase.SERVING and serving.has_not_begun(serving.port_of(command))
        with self._lock:
            self.log.asked_to_end()
            self.on_asked(self.log)
        if starts and self._end_by is None and (self.group is None or self.group.member.rank == 0):
            # It has no answers to finish. Its own warm-up may take as long as the grace period.
            self._cut, self._end_by = True, time.monotonic() + self.patience.start_seconds
        if self.group is not None:
            self.group.asked()

    def _seconds_left(self) -> float | None:
        with self._lock:
            ends = [end for end in (self.log.deadline, self._end_by) if end is not None]
        return min(ends) - time.monotonic() if ends else None

    def _look_again(self, seconds: float | None) -> float | None:
        """After how many seconds at most to look at the processes again."""
        if self.group is None:
            return seconds
        if self._witness.killed is not None and self._end_by is None:
            return LOG_SECONDS if seconds is None else min(seconds, LOG_SECONDS)
        step = min(_STOPPED_STEP_SECONDS, self.patience.stopped_seconds / 2)
        return step if seconds is None else min(seconds, step)

    def _sleep(self, seconds: float | None) -> None:
        select.select([self._wake_read, *self._witness.descriptors], [], [], seconds)
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


@dataclass(frozen=True, slots=True)
class Reports:
    """Where an engine is reported: its start on a page at `start_port`, its end in the file `termination_log`.

    `adapters` changes the adapters of the engine while it runs, and says on the page which ones it has.
    """

    termination_log: Path | None
    start_port: int
    adapters: Loader | None = None


def launch(
    command: Sequence[str],
    log_lines: LogLines,
    patience: Patience,
    reports: Reports,
    member: Member | None = None,
) -> int:
    """Run an engine and return the container's exit code. An unclean end leaves a report in the termination log.

    If the engine is asked to end, a report is written before it ends, because a process that is killed at the end of
    the grace period cannot write one. The report stays if the engine was not serving, because then a failed probe of
    the kubelet may be the cause, not the user.

    `member`: the place of this process in an engine over several pods. The engine starts when all members are there,
    and its command gets the address of rank 0.
    """
    termination_log = reports.termination_log

    def on_asked(log: EngineLog) -> None:
        deliver(bounded(asked_report(log)), termination_log)

    supervisor = Supervisor(log_lines, patience, os.path.realpath(sys.argv[0]), on_asked)
    if reports.adapters is not None:
        supervisor.adapters = reports.adapters
        command = reports.adapters.command(command)
        reports.adapters.start()
    group = None
    if member is not None:
        try:
            group = join(member, lambda: supervisor.signalled)
        except AskedToEnd:
            on_asked(supervisor.log)
            return 128 + signal.SIGTERM
        except GroupError as error:
            return _not_formed(str(error), supervisor.log, termination_log)
        supervisor.group = group
        group.notify(supervisor.wake)
        command = [*command, f"--dist-init-addr={group.leader_address}"]
    try:
        with showing(supervisor.page, reports.start_port):
            ending = supervisor.run(command)
        return _concluded(supervisor, ending, termination_log)
    finally:
        if group is not None:
            group.close()


def _not_formed(why: str, log: EngineLog, termination_log: Path | None) -> int:
    report = {
        "version": 1,
        "reason": ReportReason.GROUP_INCOMPLETE.value,
        "phase": log.phase.value,
        "exitCode": 1,
        "log": [why],
    }
    deliver(bounded(report), termination_log)
    complain(f"the engine was not started: {why}")
    return 1


def _concluded(supervisor: Supervisor, ending: Ending, termination_log: Path | None) -> int:
    """Report the end of the engine, also to the other members. Returns the exit code."""
    log, group = supervisor.log, supervisor.group
    if ending.clean:
        if group is not None:
            group.ended(f"{group.member.place} was asked to end")
        if log.frozen or log.phase_when_asked is not Phase.SERVING:
            supervisor.on_asked(log)
        else:
            deliver(b"", termination_log)
        return ending.exit_code
    if group is not None:
        group.ending()
    cause = verdict(ending, log, os.path.lexists)
    unclear = is_consequence(cause.reason) and not supervisor.hangs and supervisor.killed is None
    if group is not None and not ending.member and unclear:
        supervisor.await_cause()
        ending = replace(ending, member=supervisor.member_ended)
        cause = verdict(ending, log, os.path.lexists)
    if group is not None:
        group.ended(_first_words(group.member, cause))
    report = failure_report(ending, log, cause)
    deliver(bounded(report), termination_log)
    how = f"signal {-ending.status}" if ending.status < 0 else f"exit code {ending.status}"
    hung = ", killed because it did not end by itself" if ending.hung else ""
    complain(f"the engine ended with {how}{hung}: {cause.reason.value} in phase {report['phase']}")
    return ending.exit_code


def _first_words(member: Member, cause: Classification) -> str:
    """What the other members report about this one."""
    if cause.reason is ReportReason.MEMBER_ENDED:
        return cause.line
    line = f": {cause.line}" if cause.line else ""
    return f"{member.place} ended first, {cause.reason.value}{line}"
