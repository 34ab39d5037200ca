"""A work queue of object keys: what is queued twice is done once, one key is never worked on by two workers.

A key that is added while a worker has it comes back when that worker is done, so no change is lost. Failures come
back after a jittered, exponentially growing delay of their own.
"""

import asyncio
import heapq
from collections.abc import Callable

from qwen_operator.objects import ObjectKey

MAX_BACKOFF_SECONDS = 60.0

# Steps that follow one another at once. Whoever undoes our repairs at every event would keep us busy for ever:
# after so many steps without a rest the key is braked.
FREE_STEPS = 10


class WorkQueue:
    """For one event loop. `clock` returns seconds (monotonic), `random` a number in [0, 1)."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        # With the seconds since when they wait, or are worked on; in the order of these.
        self._ready: dict[ObjectKey, float] = {}
        self._active: dict[ObjectKey, float] = {}
        self._again: set[ObjectKey] = set()
        self._due: dict[ObjectKey, float] = {}
        self._heap: list[tuple[float, ObjectKey]] = []
        self._failures: dict[ObjectKey, int] = {}
        self._steps: dict[ObjectKey, int] = {}
        self._not_before: dict[ObjectKey, float] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready) + len(self._again)

    @property
    def has_appointments(self) -> bool:
        """Whether a key is to be worked on at a later time."""
        return bool(self._due)

    def age(self) -> float:
        """Seconds for which the key that waits longest for a worker has waited."""
        now = self._clock()
        return now - next(iter(self._ready.values()), now)

    def busy(self) -> float:
        """Seconds for which the worker that works longest on its key has worked on it."""
        now = self._clock()
        return now - next(iter(self._active.values()), now)

    def clear(self) -> None:
        """Drop what waits for a worker, for one who is about to add everything."""
        self._ready.clear()

    def add(self, key: ObjectKey) -> None:
        """Work on this key as soon as a worker is free, or when its brake is off."""
        wait = self._not_before.get(key, 0.0) - self._clock()
        if wait > 0:
            self.add_after(key, wait)
            return
        if key in self._active:
            self._again.add(key)
        else:
            self._ready.setdefault(key, self._clock())
        self._wake.set()

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """Work on this key in so many seconds, or earlier if something else asks for it."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._wake.set()

    def retry(self, key: ObjectKey, at_least: float = 0.0) -> float:
        """Work on this key again after its backoff; returns the delay in seconds: 1 to 60, or `at_least`."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 6)) * (0.5 + self._random() / 2)
        delay = max(delay, at_least)
        self.add_after(key, delay)
        return delay

    def again(self, key: ObjectKey) -> None:
        """The key was worked on and has a next step: at once, or after a brake that nothing shortens if it does not
        come to rest."""
        steps = self._steps[key] = self._steps.get(key, 0) + 1
        if steps <= FREE_STEPS:
            self.add(key)
        else:
            self._not_before[key] = self._clock() + self.retry(key)

    def forget(self, key: ObjectKey) -> None:
        """The key is at rest: its next failure waits the shortest time again, and its next steps are free."""
        self._failures.pop(key, None)
        self._steps.pop(key, None)
        self._not_before.pop(key, None)

    def take(self) -> ObjectKey | None:
        """A key whose turn has come, or None. The caller owes a `done`.

        Earlier appointments of the key are dropped: whoever works on it makes a new one if it is needed.
        """
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._due.pop(key, None)
        self._active[key] = now
        return key

    def done(self, key: ObjectKey) -> None:
        """The worker that took the key has finished, well or not."""
        self._active.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def get(self) -> ObjectKey:
        """Wait for a key; see `take`."""
        while (key := self.take()) is None:
            self._wake.clear()
            delay = max(0.0, self._heap[0][0] - self._clock()) if self._heap else None
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue
        return key
