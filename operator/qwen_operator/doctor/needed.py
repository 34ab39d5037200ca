"""The rights that this version needs. A unit test compares them with the chart's templates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Needed = tuple[str, str, str]
"""(verb, resource with its group, such as pods or controllerrevisions.apps, namespace or "" for the cluster)"""

OPERATOR: dict[str, tuple[str, ...]] = {
    "qwendeployments.qwen-operator.dev": ("list", "watch"),
    "qwendeployments.qwen-operator.dev/status": ("patch",),
    "qwendeployments.qwen-operator.dev/finalizers": ("update",),
    "pods": ("get", "list", "watch", "create", "patch", "delete"),
    "controllerrevisions.apps": ("get", "list", "watch", "create", "patch", "delete"),
    "poddisruptionbudgets.policy": ("get", "list", "watch", "create", "patch"),
    "resourcequotas": ("list", "watch"),
    "persistentvolumeclaims": ("get",),
    "events": ("create",),
    "networkpolicies.networking.k8s.io": ("list", "watch", "create"),
}
"""In each namespace that the operator serves: the chart's `qwen.operatorRules`."""

NODES = {"nodes": ("list", "watch"), "priorityclasses.scheduling.k8s.io": ("list", "watch")}
"""In the cluster, if the operator may read nodes: the chart's `qwen.nodeRules`."""

INSTALL = {
    "customresourcedefinitions.apiextensions.k8s.io": ("create", "patch"),
    "clusterroles.rbac.authorization.k8s.io": ("create",),
    "clusterrolebindings.rbac.authorization.k8s.io": ("create",),
}
USE = {"qwendeployments.qwen-operator.dev": ("create", "get", "list", "patch", "delete"), "pods/log": ("get",)}


def of_operator(namespaces: tuple[str, ...], *, reads_nodes: bool) -> Iterator[Needed]:
    """What the operator needs. Without namespaces it needs everything in the whole cluster."""
    for namespace in namespaces or ("",):
        yield from _each(OPERATOR, namespace)
    if reads_nodes:
        yield from _each(NODES, "")


def of_user(namespaces: tuple[str, ...], *, installed: bool) -> Iterator[Needed]:
    """What the user needs: to install the chart if there is no release, and to use it in these namespaces."""
    if not installed:
        yield from _each(INSTALL, "")
    for namespace in namespaces:
        yield from _each(USE, namespace)


def review(needed: Needed, account: str) -> dict[str, Any]:
    """The body of the review: of the user if `account` is "", else of the ServiceAccount of this name.

    `account` is written system:serviceaccount:NAMESPACE:NAME.
    """
    verb, resource, namespace = needed
    name, _, rest = resource.partition(".")
    group, _, subresource = rest.partition("/")
    if not rest:
        name, _, subresource = name.partition("/")
    attributes = {"verb": verb, "resource": name, "group": group, "subresource": subresource, "namespace": namespace}
    kind = "SubjectAccessReview" if account else "SelfSubjectAccessReview"
    spec: dict[str, Any] = {"resourceAttributes": {key: value for key, value in attributes.items() if value}}
    if account:
        # A right may be bound to any group that the API server gives a ServiceAccount.
        home = f"system:serviceaccounts:{account.split(':')[2]}"
        spec |= {"user": account, "groups": ["system:serviceaccounts", home, "system:authenticated"]}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec}


def _each(rights: Mapping[str, tuple[str, ...]], namespace: str) -> Iterator[Needed]:
    for resource, verbs in rights.items():
        yield from ((verb, resource, namespace) for verb in verbs)
