"""The periodic list: completes the first state, finds changes that no watch reported, and queues every object again."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from qwen_operator.config import Config
from qwen_operator.controller.cache import WATCHED
from qwen_operator.controller.enqueue import Intake
from qwen_operator.kube import (
    NODES,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    ApiError,
    Forbidden,
    KubeApi,
    Resource,
)

MANAGED_BY = "app.kubernetes.io/managed-by"
CHILD_LABELS = f"{MANAGED_BY}=qwen-operator"

# A watch that starts again reports each object of its own list, and the other watches do the same at about that time.
# After this delay, one list of the operator serves all of them.
SETTLE_SECONDS = 2.0

# The resources that the operator can work without, and what that means.
OPTIONAL = {
    NODES: "it knows only the GPU pools that the chart declares",
    RESOURCE_QUOTAS: "it notices a quota that is too small only when the API server rejects a pod",
}

log = logging.getLogger(__name__)


def labels_of(resource: Resource) -> str:
    """The label selector for lists and watches of a resource. It keeps other owners' pods and budgets out of them."""
    return "" if resource in (QWENDEPLOYMENTS, NODES, RESOURCE_QUOTAS) else CHILD_LABELS


@dataclass(slots=True)
class Resync:
    """Lists everything at the start, whenever a watch started again, and every `config.resync_seconds` (+/- 10 %).

    kopf lists before it starts a watch again, but does not report deletions since the previous watch. Only a later
    list of the operator's own shows them.

    `random` returns a number in [0, 1), `clock` returns monotonic seconds.
    """

    api: KubeApi
    intake: Intake
    config: Config
    random: Callable[[], float]
    clock: Callable[[], float]
    nodes_readable: bool = True
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    _requested: asyncio.Event = field(default_factory=asyncio.Event)
    _unreadable: set[Resource] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.nodes_readable:
            self._unreadable.add(NODES)

    def readable(self) -> tuple[Resource, ...]:
        """The resources that the operator may read: all, until the API server forbids a list."""
        return tuple(resource for resource in WATCHED if resource not in self._unreadable)

    def request(self) -> None:
        """Make the next list soon instead of at its regular time."""
        self._requested.set()

    async def first(self) -> None:
        """List until one complete list succeeds. A decision on an incomplete state could pin a wrong plan."""
        attempt = 0
        while True:
            try:
                await self.once()
            except ApiError as error:
                attempt += 1
                delay = min(30.0, 2.0 ** min(attempt, 5)) * (0.5 + self.random() / 2)
                log.warning("first list failed", extra={"error": str(error), "retry_seconds": round(delay, 1)})
                await asyncio.sleep(delay)
            else:
                self.synced.set()
                return

    async def run(self) -> NoReturn:
        """Repeat for ever. A failed list changes nothing; the next one comes sooner."""
        failures = 0
        while True:
            await self._wait(failures)
            self._requested.clear()
            try:
                await self.once()
                failures = 0
            except ApiError as error:
                failures += 1
                log.warning("list failed", extra={"error": str(error)})

    async def _wait(self, failures: int) -> None:
        """Wait for the regular time of the next list, or for SETTLE_SECONDS after a request."""
        seconds = float(self.config.resync_seconds) if not failures else min(30.0, 2.0 ** min(failures, 5))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * (0.9 + self.random() / 5)):
                await self._requested.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    async def once(self) -> None:
        """List all resources, then queue every QwenDeployment."""
        for resource in self.readable():
            await self._list(resource)
        self.intake.enqueue_all()

    async def _list(self, resource: Resource) -> None:
        scopes: tuple[str | None, ...] = (
            self.config.namespaces if resource.namespaced and self.config.namespaces else (None,)
        )
        for namespace in scopes:
            try:
                items, version = await self.api.list(resource, namespace, labels_of(resource))
            except Forbidden:
                if resource not in OPTIONAL:
                    raise
                self._unreadable.add(resource)
                log.warning("the operator may not read %s: %s", resource.plural, OPTIONAL[resource])
                return
            self.intake.listed(resource, namespace, items, version)
