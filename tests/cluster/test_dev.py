"""`make dev` finds in the chart's objects what the operator of the chart gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_operator.config.load import load
from tests.cluster import chart
from tools.dev import config_map_name, environment

pytestmark = pytest.mark.cluster


@chart.all_values
def test_the_settings_of_the_chart_can_be_used(values: chart.Manifest) -> None:
    manifests = chart.render(values)
    deployment = chart.one(manifests, "Deployment", "qwen-operator")
    settings = chart.one(manifests, "ConfigMap", config_map_name(deployment))["data"]["config.yaml"]

    config = load(environment(deployment, Path("config.yaml"), {}), settings)

    assert config.namespace == "qwen-system"
    assert config.lease_name == "qwen-operator"
    assert list(config.namespaces) == values.get("watchNamespaces", [])
