"""Reads from the pods that fetch a model, or start an engine, how far they are."""

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
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.status.progress import PAGE_BYTES, ProgressPage, StartPage, is_fetching, is_starting, read_page
from qwen_operator.untrusted import clean
from qwen_runtime.progress import PORT as START_PORT

PATH = "/progress"
INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 1.5
AT_ONCE = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchingPod:
    """A pod that downloads its model or, if it is `starting`, loads it; and the QwenDeployment that it belongs to."""

    key: ObjectKey
    uid: str
    address: str
    starting: bool = False


def fetching_pods(store: Store) -> Iterator[FetchingPod]:
    """All pods that download or load their model now and have an address.

    Those that cannot be understood are left out.
    """
    for deployment in store.with_unready_pods():
        key = objects.key_of(deployment)
        try:
            pods = [
                pod
                for pod in (*store.engine_pods(deployment), *store.fetch_pods(deployment))
                if not pod.up and pod.address and _has_page(pod)
            ]
        except Exception:
            log.exception("no progress of this QwenDeployment", extra={"deployment": "/".join(key)})
            continue
        for pod in pods:
            yield FetchingPod(key, pod.uid, pod.address, is_starting(pod))


def _has_page(pod: PodState) -> bool:
    return is_fetching(pod) or is_starting(pod)


@dataclass(slots=True)
class FetchPages:
    """The last page of each pod. `on_change` gets the key of a QwenDeployment whose download or start has moved."""

    session: aiohttp.ClientSession
    view: Callable[[], Iterable[FetchingPod]]
    on_change: Callable[[ObjectKey], None]
    port: int = PORT
    start_port: int = START_PORT
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    pages: dict[str, ProgressPage] = field(default_factory=dict)
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
        moved = [pod.key for pod in pods if _shown(before, pod) != _shown(self.pages, pod)]
        for key in dict.fromkeys(moved):
            self.on_change(key)

    def _kept(self, pods: Iterable[FetchingPod], read: Iterable[ProgressPage | None]) -> dict[str, ProgressPage]:
        """The new pages. A pod that does not answer keeps its last one."""
        pairs = ((pod, page or self.pages.get(pod.uid)) for pod, page in zip(pods, read, strict=True))
        # The page of a download says nothing about the start that follows it.
        return {pod.uid: page for pod, page in pairs if page and isinstance(page, StartPage) == pod.starting}

    async def _page(self, pod: FetchingPod) -> ProgressPage | None:
        try:
            async with self._slots, asyncio.timeout(TIMEOUT_SECONDS):
                return await self._get(pod_url(pod.address, self.start_port if pod.starting else self.port, PATH))
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            log.debug("a progress page cannot be read", extra={"object": pod.address, "error": clean(error, 200)})
            return None

    async def _get(self, url: str) -> ProgressPage | None:
        return read_page(await get_page(self.session, url))


async def get_page(session: aiohttp.ClientSession, url: str) -> bytes:
    """The page of a pod. Raises aiohttp.ClientError, or ValueError if it is too large or none."""
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{PATH} answers {response.status}")
        content = await response.content.read(PAGE_BYTES + 1)
        while len(content) <= PAGE_BYTES and (part := await response.content.read(PAGE_BYTES + 1)):
            content += part
        if len(content) > PAGE_BYTES:
            raise ValueError(f"{PATH} has more than {PAGE_BYTES} bytes")
        return content


def _shown(pages: Mapping[str, ProgressPage], pod: FetchingPod) -> tuple[str, int | None] | None:
    page = pages.get(pod.uid)
    return (page.phase, page.percent) if page is not None else None


@asynccontextmanager
async def fetch_pages(
    view: Callable[[], Iterable[FetchingPod]], on_change: Callable[[ObjectKey], None]
) -> AsyncIterator[FetchPages]:
    """A reader with its own session."""
    async with pod_session("application/json") as session:
        yield FetchPages(session, view, on_change)
