"""Drained, cordoned and lost nodes: the replacement comes first, and no drain is blocked for ever."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.qd import alive, events, simulated, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster
L40S = "NVIDIA-L40S"
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--force")


@pytest.fixture
def nodes(bed: Cluster, release: Release) -> Iterator[list[str]]:
    """Two simulated L40S nodes of 2 GPUs each."""
    names = [f"l40s-{uuid4().hex[:6]}" for _ in range(2)]
    for name in names:
        bed.add_simulated_node(name, L40S, gpus=2)
    yield names
    for name in names:
        bed.remove_node(name)


def hosts(kubectl: Kubectl, space: str, name: str) -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in alive(kubectl, space, name)}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.timeout(240)
def test_a_drain_waits_for_the_replacement(kubectl: Kubectl, space: str, nodes: list[str], replicas: int) -> None:
    kubectl.apply(simulated(space, "d", L40S, replicas=replicas, rollout={"drainSeconds": 5}))
    wait_ready(kubectl, space, "d")
    wait_for("all there", lambda: len(alive(kubectl, space, "d")) == replicas, 30)
    [node, *_] = sorted(hosts(kubectl, space, "d"))

    kubectl.run("drain", node, *DRAIN, "--timeout=90s")

    wait_for("all on other nodes", lambda: _moved(kubectl, space, node, replicas), 30)
    wait_ready(kubectl, space, "d")


def _moved(kubectl: Kubectl, space: str, node: str, replicas: int) -> bool:
    return node not in hosts(kubectl, space, "d") and len(alive(kubectl, space, "d")) == replicas


@pytest.mark.timeout(240)
def test_without_room_a_drain_ends_after_the_drain_time(kubectl: Kubectl, space: str, nodes: list[str]) -> None:
    kubectl.run("cordon", nodes[1])
    kubectl.apply(simulated(space, "tight", L40S, rollout={"drainSeconds": 5}))
    wait_ready(kubectl, space, "tight")

    kubectl.run("drain", nodes[0], *DRAIN, "--timeout=90s")

    assert any(kind == "Warning" and "Drain" in reason for kind, reason in events(kubectl, space, "tight"))
    kubectl.run("uncordon", nodes[1])
    wait_ready(kubectl, space, "tight")
    assert hosts(kubectl, space, "tight") == {nodes[1]}


@pytest.mark.timeout(240)
def test_a_cordoned_nodes_replica_moves(kubectl: Kubectl, space: str, nodes: list[str]) -> None:
    kubectl.apply(simulated(space, "c", L40S, rollout={"drainSeconds": 5}))
    wait_ready(kubectl, space, "c")
    [node] = hosts(kubectl, space, "c")
    [other] = set(nodes) - {node}

    kubectl.run("cordon", node)

    wait_for("it is on the other node", lambda: hosts(kubectl, space, "c") == {other}, 60)
    wait_ready(kubectl, space, "c")


@pytest.mark.timeout(240)
def test_a_lost_nodes_replica_is_replaced(kubectl: Kubectl, bed: Cluster, space: str, nodes: list[str]) -> None:
    kubectl.apply(simulated(space, "l", L40S, rollout={"drainSeconds": 5}))
    wait_ready(kubectl, space, "l")
    [node] = hosts(kubectl, space, "l")
    [other] = set(nodes) - {node}

    bed.remove_node(node)

    wait_for("it is on the other node", lambda: hosts(kubectl, space, "l") == {other}, 120)
    wait_ready(kubectl, space, "l")
