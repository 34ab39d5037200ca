"""Adds what the cluster shows to the state of a pod: its node is silent or gone, or its pool has no node. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.pod_state import PodState


@dataclass(frozen=True, slots=True)
class Cluster:
    """The health of the nodes, the GPUs, and the product of the plan ("" if there is no plan)."""

    nodes: NodeHealth
    inventory: Inventory
    gpu_product: str = ""


def explained(state: PodState, cluster: Cluster) -> PodState:
    """The state with the most helpful reason."""
    if state.deleting or state.ready:
        return state
    if message := _node_lost(state, cluster.nodes):
        return replace(state, reason=Reason.NODE_LOST, message=message)
    if not cluster.gpu_product or state.reason is not Reason.WAITING_FOR_GPUS:
        return state
    if cluster.nodes.names and awaits_node(cluster.inventory, cluster.gpu_product):
        message = (
            f"no node with {cluster.gpu_product} exists yet: {state.name} waits for a node of the declared GPU pool "
            "and then starts by itself"
        )
        return replace(state, reason=Reason.WAITING_FOR_NODE, message=message)
    return state


def awaits_node(inventory: Inventory, product: str) -> bool:
    """Whether the product is only in a declared pool, and no node has it now."""
    entries = [item for item in (*inventory.products, *inventory.parts) if item.product == product]
    return any(entry.declared for entry in entries) and not any(entry.nodes for entry in entries)


def growth(inventory: Inventory, product: str) -> int:
    """How many nodes with the product its declared pool may still grow by."""
    declared = [item for item in inventory.products if item.product == product and item.declared]
    return max((item.full_nodes - item.nodes for item in declared), default=0)


def node_lost(node: str, name: str) -> str:
    """The message about a pod or replica whose node is gone."""
    return f"node {node} does not exist any more: the operator replaces {name}"


def _node_lost(state: PodState, nodes: NodeHealth) -> str:
    if state.started and nodes.gone(state.node):
        return node_lost(state.node, state.name)
    if state.node in nodes.silent:
        return (
            f"node {state.node} does not answer: the operator replaces {state.name} as soon as Kubernetes gives up the "
            "node, by default after 5 minutes"
        )
    return ""
