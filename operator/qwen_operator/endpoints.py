"""HTTP endpoints of operator and gateway agent for the kubelet and for Prometheus: /healthz, /readyz, /metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

Check = Callable[[], str | None]
"""Returns the problem as a sentence, or None."""

Slices = Callable[[], Iterator[Iterable[Metric]]]
"""Metric families of many objects, of a few objects at a time. A family may come in several slices."""

# A page is served for so many times as long as its rendering took. So rendering takes at most a tenth of the time,
# however often somebody asks.
_REST = 10


@dataclass(frozen=True, slots=True)
class _Families:
    """What `generate_latest` needs of a registry."""

    metrics: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


@dataclass(slots=True)
class MetricsPage:
    """The page of `/metrics`. All requests share one rendering, which gives way to other work after every slice.

    `clock` returns monotonic seconds.
    """

    registry: CollectorRegistry
    slices: Slices = lambda: iter(())
    clock: Callable[[], float] = time.monotonic
    _task: asyncio.Task[bytes] | None = None
    _fresh_until: float = field(default=float("-inf"))

    async def body(self) -> bytes:
        """The present page, or a new one if it is too old. Raises the error of a rendering that failed."""
        if self._task is None or (self._task.done() and self.clock() >= self._fresh_until):
            self._task = asyncio.create_task(self._render())
        # A client that goes away must not cancel the rendering, for which others may wait.
        return await asyncio.shield(self._task)

    async def _render(self) -> bytes:
        start = self.clock()
        parts = [generate_latest(self.registry)]
        families: dict[str, list[bytes]] = {}
        busy = self.clock() - start
        slices = self.slices()
        while True:
            start = self.clock()
            metrics = next(slices, None)
            if metrics is None:
                break
            for metric in metrics:
                _append(families, metric)
            busy += self.clock() - start
            await asyncio.sleep(0)
        parts += [line for lines in families.values() for line in lines]
        self._fresh_until = self.clock() + _REST * busy
        return b"".join(parts)


def _append(families: dict[str, list[bytes]], metric: Metric) -> None:
    """Add the lines of a metric to its family, with the two lines of its head only once."""
    text = generate_latest(_Families([metric]))
    if metric.name in families:
        text = text.split(b"\n", 2)[2]
    families.setdefault(metric.name, []).append(text)


def http_app(healthy: Check, ready: Check, page: MetricsPage) -> web.Application:
    """The endpoints. Any answer of `/healthz` also shows that the event loop runs."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await page.body(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", _answer(healthy)), web.get("/readyz", _answer(ready)), web.get("/metrics", metrics)]
    )
    return app


@contextlib.asynccontextmanager
async def serving(port: int, app: web.Application) -> AsyncIterator[None]:
    """Serve on all IPv4 and IPv6 addresses until the context ends."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def _answer(check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        problem = check()
        return web.Response(text="ok\n") if problem is None else web.Response(status=503, text=f"{problem}\n")

    return answer
