"""The Kubernetes API as the rest of the package sees it: dicts in, dicts out, typed errors.

All other code uses the `KubeApi` protocol. So the unit tests can run the unchanged reconcile loop against an API in
memory. Manifests stay plain dicts: typed models reject a whole list if one object lacks a required field.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_operator import objects

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One REST resource; `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, of one object, or of an object's subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace is not None else ""
        rest = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{rest}"


QWENDEPLOYMENTS = Resource("qwen-operator.dev", "v1alpha1", "qwendeployments", "QwenDeployment")
PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
EVENTS = Resource("", "v1", "events", "Event")
PERSISTENT_VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
SECRETS = Resource("", "v1", "secrets", "Secret")
RESOURCE_QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")
POD_DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
PRIORITY_CLASSES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """The preconditions and the grace period of a deletion.

    The object must have this `uid` and, if it is set, this `resource_version`. `grace_seconds` overrides the object's
    own grace period.
    """

    uid: str
    resource_version: str | None = None
    grace_seconds: int | None = None

    def body(self) -> Manifest:
        """The `DeleteOptions` object for the API server."""
        preconditions = {"uid": self.uid}
        if self.resource_version is not None:
            preconditions["resourceVersion"] = self.resource_version
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": "Background",
        }
        if self.grace_seconds is not None:
            options["gracePeriodSeconds"] = self.grace_seconds
        return options


class ApiError(Exception):
    """A request that did not succeed.

    `status` is the HTTP status, 0 if there was no answer. `reason` is the API server's own word ("AlreadyExists").
    `retry_after` is the delay in seconds that the server asked for.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotFound(ApiError):
    """404: the object or the resource does not exist."""


class Conflict(ApiError):
    """409: a precondition (uid, resourceVersion) did not hold."""


class AlreadyExists(Conflict):
    """409 of a create: the name is taken, by us or by someone else."""


class Forbidden(ApiError):
    """403: RBAC, a quota or an admission policy forbids it."""


class NamespaceTerminating(Forbidden):
    """403: the namespace is being deleted, so nobody can create objects in it."""


class Invalid(ApiError):
    """400 or 422: the request itself is wrong. A retry does not help."""


class Gone(ApiError):
    """410: the resourceVersion is too old. The caller must list again."""


class TooManyRequests(ApiError):
    """429: retry after `retry_after` seconds."""


class Unavailable(ApiError):
    """5xx, 401, a timeout or no connection. The API server may have carried out the request or not."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_from_status(status: int, body: Manifest, retry_after: float | None = None) -> ApiError:
    """Map an HTTP status and a `Status` object to an ApiError. `body` may also be any other JSON object."""
    reason = str(body.get("reason") or f"HTTP{status}")
    message = str(body.get("message") or "no message")
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(status, reason, message, retry_after)
    causes = objects.members(body, "details", "causes")
    if status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceTerminating(status, reason, message, retry_after)
    kind = _BY_STATUS.get(status, Unavailable if status == 401 or status >= 500 else ApiError)
    return kind(status, reason, message, retry_after)


class KubeApi(Protocol):
    """The requests that the operator and the gateway agent send to an API server. Every method may raise ApiError."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Return one object."""
        ...

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        """Return all objects that match the label selector and the field selector, and the list's resourceVersion.

        Items carry `apiVersion` and `kind`. `namespace=None` means all namespaces.
        """
        ...

    def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield ("ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK", object) until the server ends the watch.

        Raises Gone if the resourceVersion is too old.
        """
        ...

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Create an object. Raises AlreadyExists if the name is taken."""
        ...

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Replace the object. Raises Conflict if it no longer has the manifest's resourceVersion."""
        ...

    async def apply_status(self, resource: Resource, manifest: Manifest, *, manager: str) -> Manifest:
        """Server-side apply with force on the status subresource."""
        ...

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        """Patch an object: strategic merge patch for built-in kinds, JSON merge patch for custom resources."""
        ...

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None:
        """Delete an object. Raises Conflict if it does not meet the preconditions in `options`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
