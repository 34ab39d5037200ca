"""Who gets the GPUs of a pool. Pure.

Every missing replica is a wish. The wishes are heard in the order of their rank (ranks.py). For each of them:

1. If one of the deployment's own replicas drains and nobody needs its place, it stays.
2. If its nodes have enough free GPUs, the wish is granted: its pods may be created, and each may only run on the node
   that the grant names.
3. If nodes will have enough when replicas there have drained and pods of others have ended, the wish waits, and nobody
   else gets that place.
4. If nodes would have enough without replicas whose places the wish may take, those drain, and the wish waits. A
   replica whose pods are all held back has no GPU yet. But nodes are promised to it, and it goes back for these.

kube-scheduler ends pods of a lower priority at once if a pod of a higher priority finds no place. So no pod may look
for a place in vain: a pod that has no node, and for which there is no room, goes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qwen_operator.arbiter.ranks import Rank, rank
from qwen_operator.arbiter.types import Claim, Grant, Pool, Seat, Size
from qwen_operator.objects import ObjectKey

_Seats = dict[ObjectKey, list[Seat]]


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

    `free`: GPUs of each node without a replica, and not promised. `coming`: GPUs of draining replicas and of pods of
    others that end, not promised.
    `kept`: the replicas that stay, those first that would go first. `leaving`: those that drain, or that their
    deployment does not want. `drains`: those that give up their places now. `returned`: draining ones that stay.
    `places`: the nodes of replicas that may be created. `awaited`: the nodes that get empty for a deployment.
    `by_node`: all replicas of each node, also those that are held back and for which it is promised. `promised`: these
    nodes. `unsure`: GPUs of each node that pods may take that have no node yet and may go to several.
    """

    claims: Sequence[Claim]
    full: Collection[tuple[ObjectKey, str]]
    free: Counter[str]
    coming: Counter[str] = field(default_factory=Counter)
    kept: _Seats = field(default_factory=dict)
    leaving: _Seats = field(default_factory=dict)
    drains: _Seats = field(default_factory=dict)
    returned: _Seats = field(default_factory=dict)
    places: dict[ObjectKey, list[tuple[str, ...]]] = field(default_factory=dict)
    awaited: dict[ObjectKey, tuple[str, ...]] = field(default_factory=dict)
    by_node: dict[str, list[tuple[Claim, Seat]]] = field(default_factory=dict)
    promised: dict[tuple[ObjectKey, str], tuple[str, ...]] = field(default_factory=dict)
    short: set[ObjectKey] = field(default_factory=set)
    unsure: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, claims: Sequence[Claim], pool: Pool) -> _Board:
        board = cls(claims, pool.full, Counter(pool.nodes), Counter(pool.coming))
        for claim in claims:
            board.kept[claim.key] = _staying(claim)
            board.leaving[claim.key] = [seat for seat in claim.seats if seat not in board.kept[claim.key]]
            board.drains[claim.key], board.returned[claim.key], board.places[claim.key] = [], [], []
            board.awaited[claim.key] = ()
            for seat in claim.seats:
                board.free.subtract(dict.fromkeys(seat.nodes, claim.size(seat)))
                for node in seat.nodes:
                    board.by_node.setdefault(node, []).append((claim, seat))
            for seat in board.leaving[claim.key]:
                board.coming.update(dict.fromkeys(set(seat.nodes).difference(seat.late), claim.size(seat)))
        # A node that is overfull, for example because it lost a GPU, has nothing to promise.
        board.free = Counter({node: board.free[node] for node in pool.nodes})
        return board

    def withdraw(self) -> None:
        """Promise places to the pods that have no node yet. Those for which there is no room go back."""
        for claim in sorted(self.claims, key=lambda claim: (-claim.priority, claim.key)):
            for seat in [seat for seat in self.kept[claim.key] if len(seat.nodes) < claim.pods]:
                nodes = None if seat.stuck else self._awaited_by(claim, seat)
                if nodes is None:
                    self._give_up(claim, seat)
                else:
                    self.free.subtract(dict.fromkeys(nodes, claim.size(seat)))
                    others = () if seat.pins else claim.nodes.difference(nodes, seat.nodes)
                    self.unsure.update(dict.fromkeys(others, claim.size(seat)))
                    if seat.gated:
                        self.promised[claim.key, seat.name] = nodes
                        for node in nodes:
                            # In front: of two replicas of one deployment, this one goes.
                            self.by_node.setdefault(node, []).insert(0, (claim, seat))

    def _awaited_by(self, claim: Claim, seat: Seat) -> tuple[str, ...] | None:
        """The nodes that the other pods of this replica may get now; None if there is no room for them."""
        if seat.pins:
            return seat.pins if all(self.free[node] >= claim.size(seat) for node in seat.pins) else None
        missing = claim.pods - len(seat.nodes)
        wanting = replace(claim, gpus=claim.size(seat), pods=missing, nodes=claim.nodes.difference(seat.nodes))
        return self._tightest(wanting)

    def hear(self, claim: Claim, wish: Rank) -> None:
        """One wish. A deployment whose wish comes to nothing gets nothing for its later wishes either."""
        if claim.key in self.short or self._returns(claim):
            return
        nodes = self._tightest(claim, self.unsure)
        if nodes is not None:
            self.free.subtract(dict.fromkeys(nodes, claim.gpus))
            self.places[claim.key].append(nodes)
            return
        nodes = self._tightest(claim)
        if nodes is None:
            nodes = self._cleared(claim, wish)
        else:
            self.free.subtract(dict.fromkeys(nodes, claim.gpus))
        self.awaited[claim.key] += nodes
        if not nodes:
            self.short.add(claim.key)

    def grant(self, claim: Claim) -> Grant:
        kept, places = len(self.kept[claim.key]), tuple(self.places[claim.key])
        number = min(claim.wanted, kept + len(places))
        return Grant(
            number,
            drains=tuple(seat.name for seat in self.drains[claim.key]),
            returns=tuple(seat.name for seat in self.returned[claim.key] if seat.draining),
            waits_for=tuple(self._holders(claim)) if number < claim.wanted else (),
            places=places,
            awaited=self.awaited[claim.key],
            asked=claim.wanted,
            size=Size(claim.resource, claim.gpus, claim.pods) if places else None,
        )

    def _returns(self, claim: Claim) -> bool:
        """Whether a draining replica of the deployment stays instead."""
        for seat in reversed(self.leaving[claim.key]):
            back = seat.nodes and seat not in self.drains[claim.key] and claim.nodes.issuperset(seat.nodes)
            if back and not seat.late and all(self.coming[node] >= claim.size(seat) for node in seat.nodes):
                self.coming.subtract(dict.fromkeys(seat.nodes, claim.size(seat)))
                self.leaving[claim.key].remove(seat)
                self.kept[claim.key].append(seat)
                self.returned[claim.key].append(seat)
                return True
        return False

    def _cleared(self, claim: Claim, wish: Rank) -> tuple[str, ...]:
        """The nodes that get empty for the wish, after others give up replicas there; () if that cannot be."""
        before = (self._seats(), Counter(self.free), Counter(self.coming)) if claim.pods > 1 else None
        nodes: list[str] = []
        while len(nodes) < claim.pods:
            rooms = [node for node in self._suitable(claim, nodes) if self._room(node) >= claim.gpus]
            node = min(rooms, key=lambda node: (self._room(node), node), default=None)
            if node is None:
                choice = self._victims(claim, wish, nodes)
                if choice is None:
                    if before is not None:
                        (self.kept, self.drains), self.free, self.coming = before
                    return ()
                for owner, seat in choice.victims:
                    self._give_up(owner, seat)
                node = choice.node
            self._promise(node, claim.gpus)
            nodes.append(node)
        return tuple(nodes)

    def _seats(self) -> tuple[_Seats, _Seats]:
        return {key: list(seats) for key, seats in self.kept.items()}, {k: list(s) for k, s in self.drains.items()}

    def _room(self, node: str) -> int:
        return max(0, self.free[node]) + self.coming[node]

    def _promise(self, node: str, gpus: int) -> None:
        """Keep GPUs for a wish that waits: the free ones first."""
        free = min(gpus, max(0, self.free[node]))
        self.free[node] -= free
        self.coming[node] -= gpus - free

    def _give_up(self, claim: Claim, seat: Seat) -> None:
        self.kept[claim.key].remove(seat)
        self.drains[claim.key].append(seat)
        nodes = (*seat.nodes, *self.promised.get((claim.key, seat.name), ()))
        self.coming.update(dict.fromkeys(nodes, claim.size(seat)))

    def _suitable(self, claim: Claim, without: Collection[str] = ()) -> Iterator[str]:
        for node in claim.nodes:
            if node not in without and self.free[node] >= 0 and (claim.key, node) not in self.full:
                yield node

    def _tightest(self, claim: Claim, unsure: Mapping[str, int] = MappingProxyType({})) -> tuple[str, ...] | None:
        """The nodes for one replica that have room now, those on which the fewest GPUs are left over; None if there are
        not enough. `unsure`: GPUs of nodes that do not count as room."""
        fits = [node for node in self._suitable(claim) if self.free[node] - unsure.get(node, 0) >= claim.gpus]
        fits.sort(key=lambda node: (self.free[node], node))
        return tuple(fits[: claim.pods]) if len(fits) >= claim.pods else None

    def _victims(self, claim: Claim, wish: Rank, without: Collection[str]) -> _Choice | None:
        """The replicas of one node that must go for this wish: as few GPUs as possible, and those of the last rank."""
        if not claim.drains_others:
            return None
        nodes = self._suitable(claim, without)
        choices = [choice for node in nodes if (choice := self._choice(claim, wish, node)) is not None]
        fewest = min((choice.gpus for choice in choices), default=0)
        choices = [choice for choice in choices if choice.gpus == fewest]
        last = max((choice.ranks for choice in choices), default=())
        equal = [choice for choice in choices if choice.ranks == last]
        return min(equal, key=lambda choice: (choice.places, choice.node), default=None)

    def _choice(self, claim: Claim, wish: Rank, node: str) -> _Choice | None:
        """The replicas of this node that must go for the wish; None if that is not enough."""
        missing = claim.gpus - self._room(node)
        chosen: list[tuple[Rank, Claim, Seat]] = []
        for entry in self._takeable(claim, wish, node):
            chosen.append(entry)
            missing -= entry[1].size(entry[2])
            if missing <= 0:
                victims = tuple((owner, seat) for _, owner, seat in chosen)
                places = tuple(self.kept[owner.key].index(seat) for owner, seat in victims)
                gpus = sum(owner.size(seat) * len(seat.nodes) for owner, seat in victims)
                return _Choice(node, gpus, tuple(one for one, _, _ in chosen), places, victims)
        return None

    def _takeable(self, claim: Claim, wish: Rank, node: str) -> list[tuple[Rank, Claim, Seat]]:
        """The replicas of a node whose places the wish may take, the last rank first.

        Whichever replica goes, a deployment loses the last of its ranks.
        """
        found: list[tuple[Rank, Claim, Seat]] = []
        lost: Counter[ObjectKey] = Counter()
        for other, seat in self.by_node.get(node, ()):
            kept = self.kept[other.key]
            if other.key == claim.key or seat not in kept:
                continue
            lost[other.key] += 1
            one = rank(other, len(kept) - lost[other.key])
            if wish.may_take(one):
                found.append((one, other, seat))
        return sorted(found, key=lambda entry: (entry[0], entry[1].key), reverse=True)

    def _holders(self, claim: Claim) -> list[ObjectKey]:
        held = Counter(
            {
                other.key: sum(other.size(seat) for seat in other.seats for node in seat.nodes if node in claim.nodes)
                for other in self.claims
                if other.key != claim.key
            }
        )
        return [key for key, gpus in sorted(held.items(), key=lambda item: (-item[1], item[0])) if gpus]


def _staying(claim: Claim) -> list[Seat]:
    """The replicas that are not draining, and of those at most as many as are wanted."""
    staying = [seat for seat in claim.seats if not seat.draining]
    return staying[max(0, len(staying) - claim.wanted) :]
