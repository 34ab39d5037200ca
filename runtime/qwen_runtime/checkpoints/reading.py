"""Typed reading of untrusted JSON. No value is converted, and an error names the field, its value and what is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_MEMBERS = 400_000
"""The most values in one file that is decoded as a whole. Each takes up to 100 bytes as a Python object."""
_LONGEST_INTEGER = 25
_SHOWN = 80
_SHORT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")


class InvalidFactsError(ValueError):
    """A file, report or stored record that is not valid. The text is one sentence without a full stop.

    `public` is the same without texts from the file. An answer from the network may hold what its reader must not see.
    """

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self.public = public or message


class UnknownArchitectureError(InvalidFactsError):
    """A model class that SGLang cannot load from such a file, or whose memory the operator cannot calculate."""


def shown(value: object) -> str:
    """An untrusted value in the form for a message: like JSON, short, on one line."""
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def kind(value: object) -> str:
    """A foreign value as it may stand in a public message: numbers and short names, and of other texts the length."""
    hidden = isinstance(value, str) and not _SHORT_NAME.fullmatch(value)
    return f"a text of {len(str(value))} characters" if hidden else shown(value)


def parse_json(data: bytes | str, file: str, limit: int) -> dict[str, Any]:
    """A JSON object from an untrusted file of at most `limit` bytes. Raises InvalidFactsError, which names the file."""
    value = parse_any_json(data, file, limit)
    if not isinstance(value, dict):
        right = "it must hold a JSON object"
        raise InvalidFactsError(f"{file} holds {shown(value)}, {right}", f"{file} does not hold an object, {right}")
    return value


def parse_any_json(data: bytes | str, file: str, limit: int) -> Any:
    """A JSON value from an untrusted file of at most `limit` bytes. Raises InvalidFactsError, which names the file.

    Like the engine's own reader it accepts NaN and Infinity, and takes the last of two equal keys. Both matter only in
    fields that are used, and those are checked for type and range.
    """
    if len(data) > limit:
        raise InvalidFactsError(f"{file} has {len(data)} bytes, it must have at most {limit}")
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MOST_MEMBERS:
        raise InvalidFactsError(f"{file} has more than {MOST_MEMBERS} values, it must have fewer")
    try:
        return json.loads(data, parse_int=_integer)
    except RecursionError:
        raise InvalidFactsError(f"{file} is nested too deeply to be read") from None
    except ValueError as error:
        detail = str(error) if isinstance(error, json.JSONDecodeError) else "it is not UTF-8 text"
        raise InvalidFactsError(f"{file} is not valid JSON: {detail}") from None


def _integer(text: str) -> int | float:
    # int() takes quadratic time for long digit strings. A number of this length is out of every range anyway.
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


def _label(name: str) -> str:
    """A field's name in a message. Where files choose names themselves, they may hold anything."""
    return name if name.isprintable() and len(name) <= _SHOWN else shown(name)


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object. Messages have `prefix` before the names of its fields, for example `text_config.`."""

    values: Mapping[str, Any]
    prefix: str = ""

    def has(self, name: str) -> bool:
        """Whether the field is present and not null."""
        return self.values.get(name) is not None

    def refuse(self, name: str, right: str) -> InvalidFactsError:
        """The error for a field: its name, its value, and what would be right."""
        if name not in self.values:
            return InvalidFactsError(f"{self.prefix}{_label(name)} is missing, it must be {right}")
        field, value = f"{self.prefix}{_label(name)}", self.values[name]
        return InvalidFactsError(
            f"{field} is {shown(value)}, it must be {right}", f"{field} is {kind(value)}, it must be {right}"
        )

    def whole(self, name: str, high: int, low: int = 1) -> int:
        """A required whole number from `low` to `high`."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"a whole number from {low} to {high}")
        return value

    def optional(self, name: str, high: int, low: int = 1) -> int | None:
        """A whole number, or None if the field is absent or null."""
        return self.whole(name, high, low) if self.has(name) else None

    def number(self, name: str, high: float) -> float:
        """A required finite number from 1 to `high`."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= high:
            raise self.refuse(name, f"a number from 1 to {high:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """A required true or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def optional_flag(self, name: str) -> bool | None:
        """True, false, or None if the field is absent or null."""
        return self.flag(name) if self.has(name) else None

    def name(self, name: str) -> str:
        """A required identifier."""
        value = self.values.get(name)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.refuse(name, "a name of letters, digits and _ . + - with at most 128 characters")
        return value

    def one_of(self, name: str, right: tuple[str, ...]) -> str:
        """A required text, one of `right`."""
        value = self.values.get(name)
        if not isinstance(value, str) or value not in right:
            raise self.refuse(name, "one of " + ", ".join(right))
        return value

    def nested(self, name: str) -> Fields:
        """A required object."""
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            raise self.refuse(name, "an object")
        return Fields(value, f"{self.prefix}{_label(name)}.")
