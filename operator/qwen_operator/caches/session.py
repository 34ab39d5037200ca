"""Runs the pods of `qwen-operator cache` with the rights of the person's kubeconfig, and removes them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwen_operator import objects, untrusted
from qwen_operator.caches.pods import CONTAINER, Access, Place, cache_pod
from qwen_operator.caches.table import MOST_BYTES, Page, read_page
from qwen_operator.kube import EVENTS, PODS, ApiError, DeleteOptions, Forbidden, Manifest, NotFound, Resource
from qwen_operator.untrusted import clean

POLL_SECONDS = 1.0
MOST_AT_ONCE = 8
_EVENTS_BYTES = 1_000_000


class Cluster(Protocol):
    """The part of `HttpKubeApi` that is used. Every method may raise ApiError."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest: ...

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest: ...

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None: ...

    async def read(self, path: str, query: Mapping[str, str], most_bytes: int) -> bytes: ...


class PlaceError(Exception):
    """A cache cannot be read or changed. The text says why, without a full stop."""


@dataclass(slots=True)
class Session:
    """`seconds`: how long a pod may take from its creation to its end."""

    cluster: Cluster
    access: Access
    seconds: float = 120.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))

    async def run(self, place: Place, words: Sequence[str] = ()) -> Page | PlaceError:
        """What the pod of one place prints, or why it prints nothing."""
        async with self._free:
            try:
                return await self._run(place, words)
            except PlaceError as error:
                return error
            except ApiError as error:
                return PlaceError(_sentence(error, place.namespace))

    async def _run(self, place: Place, words: Sequence[str]) -> Page:
        name = f"qwen-cache-{secrets.token_hex(4)}"
        manifest = cache_pod(self.access, place, name, words)
        try:
            made = await self.cluster.create(PODS, manifest)
        except Forbidden as error:
            raise PlaceError(_refused(error, place.namespace)) from None
        try:
            await self._ended(place, name)
            return read_page(await self._log(place.namespace, name), place.name)
        except ValueError as error:
            raise PlaceError(str(error)) from None
        finally:
            uid = objects.text(made, "metadata", "uid")
            # The kubelet ends the pod after its LIFE_SECONDS in any case.
            with suppress(ApiError):
                await asyncio.shield(self.cluster.delete(PODS, place.namespace, name, DeleteOptions(uid)))

    async def _ended(self, place: Place, name: str) -> None:
        """Wait until the container has ended. Raises PlaceError."""
        pod: Manifest = {}
        waited = 0.0
        while waited < self.seconds:
            try:
                pod = await self.cluster.get(PODS, place.namespace, name)
            except NotFound:
                raise PlaceError("somebody deleted the pod before it had ended") from None
            state = _state(pod)
            if "terminated" in state:
                return
            if objects.has_ended(pod):
                message = objects.text(pod, "status", "message") or objects.text(pod, "status", "reason")
                raise PlaceError(f"the pod ended without its container: {clean(message, 300)}")
            await self.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
        raise PlaceError(f"its pod did not end within {self.seconds:g} s: {await self._hindrance(pod)}")

    async def _log(self, namespace: str, name: str) -> str:
        try:
            path, query = PODS.path(namespace, name, "log"), {"container": CONTAINER}
            return (await self.cluster.read(path, query, MOST_BYTES)).decode("utf-8", "replace")
        except Forbidden:
            raise PlaceError(f"you may not get pods/log in {namespace}, which has the answer") from None

    async def _hindrance(self, pod: Manifest) -> str:
        """What keeps a pod from its start: the last warning about it, or else what its status says."""
        waiting = objects.mapping(_state(pod), "waiting")
        known = objects.text(waiting, "message") or objects.text(waiting, "reason")
        known = known or objects.text(objects.condition(pod, "PodScheduled"), "message") or "no reason is known"
        with suppress(ApiError, ValueError):
            meta = pod["metadata"]
            query = {"fieldSelector": f"involvedObject.uid={meta['uid']},type=Warning", "limit": "50"}
            raw = await self.cluster.read(EVENTS.path(meta["namespace"]), query, _EVENTS_BYTES)
            events = objects.members(untrusted.decode(raw, 32), "items")
            known = next((text for event in reversed(events) if (text := objects.text(event, "message"))), known)
        return clean(known, 400)


def _state(pod: Manifest) -> Mapping[str, Any]:
    statuses = objects.members(pod, "status", "containerStatuses")
    return objects.mapping(objects.named(statuses, CONTAINER), "state")


def _refused(error: ApiError, namespace: str) -> str:
    """Why a pod may not be created: the right lacks, or admission refused it."""
    if "cannot create resource" in error.message:
        return f"you may not create pods in {namespace}: {_RIGHTS.format(namespace=f'-n {namespace}')}"
    return f"the API server refuses the pod in {namespace}: {clean(error.message, 400)}"


def _sentence(error: ApiError, namespace: str) -> str:
    if isinstance(error, Forbidden):
        return f"{clean(error.message, 300)}: {_RIGHTS.format(namespace=f'-n {namespace}')}"
    return clean(error, 400)


_RIGHTS = "it needs create, get and delete of pods, and get of pods/log ({namespace})"
