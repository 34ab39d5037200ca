"""One simulated SGLang engine: continuous batching, chunked prefill, a KV cache, a queue and its counters.

An iteration is a prefill of up to CHUNK tokens, or a decode step of all running requests. Prefill goes first, the queue
is served in the order of arrival, and a request is admitted when a slot and its whole KV reservation are free. There is
no prefix cache and no retraction.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

CHUNK = 8192
# SGLang updates its decode counter once in so many decode steps (--decode-log-interval).
LOG_STEPS = 40


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one replica is. Times are in seconds.

    An iteration takes max(floor, prefill * tokens). `cached`: for each KV token that a decode step reads. `attention`:
    for each pair of a prefilled token and a token before it. `pool`: KV tokens. `slots`: requests at once. `gpus`: GPUs
    of a replica. `chunk`: the most tokens of one prefill iteration.
    """

    floor: float
    prefill: float
    cached: float
    attention: float
    pool: int
    slots: int = 256
    gpus: int = 1
    chunk: int = CHUNK

    def scaled(self, factor: float) -> Speed:
        """The same replica when each step takes `factor` times as long."""
        times = {name: getattr(self, name) * factor for name in ("floor", "prefill", "cached", "attention")}
        return replace(self, **times)

    def unloaded_prefill(self, tokens: int) -> float:
        """Seconds until the first token of a prompt that is alone on the replica."""
        chunks, rest = divmod(tokens, self.chunk)
        linear = chunks * max(self.floor, self.prefill * self.chunk) + (
            max(self.floor, self.prefill * rest) if rest else 0.0
        )
        return linear + self.attention * tokens * tokens / 2


# Floors and prefill times are from Vidur's A100 profiles. Cache reads: KV bytes per token and GPU, at the 1127 GB/s of
# SGLang's decode attention on an A100. Prefill attention: 4 * layers * hidden FLOP at 197 TFLOPS. Pools: 88 % of 80 GB
# less the weights.
SPEEDS = {
    "7b-mha": Speed(0.0094, 64e-6, 0.465e-6, 2.7e-9, 100_000),
    "7b-gqa": Speed(0.0094, 64e-6, 0.051e-6, 2.0e-9, 960_000),
    "72b-mha": Speed(0.0265, 190e-6, 0.58e-6, 3.3e-9, 52_000, gpus=4),
    "72b-gqa": Speed(0.0265, 190e-6, 0.073e-6, 3.3e-9, 415_000, gpus=4),
}


class Request(NamedTuple):
    """One line of a trace: seconds, and tokens."""

    arrival: float
    prompt: int
    output: int


class Done(NamedTuple):
    """A finished request: when its first token and its last token came."""

    request: Request
    first: float
    last: float


class Engine:
    """`now`: until when it is simulated. `used`: KV tokens. The counters are those of SGLang's metrics page."""

    __slots__ = (
        "_done",
        "_left",
        "_reserved",
        "_running",
        "_steps",
        "_waiting",
        "decoded",
        "decoding",
        "idle",
        "now",
        "prefilled",
        "speed",
        "used",
    )

    def __init__(self, speed: Speed, now: float, done: Callable[[Done], None]) -> None:
        self.speed = speed
        self.now = now
        self.used = 0
        self.prefilled = 0
        self.decoded = 0
        self.decoding = 0.0
        self.idle = 0.0
        self._done = done
        self._waiting: deque[Request] = deque()
        # Prompt tokens of the first waiting request that are not prefilled yet; 0 if its prefill has not begun.
        self._left = 0
        # (decode step of the last token, time of the first token, request)
        self._running: list[tuple[int, float, Request]] = []
        self._steps = 0
        self._reserved = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        """As in SGLang, a request whose prefill has begun is neither running nor queued."""
        return len(self._waiting) - (self._left > 0)

    @property
    def requests(self) -> int:
        return len(self._running) + len(self._waiting)

    @property
    def shown_decoded(self) -> int:
        """The decode counter as the metrics page shows it."""
        return max(0, self.decoded - len(self._running) * (self._steps % LOG_STEPS))

    def add(self, request: Request) -> None:
        """Call it when the engine has been advanced to the arrival."""
        self._waiting.append(request)

    def advance(self, until: float) -> None:
        """Simulate up to `until`. An iteration that has begun is finished, so `now` may be later."""
        while self.now < until:
            if self._waiting and self._prefill():
                continue
            if self._running:
                self._decode(until)
            else:
                self.idle += until - self.now
                self.now = until

    def _prefill(self) -> bool:
        """One prefill iteration; False if no waiting request can be admitted."""
        speed, budget, pairs = self.speed, self.speed.chunk, 0.0
        finished: list[Request] = []
        while self._waiting and budget:
            request = self._waiting[0]
            if not self._left:
                need = request.prompt + request.output
                full = self._reserved and self._reserved + need > speed.pool
                if full or len(self._running) + len(finished) >= speed.slots:
                    break
                self._reserved += need
                self._left = request.prompt
            part = min(self._left, budget)
            before = request.prompt - self._left
            pairs += part * (before + part / 2)
            budget -= part
            self._left -= part
            if not self._left:
                finished.append(self._waiting.popleft())
        tokens = speed.chunk - budget
        if not tokens:
            return False
        seconds = max(speed.floor, speed.prefill * tokens) + speed.attention * pairs
        self.now += seconds
        self.decoding += seconds * len(self._running)
        self.prefilled += tokens
        self.used += tokens
        for request in finished:
            if request.output > 1:
                heapq.heappush(self._running, (self._steps + request.output - 1, self.now, request))
            else:
                self._end(request, self.now, request.prompt)
        return True

    def _decode(self, until: float) -> None:
        """Decode steps up to the next end of a request, or to the first step that ends after `until`."""
        speed, batch = self.speed, len(self._running)
        step = max(speed.floor, speed.prefill * batch) + speed.cached * self.used
        grows = speed.cached * batch
        most = self._running[0][0] - self._steps
        # The time of k steps is k * step + grows * k * (k - 1) / 2. Slower steps only shorten this estimate.
        count = max(1, min(most, int((until - self.now) / step) + 1))
        seconds = count * step + grows * count * (count - 1) / 2
        self.now += seconds
        self.decoding += seconds * batch
        self._steps += count
        self.used += batch * count
        self.decoded += batch * count
        while self._running and self._running[0][0] <= self._steps:
            _, first, request = heapq.heappop(self._running)
            self._end(request, first, request.prompt + request.output - 1)

    def _end(self, request: Request, first: float, held: int) -> None:
        self.used -= held
        self._reserved -= request.prompt + request.output
        self._done(Done(request, first, self.now))
