"""Pages over real sockets on the loopback: what an engine, or what is in its place, may do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from qwen_operator.api.conditions import Reason
from qwen_operator.controller import scraper as scrape
from qwen_operator.controller.scraper import pod_url, scraper
from qwen_operator.scaling.page import Page, Reading, Trouble
from tests.unit.scaling.world import engine

PAGE = (Path(__file__).parents[1] / "scaling" / "pages" / "loaded.txt").read_text(encoding="utf-8")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def read(port: int, host: str = "127.0.0.1") -> Reading | Trouble:
    async with scraper(port) as pages:
        return await pages.read(replace(engine(0), address=host, model="tiny"))


async def _page(_: web.Request) -> web.StreamResponse:
    return web.Response(text=PAGE)


def _status(number: int) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=number, text=PAGE, headers={"Location": "/metrics"})

    return answer


async def _never(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def _drip(request: web.Request) -> web.StreamResponse:
    """A byte now and then: no single read takes long."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(600):
        await response.write(b"#")
        await asyncio.sleep(0.1)
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(80):
        await response.write(b"#" * 65536)
    return response


async def _binary(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\xfe\x00" * 10)


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"#")
    assert request.transport is not None
    request.transport.abort()
    return response


async def test_a_page_is_read() -> None:
    async with serving(_page) as port:
        result = await read(port)
    assert isinstance(result, Reading)
    assert (result.running, result.queued, result.inside) == (1, 4, 6)


def test_an_address_of_ipv6_is_bracketed() -> None:
    assert pod_url("fd00::7", 8000, "/metrics") == "http://[fd00::7]:8000/metrics"


TROUBLES: dict[str, tuple[Handler, Reason, str]] = {
    "no rights": (_status(401), Reason.METRICS_UNAUTHORIZED, "401"),
    "forbidden": (_status(403), Reason.METRICS_UNAUTHORIZED, "403"),
    "metrics are off": (_status(404), Reason.METRICS_MISSING, "404"),
    "an error": (_status(500), Reason.METRICS_MISSING, "500"),
    "sent elsewhere": (_status(302), Reason.METRICS_MISSING, "302"),
    "no answer": (_never, Reason.METRICS_MISSING, "no answer within"),
    "a drip": (_drip, Reason.METRICS_MISSING, "no answer within"),
    "without end": (_endless, Reason.METRICS_INVALID, "the page has more than 524288 bytes"),
    "no text": (_binary, Reason.METRICS_INVALID, "no sglang:num_running_reqs"),
    "cut off": (_cut, Reason.METRICS_MISSING, "ClientPayloadError"),
}


@pytest.mark.parametrize(("handler", "reason", "says"), TROUBLES.values(), ids=TROUBLES.keys())
async def test_troubles(handler: Handler, reason: Reason, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "TIMEOUT_SECONDS", 0.5)
    async with serving(handler) as port:
        result = await read(port)
    assert isinstance(result, Trouble)
    assert result.reason == reason
    assert says in result.detail


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        result = await read(port)
    assert isinstance(result, Trouble)
    assert result.reason == Reason.METRICS_MISSING


@pytest.mark.parametrize("address", ["", "engine.example", "10.0.0.1/x"])
async def test_only_addresses_are_asked(address: str) -> None:
    result = await read(1, address)
    assert isinstance(result, Trouble)
    assert result.reason == Reason.METRICS_MISSING


async def test_the_environments_proxy_is_not_for_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with serving(_page) as port:
        assert isinstance(await read(port), Reading)


async def test_of_a_page_that_is_too_large_the_beginning_is_read_and_no_more() -> None:
    sent = 0

    async def large(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PAGE.encode())
        with suppress(ConnectionError):
            for _ in range(1000):
                await response.write(b"# padding\n" * 1000)
                sent += 10_000
        return response

    async with serving(large) as port:
        result = await read(port)
    assert isinstance(result, Reading)
    assert (result.running, result.queued) == (1, 4)
    assert sent < 8_000_000, "the rest is left in the buffers of the sockets"


async def test_the_time_of_a_page_includes_its_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One page that is parsed for ever delays neither the event loop nor the others."""
    monkeypatch.setattr(scrape, "TIMEOUT_SECONDS", 0.3)
    end, parse = threading.Event(), Page.read

    def slow(page: Page, model: str) -> Reading | Trouble:
        if model == "slow":
            end.wait(5)
        return parse(page, model)

    monkeypatch.setattr(Page, "read", slow)
    async with serving(_page) as port, scraper(port) as pages:
        wanted = replace(engine(0), address="127.0.0.1", model="tiny")
        results = await asyncio.gather(
            pages.read(replace(wanted, model="slow")), *(pages.read(wanted) for _ in range(5))
        )
        end.set()
    assert results[0] == Trouble(Reason.METRICS_MISSING, "no answer within 0.3 s")
    assert all(isinstance(one, Reading) for one in results[1:])


@pytest.mark.parametrize("slow", [_never, _drip], ids=["no answer", "a drip"])
async def test_slow_engines_delay_no_other(slow: Handler) -> None:
    asked, all_asked = 0, asyncio.Event()

    async def the_last_one(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 100:
            all_asked.set()
        return await slow(request) if asked <= 100 else web.Response(text=PAGE)

    async with serving(the_last_one) as port, scraper(port) as pages:
        wanted = replace(engine(0), address="127.0.0.1", model="tiny")
        hung = [asyncio.create_task(pages.read(wanted)) for _ in range(100)]
        await all_asked.wait()
        result = await pages.read(wanted)
        assert isinstance(result, Reading)
        assert not any(task.done() for task in hung)
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
