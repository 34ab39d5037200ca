"""Reads an engine's log while it runs: the phase of start-up, and the known hangs.

After a crash of a child process SGLang kills its own process tree, and after a failed bind uvicorn shuts down. Both
can get stuck: the port accepts connections, but nothing answers. Only the log shows it.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qwen_runtime.log_lines import LogLines
from qwen_runtime.reasons import Phase
from qwen_runtime.witness import Killed

_KEPT_LINES = 400
_KEPT_CHARACTERS = 2000
_RELEVANT_SECONDS = 600.0

_ORDER = tuple(Phase)

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_SIGNAL = re.compile(r"-(\d+)")
_ARGUMENTS = re.compile(r"server_args=.*")
_SECRETS = re.compile(
    r"(\b(?:admin[-_])?api[-_]key\b['\"]?[\s=:]+['\"]?|\bBearer\s+)[^\s'\",}]+|\bhf_[A-Za-z0-9]{8,}", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that an engine gets to end after it logged a crash, or after it logged a port in use and its shutdown.

    `stopped_seconds`: if it runs over several pods, how long one of its processes may be stopped by a signal, or do
    nothing while another one waits for it. `start_seconds`: how long it may take to end while it starts.
    """

    crash_seconds: float = 90.0
    port_seconds: float = 30.0
    stopped_seconds: float = 20.0
    start_seconds: float = 15.0


@dataclass(slots=True)
class EngineLog:
    """Observer of log lines. `log_lines` has the patterns of the lines that matter.

    `clock` gives seconds and never goes back. The class is not thread-safe; the caller must lock.
    """

    log_lines: LogLines
    patience: Patience
    clock: Callable[[], float]
    phase: Phase = Phase.STARTING
    deadline: float | None = None  # clock time from which the engine counts as hung
    frozen: str = ""  # the line about the last health check if it failed, else empty
    phase_when_asked: Phase | None = None
    steps: tuple[int, int] = (0, 0)  # how many steps of the phase are done, and how many there are
    _phase_since: float = 0.0
    crashed_at: float | None = None  # clock time when it logged the death of one of its processes
    killed: Killed | None = None  # the process that a signal ended before that, by the log
    _bind_failed: bool = False
    _lines: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    _before_crash: list[str] | None = None

    def observe(self, text: str) -> None:
        """Take one line, without its line end."""
        line = clean(text)
        if not line:
            return
        self._lines.append((self.clock(), line))
        self._advance(line)
        self.glance(line)
        if self.log_lines.health_unanswered.search(line):
            self.frozen = line
        elif self.log_lines.health_answered.search(line):
            self.frozen = ""
        if (said := self.log_lines.killed.search(line)) and self._as_it_should_run():
            self.killed = Killed(int(_SIGNAL.findall(said[0])[-1]), line, self.clock())
        if self.log_lines.crash.search(line):
            if self._before_crash is None:
                self._before_crash, self.crashed_at = self.recent(), self.clock()
            self._expect_end(self.patience.crash_seconds)
        elif self.log_lines.bind_failed.search(line):
            self._bind_failed = True
        elif self._bind_failed and self.log_lines.shutting_down.search(line):
            self._expect_end(self.patience.port_seconds)

    def glance(self, text: str) -> None:
        """Take the present state of a line that has no end yet: a progress bar, which says how far the phase is."""
        pattern = self.log_lines.bars.get(self.phase)
        match = pattern.search(text) if pattern is not None else None
        if match is not None:
            done, total = int(match["done"]), int(match["total"])
            self.steps = (min(done, total), total)

    def phase_seconds(self) -> float:
        """For how long the phase has lasted."""
        return self.clock() - self._phase_since if self._phase_since else 0.0

    def asked_to_end(self) -> None:
        """The engine is asked to end. If it hangs, it has no answers to finish and gets only the time after a crash."""
        self.phase_when_asked = self.phase
        if self.frozen:
            self._expect_end(self.patience.crash_seconds)

    def hangs(self, line: str) -> None:
        """The engine hangs, as this line says, and has no time left."""
        self.observe(line)
        self.frozen = line
        self._expect_end(0.0)

    def crashed(self) -> bool:
        """Whether the engine logged the death of one of its processes."""
        return self._before_crash is not None

    def before_crash(self) -> list[str]:
        """The lines up to the first sign of a crash, which contain its cause. Empty without a crash.

        The later lines are diagnostics (stack dumps of healthy threads) and consequences.
        """
        return list(self._before_crash or ())

    def tail(self, count: int, until: str = "") -> list[str]:
        """The last `count` lines, oldest first. With `until`, the result ends with the last appearance of that line.

        If the line `until` is no longer stored, it is added at the end, in place of the oldest line.
        """
        lines = [line for _, line in self._lines]
        if until and until in lines:
            return lines[: len(lines) - lines[::-1].index(until)][-count:]
        return [*lines[-(count - 1) :], until] if until else lines[-count:]

    def recent(self) -> list[str]:
        """The lines of the last ten minutes. Older lines of a serving engine do not explain its end."""
        oldest = self.clock() - _RELEVANT_SECONDS
        return [line for when, line in self._lines if when >= oldest]

    def _as_it_should_run(self) -> bool:
        """Whether nothing had gone wrong, and nobody had asked it to end."""
        return self.crashed_at is None and self.killed is None and self.phase_when_asked is None

    def _advance(self, line: str) -> None:
        for phase, pattern in self.log_lines.phases:
            if _ORDER.index(phase) <= _ORDER.index(self.phase):
                return
            if pattern.search(line):
                self.phase, self.steps, self._phase_since = phase, (0, 0), self.clock()
                return

    def _expect_end(self, seconds: float) -> None:
        end = self.clock() + seconds
        self.deadline = end if self.deadline is None else min(self.deadline, end)


def clean(text: str) -> str:
    """A line that may be shown in a pod's status: short, without control characters, secrets and the argument dump."""
    plain = _ESCAPES.sub("", text[:_KEPT_CHARACTERS]).strip()
    return _SECRETS.sub(r"\1***", _ARGUMENTS.sub("server_args=***", plain))
