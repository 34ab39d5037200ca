"""A local copy of selected objects, kept up to date by list and watch.

The gateway agent uses it, because it only reads. While the API server is unavailable, the last state stays. If the
router forgot its engines then, a small outage would become a big one.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from qwen_operator.kube.api import ApiError, Forbidden, Gone, KubeApi, Manifest, Resource
from qwen_operator.objects import ObjectKey, key_of, malformed, text

OnChange = Callable[[Mapping[ObjectKey, Manifest]], None]
"""Called with all selected objects: once after the first complete list, then after every change.

Do not keep the mapping: it changes with the next event.
"""
OnRight = Callable[[bool], None]
"""Called with False when the API server refuses a list or watch, and with True when it allows one again."""

log = logging.getLogger(__name__)


async def jittered_pause(attempt: int) -> None:
    """Sleep 0.5 to 1 times 2**attempt seconds, at most 30. The jitter keeps clients from returning all at once."""
    await asyncio.sleep(min(30.0, 2.0 ** min(attempt, 5)) * random.uniform(0.5, 1.0))


async def mirror(api: KubeApi, resource: Resource, namespace: str | None, labels: str, on_change: OnChange) -> NoReturn:
    """Call `on_change` after every change, for ever. It ends only if it is cancelled or `on_change` raises."""
    await Mirror(api, resource, namespace, labels, on_change).run()


@dataclass(slots=True)
class Mirror:
    """See `mirror`. `pause(attempt)` waits before the next attempt; 0 follows a watch that ended normally.

    While a right is missing, the last state stays, as in an outage.
    """

    api: KubeApi
    resource: Resource
    namespace: str | None
    labels: str
    on_change: OnChange
    pause: Callable[[int], Awaitable[None]] = jittered_pause
    on_right: OnRight = lambda _allowed: None
    objects: dict[ObjectKey, Manifest] = field(default_factory=dict)
    _version: str | None = None
    _refusal: str = ""

    async def run(self) -> NoReturn:
        attempt = 0
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
                self._allowed()
                attempt = 0
            except Gone:
                self._version = None
                attempt = 1
            except Forbidden as error:
                attempt += 1
                self._refused(error)
            except ApiError as error:
                attempt += 1
                log.warning("list or watch failed", extra={"resource": self.resource.plural, "error": str(error)})
            await self.pause(attempt)

    async def _list(self) -> None:
        items, version = await self.api.list(self.resource, self.namespace, self.labels)
        self._allowed()
        self.objects = {key_of(item): item for item in items if self._readable(item)}
        self._version = version
        self.on_change(self.objects)

    def _refused(self, error: Forbidden) -> None:
        """Log a refusal once: it may last for days."""
        if error.message != self._refusal:
            log.warning("list or watch refused", extra={"resource": self.resource.plural, "error": str(error)})
        self._refusal = error.message
        self.on_right(False)

    def _allowed(self) -> None:
        if not self._refusal:
            return
        where = "" if self.namespace is None else f" in namespace {self.namespace}"
        log.info("list or watch allowed again%s", where, extra={"resource": self.resource.plural})
        self._refusal = ""
        self.on_right(True)

    def _readable(self, item: Manifest) -> bool:
        problem = malformed(item)
        if problem is not None:
            log.warning("the mirror skips an object", extra={"resource": self.resource.plural, "why": problem})
        return problem is None

    async def _watch(self) -> None:
        assert self._version is not None
        async for kind, item in self.api.watch(self.resource, self.namespace, self._version, self.labels):
            self._allowed()
            self._version = text(item, "metadata", "resourceVersion") or self._version
            if kind == "BOOKMARK" or not self._readable(item):
                continue
            if kind == "DELETED":
                self.objects.pop(key_of(item), None)
            else:
                self.objects[key_of(item)] = item
            self.on_change(self.objects)
