"""A work queue of object keys. A key that is added twice is handled once. No two workers have the same key.

If a key is added while a worker has it, it returns to the queue when that worker is done. So no change is lost. After
a failure, a key returns after a delay that grows exponentially and has jitter.
"""

import asyncio
import heapq
from collections.abc import Callable

from qwen_operator.objects import ObjectKey

MAX_BACKOFF_SECONDS = 60.0
LONGEST_ASKED_SECONDS = 300.0
"""The longest wait that a server may ask for. A proxy before the API server may ask for any."""

# How many steps of a key may follow one another without a delay. Without a limit, another controller that undoes every
# repair would keep the operator busy for ever.
FREE_STEPS = 10


class WorkQueue:
    """For one event loop. `clock` returns seconds (monotonic), `random` a number in [0, 1)."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        # Each with the time at which its wait or its work began, the oldest first.
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
        """How long the oldest key has waited for a worker, in seconds; 0 if no key waits."""
        now = self._clock()
        return now - next(iter(self._ready.values()), now)

    def busy(self) -> float:
        """How long the slowest worker has worked on its present key, in seconds; 0 if no worker is busy."""
        now = self._clock()
        return now - next(iter(self._active.values()), now)

    def works_on(self, key: ObjectKey) -> bool:
        """Whether a worker has this key now."""
        return key in self._active

    def clear(self) -> None:
        """Drop all keys that wait for a worker. Call it before you add every key again."""
        self._ready.clear()

    def add(self, key: ObjectKey) -> None:
        """Queue this key for the next free worker, or for the end of its delay after too many steps."""
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
        """Queue this key after so many seconds, or earlier if something else adds it."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._wake.set()

    def retry(self, key: ObjectKey, at_least: float = 0.0) -> float:
        """Queue this key again after its backoff. Returns the delay in seconds: 1 to 60, or `at_least` if more.

        `at_least` is what the server asked for. More than LONGEST_ASKED_SECONDS of it do not count.
        """
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 6)) * (0.5 + self._random() / 2)
        delay = max(delay, min(at_least, LONGEST_ASKED_SECONDS))
        self.add_after(key, delay)
        return delay

    def again(self, key: ObjectKey) -> None:
        """Queue the next step of a key that a worker has just handled.

        After more than FREE_STEPS steps in a row there is a delay, which `add` does not shorten.
        """
        steps = self._steps[key] = self._steps.get(key, 0) + 1
        if steps <= FREE_STEPS:
            self.add(key)
        else:
            self._not_before[key] = self._clock() + self.retry(key)

    def forget(self, key: ObjectKey) -> None:
        """Reset backoff and steps of a key that needs no more work."""
        self._failures.pop(key, None)
        self._steps.pop(key, None)
        self._not_before.pop(key, None)

    def take(self) -> ObjectKey | None:
        """The next key, or None. The caller must call `done` for it.

        This drops the key's pending `add_after`. The caller adds a new one if it needs one.
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
        """The worker that took the key has finished, with or without success."""
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
