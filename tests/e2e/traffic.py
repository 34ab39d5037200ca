"""Steady requests of a client, counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.e2e.conftest import Gateway


@dataclass(slots=True)
class Trickle:
    """One request after the other, with a breath between them, until it is stopped."""

    ask: Callable[[], str]
    """Sends one; empty when the answer was whole, otherwise what went wrong. May raise httpx.HTTPError."""
    pause: float = 0.5
    """Seconds between two requests."""
    answered: int = 0
    lost: list[tuple[float, str]] = field(default_factory=list)
    """When, by the monotonic clock, and what."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(self.pause):
            try:
                what = self.ask()
            except httpx.HTTPError as error:
                what = f"{type(error).__name__}: {error}"
            if what:
                self.lost.append((time.monotonic(), what))
            else:
                self.answered += 1

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def flowing(trickles: Sequence[Trickle]) -> Iterator[None]:
    """The trickles run during the block. At its end, the requests that are under way are finished and counted too."""
    with ThreadPoolExecutor(len(trickles)) as pool:
        running = [pool.submit(trickle.run) for trickle in trickles]
        try:
            yield
        finally:
            for trickle in trickles:
                trickle.stop()
        for future in running:
            # Raises what a trickle raised: a dead one would look like one without losses.
            future.result()


def short_answer(gateway: Gateway, model: str) -> str:
    """An answer in one piece."""
    answer = gateway.chat(model, max_tokens=8)
    return "" if answer.status_code == 200 else f"HTTP {answer.status_code}: {answer.text}"


def stream(gateway: Gateway, model: str, tokens: int) -> str:
    """A stream of so many tokens, read to its end."""
    reason = gateway.stream(model, tokens)
    return "" if reason == "length" else f"stream: {reason}"
