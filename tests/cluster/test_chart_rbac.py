"""The rights that the chart grants, by the real Helm: exactly these, in every mode."""

from __future__ import annotations

import json

import pytest

from qwen_operator.controller.cache import WATCHED
from qwen_operator.controller.execute import RESOURCES
from qwen_operator.kube import NETWORK_POLICIES
from tests.cluster.chart import NAMESPACED, Manifest, all_values, environment, of_kind, one, pods, render

pytestmark = pytest.mark.cluster

OPERATOR_RULES = {
    ("qwen-operator.dev", "qwendeployments"): "list watch",
    ("qwen-operator.dev", "qwendeployments/status"): "patch",
    ("qwen-operator.dev", "qwendeployments/finalizers"): "update",
    ("", "pods"): "get list watch create patch delete",
    ("apps", "controllerrevisions"): "get list watch create patch delete",
    ("policy", "poddisruptionbudgets"): "get list watch create patch",
    ("", "resourcequotas"): "list watch",
    ("", "events"): "create",
    ("", "persistentvolumeclaims"): "get",
    ("networking.k8s.io", "networkpolicies"): "list watch create",
    ("networking.k8s.io", "networkpolicies", "qwen-system.qwen-engines"): "update delete",
}
OWN_RULES = {
    "qwen-operator-lease": {
        ("coordination.k8s.io", "leases"): "create",
        ("coordination.k8s.io", "leases", "qwen-operator"): "get update",
    },
    "qwen-gateway-keys": {("", "secrets"): "create"},
}
"""Of the operator in the release's namespace, by the Role's name."""
NODE_RULES = {("", "nodes"): "list watch", ("scheduling.k8s.io", "priorityclasses"): "list watch"}
GATEWAY_RULES = {("qwen-operator.dev", "qwendeployments"): "list watch", ("", "pods"): "list watch"}


