"""What the cluster adds to what a pod's own status says: its node is silent or gone, its pool has no node. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.pod_state import PodState


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster offers: the health of its nodes, its GPUs, and the product that the plan wants, "" without."""

    nodes: NodeHealth
    inventory: Inventory
    gpu_product: str = ""


def explained(state: PodState, cluster: Cluster) -> PodState:
    """The state with the reason that says most."""
    if state.deleting or state.ready:
        return state
    if reason := _node_lost(state, cluster.nodes):
        return replace(state, reason=Reason.NODE_LOST, message=reason)
    if not cluster.gpu_product or state.reason is not Reason.WAITING_FOR_GPUS:
        return state
    if cluster.nodes.names and awaits_node(cluster.inventory, cluster.gpu_product):
        text = (
            f"no node with {cluster.gpu_product} exists yet: {state.name} waits for one of the declared GPU pool and "
            "then starts"
        )
        return replace(state, reason=Reason.WAITING_FOR_NODE, message=text)
    return state


def awaits_node(inventory: Inventory, product: str) -> bool:
    """Whether the product is known only from a declared pool: no node has it now."""
    known = [item for item in inventory.products if item.product == product]
    return any(item.declared for item in known) and not any(item.nodes for item in known)


def _node_lost(state: PodState, nodes: NodeHealth) -> str:
    if state.started and nodes.gone(state.node):
        return f"node {state.node} does not exist any more: {state.name} is replaced"
    if state.node in nodes.silent:
        return (
            f"node {state.node} does not answer: {state.name} is replaced as soon as Kubernetes gives the node up, "
            "by default after 5 minutes"
        )
    return ""
