"""What a person sees who watches with kubectl."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.testbed.kubectl import Kubectl

_STATUS = re.compile(r"\d+/\d+\s+(\S.*?)\s{2,}")
_PERCENT = re.compile(r"(\d+)%")


@dataclass(slots=True)
class Screen:
    """The lines of `kubectl get qd -w`, each with the seconds since the first one."""

    lines: list[tuple[float, str]] = field(default_factory=list)

    def statuses(self) -> list[tuple[float, str]]:
        """The column STATUS of each line that has one."""
        found = ((at, _STATUS.search(line)) for at, line in self.lines)
        return [(at, match[1]) for at, match in found if match is not None]

    def percents(self, word: str) -> list[tuple[float, int]]:
        """The percents of all lines with this status, such as Downloading, with their times."""
        shown = ((at, _PERCENT.search(status)) for at, status in self.statuses() if status.startswith(f"{word} "))
        return [(at, int(match[1])) for at, match in shown if match is not None]

    def text(self) -> str:
        """All lines for a reader, each with its time."""
        return "\n".join(f"{at:6.1f} s  {line}" for at, line in self.lines)


@contextmanager
def watching(kubectl: Kubectl, *arguments: str) -> Iterator[Screen]:
    """Runs `kubectl get ... -w` during the block."""
    command = [str(kubectl.binary), f"--kubeconfig={kubectl.kubeconfig}", "get", *arguments, "-w"]
    screen, begun = Screen(), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:

        def read() -> None:
            assert program.stdout is not None
            for line in program.stdout:
                screen.lines.append((time.monotonic() - begun, line.rstrip()))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield screen
        finally:
            program.terminate()
            program.wait(10)
            reader.join(10)
