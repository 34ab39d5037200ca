"""What an engine's log tells while it runs: the phase of start-up, and the known hangs.

After a crash of a child process SGLang kills its own process tree, and after a failed bind uvicorn shuts down. Both
may get stuck half-way: the port accepts and nothing answers. The log is the only witness.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qwen_runtime.log_lines import LogLines
from qwen_runtime.reasons import Phase

_KEPT_LINES = 400
_KEPT_CHARACTERS = 2000
_RELEVANT_SECONDS = 600.0

_ORDER = tuple(Phase)

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_ARGUMENTS = re.compile(r"server_args=.*")
_SECRETS = re.compile(
    r"(\b(?:admin[-_])?api[-_]key\b['\"]?[\s=:]+['\"]?|\bBearer\s+)[^\s'\",}]+|\bhf_[A-Za-z0-9]{8,}", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that an engine may take to end after it logged a crash, or a port in use and its shutdown."""

    crash_seconds: float = 90.0
    port_seconds: float = 30.0


@dataclass(slots=True)
class EngineLog:
    """Observer of log lines; `known` are those that mean something.

    `clock` gives seconds that never go back. Not safe for threads: the caller locks.
    """

    known: LogLines
    patience: Patience
    clock: Callable[[], float]
    phase: Phase = Phase.STARTING
    deadline: float | None = None  # clock time after which the engine counts as hung
    frozen: str = ""  # the line by which the last health check failed; empty if it did not
    phase_when_asked: Phase | None = None
    _bind_failed: bool = False
    _lines: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    _before_crash: list[str] | None = None

    def observe(self, text: str) -> None:
        """Take one line, without its end."""
        line = clean(text)
        if not line:
            return
        self._lines.append((self.clock(), line))
        self._advance(line)
        if self.known.health_unanswered.search(line):
            self.frozen = line
        elif self.known.health_answered.search(line):
            self.frozen = ""
        if self.known.crash.search(line):
            if self._before_crash is None:
                self._before_crash = self.recent()
            self._expect_end(self.patience.crash_seconds)
        elif self.known.bind_failed.search(line):
            self._bind_failed = True
        elif self._bind_failed and self.known.shutting_down.search(line):
            self._expect_end(self.patience.port_seconds)

    def asked_to_end(self) -> None:
        """Told to end; an engine that hangs has no answers to finish first, so it gets no longer than after a crash."""
        self.phase_when_asked = self.phase
        if self.frozen:
            self._expect_end(self.patience.crash_seconds)

    def crashed(self) -> bool:
        """Whether the engine logged the death of one of its processes."""
        return self._before_crash is not None

    def before_crash(self) -> list[str]:
        """The lines up to the first sign of a crash: the cause. What follows is diagnostics (stack dumps of healthy
        threads) and consequences. Empty without a crash."""
        return list(self._before_crash or ())

    def tail(self, count: int, until: str = "") -> list[str]:
        """The last `count` lines, oldest first. With `until`, those that end with that line's last appearance.

        An `until` that is no longer kept takes the place of the oldest line, at the end.
        """
        lines = [line for _, line in self._lines]
        if until and until in lines:
            return lines[: len(lines) - lines[::-1].index(until)][-count:]
        return [*lines[-(count - 1) :], until] if until else lines[-count:]

    def recent(self) -> list[str]:
        """The lines of the last ten minutes: what a serving engine logged on another day explains nothing."""
        oldest = self.clock() - _RELEVANT_SECONDS
        return [line for when, line in self._lines if when >= oldest]

    def _advance(self, line: str) -> None:
        for phase, pattern in self.known.phases:
            if _ORDER.index(phase) <= _ORDER.index(self.phase):
                return
            if pattern.search(line):
                self.phase = phase
                return

    def _expect_end(self, seconds: float) -> None:
        end = self.clock() + seconds
        self.deadline = end if self.deadline is None else min(self.deadline, end)


def clean(text: str) -> str:
    """A line fit for a pod's status: no control characters, no secrets, not the dump of all arguments, not endless."""
    plain = _ESCAPES.sub("", text[:_KEPT_CHARACTERS]).strip()
    return _SECRETS.sub(r"\1***", _ARGUMENTS.sub("server_args=***", plain))
