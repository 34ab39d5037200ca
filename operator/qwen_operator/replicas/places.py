"""What engine pods ask of a node, and what nodes have left. Pure.

The operator watches the nodes and its own pods. The pods of others it reads only on nodes that it is about to use.
Where it may not, a node that looks free may be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from qwen_operator import objects
from qwen_operator.api.pod import GPU_RESOURCE
from qwen_operator.hardware.nodes import Taint
from qwen_operator.hardware.offers import MIG_RESOURCE, quantity
from qwen_operator.manifests.multi_node import topology_of
from qwen_operator.manifests.names import (
    ENGINE_CONTAINER,
    ENGINE_PORT,
    Manifest,
)
from qwen_operator.replicas.node_affinity import required_terms, takes
from qwen_operator.replicas.requests import resources_of

# Not every resource of NVIDIA is a GPU: network cards have names such as nvidia.com/cx7_rdma.
_GPUS = (GPU_RESOURCE, MIG_RESOURCE)
_KEEPS_AWAY = ("NoSchedule", "NoExecute")
# Kubernetes sets it beside spec.unschedulable. Pods without a toleration stay away from such nodes anyway.
_OWN_TAINT = "node.kubernetes.io/unschedulable"
HOST_PORT = f"port {ENGINE_PORT}"
"""What a pod on the network of its node takes of it, as if it were a resource: a node has one."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one pod asks of its node: `gpus` of a resource, on a node with these labels.

    `more`: what else it takes, by resource. `topology`: a label whose value the nodes of its replica must share, or "".
    `terms`: those of its required node affinity.
    """

    resource: str
    gpus: int
    selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, object]]
    more: Mapping[str, int] = field(default_factory=dict)
    topology: str = ""
    terms: tuple[objects.Object, ...] = ()

    @property
    def takes(self) -> dict[str, int]:
        """How much of each resource it takes."""
        return {self.resource: self.gpus, **self.more}

    def __str__(self) -> str:
        parts = [f"{self.gpus} free {self.resource}", *(f"{number} {name}" for name, number in self.more.items())]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


@dataclass(frozen=True, slots=True)
class Place:
    """A node: its labels and taints, and how much of each resource is offered and free."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    offered: Mapping[str, int]
    free: dict[str, int] = field(default_factory=dict)

    def suits(self, need: Need) -> bool:
        """Whether the pod may run here, whatever else does."""
        labelled = all(self.labels.get(key) == value for key, value in need.selector.items())
        tolerated = all(any(taint.tolerated_by(one) for one in need.tolerations) for taint in self.taints)
        return labelled and tolerated and takes(need.terms, self.name, self.labels)

    def has(self, need: Need) -> bool:
        """Whether so many are free."""
        return all(self.free.get(name, 0) >= number for name, number in need.takes.items())

    def slots(self, need: Need, *, distinct: bool) -> int:
        """How many of a replica's pods fit here."""
        if distinct or not need.gpus:
            return int(self.has(need))
        return max(0, min(self.free.get(name, 0) // number for name, number in need.takes.items() if number))

    def take(self, amounts: Mapping[str, int]) -> None:
        """So much of each resource is used here."""
        for name, number in amounts.items():
            self.free[name] = self.free.get(name, 0) - number


@dataclass(frozen=True, slots=True)
class Neighbours:
    """All nodes, and all engine pods that the operator sees, also those of other QwenDeployments.

    Of the pods without a node only those that a QwenDeployment controls: any other tenant could make such pods.

    `others`: pods of others, on the nodes where they were read. `read`: the nodes whose pods of others are known; None
    if the operator may not read them.
    `distinct_nodes`: no two pods of a replica may be on one node. `failures`: how often in a row the deployment that
    asks could not place a replica, although nodes seemed to have room.
    """

    nodes: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    distinct_nodes: bool = True
    failures: int = 0
    others: tuple[Manifest, ...] = ()
    read: frozenset[str] | None = None


def places_of(neighbours: Neighbours) -> list[Place]:
    """The nodes that take pods, with what these pods leave free."""
    places: dict[str, Place] = {}
    for node in neighbours.nodes:
        spec = objects.mapping(node, "spec")
        if spec.get("unschedulable") or objects.condition(node, "Ready").get("status") in ("False", "Unknown"):
            continue
        name = str(objects.mapping(node, "metadata").get("name"))
        status = objects.mapping(node, "status")
        amounts = objects.mapping(status, "allocatable" if "allocatable" in status else "capacity")
        offered = {str(key): number for key, value in amounts.items() if (number := quantity(value)) is not None}
        labels = {str(key): str(value) for key, value in objects.labels(node).items()}
        offered[HOST_PORT] = 1
        places[name] = Place(name, labels, tuple(_taints(spec)), offered, dict(offered))
    for pod in neighbours.pods:
        place = places.get(objects.node_of(pod))
        if place is not None and not objects.has_ended(pod):
            place.take(need_of(pod).takes)
    for pod in neighbours.others:
        if (place := places.get(objects.node_of(pod))) is not None:
            place.take(used_by(pod))
    return list(places.values())


def used_by(pod: Manifest) -> dict[str, int]:
    """What a pod of somebody else takes of its node: GPUs, other resources of plugins, and the engines' port."""
    used = {name: ceil(number) for name, number in resources_of(pod).items() if "/" in name}
    ports = (port for one in objects.members(pod, "spec", "containers") for port in objects.members(one, "ports"))
    if any(port.get("hostPort") == ENGINE_PORT for port in ports):
        used[HOST_PORT] = 1
    return used


def _taints(spec: Mapping[str, object]) -> Iterable[Taint]:
    for taint in objects.members(spec, "taints"):
        key, effect = str(taint.get("key")), str(taint.get("effect"))
        if effect in _KEEPS_AWAY and key != _OWN_TAINT:
            yield Taint(key, str(taint.get("value") or ""), effect)


def need_of(pod: Manifest) -> Need:
    """What an engine pod asks of its node."""
    engine = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    limits = objects.mapping(engine, "resources", "limits")
    gpus = {str(key): quantity(value) or 0 for key, value in limits.items() if str(key).startswith(_GPUS)}
    resource, number = next(iter(sorted(gpus.items())), (GPU_RESOURCE, 0))
    selector = {str(key): str(value) for key, value in objects.mapping(pod, "spec", "nodeSelector").items()}
    more = {
        str(key): quantity(value) or 0
        for key, value in limits.items()
        if "/" in str(key) and not str(key).startswith(_GPUS)
    }
    if objects.mapping(pod, "spec").get("hostNetwork") is True:
        more[HOST_PORT] = 1
    topology, must_share = topology_of(pod)
    tolerations = tuple(objects.members(pod, "spec", "tolerations"))
    return Need(resource, number, selector, tolerations, more, topology if must_share else "", required_terms(pod))
