"""Reads from every gateway pod which models somebody asks for, and who waits while no replica answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import aiohttp

from qwen_operator import objects
from qwen_operator.controller.scraper import pod_session, pod_url
from qwen_operator.kube import PODS, KubeApi, Manifest
from qwen_operator.kube.mirror import mirror
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling.demand import PAGE_BYTES, Demand, DemandPage, merged, read_page
from qwen_operator.untrusted import clean

PORT = 9091
PATH = "/demand"
TIMEOUT_SECONDS = 0.7
GRACE_SECONDS = 10.0
"""For so long, the last page of a gateway pod counts if the pod does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _GatewayPod:
    uid: str
    address: str
    ready: bool


@dataclass(slots=True)
class GatewayDemand:
    """The gateway pods of the release, and the last page of each. `clock` returns monotonic seconds."""

    session: aiohttp.ClientSession
    port: int = PORT
    clock: Callable[[], float] = time.monotonic
    _pods: tuple[_GatewayPod, ...] = ()
    _pages: dict[str, tuple[float, DemandPage]] = field(default_factory=dict)

    async def follow(self, api: KubeApi, namespace: str, labels: str) -> NoReturn:
        """Keep the list of gateway pods up to date, for ever."""
        await mirror(api, PODS, namespace, labels, self.observe)

    def observe(self, pods: Mapping[ObjectKey, Manifest]) -> None:
        """Take over the present gateway pods. A pod that ends may still hold requests."""
        self._pods = tuple(
            _GatewayPod(str(pod["metadata"].get("uid")), address, objects.holds(pod, "Ready"))
            for pod in pods.values()
            if (address := objects.text(pod, "status", "podIP")) and not objects.has_ended(pod)
        )
        uids = {pod.uid for pod in self._pods}
        self._pages = {uid: page for uid, page in self._pages.items() if uid in uids}

    async def read(self) -> Demand:
        """The demand at all gateway pods now. It never raises because of what a pod does."""
        pods = self._pods
        pages = await asyncio.gather(*(self._page(pod) for pod in pods))
        ready = [page for pod, page in zip(pods, pages, strict=True) if pod.ready]
        known = [page for page in pages if page is not None]
        hears = all(page.hears for page in known)
        return Demand(merged(known), ready=len(ready), read=sum(page is not None for page in ready), hears=hears)

    async def _page(self, pod: _GatewayPod) -> DemandPage | None:
        """The pod's page. If it does not answer: its last page if that is new enough, else None."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                page = await self._get(pod)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            at, last = self._pages.get(pod.uid, (None, None))
            if at is not None and self.clock() - at < GRACE_SECONDS:
                return last
            log.debug("a gateway pod cannot be read", extra={"object": pod.address, "error": clean(error, 200)})
            return None
        self._pages[pod.uid] = (self.clock(), page)
        return page

    async def _get(self, pod: _GatewayPod) -> DemandPage:
        url = pod_url(pod.address, self.port, PATH)
        async with self.session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{PATH} answers {response.status}")
            content = await response.content.read(PAGE_BYTES + 1)
            while len(content) <= PAGE_BYTES and (part := await response.content.read(PAGE_BYTES + 1)):
                content += part
            return await asyncio.to_thread(read_page, content)


@asynccontextmanager
async def gateway_demand() -> AsyncIterator[GatewayDemand]:
    """A reader with its own session."""
    async with pod_session("application/json") as session:
        yield GatewayDemand(session)
