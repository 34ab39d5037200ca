"""What nodes mean for the pods on them: cordoned, silent, out of service, gone. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from qwen_operator.actions.types import Nodes
from qwen_operator.manifests.names import Manifest

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
UNREACHABLE = "node.kubernetes.io/unreachable"
# The taints by which kubectl cordon, the cluster autoscaler and Karpenter say that a node is about to be emptied.
_LEAVING = (UNSCHEDULABLE, "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted")


def node_states(nodes: Iterable[Manifest]) -> Nodes:
    """The sets of node names that decisions need."""
    names: dict[str, Manifest] = {node["metadata"]["name"]: node for node in nodes}
    return Nodes(
        names=frozenset(names),
        cordoned=frozenset(name for name, node in names.items() if _cordoned(node)),
        silent=frozenset(name for name, node in names.items() if _silent(node)),
        out_of_service=frozenset(name for name, node in names.items() if OUT_OF_SERVICE in _taints(node)),
    )


def _taints(node: Mapping[str, Any]) -> set[str]:
    return {str(taint.get("key")) for taint in (node.get("spec") or {}).get("taints") or ()}


def _cordoned(node: Mapping[str, Any]) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable")) or not _taints(node).isdisjoint(_LEAVING)


def _silent(node: Mapping[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = next((str(item.get("status")) for item in conditions if item.get("type") == "Ready"), "True")
    return ready == "Unknown" or UNREACHABLE in _taints(node)


def node_of(pod: Manifest) -> str:
    """The node that the pod is bound to, "" before that."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def stays_when_cordoned(pod: Manifest) -> bool:
    """Whether a pod may be bound to cordoned nodes: its successor might come back to the same one, again and again."""
    tolerations = (pod.get("spec") or {}).get("tolerations") or ()
    return any(
        one.get("key") == UNSCHEDULABLE or (one.get("operator") == "Exists" and not one.get("key"))
        for one in tolerations
    )
