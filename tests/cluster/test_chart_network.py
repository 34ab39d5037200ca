"""The chart's NetworkPolicies, by the real Helm: who may connect to the gateway, the operator and the engines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qwen_operator.config.load import load
from tests.cluster.chart import CHART, PROMETHEUS, Manifest, all_values, helm, of_kind, one, pods, render

pytestmark = pytest.mark.cluster

CLIENTS: Manifest = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
MESH: Manifest = {"from": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}


def values(**networkPolicy: Any) -> Manifest:
    return {"networkPolicy": networkPolicy}


def ingress(manifests: list[Manifest], part: str) -> list[Manifest]:
    rules: list[Manifest] = one(manifests, "NetworkPolicy", f"qwen-{part}")["spec"]["ingress"]
    return rules


def engines(manifests: list[Manifest]) -> list[Manifest]:
    """The rules that the operator writes for the engines, as it reads them."""
    text = one(manifests, "ConfigMap", "qwen-operator")["data"]["config.yaml"]
    policy = load({}, text).network_policy
    assert (policy.enabled, policy.name) == (True, "qwen-system.qwen-engines")
    return [dict(rule) for rule in policy.ingress]


def component(peer: Manifest) -> str:
    name: str = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
    return name


def test_by_default_only_the_gateway_s_api_is_open() -> None:
    manifests = render({})
    [clients, demand] = ingress(manifests, "gateway")
    assert clients == {"ports": [{"protocol": "TCP", "port": 8000}]}
    assert demand["ports"] == [{"protocol": "TCP", "port": 9091}]
    assert [component(peer) for peer in demand["from"]] == ["operator", "gateway"]
    [rule] = ingress(manifests, "operator")
    assert [component(peer) for peer in rule["from"]] == ["test"]
    [rule, start] = engines(manifests)
    assert start["ports"] == [{"protocol": "TCP", "port": 8001}]
    assert [component(peer) for peer in start["from"]] == ["operator"]
    assert [component(peer) for peer in rule["from"]] == ["gateway", "operator"]
    assert {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in rule["from"]} == {
        "qwen-system"
    }
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]


def test_the_policies_select_the_release_s_pods_and_ports_that_exist() -> None:
    manifests = render(values(metricsFrom=[PROMETHEUS]))
    for part in ("gateway", "operator"):
        policy = one(manifests, "NetworkPolicy", f"qwen-{part}")["spec"]
        selector = policy["podSelector"]["matchLabels"].items()
        [template] = [spec for meta, spec in pods(manifests) if selector <= meta.get("labels", {}).items()]
        containers = [*template["containers"], *template.get("initContainers", ())]
        existing = {port["containerPort"] for container in containers for port in container.get("ports", ())}
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == existing
        for peer in engines(manifests)[0]["from"]:
            if "podSelector" in peer and component(peer) == part:
                assert peer["podSelector"]["matchLabels"].items() == selector


def test_the_values_open_ports() -> None:
    manifests = render(
        values(
            metricsFrom=[PROMETHEUS],
            gateway={"from": [CLIENTS], "extraIngress": [MESH]},
            operator={"extraIngress": [MESH]},
            engines={"extraIngress": [MESH]},
        )
    )
    api, _, metrics, mesh = ingress(manifests, "gateway")
    assert (api["from"][0], component(api["from"][1])) == (CLIENTS, "test")
    assert (metrics["from"], [port["port"] for port in metrics["ports"]]) == ([PROMETHEUS], [8081, 9090, 9091])
    assert mesh == MESH
    assert PROMETHEUS in ingress(manifests, "operator")[0]["from"]
    assert ingress(manifests, "operator")[1] == MESH
    assert PROMETHEUS in engines(manifests)[0]["from"]
    assert engines(manifests)[2] == MESH


def test_without_policies_the_operator_is_told_to_remove_its_own() -> None:
    manifests = render(values(enabled=False))
    assert of_kind(manifests, "NetworkPolicy") == []
    config = yaml.safe_load(one(manifests, "ConfigMap", "qwen-operator")["data"]["config.yaml"])["networkPolicy"]
    assert (config["enabled"], config["name"]) == (False, "qwen-system.qwen-engines")


def test_monitors_that_no_prometheus_could_use_are_refused() -> None:
    done = helm("template", "qwen", str(CHART), values={"monitoring": {"enabled": True}})
    assert done.returncode != 0
    assert "networkPolicy.metricsFrom is empty, so no Prometheus could read the metrics" in done.stderr
    render({"monitoring": {"enabled": True}, **values(enabled=False)})


@all_values
def test_a_peer_is_never_empty(values: Manifest) -> None:
    """An empty `from` means everyone."""
    for policy in of_kind(render(values), "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert all(rule.get("from", [True]) for rule in policy["spec"]["ingress"])


@pytest.mark.parametrize(
    "wrong", [{"metricsFrom": [{}]}, {"metricsFrom": [{"cidr": "10.0.0.0/8"}]}, {"metricsfrom": []}]
)
def test_the_schema_refuses_a_peer_that_would_open_everything(wrong: Manifest) -> None:
    assert helm("template", "qwen", str(CHART), values={"networkPolicy": wrong}).returncode != 0
