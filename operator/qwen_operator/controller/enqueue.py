"""Puts watch events and lists into the store, and the keys of the affected QwenDeployments into the queue. No I/O."""

import logging
from collections.abc import Callable, Iterable

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.controller.cache import ObjectChange, Store
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.kube import NODES, PRIORITY_CLASSES, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest, Resource
from qwen_operator.manifests.names import LABEL_DEPLOYMENT
from qwen_operator.objects import ObjectKey, key_of

# A name may have thousands of claims. When its holder changes, those that wait for it only get another message. They
# are reconciled one after the other, so that one edit does not fill the queue.
WAITING_SECONDS = 0.1

log = logging.getLogger(__name__)


class Intake:
    """The only way for watch events and lists into store and queue.

    It skips an object that it cannot read, so that one object does not keep the others out. `skipped` gets the
    plural of its resource.
    """

    def __init__(self, store: Store, queue: WorkQueue, skipped: Callable[[str], None] = lambda _plural: None) -> None:
        self._store = store
        self._queue = queue
        self._skipped = skipped

    def event(self, resource: Resource, kind: str | None, manifest: Manifest) -> None:
        """Store a watch event. Every kind except DELETED carries a state of the object."""
        if not self._readable(resource, manifest):
            return
        change = (self._store.remove if kind == "DELETED" else self._store.update)(resource, manifest)
        self._enqueue([change] if change is not None else [])

    def listed(self, resource: Resource, namespace: str | None, items: Iterable[Manifest], version: str) -> None:
        """Store a complete list. Its changes include deletions that no event reported."""
        readable = [item for item in items if self._readable(resource, item)]
        self._enqueue(self._store.replace(resource, namespace, readable, version))

    def unreadable(self, namespaces: Iterable[str]) -> None:
        """Note the namespaces of which the operator may not read everything; see `Store`."""
        self._store.set_unreadable(namespaces)

    def _readable(self, resource: Resource, manifest: Manifest) -> bool:
        problem = objects.malformed(manifest)
        if problem is not None:
            self._skipped(resource.plural)
            log.warning("the operator skips an object", extra={"resource": resource.plural, "why": problem})
        return problem is None

    def enqueue_all(self) -> None:
        """Queue every QwenDeployment about which something may be decided."""
        for deployment in self._store.deployments():
            self._queue.add(key_of(deployment))

    def _enqueue(self, changes: Iterable[ObjectChange]) -> None:
        for change in changes:
            if change.resource == NODES:
                self.enqueue_all()
            elif change.resource == PRIORITY_CLASSES:
                # The arbiter looks at them often enough.
                continue
            elif change.resource == QWENDEPLOYMENTS:
                self._queue_all(change)
            elif change.resource == RESOURCE_QUOTAS:
                self._quota(change)
            else:
                for key in _owners(change):
                    self._queue.add(key)
        self._names()

    def _quota(self, change: ObjectChange) -> None:
        """Queue only the deployments that wait for a quota: its status changes with every pod of the namespace."""
        namespaces = {manifest["metadata"]["namespace"] for manifest in (change.old, change.new) if manifest}
        for deployment in self._store.all(QWENDEPLOYMENTS):
            if deployment["metadata"]["namespace"] in namespaces and _waits_for_quota(deployment):
                self._queue.add(key_of(deployment))

    def _queue_all(self, change: ObjectChange) -> None:
        for manifest in (change.old, change.new):
            if manifest is not None:
                self._queue.add(key_of(manifest))

    def _names(self) -> None:
        """Queue the deployments whose answer about a name changed: the first one now, those behind it little by little.

        An edit of an object that does not hold the name changes no other answer.
        """
        for move in self._store.names.moves():
            if move.first not in (None, move.cause):
                self._queue.add(move.first)
            for place, key in enumerate(self._store.names.asking(move.name)):
                if key not in (move.first, move.cause):
                    self._queue.add_after(key, WAITING_SECONDS * place)


def _waits_for_quota(deployment: Manifest) -> bool:
    conditions = objects.members(deployment, "status", "conditions")
    return any(condition.get("reason") == Reason.QUOTA_EXCEEDED for condition in conditions)


def _owners(change: ObjectChange) -> set[ObjectKey]:
    """The QwenDeployments that an object names before or after the change, by label or by owner reference."""
    keys: set[ObjectKey] = set()
    for manifest in (change.old, change.new):
        if manifest is None:
            continue
        owners = objects.owner_references(manifest)
        names = {owner.get("name") for owner in owners if owner.get("kind") == "QwenDeployment"}
        names.add(objects.labels(manifest).get(LABEL_DEPLOYMENT))
        keys |= {(manifest["metadata"]["namespace"], name) for name in names if name}
    return keys
