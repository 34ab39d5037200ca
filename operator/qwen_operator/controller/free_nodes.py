"""What pods of others have on the nodes that a replica over several nodes is about to get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qwen_operator.controller.node_pods import NodePods
from qwen_operator.objects import key_of
from qwen_operator.reconcile.types import Decision, Observed
from qwen_operator.replicas.room import READ_AT_ONCE

FRESH_SECONDS = 2.0
"""How old the pods of a node may be when a replica is sent there. What was read for the decision itself always counts,
however long it took."""
_ROUNDS = 8
"""How often a decision may ask for other nodes. Then its replica waits for the next one."""
KEPT_SECONDS = 10.0
"""For how long a node that pods of others fill is not read again."""
KEPT_OF_MANY_SECONDS = 60.0
"""The same for more than READ_AT_ONCE nodes, so that a replica that waits does not read all of them at each look."""


@dataclass(frozen=True, slots=True)
class FreeNodes:
    """Adds to an observation what was read. The decision says what else it needs."""

    nodes: NodePods

    async def decided(self, observed: Observed, decide: Callable[[Observed], Decision]) -> tuple[Observed, Decision]:
        """Decide, and read the pods of the nodes on which that depends. What could not be read keeps a replica back.

        Returns the decision and the observation that led to it.
        """
        many = len(self.nodes.seen) > READ_AT_ONCE
        self.nodes.forget(KEPT_OF_MANY_SECONDS if many else KEPT_SECONDS)
        began = self.nodes.clock()
        observed = self._known(observed, began)
        decision = decide(observed)
        for _ in range(_ROUNDS):
            if not decision.unread or not await self.nodes.read(decision.unread):
                break
            observed = self._known(observed, began)
            decision = decide(observed)
        return observed, decision

    def _known(self, observed: Observed, began: float) -> Observed:
        """The observation with the pods of others as far as they are known."""
        near = observed.neighbours
        if near is None:
            return observed
        seen = self.nodes.seen
        # One of the pods that the operator watches may have ended since, and another one may have its name.
        ours = {key_of(pod) for pod in near.pods}
        others = tuple(pod for node in seen.values() for pod in node.pods if key_of(pod) not in ours)
        fresh = frozenset(name for name in seen if not self.nodes.is_old(name, FRESH_SECONDS, began))
        return replace(observed, neighbours=replace(near, others=others, read=None if self.nodes.blind else fresh))
