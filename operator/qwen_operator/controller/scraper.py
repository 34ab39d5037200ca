"""Reads the /metrics pages of engine pods. Scaling does all its I/O here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from typing import Protocol

import aiohttp

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.page import PAGE_BYTES, Reading, Trouble, read_page
from qwen_operator.scaling.types import EnginePod
from qwen_operator.untrusted import clean

PORT = 8000
TIMEOUT_SECONDS = 1.5
CONCURRENCY = 64


class Scraper(Protocol):
    """Where the autoscaler gets its readings from. It never raises because of what an engine does."""

    async def read(self, engine: EnginePod) -> Reading | Trouble: ...


class HttpScraper:
    """Reads pages over one shared session. Each page has TIMEOUT_SECONDS.

    It reads at most CONCURRENCY bodies at the same time.
    """

    def __init__(self, session: aiohttp.ClientSession, port: int = PORT) -> None:
        self._session = session
        self._port = port
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def read(self, engine: EnginePod) -> Reading | Trouble:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                page = await self._page(page_url(engine.address, self._port))
        except TimeoutError:
            return Trouble(Reason.METRICS_MISSING, f"no answer within {TIMEOUT_SECONDS} s")
        except (aiohttp.ClientError, ValueError) as error:
            return Trouble(Reason.METRICS_MISSING, f"{type(error).__name__}: {clean(error, 200)}")
        return read_page(page, engine.model) if isinstance(page, str) else page

    async def _page(self, url: str) -> str | Trouble:
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status in (401, 403):
                return Trouble(Reason.METRICS_UNAUTHORIZED, f"/metrics answers {response.status}")
            if response.status != 200:
                return Trouble(Reason.METRICS_MISSING, f"/metrics answers {response.status}")
            # Take a slot only after the answer has begun. Otherwise engines that do not answer would block the slots.
            async with self._slots:
                return await _body(response)


async def _body(response: aiohttp.ClientResponse) -> str | Trouble:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > PAGE_BYTES:
            return Trouble(Reason.METRICS_INVALID, f"the page has more than {PAGE_BYTES} bytes")
    return b"".join(parts).decode("utf-8", "replace")


@asynccontextmanager
async def scraper(port: int = PORT) -> AsyncIterator[HttpScraper]:
    """A scraper with its own session. It ignores the environment's proxies: they are not for the addresses of pods.

    Not httpx: for each request its pool walks over all connections, which costs many times the reading itself
    (`bench/scrape.py`).
    """
    session = aiohttp.ClientSession(
        # One connection per engine stays open. The slots limit how many are in use at the same time.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"user-agent": "qwen-operator", "accept": "text/plain", "accept-encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None),
    )
    async with session:
        yield HttpScraper(session, port)


def page_url(address: str, port: int) -> str:
    """The URL of an engine's metrics. Raises ValueError if `address` is not an IP address."""
    ip = ip_address(address)
    host = f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)
    return f"http://{host}:{port}/metrics"
