"""What an administrator sets for the network between the pods of a replica over several nodes. Pure.

A tenant's spec cannot set any of it: the network of the host and IPC_LOCK leave the Pod Security Standard `baseline`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwen_operator import objects
from qwen_operator.hardware.pools import GpuPool
from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.quantities import canonical, canonical_quantities
from qwen_operator.planning.types import Plan

IPC_LOCK = "IPC_LOCK"
HOST_PORTS = {"http": names.ENGINE_PORT, "progress": 8001, "dist": 20000, "group": 20001}
"""The fixed ports of an engine over several nodes. On the network of the host they are the node's."""

_GIB_IN_KIB = 1024 * 1024
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_LOCKS_MEMORY = "--group-locks-memory"
# Devices for RDMA, such as rdma/hca, nvidia.com/cx7_rdma or example.com/ib0. Other network cards need no locked memory.
_RDMA = re.compile(r"rdma|hca|infiniband|roce|mlnx|mellanox|(?<![a-z])(ib|efa)(?![a-z])", re.ASCII)


class TopologyPolicy(StrEnum):
    """Whether the pods of a replica only like to share a block of nodes, or must."""

    PREFERRED = "Preferred"
    REQUIRED = "Required"


@dataclass(frozen=True, slots=True)
class MultiNode:
    """`engine.multiNode` of the chart, or `multiNode` of a pool.

    `interface`: the network interfaces of NCCL and gloo, with commas between them; "" if they choose. `resources`: what
    each pod requests besides GPUs, such as rdma/hca. `ipc_lock`: the engine may lock any amount of memory.
    `host_network`: the pods use the network of their nodes. `shared_memory_gib_per_gpu`: the size of /dev/shm.
    `topology_key`: a label of nodes, whose value the nodes of a replica should share, or must.
    """

    interface: str = ""
    resources: Mapping[str, int] = field(default_factory=dict)
    ipc_lock: bool = False
    host_network: bool = False
    shared_memory_gib_per_gpu: int = 1
    topology_key: str = ""
    topology_policy: TopologyPolicy = TopologyPolicy.PREFERRED

    def described(self) -> str:
        """What the pods get, in words; "" for nothing."""
        usual = MultiNode()
        parts = [
            *([f"the interface {self.interface}"] if self.interface else []),
            *(f"{number} {name}" for name, number in self.resources.items()),
            *(["IPC_LOCK, as user 0"] if self.ipc_lock else []),
            *(["the network of its node"] if self.host_network else []),
            *(
                [f"{self.shared_memory_gib_per_gpu} GiB of /dev/shm for each GPU"]
                if self.shared_memory_gib_per_gpu != usual.shared_memory_gib_per_gpu
                else []
            ),
            *([f"nodes that share {self.topology_key} ({self.topology_policy})"] if self.topology_key else []),
        ]
        where = " (not in namespaces that enforce the Pod Security Standard baseline or restricted)"
        return "; ".join(parts) + (where if self.beyond_baseline else "")

    @property
    def needs_locked_memory(self) -> bool:
        """Whether the engine will lock memory, as RDMA does: it may, or has a device whose name says so."""
        return self.ipc_lock or any(_RDMA.search(name.lower()) for name in self.resources)

    @property
    def beyond_baseline(self) -> tuple[str, ...]:
        """The settings that the Pod Security Standard `baseline` forbids, by their names in the chart."""
        given = (("hostNetwork", self.host_network), ("ipcLock", self.ipc_lock))
        return tuple(f"multiNode.{name}" for name, on in given if on)


@dataclass(frozen=True, slots=True)
class MultiNodes:
    """The settings for all products, and those of the pools that have their own."""

    chart: MultiNode = field(default_factory=MultiNode)
    pools: tuple[tuple[GpuPool, MultiNode], ...] = ()

    def of(self, plan: Plan) -> MultiNode:
        """The settings for the product of the plan. A pool whose nodes the plan selects comes before others of it."""
        named = [
            (len(pool.node_selector), given)
            for pool, given in self.pools
            if (pool.product, pool.resource_name) == (plan.gpu_product, plan.resource_name)
            and pool.node_selector.items() <= plan.selector.items()
        ]
        return max(named, key=lambda one: one[0])[1] if named else self.chart

    @property
    def beyond_baseline(self) -> tuple[str, ...]:
        """Those of `MultiNode.beyond_baseline` that any replica may have."""
        return tuple(
            sorted({name for one in (self.chart, *(own for _, own in self.pools)) for name in one.beyond_baseline})
        )


