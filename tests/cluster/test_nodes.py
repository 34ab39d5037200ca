"""Drained, cordoned and lost nodes: the replacement comes first, and no drain is blocked for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.qd import alive, events, own_namespace, simulated, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L40S = "NVIDIA-L40S"
TWO = Pool(L40S, gpus=2, nodes=2)
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--force")


@pytest.fixture
def nodes(bed: Cluster, release: Release) -> Iterator[OwnNodes]:
    """Two nodes of 2 GPUs each."""
    with bed.own_nodes(TWO) as nodes:
        yield nodes


def placed(nodes: OwnNodes, space: str, name: str, **spec: Any) -> Manifest:
    """A QwenDeployment that runs on these nodes and drains for 5 seconds."""
    return simulated(space, name, L40S, rollout={"drainSeconds": 5}, pod=nodes.pod, **spec)


@dataclass(frozen=True, slots=True)
class Lost:
    """A deployment `l` of one replica whose node was removed, and the other node that it may run on."""

    space: str
    other: str


@pytest.fixture(scope="module", autouse=True)
def lost(kubectl: Kubectl, bed: Cluster, release: Release) -> Iterator[Lost]:
    """Removes the node before the first test of this module.

    The pod garbage collector of the control plane looks every 20 seconds and then waits 40: the other tests run in
    this time.
    """
    with bed.own_nodes(TWO) as nodes, own_namespace(kubectl, "t") as space:
        kubectl.apply(placed(nodes, space, "l"))
        wait_ready(kubectl, space, "l")
        [node] = hosts(kubectl, space, "l")
        [other] = set(nodes.names) - {node}
        bed.remove_node(node)
        yield Lost(space, other)


def hosts(kubectl: Kubectl, space: str, name: str) -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in alive(kubectl, space, name)}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.timeout(240)
def test_a_drain_waits_for_the_replacement(kubectl: Kubectl, nodes: OwnNodes, space: str, replicas: int) -> None:
    kubectl.apply(placed(nodes, space, "d", replicas=replicas))
    wait_ready(kubectl, space, "d")
    wait_for("all there", lambda: len(alive(kubectl, space, "d")) == replicas, 30)
    [node, *_] = sorted(hosts(kubectl, space, "d"))

    kubectl.run("drain", node, *DRAIN, "--timeout=90s")

    wait_for("all on other nodes", lambda: _moved(kubectl, space, node, replicas), 30)
    wait_ready(kubectl, space, "d")


def _moved(kubectl: Kubectl, space: str, node: str, replicas: int) -> bool:
    return node not in hosts(kubectl, space, "d") and len(alive(kubectl, space, "d")) == replicas


@pytest.mark.timeout(240)
def test_without_room_a_drain_ends_after_the_drain_time(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    full, cordoned = nodes.names
    kubectl.run("cordon", cordoned)
    kubectl.apply(placed(nodes, space, "tight"))
    wait_ready(kubectl, space, "tight")

    kubectl.run("drain", full, *DRAIN, "--timeout=90s")

    assert any(kind == "Warning" and "Drain" in reason for kind, reason in events(kubectl, space, "tight"))
    kubectl.run("uncordon", cordoned)
    wait_ready(kubectl, space, "tight")
    assert hosts(kubectl, space, "tight") == {cordoned}


@pytest.mark.timeout(240)
def test_a_cordoned_nodes_replica_moves(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    kubectl.apply(placed(nodes, space, "c"))
    wait_ready(kubectl, space, "c")
    [node] = hosts(kubectl, space, "c")
    [other] = set(nodes.names) - {node}

    kubectl.run("cordon", node)

    wait_for("it is on the other node", lambda: hosts(kubectl, space, "c") == {other}, 60)
    wait_ready(kubectl, space, "c")


@pytest.mark.timeout(240)
def test_a_lost_nodes_replica_is_replaced(kubectl: Kubectl, lost: Lost) -> None:
    wait_for("it is on the other node", lambda: hosts(kubectl, lost.space, "l") == {lost.other}, 120)
    wait_ready(kubectl, lost.space, "l")
