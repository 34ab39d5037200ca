"""Carries out decisions: one request per action, in order, up to the first error.

Every answer goes into the store at once. A name that is taken, or an object that is another one by now, means that
the view was stale: the object is read, and the decision is made again.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.types import Action, Create, Delete, Kind
from qwen_operator.controller.cache import Store
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KubeApi,
    Manifest,
    NotFound,
    Resource,
)
from qwen_operator.objects import ObjectKey

STATUS_MANAGER = "qwen-operator-status"
RESOURCES: dict[Kind, Resource] = {
    Kind.POD: PODS,
    Kind.CONTROLLER_REVISION: CONTROLLER_REVISIONS,
    Kind.POD_DISRUPTION_BUDGET: POD_DISRUPTION_BUDGETS,
}

log = logging.getLogger(__name__)


class Stale(Exception):
    """An action met another object than the one that was observed."""


class Actor:
    """Writes to the API server and keeps the store in step. `now` returns the time with its zone."""

    def __init__(self, api: KubeApi, store: Store, now: Callable[[], datetime]) -> None:
        self._api = api
        self._store = store
        self._now = now

    async def act(self, key: ObjectKey, action: Action) -> None:
        """Carry out one action for the QwenDeployment `key`; raises Stale, or ApiError."""
        name = action.name
        if not isinstance(action, Create) and action.event is not None:
            await self.post([action.event])
        try:
            await self._request(key[0], name, action)
        except (AlreadyExists, NotFound, Conflict) as error:
            await self._refresh(RESOURCES[action.kind], (key[0], name))
            if isinstance(action, Delete) and isinstance(error, NotFound):
                return
            raise Stale(f"{action.kind} {name}: {error.message}") from error
        log.info(
            "%s %s",
            type(action).__name__.lower(),
            action.kind,
            extra={"deployment": "/".join(key), "object": name, "why": str(action.reason)},
        )

    async def write_status(self, deployment: Manifest, status: dict[str, Any]) -> None:
        """Apply the complete status of a QwenDeployment."""
        meta = deployment["metadata"]
        intent = {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            # With the uid the apply fails when the object was replaced, instead of creating anything.
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        answer = await self._api.apply_status(QWENDEPLOYMENTS, intent, manager=STATUS_MANAGER)
        self._store.update(QWENDEPLOYMENTS, answer)
        summary = status["summary"]
        log.info(
            "status",
            extra={
                "deployment": f"{meta['namespace']}/{meta['name']}",
                "status": summary["status"],
                "ready": summary["ready"],
            },
        )

    async def post(self, events: Sequence[Manifest]) -> None:
        """Post Events; one that is there already was posted by a process that did not live to say so."""
        for event in events:
            try:
                await self._api.create(EVENTS, event)
            except AlreadyExists:
                continue
            except (Forbidden, Invalid) as error:
                # The status says the same, and must not wait for a quota on Events.
                log.warning("event refused", extra={"reason": event["reason"], "error": str(error)})

    async def _request(self, namespace: str, name: str, action: Action) -> None:
        resource = RESOURCES[action.kind]
        if isinstance(action, Delete):
            await self._api.delete(
                resource,
                namespace,
                name,
                uid=action.uid,
                resource_version=action.version,
                grace_seconds=action.grace_seconds,
            )
            self._deleted(resource, (namespace, name), action)
            return
        if isinstance(action, Create):
            answer = await self._api.create(resource, action.manifest)
        else:
            answer = await self._api.patch(resource, namespace, name, action.patch)
        self._store.update(resource, answer)

    def _deleted(self, resource: Resource, key: ObjectKey, action: Delete) -> None:
        known = self._store.get(resource, key)
        if known is None or known["metadata"].get("uid") != action.uid:
            return
        if action.grace_seconds == 0:
            self._store.remove(resource, known, reported=False)
            return
        grace = action.grace_seconds or int(objects.mapping(known, "spec").get("terminationGracePeriodSeconds") or 0)
        self._store.mark_deleting(resource, key, action.uid, rfc3339(self._now() + timedelta(seconds=grace)))

    async def _refresh(self, resource: Resource, key: ObjectKey) -> None:
        """Read one object; it may be one that the label-selected watch does not show."""
        try:
            current = await self._api.get(resource, *key)
        except NotFound:
            known = self._store.get(resource, key)
            if known is not None:
                self._store.remove(resource, known, reported=False)
            return
        self._store.update(resource, current)
