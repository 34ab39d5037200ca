"""Streams that begin at random instants, whether or not earlier ones have ended: the load of people, not of a test."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from tests.e2e.conftest import PATIENCE_SECONDS, Gateway


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream, as its client saw it. Times in seconds."""

    at: float
    """When it was sent, by the monotonic clock."""
    first: float
    """From there to the first token."""
    per_token: float
    """Mean time of the tokens after the first."""
    problem: str = ""
    """Empty when the stream came to its end."""


@dataclass(slots=True)
class OpenLoop:
    """`rate` requests per second, at exponential intervals. Change `rate` at any time; 0 pauses."""

    gateway: Gateway
    model: str
    tokens: int
    prompt: str
    rate: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    open: int = 0
    """Streams that are under way."""
    _stopped: threading.Event = field(default_factory=threading.Event)
    _luck: random.Random = field(default_factory=lambda: random.Random(1))

    async def serve(self) -> None:
        """Send until `stop`, then wait for the streams that are open."""
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {self.gateway.key}"}
        options = {"base_url": self.gateway.url, "headers": headers, "timeout": PATIENCE_SECONDS, "limits": limits}
        async with httpx.AsyncClient(**options) as client, asyncio.TaskGroup() as streams:  # type: ignore[arg-type]
            due = time.monotonic()
            while not self._stopped.is_set():
                if self.rate <= 0:
                    await asyncio.sleep(0.1)
                    due = time.monotonic()
                    continue
                due += self._luck.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                streams.create_task(self.ask(client))

    async def ask(self, client: httpx.AsyncClient) -> None:
        """One stream, read to its end."""
        # The router sends what begins alike to one replica: these begin differently.
        message = {"role": "user", "content": f"{uuid4().hex} {self.prompt}"}
        body = {"model": self.model, "messages": [message], "stream": True, "max_tokens": self.tokens}
        self.open += 1
        sent = time.monotonic()
        try:
            first, reason = await _read(client, {**body, "ignore_eos": True})
        except httpx.HTTPError as error:
            first, reason = sent, f"{type(error).__name__}: {error}"
        finally:
            self.open -= 1
        per_token = (time.monotonic() - first) / (self.tokens - 1)
        self.answers.append(Answer(sent, first - sent, per_token, "" if reason == "length" else reason))

    def stop(self) -> None:
        self._stopped.set()


async def _read(client: httpx.AsyncClient, body: dict[str, object]) -> tuple[float, str]:
    """When the first token came, and the finish reason or what came instead."""
    first, reason = 0.0, "no end"
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return time.monotonic(), f"HTTP {answer.status_code}: {(await answer.aread()).decode()}"
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic()
                # Reading every line as JSON would need a core of its own.
                if '"finish_reason":"' in line:
                    reason = line.split('"finish_reason":"')[1].split('"')[0]
    return first or time.monotonic(), reason


@contextmanager
def running(loop: OpenLoop) -> Iterator[OpenLoop]:
    """The loop runs during the block. At its end, the streams that are open are read to their ends."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(loop.serve())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join()
    if failed:
        raise failed[0]


def kept_percent(answers: Sequence[Answer], first: float, per_token: float) -> float:
    """How many of 100 kept both times, in seconds. NaN for no answers."""
    kept = [not a.problem and a.first <= first and a.per_token <= per_token for a in answers]
    return 100 * sum(kept) / len(kept) if kept else float("nan")
