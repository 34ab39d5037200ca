"""Sees which process of an engine a signal has ended, and when.

If a process of one rank is killed, all ranks fail within a second: the others lose their connections, log that, and may
end before the rank of the killed process. So the order of the ends and of the log lines does not show the cause. A
process that a signal ended before its engine had logged a failure is the cause, whatever came after it.
"""

import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from qwen_runtime import processes

# The line about a crash may come after the processes that the engine itself kills for it.
LOG_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Killed:
    """A process of the engine that a signal ended. `number` is the signal, `line` says it, `time` is the clock's."""

    number: int
    line: str
    time: float

    def precedes(self, crash: float | None) -> bool:
        """Whether it was ended before the engine logged a crash at this time; None: it has logged none."""
        return crash is None or crash > self.time + LOG_SECONDS


@dataclass(slots=True)
class Witness:
    """Watches the processes below this one that have one of the engine's names. Not thread-safe.

    `descriptors` become readable when one of them ends, so that `look` is called while its parent has not yet read how.
    """

    names: re.Pattern[str]
    clock: Callable[[], float]
    killed: Killed | None = None
    _watched: dict[int, int] = field(default_factory=dict)

    @property
    def descriptors(self) -> list[int]:
        return [descriptor for descriptor in self._watched.values() if descriptor >= 0]

    def look(self) -> None:
        """Note the first process that a signal has ended, and watch those that are new."""
        found = processes.named(os.getpid(), self.names)
        for pid in set(self._watched) - {one.pid for one in found if not one.ended}:
            self._forget(pid)
        for one in found:
            if one.signal in processes.FATAL and self.killed is None:
                line = f"{signal.Signals(one.signal).name} ended the process {one.name}"
                self.killed = Killed(one.signal, line, self.clock())
            if not one.ended and one.pid not in self._watched:
                self._watched[one.pid] = _descriptor(one.pid)

    def close(self) -> None:
        """Watch nothing any more."""
        for pid in list(self._watched):
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        descriptor = self._watched.pop(pid)
        if descriptor >= 0:
            os.close(descriptor)


def _descriptor(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 where there is none (Linux before 5.3)."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return -1
