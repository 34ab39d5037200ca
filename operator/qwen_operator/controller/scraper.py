"""Reads the /metrics pages of engine pods. Scaling does all its I/O here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from typing import Protocol

import aiohttp

from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.scaling.page import Page, Reading, Trouble
from qwen_operator.scaling.types import EnginePod
from qwen_operator.untrusted import clean

PORT = 8000
TIMEOUT_SECONDS = 1.5


class Scraper(Protocol):
    """Where the autoscaler gets its readings from. It never raises because of what an engine does."""

    async def read(self, engine: EnginePod) -> Reading | Trouble: ...


class HttpScraper:
    """Reads pages over one shared session. Each page has TIMEOUT_SECONDS of its own, with its parsing.

    Nothing limits how many pages it reads at the same time: then slow engines would delay the others. Of each page it
    keeps only the lines that matter.
    """

    def __init__(self, session: aiohttp.ClientSession, port: int = PORT) -> None:
        self._session = session
        self._port = port

    async def read(self, engine: EnginePod) -> Reading | Trouble:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                page = await self._page(pod_url(engine.address, self._port, "/metrics"), engine.objective)
                return await asyncio.to_thread(page.read, engine.model) if isinstance(page, Page) else page
        except TimeoutError:
            return Trouble(Reason.METRICS_MISSING, f"no answer within {TIMEOUT_SECONDS} s")
        except (aiohttp.ClientError, ValueError) as error:
            return Trouble(Reason.METRICS_MISSING, f"{type(error).__name__}: {clean(error, 200)}")

    async def _page(self, url: str, objective: Objective) -> Page | Trouble:
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status in (401, 403):
                return Trouble(Reason.METRICS_UNAUTHORIZED, f"/metrics answers {response.status}")
            if response.status != 200:
                return Trouble(Reason.METRICS_MISSING, f"/metrics answers {response.status}")
            page = Page(objective)
            async for part in response.content.iter_any():
                if not page.feed(part):
                    break
            return page


@asynccontextmanager
async def scraper(port: int = PORT) -> AsyncIterator[HttpScraper]:
    """A scraper with its own session."""
    async with pod_session("text/plain") as session:
        yield HttpScraper(session, port)


def pod_session(accept: str) -> aiohttp.ClientSession:
    """A session for pages of pods. It ignores the environment's proxies: they are not for the addresses of pods.

    Not httpx: for each request its pool walks over all connections, which costs many times the reading itself
    (`bench/scrape.py`).
    """
    return aiohttp.ClientSession(
        # One connection per pod stays open.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"user-agent": "qwen-operator", "accept": accept, "accept-encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None),
    )


def pod_url(address: str, port: int, path: str) -> str:
    """The URL of a page of a pod. Raises ValueError if `address` is not an IP address."""
    ip = ip_address(address)
    host = f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)
    return f"http://{host}:{port}{path}"
