"""What the operator knows of the cluster: the last seen state of every object that reconcile reads.

The states come from watch events, from lists, and from the answers to the operator's own writes. Such an answer is
newer than the events that are still on their way, so the store drops every state that is older than the stored one.
Otherwise the operator would repeat each write once, when it sees the event of an earlier write.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.claims import NameRights
from qwen_operator.api.kept import kept_deployment
from qwen_operator.api.name_index import NameIndex
from qwen_operator.controller.sharing import Shared
from qwen_operator.hardware import hami
from qwen_operator.hardware.nodes import shares_host_memory
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    Manifest,
    Resource,
)
from qwen_operator.manifests.kept import ROOM, kept_budget, kept_pod, kept_priority, kept_quota, kept_revision
from qwen_operator.manifests.names import ANNOTATION_OWNER_UID, LABEL_DEPLOYMENT
from qwen_operator.manifests.ownership import Ownership, ownership
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError, read_revision
from qwen_operator.objects import ObjectKey, key_of
from qwen_operator.replicas.groups import Replica, fetches_adapter_of, groups_of, is_engine_of, is_fetch_of
from qwen_operator.replicas.pod_state import PodState, read_pod

_LARGEST_VERSION = 10**24

WATCHED = (
    QWENDEPLOYMENTS,
    PODS,
    CONTROLLER_REVISIONS,
    POD_DISRUPTION_BUDGETS,
    RESOURCE_QUOTAS,
    NODES,
    PRIORITY_CLASSES,
)


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """An object before and after a change; None if it does not exist."""

    resource: Resource
    old: Manifest | None
    new: Manifest | None


class Store:
    """Objects by resource and key. Returned manifests are shared: never change them.

    `names`: which QwenDeployment holds which served name, for the same states of the objects. `unreadable`: the
    namespaces of which the operator may not read everything. What is stored of them may be old, or only a part: where
    pods cannot be read, there seem to be none. So nothing may be decided about them.
    """

    def __init__(self, names: NameIndex | None = None) -> None:
        self.names = names or NameIndex(NameRights(), lambda: datetime.now(UTC))
        self.unreadable: frozenset[str] = frozenset()
        self._objects: dict[Resource, dict[ObjectKey, Manifest]] = {resource: {} for resource in WATCHED}
        self._related: dict[Resource, dict[str, set[ObjectKey]]] = {resource: {} for resource in WATCHED}
        self._generation = dict.fromkeys(_COMMON, 0)
        self._changes = dict.fromkeys(WATCHED, 0)
        # The resourceVersion at which a name was gone. A list or an answer from before that is too old to count.
        self._gone: dict[Resource, dict[ObjectKey, int]] = {resource: {} for resource in WATCHED}
        self._listed: dict[tuple[Resource, str | None], int] = {}
        self._pod_states: dict[ObjectKey, PodState] = {}
        self._unready: set[ObjectKey] = set()
        self._pinned: dict[ObjectKey, tuple[Manifest, PinnedRevision | UnreadableRevisionError]] = {}

    def get(self, resource: Resource, key: ObjectKey) -> Manifest | None:
        return self._objects[resource].get(key)

    def all(self, resource: Resource) -> Iterator[Manifest]:
        return iter(self._objects[resource].values())

    def deployments(self) -> Iterator[Manifest]:
        """The QwenDeployments about which something may be decided."""
        return (item for item in self.all(QWENDEPLOYMENTS) if item["metadata"]["namespace"] not in self.unreadable)

    def with_unready_pods(self) -> list[Manifest]:
        """Those of `deployments` with a pod that is not Ready, by its label. It costs nothing if there is none."""
        pods = (self._objects[PODS][key] for key in sorted(self._unready))
        keys = dict.fromkeys((pod["metadata"]["namespace"], objects.labels(pod).get(LABEL_DEPLOYMENT)) for pod in pods)
        stored = self._objects[QWENDEPLOYMENTS]
        return [stored[key] for key in keys if key in stored and key[0] not in self.unreadable]

    def set_unreadable(self, namespaces: Iterable[str]) -> None:
        """Replace `unreadable`."""
        self.unreadable = self.names.unreadable = frozenset(namespaces)

    def in_namespace(self, resource: Resource, namespace: str) -> list[Manifest]:
        """The objects of a namespace, sorted by name. It reads all objects of the kind: use it for rare kinds only."""
        stored = self._objects[resource]
        return [stored[key] for key in sorted(stored) if key[0] == namespace]

    def generation(self, resource: Resource) -> int:
        """A number that grows when something changes that matters for all QwenDeployments.

        For nodes that is any change. For QwenDeployments it is a new object, or the end of one.
        """
        return self._generation[resource]

    def changes(self, *resources: Resource) -> tuple[int, ...]:
        """Numbers of which one grows with each change of an object of these kinds."""
        return tuple(self._changes[resource] for resource in resources)

    def related(self, resource: Resource, deployment: Manifest) -> list[Manifest]:
        """The objects that name the deployment as owner (reference or annotation) or in a label, sorted by name."""
        meta = deployment["metadata"]
        index = self._related[resource]
        keys = index.get(meta["uid"], set()) | index.get(f"{meta['namespace']}/{meta['name']}", set())
        return [self._objects[resource][key] for key in sorted(keys)]

    def engine_pods(self, deployment: Manifest) -> tuple[PodState, ...]:
        """The deployment's own engine pods, sorted by name. Each pod is read once per change."""
        name = deployment["metadata"]["name"]
        related = self.related(PODS, deployment)
        return tuple(self._pod_state(pod, name) for pod in related if is_engine_of(pod, deployment))

    def fetch_pods(self, deployment: Manifest) -> tuple[PodState, ...]:
        """The deployment's own pods that fetch a model before engine pods need it, sorted by name."""
        name = deployment["metadata"]["name"]
        related = self.related(PODS, deployment)
        return tuple(self._pod_state(pod, name) for pod in related if is_fetch_of(pod, deployment))

    def adapter_pods(self, deployment: Manifest) -> tuple[PodState, ...]:
        """The deployment's own pods that fetch adapters for engines that serve, sorted by name."""
        name = deployment["metadata"]["name"]
        related = self.related(PODS, deployment)
        return tuple(self._pod_state(pod, name) for pod in related if fetches_adapter_of(pod, deployment))

    def replicas(self, deployment: Manifest) -> tuple[Replica, ...]:
        """The deployment's own replicas, sorted by name."""
        related = self.related(CONTROLLER_REVISIONS, deployment)
        # A ControllerRevision of somebody else may carry the deployment's label, and says nothing about its replicas.
        revisions = (self.pinned(item) for item in related if ownership(item, deployment) is Ownership.OWNED)
        sizes = {one.revision: one.plan.nodes_per_replica for one in revisions if isinstance(one, PinnedRevision)}
        return groups_of(self.engine_pods(deployment), sizes)

    def _pod_state(self, pod: Manifest, deployment: str) -> PodState:
        key = key_of(pod)
        state = self._pod_states.get(key)
        if state is None or state.manifest is not pod or state.deployment != deployment:
            state = self._pod_states[key] = read_pod(pod, deployment)
        return state

    def pinned(self, manifest: Manifest) -> PinnedRevision | UnreadableRevisionError:
        """What a ControllerRevision of this store pins, or why this version cannot read it.

        It is read once per change.
        """
        key = key_of(manifest)
        entry = self._pinned.get(key)
        if entry is not None and entry[0] is manifest:
            return entry[1]
        pinned: PinnedRevision | UnreadableRevisionError
        try:
            pinned = read_revision(manifest)
        except UnreadableRevisionError as error:
            pinned = error
        self._pinned[key] = (manifest, pinned)
        return pinned

    def update(self, resource: Resource, manifest: Manifest) -> ObjectChange | None:
        """Store a state. Returns None if it is older than the stored state, or changes nothing."""
        new = trim(resource, manifest)
        key = key_of(new)
        old = self._objects[resource].get(key)
        if old is not None and not _newer(new, old):
            return None
        if old is None and 0 < _number(new["metadata"]) < self._gone[resource].get(key, 0):
            return None
        self._put(resource, key, new)
        return None if old is not None and _same(old, new) else ObjectChange(resource, old, new)

    def remove(self, resource: Resource, manifest: Manifest, *, reported: bool = True) -> ObjectChange | None:
        """Store a deletion. Returns None if the object is not stored, or if another object has its name now.

        `reported`: `manifest` comes from the event of the deletion. Otherwise it is the last stored state.
        """
        key = key_of(manifest)
        since = _number(manifest["metadata"]) + (0 if reported else 1)
        self._gone[resource][key] = max(since, self._gone[resource].get(key, 0))
        old = self._objects[resource].get(key)
        if old is None or _uid(old) != _uid(manifest):
            return None
        self._drop(resource, key)
        return ObjectChange(resource, old, None)

    def mark_deleting(self, resource: Resource, key: ObjectKey, uid: str, end: str) -> None:
        """Note that the API server accepted a deletion, before the watch event about it arrives.

        `end` is the end of the grace period, which the API server writes as deletionTimestamp.
        """
        old = self._objects[resource].get(key)
        if old is not None and _uid(old) == uid:
            self._put(resource, key, {**old, "metadata": {"deletionTimestamp": end, **old["metadata"]}})

    def replace(
        self, resource: Resource, namespace: str | None, items: Iterable[Manifest], version: str
    ) -> list[ObjectChange]:
        """Store a complete list of a namespace (None: of all namespaces).

        Only such a list shows a deletion that no watch reported. States that are newer than the list's
        resourceVersion stay.
        """
        listed = {key_of(item): item for item in items}
        self._prune(resource, namespace, _parse(version))
        changes = [self.update(resource, item) for item in listed.values()]
        for key, stored in list(self._objects[resource].items()):
            outside = namespace is not None and key[0] != namespace
            if key not in listed and not outside and _number(stored["metadata"]) <= _parse(version):
                changes.append(self.remove(resource, stored, reported=False))
        if resource == QWENDEPLOYMENTS and namespace is not None:
            self.names.read(namespace)
        return [change for change in changes if change is not None]

    def _prune(self, resource: Resource, namespace: str | None, version: int) -> None:
        """Forget the names that were already gone at the previous list.

        Every request from before that list has ended, so no late answer can bring such an object back.
        """
        previous = self._listed.get((resource, namespace), 0)
        self._listed[resource, namespace] = version
        self._gone[resource] = {
            key: number
            for key, number in self._gone[resource].items()
            if number > previous or namespace not in (None, key[0])
        }

    def _put(self, resource: Resource, key: ObjectKey, manifest: Manifest) -> None:
        self._forget(resource, key)
        self._count(resource, self._objects[resource].get(key), manifest)
        self._objects[resource][key] = manifest
        if resource == QWENDEPLOYMENTS:
            self.names.put(key, manifest)
        elif resource == PODS and not objects.holds(manifest, "Ready"):
            self._unready.add(key)
        for owner in _owners(manifest):
            self._related[resource].setdefault(owner, set()).add(key)

    def _drop(self, resource: Resource, key: ObjectKey) -> None:
        if resource == PODS:
            self._pod_states.pop(key, None)
        elif resource == CONTROLLER_REVISIONS:
            self._pinned.pop(key, None)
        elif resource == QWENDEPLOYMENTS:
            self.names.put(key, None)
        self._forget(resource, key)
        self._count(resource, self._objects[resource].pop(key, None), None)

    def _forget(self, resource: Resource, key: ObjectKey) -> None:
        """Remove the object from the indices."""
        if resource == PODS:
            self._unready.discard(key)
        old = self._objects[resource].get(key)
        for owner in _owners(old) if old is not None else ():
            keys = self._related[resource].get(owner, set())
            keys.discard(key)
            if not keys:
                self._related[resource].pop(owner, None)

    def _count(self, resource: Resource, old: Manifest | None, new: Manifest | None) -> None:
        self._changes[resource] += 1
        common_part = _COMMON.get(resource)
        if common_part is not None and common_part(old) != common_part(new):
            self._generation[resource] += 1


