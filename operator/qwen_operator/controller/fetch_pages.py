"""Reads from the pods that fetch a model how far they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import aiohttp

from qwen_operator import objects
from qwen_operator.controller.cache import Store
from qwen_operator.controller.scraper import PORT, pod_session, pod_url
from qwen_operator.objects import ObjectKey
from qwen_operator.status.progress import PAGE_BYTES, FetchPage, is_fetching, read_page
from qwen_operator.untrusted import clean

PATH = "/progress"
INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 1.5
AT_ONCE = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchingPod:
    """A pod that downloads its model, and the QwenDeployment that it belongs to."""

    key: ObjectKey
    uid: str
    address: str


def fetching_pods(store: Store) -> Iterator[FetchingPod]:
    """All engine pods that download their model now and have an address, without those that cannot be understood."""
    for deployment in store.deployments():
        key = objects.key_of(deployment)
        try:
            pods = [pod for pod in store.engine_pods(deployment) if not pod.up and pod.address and is_fetching(pod)]
        except Exception:
            log.exception("no progress of this QwenDeployment", extra={"deployment": "/".join(key)})
            continue
        for pod in pods:
            yield FetchingPod(key, pod.uid, pod.address)


@dataclass(slots=True)
class FetchPages:
    """The last page of each pod. `on_change` gets the key of a QwenDeployment whose download has moved."""

    session: aiohttp.ClientSession
    view: Callable[[], Iterable[FetchingPod]]
    on_change: Callable[[ObjectKey], None]
    port: int = PORT
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    pages: dict[str, FetchPage] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def run(self) -> NoReturn:
        """Read for ever."""
        while True:
            await self.step()
            await self.sleep(INTERVAL_SECONDS)

    async def step(self) -> None:
        """Read every page once. It never raises because of what a pod does."""
        pods = list(self.view())
        read = await asyncio.gather(*(self._page(pod) for pod in pods))
        before, self.pages = self.pages, self._kept(pods, read)
        moved = [pod.key for pod in pods if _percent(before, pod) != _percent(self.pages, pod)]
        for key in dict.fromkeys(moved):
            self.on_change(key)

    def _kept(self, pods: Iterable[FetchingPod], read: Iterable[FetchPage | None]) -> dict[str, FetchPage]:
        """The new pages. A pod that does not answer keeps its last one."""
        pairs = ((pod.uid, page or self.pages.get(pod.uid)) for pod, page in zip(pods, read, strict=True))
        return {uid: page for uid, page in pairs if page is not None}

    async def _page(self, pod: FetchingPod) -> FetchPage | None:
        try:
            async with self._slots, asyncio.timeout(TIMEOUT_SECONDS):
                return await self._get(pod_url(pod.address, self.port, PATH))
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            log.debug("a download cannot be read", extra={"object": pod.address, "error": clean(error, 200)})
            return None

    async def _get(self, url: str) -> FetchPage | None:
        async with self.session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{PATH} answers {response.status}")
            content = await response.content.read(PAGE_BYTES + 1)
            while len(content) <= PAGE_BYTES and (part := await response.content.read(PAGE_BYTES + 1)):
                content += part
            if len(content) > PAGE_BYTES:
                raise ValueError(f"{PATH} has more than {PAGE_BYTES} bytes")
            return read_page(content)


def _percent(pages: Mapping[str, FetchPage], pod: FetchingPod) -> int | None:
    page = pages.get(pod.uid)
    return page.percent if page is not None else None


@asynccontextmanager
async def fetch_pages(
    view: Callable[[], Iterable[FetchingPod]], on_change: Callable[[ObjectKey], None]
) -> AsyncIterator[FetchPages]:
    """A reader with its own session."""
    async with pod_session("application/json") as session:
        yield FetchPages(session, view, on_change)
