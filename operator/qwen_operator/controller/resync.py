"""The periodic list: completes the first state, finds changes that no watch reported, and queues every object again."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from qwen_operator.config.types import Config
from qwen_operator.controller.cache import WATCHED
from qwen_operator.controller.enqueue import Intake
from qwen_operator.kube import (
    NODES,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    ApiError,
    Forbidden,
    KubeApi,
    Resource,
)

MANAGED_BY = "app.kubernetes.io/managed-by"
CHILD_LABELS = f"{MANAGED_BY}=qwen-operator"

# A watch that starts again reports each object of its own list, and the other watches do the same at about that time.
# After this delay, one list of the operator serves all of them.
SETTLE_SECONDS = 2.0
# A namespace whose objects the operator may not list is asked for again after this time.
REFUSED_SECONDS = 30.0

# The resources that the operator can work without, and what that means.
OPTIONAL = {
    NODES: "it knows only the GPU pools that the chart declares",
    PRIORITY_CLASSES: "it does not arbitrate, so a pod of a higher priority may end others when GPUs are short",
    RESOURCE_QUOTAS: "it notices a quota that is too small only when the API server rejects a pod",
}

log = logging.getLogger(__name__)


def labels_of(resource: Resource) -> str:
    """The label selector for lists and watches of a resource. It keeps other owners' pods and budgets out of them."""
    return "" if resource in (QWENDEPLOYMENTS, NODES, RESOURCE_QUOTAS, PRIORITY_CLASSES) else CHILD_LABELS


@dataclass(slots=True)
class Resync:
    """Lists everything at the start, whenever a watch started again, and every `config.resync_seconds` (+/- 10 %).

    kopf lists before it starts a watch again, but does not report deletions since the previous watch. Only a later
    list of the operator's own shows them.

    A namespace of which a list is refused harms only itself: nothing is decided about it until everything in it can be
    read again, and the others go on. The operator asks again every REFUSED_SECONDS.

    `random` returns a number in [0, 1), `clock` returns monotonic seconds. `on_readable` is told for each namespace
    that is served whether it can be read.
    """

    api: KubeApi
    intake: Intake
    config: Config
    random: Callable[[], float]
    clock: Callable[[], float]
    on_readable: Callable[[str, bool], None] = lambda _namespace, _readable: None
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    _requested: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: dict[str, Resource] = field(default_factory=dict)
    _absent: set[tuple[Resource, str | None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.config.read_nodes:
            self._absent |= {(NODES, None), (PRIORITY_CLASSES, None)}

    def readable(self) -> tuple[Resource, ...]:
        """The resources that the operator may read: all, until the API server forbids to list one everywhere."""
        return tuple(
            resource
            for resource in WATCHED
            if not all((resource, scope) in self._absent for scope in self._scopes(resource))
        )

    def _scopes(self, resource: Resource) -> tuple[str | None, ...]:
        """Where to list a resource: in each namespace that is served and can be read, or in the whole cluster."""
        if not resource.namespaced or not self.config.namespaces:
            return (None,)
        return tuple(one for one in self.config.namespaces if one not in self._refused) or self.config.namespaces

    def request(self) -> None:
        """Make the next list soon instead of at its regular time."""
        self._requested.set()

    async def first(self) -> None:
        """List until one complete list succeeds. A decision on an incomplete state could pin a wrong plan."""
        attempt = 0
        while True:
            try:
                await self.once()
            except ApiError as error:
                attempt += 1
                delay = min(30.0, 2.0 ** min(attempt, 5)) * (0.5 + self.random() / 2)
                log.warning("first list failed", extra={"error": str(error), "retry_seconds": round(delay, 1)})
                await asyncio.sleep(delay)
            else:
                self.synced.set()
                return

    async def run(self) -> NoReturn:
        """Repeat for ever. A failed list changes nothing; the next one comes sooner."""
        failures, left = 0, self._interval(0)
        while True:
            left = await self._wait(left)
            if left > 0:
                await self._ask_again()
                continue
            self._requested.clear()
            try:
                await self.once()
                failures = 0
            except ApiError as error:
                failures += 1
                log.warning("list failed", extra={"error": str(error)})
            left = self._interval(failures)

    def _interval(self, failures: int) -> float:
        """Seconds until the next list of everything."""
        seconds = float(self.config.resync_seconds) if not failures else min(30.0, 2.0 ** min(failures, 5))
        return seconds * (0.9 + self.random() / 5)

    async def _wait(self, left: float) -> float:
        """Wait for the next list, or only until it is time to ask again for namespaces that cannot be read.

        Returns the seconds that are left until the next list, which comes SETTLE_SECONDS after a request.
        """
        seconds = min(left, REFUSED_SECONDS * (0.9 + self.random() / 5)) if self._refused else left
        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
                await asyncio.sleep(SETTLE_SECONDS)
        except TimeoutError:
            return left - seconds
        return 0.0

    async def once(self) -> None:
        """List all resources, then queue every QwenDeployment. Raises Forbidden if no namespace can be read."""
        refusals = [await self._look(scope) for scope in self.config.namespaces or (None,)]
        if all(refusals):
            raise next(refusal for refusal in refusals if refusal is not None)
        for resource in self.readable():
            if not resource.namespaced:
                await self._list(resource, None)
        self.intake.enqueue_all()

    async def _ask_again(self) -> None:
        """List the namespaces that could not be read."""
        refused = set(self._refused)
        for namespace in sorted(refused):
            with contextlib.suppress(ApiError):
                await self._look(namespace)
        if refused - self._refused.keys():
            # Others may get a name now that nobody in that namespace holds.
            self.intake.enqueue_all()

    async def _look(self, scope: str | None) -> Forbidden | None:
        """List everything in one namespace, or in all of them. Returns the refusal of a list that is needed."""
        for resource in self.readable():
            if resource.namespaced and (refusal := await self._list(resource, scope)):
                if scope is not None:
                    self._close(scope, resource, refusal)
                return refusal
        if scope is not None:
            self._open(scope)
        return None

    async def _list(self, resource: Resource, scope: str | None) -> Forbidden | None:
        try:
            items, version = await self.api.list(resource, scope, labels_of(resource))
        except Forbidden as error:
            if resource not in OPTIONAL:
                return error
            if (resource, scope) not in self._absent:
                self._absent.add((resource, scope))
                where = "" if scope is None else f" in namespace {scope}"
                log.warning("the operator may not read %s%s: %s", resource.plural, where, OPTIONAL[resource])
            return None
        self._absent.discard((resource, scope))
        self.intake.listed(resource, scope, items, version)
        return None

    def _close(self, namespace: str, resource: Resource, error: Forbidden) -> None:
        before = self._refused.get(namespace)
        self._refused[namespace] = resource
        self.intake.unreadable(self._refused)
        self.on_readable(namespace, False)
        if before != resource:
            log.warning(
                "the operator may not list %s in namespace %s: it changes nothing there until it may",
                resource.plural,
                namespace,
                extra={"error": str(error)},
            )

    def _open(self, namespace: str) -> None:
        if self._refused.pop(namespace, None) is not None:
            self.intake.unreadable(self._refused)
            log.info("the operator may read namespace %s again", namespace)
        self.on_readable(namespace, True)
