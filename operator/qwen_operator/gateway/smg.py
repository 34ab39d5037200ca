"""The agent's view of its router, which it queries over loopback."""

import logging
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from qwen_operator import untrusted

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
# Less than the time-out of the kubelet's probes.
ALIVE_SECONDS = 2.5
# smg repeats labels that engines report.
_LEVELS = 16


class Router(Protocol):
    """The part of the router's API that the agent uses."""

    async def workers(self) -> list[dict[str, Any]] | None:
        """The workers that the router knows; None if it does not answer (not started, restarting or hung)."""
        ...

    async def alive(self) -> bool:
        """Whether the router answers, also without a worker."""
        ...


class Smg:
    """`Router` over smg's `GET /workers`. Every call reads the key file, because the router creates it at its start."""

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
                    log.warning("the router does not list its workers: HTTP %d", response.status)
                    return None
                body = untrusted.decode(await response.read(), _LEVELS)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        workers = body.get("workers") if isinstance(body, dict) else None
        return [worker for worker in workers if isinstance(worker, dict)] if isinstance(workers, list) else None

    async def alive(self) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=ALIVE_SECONDS)
            async with self._session.get(f"{self._url}/liveness", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
