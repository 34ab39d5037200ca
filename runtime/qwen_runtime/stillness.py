"""Finds the process of an engine that hangs, among those that only wait for it.

The schedulers of all ranks run in step: also while they have no requests, they exchange a message in every turn of
their loop. If one of them hangs, the others wait for that message, and from outside all look the same: they sleep. So
each scheduler tells its own stack, by Python's faulthandler, which needs no rights and works while the process hangs.
One that waits in torch.distributed, or in SGLang's functions above it, is not the one that hangs.

It finds only a process that sleeps. One that computes for ever, or that waits for a GPU with a busy loop as CUDA does,
cannot be told from one that computes a long prompt.
"""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qwen_runtime import processes

FOLDER_VARIABLE = "QWEN_RUNTIME_STACKS"
"""The folder with a file for each process of the engine that tells its stack. Not set: none tells it."""

ASK = signal.SIGUSR2
_WAITS_IN = ("/torch/distributed/", "/sglang/srt/distributed/")
# With pipeline stages, these wait for a message of another rank without a function of torch.
_WAITING = ("_pp_commit_comm_work", "point_to_point_pyobj")
# Of one core. Other threads of a process that hangs look after themselves now and then.
_IDLE_SHARE = 0.05
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>\S+)', re.MULTILINE)
_MOST = 65_536


def tell_stack() -> None:
    """Let this process write its stack into its file when it gets ASK. Nothing happens without the folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    try:
        # It stays open for the life of the process.
        file = (Path(folder) / str(os.getpid())).open("ab")
        faulthandler.register(ASK, file=file, all_threads=False)
    except (OSError, AttributeError):
        return


@dataclass(frozen=True, slots=True)
class Still:
    """A scheduler that sleeps and does nothing. `waits`: for another one. `where`: the function in which it is."""

    name: str
    waits: bool
    where: str = ""


@dataclass(slots=True)
class _Seen:
    """A process that has done nothing since `since`.

    `progress` is what it had done at `counted`, and `looked` when it was last seen. `asked`: it was asked for its
    stack, which is itself something to do. `settled`: `progress` is from after that.
    """

    progress: processes.Progress
    since: float
    counted: float
    looked: float
    asked: bool = False
    settled: bool = False

    def does_nothing(self, progress: processes.Progress, now: float) -> bool:
        """Whether it has done nothing since `counted`."""
        ticks = progress.all_ticks - self.progress.all_ticks
        idle = ticks <= _IDLE_SHARE * processes.TICKS_PER_SECOND * (now - self.counted)
        return idle and progress.main == self.progress.main and progress.below == self.progress.below


@dataclass(slots=True)
class Stillness:
    """Looks at the schedulers below this process. `seconds`: how long one may do nothing. Not thread-safe."""

    names: re.Pattern[str]
    folder: Path
    seconds: float
    confirm_seconds: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def look(self) -> list[Still]:
        """The schedulers that have done nothing for `seconds` and `confirm_seconds`."""
        present = {one.pid: one.name for one in processes.named(os.getpid(), self.names) if not one.ended}
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in present}
        return [still for pid, name in present.items() if (still := self._look_at(pid, name)) is not None]

    def _look_at(self, pid: int, name: str) -> Still | None:
        now, progress, seen = self.clock(), processes.progress_of_sleeper(pid), self._seen.get(pid)
        if progress is None:
            self._seen.pop(pid, None)
            return None
        if seen is not None and now - seen.looked > self.confirm_seconds:
            # This process stood still itself: the whole pod or node was paused, or has too little CPU time.
            seen = None
        if seen is not None and seen.asked and not seen.settled:
            seen.progress, seen.counted, seen.settled = progress, now, True
        if seen is None or not seen.does_nothing(progress, now):
            self._seen[pid] = _Seen(progress, now, now, now)
            return None
        seen.looked = now
        if not seen.asked and now - seen.since >= self.seconds:
            seen.asked = True
            self._ask(pid)
        if not seen.settled or now - seen.counted < self.confirm_seconds:
            return None
        return _still(name, self.folder / str(pid))

    def _ask(self, pid: int) -> None:
        file = self.folder / str(pid)
        # A process without this file does not handle the signal, which would end it.
        if file.exists():
            os.truncate(file, 0)
            processes.kill(pid, ASK)


def _still(name: str, file: Path) -> Still | None:
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            stack = opened.read(_MOST)
    except OSError:
        return None
    # The innermost frame comes first.
    frame = _FRAME.search(stack)
    if frame is None:
        return Still(name, waits=False)
    place = f"{frame['function']} ({frame['file'].rpartition('/')[2]}:{frame['line']})"
    waits = any(part in frame["file"] for part in _WAITS_IN) or frame["function"] in _WAITING
    return Still(name, waits, place)
