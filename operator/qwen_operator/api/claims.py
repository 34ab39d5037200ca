"""Which QwenDeployment holds a served name when several ask for it. Pure.

One gateway serves all deployments by name, so a name has exactly one holder. The operator grants a free name by
writing it into the status of one QwenDeployment (`status.names`). Operator and gateway agent read the holder from the
objects alone, with the same code (`NameIndex`), so they always agree, and no clock and no creation time can move a
name that somebody holds. docs/decisions/0014-names.md has the reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from qwen_operator import objects
from qwen_operator.objects import is_deleting, mapping, members, moment

RESERVED_SECONDS = 300
"""How long the name of a deleted QwenDeployment stays reserved for its namespace while others wait for it."""

ANY_NAMESPACE = "*"
_SHOWN_PATTERNS = 3


class DeploymentKey(NamedTuple):
    """A QwenDeployment; equal to the plain tuple (namespace, name)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class NameRights:
    """Which namespaces may serve which names: namespace -> patterns, in which `*` stands for any characters.

    The namespace `*` stands for every namespace without an entry. Without any entry, everything is allowed.
    """

    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, namespace: str) -> tuple[str, ...]:
        """The patterns that hold for a namespace."""
        if not self.patterns:
            return (ANY_NAMESPACE,)
        return self.patterns.get(namespace, self.patterns.get(ANY_NAMESPACE, ()))

    def allow(self, namespace: str, name: str) -> bool:
        """Whether QwenDeployments of this namespace may serve this name."""
        return any(_matches(pattern, name) for pattern in self.of(namespace))

    def shown(self, namespace: str) -> str:
        """The patterns of a namespace as a part of a sentence."""
        patterns = self.of(namespace)
        more = f" and {len(patterns) - _SHOWN_PATTERNS} more" if len(patterns) > _SHOWN_PATTERNS else ""
        return ", ".join(f'"{one}"' for one in patterns[:_SHOWN_PATTERNS]) + more if patterns else "none"


