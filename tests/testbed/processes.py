"""The processes of a pod on the machine. Tests stop, freeze and kill them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def pods_processes(uid: str, words: str = "") -> list[int]:
    """Process ids of the pod of this uid whose command line contains `words`, oldest first."""
    marks = (uid, uid.replace("-", "_"))
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process can end at any of these lines.
        with suppress(OSError):
            group = (entry / "cgroup").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(mark in group for mark in marks) and words in command:
                pids.append(int(entry.name))
    return sorted(pids)


def send(processes: Sequence[int], number: signal.Signals) -> None:
    """Send the signal to all of them. Raises ProcessLookupError if there is none."""
    if not processes:
        raise ProcessLookupError("no such process")
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(processes: Sequence[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end of the block."""
    send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send(processes, signal.SIGCONT)
