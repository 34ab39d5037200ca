"""Reads of a cluster that never fail: an answer, or half a sentence that says why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from qwen_operator import objects
from qwen_operator.doctor.types import Listed, Page
from qwen_operator.kube import ApiError, Forbidden, Manifest, NotFound, Resource
from qwen_operator.kube.client import LIST_CHUNK
from qwen_operator.kube.decoding import decode
from qwen_operator.untrusted import clean

SECONDS = 20.0
"""The limit of one read, all its pages included. That of a large list is longer."""
LIST_SECONDS = 60.0
_PARALLEL = 8
_MOST_ITEMS = 20_000
# 500 nodes of 50 kB each, and room.
_PAGE_BYTES = 64_000_000

T = TypeVar("T")
Keep = Callable[[objects.Object], Manifest]
"""What the checks need of an object: a list of thousands must not be kept whole."""


class Source(Protocol):
    """The part of `HttpKubeApi` that is used. Every method may raise ApiError."""

    async def read(self, path: str, query: Mapping[str, str], most_bytes: int) -> bytes: ...

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest: ...

    async def try_create(self, resource: Resource, manifest: Manifest) -> Manifest: ...


@dataclass(slots=True)
class Reader:
    """Reads through `source`, a few requests at a time and each within its time."""

    source: Source
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARALLEL))

    async def listed(
        self, resource: Resource, namespace: str | None = None, labels: str = "", keep: Keep = dict
    ) -> Listed:
        """All objects of a kind, in pages. `keep` cuts each as soon as it is read."""
        path = resource.path(namespace)

        async def pages() -> Listed:
            items: list[Manifest] = []
            query = {"limit": str(LIST_CHUNK), **({"labelSelector": labels} if labels else {})}
            while True:
                page = decode(await self.source.read(path, query, _PAGE_BYTES))
                items += [keep(one) for one in objects.members(page, "items") if objects.malformed(one) is None]
                token = objects.text(page, "metadata", "continue")
                if not token:
                    return Listed(items)
                if len(items) >= _MOST_ITEMS:
                    return Listed(items, f"only the first {len(items)} {resource.plural} were read")
                query["continue"] = token

        return await self._guarded(f"list {_place(resource, namespace)}", pages, _no_objects, LIST_SECONDS)

    async def one(self, resource: Resource, namespace: str | None, name: str) -> Listed:
        """One object as a list of at most one."""
        return await self._object(f"get {_place(resource, namespace)}", resource.path(namespace, name))

    async def json(self, path: str) -> Listed:
        """A JSON object that is no resource, such as /version."""
        return await self._object(f"get {path}", path)

    async def _object(self, action: str, path: str) -> Listed:
        async def read() -> Listed:
            item = decode(await self.source.read(path, {}, _PAGE_BYTES))
            return Listed([item]) if isinstance(item, dict) else Listed(problem="the answer is no object")

        return await self._guarded(action, read, _no_objects)

    async def page(self, action: str, path: str, query: Mapping[str, str], most_bytes: int) -> Page:
        """The text at any path. `action` names the right that it needs, for example "get pods/log in team-a"."""

        async def read() -> Page:
            content = await self.source.read(path, query, most_bytes)
            return Page(content.decode("utf-8", "replace"), 200)

        return await self._guarded(action, read, _no_page)

    async def reviewed(self, body: Manifest) -> tuple[bool, str]:
        """Whether a review says yes, and why there is no answer. The API server stores no review."""
        kind = str(body["kind"])
        resource = Resource("authorization.k8s.io", "v1", f"{kind.lower()}s", kind, namespaced=False)

        async def ask() -> tuple[bool, str]:
            answer = await self.source.create(resource, body)
            return objects.mapping(answer, "status").get("allowed") is True, ""

        return await self._guarded(f"create {resource.plural}", ask, lambda _error, why: (False, why))

    async def rejection(self, resource: Resource, manifest: Manifest) -> str:
        """Why the API server rejects an object, which it does not store. "" if it admits it."""

        async def attempt() -> str:
            await self.source.try_create(resource, manifest)
            return ""

        def rejected(error: Exception, why: str) -> str:
            return clean(error.message, 600) if isinstance(error, ApiError) else why

        return await self._guarded("create pods", attempt, rejected)

    async def _guarded(
        self,
        action: str,
        request: Callable[[], Awaitable[T]],
        otherwise: Callable[[Exception, str], T],
        seconds: float = SECONDS,
    ) -> T:
        async with self._free:
            try:
                async with asyncio.timeout(seconds):
                    return await request()
            except Forbidden as error:
                return otherwise(error, f"you may not {action}")
            except NotFound as error:
                return otherwise(error, clean(error.message, 200))
            except ApiError as error:
                return otherwise(error, f"the API server did not answer {action}: {clean(error, 200)}")
            except (TimeoutError, ValueError) as error:
                why = f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else "the answer is no JSON"
                return otherwise(error, f"{action}: {why}")


def _no_objects(error: Exception, why: str) -> Listed:
    return Listed(problem=why, absent=isinstance(error, NotFound))


def _no_page(error: Exception, why: str) -> Page:
    if isinstance(error, ApiError):
        proxied = error.reason == f"HTTP{error.status}"
        return Page("", error.status, why if isinstance(error, Forbidden) else clean(error.message, 200), proxied)
    return Page("", 0, why)


def _place(resource: Resource, namespace: str | None) -> str:
    group = f".{resource.group}" if resource.group else ""
    scope = f" in {namespace}" if namespace else "" if not resource.namespaced else " in all namespaces"
    return f"{resource.plural}{group}{scope}"


def kept(*parts: str) -> Keep:
    """A `Keep` for metadata without managedFields, and these top-level members."""

    def keep(item: objects.Object) -> Manifest:
        metadata: dict[str, Any] = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
        return {"metadata": metadata, **{part: item[part] for part in parts if part in item}}

    return keep
