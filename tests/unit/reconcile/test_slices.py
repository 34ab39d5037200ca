"""Slices and shared GPUs in the life of a deployment: requests, placement, quota, status and words."""

from __future__ import annotations

from typing import Any

from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest
from tests.unit.world import World, deployment, node

MIG, H100 = "nvidia.com/mig-3g.40gb", "NVIDIA-H100-80GB-HBM3"
SLICE = f"{H100}-MIG-3g.40gb"


def cut(name: str = "gpu-1", **labels: str) -> Manifest:
    """A node with two slices."""
    made = node(name)
    made["metadata"]["labels"] |= {f"{MIG}.product": SLICE, f"{MIG}.memory": "40320", f"{MIG}.count": "2"} | labels
    for part in ("allocatable", "capacity"):
        made["status"][part] = {**made["status"].get(part, {}), "nvidia.com/gpu": "0", MIG: "2"}
    return made


async def started(**spec: Any) -> World:
    world = await World().start()
    for name in world.names(NODES):
        world.api.put(NODES, cut(name))
    world.api.put(QWENDEPLOYMENTS, deployment(hardware={"resourceName": MIG}, **spec))
    await world.settle()
    return world


def engine(world: World) -> Manifest:
    [pod] = world.api.all(PODS)
    return pod


async def test_a_replica_takes_one_slice_and_says_so() -> None:
    world = await started()
    pod = engine(world)
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {MIG: "1"}
    assert resources["requests"][MIG] == "1"
    assert "nvidia.com/gpu" not in resources["requests"]
    assert pod["spec"]["nodeSelector"] == {f"{MIG}.product": SLICE}
    assert {"key": MIG, "operator": "Exists"} in pod["spec"]["tolerations"]
    plan = world.qd()["status"]["plan"]
    assert (plan["gpuProduct"], plan["resourceName"], plan["share"]) == (SLICE, MIG, "MIG")
    assert "its 40320 MiB for itself" in world.message("Planned")
    assert world.qd()["status"]["summary"]["gpus"] == "1xH100-80GB-MIG-3g.40gb"


async def test_a_quota_on_slices_holds_the_pod_back() -> None:
    world = await World().start()
    for name in world.names(NODES):
        world.api.put(NODES, cut(name))
    hard = {f"requests.{MIG}": "0"}
    quota = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": hard}, "status": {"hard": hard}}
    world.api.put(RESOURCE_QUOTAS, {"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    world.api.put(QWENDEPLOYMENTS, deployment(hardware={"resourceName": MIG}))
    await world.settle()
    assert world.names() == []
    assert world.conditions()["Ready"] == ("False", "QuotaExceeded")
    assert f"requests.{MIG}" in world.message("Ready")


async def test_a_cluster_without_such_slices_says_what_it_offers() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(hardware={"resourceName": MIG}))
    await world.settle()
    assert world.names() == []
    assert world.conditions()["Planned"] == ("False", "NoGpus")
    assert f"spec.hardware.resourceName is {MIG}, but no node offers it" in world.message("Planned")
    assert "the nodes offer nvidia.com/gpu" in world.message("Planned")
