"""Looks at the nodes that a replica over several nodes is about to get. The operator watches no pods of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from qwen_operator import objects
from qwen_operator.controller.node_pods import NodePods
from qwen_operator.kube import Manifest
from qwen_operator.manifests.names import LABEL_REPLICA
from qwen_operator.objects import key_of
from qwen_operator.reconcile.types import Observed
from qwen_operator.replicas.places import Neighbours
from qwen_operator.replicas.pod_state import is_gated
from qwen_operator.replicas.room import room_for

FRESH_SECONDS = 2.0
"""How old the pods of a node may be when a replica is sent there."""
KEPT_SECONDS = 20.0
"""For how long a node that pods of others fill is not read again."""
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class FreeNodes:
    """`distinct_nodes`: no two pods of a replica may be on one node."""

    nodes: NodePods
    now: Callable[[], datetime]
    distinct_nodes: bool = True

    async def seen(self, observed: Observed) -> Neighbours | None:
        """The neighbours, with the pods of others on the nodes that the held back replicas would get.

        After some rounds the remaining nodes count as free, as all do if the operator may not read their pods. Then a
        replica that meets a pod of others gives its GPUs back after a time.
        """
        near = observed.neighbours
        gated = {_replica(state.manifest) for state in observed.engine_pods if is_gated(state.manifest)}
        if near is None or not gated:
            return near
        near = replace(near, distinct_nodes=self.distinct_nodes)
        self.nodes.forget(KEPT_SECONDS)
        for _ in range(_ROUNDS):
            near = replace(near, others=self._others(near))
            chosen = room_for(gated, observed.owner.namespace, near, self.now()).nodes
            unread = [node for node in chosen if self.nodes.is_old(node, FRESH_SECONDS)]
            if self.nodes.blind or not unread or not await self.nodes.read(unread):
                break
        return replace(near, others=self._others(near))

    def _others(self, near: Neighbours) -> tuple[Manifest, ...]:
        """What was read and is none of the pods that the operator watches. One of those may have ended meanwhile."""
        known = {key_of(pod) for pod in near.pods}
        return tuple(pod for seen in self.nodes.seen.values() for pod in seen.pods if key_of(pod) not in known)


def _replica(pod: Manifest) -> str:
    return str(objects.labels(pod).get(LABEL_REPLICA))
