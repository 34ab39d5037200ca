"""The operator reads the gateway's pods over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from qwen_operator.controller.gateway_demand import GRACE_SECONDS, GatewayDemand, gateway_demand
from qwen_operator.scaling.demand import PAGE_BYTES, Demand, ModelDemand

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def page(**models: Any) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"models": models})

    return answer


async def late(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def wrong(_: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


async def large(_: web.Request) -> web.StreamResponse:
    return web.Response(text=json.dumps({"models": {"a": {"held": 1, "x": "x" * PAGE_BYTES}}}))


def pod(number: int, *, ready: bool = True, **status: Any) -> tuple[tuple[str, str], dict[str, Any]]:
    name, conditions = f"gateway-{number}", [{"type": "Ready", "status": str(ready)}]
    meta = {"name": name, "namespace": "qwen", "uid": f"uid-{number}"}
    return ("qwen", name), {
        "metadata": meta,
        "status": {"podIP": f"127.0.1.{number + 1}", "conditions": conditions, **status},
    }


def seen(demand: Demand) -> tuple[bool, bool]:
    """Whether every pod that serves clients was read, and whether none was."""
    look = demand.look(())
    return look.complete, look.silent


@asynccontextmanager
async def gateways(*handlers: Handler) -> AsyncIterator[GatewayDemand]:
    """A reader of pods, each at its own address with its own page."""
    port = 0
    async with AsyncExitStack() as stack:
        for number, handler in enumerate(handlers):
            app = web.Application()
            app.router.add_get("/demand", handler)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, f"127.0.1.{number + 1}", port).start()
            port = runner.addresses[0][1]
        reader = await stack.enter_async_context(gateway_demand())
        reader.port = port
        reader.observe(dict(pod(number) for number in range(len(handlers))))
        yield reader


async def test_the_demand_of_all_pods_adds_up() -> None:
    async with gateways(page(a={"held": 2, "oldest": 3, "asked": 1}), page(a={"held": 1}, b={"held": 4})) as reader:
        demand = await reader.read()
    assert seen(demand) == (True, False)
    assert demand.models == {"a": ModelDemand(3, 3.0, 1.0), "b": ModelDemand(4)}


@pytest.mark.parametrize("handler", [late, endless, wrong, large])
async def test_a_pod_that_cannot_be_read_hides_no_other(handler: Handler) -> None:
    async with gateways(handler, page(a={"held": 1})) as reader:
        demand = await reader.read()
    assert seen(demand) == (False, False)
    assert demand.models == {"a": ModelDemand(1)}


async def test_a_page_counts_for_some_seconds_after_the_last_answer() -> None:
    now, answers = 100.0, [page(a={"held": 1}), wrong]

    async def first_well(request: web.Request) -> web.StreamResponse:
        return await answers[0](request)

    async with gateways(first_well) as reader:
        reader.clock = lambda: now
        assert seen(await reader.read()) == (True, False)
        answers.pop(0)
        now += GRACE_SECONDS - 1
        assert (await reader.read()).models == {"a": ModelDemand(1)}
        now += 2
        demand = await reader.read()
    assert (seen(demand), dict(demand.models)) == ((False, True), {})


async def test_pods_that_end_are_read_and_those_that_ended_are_not() -> None:
    async with gateways(page(a={"held": 1}), page(b={"held": 1})) as reader:
        reader.observe(dict([pod(0), pod(1, ready=False)]))
        demand = await reader.read()
        assert seen(demand) == (True, False)
        assert set(demand.models) == {"a", "b"}
        reader.observe(dict([pod(0, ready=False), pod(1, phase="Failed")]))
        demand = await reader.read()
        assert seen(demand) == (False, True), "no pod serves clients"
        assert set(demand.models) == {"a"}
        reader.observe({})
        assert seen(await reader.read()) == (False, True)


async def test_an_address_that_is_none_is_not_asked() -> None:
    async with gateways(page()) as reader:
        reader.observe(dict([pod(0), pod(1, podIP="evil.example.org")]))
        assert seen(await reader.read()) == (False, False)
