"""Reads values that somebody else wrote: bounded depth, size and range, and text that is safe to show. Pure.

Everything here is total: bad input gives an empty value or a ValueError, never another error. No function recurses, so
deep nesting cannot exhaust the stack.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

REPORT_BYTES = 64 * 1024
"""The largest report in a termination message. The kubelet keeps 4 KiB of a message, and 12 KiB of all in a pod."""

REPORT_LEVELS = 16

# int() takes quadratic time for long texts, and Python rejects more than 4300 digits. No field has such a value.
_LONGEST_INTEGER = 25
# A string, or one bracket. The possessive quantifiers keep the time linear.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
# Control characters, the line separators of Unicode, marks that reorder text, and lone surrogates, which UTF-8 cannot
# encode.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ONE_KIND = bytes.maketrans(b"[]", b"{}")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_CONTAINERS = (dict, list)


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a value. `levels`: how deep it is nested, 1 for {}. `values`: all keys and members in it.

    `characters`: of all its texts together.
    """

    levels: int
    values: int
    characters: int


def decode(content: bytes | str, levels: int) -> Any:
    """The JSON value. What is nested deeper than `levels` becomes null. Raises ValueError if it is not JSON."""
    value = loads(content, levels)
    cut_deep(value, levels)
    return value


def loads(content: bytes | str, levels: int) -> Any:
    """The JSON value. It may be too deep for a function that recurses, and has at least `levels` levels of the content.

    Raises ValueError if it is not JSON.
    """
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        return _loads(raw)
    except RecursionError:
        return _loads(_without_deep_parts(raw, levels))


def is_shallow(raw: bytes, levels: int) -> bool:
    """Whether JSON has at most `levels` levels, told from its brackets without decoding it.

    It takes less time than decoding. For what is no JSON it may answer either way.
    """
    brackets = _STRING.sub(b"", raw).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(levels):
        if not brackets:
            return True
        brackets = brackets.replace(b"{}", b"")
    return not brackets


def deeper(value: Any, levels: int) -> bool:
    """Whether a dict or list with members is nested deeper than `levels`. It is much faster than `size_of`."""
    containers = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(levels):
        inner: list[Any] = []
        for container in containers:
            members = container.values() if container.__class__ is dict else container
            inner += [member for member in members if member.__class__ in _CONTAINERS and member]
        if not inner:
            return False
        containers = inner
    return True


def cut_deep(value: Any, levels: int) -> bool:
    """Replace what is nested deeper than `levels` by None, in place. Returns whether there was such a part."""
    for depth, containers in enumerate(_by_level(value), 1):
        if depth == levels:
            return sum(_drop_containers(container) for container in containers) > 0
    return False


def size_of(value: Any, most: float = math.inf) -> Size:
    """The size of a value made of dicts and lists. It stops counting at more than `most` values."""
    levels = values = 0
    characters = len(value) if isinstance(value, str) else 0
    for containers in _by_level(value):
        levels += 1
        for container in containers:
            values += len(container)
            if values > most:
                return Size(levels, values, characters)
            members = [*container, *container.values()] if isinstance(container, dict) else container
            characters += sum(len(member) for member in members if isinstance(member, str))
    return Size(levels, values, characters)


def report(message: object) -> Mapping[str, Any]:
    """The JSON object in a text, such as a termination message; {} if there is none, or if it is not a plain report."""
    if not isinstance(message, str) or len(message) > REPORT_BYTES:
        return {}
    try:
        value = decode(message, REPORT_LEVELS)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def clean(value: object, limit: int) -> str:
    """The value as one line of at most `limit` characters that a status, an Event or a log can hold.

    Control characters and lone surrogates become a space. None gives "".
    """
    if value is None:
        return ""
    # Cleaning can only shorten a text, so what is beyond twice the limit is rarely needed.
    text = value if isinstance(value, str) else _plain(value)
    line = _UNSAFE.sub(" ", text[: 2 * limit]).strip()
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def whole(value: object, low: int, high: int, otherwise: int) -> int:
    """The value if it is a whole number from `low` to `high`, else `otherwise`."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    return otherwise


def digits(text: object, high: int, otherwise: int) -> int:
    """The number that a text of ASCII digits names, if it is at most `high`, else `otherwise`."""
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= _LONGEST_INTEGER:
        return whole(int(text), 0, high, otherwise)
    return otherwise


def count(value: float, high: float) -> bool:
    """Whether the number can count something: finite, not negative and at most `high`."""
    # A comparison with NaN is false, and one with an integer of any size is exact.
    return 0 <= value <= high


def _plain(value: object) -> str:
    """A value that is no text, as text. A container is named by its kind, because its text may be of any size."""
    if isinstance(value, _CONTAINERS):
        return "an object" if isinstance(value, dict) else "a list"
    try:
        return str(value)
    except ValueError:
        # Python refuses to write an integer of more than 4300 digits.
        return "a number"


def _loads(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Invalid UTF-8, or an integer that is too long for Python.
        return json.loads(raw.decode("utf-8", "replace"), parse_int=_integer)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


def _without_deep_parts(raw: bytes, levels: int) -> bytes:
    """The same JSON text with null in place of everything that is nested deeper than `levels`."""
    kept, depth, start = [], 0, 0
    for token in _TOKEN.finditer(raw):
        mark = raw[token.start()]
        if mark in b"[{":
            depth += 1
            if depth == levels + 1:
                kept += [raw[start : token.start()], b"null"]
        elif mark in b"]}":
            if depth == levels + 1:
                start = token.end()
            depth -= 1
    # Without the closing brackets it is not JSON, and the rest is not needed to see that.
    return b"".join([*kept, raw[start:]] if depth <= levels else kept)


def _by_level(value: Any) -> Iterator[list[Any]]:
    """The dicts and lists of a value, level by level from the outside."""
    containers = [value] if isinstance(value, _CONTAINERS) else []
    while containers:
        yield containers
        containers = [
            member
            for container in containers
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, _CONTAINERS)
        ]


def _drop_containers(container: Any) -> int:
    """Replace the dicts and lists in a container by None. Returns how many there were."""
    entries = list(container.items() if isinstance(container, dict) else enumerate(container))
    deep = [place for place, member in entries if isinstance(member, _CONTAINERS)]
    for place in deep:
        container[place] = None
    return len(deep)
