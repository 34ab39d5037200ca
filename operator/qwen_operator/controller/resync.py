"""The periodic list: makes the first state complete, finds what no watch told, and looks at every object again."""

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

# A watch that begins anew tells of each object of its list, and the other watches do so at about the same time: one
# list of ours for all of them.
SETTLE_SECONDS = 2.0

# What the operator can do without, and what it then does not know.
OPTIONAL = {
    NODES: "only the GPU pools declared in the chart are known",
    RESOURCE_QUOTAS: "a quota that is too small is found out only when a pod is refused",
}

log = logging.getLogger(__name__)


def labels_of(resource: Resource) -> str:
    """The label selector under which a resource is listed and watched: children are chosen by the API server."""
    return "" if resource in (QWENDEPLOYMENTS, NODES, RESOURCE_QUOTAS) else CHILD_LABELS


@dataclass(slots=True)
class Resync:
    """Lists everything at the start, whenever a watch began anew, and every `config.resync_seconds`, give or take a
    tenth.

    A watch of kopf lists before it watches and says nothing of what was deleted meanwhile; only a list of ours,
    made after it, finds that.

    `random` returns a number in [0, 1), `clock` monotonic seconds.
    """

    api: KubeApi
    intake: Intake
    config: Config
    random: Callable[[], float]
    clock: Callable[[], float]
    nodes_readable: bool = True
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: set[Resource] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.nodes_readable:
            self._refused.add(NODES)

    def readable(self) -> tuple[Resource, ...]:
        """The resources that may be read; all of them are asked for until a list was refused."""
        return tuple(resource for resource in WATCHED if resource not in self._refused)

    def soon(self) -> None:
        """Have the next list made now instead of at its time."""
        self._asked.set()

    async def first(self) -> None:
        """List until it works once. Deciding on half a picture would pin a wrong plan."""
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
            self._asked.clear()
            try:
                await self.once()
                failures = 0
            except ApiError as error:
                failures += 1
                log.warning("list failed", extra={"error": str(error)})

    async def _wait(self, failures: int) -> None:
        """Until the next list: its time, or a watch that began anew and had SETTLE_SECONDS for the others."""
        seconds = float(self.config.resync_seconds) if not failures else min(30.0, 2.0 ** min(failures, 5))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * (0.9 + self.random() / 5)):
                await self._asked.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    async def once(self) -> None:
        """List all resources, then have every QwenDeployment reconciled."""
        for resource in self.readable():
            await self._list(resource)
        self.intake.everything()

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
                self._refused.add(resource)
                log.warning("%s may not be read: %s", resource.plural, OPTIONAL[resource])
                return
            self.intake.listed(resource, namespace, items, version)