def connected(template: Manifest, plan: Plan, settings: MultiNodes) -> Manifest:
    """The template of `engine_template` with the settings for its product. That of a replica on one node stays."""
    given = settings.of(plan)
    if plan.nodes_per_replica == 1 or given == MultiNode():
        return template
    spec = template["spec"]
    changed = {
        **spec,
        "containers": [
            _engine(one, plan, given) if one["name"] == names.ENGINE_CONTAINER else one for one in spec["containers"]
        ],
        "volumes": [_volume(one, plan, given) for one in spec["volumes"]],
    }
    if given.host_network:
        # Without this policy, the pod would ask the DNS servers of the node, which know no names of the cluster.
        changed |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    metadata = template["metadata"]
    if given.topology_key:
        topology = {names.ANNOTATION_TOPOLOGY: f"{given.topology_key}={given.topology_policy}"}
        metadata = {**metadata, "annotations": {**metadata["annotations"], **topology}}
    return {**template, "metadata": metadata, "spec": canonical_quantities(changed)}


def _engine(container: Mapping[str, Any], plan: Plan, given: MultiNode) -> Manifest:
    changed = dict(container)
    present = {variable["name"] for variable in container["env"]}
    wanted = (
        {"NCCL_SOCKET_IFNAME": f"={given.interface}", "GLOO_SOCKET_IFNAME": given.interface} if given.interface else {}
    )
    more = [{"name": name, "value": value} for name, value in wanted.items() if name not in present]
    changed["env"] = [*container["env"], *more]
    changed["resources"] = _resources(container["resources"], plan, given)
    if given.needs_locked_memory:
        end = container["command"].index("--")
        changed["command"] = [*container["command"][:end], _LOCKS_MEMORY, *container["command"][end:]]
    if given.host_network:
        changed["ports"] = [
            {"name": name, "containerPort": port, "hostPort": port, "protocol": "TCP"}
            for name, port in HOST_PORTS.items()
        ]
    if given.ipc_lock:
        # Linux gives a capability of a container only to a process of root: Kubernetes sets no ambient capabilities.
        changed["securityContext"] = {
            **container["securityContext"],
            "capabilities": {"drop": ["ALL"], "add": [IPC_LOCK]},
            "runAsUser": 0,
            "runAsNonRoot": False,
        }
    return changed


def _resources(resources: Mapping[str, Any], plan: Plan, given: MultiNode) -> Manifest:
    """The resources of the container, and those of the network. Those that the spec names stay."""
    more = {name: str(number) for name, number in given.resources.items()}
    requests = {**more, **resources["requests"]}
    larger = _shared_gib(plan, given) - plan.gpus_per_node
    planned = canonical(f"{plan.host_memory_bytes // 1024}Ki")
    if plan.shm_bytes and larger > 0 and requests["memory"] == planned:
        # What is in /dev/shm counts as memory of the pod.
        requests["memory"] = f"{plan.host_memory_bytes // 1024 + larger * _GIB_IN_KIB}Ki"
    return {"requests": requests, "limits": {**more, **resources["limits"]}}


def _shared_gib(plan: Plan, given: MultiNode) -> int:
    return given.shared_memory_gib_per_gpu * plan.gpus_per_node


def _volume(volume: Mapping[str, Any], plan: Plan, given: MultiNode) -> Manifest:
    if volume["name"] != "shm":
        return dict(volume)
    return {**volume, "emptyDir": {**volume["emptyDir"], "sizeLimit": f"{_shared_gib(plan, given)}Gi"}}


def topology_of(pod: Mapping[str, Any]) -> tuple[str, bool]:
    """The label of nodes whose value the pods of a replica share, "" if none is set, and whether they must."""
    key, _, policy = str(objects.annotations(pod).get(names.ANNOTATION_TOPOLOGY) or "").partition("=")
    return key, policy == TopologyPolicy.REQUIRED


def near(pod: Manifest, replica: str) -> Manifest:
    """The pod, near the others of its replica if its template says so. `pod` stays as it is."""
    key, must = topology_of(pod)
    if not key:
        return pod
    term: Manifest = {"labelSelector": {"matchLabels": {names.LABEL_REPLICA: replica}}, "topologyKey": key}
    affinity = dict(pod["spec"].get("affinity") or {})
    together = dict(affinity.get("podAffinity") or {})
    kind, entry = (_REQUIRED, term) if must else (_PREFERRED, {"weight": 100, "podAffinityTerm": term})
    together[kind] = [*(together.get(kind) or ()), entry]
    return {**pod, "spec": {**pod["spec"], "affinity": {**affinity, "podAffinity": together}}}
