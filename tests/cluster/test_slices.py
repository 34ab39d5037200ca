"""MIG slices, shared GPUs and GPUs of a DRA driver on the real API server and scheduler, with simulated nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.qd import SIMULATED, pods, simulated, wait_condition, wait_ready
from tests.testbed.cluster import Cluster, OwnNodes, Parts
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
A100, L4 = "NVIDIA-A100-SXM4-40GB", "NVIDIA-L4"
MIG, SHARED = "nvidia.com/mig-3g.20gb", "nvidia.com/gpu.shared"
SLICE = f"{A100}-MIG-3g.20gb"


def placed(nodes: OwnNodes, space: str, name: str, resource: str, **spec: object) -> Manifest:
    """A QwenDeployment on parts of the GPUs of these nodes."""
    manifest = simulated(space, name, "", pod=nodes.pod, **spec)
    return {**manifest, "spec": {**manifest["spec"], "hardware": {"resourceName": resource}}}


@pytest.fixture
def slices(bed: Cluster) -> Iterator[OwnNodes]:
    """A node whose only A100 is cut into two slices."""
    labels = {
        f"{MIG}.product": SLICE,
        f"{MIG}.memory": "20096",
        f"{MIG}.count": "2",
        "nvidia.com/mig.strategy": "mixed",
    }
    with bed.own_nodes(Pool(A100, 1, 1), parts=Parts({MIG: "2", "nvidia.com/gpu": "0"}, labels)) as nodes:
        yield nodes


def test_replicas_take_slices_until_there_is_none(kubectl: Kubectl, slices: OwnNodes, space: str) -> None:
    kubectl.apply(placed(slices, space, "cut", MIG, replicas=2))

    obj = wait_ready(kubectl, space, "cut")

    plan = obj["status"]["plan"]
    assert (plan["gpuProduct"], plan["resourceName"], plan["share"]) == (SLICE, MIG, "MIG")
    assert "its 20096 MiB for itself" in condition(obj, "Planned")["message"]
    wait_for("both have a node", lambda: all(pod["spec"].get("nodeName") for pod in pods(kubectl, space, "cut")), 30)
    for pod in pods(kubectl, space, "cut"):
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {MIG: "1"}
        assert pod["spec"]["nodeSelector"][f"{MIG}.product"] == SLICE
    row = kubectl.run("get", "qd", "cut", "-n", space).splitlines()[1].split()
    assert row[2] == "1xA100-40GB-MIG-3g.20gb"

    kubectl.apply(placed(slices, space, "late", MIG))
    late = wait_condition(kubectl, space, "late", ("Ready", "False", "WaitingForGpus"))
    assert MIG in condition(late, "Ready")["message"]


def test_a_quota_on_slices_is_named(kubectl: Kubectl, slices: OwnNodes, space: str) -> None:
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "slices", "namespace": space},
            "spec": {"hard": {f"requests.{MIG}": "0"}},
        }
    )
    wait_for(
        "the quota counts", lambda: (kubectl.get("quota", "slices", space) or {}).get("status", {}).get("hard"), 30
    )
    kubectl.apply(placed(slices, space, "none", MIG))

    obj = wait_condition(kubectl, space, "none", ("Ready", "False", "QuotaExceeded"))

    assert f"allows 0 requests.{MIG}" in condition(obj, "Ready")["message"]


def test_two_engines_share_one_gpu(kubectl: Kubectl, bed: Cluster, space: str) -> None:
    labels = {"nvidia.com/gpu.replicas": "2", "nvidia.com/gpu.sharing-strategy": "time-slicing"}
    parts = Parts({SHARED: "2", "nvidia.com/gpu": "0"}, labels)
    with bed.own_nodes(Pool(L4, 1, 1), parts=parts) as nodes:
        kubectl.apply(placed(nodes, space, "two", SHARED, replicas=2, contextTokens=2048))

        obj = wait_ready(kubectl, space, "two")

        plan = obj["status"]["plan"]
        assert (plan["gpuProduct"], plan["share"]) == (f"{L4}-SHARED", "TimeSlicing")
        # The chart of the test bed sets --max-total-tokens itself. tests/unit/planning/test_sharing.py has the limit.
        assert "--mem-fraction-static=0.898" in plan["args"]
        assert "2 pods share one NVIDIA-L4" in condition(obj, "Planned")["message"]
        wait_for(
            "both have a node",
            lambda: {pod["spec"].get("nodeName") for pod in pods(kubectl, space, "two")} == set(nodes.names),
            30,
        )


def test_a_mapped_device_class_schedules_the_pods_of_a_plan(kubectl: Kubectl, bed: Cluster, space: str) -> None:
    """The node has no nvidia.com/gpu: a simulated driver offers its GPU by DRA, and its DeviceClass maps the name."""
    with bed.own_nodes(Pool(L4, 1, 1), parts=Parts({}, {})) as nodes, driver(kubectl, nodes.names[0]):
        # The plan comes from the other nodes with this product; the node selector leaves only this one.
        pod = {**nodes.pod, "tolerations": [*nodes.pod["tolerations"], *SIMULATED]}
        kubectl.apply(simulated(space, "dra", L4, pod=pod, contextTokens=2048))

        wait_ready(kubectl, space, "dra")

        [pod] = pods(kubectl, space, "dra")
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        assert pod["spec"]["nodeName"] == nodes.names[0]
        [claim] = kubectl.list("resourceclaims", space, "")
        [result] = claim["status"]["allocation"]["devices"]["results"]
        assert (result["driver"], result["device"]) == ("gpu.nvidia.com", "gpu-0")


@contextmanager
def driver(kubectl: Kubectl, node: str) -> Iterator[None]:
    """What NVIDIA's DRA driver writes for a node with one GPU, and a DeviceClass with the name of whole GPUs."""
    device = {
        "name": "gpu-0",
        "attributes": {"type": {"string": "gpu"}, "productName": {"string": "NVIDIA L4"}},
        "capacity": {"memory": {"value": "23034Mi"}},
    }
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    expression = "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
    objects: list[Manifest] = [
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"{node}-gpus"},
            "spec": {"driver": "gpu.nvidia.com", "pool": pool, "nodeName": node, "devices": [device]},
        },
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": "gpu.nvidia.com"},
            "spec": {"selectors": [{"cel": {"expression": expression}}], "extendedResourceName": "nvidia.com/gpu"},
        },
    ]
    for manifest in objects:
        kubectl.apply(manifest)
    try:
        yield
    finally:
        for manifest in objects:
            kubectl.run("delete", manifest["kind"], manifest["metadata"]["name"], "--wait=false")
