"""An event loop whose time passes only while everything sleeps: hours of waiting in milliseconds, in exact order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it. For code that does no real I/O."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        inner = cast("Any", self)
        if not inner._ready:
            due = [handle.when() for handle in inner._scheduled if not handle.cancelled()]
            self._now = max(self._now, min(due, default=self._now))
        cast("Any", super())._run_once()


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())