class Rank(IntEnum):
    """How a QwenDeployment stands to a name; the smallest rank holds it, and ASKING never does.

    RECORDED: its status records the name. LISTED, UNLISTED: a version without this record wrote its status, and that
    status does or does not list the name. Then the old rule decides, by creation time.
    """

    RECORDED = 0
    LISTED = 1
    UNLISTED = 2
    ASKING = 3


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds a name, or held it last. `mark` identifies the object, `since` and `until` are RFC 3339 or "".

    `until`: the object was deleted, and the name is reserved for its namespace until this time.
    """

    namespace: str
    mark: str
    since: str
    until: str = ""

    @property
    def seconds(self) -> float:
        """`since` as a number to compare; -inf if it is no time."""
        return seconds_of(self.since)


@dataclass(frozen=True, slots=True)
class Claim:
    """One object's claim to one name. `waits_for`: what its status says about the holder."""

    name: str
    key: DeploymentKey
    mark: str
    rank: Rank
    since: str
    created: str
    waits_for: Holding | None = None

    @property
    def order(self) -> tuple[int, float, str, DeploymentKey]:
        """The holder of a name, if it has one, is the claim with the smallest order.

        Of two records, the later one is true: a name is granted only after its holder gave it up.
        """
        later = -seconds_of(self.since) if self.rank is Rank.RECORDED else 0.0
        return self.rank, later, self.created, self.key

    @property
    def holds(self) -> bool:
        """Whether it holds the name if no other claim is before it."""
        return self.rank < Rank.ASKING

    def holding(self) -> Holding:
        """What others learn of this claim."""
        return Holding(self.key.namespace, self.mark, self.since)


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that one QwenDeployment asks for. Names keep the order of `servedNames`.

    `living`: it is not being deleted.
    `forbidden`: names that its namespace may not serve. `refused`: one sentence for each name that no client can ask
    for. The API server rejects such names too, so only objects that are older than that rule have them.
    """

    key: DeploymentKey
    mark: str
    living: bool
    claims: tuple[Claim, ...] = ()
    forbidden: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Loss(StrEnum):
    """Why a QwenDeployment does not have a name.

    HELD: another one holds it. RESERVED: the holder was deleted, and its namespace may make it anew. NEXT: another one
    is given the free name now. UNKNOWN: one that was never read may hold it. FORBIDDEN: its namespace has no right to
    the name.
    """

    HELD = "Held"
    RESERVED = "Reserved"
    NEXT = "Next"
    UNKNOWN = "Unknown"
    FORBIDDEN = "Forbidden"


@dataclass(frozen=True, slots=True)
class LostName:
    """A name that the deployment asks for and does not have.

    `deployment` is set only if the holder is in the same namespace: an object's name is nobody else's business.
    `allowed`: the patterns of the namespace, for FORBIDDEN. `first`: it is the next one when a reservation ends.
    `unread`: the namespaces that may hold it, for UNKNOWN.
    """

    name: str
    loss: Loss
    holding: Holding | None = None
    deployment: str = ""
    allowed: str = ""
    first: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldName:
    """A name that the deployment has. Without `since` the operator grants it now, to a time later than `after`."""

    name: str
    since: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class NameShare:
    """One deployment's share of the names. Names keep the order of `servedNames`."""

    held: tuple[HeldName, ...] = ()
    lost: tuple[LostName, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def lost_names(self) -> frozenset[str]:
        return frozenset(lost.name for lost in self.lost)

    def wait(self, now: datetime) -> float | None:
        """Seconds until this deployment may get a name that is reserved for another namespace.

        None if it is the next one for no such name: the others get it later.
        """
        times = [seconds_of(lost.holding.until) for lost in self.lost if lost.holding is not None and lost.first]
        return max(1.0, min(times) - now.timestamp()) if times else None

    def record(self, uid: str, now: datetime) -> dict[str, Any]:
        """`status.names`: what this object holds and waits for. Only an object with this uid holds it."""
        held = [{"name": one.name, "since": one.since or _later(now, one.after)} for one in self.held]
        waiting = [
            {
                "name": lost.name,
                "namespace": lost.holding.namespace,
                "holder": lost.holding.mark,
                **{part: text for part in ("since", "until") if (text := getattr(lost.holding, part))},
            }
            for lost in self.lost
            if lost.holding is not None
        ]
        return {"uid": uid, **({"held": held} if held else {}), **({"waiting": waiting} if waiting else {})}


def served_names(deployment: Mapping[str, Any]) -> tuple[str, ...]:
    """The names as written: `spec.servedNames` if it has any, else `spec.model`. Each name appears once."""
    spec = mapping(deployment, "spec")
    names = spec.get("servedNames") or [spec.get("model")]
    names = names if isinstance(names, list) else []
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def name_problem(name: str) -> str | None:
    """Why the gateway cannot serve a name, or None. In a request, a colon separates a model from an adapter."""
    if not name:
        return "the name is empty"
    if ":" in name:
        return f"the name {name!r} contains a colon, which separates a model from an adapter"
    if any(char.isspace() or not char.isprintable() for char in name):
        return f"the name {name!r} contains white space or a control character"
    return None


def read_request(deployment: Mapping[str, Any], rights: NameRights) -> Request:
    """What a QwenDeployment asks for. One that is being deleted asks for nothing."""
    meta = mapping(deployment, "metadata")
    key = DeploymentKey(objects.text(meta, "namespace"), objects.text(meta, "name"))
    mark = mark_of(objects.text(meta, "uid"))
    if is_deleting(deployment):
        return Request(key, mark, living=False)
    problems = {name: name_problem(name) for name in served_names(deployment)}
    good = [name for name, problem in problems.items() if problem is None]
    record = _Record.read(deployment)
    created = objects.text(meta, "creationTimestamp") or "9999"
    claims, forbidden = list[Claim](), list[str]()
    for name in good:
        if not rights.allow(key.namespace, name):
            forbidden.append(name)
            continue
        rank = record.rank(name)
        since = {Rank.RECORDED: record.held.get(name, ""), Rank.ASKING: ""}.get(rank, created)
        claims.append(Claim(name, key, mark, rank, since, created, record.waiting.get(name)))
    return Request(
        key,
        mark,
        True,
        tuple(claims),
        tuple(forbidden),
        tuple(problem for problem in problems.values() if problem is not None),
    )


def mark_of(uid: str) -> str:
    """A short text that identifies an object and tells nothing about it."""
    return hashlib.sha256(uid.encode("utf-8", "replace")).hexdigest()[:12]


def seconds_of(stamp: str) -> float:
    """An RFC 3339 text as seconds; -inf if it is no time."""
    time = moment(stamp)
    return time.timestamp() if time is not None else float("-inf")


@dataclass(frozen=True, slots=True)
class _Record:
    """What a status says about names. `legacy`: a version without `status.names` wrote it, for the present spec."""

    held: Mapping[str, str]
    waiting: Mapping[str, Holding]
    written: bool
    listed: frozenset[str]
    legacy: bool

    @classmethod
    def read(cls, deployment: Mapping[str, Any]) -> _Record:
        status, meta = mapping(deployment, "status"), mapping(deployment, "metadata")
        names = mapping(status, "names")
        # A backup may restore the status of an earlier object of the same name. That record is void.
        valid = bool(names) and names.get("uid") == meta.get("uid")
        held = {objects.text(one, "name"): objects.text(one, "since") for one in members(names, "held")}
        waiting = {
            objects.text(one, "name"): Holding(*(objects.text(one, part) for part in _WAITING_PARTS))
            for one in members(names, "waiting")
        }
        listed = mapping(status, "endpoint").get("names")
        observed = status.get("observedGeneration")
        return cls(
            held if valid else {},
            waiting if valid else {},
            bool(names),
            frozenset(name for name in listed if isinstance(name, str)) if isinstance(listed, list) else frozenset(),
            observed is not None and observed == meta.get("generation"),
        )

    def rank(self, name: str) -> Rank:
        if name in self.held:
            return Rank.RECORDED
        if self.written:
            return Rank.ASKING
        if name in self.listed:
            return Rank.LISTED
        return Rank.UNLISTED if self.legacy else Rank.ASKING


_WAITING_PARTS = ("namespace", "holder", "since", "until")


def _later(now: datetime, after: str) -> str:
    """The present time, but at least a second after `after`.

    So the order of two grants of a name is right even if a clock was set back, or if two operators' clocks differ.
    """
    last = moment(after)
    return stamp_of(max(now, last + timedelta(seconds=1)) if last is not None else now)


def stamp_of(time: datetime) -> str:
    """RFC 3339 to the second, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _matches(pattern: str, name: str) -> bool:
    """Whether the name has this form. `*` stands for any characters. The time is linear for any pattern."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    place, end = len(first), len(name) - len(last)
    for part in middle:
        start = name.find(part, place, end)
        if start < 0:
            return False
        place = start + len(part)
    return True
