"""The clients, and what they got."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import aiohttp

from bench.loss.engine import MODEL, TOKENS

LARGE_BYTES = 200_000


@dataclass(slots=True)
class Tally:
    """`ids` of requests: answered, lost (with the reason) and cut after they had begun."""

    answered: set[str] = field(default_factory=set)
    lost: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    longest: float = 0.0

    @property
    def asked(self) -> int:
        return len(self.answered) + len(self.lost) + len(self.cut)


@dataclass(frozen=True, slots=True)
class Turn:
    """While `asking` is set, clients begin requests. After `ends` they begin none any more."""

    asking: asyncio.Event
    ends: asyncio.Event


async def client(session: aiohttp.ClientSession, name: str, tally: Tally, turn: Turn) -> None:
    """One request after the other: three streams, three short ones, one large body."""
    for number in itertools.count():
        await turn.asking.wait()
        if turn.ends.is_set():
            return
        ident, kind = f"{name}-{number}", number % 7
        text = "x" * LARGE_BYTES if kind == 6 else "x"
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "user": ident}
        begun = time.monotonic()
        outcome = await ask(session, {**body, "stream": kind < 3}, ident)
        tally.longest = max(tally.longest, time.monotonic() - begun)
        if outcome == "":
            tally.answered.add(ident)
        elif outcome == "cut":
            tally.cut.add(ident)
        else:
            tally.lost[ident] = outcome


async def ask(session: aiohttp.ClientSession, body: dict[str, object], ident: str) -> str:
    """ "" for a complete answer, "cut" for a stream that had begun and broke off, or what went wrong."""
    content = ""
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            content = (await response.read()).decode()
    except (aiohttp.ClientError, TimeoutError) as error:
        return repr(error)
    if response.status != 200:
        return f"{response.status} {content[:200]}"
    if not body["stream"]:
        return "" if ident in content else content[:200]
    events = content.count('"delta"')
    if events == TOKENS and content.endswith("data: [DONE]\n\n"):
        return ""
    # The engine had sent the head of its answer.
    return "cut" if events or '"stream_error"' in content else content[:200]