_KEEP: Mapping[Resource, Callable[[Manifest], Manifest]] = {
    QWENDEPLOYMENTS: kept_deployment,
    PODS: kept_pod,
    CONTROLLER_REVISIONS: kept_revision,
    POD_DISRUPTION_BUDGETS: kept_budget,
    RESOURCE_QUOTAS: kept_quota,
    PRIORITY_CLASSES: kept_priority,
}


_SHARED = Shared()


class _Trimmed(dict[str, Any]):
    """An object of this resource that `trim` has made. Nothing that is decoded from JSON is one, whatever it says."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource, content: Manifest) -> None:
        super().__init__(content)
        self.resource = resource


def trim(resource: Resource, manifest: Manifest) -> Manifest:
    """The part of an object that reconcile reads, with parts that equal objects share.

    The rest changes often and must not cause a reconcile, such as a node's heartbeat and free memory. It may also be
    large, and anybody may have written it. A list is trimmed when it is read, and so not again when it is stored.
    """
    if isinstance(manifest, _Trimmed) and manifest.resource == resource:
        return manifest
    kept = _trimmed_node(manifest) if resource == NODES else _KEEP[resource](manifest)
    return _Trimmed(resource, _SHARED.of(kept))


def keep(plural: str, manifest: Manifest) -> Manifest:
    """See `trim`; an object of a resource that is not stored stays as it is."""
    resource = _BY_PLURAL.get(plural)
    return manifest if resource is None else trim(resource, manifest)


_BY_PLURAL = {resource.plural: resource for resource in WATCHED}


# What a pod may lack beside GPUs. A change of it matters only when a pod looks for its place.
_OF_PODS = ("cpu", "memory", "pods", "ephemeral-storage")


def _trimmed_node(manifest: Manifest) -> Manifest:
    spec, status = objects.mapping(manifest, "spec"), objects.mapping(manifest, "status")
    meta = objects.mapping(manifest, "metadata")
    meta = {name: meta[name] for name in ("name", "uid", "resourceVersion", "labels") if name in meta}
    annotations = objects.annotations(manifest)
    if shared := {name: annotations[name] for name in hami.ANNOTATIONS if name in annotations}:
        meta["annotations"] = shared
    host = ("memory",) if shares_host_memory(objects.labels(manifest)) else ()
    gpus = {
        part: {name: amount for name, amount in objects.mapping(status, part).items() if "/" in name or name in host}
        for part in ("capacity", "allocatable")
        if part in status
    }
    # A large watch event is trimmed when it is read, becomes JSON again, and is trimmed again when it is stored.
    offered = {**objects.mapping(manifest, ROOM), **objects.mapping(status, "allocatable")}
    ready = [
        {"type": "Ready", "status": condition.get("status")}
        for condition in objects.members(status, "conditions")
        if condition.get("type") == "Ready"
    ]
    kept = {name: spec[name] for name in ("taints", "unschedulable") if name in spec}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": kept,
        "status": {**gpus, **({"conditions": ready} if ready else {})},
        ROOM: {name: offered[name] for name in _OF_PODS if name in offered},
    }


def _owners(manifest: Manifest) -> set[str]:
    """The index keys under which `related` finds an object."""
    meta = manifest["metadata"]
    owners = {str(reference.get("uid")) for reference in objects.owner_references(manifest)}
    if uid := objects.annotations(manifest).get(ANNOTATION_OWNER_UID):
        owners.add(uid)
    if name := objects.labels(manifest).get(LABEL_DEPLOYMENT):
        owners.add(f"{meta.get('namespace')}/{name}")
    return owners


def _uid(manifest: Manifest) -> Any:
    return manifest["metadata"].get("uid")


def _newer(new: Manifest, old: Manifest) -> bool:
    """Whether `new` is newer, also across uids.

    A late event of a deleted object must not replace its successor of the same name.
    """
    return _number(new["metadata"]) > _number(old["metadata"]) or not _number(new["metadata"])


def _number(meta: Manifest) -> int:
    return _parse(str(meta.get("resourceVersion", "")))


def _parse(version: str) -> int:
    """A resourceVersion as a number; 0 if it is not a number. Then the state that arrives last counts."""
    return untrusted.digits(version, _LARGEST_VERSION, 0)


def _same(old: Manifest, new: Manifest) -> bool:
    return _essence(old) == _essence(new)


def _essence(manifest: Manifest | None) -> Manifest | None:
    if manifest is None:
        return None
    meta = {name: value for name, value in manifest["metadata"].items() if name != "resourceVersion"}
    return {**manifest, "metadata": meta, ROOM: None}


def _identity(deployment: Manifest | None) -> object:
    return None if deployment is None else _uid(deployment)


_COMMON: Mapping[Resource, Callable[[Manifest | None], object]] = {NODES: _essence, QWENDEPLOYMENTS: _identity}
"""The part of an object that matters for the decisions about all QwenDeployments; see `Store.generation`."""
