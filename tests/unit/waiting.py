"""Waiting for what other tasks bring about, in real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Look every 10 ms; fails when the condition does not hold within so many seconds."""
    for _ in range(int(seconds * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"it did not come about within {seconds:g} s")
