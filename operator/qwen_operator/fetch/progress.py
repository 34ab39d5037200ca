"""How far a download is. Threads add to it, and the page and the log show it."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RATE_SECONDS = 15.0
"""The rate is the mean over this time."""


@dataclass(slots=True)
class Progress:
    """`total`: bytes of the model. `done`: bytes that are in the cache. `received`:
    bytes that came from the hub in this run. `clock` returns monotonic seconds.

    `relayed` is the page of another pod that downloads the same model, while this one waits for it.
    """

    clock: Callable[[], float] = time.monotonic
    total: int = 0
    done: int = 0
    received: int = 0
    finished: bool = False
    relayed: bytes = b""
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        """Count bytes that arrived; a negative number takes back what has to be loaded again."""
        with self._lock:
            self.done += count

    def receive(self, count: int) -> None:
        """Count bytes that came from the hub."""
        with self._lock:
            self.done += count
            self.received += count

    def rate(self) -> int:
        """Bytes per second. Each call takes a sample, so call it about once a second."""
        now = self.clock()
        with self._lock:
            self._samples.append((now, self.done))
            while len(self._samples) > 2 and now - self._samples[1][0] > RATE_SECONDS:
                self._samples.popleft()
            first_at, first = self._samples[0]
            seconds = now - first_at
            return max(0, int((self.done - first) / seconds)) if seconds > 0 else 0

    def page(self) -> bytes:
        """The progress as JSON in one line."""
        if self.relayed:
            return self.relayed
        return json.dumps(
            {
                "version": 1,
                "phase": "Download",
                "bytesTotal": self.total,
                "bytesDone": min(self.done, self.total),
                "bytesPerSecond": self.rate(),
                "finished": self.finished,
            }
        ).encode()
