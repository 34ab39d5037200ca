"""The composition root: makes the parts, connects them, and ends all of them when one ends.

Every operator process lists and watches. Only the holder of the Lease reconciles. It first lists again, so that it
sees the objects that the previous leader made. When it stops leading, for any reason, the process ends.
"""

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import kopf
import prometheus_client

from qwen_operator import handlers
from qwen_operator.api.name_index import NameIndex
from qwen_operator.checkpoints.hubs import HubCheckpoint, HubQuery
from qwen_operator.config.types import Config
from qwen_operator.controller.adapter_pages import AdapterPages, adapter_pages, loading_pods
from qwen_operator.controller.arbiter import Arbiter, Wiring
from qwen_operator.controller.autoscaler import Autoscaler, Sources
from qwen_operator.controller.cache import Store, keep
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.execute import Actor
from qwen_operator.controller.fetch_pages import FetchPages, fetch_pages, fetching_pods
from qwen_operator.controller.free_nodes import FreeNodes
from qwen_operator.controller.gateway_demand import GatewayDemand, gateway_demand
from qwen_operator.controller.gateway_secret import GatewayKeys
from qwen_operator.controller.hub_reader import HubReader
from qwen_operator.controller.network_policies import NetworkPolicies
from qwen_operator.controller.node_pods import NodePods
from qwen_operator.controller.observe import Observer
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.controller.recorder import Recorder
from qwen_operator.controller.resync import Resync
from qwen_operator.controller.scraper import Scraper, scraper
from qwen_operator.controller.volume_claims import VolumeClaims
from qwen_operator.controller.worker import Reconciler, Worker, utc_now
from qwen_operator.endpoints import MetricsPage, http_app, serving
from qwen_operator.hubs.client import fetch, fetch_file
from qwen_operator.kube import KubeApi
from qwen_operator.kube.client import connect
from qwen_operator.kube.lease import Elector, FencedApi, Terms, wall_stamp
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource
from qwen_operator.metrics.process import OperatorMetrics
from qwen_operator.objects import ObjectKey
from qwen_operator.replicas.scaling_view import scaled_deployments

# Longer than any reconcile: each of its requests has a time-out, and 64 replicas need 64 requests.
STUCK_SECONDS = 900.0

log = logging.getLogger(__name__)


