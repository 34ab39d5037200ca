"""The network of replicas over several nodes: names, and what a pool takes from the chart."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from qwen_operator.config.load import load
from qwen_operator.config.section import ConfigError
from qwen_operator.manifests.multi_node import MultiNode, MultiNodes
from tests.unit.chart.manual import CHART
from tests.unit.config.files import GOOD


def accepted(**multi_node: Any) -> bool:
    try:
        load({}, GOOD.replace("engine: {", f"engine: {{multiNode: {json.dumps(multi_node)}, "))
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        *("rdma/hca", "block", "a.example.com/Block_1", "rdma/hca ", "rdma/hca/x", "rdma/-", "rdma/hca:1", "-a/b"),
        *("A/b", "a b", "a/", "/b", f"{'a' * 64}/b", f"a/{'b' * 64}", f"{'a' * 254}/b"),
    ],
)
def test_the_chart_and_the_operator_take_the_same_names(name: str) -> None:
    parts = json.loads((CHART / "values.schema.json").read_text())
    used = parts["properties"]["engine"]["properties"]["multiNode"], parts["definitions"]["multiNode"]
    for network in used:
        assert (re.search(network["properties"]["topologyKey"]["pattern"], name) is not None) is accepted(
            topologyKey=name
        )
    found = re.search(
        r'regexMatch ("\^.*?") [$]name\) -}}\n.*network device', (CHART / "templates/checks.yaml").read_text()
    )
    assert found
    assert (re.search(json.loads(found[1]), name) is not None) is accepted(resources={name: 1})


def test_a_pool_has_its_own_network_and_what_it_does_not_set_is_the_charts() -> None:
    chart = "engine: {multiNode: {interface: eth0, ipcLock: true, resources: {rdma/hca: 1}}, "
    pool = "gpusPerNode: 4, multiNode: {interface: '', hostNetwork: true}"
    config = load({}, GOOD.replace("engine: {", chart).replace("gpusPerNode: 4", pool))
    ((named, own),) = config.multi_nodes.pools
    assert named == config.pools[0]
    assert config.multi_nodes.chart == MultiNode("eth0", {"rdma/hca": 1}, ipc_lock=True)
    assert own == MultiNode("", {"rdma/hca": 1}, ipc_lock=True, host_network=True)
    assert config.multi_nodes.beyond_baseline == ("multiNode.hostNetwork", "multiNode.ipcLock")
    assert load({}, GOOD).multi_nodes == MultiNodes()
