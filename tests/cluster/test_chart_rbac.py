"""The rights that the chart grants, by the real Helm: exactly these, in every mode."""

from __future__ import annotations

import json

import pytest

from tests.cluster.chart import NAMESPACED, Manifest, all_values, environment, of_kind, one, pods, render

pytestmark = pytest.mark.cluster

OPERATOR_RULES = {
    ("qwen-operator.dev", "qwendeployments"): "list watch",
    ("qwen-operator.dev", "qwendeployments/status"): "patch",
    ("qwen-operator.dev", "qwendeployments/finalizers"): "update",
    ("", "pods"): "get list watch create patch delete",
    ("", "services"): "get list watch create patch",
    ("apps", "controllerrevisions"): "get list watch create patch delete",
    ("", "events"): "create",
}
NODE_RULES = {("", "nodes"): "list watch"}
GATEWAY_RULES = {("qwen-operator.dev", "qwendeployments"): "list watch", ("", "pods"): "list watch"}


def granted(role: Manifest) -> dict[tuple[str, str], str]:
    """(group, resource) -> verbs of a role; no pair may come twice."""
    pairs = [
        ((group, resource), " ".join(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_rights_in_the_whole_cluster() -> None:
    manifests = render({})
    assert granted(one(manifests, "ClusterRole", "qwen-system-qwen-operator")) == OPERATOR_RULES | NODE_RULES
    assert granted(one(manifests, "ClusterRole", "qwen-system-qwen-gateway")) == GATEWAY_RULES
    assert granted(one(manifests, "Role", "qwen-gateway-keys")) == {("", "secrets"): "create"}
    assert one(manifests, "Role", "qwen-gateway-keys")["metadata"]["namespace"] == "qwen-system"


def test_rights_in_named_namespaces() -> None:
    manifests = render(NAMESPACED)
    assert of_kind(manifests, "ClusterRole", "ClusterRoleBinding") == []
    roles = {(m["metadata"]["namespace"], m["metadata"]["name"]): granted(m) for m in of_kind(manifests, "Role")}
    assert roles == {
        ("team-a", "qwen-system-qwen-operator"): OPERATOR_RULES,
        ("team-b", "qwen-system-qwen-operator"): OPERATOR_RULES,
        ("team-a", "qwen-system-qwen-gateway"): GATEWAY_RULES,
        ("team-b", "qwen-system-qwen-gateway"): GATEWAY_RULES,
        ("qwen-system", "qwen-gateway-keys"): {("", "secrets"): "create"},
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
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"], m["metadata"].get("namespace")) == wanted]
    return found


def test_no_right_on_secrets_without_keys() -> None:
    roles = of_kind(render({"gateway": {"auth": "none"}}), "Role", "ClusterRole")
    assert "secrets" not in {resource for role in roles for _, resource in granted(role)}
