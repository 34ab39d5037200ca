"""GPU nodes for the cluster: the labels of GPU feature discovery, and nodes that kwok simulates.

For API server, scheduler and controllers, a simulated node is a real Node object. kwok keeps it ready, and sets the
status of each pod on it to running.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.testbed.layout import LINK_ADDRESS, SIMULATED_POD_RANGE, Layout, RealNodeNames
from tests.testbed.sandbox import Sandbox

TAINT = "kwok.x-k8s.io/node"
"""The taint (value fake, NoSchedule) of simulated nodes, and the annotation by which kwok recognizes them."""
USUAL_TAINTS = {TAINT: "fake"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """The values of GPU feature discovery for one product. Memory is in MiB, as NVML reports it."""

    memory_mib: int
    compute: str
    family: str


PRODUCTS: Mapping[str, Gpu] = {
    "Tesla-T4": Gpu(15360, "7.5", "turing"),
    "Tesla-V100-SXM2-32GB": Gpu(32768, "7.0", "volta"),
    "NVIDIA-A10": Gpu(23028, "8.6", "ampere"),
    "NVIDIA-A10G": Gpu(23028, "8.6", "ampere"),
    "NVIDIA-A40": Gpu(46068, "8.6", "ampere"),
    "NVIDIA-A100-SXM4-40GB": Gpu(40960, "8.0", "ampere"),
    "NVIDIA-A100-SXM4-80GB": Gpu(81920, "8.0", "ampere"),
    "NVIDIA-A100-80GB-PCIe": Gpu(81920, "8.0", "ampere"),
    "NVIDIA-L4": Gpu(23034, "8.9", "ada-lovelace"),
    "NVIDIA-L40S": Gpu(46068, "8.9", "ada-lovelace"),
    "NVIDIA-H20": Gpu(97871, "9.0", "hopper"),
    "NVIDIA-H100-PCIe": Gpu(81559, "9.0", "hopper"),
    "NVIDIA-H100-80GB-HBM3": Gpu(81559, "9.0", "hopper"),
    "NVIDIA-H200": Gpu(143771, "9.0", "hopper"),
    "NVIDIA-B200": Gpu(183359, "10.0", "blackwell"),
}
REAL_NODE_PRODUCT = "NVIDIA-H100-80GB-HBM3"
REAL_NODE_GPUS = 8
MORE_PRODUCT = "NVIDIA-L40S"
MORE_GPUS = 1
"""What each real node but the first claims: a replica that needs two of these GPUs needs two of these nodes."""
POOL_LABEL = "qwen-testbed/pool"
"""The label, and the taint, of nodes that only pods run on which ask for them."""
MORE_POOL = "real"


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal simulated nodes."""

    product: str
    gpus: int
    nodes: int

    @classmethod
    def parse(cls, text: str) -> "Pool":
        """The pool of `PRODUCT=GPUSxNODES`, for example NVIDIA-L4=8x2. Raises ValueError, which says what is wrong."""
        match = re.fullmatch(r"([^=]+)=(\d{1,2})x(\d{1,4})", text)
        if not match or "0" in match.group(2, 3):
            raise ValueError(f"{text!r} is not PRODUCT=GPUSxNODES, as in NVIDIA-L4=8x2")
        product = match[1]
        if product not in PRODUCTS:
            raise ValueError(
                f"{product!r} in {text!r} is not a known GPU product; the known products are "
                f"{', '.join(sorted(PRODUCTS))}"
            )
        return cls(product, int(match[2]), int(match[3]))

    def names(self) -> list[str]:
        """The names of its nodes. They are the same at each start, so that a second start finds the nodes."""
        return [f"{self.product.lower()}-{self.gpus}x-{number}" for number in range(1, self.nodes + 1)]


def gpu_labels(product: str, gpus: int) -> dict[str, str]:
    """The node labels of GPU feature discovery for a product of PRODUCTS."""
    gpu = PRODUCTS[product]
    major, minor = gpu.compute.split(".")
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(gpu.memory_mib),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.family": gpu.family,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/mig.capable": str(product.startswith(("NVIDIA-A100", "NVIDIA-H", "NVIDIA-B"))).lower(),
    }


def node_manifest(
    name: str,
    labels: Mapping[str, str],
    gpus: int,
    *,
    taints: Mapping[str, str] = USUAL_TAINTS,
    pod_range: str = "",
    resources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A Node for kwok to play, with room for real pod requests; `labels` are added to the usual ones.

    taints: keys and values, all with the effect NoSchedule. pod_range: where its pods get their addresses from; not
    given: from SIMULATED_POD_RANGE. resources: what it offers besides whole GPUs.
    """
    room = {"cpu": "192", "memory": "2Ti", "ephemeral-storage": "4Ti", "pods": "110"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
    room |= resources or {}
    usual = {
        "type": "kwok",
        "kubernetes.io/hostname": name,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
    }
    spec: dict[str, Any] = {
        "taints": [{"key": key, "value": value, "effect": "NoSchedule"} for key, value in taints.items()]
    }
    if pod_range:
        spec |= {"podCIDR": pod_range, "podCIDRs": [pod_range]}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**usual, **labels}, "annotations": {TAINT: "fake"}},
        "spec": spec,
        "status": {"capacity": room, "allocatable": room},
    }


def start_kwok(at: Layout, sandbox: Sandbox) -> None:
    """Starts kwok unless it runs. It only manages nodes with its annotation."""
    arguments = [
        f"--kubeconfig={at.kubeconfig_of('kwok')}",
        f"--config={at.libexec / 'kwok-stages.yaml'}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={TAINT}=fake",
        "--node-lease-duration-seconds=40",
        # These are in the test bed's own networks, so calls to a simulated pod never leave this machine.
        f"--node-ip={LINK_ADDRESS}",
        f"--cidr={SIMULATED_POD_RANGE}",
    ]
    sandbox.start("kwok", arguments)


def real_node_patch(node: RealNodeNames) -> dict[str, Any]:
    """A strategic merge patch of a real node's status that advertises its GPUs."""
    room = {"nvidia.com/gpu": str(REAL_NODE_GPUS if node.number == 1 else MORE_GPUS)}
    return {"status": {"capacity": room, "allocatable": room}}


def real_node_labels(node: RealNodeNames) -> dict[str, str]:
    if node.number == 1:
        return gpu_labels(REAL_NODE_PRODUCT, REAL_NODE_GPUS)
    return {**gpu_labels(MORE_PRODUCT, MORE_GPUS), POOL_LABEL: MORE_POOL}


def real_node_taints(node: RealNodeNames) -> list[dict[str, str]]:
    return [] if node.number == 1 else [{"key": POOL_LABEL, "value": MORE_POOL, "effect": "NoSchedule"}]
