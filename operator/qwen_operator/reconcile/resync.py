"""The periodic list: makes the first state complete, finds what no watch told, and looks at every object again."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from qwen_operator.kube import (
    NODES,
    QWENDEPLOYMENTS,
    SECRETS,
    AlreadyExists,
    ApiError,
    Forbidden,
    Invalid,
    KubeApi,
    Resource,
)
from qwen_operator.reconcile.config import Config
from qwen_operator.reconcile.intake import Intake
from qwen_operator.reconcile.store import WATCHED

MANAGED_BY = "app.kubernetes.io/managed-by"
CHILD_LABELS = f"{MANAGED_BY}=qwen-operator"

# A watch that begins anew tells of each object of its list, and the other watches do so at about the same time: one
# list of ours for all of them.
SETTLE_SECONDS = 2.0

# Asking costs a write request, because only the attempt to create says whether the Secret is there.
KEYS_SECONDS = 3600.0
REFUSED_KEYS_SECONDS = 300.0

log = logging.getLogger(__name__)


def labels_of(resource: Resource) -> str:
    """The label selector under which a resource is listed and watched: children are chosen by the API server."""
    return "" if resource in (QWENDEPLOYMENTS, NODES) else CHILD_LABELS


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
    _keys_due: float = float("-inf")
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

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
        for resource in WATCHED:
            await self._list(resource)
        await self._gateway_keys()
        self.intake.everything()

    async def _list(self, resource: Resource) -> None:
        if resource == NODES and not self.nodes_readable:
            return
        scopes: tuple[str | None, ...] = (
            self.config.namespaces if resource.namespaced and self.config.namespaces else (None,)
        )
        for namespace in scopes:
            try:
                items, version = await self.api.list(resource, namespace, labels_of(resource))
            except Forbidden:
                if resource != NODES:
                    raise
                self.nodes_readable = False
                log.warning("nodes may not be read: only the GPU pools declared in the chart are known")
                return
            self.intake.listed(resource, namespace, items, version)

    async def _gateway_keys(self) -> None:
        """Make the Secret of client keys if it is absent. It is never read: only the gateway mounts it."""
        gateway = self.config.gateway
        if gateway.auth != "keys" or self.clock() < self._keys_due:
            return
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": gateway.keys_secret,
                "namespace": gateway.namespace,
                "labels": {MANAGED_BY: "qwen-operator", "app.kubernetes.io/name": "qwen-operator"},
            },
            "stringData": {"default": secrets.token_urlsafe(32)},
        }
        try:
            await self.api.create(SECRETS, manifest)
        except AlreadyExists:
            self._keys_due = self.clock() + KEYS_SECONDS
            return
        except (Forbidden, Invalid) as error:
            # Somebody else may have made it, or will: that is no reason to leave the deployments alone.
            self._keys_due = self.clock() + REFUSED_KEYS_SECONDS
            log.warning("may not make the gateway's client key", extra={"error": str(error)})
            return
        self._keys_due = self.clock() + KEYS_SECONDS
        log.info("made the gateway's client key", extra={"object": f"{gateway.namespace}/{gateway.keys_secret}"})
