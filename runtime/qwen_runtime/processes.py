"""The duties of an init process: adopt orphans, reap, end every descendant, and read the cgroup's OOM counter."""

import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
# In the fields after the name.
_USER_TICKS, _EXIT_CODE = 11, 49
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
FATAL = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals that end a process for a cause of its own. SIGABRT is not one: NCCL aborts if another rank is gone."""
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


@dataclass(frozen=True, slots=True)
class Process:
    """A process. `name` has at most 15 characters. `signal`: the one that ended it, 0 for none."""

    pid: int
    name: str
    ended: bool
    signal: int


def adopt_orphans() -> bool:
    """Make orphaned descendants children of this process, as they are of process 1. False if that is not possible."""
    if os.getpid() == 1:
        return True
    try:
        import ctypes  # noqa: PLC0415 - absent in some minimal Python builds, where only the process group is ended

        return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def oom_kills(counters: Iterable[Path] = OOM_COUNTERS) -> int | None:
    """Processes of this container that the OOM killer ended (cgroup v2, else v1). None if there is no counter."""
    for path in counters:
        try:
            rows = path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for row in rows:
            name, _, count = row.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return None


def kill(pid: int, number: int, *, group: bool = False) -> None:
    """Send a signal. A process that has already ended is no error."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def descendants(root: int) -> list[int]:
    """Process ids below `root`, from /proc. Processes that entered the container by `exec` have another parent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    pids: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        pids += below
        queue += below
    return pids


def named(root: int, names: re.Pattern[str]) -> list[Process]:
    """The descendants of `root` with such a name. One that has ended is there until its parent reads how."""
    found = []
    for pid in descendants(root):
        name, fields = _stat(Path(f"/proc/{pid}"))
        if fields and names.search(name):
            ended = fields[0] in "ZX"
            status = int(fields[_EXIT_CODE]) if ended and len(fields) > _EXIT_CODE else 0
            found.append(Process(pid, name, ended, status & 0x7F))
    return found


@dataclass(frozen=True, slots=True)
class Progress:
    """What a process has done. `main`: CPU ticks and switches of its main thread. `below`: CPU ticks of the processes
    below it. `all_ticks`: those of all its threads."""

    main: tuple[int, ...]
    below: int
    all_ticks: int


def progress_of_sleeper(pid: int) -> Progress | None:
    """What the process has done, if all its threads sleep now; else None."""
    main, whole = Path(f"/proc/{pid}/task/{pid}"), Path(f"/proc/{pid}")
    _, fields = _stat(main)
    try:
        states = [_stat(thread)[1][:1] for thread in main.parent.iterdir()]
    except OSError:
        return None
    if any(state not in (["S"], ["D"], []) for state in [fields[:1] or ["X"], *states]):
        return None
    try:
        status = (main / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    switches = [int(line.split()[1]) for line in status.splitlines() if "ctxt_switches:" in line]
    below = sum(_ticks(_stat(Path(f"/proc/{child}"))[1]) for child in descendants(pid))
    return Progress((_ticks(fields), *switches), below, _ticks(_stat(whole)[1]))


def _ticks(fields: list[str]) -> int:
    return int(fields[_USER_TICKS]) + int(fields[_USER_TICKS + 1]) if fields else 0


def stopped(root: int) -> dict[int, str]:
    """The descendants of `root` that a signal has stopped (state T), and their names. A debugger's stop is another."""
    found = {}
    for pid in descendants(root):
        name, fields = _stat(Path(f"/proc/{pid}"))
        if fields[:1] == ["T"]:
            found[pid] = name
    return found


def _parent(process: Path) -> int | None:
    _, fields = _stat(process)
    return int(fields[1]) if fields else None


def _stat(process: Path) -> tuple[str, list[str]]:
    """The command's name, and the fields after it: state, parent and so on. Nothing if the process has ended."""
    try:
        text = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", []
    # The name is in parentheses and may itself contain spaces and parentheses.
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], after.split()


def reap(main: int) -> int | None:
    """Reap all children that have ended. If `main` has, kill its group and return its status (negative: a signal)."""
    status = None
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return status
        if ended is None:
            return status
        if ended.si_pid == main:
            kill(main, signal.SIGKILL, group=True)  # before the kernel can reuse the pid, which is the group's id
        _, code = os.waitpid(ended.si_pid, 0)
        if ended.si_pid == main:
            status = os.waitstatus_to_exitcode(code)


def end_descendants(patience: float = 5.0) -> None:
    """SIGKILL and reap all descendants. Gives up after `patience` seconds (a process may sleep uninterruptibly)."""
    limit = time.monotonic() + patience
    while True:
        for pid in descendants(os.getpid()):
            kill(pid, signal.SIGKILL)
        reap(0)
        try:
            alive = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return
        if alive and time.monotonic() > limit:
            return
        time.sleep(0.01)
