"""An API server in memory, with the faults that real ones have, and the few lines of a cluster around it.

It keeps what the operator relies on: resourceVersions, uids, 409s, label selectors, generations, immutable data,
strategic merge, graceful deletion, garbage collection by owner. Every write can be a kill point.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    LEASES,
    NETWORK_POLICIES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    SECRETS,
    AlreadyExists,
    Conflict,
    DeleteOptions,
    Forbidden,
    Invalid,
    Manifest,
    NotFound,
    Resource,
)

Address = tuple[Resource, str, str]
ALL = (
    QWENDEPLOYMENTS,
    PODS,
    CONTROLLER_REVISIONS,
    POD_DISRUPTION_BUDGETS,
    RESOURCE_QUOTAS,
    PERSISTENT_VOLUME_CLAIMS,
    NODES,
    EVENTS,
    SECRETS,
    LEASES,
    NETWORK_POLICIES,
    PRIORITY_CLASSES,
)


class Crash(BaseException):
    """The process dies here: nothing that it would do after this happens."""


@dataclass
class Clock:
    """A time that only moves when told to."""

    seconds: float = 0.0
    epoch: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.epoch + timedelta(seconds=self.seconds)

    def stamp(self, ahead: float = 0.0) -> str:
        return (self.now() + timedelta(seconds=ahead)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Write:
    """One write request that reached the API server."""

    verb: str
    resource: Resource
    name: str


@dataclass
class FakeKube:
    """`KubeApi` in memory.

    `before(n, write)` and `after(n, write)` are called around the n-th write (from 0) and may raise: before, nothing
    is written; after, it is written and the answer is lost. `admit(verb, manifest)` may raise like an admission policy.
    `refused` has the (resource, namespace) that nobody may list or watch; without a resource, everything in there; the
    namespace "" is the whole cluster.
    """

    clock: Clock = field(default_factory=Clock)
    before: Callable[[int, Write], None] = lambda _n, _write: None
    after: Callable[[int, Write], None] = lambda _n, _write: None
    admit: Callable[[str, Manifest], None] = lambda _verb, _manifest: None
    refused: set[tuple[Resource | None, str]] = field(default_factory=set)
    objects: dict[Address, Manifest] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    journal: list[tuple[str, Resource, Manifest]] = field(default_factory=list)
    reads: int = 0
    _version: int = 100
    _uids: int = 0

    # The protocol.

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        self.reads += 1
        return copy.deepcopy(self._found(resource, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        self.reads += 1
        self.check_right("list", resource, namespace)
        items = [
            copy.deepcopy(item)
            for (kind, where, _), item in sorted(self.objects.items(), key=lambda pair: pair[0][1:])
            if kind == resource and namespace in (None, where) and matches(item, labels) and _selected(item, fields)
        ]
        return items, str(self._version)

    async def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """The journal since then, and then the end of the watch, as after its time-out."""
        self.check_right("watch", resource, namespace)
        for kind, what, item in list(self.journal):
            inside = (
                what == resource and namespace in (None, item["metadata"].get("namespace")) and matches(item, labels)
            )
            if inside and int(item["metadata"]["resourceVersion"]) > int(resource_version):
                yield kind, copy.deepcopy(item)

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        number = self._write("create", resource, meta["name"])
        self.admit("create", manifest)
        address = (resource, meta.get("namespace", ""), meta["name"])
        if address in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f'{resource.plural} "{meta["name"]}" already exists')
        new = self._born(resource, manifest)
        self._store("ADDED", resource, new)
        return self._answer(number, new)

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        number = self._write("replace", resource, meta["name"])
        old = self._found(resource, meta.get("namespace"), meta["name"])
        # Only a Lease must name the version that it replaces.
        unconditional = () if resource == LEASES else (None,)
        if meta.get("resourceVersion") not in (old["metadata"]["resourceVersion"], *unconditional):
            raise Conflict(409, "Conflict", "the object has been modified")
        self._change(resource, old, copy.deepcopy(manifest))
        return self._answer(number, self._found(resource, meta.get("namespace"), meta["name"]))

    async def apply_status(self, resource: Resource, manifest: Manifest, *, manager: str) -> Manifest:
        meta = manifest["metadata"]
        number = self._write("status", resource, meta["name"])
        old = self._found(resource, meta["namespace"], meta["name"])
        if meta.get("uid") not in (None, old["metadata"]["uid"]):
            raise Conflict(409, "Conflict", "the uid is another one")
        if meta.get("resourceVersion") not in (None, old["metadata"]["resourceVersion"]):
            raise Conflict(409, "Conflict", "the object has been modified")
        new = {**copy.deepcopy(old), "status": copy.deepcopy(manifest["status"])}
        self._change(resource, old, new)
        return self._answer(number, self._found(resource, meta["namespace"], meta["name"]))

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        number = self._write("patch", resource, name)
        old = self._found(resource, namespace, name)
        if (patch.get("metadata") or {}).get("resourceVersion") not in (None, old["metadata"]["resourceVersion"]):
            raise Conflict(409, "Conflict", "the object has been modified")
        self._change(resource, old, merge(old, patch))
        return self._answer(number, self._found(resource, namespace, name))

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None:
        number = self._write("delete", resource, name)
        old = self._found(resource, namespace, name)
        if old["metadata"]["uid"] != options.uid:
            raise Conflict(409, "Conflict", "the uid in the precondition is another one")
        if options.resource_version not in (None, old["metadata"]["resourceVersion"]):
            raise Conflict(409, "Conflict", "the resourceVersion in the precondition is another one")
        if options.grace_seconds == 0:
            self.finish(old, resource)
        elif not (resource == PODS and "deletionTimestamp" in old["metadata"]):
            self.remove(old, resource, options.grace_seconds)
        self.after(number, self.writes[number])

    async def aclose(self) -> None:
        return None

    # What others do to the cluster; not counted as writes of the operator.

    def put(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Someone else creates or replaces an object; a changed spec gets a new generation."""
        meta = manifest["metadata"]
        old = self.objects.get((resource, meta.get("namespace", ""), meta["name"]))
        if old is None:
            self._store("ADDED", resource, self._born(resource, manifest))
        else:
            new = copy.deepcopy(manifest)
            if resource == QWENDEPLOYMENTS and old.get("spec") != new.get("spec"):
                new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
            self._change(resource, old, new)
        return self.one(resource, meta["name"])

    def edit(self, resource: Resource, name: str, change: Callable[[Manifest], None]) -> Manifest:
        """Someone else edits an object in place."""
        manifest = copy.deepcopy(self.one(resource, name))
        change(manifest)
        return self.put(resource, manifest)

    def remove(self, manifest: Manifest, resource: Resource, grace_seconds: int | None = None) -> None:
        """A deletion: a pod that runs ends gracefully (the kubelet finishes it), everything else at once."""
        status = manifest.get("status") or {}
        if resource == PODS and status.get("phase") == "Running" and "deletionTimestamp" not in manifest["metadata"]:
            new = copy.deepcopy(manifest)
            own = manifest["spec"].get("terminationGracePeriodSeconds", 30)
            new["metadata"]["deletionTimestamp"] = self.clock.stamp(own if grace_seconds is None else grace_seconds)
            self._change(resource, manifest, new)
            return
        self.finish(manifest, resource)

    def finish(self, manifest: Manifest, resource: Resource) -> None:
        """The object is gone now, and what it owned with it."""
        meta = manifest["metadata"]
        gone = self.objects.pop((resource, meta.get("namespace", ""), meta["name"]))
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self.journal.append(("DELETED", resource, copy.deepcopy(gone)))
        for (kind, _, _), item in list(self.objects.items()):
            owners = item["metadata"].get("ownerReferences") or []
            if owners and all(owner["uid"] == meta["uid"] for owner in owners):
                self.remove(item, kind)

    def may_read(self, resource: Resource, namespace: str | None) -> bool:
        """Whether there is a right to list and watch this resource in a namespace."""
        scope = namespace or ""
        return not self.refused & {(resource, scope), (None, scope)}

    def check_right(self, verb: str, resource: Resource, namespace: str | None) -> None:
        """Raise Forbidden as the API server does without the right."""
        if not self.may_read(resource, namespace):
            what = f'cannot {verb} resource "{resource.plural}" in the namespace "{namespace}"'
            raise Forbidden(403, "Forbidden", f'{resource.plural} is forbidden: User "somebody" {what}')

    def one(self, resource: Resource, name: str) -> Manifest:
        """The only object of this name, in any namespace."""
        return next(item for (kind, _, called), item in self.objects.items() if kind == resource and called == name)

    def all(self, resource: Resource) -> Sequence[Manifest]:
        return [
            item
            for (kind, _, _), item in sorted(self.objects.items(), key=lambda pair: pair[0][1:])
            if kind == resource
        ]

    # Inside.

    def _write(self, verb: str, resource: Resource, name: str) -> int:
        number = len(self.writes)
        self.before(number, Write(verb, resource, name))
        self.writes.append(Write(verb, resource, name))
        return number

    def _answer(self, number: int, manifest: Manifest) -> Manifest:
        self.after(number, self.writes[number])
        return copy.deepcopy(self.objects.get(address_of(manifest), manifest))

    def _found(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        try:
            return self.objects[resource, namespace or "", name]
        except KeyError:
            raise NotFound(404, "NotFound", f'{resource.plural} "{name}" not found') from None

    def _born(self, resource: Resource, manifest: Manifest) -> Manifest:
        self._uids += 1
        new = copy.deepcopy(manifest)
        new["metadata"] |= {
            "uid": f"uid-{self._uids}",
            "creationTimestamp": self.clock.stamp(),
            "managedFields": [{"manager": "somebody"}],
        }
        if resource == QWENDEPLOYMENTS:
            new["metadata"]["generation"] = 1
        if resource == PODS:
            new["status"] = {"phase": "Pending"}
            new["spec"] = {"schedulerName": "default-scheduler", "restartPolicy": "Always", **new["spec"]}
        return new

    def _change(self, resource: Resource, old: Manifest | None, new: Manifest) -> None:
        if resource == CONTROLLER_REVISIONS and old is not None and old.get("data") != new.get("data"):
            raise Invalid(422, "Invalid", "data: Forbidden: field is immutable")
        if old is None or old != new:
            self._store("MODIFIED" if old is not None else "ADDED", resource, new)

    def _store(self, kind: str, resource: Resource, manifest: Manifest) -> None:
        self._version += 1
        manifest["metadata"]["resourceVersion"] = str(self._version)
        meta = manifest["metadata"]
        self.objects[resource, meta.get("namespace", ""), meta["name"]] = manifest
        self.journal.append((kind, resource, copy.deepcopy(manifest)))


def address_of(manifest: Manifest) -> Address:
    meta = manifest["metadata"]
    resource = next(item for item in ALL if (item.api_version, item.kind) == (manifest["apiVersion"], manifest["kind"]))
    return resource, meta.get("namespace", ""), meta["name"]


def _selected(manifest: Manifest, fields: str) -> bool:
    """The one field selector that anybody uses."""
    node = fields.removeprefix("spec.nodeName=")
    return not fields or manifest["spec"].get("nodeName") == node


def matches(manifest: Manifest, selector: str) -> bool:
    """Equality, and one value of several: `a=b,c=d` or `a in (b,c)`."""
    labels = manifest["metadata"].get("labels") or {}
    if " in (" in selector:
        name, _, values = selector.rstrip(")").partition(" in (")
        return labels.get(name) in values.split(",")
    return all(
        labels.get(name) == value for name, value in (part.split("=", 1) for part in selector.split(",") if part)
    )


def merge(old: Any, patch: Any) -> Any:
    """Strategic merge: maps by key, null deletes, lists of maps by uid or name, other lists replaced."""
    if isinstance(old, dict) and isinstance(patch, dict):
        new = copy.deepcopy(old)
        for key, value in patch.items():
            if value is None:
                new.pop(key, None)
            elif key == "selector" and "matchLabels" in value:
                # Of a PodDisruptionBudget: replaced as a whole.
                new[key] = copy.deepcopy(value)
            else:
                new[key] = merge(new.get(key), value)
        return new
    if isinstance(old, list) and isinstance(patch, list):
        for key in ("uid", "name"):
            if all(isinstance(item, dict) and key in item for item in [*old, *patch]):
                merged = {item[key]: item for item in old}
                for item in patch:
                    if item.get("$patch") == "delete":
                        merged.pop(item[key], None)
                    else:
                        merged[item[key]] = merge(merged.get(item[key]), item)
                return list(merged.values())
    return copy.deepcopy(patch)
