"""Takes a large JSON text apart while it arrives, so that it never stands in memory as a whole.

A checkpoint's header, the index of its weights and a list of Kubernetes objects have the same form: one object or list
with very many members. `Parts` returns these one by one as text, for the caller to decode. It looks only for brackets,
commas and strings, and takes time in proportion to the text. What is no JSON shows when a part is decoded.
"""

from __future__ import annotations

import re

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_LEAF = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + rb")*+[\]}]"
# Up to the next bracket that opens or closes more than a leaf, and, between parts, up to the next comma.
_DEEP = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_FLAT = re.compile(rb'(?:[^",\[\]{}]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TOP = re.compile(rb"\s*+[\[{]")
_BRACKET = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + rb"|" + _LEAF + rb")*+[\]}]"
_MEMBER = rb"\s*+" + _STRING + rb"\s*+:(?:[^\",\[\]{}]++|" + _STRING + rb"|" + _BRACKET + rb")*+,"


class TooLargeError(ValueError):
    """The text around the parts is larger than the limit."""


class Parts:
    """The members of one object or list: of the whole text, or of the top-level member `member`.

    A part of more than `largest_part` bytes is dropped. The text around the parts has at most `largest_rest` bytes.
    """

    def __init__(self, member: str | None, largest_part: int, largest_rest: int) -> None:
        # The members before it may have two levels. Otherwise `member` is not found, and its parts are in the rest.
        before = rb"\s*+\{(?:(?!\s*+%b\s*+:)%b)*+\s*+%b\s*+:\s*+[\[{]"
        name = b'"%b"' % re.escape((member or "").encode())
        self._opening = _TOP if member is None else re.compile(before % (name, _MEMBER, name), re.DOTALL)
        self._largest_part = largest_part
        self._largest_rest = largest_rest
        self._head = b""
        self._tail = b""
        self._depth = 0  # 0: before or after the parts, 1: between their members
        self._open = False
        self._closed = False
        self._in_string = False
        self._carried = b""
        self._part: list[bytes] = []
        self._size = 0
        self._several = False
        self.dropped = 0
        """How many parts were too large."""

    def feed(self, data: bytes) -> list[bytes]:
        """The parts that this piece of the text completes. Raises TooLargeError.

        The part of an object is `"name": value`, that of a list a value.
        """
        if self._closed:
            self._tail = self._bounded(self._tail + data)
            return []
        if not self._open:
            text = self._head + data
            opening = self._opening.match(text)
            if opening is None:
                self._head = self._bounded(text)
                return []
            self._head, data = self._bounded(text[: opening.end()]), text[opening.end() :]
            self._open, self._depth = True, 1
        return self._scan(self._carried + data)

    @property
    def of_object(self) -> bool:
        """Whether the parts are members of an object, and not of a list."""
        return self._head.endswith(b"{")

    def end(self) -> bytes:
        """The text around the parts. It is no JSON if the text ended too early."""
        return self._head + self._tail

    def _bounded(self, rest: bytes) -> bytes:
        if len(rest) > self._largest_rest:
            raise TooLargeError(f"it has more than {self._largest_rest} bytes besides its members")
        return rest

    def _scan(self, data: bytes) -> list[bytes]:
        parts: list[bytes] = []
        self._carried = b""
        start = position = 0
        while position < len(data):
            if self._in_string:
                position = self._end_of_string(data, position)
                continue
            run = (_FLAT if self._depth == 1 else _DEEP).match(data, position)
            position = run.end() if run else position
            if position == len(data):
                break
            mark = data[position : position + 1]
            if mark == b'"':
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark in b"]}":
                self._depth -= 1
            if self._depth == 0 or (mark == b"," and self._depth == 1):
                self._keep(data[start:position])
                self._finish(parts)
                start = position + 1
            position += 1
            if self._depth == 0:
                self._closed = True
                self._tail = self._bounded(data[position - 1 :])
                return parts
        self._keep(data[start : len(data) - len(self._carried)])
        return parts

    def _end_of_string(self, data: bytes, position: int) -> int:
        rest = _STRING_REST.match(data, position)
        position = rest.end() if rest else position
        if data[position : position + 1] == b'"':
            self._in_string = False
            return position + 1
        # A backslash at the end belongs to the next piece.
        self._carried = data[position:]
        return len(data)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._largest_part:
            self._part.clear()
        elif piece:
            self._part.append(piece)

    def _finish(self, parts: list[bytes]) -> None:
        part = b"".join(self._part)
        if self._size > self._largest_part:
            self.dropped += 1
        elif part.strip() or self._depth or self._several:
            # Only the single part of an empty object or list may be empty.
            parts.append(part)
        self._part.clear()
        self._size = 0
        self._several = True
