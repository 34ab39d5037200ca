"""Carries out actions: one request per action.

The store gets every answer at once. If a name is taken, or if the object has been replaced, the operator's view was
stale. Then the operator reads the object and decides again.
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
    ApiError,
    Conflict,
    DeleteOptions,
    KubeApi,
    Manifest,
    NotFound,
    Resource,
    TooManyRequests,
    Unavailable,
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
    """The object of an action is not the observed one."""


class Actor:
    """Writes to the API server, and puts the answers into the store. `now` returns a timezone-aware time."""

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
        """Apply the complete status of a QwenDeployment; raises Stale, or ApiError.

        A status that takes a name counts only for the observed state: the object may have given the name up since.
        """
        meta = deployment["metadata"]
        version = {"resourceVersion": meta.get("resourceVersion")} if _takes_name(deployment, status) else {}
        intent = {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            # With the uid, the apply fails if the object was replaced. Without it, the apply could create an object.
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"], **version},
            "status": status,
        }
        try:
            answer = await self._api.apply_status(QWENDEPLOYMENTS, intent, manager=STATUS_MANAGER)
        except Conflict as error:
            await self._refresh(QWENDEPLOYMENTS, (meta["namespace"], meta["name"]))
            raise Stale(f"the status of {meta['name']}: {error.message}") from error
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
        """Post Events. If an Event exists already, an earlier process posted it and ended before the next write."""
        for event in events:
            try:
                await self._api.create(EVENTS, event)
            except AlreadyExists:
                continue
            except (Unavailable, TooManyRequests):
                raise
            except ApiError as error:
                # The status has the same message. It must not wait for a quota on Events.
                log.warning("event rejected", extra={"reason": event["reason"], "error": str(error)})

    async def _request(self, namespace: str, name: str, action: Action) -> None:
        resource = RESOURCES[action.kind]
        if isinstance(action, Delete):
            options = DeleteOptions(action.uid, action.version, action.grace_seconds)
            await self._api.delete(resource, namespace, name, options)
            self._deleted(resource, (namespace, name), action)
            return
        if isinstance(action, Create):
            answer = await self._api.create(resource, action.manifest)
        else:
            answer = await self._api.patch(resource, namespace, name, action.patch)
        self._store.update(resource, answer)

    def _deleted(self, resource: Resource, key: ObjectKey, action: Delete) -> None:
        stored = self._store.get(resource, key)
        if stored is None or stored["metadata"].get("uid") != action.uid:
            return
        if action.grace_seconds == 0:
            self._store.remove(resource, stored, reported=False)
            return
        grace = action.grace_seconds or int(objects.mapping(stored, "spec").get("terminationGracePeriodSeconds") or 0)
        self._store.mark_deleting(resource, key, action.uid, rfc3339(self._now() + timedelta(seconds=grace)))

    async def _refresh(self, resource: Resource, key: ObjectKey) -> None:
        """Read one object from the API server. The watch may not show it, because the watch selects by label."""
        try:
            current = await self._api.get(resource, *key)
        except NotFound:
            stored = self._store.get(resource, key)
            if stored is not None:
                self._store.remove(resource, stored, reported=False)
            return
        self._store.update(resource, current)


def _takes_name(deployment: Manifest, status: Manifest) -> bool:
    """Whether the new status records a name that the present one does not."""
    held = [
        {entry.get("name") for entry in objects.members(part, "names", "held")}
        for part in (status, objects.mapping(deployment, "status"))
    ]
    return not held[0] <= held[1]
