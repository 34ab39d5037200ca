"""Reads the /metrics pages of engine pods. All I/O of scaling is here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from typing import Protocol

import httpx

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.page import Reading, Trouble, read
from qwen_operator.scaling.types import Engine

PORT = 8000
TIMEOUT_SECONDS = 1.5
CONCURRENCY = 64
# A page of a loaded engine has about 80 KB.
PAGE_LIMIT = 4 * 1024 * 1024


class Scraper(Protocol):
    """Where the loop gets its readings from; never raises for what an engine does."""

    async def read(self, engine: Engine) -> Reading | Trouble: ...


class HttpScraper:
    """Reads pages over one shared client; at most CONCURRENCY at a time, each at most TIMEOUT_SECONDS."""

    def __init__(self, client: httpx.AsyncClient, port: int = PORT) -> None:
        self._client = client
        self._port = port
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def read(self, engine: Engine) -> Reading | Trouble:
        async with self._slots:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    page = await self._page(_url(engine.address, self._port))
            except TimeoutError:
                return Trouble(Reason.METRICS_MISSING, f"no answer within {TIMEOUT_SECONDS} s")
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                return Trouble(Reason.METRICS_MISSING, f"{type(error).__name__}: {error}")
        return read(page, engine.model) if isinstance(page, str) else page

    async def _page(self, url: str) -> str | Trouble:
        async with self._client.stream("GET", url) as response:
            if response.status_code in (401, 403):
                return Trouble(Reason.METRICS_UNAUTHORIZED, f"/metrics answers {response.status_code}")
            if response.status_code != 200:
                return Trouble(Reason.METRICS_MISSING, f"/metrics answers {response.status_code}")
            parts, size = [], 0
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > PAGE_LIMIT:
                    return Trouble(Reason.METRICS_INVALID, f"the page has more than {PAGE_LIMIT} bytes")
        return b"".join(parts).decode("utf-8", "replace")


@asynccontextmanager
async def scraper() -> AsyncIterator[HttpScraper]:
    """A scraper with a client of its own. The environment's proxies are not for the addresses of pods."""
    limits = httpx.Limits(max_connections=2 * CONCURRENCY, max_keepalive_connections=4 * CONCURRENCY)
    headers = {"user-agent": "qwen-operator", "accept": "text/plain"}
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS, limits=limits, headers=headers) as client:
        yield HttpScraper(client)


def _url(address: str, port: int) -> str:
    """Raises ValueError for what is no IP address."""
    ip = ip_address(address)
    host = f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)
    return f"http://{host}:{port}/metrics"
