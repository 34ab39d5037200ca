"""Keeps equal parts of stored objects once. Ten thousand pods and revisions differ in little but their names.

JSON gives every object its own copy of each text, dict and list. With shared parts, a store needs about an eighth of
that memory (`bench/memory.py`). A shared part belongs to many objects, so nobody may ever change it.
"""

from __future__ import annotations

import sys
from typing import Any

from qwen_operator.kube import Manifest

# Texts and containers beyond this are rarely equal to another.
_LONGEST_TEXT = 1024
_MOST_MEMBERS = 64
_MOST_WEIGHT = 4_000_000

Key = tuple[Any, ...]


class Shared:
    """The parts that were shared lately.

    The table is bounded: when the younger half weighs `most` characters, it becomes the older half, and what was the
    older half is forgotten. Parts that are used again move to the younger half.
    """

    def __init__(self, most: int = _MOST_WEIGHT) -> None:
        self._most = most
        self._young: dict[Key, Any] = {}
        self._old: dict[Key, Any] = {}
        self._weight = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, manifest: Manifest) -> Manifest:
        """An equal object of shared parts. Its metadata has shared texts only, because the rest names this object."""
        return {
            sys.intern(name): _interned(part) if name == "metadata" else self._part(part)[0]
            for name, part in manifest.items()
        }

    def _part(self, value: Any) -> tuple[Any, Any]:
        """The shared value, and what stands for it in the key of its container; None if it is not in the table."""
        if isinstance(value, str):
            return (text := _text(value)), text if len(text) <= _LONGEST_TEXT else None
        if isinstance(value, dict):
            names = [_text(name) for name in value]
            parts = [self._part(member) for member in value.values()]
            return self._container({name: part for name, (part, _) in zip(names, parts, strict=True)}, names, parts)
        if isinstance(value, list):
            parts = [self._part(member) for member in value]
            return self._container([part for part, _ in parts], (), parts)
        # 1, 1.0 and True are equal, and not the same in JSON.
        return value, (value.__class__, repr(value))

    def _container(self, made: Any, names: Any, parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        marks = [mark for _, mark in parts]
        if len(parts) > _MOST_MEMBERS or None in marks or any(len(name) > _LONGEST_TEXT for name in names):
            return made, None
        # The order of the members counts: it is the order in which they are written.
        key = (made.__class__, *names, *marks)
        part = self._young.get(key)
        if part is None:
            part = self._old.get(key, made)
            self._add(key, part)
        # The table keeps `part` while its number stands in the key of a container, because that container has it.
        return part, id(part)

    def _add(self, key: Key, part: Any) -> None:
        self._weight += 100 + sum(len(mark) if isinstance(mark, str) else 10 for mark in key)
        if self._weight > self._most:
            self._old, self._young, self._weight = self._young, {}, 0
        self._young[key] = part


def _text(value: str) -> str:
    # A member of an enum is a text too, but not one of the type that Python can intern.
    return sys.intern(str(value)) if len(value) <= _LONGEST_TEXT else value


def _interned(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(name): _interned(member) for name, member in value.items()}
    return [_interned(member) for member in value] if isinstance(value, list) else value
