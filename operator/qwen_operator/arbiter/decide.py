"""Who gets the GPUs of a pool. Pure.

Every missing replica is a wish. The wishes are heard in the order of their rank (ranks.py). For each of them:

1. If one of the deployment's own replicas drains and nobody needs its place, it stays.
2. If a node has enough free GPUs, the wish is granted: the pod may be created.
3. If a node will have enough when replicas there have drained, the wish waits, and nobody else gets that place.
4. If a node would have enough without replicas whose places the wish may take, those drain, and the wish waits.

A pod may find its place on any node. So while a node gets empty for a wish, no other pod is created that would fit
there.

kube-scheduler ends pods of a lower priority at once if a pod of a higher priority finds no place, so a pod must never
look for a place in vain. The scheduler also chooses the node itself: one pod may split the place that was meant for a
larger one. So where priorities differ, one wish at a time is granted, and only while every pod has a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from qwen_operator.arbiter.ranks import Rank, rank
from qwen_operator.arbiter.types import Claim, Grant, Pool, Seat
from qwen_operator.objects import ObjectKey


def decide(claims: Sequence[Claim], pool: Pool) -> dict[ObjectKey, Grant]:
    """What each deployment may have now. The same claims and the same pool give the same answer."""
    board = _Board.of(claims, pool)
    board.withdraw()
    for claim, place in sorted(_wishes(board), key=lambda wish: (rank(*wish), wish[0].key)):
        board.hear(claim, rank(claim, place))
    return {claim.key: board.grant(claim) for claim in claims}


def _wishes(board: _Board) -> Iterator[tuple[Claim, int]]:
    for claim in board.claims:
        yield from ((claim, index) for index in range(len(board.kept[claim.key]), claim.wanted))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The replicas of one node that could go for a wish. `places`: how soon their owners would give them up anyway."""

    node: str
    gpus: int
    ranks: tuple[Rank, ...]
    places: tuple[int, ...]
    victims: tuple[tuple[Claim, Seat], ...]


