"""Which cached models must go so that another one has room. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache has of one model: `used` bytes on disk, and `coming` bytes that a running download will add.

    `last_used`: seconds since the epoch. `busy`: it is in use or being downloaded, so it must stay.
    """

    key: str
    used: int
    last_used: float
    busy: bool
    coming: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """`limit`: bytes that the cache may use. `free`: bytes that its file system has left."""

    limit: int
    free: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`evicted`: the keys that must go, the least recently used first. `missing`: bytes that are short even then.

    `available`: bytes that a new model may use after the evictions.
    """

    evicted: tuple[str, ...]
    missing: int
    available: int


def make_room(cached: Iterable[Cached], wanted: int, room: Room) -> Verdict:
    """What must go for `wanted` more bytes. If they do not fit even without everything idle, nothing goes."""
    entries = sorted(cached, key=lambda entry: (entry.last_used, entry.key))
    promised = sum(entry.coming for entry in entries)
    available = min(room.limit - sum(entry.used for entry in entries), room.free) - promised
    evicted: list[str] = []
    for entry in entries:
        if available >= wanted:
            break
        if not entry.busy:
            evicted.append(entry.key)
            available += entry.used
    if available < wanted:
        return Verdict((), wanted - available, max(0, available))
    return Verdict(tuple(evicted), 0, available)
