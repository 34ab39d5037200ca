"""HTTP endpoints of operator and gateway agent for the kubelet and for Prometheus: /healthz, /readyz, /metrics."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str | None]
"""Returns the problem as a sentence, or None."""


def http_app(healthy: Check, ready: Check, registry: CollectorRegistry) -> web.Application:
    """The endpoints. Any answer of `/healthz` also shows that the event loop runs."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

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
