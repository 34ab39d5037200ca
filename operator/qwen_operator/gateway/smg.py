"""What the agent asks of its router, over loopback."""

import logging
from pathlib import Path
from typing import Any, Protocol

import aiohttp

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0


class Router(Protocol):
    """The router as the agent sees it."""

    async def workers(self) -> list[dict[str, Any]] | None:
        """The workers that the router knows; None when it does not answer (not started, restarting, hung)."""
        ...


class Smg:
    """`Router` over smg's `GET /workers`. The key file is read at every call: the router makes it at its start."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key_file: Path) -> None:
        self._session = session
        self._url = url
        self._key_file = key_file

    async def workers(self) -> list[dict[str, Any]] | None:
        try:
            headers = {"Authorization": f"Bearer {self._key_file.read_text('ascii')}"}
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            async with self._session.get(f"{self._url}/workers", headers=headers, timeout=timeout) as response:
                if response.status != 200:
                    log.warning("the router refuses to list its workers: HTTP %d", response.status)
                    return None
                body = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        workers = body.get("workers") if isinstance(body, dict) else None
        return [worker for worker in workers if isinstance(worker, dict)] if isinstance(workers, list) else None
