"""The states of nodes that matter for the pods on them: cordoned, silent, out of service, gone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
UNREACHABLE = "node.kubernetes.io/unreachable"
# With these taints, kubectl cordon, the cluster autoscaler and Karpenter announce that pods must leave a node.
_LEAVING = (UNSCHEDULABLE, "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted")


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Names of nodes. `names` are all existing nodes; it is empty if the operator may not read nodes.

    `cordoned`: no new pod should run there, and the existing pods must leave. `silent`: the kubelet does not answer.
    `out_of_service`: a person declared that nothing runs there any more.
    """

    names: frozenset[str] = frozenset()
    cordoned: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    out_of_service: frozenset[str] = frozenset()

    def gone(self, name: str) -> bool:
        """Whether the node of a pod no longer exists. `name` must be a node to which a pod was bound."""
        return bool(name) and bool(self.names) and name not in self.names


def node_health(nodes: Iterable[Manifest]) -> NodeHealth:
    """The sets of node names that decisions need."""
    by_name: dict[str, Manifest] = {node["metadata"]["name"]: node for node in nodes}
    return NodeHealth(
        names=frozenset(by_name),
        cordoned=frozenset(name for name, node in by_name.items() if _cordoned(node)),
        silent=frozenset(name for name, node in by_name.items() if _silent(node)),
        out_of_service=frozenset(name for name, node in by_name.items() if OUT_OF_SERVICE in _taints(node)),
    )


def _taints(node: Manifest) -> set[str]:
    return {str(taint.get("key")) for taint in objects.members(node, "spec", "taints")}


def _cordoned(node: Manifest) -> bool:
    return bool(objects.mapping(node, "spec").get("unschedulable")) or not _taints(node).isdisjoint(_LEAVING)


def _silent(node: Manifest) -> bool:
    return objects.condition(node, "Ready").get("status") == "Unknown" or UNREACHABLE in _taints(node)


def stays_when_cordoned(pod: Manifest) -> bool:
    """Whether a pod tolerates cordons. The operator does not move it: its successor might land on the same node."""
    return any(
        toleration.get("key") == UNSCHEDULABLE or (toleration.get("operator") == "Exists" and not toleration.get("key"))
        for toleration in objects.members(pod, "spec", "tolerations")
    )
