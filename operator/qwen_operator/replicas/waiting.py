"""What the cluster adds to what a pod's own status says: its node is silent or gone, its pool has no node. Pure."""

from dataclasses import replace

from qwen_operator.actions.types import Nodes, Observed, Target
from qwen_operator.api.conditions import Reason
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.replicas.groups import node_lost
from qwen_operator.replicas.node_health import node_of
from qwen_operator.replicas.pod_state import PodState


def explained(state: PodState, observed: Observed, running: Target | None) -> PodState:
    """The state with the reason that says most."""
    if state.deleting or state.ready:
        return state
    if reason := _node_lost(state, observed.nodes):
        return replace(state, reason=Reason.NODE_LOST, message=reason)
    if running is None or state.reason is not Reason.WAITING_FOR_GPUS:
        return state
    product = running.plan.gpu_product
    if observed.nodes.names and awaits_node(observed.inventory, product):
        text = f"no node with {product} exists yet: {state.name} waits for one of the declared GPU pool and then starts"
        return replace(state, reason=Reason.WAITING_FOR_NODE, message=text)
    return state


def awaits_node(inventory: Inventory, product: str) -> bool:
    """Whether the product is known only from a declared pool: no node has it now."""
    known = [item for item in inventory.products if item.product == product]
    return any(item.declared for item in known) and not any(item.nodes for item in known)


def _node_lost(state: PodState, nodes: Nodes) -> str:
    node = node_of(state.pod)
    if node_lost(state, nodes):
        return f"node {node} does not exist any more: {state.name} is replaced"
    if node in nodes.silent:
        return (
            f"node {node} does not answer: {state.name} is replaced as soon as Kubernetes gives the node up, "
            "by default after 5 minutes"
        )
    return ""


def on_the_way(state: PodState) -> bool:
    """Not ready, but nothing says that it will not be."""
    return state.on_the_way or (not state.ready and state.reason is Reason.WAITING_FOR_NODE)
