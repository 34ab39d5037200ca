"""Decodes what the API server answers. One object of any depth must not end the process that reads all of them.

The API server stores objects that are nested thousands of levels deep. Python's decoder raises RecursionError for
them, and so do many functions that look at the result. So everything below MOST_LEVELS becomes null here, at the only
entrance. No object that the operator can use is nested so deep. The check of the spec then rejects the object.
"""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection

from qwen_operator import objects, untrusted

MOST_LEVELS = 100
# A watch event and a list wrap their objects into two levels at most.
_WRAPPED = MOST_LEVELS + 4

log = logging.getLogger(__name__)


def decode(content: bytes | str) -> Any:
    """The JSON value of an answer or a watch event, with at most MOST_LEVELS in each object.

    It logs the objects that were deeper. Raises ValueError if the content is not JSON.
    """
    return _decoded(content)[0]


def _decoded(content: bytes | str) -> tuple[Any, bool]:
    """See `decode`. Also returns whether an object was too deep."""
    value = untrusted.loads(content, _WRAPPED)
    if not untrusted.deeper(value, MOST_LEVELS - 1):
        return value, False
    deep = [item for item in _items(value) if untrusted.cut_deep(item, MOST_LEVELS)]
    for item in deep:
        name, namespace = (objects.text(item, "metadata", part) for part in ("name", "namespace"))
        log.warning(
            "an object is nested too deeply: the operator ignores what is below level %d",
            MOST_LEVELS,
            extra={"object": untrusted.clean(f"{namespace}/{name}", 400), "resource": objects.text(item, "kind")},
        )
    # The rest of an answer has few levels, unless it is no answer of an API server.
    return value, untrusted.cut_deep(value, _WRAPPED) or bool(deep)


def _items(value: Any) -> list[Any]:
    """The objects in a list, in a watch event, or the value itself."""
    if isinstance(value, dict) and isinstance(value.get("items"), list):
        return list(value["items"])
    return [value["object"]] if isinstance(value, dict) and isinstance(value.get("object"), dict) else [value]


class GuardedResponse(aiohttp.ClientResponse):
    """An answer of the API server for code that decodes it with `json.loads`, such as kopf's.

    `json()` decodes with `decode`. A watch stream has only complete lines that `json.loads` can decode.
    """

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        await super().start(connection)
        if "watch" in self.url.query:
            self.content = cast("Any", _Events(self.content))
        return self

    async def json(
        self, *, encoding: str | None = None, loads: Any = decode, content_type: str | None = "application/json"
    ) -> Any:
        return await super().json(encoding=encoding, loads=loads, content_type=content_type)


class _Events:
    """The body of a watch, line by line. All other members are those of aiohttp's StreamReader."""

    def __init__(self, stream: aiohttp.StreamReader) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        async for line in lines(self._stream):
            if safe := _safe(line):
                yield safe + b"\n"


async def lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield complete lines. Not `content.readline`, which rejects lines longer than its buffer.

    An incomplete line at the end of a broken stream is dropped: the next watch starts before it.
    """
    rest = b""
    async for chunk in stream.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line


def _safe(line: bytes) -> bytes | None:
    """The line in a form that `json.loads` can decode at any depth of the stack; None if there is none."""
    if line.count(b"{") + line.count(b"[") <= MOST_LEVELS or untrusted.is_shallow(line, MOST_LEVELS):
        return line
    try:
        event, cut = _decoded(line)
        return json.dumps(event, separators=(",", ":")).encode() if cut else line
    except ValueError as error:
        log.warning("a watch event cannot be read", extra={"error": untrusted.clean(error, 200)})
        return None
