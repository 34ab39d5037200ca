"""A replica over several nodes, from the manifest to pods that serve."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.kube import (
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
)
from tests.unit.world import REPORT, World, deployment, node

LARGE = "Qwen/Qwen3-Coder-480B-A35B-Instruct"


async def a_world(**spec: Any) -> World:
    """Two nodes of 8 H100, and a deployment of a model that fits on both together."""
    world = await World().start()
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(**{"model": LARGE, **spec}))
    return world


async def test_without_the_field_it_is_refused_and_the_field_is_named() -> None:
    world = await a_world()
    await world.settle()
    assert world.conditions()["Planned"] == ("False", "DoesNotFit")
    message = world.message("Planned")
    assert message.startswith("needs 2 nodes (16 x NVIDIA-H100-80GB-HBM3 per replica, TP 16, 2 nodes")
    assert message.endswith("spec.hardware.maxNodesPerReplica is 1: set it to 2 to run each replica over 2 nodes")
    (change,) = world.qd()["status"]["noFit"]["alternatives"]
    assert change["patch"] == '{"spec":{"hardware":{"maxNodesPerReplica":2}}}'
    assert world.names() == []


async def test_with_the_field_two_pods_on_two_nodes_are_one_replica() -> None:
    world = await a_world(hardware={"maxNodesPerReplica": 2})
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    leader, worker = world.api.all(PODS)
    assert {pod["spec"]["nodeName"] for pod in (leader, worker)} == {"gpu-1", "gpu-2"}
    command = leader["spec"]["containers"][0]["command"]
    assert command == worker["spec"]["containers"][0]["command"]
    assert command[2:8] == [
        "launch",
        "--group-size=2",
        "--group-rank=$(QWEN_NODE_RANK)",
        "--group-seconds=1200",
        "--group-leader=/qwen-group/leader",
        "--",
    ]
    assert {"--tp-size=16", "--nnodes=2", "--node-rank=$(QWEN_NODE_RANK)"} <= set(command)
    assert any(word.startswith("--dist-timeout=") for word in command)
    assert [_gpus(pod) for pod in (leader, worker)] == ["8", "8"]

    status = world.qd()["status"]
    assert status["plan"]["nodesPerReplica"] == 2
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (1, 1, "1/1")
    assert status["selector"].endswith("qwen-operator.dev/role=engine,qwen-operator.dev/routable=true")


async def test_two_stages_are_two_pods_of_one_replica() -> None:
    world = await a_world(hardware={"maxNodesPerReplica": 2}, parallelism={"pipeline": 2})
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    leader, worker = world.api.all(PODS)
    command = leader["spec"]["containers"][0]["command"]
    assert command == worker["spec"]["containers"][0]["command"]
    assert {"--tp-size=8", "--pp-size=2", "--nnodes=2", "--node-rank=$(QWEN_NODE_RANK)"} <= set(command)
    assert [_gpus(pod) for pod in (leader, worker)] == ["8", "8"]
    status = world.qd()["status"]
    assert status["plan"]["parallelism"] == {"tensor": 8, "pipeline": 2}
    assert (status["plan"]["gpusPerReplica"], status["readyReplicas"]) == (16, 1)


async def test_stages_that_the_model_cannot_have_are_refused_before_a_pod() -> None:
    world = await a_world(model="Qwen/Qwen3-Next-80B-A3B-Instruct", parallelism={"pipeline": 2})
    await world.settle()
    assert world.conditions()["Planned"] == ("False", "InvalidOverride")
    assert world.message("Planned").startswith("spec.parallelism.pipeline is 2: the operator plans stages of ")
    assert world.names() == []


def _gpus(pod: Manifest) -> str:
    return str(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


async def test_each_pod_has_one_budget() -> None:
    world = await a_world(hardware={"maxNodesPerReplica": 2})
    await world.settle()
    budgets = {item["metadata"]["name"]: item["spec"] for item in world.api.all(POD_DISRUPTION_BUDGETS)}
    assert {name: spec["minAvailable"] for name, spec in budgets.items()} == {"chat-engine": 1, "chat-engine-worker": 1}
    for pod in world.api.all(PODS):
        labels = pod["metadata"]["labels"].items()
        selected = [name for name, spec in budgets.items() if spec["selector"]["matchLabels"].items() <= labels]
        assert len(selected) == 1, pod["metadata"]["name"]


async def test_a_replica_on_one_node_has_no_second_budget() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert world.names(POD_DISRUPTION_BUDGETS) == ["chat-engine"]


@pytest.mark.parametrize(
    ("modes", "fits"),
    [
        (["ReadWriteOnce"], False),
        (["ReadWriteOncePod"], False),
        (["ReadWriteOnce", "ReadOnlyMany"], True),
        (["ReadWriteMany"], True),
        ([], True),
    ],
)
async def test_a_claim_that_one_node_alone_may_mount_is_refused_with_a_sentence(modes: list[str], fits: bool) -> None:
    world = await World().start()
    world.kubelet.place = True
    world.kubelet.report = {**REPORT, "weightBytes": 900_000_000_000}
    world.api.put(NODES, node("gpu-2"))
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights", "namespace": "team"},
        "spec": {"accessModes": modes},
        "status": {"phase": "Bound"},
    }
    world.api.put(PERSISTENT_VOLUME_CLAIMS, claim)
    spec: dict[str, Any] = {
        "source": {"uri": "pvc://weights/chat"},
        "model": "local",
        "hardware": {"maxNodesPerReplica": 2},
    }
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle()
    assert (world.conditions()["Planned"][0] == "True") is fits, world.message("Planned")
    if not fits:
        assert world.message("Planned").startswith(
            f'the claim "weights" has the access mode {modes[0]}, so only pods on one node can mount it, but a replica '
            "needs 2 nodes"
        )
    assert sum(name.endswith("-inspect") for name in {write.name for write in world.api.writes}) == 1


async def test_a_pod_of_others_with_the_name_of_a_worker_is_named_and_left_alone() -> None:
    world = await a_world(hardware={"maxNodesPerReplica": 2})
    await world.settle()
    worker = world.names()[1]
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(suspend=True))
    await world.settle()
    assert world.names() == []
    meta = {"name": worker, "namespace": "team", "labels": {"app": "another"}}
    spec = {"nodeName": "gpu-1", "containers": []}
    world.api.put(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(suspend=False))
    await world.settle()
    writes = len(world.api.writes)
    await world.wait(300)
    assert len(world.api.writes) == writes, "it does not try again and again"
    await world.wait(600)
    assert world.names() == [worker], "half of a replica goes after its time"
    assert world.conditions()["Ready"] == ("False", "ForeignObject")
    assert f"the Pod {worker} already exists" in world.message("Ready")
