"""The checksums of objects in a bucket, from the headers that a store gives. Pure.

A store may have the sha256 of an object, if whoever uploaded it asked for one. The ETag of an object that came in one
piece is its MD5. That of an object in several parts is the MD5 of the MD5 of the parts, which can be computed if the
store says how large a part is. ETags of objects that a key service encrypts say nothing of the content.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_PARTS = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,4})", re.ASCII)
_PLAIN_ENCRYPTION = ("", "AES256")


class _Crc32:
    """The CRC-32 as S3 gives it."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: Any, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"crc32:{self.value:08x}"


class _Md5:
    """The ETag of an object in one piece."""

    def __init__(self) -> None:
        self.hash = hashlib.md5(usedforsecurity=False)

    def update(self, data: Any, /) -> None:
        self.hash.update(data)

    def hexdigest(self) -> str:
        return f"md5:{self.hash.hexdigest()}"


@dataclass(slots=True)
class _Parts:
    """The ETag of an object in parts of `size` bytes; the last may have fewer."""

    size: int
    done: list[bytes] = field(default_factory=list)
    count: int = 0
    part: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    def update(self, data: Any, /) -> None:
        view = memoryview(data)
        while view:
            piece = view[: self.size - self.count]
            self.part.update(piece)
            self.count, view = self.count + len(piece), view[len(piece) :]
            if self.count == self.size:
                self._end()

    def _end(self) -> None:
        self.done.append(self.part.digest())
        self.count, self.part = 0, hashlib.md5(usedforsecurity=False)

    def hexdigest(self) -> str:
        if self.count:
            self._end()
        whole = hashlib.md5(b"".join(self.done), usedforsecurity=False).hexdigest()
        return f"parts:{whole}-{len(self.done)}:{self.size}"


def digest(checksum: str) -> _Crc32 | _Md5 | _Parts | None:
    """A fresh checksum of the same kind as `checksum`, to compare with; None for an unknown kind."""
    kind, _, rest = checksum.partition(":")
    if kind == "parts":
        size = rest.rpartition(":")[2]
        return _Parts(int(size)) if size.isdigit() and int(size) else None
    return _Crc32() if kind == "crc32" else _Md5() if kind == "md5" else None


def of_object(headers: Mapping[str, str], etag: str) -> str:
    """The checksum in the headers of an object, in the form of `RemoteFile.checksum`; "" if they have none.

    `etag` is that of the list, without quotation marks. An ETag of several parts needs `of_parts`.
    """
    whole = headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
    if whole and (sha256 := _hexadecimal(headers.get("x-amz-checksum-sha256", ""), 32)):
        return sha256
    if _MD5.fullmatch(etag) and headers.get("x-amz-server-side-encryption", "") in _PLAIN_ENCRYPTION:
        return f"md5:{etag}"
    if whole and (crc := _hexadecimal(headers.get("x-amz-checksum-crc32", ""), 4)):
        return f"crc32:{crc}"
    return ""


def parts_in(headers: Mapping[str, str], etag: str) -> int:
    """How many parts the ETag is of; 0 if it is of none, or says nothing of the content."""
    match = _PARTS.fullmatch(etag)
    plain = headers.get("x-amz-server-side-encryption", "") in _PLAIN_ENCRYPTION
    return int(match[2]) if match and plain else 0


def of_parts(etag: str, size: int, first_part: int) -> str:
    """The checksum of an object of `size` bytes whose first part has `first_part`; "" if the numbers do not fit."""
    match = _PARTS.fullmatch(etag)
    if match is None or not 0 < first_part <= size or -(-size // first_part) != int(match[2]):
        return ""
    return f"parts:{etag}:{first_part}"


def summary(found: Sequence[str]) -> str:
    """What is checked, for the log."""
    kinds = {"sha256": 0, "md5": 0, "parts": 0, "crc32": 0, "": 0}
    for one in found:
        kinds["sha256" if len(one) == 64 and ":" not in one else one.partition(":")[0]] += 1
    names = {"sha256": "their sha256", "md5": "the MD5 in their ETag", "parts": "the MD5 of the parts in their ETag"}
    names |= {"crc32": "their CRC-32", "": "their size alone, because the store gives no checksum of them"}
    return "checks " + ", ".join(f"{count} files by {names[kind]}" for kind, count in kinds.items() if count)


def _hexadecimal(text: str, size: int) -> str:
    """The hexadecimal form of `size` bytes in base 64; "" for other texts."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == size else ""
