"""How many pages are read at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

AT_ONCE = 32
PATIENCE_SECONDS = 0.25
"""A page that takes longer waits for its engine: it does not count any more, so that slow engines delay no others."""
_LATE_SECONDS = 0.05

Engine = TypeVar("Engine")
Result = TypeVar("Result")


class InHand:
    """Counts the pages that keep this process busy.

    All pages at once would wait for each other here, and the last of them would seem to come too late.
    """

    def __init__(self, most: int = AT_ONCE) -> None:
        self._most = most
        self._number = 0
        self._fewer = asyncio.Event()

    async def room(self) -> None:
        """Return when fewer than `most` pages are in hand."""
        # What was just started counts only when it has had its turn.
        await asyncio.sleep(0)
        while self._number >= self._most:
            self._fewer.clear()
            await self._fewer.wait()

    async def count(self, read: Callable[[Engine], Awaitable[Result]], engine: Engine) -> Result:
        """Read a page that counts until it is read, or until it has waited for its engine."""
        place = _Place(self)
        try:
            return await read(engine)
        finally:
            place.leave()

    def add(self, number: int) -> None:
        self._number += number
        if number < 0:
            self._fewer.set()


class _Place:
    def __init__(self, hand: InHand) -> None:
        self._hand = hand
        self._loop = asyncio.get_running_loop()
        self._left = False
        self._timer = self._wait()
        hand.add(1)

    def leave(self) -> None:
        self._timer.cancel()
        if not self._left:
            self._left = True
            self._hand.add(-1)

    def _wait(self) -> asyncio.TimerHandle:
        due = self._loop.time() + PATIENCE_SECONDS
        return self._loop.call_at(due, self._over, due)

    def _over(self, due: float) -> None:
        if self._loop.time() - due > _LATE_SECONDS:
            # This process is slow, so nobody knows whether the engine is.
            self._timer = self._wait()
        else:
            self.leave()
