"""Forwards a child's output, and shows each line to an observer.

Each stream has one thread with blocking reads and writes. So a slow reader slows the child, as it would without this
process, but never the thread that handles signals.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_CHUNK = 65536
_LONGEST_LINE = 16384


@dataclass(slots=True)
class LineSplitter:
    """Turns bytes into lines. Carriage returns separate the states of a progress bar; only the last state is kept.

    A line is cut at 16 KiB, so that output without line ends cannot fill the memory.
    """

    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *complete, rest = data.split(b"\n")
        lines = []
        for part in complete:
            self._extend(part)
            lines.append(self._take())
        self._extend(rest)
        return lines

    def unfinished(self) -> str:
        """The present state of the line that has no end yet."""
        return self._rest.decode("utf-8", "replace").strip("\r")

    def finish(self) -> list[str]:
        """The last line, if it has no line end."""
        return [self._take()] if self._rest else []

    def _extend(self, part: bytes) -> None:
        self._rest += part
        bar = self._rest.rstrip(b"\r").rfind(b"\r")
        if bar >= 0:
            del self._rest[: bar + 1]
        del self._rest[_LONGEST_LINE:]

    def _take(self) -> str:
        text = self._rest.decode("utf-8", "replace").strip("\r")
        self._rest.clear()
        return text


def pump(
    source: int, sink: int, observe: Callable[[str], None], glance: Callable[[str], None] = lambda _: None
) -> None:
    """Copy `source` to `sink` until its end, and show each line to `observe` first. Closes `source`.

    `glance` gets a line that has no end yet, each time that it has changed.
    If nobody reads `sink` any more, it still reads `source` to its end.
    """
    splitter = LineSplitter()
    open_sink = True
    try:
        while chunk := os.read(source, _CHUNK):
            for line in splitter.feed(chunk):
                observe(line)
            if unfinished := splitter.unfinished():
                glance(unfinished)
            open_sink = open_sink and _write_all(sink, chunk)
        for line in splitter.finish():
            observe(line)
    finally:
        os.close(source)


def _write_all(sink: int, data: bytes) -> bool:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(sink, view) :]
    except OSError:
        return False
    return True


def start_pump(
    source: int, sink: int, observe: Callable[[str], None], glance: Callable[[str], None]
) -> threading.Thread:
    """Start a thread that pumps. It is a daemon thread, so a blocked reader cannot keep the process from ending."""
    thread = threading.Thread(target=pump, args=(source, sink, observe, glance), name=f"pump-{sink}", daemon=True)
    thread.start()
    return thread