@dataclass(slots=True)
class _Board:
    """The pool while the wishes are heard.

    `free`: GPUs of each node without a replica, and not promised. `coming`: GPUs of draining replicas, not promised.
    `open`: GPUs of each node without a replica now. `awaited`: the nodes that get empty for a wish.
    `kept`: the replicas that stay, those first that would go first. `leaving`: those that drain, or that their
    deployment does not want. `drains`: those that give up their places now. `returned`: draining ones that stay.
    """

    claims: Sequence[Claim]
    quotas: dict[str, int]
    free: Counter[str]
    coming: Counter[str] = field(default_factory=Counter)
    kept: dict[ObjectKey, list[Seat]] = field(default_factory=dict)
    leaving: dict[ObjectKey, list[Seat]] = field(default_factory=dict)
    drains: dict[ObjectKey, list[Seat]] = field(default_factory=dict)
    returned: dict[ObjectKey, list[Seat]] = field(default_factory=dict)
    open: Counter[str] = field(default_factory=Counter)
    awaited: set[str] = field(default_factory=set)
    granted: Counter[ObjectKey] = field(default_factory=Counter)
    short: set[ObjectKey] = field(default_factory=set)
    serial: bool = False
    """Priorities differ, so pods look for their nodes one after the other."""
    busy: bool = False
    """A pod looks for its node."""

    @classmethod
    def of(cls, claims: Sequence[Claim], pool: Pool) -> _Board:
        board = cls(claims, dict(pool.quotas), Counter(pool.nodes))
        board.serial = len({claim.priority for claim in claims}) > 1
        for claim in claims:
            board.kept[claim.key] = _staying(claim)
            board.leaving[claim.key] = [seat for seat in claim.seats if seat not in board.kept[claim.key]]
            board.drains[claim.key], board.returned[claim.key] = [], []
            for seat in claim.seats:
                board.free[seat.node] -= claim.gpus
            for seat in board.leaving[claim.key]:
                board.coming[seat.node] += claim.gpus
        # A node that is overfull, for example because it lost a GPU, has nothing to promise.
        board.free = Counter({node: board.free[node] for node in pool.nodes})
        board.open = Counter(board.free)
        return board

    def withdraw(self) -> None:
        """Promise places to the pods that have no node yet. Those without a place may wait only if they harm nobody."""
        for claim in sorted(self.claims, key=lambda claim: (-claim.priority, claim.key)):
            for seat in [seat for seat in self.kept[claim.key] if not seat.node]:
                self.busy = True
                node = self._tightest(claim, self.free)
                if node is not None:
                    self.free[node] -= claim.gpus
                elif any(other.priority < claim.priority and self._on(other, claim.nodes) for other in self.claims):
                    self._give_up(claim, seat)

    def hear(self, claim: Claim, wish: Rank) -> None:
        """One wish. A deployment whose wish waits gets nothing for its later wishes either."""
        if claim.key in self.short:
            return
        if self._returns(claim):
            return
        if not self._within_quota(claim):
            self.short.add(claim.key)
            return
        if (node := self._tightest(claim, self.free)) is not None:
            self.free[node] -= claim.gpus
            if not (self.serial and self.busy) and not self._disturbs(claim):
                self.granted[claim.key] += 1
                self.busy = True
                return
        elif (node := self._tightest(claim, self.free + self.coming)) is not None:
            self._promise(node, claim.gpus)
        elif victims := self._victims(claim, wish):
            for owner, seat in victims:
                self._give_up(owner, seat)
            self._promise(victims[0][1].node, claim.gpus)
        self.short.add(claim.key)

    def grant(self, claim: Claim) -> Grant:
        kept, granted = len(self.kept[claim.key]), self.granted[claim.key]
        drains = tuple(seat.name for seat in self.drains[claim.key])
        number = min(claim.wanted, kept + granted)
        waits_for = tuple(self._holders(claim)) if number < claim.wanted else ()
        returns = tuple(seat.name for seat in self.returned[claim.key] if seat.draining)
        return Grant(number, drains, returns, waits_for)

    def _returns(self, claim: Claim) -> bool:
        """Whether a draining replica of the deployment stays instead."""
        for seat in reversed(self.leaving[claim.key]):
            if seat.node in claim.nodes and seat not in self.drains[claim.key] and self.coming[seat.node] >= claim.gpus:
                self.coming[seat.node] -= claim.gpus
                self.leaving[claim.key].remove(seat)
                self.kept[claim.key].append(seat)
                self.returned[claim.key].append(seat)
                return True
        return False

    def _within_quota(self, claim: Claim) -> bool:
        namespace = claim.key[0]
        left = self.quotas.get(namespace)
        if left is None:
            return True
        if left < claim.gpus:
            return False
        self.quotas[namespace] = left - claim.gpus
        return True

    def _promise(self, node: str, gpus: int) -> None:
        """Keep GPUs for a wish that waits: the free ones first."""
        free = min(gpus, max(0, self.free[node]))
        self.free[node] -= free
        self.coming[node] -= gpus - free
        self.awaited.add(node)

    def _disturbs(self, claim: Claim) -> bool:
        """Whether a new pod of the deployment may find its place on a node that gets empty for another wish."""
        return any(self.open[node] >= claim.gpus for node in self.awaited & claim.nodes)

    def _give_up(self, claim: Claim, seat: Seat) -> None:
        self.kept[claim.key].remove(seat)
        self.drains[claim.key].append(seat)
        if seat.node:
            self.coming[seat.node] += claim.gpus

    def _tightest(self, claim: Claim, room: Counter[str]) -> str | None:
        """The node on which the replica leaves the fewest GPUs over; None if no node has room."""
        fits = [node for node in claim.nodes if room[node] >= claim.gpus and self.free[node] >= 0]
        return min(fits, key=lambda node: (room[node], node), default=None)

    def _victims(self, claim: Claim, wish: Rank) -> list[tuple[Claim, Seat]]:
        """The replicas of one node that must go for this wish: as few GPUs as possible, and those of the last rank."""
        choices = [choice for node in claim.nodes if (choice := self._choice(claim, wish, node)) is not None]
        fewest = min((choice.gpus for choice in choices), default=0)
        choices = [choice for choice in choices if choice.gpus == fewest]
        last = max((choice.ranks for choice in choices), default=())
        equal = [choice for choice in choices if choice.ranks == last]
        return list(min(equal, key=lambda choice: (choice.places, choice.node)).victims) if equal else []

    def _choice(self, claim: Claim, wish: Rank, node: str) -> _Choice | None:
        """The replicas of this node that must go for the wish; None if that is not enough, or not needed."""
        missing = claim.gpus - max(0, self.free[node]) - self.coming[node]
        if self.free[node] < 0 or missing <= 0:
            return None
        chosen: list[tuple[Rank, Claim, Seat]] = []
        for entry in self._takeable(claim, wish, node):
            chosen.append(entry)
            missing -= entry[1].gpus
            if missing <= 0:
                victims = tuple((owner, seat) for _, owner, seat in chosen)
                places = tuple(self.kept[owner.key].index(seat) for owner, seat in victims)
                gpus = sum(owner.gpus for owner, _ in victims)
                return _Choice(node, gpus, tuple(one for one, _, _ in chosen), places, victims)
        return None

    def _takeable(self, claim: Claim, wish: Rank, node: str) -> list[tuple[Rank, Claim, Seat]]:
        """The replicas of a node whose places the wish may take, the last rank first.

        Whichever replica goes, a deployment loses the last of its ranks.
        """
        found: list[tuple[Rank, Claim, Seat]] = []
        for other in self.claims:
            kept = self.kept[other.key]
            there = [seat for seat in kept if seat.node == node] if other.key != claim.key else []
            for lost, seat in enumerate(there, start=1):
                one = rank(other, len(kept) - lost)
                if wish.may_take(one):
                    found.append((one, other, seat))
        return sorted(found, key=lambda entry: (entry[0], entry[1].key), reverse=True)

    def _on(self, claim: Claim, nodes: Iterable[str]) -> bool:
        return any(seat.node in nodes for seat in self.kept[claim.key])

    def _holders(self, claim: Claim) -> list[ObjectKey]:
        held = Counter(
            {
                other.key: other.gpus * sum(seat.node in claim.nodes for seat in other.seats)
                for other in self.claims
                if other.key != claim.key
            }
        )
        return [key for key, gpus in sorted(held.items(), key=lambda item: (-item[1], item[0])) if gpus]


def _staying(claim: Claim) -> list[Seat]:
    """The replicas that are not draining, and of those at most as many as are wanted."""
    staying = [seat for seat in claim.seats if not seat.draining]
    return staying[max(0, len(staying) - claim.wanted) :]
