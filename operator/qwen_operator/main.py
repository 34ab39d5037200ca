"""The composition root: makes the parts, connects them, and ends all of them when one ends.

One operator acts at a time because the chart runs one replica and replaces it only after it has ended (strategy
Recreate). Should two overlap by accident: names of children are deterministic and deletions carry a uid, so that
wastes requests but makes no second pod.
"""

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import kopf
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qwen_operator import handlers
from qwen_operator.kube.client import connect
from qwen_operator.reconcile.act import Actor
from qwen_operator.reconcile.config import Config
from qwen_operator.reconcile.intake import Intake
from qwen_operator.reconcile.observe import Observer
from qwen_operator.reconcile.queue import WorkQueue
from qwen_operator.reconcile.resync import Resync
from qwen_operator.reconcile.store import Store
from qwen_operator.reconcile.worker import Reconciler, Worker, utc_now

log = logging.getLogger(__name__)


class Metrics:
    """The operator's own metrics, in a registry of their own."""

    def __init__(self, queue: WorkQueue) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Counter(
            "qwen_operator_reconciles", "Reconciles by outcome", ["outcome"], registry=self.registry
        )
        self._seconds = Histogram("qwen_operator_reconcile_seconds", "Seconds of one reconcile", registry=self.registry)
        self._requests = Counter(
            "qwen_operator_api_requests",
            "Requests to the API server",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        depth = Gauge("qwen_operator_queue_depth", "Keys that wait for a worker", registry=self.registry)
        depth.set_function(lambda: len(queue))

    def reconciled(self, outcome: str, seconds: float) -> None:
        self._reconciles.labels(outcome).inc()
        self._seconds.observe(seconds)

    def requested(self, verb: str, resource: str, status: int, _seconds: float) -> None:
        self._requests.labels(verb, resource, str(status)).inc()


async def run(config: Config) -> None:
    """Run the operator until SIGTERM or SIGINT; raises what a part of it died of."""
    queue = WorkQueue(clock=time.monotonic, random=random.random)
    metrics = Metrics(queue)
    api = await connect(user_agent="qwen-operator", observer=metrics.requested)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(api.aclose)
        store = Store()
        intake = Intake(store, queue)
        resync = Resync(api, intake, config, random.random, time.monotonic, nodes_readable=config.read_nodes)
        await stack.enter_async_context(serving(config.http_port, resync.synced.is_set, metrics.registry))
        stopped = await stack.enter_async_context(signals())
        if not await _either(resync.first(), stopped):
            return
        log.info("started", extra={"namespaces": ",".join(config.namespaces) or "all", "workers": config.workers})
        reconciler = Reconciler(Observer(store, config.pools), Actor(api, store, _stamp), config)
        watch = _watch(config, handlers.routes(intake, resync.soon, nodes=resync.nodes_readable))
        tasks: list[Coroutine[Any, Any, Any]] = [stopped.wait(), watch, resync.run()]
        tasks += [Worker(queue, reconciler, metrics.reconciled).run() for _ in range(config.workers)]
        await _first(tasks)
    log.info("stopped")


async def _watch(config: Config, registry: kopf.OperatorRegistry) -> None:
    """Run kopf as the watch shell. Once it runs it has the signals, and returns on SIGTERM and SIGINT."""
    await kopf.operator(
        registry=registry,
        settings=handlers.operator_settings(config, random.random),
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
        # kopf's own default asks for the name of this process's user, and in the image that uid has none.
        identity=cast("Any", config.pod_name),
    )


@contextlib.asynccontextmanager
async def signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, until kopf takes the signals over."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def serving(port: int, ready: Callable[[], bool], registry: CollectorRegistry) -> AsyncIterator[None]:
    """Serve /healthz, /readyz and /metrics. Health is that the event loop answers: every task
    that ends takes the process with it."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return (
            web.Response(text="ok\n") if ready() else web.Response(status=503, text="the first list is not complete\n")
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


async def _either(work: Coroutine[Any, Any, None], stopped: asyncio.Event) -> bool:
    """Do the work unless `stopped` comes first; returns whether it was done."""
    return await _first([work, stopped.wait()]) == 0


async def _first(coroutines: list[Coroutine[Any, Any, Any]]) -> int:
    """Run all until one ends, cancel the others, raise the first error; returns the index of the first that ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return min(tasks.index(task) for task in done)


def _stamp() -> str:
    return utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
