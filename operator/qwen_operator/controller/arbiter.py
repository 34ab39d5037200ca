"""The loop around the arbiter: it collects what the deployments ask for, reads nodes, and hands out grants.

It acts only while deployments have different priorities. Then no replica is created without a grant, because
kube-scheduler ends pods of a lower priority for a pod that finds no place. A grant names the node, and names it only
after the operator has read from the API server which pods run there: it watches none but its own.

If it cannot look for OPEN_SECONDS, it stands aside, and kube-scheduler decides again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn

from qwen_operator import objects
from qwen_operator.arbiter.claims import Contest, Party, Scene, contests, hostnames, served
from qwen_operator.arbiter.decide import decide
from qwen_operator.arbiter.fits import HOSTNAME, lacking
from qwen_operator.arbiter.messages import in_words
from qwen_operator.arbiter.priorities import Priorities
from qwen_operator.arbiter.types import HOLD, UNLIMITED, Ask, Grant
from qwen_operator.controller.cache import Store
from qwen_operator.controller.node_pods import NodePods
from qwen_operator.kube import (
    NODES,
    PODS,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    Manifest,
    Resource,
)
from qwen_operator.kube.lease import NotLeading
from qwen_operator.objects import ObjectKey, key_of

INTERVAL_SECONDS = 2.0
FRESH_SECONDS = 2.0
"""How old the pods of a node may be when a pod is sent there, or when a replica there must go. What was read for the
decision itself always counts, however long it took."""
SEEN_SECONDS = 20.0
"""How old they may be while a pod waits for the node."""
FULL_SECONDS = 60.0
"""For how long a node counts as full for a deployment after it had no room for another reason than GPUs."""
ASKING_SECONDS = 10.0
"""How long it waits until all deployments have asked, after it began."""
STUCK_PAUSE_SECONDS = 600.0
OPEN_SECONDS = 30.0
"""How long a deployment waits for a decision, at most. Then kube-scheduler decides."""
WATCH_SECONDS = 2.0
"""How often it checks whether it is late, also while a look takes long."""
PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
_PAUSES = 3.0
_ROUNDS = 32
_SHOWN_PODS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the arbiter is connected to.

    `readable`: the resources that the operator may read. `wake` gets the key of each deployment whose grant changed.
    `working`: whether a worker has this deployment now. `clock`: monotonic seconds. `default_class`: the PriorityClass
    of engine pods that name none. `enabled`: the chart's switch.
    """

    readable: Callable[[], Iterable[Resource]]
    wake: Callable[[ObjectKey], None]
    working: Callable[[ObjectKey], bool]
    clock: Callable[[], float]
    now: Callable[[], datetime]
    default_class: str | None = None
    enabled: bool = True


