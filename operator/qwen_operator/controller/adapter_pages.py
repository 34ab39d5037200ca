"""Reads from engines which adapters they have, while they load or unload some."""

from __future__ import annotations

import asyncio
import logging
import math
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
"""An engine that has answered and lacks an adapter is asked again after this time: it may have loaded it since.
So is a pod without a page."""
_PART = 4.0
"""One that has not answered is asked again after this part of the time that it has had the list, and at the latest
after AGAIN_SECONDS. Most answer within seconds. But the kubelet may take a minute to show the list to the engine."""
SILENT_AFTER = 3
"""So many reads in a row without a page make a pod a silent one."""
SILENT_AT_ONCE = 8

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
    """The last page of each pod about the list that it should have.

    `on_change` gets the key of a QwenDeployment when such a page says something new. A pod that gives no page, or
    always another one, makes no reconcile and delays no other pod.
    """

    session: aiohttp.ClientSession
    view: Callable[[], Iterable[LoadingPod]]
    on_change: Callable[[ObjectKey], None]
    port: int = PORT
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    pages: dict[str, AdaptersPage] = field(default_factory=dict)
    reading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _since: dict[LoadingPod, float] = field(default_factory=dict)
    _read_at: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _silent_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SILENT_AT_ONCE))

    async def run(self) -> NoReturn:
        """Read for ever."""
        while True:
            self.step()
            await self.sleep(STEP_SECONDS)

    def step(self) -> None:
        """Begin to read every page that may say something new. It never raises because of what a pod does."""
        pods, now = list(self.view()), self.clock()
        self._since = {pod: self._since.get(pod, now) for pod in pods}
        uids = {pod.uid for pod in pods}
        self.pages = {uid: page for uid, page in self.pages.items() if uid in uids}
        self._read_at = {uid: at for uid, at in self._read_at.items() if uid in uids}
        self._failures = {uid: count for uid, count in self._failures.items() if uid in uids}
        self.reading = {uid: task for uid, task in self.reading.items() if not task.done()}
        for pod in pods:
            if pod.uid not in self.reading and self._is_due(pod):
                self.reading[pod.uid] = asyncio.create_task(self._read(pod))

    async def stop(self) -> None:
        """End all that is being read."""
        for task in self.reading.values():
            task.cancel()
        await asyncio.gather(*self.reading.values(), return_exceptions=True)

    def _is_due(self, pod: LoadingPod) -> bool:
        page = self.pages.get(pod.uid)
        waits = self._is_silent(pod) or (page is not None and page.answers(pod.wanted))
        pause = AGAIN_SECONDS if waits else min(AGAIN_SECONDS, (self.clock() - self._since[pod]) / _PART)
        return self.clock() >= self._read_at.get(pod.uid, -math.inf) + pause

    def _is_silent(self, pod: LoadingPod) -> bool:
        return self._failures.get(pod.uid, 0) >= SILENT_AFTER

    async def _read(self, pod: LoadingPod) -> None:
        page = await self._page(pod)
        self._read_at[pod.uid] = self.clock()
        self._failures[pod.uid] = 0 if page is not None else self._failures.get(pod.uid, 0) + 1
        if page is not None and page.answers(pod.wanted) and page != self.pages.get(pod.uid):
            self.pages = {**self.pages, pod.uid: page}
            self.on_change(pod.key)

    async def _page(self, pod: LoadingPod) -> AdaptersPage | None:
        try:
            async with self._silent_slots if self._is_silent(pod) else self._slots, asyncio.timeout(TIMEOUT_SECONDS):
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
        pages = AdapterPages(session, view, on_change)
        try:
            yield pages
        finally:
            await pages.stop()
