"""The gateway agent: writes the file from which the router in its pod learns which workers exist.

The agent only lists and watches, and writes this file and one for the proxy, with the names that no worker serves now.
While the API server is unavailable, both files stay as they are. When the router restarts, it reads its file again.
When the agent restarts, it continues from that file: a worker whose id changed would be out of service for a moment.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge

from qwen_operator import endpoints
from qwen_operator.api.claims import NameRights
from qwen_operator.gateway.kept import keep
from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE, WAITING_FILE, WORKERS_FILE, AgentSettings
from qwen_operator.gateway.smg import Router, Smg
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, KubeApi, Manifest, Resource
from qwen_operator.kube.client import connect
from qwen_operator.kube.mirror import Mirror, OnChange, OnRight
from qwen_operator.manifests.names import LABEL_ROLE, ROLE_ENGINE, ROLE_ENGINE_WORKER
from qwen_operator.objects import ObjectKey
from qwen_operator.routing.adapters import Adapters, loaded_adapters, restore_adapters
from qwen_operator.routing.membership import Dropped, EntryNaming, GatewayView, Membership, advance, restore
from qwen_operator.routing.waiting import WaitingName, waiting_file, waiting_names

POD_SELECTOR = f"{LABEL_ROLE} in ({ROLE_ENGINE},{ROLE_ENGINE_WORKER})"
COALESCE_SECONDS = 0.05
FAST_POLL_SECONDS = 0.25
SLOW_POLL_SECONDS = 5.0
# A namespace that was refused for so long is one that the agent may not read. While rights are replaced, as in an
# upgrade of the chart, they are gone for a moment, and a new gateway pod would come up without the namespace's models.
REFUSED_SECONDS = 15.0
# A worker that smg has not registered after this time is broken. The others must not wait for it.
SETTLE_SECONDS = 30.0
STUCK_SECONDS = 60.0

log = logging.getLogger(__name__)


class AgentMetrics:
    """The agent's metrics, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.members = Gauge(
            "qwen_gateway_members", "Workers that the router reports as ready.", registry=self.registry
        )
        self.wanted = Gauge("qwen_gateway_members_wanted", "Workers that should be ready.", registry=self.registry)
        self.writes = Counter(
            "qwen_gateway_membership_writes", "How often the agent replaced the worker file.", registry=self.registry
        )
        self.waiting = Gauge(
            "qwen_gateway_waiting_models", "Served names without a worker that is ready.", registry=self.registry
        )
        self.refused = Gauge(
            "qwen_gateway_unreadable_namespaces",
            "Namespaces of which the agent may not read QwenDeployments or pods.",
            registry=self.registry,
        )


