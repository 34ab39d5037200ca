"""Reads from the API server which pods run on a node. The operator watches none but its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from qwen_operator import objects
from qwen_operator.kube import PODS, ApiError, Forbidden, KubeApi, Manifest
from qwen_operator.replicas.room import READ_AT_ONCE

_BLIND_SECONDS = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeenPods:
    """The pods of a node that had not ended when they were read, and when that was."""

    at: float
    pods: tuple[Manifest, ...]


@dataclass(slots=True)
class NodePods:
    """`seen`: what was read, by the name of the node. `clock` returns monotonic seconds.

    An API server that starts may forbid for a moment what it allows later. So `blind_until` is a time.
    """

    api: KubeApi
    clock: Callable[[], float]
    blind_until: float = float("-inf")
    seen: dict[str, SeenPods] = field(default_factory=dict)

    @property
    def blind(self) -> bool:
        """Whether the operator may not list the pods of a node."""
        return self.clock() < self.blind_until

    def forget(self, seconds: float) -> None:
        """Drop what was read longer ago than so many seconds."""
        now = self.clock()
        self.seen = {name: seen for name, seen in self.seen.items() if now - seen.at <= seconds}

    def is_old(self, node: str, seconds: float, began: float = float("inf")) -> bool:
        """Whether the pods of a node are older than so many seconds, and were not read since `began`."""
        return node not in self.seen or self.seen[node].at < min(began, self.clock() - seconds)

    async def read(self, nodes: Collection[str]) -> bool:
        """Read which pods run on these nodes, the first READ_AT_ONCE of them; whether the API server answered."""
        names = sorted(nodes)[:READ_AT_ONCE]
        try:
            found = await asyncio.gather(*(self._pods_of(name) for name in names))
        except Forbidden as error:
            # Only in some namespaces it may list pods. What it sees there is better than nothing.
            self.blind_until = self.clock() + _BLIND_SECONDS
            log.warning(
                "the operator may not list the pods of a node: it does not see the GPUs that pods of others have",
                extra={"error": str(error)},
            )
            return True
        except ApiError as error:
            log.warning("the pods of a node cannot be listed", extra={"error": str(error)})
            return False
        self.seen |= dict(zip(names, found, strict=True))
        return True

    async def _pods_of(self, node: str) -> SeenPods:
        at = self.clock()
        pods, _ = await self.api.list(PODS, None, fields=f"spec.nodeName={node}")
        readable = (pod for pod in pods if objects.malformed(pod) is None and pod["metadata"].get("uid"))
        return SeenPods(at, tuple(pod for pod in readable if not objects.has_ended(pod)))