def granted(role: Manifest) -> dict[tuple[str, ...], str]:
    """(group, resource, and the object's name where it is limited to one) -> verbs of a role; none may come twice."""
    pairs = [
        ((group, resource, *rule.get("resourceNames", ())), " ".join(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_rights_in_the_whole_cluster() -> None:
    manifests = render({})
    assert granted(one(manifests, "ClusterRole", "qwen-system.qwen-operator")) == OPERATOR_RULES | NODE_RULES
    assert granted(one(manifests, "ClusterRole", "qwen-system.qwen-gateway")) == GATEWAY_RULES
    roles = {m["metadata"]["name"]: granted(m) for m in of_kind(manifests, "Role")}
    assert roles == OWN_RULES
    assert {m["metadata"]["namespace"] for m in of_kind(manifests, "Role")} == {"qwen-system"}


def test_rights_follow_the_program() -> None:
    """It may watch what it watches and write the children that it makes, and nothing else of either kind."""
    rules = OPERATOR_RULES | NODE_RULES
    children = {(resource.group, resource.plural) for resource in RESOURCES.values()}
    watched = {(resource.group, resource.plural) for resource in (*WATCHED, NETWORK_POLICIES)}
    assert {what for what, verbs in rules.items() if "list watch" in verbs} == watched
    assert {what for what, verbs in rules.items() if "get list watch create patch" in verbs} == children


def test_rights_in_named_namespaces() -> None:
    manifests = render(NAMESPACED)
    assert of_kind(manifests, "ClusterRole", "ClusterRoleBinding") == []
    roles = {(m["metadata"]["namespace"], m["metadata"]["name"]): granted(m) for m in of_kind(manifests, "Role")}
    assert roles == {
        ("team-a", "qwen-system.qwen-operator"): OPERATOR_RULES,
        ("team-b", "qwen-system.qwen-operator"): OPERATOR_RULES,
        ("team-a", "qwen-system.qwen-gateway"): GATEWAY_RULES,
        ("team-b", "qwen-system.qwen-gateway"): GATEWAY_RULES,
        # The gateway's own pods, which show who asks for a model that sleeps.
        ("qwen-system", "qwen-gateway-demand"): {("", "pods"): "list watch"},
        **{("qwen-system", name): rules for name, rules in OWN_RULES.items()},
    }
    assert environment(manifests, "qwen-operator", "operator")["QWEN_WATCH_NAMESPACES"] == "team-a,team-b"
    assert environment(manifests, "qwen-gateway", "agent")["QWEN_WATCH_NAMESPACES"] == "team-a,team-b"
    assert environment(manifests, "qwen-operator", "operator")["QWEN_READ_NODES"] == "false"


def test_nodes_can_be_opened_to_a_namespaced_operator() -> None:
    manifests = render({"watchNamespaces": ["team-a"], "rbac": {"readNodes": True}})
    (role,) = of_kind(manifests, "ClusterRole")
    assert granted(role) == NODE_RULES
    assert environment(manifests, "qwen-operator", "operator")["QWEN_READ_NODES"] == "true"


@all_values
def test_every_binding_joins_a_role_and_an_account_that_exist(values: Manifest) -> None:
    manifests = render(values)
    accounts = {m["metadata"]["name"] for m in of_kind(manifests, "ServiceAccount")}
    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
        role = one_of_namespace(manifests, binding["roleRef"], binding["metadata"].get("namespace"))
        assert "*" not in json.dumps(role["rules"])
        assert [(s["name"] in accounts, s["namespace"]) for s in binding["subjects"]] == [(True, "qwen-system")]
    used = {spec["serviceAccountName"] for _, spec in pods(manifests) if "serviceAccountName" in spec}
    assert used == accounts


def one_of_namespace(manifests: list[Manifest], reference: Manifest, namespace: str | None) -> Manifest:
    wanted = (reference["kind"], reference["name"], namespace)
    (manifest,) = [m for m in manifests if (m["kind"], m["metadata"]["name"], m["metadata"].get("namespace")) == wanted]
    return manifest


def test_no_right_on_secrets_without_keys() -> None:
    roles = of_kind(render({"gateway": {"auth": "none"}}), "Role", "ClusterRole")
    assert "secrets" not in {resource for role in roles for _, resource, *_ in granted(role)}


def test_the_lease_is_the_release_s_own() -> None:
    """Two releases in one namespace must not take turns."""
    manifests = render({}, release="other")
    assert environment(manifests, "other-operator", "operator")["QWEN_LEASE_NAME"] == "other-operator"
    lease = granted(one(manifests, "Role", "other-operator-lease"))
    assert ("coordination.k8s.io", "leases", "other-operator") in lease


def test_the_cluster_s_own_roles_see_and_change_deployments_but_no_status() -> None:
    manifests = render({})
    view = one(manifests, "ClusterRole", "qwen-system.qwen-view")
    edit = one(manifests, "ClusterRole", "qwen-system.qwen-edit")
    group = "qwen-operator.dev"
    assert granted(view) == {
        (group, "qwendeployments"): "get list watch",
        (group, "qwendeployments/status"): "get",
        (group, "qwendeployments/scale"): "get",
    }
    assert granted(edit) == {
        (group, "qwendeployments"): "create update patch delete deletecollection",
        (group, "qwendeployments/scale"): "update patch",
    }
    assert aggregated(view) == {"view", "edit", "admin"}
    assert aggregated(edit) == {"edit", "admin"}
    names = {m["metadata"]["name"] for m in of_kind(render({"rbac": {"aggregate": False}}), "ClusterRole")}
    assert names == {"qwen-system.qwen-operator", "qwen-system.qwen-gateway", "qwen-operator-serves-all-namespaces"}


def aggregated(role: Manifest) -> set[str]:
    """The cluster's own roles that take in this one."""
    start = "rbac.authorization.k8s.io/aggregate-to-"
    return {key.removeprefix(start) for key in role["metadata"]["labels"] if key.startswith(start)}
