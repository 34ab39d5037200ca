"""A local copy of a selection of objects, kept by list and watch.

For programs that only read: the gateway agent. While the API server is away the last known state stays, because
a router that forgets its engines when the control plane fails turns a small outage into a big one.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from qwen_operator.kube.api import ApiError, Gone, KubeApi, Manifest, Resource
from qwen_operator.objects import ObjectKey

OnChange = Callable[[Mapping[ObjectKey, Manifest]], None]
"""Called with the whole selection: once after the first complete list, then after every change. Do not keep the
mapping, it is live."""

log = logging.getLogger(__name__)


async def jittered_pause(attempt: int) -> None:
    """Sleep 0.5 to 1 times 2**attempt seconds, at most 30: outages must not end in a stampede."""
    await asyncio.sleep(min(30.0, 2.0 ** min(attempt, 5)) * random.uniform(0.5, 1.0))


async def mirror(api: KubeApi, resource: Resource, namespace: str | None, labels: str, on_change: OnChange) -> NoReturn:
    """Keep `on_change` informed for ever; ends only by cancellation, or when `on_change` raises."""
    await Mirror(api, resource, namespace, labels, on_change).run()


@dataclass(slots=True)
class Mirror:
    """See `mirror`. `pause(attempt)` waits before another try; attempt 0 follows a watch that ended in order."""

    api: KubeApi
    resource: Resource
    namespace: str | None
    labels: str
    on_change: OnChange
    pause: Callable[[int], Awaitable[None]] = jittered_pause
    objects: dict[ObjectKey, Manifest] = field(default_factory=dict)
    _version: str | None = None

    async def run(self) -> NoReturn:
        attempt = 0
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
                attempt = 0
            except Gone:
                self._version = None
                attempt = 1
            except ApiError as error:
                attempt += 1
                log.warning("list or watch failed", extra={"resource": self.resource.plural, "error": str(error)})
            await self.pause(attempt)

    async def _list(self) -> None:
        items, version = await self.api.list(self.resource, self.namespace, self.labels)
        self.objects = {_key(item): item for item in items}
        self._version = version
        self.on_change(self.objects)

    async def _watch(self) -> None:
        assert self._version is not None
        async for kind, item in self.api.watch(self.resource, self.namespace, self._version, self.labels):
            self._version = item.get("metadata", {}).get("resourceVersion") or self._version
            if kind == "BOOKMARK":
                continue
            if kind == "DELETED":
                self.objects.pop(_key(item), None)
            else:
                self.objects[_key(item)] = item
            self.on_change(self.objects)


def _key(item: Manifest) -> ObjectKey:
    meta = item["metadata"]
    return meta.get("namespace", ""), meta["name"]
