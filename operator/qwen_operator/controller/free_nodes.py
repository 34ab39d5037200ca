"""What pods of others have on the nodes that a replica over several nodes is about to get."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from qwen_operator.controller.node_pods import AT_ONCE, NodePods
from qwen_operator.objects import key_of
from qwen_operator.reconcile.types import Observed

FRESH_SECONDS = 2.0
"""How old the pods of a node may be when a replica is sent there. What was read for the decision itself always counts,
however long it took."""
ROUNDS = 8
"""How often a decision may ask for other nodes. Then its replica waits for the next one."""
KEPT_SECONDS = 10.0
"""For how long a node that pods of others fill is not read again."""
KEPT_OF_MANY_SECONDS = 60.0
"""The same if these are more nodes than one request each for a look should cost."""


@dataclass(slots=True)
class FreeNodes:
    """Adds to an observation what was read. The decision says what else it needs."""

    nodes: NodePods

    def begin(self) -> float:
        """Forget what is old; the time since which everything counts for this decision."""
        many = len(self.nodes.seen) > AT_ONCE
        self.nodes.forget(KEPT_OF_MANY_SECONDS if many else KEPT_SECONDS)
        return self.nodes.clock()

    def known(self, observed: Observed, began: float) -> Observed:
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

    async def read(self, names: Collection[str]) -> bool:
        """Read these nodes; whether that worked."""
        return await self.nodes.read(names)
