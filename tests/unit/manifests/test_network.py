"""The NetworkPolicy of a namespace with engines."""

from qwen_operator.manifests.network import engine_policy

RULE = {"from": [{"podSelector": {"matchLabels": {"a": "b"}}}], "ports": [{"protocol": "TCP", "port": 8000}]}


def test_it_selects_every_pod_that_the_operator_makes_and_nothing_else() -> None:
    policy = engine_policy("team-a", "system.qwen-engines", [RULE])
    assert policy["metadata"]["namespace"] == "team-a"
    assert policy["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "qwen-operator"
    [roles] = policy["spec"]["podSelector"]["matchExpressions"]
    assert (roles["key"], roles["operator"]) == ("qwen-operator.dev/role", "In")
    assert set(roles["values"]) == {"engine", "engine-worker", "inspection", "fetch"}
    assert (policy["spec"]["policyTypes"], policy["spec"]["ingress"]) == (["Ingress"], [RULE])


def test_without_a_rule_nobody_may_connect() -> None:
    """The API server stores no empty list, so the operator must not write one."""
    assert "ingress" not in engine_policy("team-a", "name", [])["spec"]
