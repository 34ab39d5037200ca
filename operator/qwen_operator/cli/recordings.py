"""Reads recordings of the scaling loop. They come from anybody: size and form are checked, one line at a time."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from qwen_operator.cli.files import InputError
from qwen_operator.scaling.recording import LINE_BYTES, Looked, looked_of
from qwen_operator.untrusted import clean

MOST_BYTES = 16 * 1024**3
"""The most bytes of one file, after it is unpacked. A whole recording of the default size has about a tenth of it."""
_GZIP = b"\x1f\x8b"
_COMMON = "right would be a file that the operator recorded"


def looks(paths: Iterable[str]) -> Iterator[Looked]:
    """The looks of the files, plain or gzip, in the order of their lines; `-` is standard input. Raises InputError."""
    for path in paths:
        for number, line in _lines(path):
            try:
                yield looked_of(line)
            except ValueError as error:
                raise InputError(f"{path}: line {number} is no look: {clean(error, 300)}; {_COMMON}") from None


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Each whole line and its number. A file that was cut may end within a line or within its gzip."""
    try:
        with _opened(path) as file:
            size = number = 0
            while True:
                line = _next(file)
                number, size = number + 1, size + len(line)
                if not line:
                    return
                if size > MOST_BYTES:
                    raise InputError(f"{path}: has more than {MOST_BYTES} bytes, which no recording has")
                if len(line) > LINE_BYTES:
                    raise InputError(f"{path}: line {number} has more than {LINE_BYTES} bytes; {_COMMON}")
                if not line.endswith(b"\n"):
                    return
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {clean(error.strerror or error, 200)}") from error
    except zlib.error as error:
        raise InputError(f"{path}: is damaged: {clean(error, 200)}") from error


def _next(file: IO[bytes]) -> bytes:
    try:
        return file.readline(LINE_BYTES + 1)
    except EOFError:
        return b""


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file, unpacked if it is gzip."""
    with ExitStack() as stack:
        file = cast("BufferedReader", sys.stdin.buffer) if path == "-" else stack.enter_context(Path(path).open("rb"))
        packed = file.peek(len(_GZIP))[: len(_GZIP)] == _GZIP
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
