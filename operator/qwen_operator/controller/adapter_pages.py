"""Reads from engines which adapters they have, while they load or unload some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import aiohttp

from qwen_operator import objects
from qwen_operator.controller.cache import Store
from qwen_operator.controller.fetch_pages import AT_ONCE, PATH, TIMEOUT_SECONDS, get_page
from qwen_operator.controller.scraper import pod_session, pod_url
from qwen_operator.objects import ObjectKey
from qwen_operator.replicas.adapters import AdaptersPage, awaits, read_adapters_page
from qwen_operator.untrusted import clean
from qwen_runtime.progress import PORT

STEP_SECONDS = 0.5
AGAIN_SECONDS = 5.0
"""An engine that has answered and lacks an adapter is asked again after this time: it may have loaded it since."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadingPod:
    """A pod whose engine may not have all of its adapters, the list of them, and its QwenDeployment."""

    key: ObjectKey
    uid: str
    address: str
    wanted: str


def loading_pods(store: Store) -> Iterator[LoadingPod]:
    """All pods that are up and of which it is not known that they have all adapters.

    Those that cannot be understood are left out.
    """
    for deployment in store.deployments():
        if not objects.mapping(deployment, "spec").get("adapters"):
            continue
        key = objects.key_of(deployment)
        try:
            pods = [(pod, awaits(pod)) for pod in store.engine_pods(deployment) if pod.address]
        except Exception:
            log.exception("no adapters of this QwenDeployment", extra={"deployment": "/".join(key)})
            continue
        for pod, wanted in pods:
            if wanted:
                yield LoadingPod(key, pod.uid, pod.address, wanted)


@dataclass(slots=True)
class AdapterPages:
    """The last page of each pod. `on_change` gets the key of a QwenDeployment when a page says something new."""

    session: aiohttp.ClientSession
    view: Callable[[], Iterable[LoadingPod]]
    on_change: Callable[[ObjectKey], None]
    port: int = PORT
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    pages: dict[str, AdaptersPage] = field(default_factory=dict)
    _read_at: dict[str, float] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def run(self) -> NoReturn:
        """Read for ever."""
        while True:
            await self.step()
            await self.sleep(STEP_SECONDS)

    async def step(self) -> None:
        """Read every page that may say something new. It never raises because of what a pod does."""
        pods = list(self.view())
        uids = {pod.uid for pod in pods}
        self.pages = {uid: page for uid, page in self.pages.items() if uid in uids}
        due = [pod for pod in pods if self._is_due(pod)]
        read = await asyncio.gather(*(self._page(pod) for pod in due))
        news = [
            pod for pod, page in zip(due, read, strict=True) if page is not None and page != self.pages.get(pod.uid)
        ]
        self.pages |= {pod.uid: page for pod, page in zip(due, read, strict=True) if page is not None}
        self._read_at = {uid: at for uid, at in self._read_at.items() if uid in uids}
        for key in dict.fromkeys(pod.key for pod in news):
            self.on_change(key)

    def _is_due(self, pod: LoadingPod) -> bool:
        page, now = self.pages.get(pod.uid), self.clock()
        if page is not None and page.answers(pod.wanted) and now < self._read_at.get(pod.uid, now) + AGAIN_SECONDS:
            return False
        self._read_at[pod.uid] = now
        return True

    async def _page(self, pod: LoadingPod) -> AdaptersPage | None:
        try:
            async with self._slots, asyncio.timeout(TIMEOUT_SECONDS):
                return read_adapters_page(await get_page(self.session, pod_url(pod.address, self.port, PATH)))
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            log.debug("a page with adapters cannot be read", extra={"object": pod.address, "error": clean(error, 200)})
            return None


@asynccontextmanager
async def adapter_pages(
    view: Callable[[], Iterable[LoadingPod]], on_change: Callable[[ObjectKey], None]
) -> AsyncIterator[AdapterPages]:
    """A reader with its own session."""
    async with pod_session("application/json") as session:
        yield AdapterPages(session, view, on_change)
