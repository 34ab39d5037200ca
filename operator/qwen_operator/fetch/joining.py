"""Joins the parts of a split GGUF file that have arrived, in the folder in which they are.

The data of a part moves into the joined file from its end, step by step, and the part gets shorter. So this needs the
room of one step and not that of a second model, and a process that was killed goes on with what the parts still have.
Their headers stay until all data has moved.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qwen_runtime.checkpoints.gguf import Header, read_header
from qwen_runtime.checkpoints.gguf_parts import ABOUT_SPLIT, data_bytes, join, joined_bytes

STEP_BYTES = 64 << 20
# As in transfer.WRITE_BYTES: larger pieces cost more.
_BUFFER_BYTES = 128 << 10
STARTED = ".joining"
"""A file of this name says that all parts have arrived and were checked, so they may be shorter now. It has a text when
the joined file is complete."""


def has_started(folder: Path) -> bool:
    """Whether the parts in the folder were complete, and are being joined."""
    return (folder / STARTED).exists()


def give_up(folder: Path) -> None:
    """Forget that the joining has started."""
    (folder / STARTED).unlink(missing_ok=True)


def join_parts(folder: Path, parts: Sequence[str], target: str) -> int:
    """Make the file `target` from its complete parts, and remove them. Returns its bytes.

    Raises OSError, and InvalidFactsError if a header is none any more.
    """
    mark = folder / STARTED
    mark.touch()
    if not mark.read_bytes():
        _join(folder, parts, target)
        mark.write_text("complete")
    for part in parts:
        (folder / part).unlink(missing_ok=True)
    return (folder / target).stat().st_size


def _join(folder: Path, parts: Sequence[str], target: str) -> None:
    headers = [_header(folder / part) for part in parts]
    beginning = joined_bytes(join(headers, parts), _entries(folder / parts[0], headers[0]))
    out = os.open(folder / target, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        at = len(beginning)
        os.ftruncate(out, at + sum(data_bytes(header) for header in headers))
        os.pwrite(out, beginning, 0)
        for part, header in zip(parts, headers, strict=True):
            _move(folder / part, header, out, at)
            at += data_bytes(header)
        os.fsync(out)
    finally:
        os.close(out)


def _header(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(file.read, path.name)


def _entries(path: Path, header: Header) -> list[bytes]:
    """The metadata of the first part, without what is about the split."""
    with path.open("rb") as file:
        content = file.read(header.data_start)
    return [content[first:end] for key, (first, end) in header.places.items() if not key.startswith(ABOUT_SPLIT)]


def _move(path: Path, header: Header, out: int, at: int) -> None:
    """Move the data of a part to the byte `at` of another file."""
    with path.open("r+b", buffering=0) as part:
        end = min(header.end, os.fstat(part.fileno()).st_size)
        while end > header.data_start:
            first = max(header.data_start, end - STEP_BYTES)
            _copy(part.fileno(), first, end, out, at + first - header.data_start)
            os.fdatasync(out)
            os.ftruncate(part.fileno(), first)
            end = first


def _copy(source: int, first: int, end: int, out: int, at: int) -> None:
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, end - first)))
    while first < end:
        count = os.preadv(source, [buffer[: end - first]], first)
        written = os.pwrite(out, buffer[:count], at)
        first, at = first + written, at + written