@dataclass(slots=True)
class Arbiter:
    """See the module. `grant` and `heard` are for the workers, `parts` are the loops."""

    store: Store
    nodes: NodePods
    wiring: Wiring
    _asks: dict[ObjectKey, Ask | None] = field(default_factory=dict)
    _grants: dict[ObjectKey, Grant] = field(default_factory=dict)
    _priority: dict[ObjectKey, int] = field(default_factory=dict)
    _known: tuple[object, dict[ObjectKey, int]] | None = None
    _full: dict[tuple[ObjectKey, str], float] = field(default_factory=dict)
    _began_at: float | None = None
    _looked_at: float | None = None
    _aside: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def grant(self, key: ObjectKey) -> Grant | None:
        """What this deployment may have now; None if kube-scheduler alone decides."""
        if not self.contested():
            return None
        if self._looked_at is None:
            # It has just become necessary to look.
            self._looked_at = self.wiring.clock()
            self._changed.set()
        if self.wiring.clock() - self._looked_at > OPEN_SECONDS:
            return None
        if self._priorities().get(key) != self._priority.get(key):
            # It is new, or its class has changed.
            return HOLD
        return self._grants.get(key, HOLD)

    def heard(self, key: ObjectKey, ask: Ask | None) -> None:
        """Note what a deployment asks for; None if it takes no part."""
        if key not in self._asks or self._asks[key] != ask:
            self._asks[key] = ask
            self._changed.set()

    def contested(self) -> bool:
        """Whether pods of one deployment could make kube-scheduler end pods of another one."""
        if not self.wiring.enabled or not {NODES, PRIORITY_CLASSES} <= set(self.wiring.readable()):
            return False
        return len(set(self._priorities().values())) > 1

    def parts(self) -> list[Coroutine[Any, Any, NoReturn]]:
        """What must run at the same time, for ever."""
        return [self.run(), self.watch()]

    async def watch(self) -> NoReturn:
        """Wake those that wait for a decision when it takes too long: a look may hang for as long as the API does."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.stand_aside()

    async def run(self) -> NoReturn:
        """Look for ever: at once when a deployment asks for something else, and at least every INTERVAL_SECONDS."""
        while True:
            try:
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            began = self.wiring.clock()
            try:
                await self.look()
            except NotLeading:
                raise
            except Exception:
                log.exception("the arbiter cannot decide who gets GPUs")
            # Asks come in bursts, for example after a list. And with very many deployments a look takes a while.
            await asyncio.sleep(pause_after(self.wiring.clock() - began))

    def stand_aside(self) -> None:
        """Wake those that wait for a decision, if there has been none for too long."""
        late = self._looked_at is not None and self.wiring.clock() - self._looked_at > OPEN_SECONDS
        if late and not self._aside:
            log.warning(
                "the arbiter has not decided for %.0f seconds: kube-scheduler decides who gets GPUs", OPEN_SECONDS
            )
            for key in sorted(self._asks):
                self.wiring.wake(key)
        self._aside = late

    async def look(self) -> None:
        """Decide anew. Returns without a decision if a node cannot be read, or if pods are just being created."""
        if not self.contested():
            self._asks, self._looked_at, self._began_at = {}, None, None
            self._publish({})
            return
        if not self._all_heard():
            return
        began = self.wiring.clock()
        for _ in range(_ROUNDS):
            # With many nodes a round takes a while.
            await asyncio.sleep(0)
            if any(grant.places and self.wiring.working(key) for key, grant in self._grants.items()):
                # A worker may be creating the pods of a grant, and the store does not show them yet.
                self._changed.set()
                return
            parties = self._parties()
            if all(party.is_served for party in parties):
                self._conclude(parties, {party.key: served(party) for party in parties})
                return
            found = contests(self._scene(parties))
            self._note_stuck(found)
            grants = self._decided(found)
            unread = self._unread(parties, found, grants, began)
            if unread is None:
                self._conclude(parties, self._by_hostname(grants))
                return
            if not await self.nodes.read(unread):
                return
        log.warning("the arbiter read nodes %d times and has no decision yet: it goes on with the next look", _ROUNDS)

    def _decided(self, found: Iterable[Contest]) -> dict[ObjectKey, Grant]:
        grants: dict[ObjectKey, Grant] = {}
        # One that has not asked may have pods on any node.
        unheard = {priority for key, priority in self._priorities().items() if key not in self._asks}
        for contest in found:
            if len(contest.priorities | unheard) > 1:
                grants |= decide(contest.claims, contest.pool)
            else:
                grants |= dict.fromkeys((claim.key for claim in contest.claims), UNLIMITED)
        return grants

    def _unread(
        self, parties: Iterable[Party], found: Sequence[Contest], grants: Mapping[ObjectKey, Grant], began: float
    ) -> list[str] | None:
        """The nodes that must be read before another try; None if the decision holds."""
        if stale := self._stale(found, grants, began):
            return stale
        refused = self._overfull(parties, grants)
        return self._elsewhere(found, refused, began) if refused else None

    def _values(self) -> Priorities:
        return Priorities(self.store.all(PRIORITY_CLASSES))

    def _priorities(self) -> dict[ObjectKey, int]:
        changes = self.store.changes(QWENDEPLOYMENTS, PRIORITY_CLASSES), self.store.unreadable
        if self._known is None or self._known[0] != changes:
            self._known = changes, self._values_of_all()
        return self._known[1]

    def _values_of_all(self) -> dict[ObjectKey, int]:
        values = self._values()
        return {key_of(item): values.of(item, self.wiring.default_class) for item in self._deployments()}

    def _deployments(self) -> Iterable[Manifest]:
        """Those that may want replicas. The pods of one that is being deleted count as those of somebody else."""
        return (item for item in self.store.deployments() if not objects.is_deleting(item))

    def _all_heard(self) -> bool:
        """Drop what is about deployments that are gone, and what is too old. Wake those that have not asked yet.

        Returns whether all have asked, or had time to. One that cannot be handled must not keep the others waiting: its
        pods count as those of somebody else.
        """
        now = self.wiring.clock()
        uids = {key_of(item): item["metadata"]["uid"] for item in self._deployments()}
        self._asks = {
            key: ask for key, ask in self._asks.items() if key in uids and (ask is None or ask.uid == uids[key])
        }
        self._grants = {key: grant for key, grant in self._grants.items() if key in uids}
        self._full = {place: until for place, until in self._full.items() if until > now}
        self.nodes.forget(SEEN_SECONDS)
        missing = uids.keys() - self._asks.keys()
        for key in sorted(missing):
            self.wiring.wake(key)
        self._began_at = now if self._began_at is None else self._began_at
        return not missing or now - self._began_at > ASKING_SECONDS

    def _parties(self) -> list[Party]:
        priorities = self._priorities()
        parties = []
        for item in self._deployments():
            key = key_of(item)
            ask = self._asks.get(key)
            if ask is not None:
                parties.append(Party(key, ask, priorities[key], self.store.replicas(item)))
        return parties

    def _scene(self, parties: Iterable[Party]) -> Scene:
        ours = {
            member.uid for party in parties for replica in party.replicas for member in replica.members if member.uid
        }
        stored = {pod["metadata"]["uid"]: pod for pod in self.store.all(PODS) if pod["metadata"]["uid"] not in ours}
        read = {
            pod["metadata"]["uid"]: pod
            for seen in self.nodes.seen.values()
            for pod in seen.pods
            if pod["metadata"]["uid"] not in ours and not self._is_gone(pod)
        }
        return Scene(
            parties=list(parties),
            nodes=list(self.store.all(NODES)),
            others=list((read | stored).values()),
            now=self.wiring.now(),
            full=frozenset(self._full),
        )

    def _is_gone(self, pod: Manifest) -> bool:
        """Whether this is an engine pod that has ended since its node was read. Another one may have its name."""
        if objects.labels(pod).get(_MANAGED_BY) != _OURS:
            return False
        stored = self.store.get(PODS, key_of(pod))
        return stored is None or stored["metadata"]["uid"] != pod["metadata"]["uid"]

    def _note_stuck(self, found: Sequence[Contest]) -> None:
        """A pod that was not placed although its node had room goes back, and does not come to that node again soon."""
        until = self.wiring.clock() + STUCK_PAUSE_SECONDS
        for contest in found:
            for claim in contest.claims:
                pins = {pin for seat in claim.seats if seat.stuck for pin in seat.pins}
                self._full |= {(claim.key, pin): until for pin in pins if (claim.key, pin) not in self._full}

    def _stale(self, found: Sequence[Contest], grants: Mapping[ObjectKey, Grant], began: float) -> list[str]:
        """The nodes that this decision depends on and that must be read first.

        A node that was read since the look began is read no more: if the API server answers slowly, it would be too old
        again at once.
        """
        if self.nodes.blind:
            return []
        chosen = {node for grant in grants.values() for place in grant.places for node in place}
        for contest in found:
            for claim in contest.claims:
                drains = grants[claim.key].drains
                chosen |= {node for seat in claim.seats if seat.name in drains for node in seat.nodes}
        limits = {node: SEEN_SECONDS for grant in grants.values() for node in grant.awaited}
        limits |= dict.fromkeys(chosen, FRESH_SECONDS)
        return sorted(name for name, limit in limits.items() if self.nodes.is_old(name, limit, began))

    def _overfull(self, parties: Iterable[Party], grants: Mapping[ObjectKey, Grant]) -> dict[ObjectKey, Manifest]:
        """The granted pods that have no room on their node for another reason than GPUs. These nodes count as full."""
        coming: dict[str, list[tuple[ObjectKey, Manifest]]] = defaultdict(list)
        for party in parties:
            for place in grants[party.key].places if party.key in grants else ():
                for node in place:
                    coming[node].append((party.key, party.ask.pod))
        nodes = {node["metadata"]["name"]: node for node in self.store.all(NODES)}
        running = self._running() if coming else {}
        refused: dict[ObjectKey, Manifest] = {}
        for name, pods in coming.items():
            there = running.get(name, ())
            if name in self.nodes.seen and (lacks := lacking(nodes[name], there, (pod for _, pod in pods))):
                key, pod = pods[-1]
                self._note_full(key, name, lacks, there)
                refused[key] = pod
        return refused

    def _elsewhere(self, found: Iterable[Contest], refused: Mapping[ObjectKey, Manifest], began: float) -> list[str]:
        """Note which other nodes with free GPUs are full for these pods too; the nodes that must be read for that."""
        nodes = {node["metadata"]["name"]: node for node in self.store.all(NODES)}
        running = self._running()
        unread: dict[str, int] = {}
        for contest in found:
            free = contest.free()
            for claim in (claim for claim in contest.claims if claim.key in refused):
                rooms = (node for node in claim.nodes if free[node] >= claim.gpus)
                for name in sorted(node for node in rooms if (claim.key, node) not in self._full):
                    if self.nodes.is_old(name, FRESH_SECONDS, began):
                        unread[name] = free[name]
                    elif lacks := lacking(nodes[name], running.get(name, ()), [refused[claim.key]]):
                        self._note_full(claim.key, name, lacks, running.get(name, ()))
        return sorted(unread, key=lambda name: (unread[name], name))

    def _note_full(self, key: ObjectKey, node: str, lacks: str, there: Collection[Manifest]) -> None:
        self._full[key, node] = self.wiring.clock() + FULL_SECONDS
        pods = ", ".join(sorted("/".join(key_of(pod)) for pod in there)[:_SHOWN_PODS])
        why = f"its pod has no room there: {lacks}; {len(there)} pods: {pods}"
        log.info("a node is full", extra={"deployment": "/".join(key), "object": node, "why": why})

    def _running(self) -> dict[str, Collection[Manifest]]:
        """The pods of each node as they were read, and the engine pods that run there or may only run there."""
        names = {host: name for name, host in hostnames(self.store.all(NODES)).items()}
        found: dict[str, dict[str, Manifest]] = defaultdict(dict)
        for name, seen in self.nodes.seen.items():
            found[name] = {pod["metadata"]["uid"]: pod for pod in seen.pods if not self._is_gone(pod)}
        for pod in self.store.all(PODS):
            pin = objects.mapping(pod, "spec", "nodeSelector").get(HOSTNAME)
            if name := objects.node_of(pod) or names.get(str(pin), ""):
                found[name][pod["metadata"]["uid"]] = pod
        return {name: pods.values() for name, pods in found.items()}

    def _by_hostname(self, grants: Mapping[ObjectKey, Grant]) -> dict[ObjectKey, Grant]:
        """The grants with the label of each node in place of its name."""
        hosts = hostnames(self.store.all(NODES))
        return {
            key: replace(grant, places=tuple(tuple(hosts[node] for node in place) for place in grant.places))
            for key, grant in grants.items()
        }

    def _conclude(self, parties: Iterable[Party], grants: dict[ObjectKey, Grant]) -> None:
        self._looked_at = self.wiring.clock()
        self._priority = {party.key: party.priority for party in parties}
        self._publish(grants)

    def _publish(self, grants: dict[ObjectKey, Grant]) -> None:
        old, self._grants = self._grants, grants
        for key in sorted(old.keys() | grants.keys()):
            grant = grants.get(key)
            if old.get(key) == grant:
                continue
            self.wiring.wake(key)
            if grant is not None and (grant.is_short or grant.drains or grant.places):
                log.info(
                    "GPUs granted",
                    extra={"deployment": "/".join(key), "replicas": grant.replicas, "why": in_words(grant)},
                )


_MANAGED_BY, _OURS = "app.kubernetes.io/managed-by", "qwen-operator"


def pause_after(look_seconds: float) -> float:
    """How long to rest after a look, so that looks leave time for the workers."""
    return min(LONGEST_PAUSE_SECONDS, max(PAUSE_SECONDS, _PAUSES * look_seconds))