@dataclass(slots=True)
class Agent:
    """The state between two steps. `clock` returns monotonic seconds."""

    router: Router
    run_dir: Path
    naming: EntryNaming
    sources: frozenset[tuple[str, str | None]]
    """The (plural, namespace) pairs that the agent lists. Before it changes the file, it waits for all of them, but not
    for a namespace of which one is refused. The workers of that namespace stay as an earlier run left them."""
    rights: NameRights = field(default_factory=NameRights)
    clock: Callable[[], float] = time.monotonic
    metrics: AgentMetrics = field(default_factory=AgentMetrics)
    membership: Membership = field(default_factory=Membership)
    _seen: dict[tuple[str, str | None], list[Manifest]] = field(default_factory=dict)
    _refused: dict[tuple[str, str | None], float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: dict[str, WaitingName] = field(default_factory=dict)
    _adapters: Adapters = field(default_factory=dict)
    _waiting_written: str | None = None
    _written: str | None = None
    _listening_since: float | None = None
    _settled: bool = False
    _stepped_at: float = 0.0
    _written_at: float = 0.0
    _waiting_at: float = 0.0
    _dropped: tuple[Dropped, ...] = ()
    _overdue: frozenset[str] = frozenset()

    def start(self) -> None:
        """Continue from the file of an earlier run, or write an empty one: the router needs a file to start."""
        self._stepped_at = self.clock()
        written = _read(self.run_dir / WORKERS_FILE)
        if written is None:
            self._write(self.membership.content())
        else:
            self._written = written
            self.membership = restore(written)
        self._adapters = restore_adapters(_read(self.run_dir / WAITING_FILE) or "")

    def listener(self, resource: Resource, namespace: str | None) -> OnChange:
        """The callback for one mirror."""

        def on_change(objects: Mapping[ObjectKey, Manifest]) -> None:
            self._seen[resource.plural, namespace] = list(objects.values())
            self._changed.set()

        return on_change

    def on_right(self, resource: Resource, namespace: str | None) -> OnRight:
        """The other callback for one mirror."""

        def on_right(allowed: bool) -> None:
            if allowed:
                self._refused.pop((resource.plural, namespace), None)
            else:
                self._refused.setdefault((resource.plural, namespace), self.clock())
            self.metrics.refused.set(len({one for _, one in self._refused}))

        return on_right

    async def loop(self) -> None:
        """Step after every change and at intervals, which are short while the agent waits for a worker.

        Only cancellation ends it.
        """
        while True:
            await self.step()
            try:
                await asyncio.wait_for(self._changed.wait(), self.pause())
                await asyncio.sleep(COALESCE_SECONDS)
            except TimeoutError:
                pass

    async def step(self) -> None:
        """Read the router's workers and the mirrors once, and write the file if it must change."""
        self._changed.clear()
        workers = await self.router.workers()
        now = self._stepped_at = self.clock()
        if self.listed:
            self._advance(workers)
        if workers is None:
            self._listening_since, self._settled = None, False
            return
        self._listening_since = now if self._listening_since is None else self._listening_since
        self._report_overdue(now)
        if self.listed and (not self.membership.awaited or now - self._listening_since >= SETTLE_SECONDS):
            self._settled = True

    @property
    def unread(self) -> frozenset[str | None]:
        """The namespaces of which a mirror has not delivered its first complete list."""
        return frozenset(namespace for _, namespace in self.sources - self._seen.keys())

    @property
    def listed(self) -> bool:
        """Whether every mirror has delivered its first complete list, but for namespaces that the agent may not read.

        If it may read none at all, it knows nothing.
        """
        latest = self.clock() - REFUSED_SECONDS
        refused = {namespace for (_, namespace), since in self._refused.items() if since <= latest}
        return self.unread <= refused and self.unread != {namespace for _, namespace in self.sources}

    @property
    def ready(self) -> bool:
        """Whether the router listens and uses the workers of the first complete list.

        A worker that becomes unusable later does not change this: the workers of the other models still serve.
        """
        return self._settled

    @property
    def alive(self) -> bool:
        """Whether the loop still runs."""
        return self.clock() - self._stepped_at < STUCK_SECONDS

    def pause(self) -> float:
        """Seconds until the next step: few while a worker joins or leaves, but not for ever for a broken worker."""
        waiting = self.membership.leaving or self.membership.awaited
        fresh = self.clock() - max(self._written_at, self._waiting_at) < SETTLE_SECONDS
        return FAST_POLL_SECONDS if not self._settled or (waiting and fresh) else SLOW_POLL_SECONDS

    def _advance(self, workers: list[Manifest] | None) -> None:
        unread = self.unread
        deployments, pods = (self._objects(resource, unread) for resource in (QWENDEPLOYMENTS, PODS))
        observed = GatewayView(deployments, pods, workers, self.rights, frozenset(filter(None, unread)))
        before, self.membership = self.membership, advance(observed, self.membership, self.naming)
        self._report(before)
        self._waiting = waiting_names(observed, self.membership, self._waiting)
        self._adapters = loaded_adapters(observed, self.membership, self._adapters)
        self.metrics.waiting.set(len(self._waiting))
        # Before the workers: the proxy must not send a request to a worker that smg does not know yet.
        self._write_waiting(waiting_file(self._waiting, self._adapters))
        self._write(self.membership.content())
        wanted = len(self.membership.entries) - len(self.membership.leaving)
        self.metrics.wanted.set(wanted)
        self.metrics.members.set(wanted - len(self.membership.awaited))

    def _objects(self, resource: Resource, unread: frozenset[str | None]) -> list[Manifest]:
        """The objects of a kind, but not those of which only a part is known."""
        return [
            item
            for (plural, namespace), items in self._seen.items()
            if plural == resource.plural and namespace not in unread
            for item in items
        ]

    def _report(self, before: Membership) -> None:
        previous = {entry.id for entry in before.entries}
        for entry in self.membership.entries:
            if entry.id not in previous:
                log.info("worker joins: %r at %s, %s", entry.name, entry.url, entry.id)
        remaining = {entry.id for entry in self.membership.entries}
        for entry in before.entries:
            if entry.id not in remaining:
                log.info("worker leaves: %r at %s, %s", entry.name, entry.url, entry.id)
        for ident in sorted(self.membership.leaving - before.leaving):
            log.info("worker stays until its replacement is ready: %s", ident)
        for drop in self.membership.dropped:
            if drop not in self._dropped:
                log.warning("left out: %s: %s (%s)", drop.subject, drop.message, drop.reason)
        self._dropped = self.membership.dropped

    def _report_overdue(self, now: float) -> None:
        since = max(self._written_at, self._listening_since or now)
        overdue = self.membership.awaited if now - since >= SETTLE_SECONDS else frozenset()
        for ident in sorted(overdue - self._overdue):
            log.warning("the router does not report this worker as ready: %s", ident)
        self._overdue = overdue

    def _write(self, content: str) -> None:
        path = self.run_dir / WORKERS_FILE
        # The router keeps its workers while the file is damaged, but it would learn of no change, and a restart of it
        # would fail.
        if content == self._written and _read(path) == content:
            return
        _replace(path, content)
        self._written, self._written_at = content, self.clock()
        self.metrics.writes.inc()

    def _write_waiting(self, content: str) -> None:
        path = self.run_dir / WAITING_FILE
        if content != self._waiting_written or _read(path) != content:
            _replace(path, content)
            self._waiting_written, self._waiting_at = content, self.clock()


def _read(path: Path) -> str | None:
    """The text of a file; None if there is none, or if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _replace(path: Path, content: str) -> None:
    """Write a file in one step, so that nobody reads half of it."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(content, "utf-8")
    draft.rename(path)


def http_app(agent: Agent) -> web.Application:
    """`/healthz`, `/readyz` and `/metrics` of the gateway pod, and `/router`: whether its router answers.

    The kubelet asks here for the router, which listens on loopback only.
    """

    def healthy() -> str | None:
        return None if agent.alive else f"the agent's loop has not run for {STUCK_SECONDS:.0f} s"

    def ready() -> str | None:
        problem = "the router does not listen, or does not use the first complete list of workers yet"
        return None if agent.ready else problem

    async def router(_: web.Request) -> web.Response:
        alive = await agent.router.alive()
        return web.Response(text="ok\n") if alive else web.Response(status=503, text="the router does not answer\n")

    app = endpoints.http_app(healthy, ready, endpoints.MetricsPage(agent.metrics.registry))
    app.add_routes([web.get("/router", router)])
    return app


async def run(settings: AgentSettings, api: KubeApi | None = None) -> None:
    """Run the agent until it is cancelled or a part of it fails. A failed part ends all others.

    Without `api` it connects to the cluster that it runs in. Raises ConnectionError if there is no cluster.
    """
    kube = api or await connect(user_agent="qwen-gateway-agent", keep=keep)
    namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
    mirrored = [
        (resource, namespace, labels)
        for resource, labels in ((QWENDEPLOYMENTS, ""), (PODS, POD_SELECTOR))
        for namespace in namespaces
    ]
    # smg sets no cookies. Every request opens a new connection, because a connection is dead after the router restarts.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        agent = Agent(
            router=Smg(session, settings.router_url, settings.run_dir / CONTROL_PLANE_KEY_FILE),
            run_dir=settings.run_dir,
            naming=EntryNaming(nonce=secrets.token_hex(4), cluster_domain=settings.cluster_domain),
            rights=settings.name_rights,
            sources=frozenset((resource.plural, namespace) for resource, namespace, _ in mirrored),
        )
        agent.start()
        try:
            async with endpoints.serving(settings.port, http_app(agent)), asyncio.TaskGroup() as group:
                group.create_task(agent.loop())
                for resource, namespace, labels in mirrored:
                    on_change, on_right = agent.listener(resource, namespace), agent.on_right(resource, namespace)
                    mirror = Mirror(kube, resource, namespace, labels, on_change, on_right=on_right)
                    group.create_task(mirror.run())
        finally:
            if api is None:
                await kube.aclose()
