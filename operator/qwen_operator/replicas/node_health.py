"""What nodes mean for the pods on them: cordoned, silent, out of service, gone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
UNREACHABLE = "node.kubernetes.io/unreachable"
# The taints by which kubectl cordon, the cluster autoscaler and Karpenter say that a node is about to be emptied.
_LEAVING = (UNSCHEDULABLE, "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted")


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Names of nodes: `names` are all that exist, none if the operator may not read nodes.

    `cordoned`: nothing new is to run there, and what runs is about to be moved. `silent`: the kubelet does not
    answer. `out_of_service`: a person says that nothing runs there any more.
    """

    names: frozenset[str] = frozenset()
    cordoned: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    out_of_service: frozenset[str] = frozenset()

    def gone(self, name: str) -> bool:
        """Whether the node existed once, as a pod was bound to it, and exists no more."""
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
    """Whether a pod may be bound to cordoned nodes: its successor might come back to the same one, again and again."""
    return any(
        one.get("key") == UNSCHEDULABLE or (one.get("operator") == "Exists" and not one.get("key"))
        for one in objects.members(pod, "spec", "tolerations")
    )
