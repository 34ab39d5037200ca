"""The holders of all served names, kept up to date object by object. Pure.

The operator keeps an index next to its store. A change costs time for the names of the changed object only, however
many objects share a name. The gateway agent, which grants nothing, only needs `holders`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from qwen_operator.api.claims import (
    RESERVED_SECONDS,
    Claim,
    DeploymentKey,
    HeldName,
    Holding,
    Loss,
    LostName,
    NameRights,
    NameShare,
    Request,
    read_request,
    seconds_of,
    stamp_of,
)

# Names that nobody asks for any more, but that may still be reserved for the namespace of a deleted holder.
_FREED_NAMES = 10_000


@dataclass(slots=True)
class _Name:
    """One name. `claims` is sorted by `Claim.order`, and so are those of each namespace.

    `last`: the newest knowledge about a holder; without a namespace, that holder gave the name up. `chosen`: who is
    given the free name. It stays the same while the write of its status is on its way, so that the operator never
    grants one name to two objects. `seen`: one of the objects here held it, so no object that was never read does.
    """

    claims: list[Claim] = field(default_factory=list)
    by_key: dict[DeploymentKey, Claim] = field(default_factory=dict)
    by_namespace: dict[str, list[Claim]] = field(default_factory=dict)
    last: Holding | None = None
    chosen: DeploymentKey | None = None
    seen: bool = False

    @property
    def holder(self) -> Claim | None:
        return self.claims[0] if self.claims and self.claims[0].holds else None

    def add(self, claim: Claim) -> None:
        for claims in (self.claims, self.by_namespace.setdefault(claim.key.namespace, [])):
            insort(claims, claim, key=_order)
        self.by_key[claim.key] = claim
        known, last = claim.waits_for, self.last
        if claim is self.holder:
            self.chosen, self.seen = None, True
            if last is None or claim.holding().seconds >= last.seconds:
                self.last = claim.holding()
        # Of equal knowledge, the one with the end of a reservation is newer.
        elif known is not None and (last is None or _age(known) > _age(last)):
            self.last = known

    def discard(self, claim: Claim) -> None:
        own = self.by_namespace[claim.key.namespace]
        for claims in (self.claims, own):
            del claims[bisect_left(claims, claim.order, key=_order)]
        del self.by_key[claim.key]
        if not own:
            del self.by_namespace[claim.key.namespace]
        if self.chosen == claim.key:
            self.chosen = None

    def give_up(self) -> None:
        """Note that the holder still exists and no longer asks for the name, so the name is free for everybody."""
        if self.last is not None:
            self.last = Holding("", "", self.last.since)

    def choose_again(self, key: DeploymentKey) -> None:
        """After an edit of the object that is given the name: the write of its status may still be on its way."""
        if key in self.by_key and self.holder is None:
            self.chosen = key


@dataclass(frozen=True, slots=True)
class Move:
    """A name has another holder, or none. `first`: who has it or gets it now. `cause`: whose change this is."""

    name: str
    first: DeploymentKey | None
    cause: DeploymentKey


class NameIndex:
    """Requests by key, and the names by name. `clock` returns a timezone-aware time.

    `namespaces`: those that are served, if not all are. An object of one that was never read (see `read`) may hold any
    name that the namespace may serve. Nobody can grant a name to an object of one that is `unreadable` now, but what
    such objects held when they were last read stays theirs.
    """

    def __init__(self, rights: NameRights, clock: Callable[[], datetime], namespaces: Iterable[str] = ()) -> None:
        self.unreadable: frozenset[str] = frozenset()
        self._unread = set(namespaces)
        self._rights = rights
        self._clock = clock
        self._requests: dict[DeploymentKey, Request] = {}
        self._names: dict[str, _Name] = {}
        self._living: dict[str, DeploymentKey] = {}
        self._freed: dict[str, None] = {}
        self._moved: dict[str, Move] = {}

    def read(self, namespace: str) -> None:
        """Note that all objects of this namespace are known now."""
        self._unread.discard(namespace)

    def put(self, key: tuple[str, str], deployment: Mapping[str, Any] | None) -> None:
        """Replace what an object asks for; None if it does not exist any more."""
        place = DeploymentKey(*key)
        old = self._requests.get(place)
        new = read_request(deployment, self._rights) if deployment is not None else None
        if new == old:
            return
        names = dict.fromkeys(claim.name for request in (old, new) if request is not None for claim in request.claims)
        before = {name: self._answer(name) for name in names}
        stays = old is not None and new is not None and new.living and new.mark == old.mark
        held = [name for name in names if stays and self._holds(name, place)]
        granted = [name for name in names if stays and self._is_chosen(name, place)]
        if old is not None:
            self._remove(old)
        if new is not None:
            self._add(new)
        for name in granted:
            self._names[name].choose_again(place)
        for name in names:
            if name in held:
                self._give_up(name, place)
            self._settle(name)
            if self._answer(name) != before[name]:
                self._moved[name] = Move(name, self._first(name), place)

    def _add(self, request: Request) -> None:
        self._requests[request.key] = request
        if request.living:
            self._living[request.mark] = request.key
        for claim in request.claims:
            self._names.setdefault(claim.name, _Name()).add(claim)

    def _remove(self, request: Request) -> None:
        del self._requests[request.key]
        self._living.pop(request.mark, None)
        for claim in request.claims:
            self._names[claim.name].discard(claim)

    def _holds(self, name: str, key: DeploymentKey) -> bool:
        entry = self._names.get(name)
        holder = entry.holder if entry is not None else None
        return holder is not None and holder.key == key

    def _is_chosen(self, name: str, key: DeploymentKey) -> bool:
        entry = self._names.get(name)
        return entry is not None and entry.chosen == key

    def _give_up(self, name: str, key: DeploymentKey) -> None:
        if key not in self._names[name].by_key:
            self._names[name].give_up()

    def moves(self) -> list[Move]:
        """The last change of each name whose holder changed since the previous call."""
        moved, self._moved = self._moved, {}
        return list(moved.values())

    def asking(self, name: str) -> Iterator[DeploymentKey]:
        """All that ask for a name."""
        entry = self._names.get(name)
        return (claim.key for claim in entry.claims) if entry is not None else iter(())

    def share(self, key: tuple[str, str]) -> NameShare:
        """What a deployment has, gets now, and does not have. Only the operator, which grants names, asks this."""
        request = self._requests.get(DeploymentKey(*key))
        if request is None:
            return NameShare()
        answers = [self._granted(claim) for claim in request.claims]
        lost = [answer for answer in answers if isinstance(answer, LostName)]
        allowed = self._rights.shown(request.key.namespace)
        forbidden = [LostName(name, Loss.FORBIDDEN, allowed=allowed) for name in request.forbidden]
        held = tuple(answer for answer in answers if isinstance(answer, HeldName))
        return NameShare(held, (*lost, *forbidden), request.refused)

    def held(self, key: tuple[str, str]) -> tuple[str, ...]:
        """The names that a deployment has or gets now."""
        return tuple(one.name for one in self.share(key).held)

    def _granted(self, claim: Claim) -> HeldName | LostName:
        entry = self._names[claim.name]
        holder = entry.holder
        if holder is not None:
            return HeldName(claim.name, holder.since) if holder.key == claim.key else _lost(claim, holder, Loss.HELD)
        chosen = self._next(claim.name, entry)
        if chosen is None:
            if unread := self._may_hold(claim.name, entry):
                return LostName(claim.name, Loss.UNKNOWN, entry.last, unread=unread)
            return LostName(claim.name, Loss.RESERVED, entry.last, first=claim is self._oldest(entry))
        entry.chosen = chosen.key
        if chosen.key == claim.key:
            return HeldName(claim.name, after=entry.last.since if entry.last is not None else "")
        return _lost(claim, chosen, Loss.NEXT)

    def _next(self, name: str, entry: _Name) -> Claim | None:
        """Who gets a name without a holder.

        None while it is reserved for a namespace that does not ask for it, or while somebody unknown may hold it.
        """
        if entry.chosen is not None:
            return entry.by_key[entry.chosen]
        if self._may_hold(name, entry):
            return None
        first, last = self._oldest(entry), entry.last
        if first is None or last is None or not last.namespace:
            return first
        living = self._living.get(last.mark)
        if living is not None:
            # Without a claim, the former holder gave the name up, or has no right to it any more.
            return entry.by_key.get(living, first)
        if own := entry.by_namespace.get(last.namespace):
            return own[0]
        return first if seconds_of(self._reserve(entry, last)) <= self._clock().timestamp() else None

    def _oldest(self, entry: _Name) -> Claim | None:
        """The first claim of those that can be granted."""
        if not self.unreadable:
            return next(iter(entry.claims), None)
        own = (claims[0] for namespace, claims in entry.by_namespace.items() if namespace not in self.unreadable)
        return min(own, key=_order, default=None)

    def _may_hold(self, name: str, entry: _Name) -> tuple[str, ...]:
        """The namespaces that were never read and of which an object may hold this name, sorted."""
        if not self._unread or entry.seen:
            return ()
        able = tuple(sorted(one for one in self._unread if self._rights.allow(one, name)))
        known = entry.last.namespace if entry.last is not None else ""
        return (known,) if known in able else able

    def _reserve(self, entry: _Name, last: Holding) -> str:
        """The end of the reservation. It begins now if it has no end, or one that is too far away."""
        latest = self._clock() + timedelta(seconds=RESERVED_SECONDS)
        if not float("-inf") < seconds_of(last.until) <= latest.timestamp():
            entry.last = last = replace(last, until=stamp_of(latest))
        return last.until

    def _settle(self, name: str) -> None:
        """Begin the reservation of a name whose holder is gone, and forget names that were freed long ago."""
        entry = self._names.get(name)
        if entry is None:
            return
        last = entry.last
        known = last is not None and last.namespace and last.namespace not in self._unread
        if entry.holder is None and last is not None and known and last.mark not in self._living:
            self._reserve(entry, last)
        if entry.claims:
            self._freed.pop(name, None)
            return
        self._freed[name] = None
        if entry.last is None or len(self._freed) > _FREED_NAMES:
            oldest = next(iter(self._freed)) if entry.last is not None else name
            del self._freed[oldest], self._names[oldest]

    def _first(self, name: str) -> DeploymentKey | None:
        entry = self._names.get(name)
        if entry is None:
            return None
        first = entry.holder or self._next(name, entry) or next(iter(entry.claims), None)
        return first.key if first is not None else None

    def _answer(self, name: str) -> tuple[object, ...]:
        """The part of the answer that the messages of all others depend on."""
        entry = self._names.get(name)
        holder = entry.holder if entry is not None else None
        if holder is not None:
            return holder.key, holder.mark, holder.since
        first = self._first(name)
        return (first, "", "")


@dataclass(frozen=True, slots=True)
class Holders:
    """The result of `holders`: the holder of each name, and each deployment's names in the order of `servedNames`."""

    owners: Mapping[str, DeploymentKey]
    won: Mapping[DeploymentKey, tuple[str, ...]]
    refused: Mapping[DeploymentKey, tuple[str, ...]]


def holders(deployments: Iterable[Mapping[str, Any]], rights: NameRights) -> Holders:
    """The holders of all names, from the objects alone. Names that nobody holds yet have no owner.

    It has the same answer as a NameIndex of the same objects, in less time.
    """
    requests = [read_request(deployment, rights) for deployment in deployments]
    first: dict[str, Claim] = {}
    for request in requests:
        for claim in request.claims:
            best = first.get(claim.name)
            if claim.holds and (best is None or claim.order < best.order):
                first[claim.name] = claim
    return Holders(
        {name: claim.key for name, claim in first.items()},
        {request.key: tuple(c.name for c in request.claims if first.get(c.name) is c) for request in requests},
        {request.key: request.refused for request in requests},
    )


def _order(claim: Claim) -> tuple[int, float, str, DeploymentKey]:
    return claim.order


def _lost(claim: Claim, other: Claim, loss: Loss) -> LostName:
    name = other.key.name if other.key.namespace == claim.key.namespace else ""
    return LostName(claim.name, loss, other.holding(), name)


def _age(known: Holding) -> tuple[float, bool]:
    return known.seconds, known.until != ""