async def run(config: Config) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises the first error of one of its parts, and NotLeading if it lost the Lease.
    """
    # Otherwise every counter would have a second series with its creation time.
    cast("Any", prometheus_client).disable_created_metrics()
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(scraper())
        gateway = await stack.enter_async_context(gateway_demand())
        operator = await Operator.build(config, engines, gateway)
        stack.push_async_callback(operator.api.aclose)
        stopped = await stack.enter_async_context(signals())
        await stack.enter_async_context(
            serving(config.http_port, http_app(operator.healthy, operator.ready, operator.page()))
        )
        if await first_to_end([operator.resync.first(), stopped.wait()]) == 0:
            namespaces = ",".join(config.namespaces) or "all"
            log.info("started", extra={"namespaces": namespaces, "workers": config.workers})
            await first_to_end([operator.watch(stopped), operator.resync.run(), operator.lead(stopped)])
    log.info("stopped")


@dataclass(slots=True)
class Operator:
    """The parts of one process that live as long as the process."""

    config: Config
    api: KubeApi
    elector: Elector
    store: Store
    queue: WorkQueue
    intake: Intake
    resync: Resync
    gateway: GatewayDemand
    autoscaler: Autoscaler
    metrics: OperatorMetrics
    deployments: DeploymentMetrics
    recorder: Recorder | None

    @classmethod
    async def build(cls, config: Config, engines: Scraper, gateway: GatewayDemand) -> "Operator":
        store = Store(NameIndex(config.name_rights, utc_now, config.namespaces))
        queue = WorkQueue(clock=time.monotonic, random=random.random)
        metrics = OperatorMetrics()
        intake = Intake(store, queue, metrics.skipped)
        api = await connect(user_agent="qwen-operator", observer=metrics.requested, keep=keep)
        identity = f"{config.pod_name}_{wall_stamp()}"
        elector = Elector(api, Terms(config.namespace, config.lease_name, identity), time.monotonic)
        sources = Sources(
            lambda: scaled_deployments(store.deployments(), store.replicas, store.names.held, _not_scaled, utc_now()),
            engines,
            gateway.read,
        )
        recording = config.recording
        recorder = Recorder(recording, config.pod_name, time.time) if recording.deployments else None
        autoscaler = Autoscaler(sources, queue.add, on_look=recorder.add if recorder else None)
        load = LoadSource(autoscaler.samples, autoscaler.ages, autoscaler.held, autoscaler.shares)
        deployments = DeploymentMetrics(store, load, elector.leads)
        metrics.follow(queue, elector.leads, lambda: autoscaler.interval)
        return cls(
            config=config,
            api=api,
            elector=elector,
            store=store,
            queue=queue,
            intake=intake,
            resync=Resync(api, intake, config, random.random, time.monotonic, metrics.readable),
            gateway=gateway,
            autoscaler=autoscaler,
            metrics=metrics,
            deployments=deployments,
            recorder=recorder,
        )

    def page(self) -> MetricsPage:
        """The page of `/metrics`: about this process, and about the QwenDeployments."""
        return MetricsPage(self.metrics.registry, self.deployments.slices)

    def healthy(self) -> str | None:
        """The problem if a worker hangs, else None."""
        busy = self.queue.busy()
        return f"a worker has been busy with one object for {busy:.0f} s" if busy > STUCK_SECONDS else None

    def ready(self) -> str | None:
        """The problem if the first list is not complete, else None.

        A process that stands by is ready too. Otherwise a rollout of the operator would wait for the Lease.
        """
        return None if self.resync.synced.is_set() else "the first list is not complete"

    async def watch(self, stopped: asyncio.Event) -> None:
        """Run kopf, which only watches."""
        config, started = self.config, asyncio.Event()
        routes = handlers.routes(self.intake, self.resync.request, self.resync.readable())
        operator = kopf.operator(
            registry=routes,
            settings=handlers.operator_settings(config, random.random),
            clusterwide=not config.namespaces,
            namespaces=config.namespaces,
            ready_flag=started,
            # kopf's default looks up the user name of this process, but in the image its uid has no name.
            identity=cast("Any", config.pod_name),
        )
        await first_to_end([operator, _take_signals(started, stopped)])

    async def lead(self, stopped: asyncio.Event) -> None:
        """Wait for the Lease, then work until `stopped`. At the end it waits for writes and gives the Lease back."""
        fenced = FencedApi(self.api, self.elector)
        try:
            if await first_to_end([self.elector.acquire(), stopped.wait()]) == 0:
                await first_to_end([self.elector.hold(), self._work(fenced), stopped.wait()])
        finally:
            await fenced.settled()
            await self.elector.release()

    async def _work(self, api: KubeApi) -> None:
        """Everything that only the leader does.

        It begins with a list: the previous leader may have made a pod that no watch has reported yet.
        """
        self.queue.clear()
        await self.resync.first()
        hub = HubReader(partial(read_hub, self.config), self.queue.add, utc_now)
        async with (
            fetch_pages(partial(fetching_pods, self.store), self.queue.add) as fetches,
            adapter_pages(partial(loading_pods, self.store), self.queue.add) as adapters,
        ):
            await self._reconcile(api, hub, fetches, adapters)

    async def _reconcile(self, api: KubeApi, hub: HubReader, fetches: FetchPages, adapters: AdapterPages) -> None:
        arbiter = Arbiter(self.store, NodePods(api, time.monotonic), self._arbiter_wiring())
        observer = Observer(self.store, self.config.pools, self.autoscaler.state, hub.answer_for, lambda: fetches.pages)
        observer.grants = arbiter.grant
        observer.adapter_pages = lambda: adapters.pages
        reconciler = self._reconciler(api, observer, hub, arbiter)
        keys = GatewayKeys(api, self.config)
        policies = NetworkPolicies(api, self.store, self.config.network_policy, self.config.namespaces, time.monotonic)
        tasks: list[Coroutine[Any, Any, Any]] = [
            self.autoscaler.run(),
            keys.run(),
            hub.run(),
            fetches.run(),
            adapters.run(),
            *arbiter.parts(),
            *policies.parts(),
        ]
        if self.recorder is not None:
            tasks.append(self.recorder.run())
        if labels := self.config.gateway.pod_labels:
            tasks.append(self.gateway.follow(self.api, self.config.gateway.namespace, labels))
        for _ in range(self.config.workers):
            tasks.append(Worker(self.queue, reconciler, self.metrics.reconciled, self.metrics.failed).run())
        await first_to_end(tasks)

    def _reconciler(self, api: KubeApi, observer: Observer, hub: HubReader, arbiter: Arbiter) -> Reconciler:
        return Reconciler(
            observer,
            Actor(api, self.store, utc_now),
            self.config,
            utc_now,
            self.deployments.count_changes,
            hub,
            VolumeClaims(api),
            arbiter.heard,
            FreeNodes(NodePods(api, time.monotonic)),
        )

    def _arbiter_wiring(self) -> Wiring:
        return Wiring(
            readable=self.resync.readable,
            wake=self.queue.add,
            working=self.queue.works_on,
            clock=time.monotonic,
            now=utc_now,
            default_class=self.config.pod.priority_class_name,
            enabled=self.config.arbiter,
        )


def _not_scaled(key: ObjectKey, error: Exception) -> None:
    log.error("scaling cannot read this QwenDeployment", exc_info=error, extra={"deployment": "/".join(key)})


async def read_hub(config: Config, query: HubQuery, seconds: float) -> HubCheckpoint:
    """Read a repository at the address that the configuration gives for its hub; raises HubError."""
    mirror = config.engine.mirror(query.hub)
    if query.file:
        return await fetch_file(query, mirror, timeout=seconds)
    return await fetch(query.repository, query.revision, query.hub, mirror, timeout=seconds)


@contextlib.asynccontextmanager
async def signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    _handle_signals(stopped)
    try:
        yield stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _handle_signals(stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)


async def _take_signals(started: asyncio.Event, stopped: asyncio.Event) -> None:
    """Take the signal handlers back from kopf, which installs its own when it starts.

    With its handlers, kopf would end before the work has stopped in order: it cancels all tasks that began after it.
    """
    await started.wait()
    _handle_signals(stopped)
    await asyncio.Event().wait()


async def first_to_end(coroutines: list[Coroutine[Any, Any, Any]]) -> int:
    """Run all until one ends, then cancel the others. Raises the first error.

    Returns the index of the coroutine that ended first.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if task.cancelled():
            # If a part of kopf fails, kopf cancels all tasks that began after it.
            raise RuntimeError("another task cancelled a part of the operator; the log shows what failed before")
        task.result()
    return min(tasks.index(task) for task in done)
