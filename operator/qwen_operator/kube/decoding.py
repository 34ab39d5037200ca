"""Decodes what the API server answers. One object of any depth must not end the process that reads all of them.

The API server stores objects that are nested thousands of levels deep. Python's decoder raises RecursionError for
them, and so do many functions that look at the result. So everything below MOST_LEVELS becomes null here, at the only
entrance. No object that the operator can use is nested so deep. The check of the spec then rejects the object.

An object may have megabytes, and a list hundreds of such objects. So lists are decoded object by object while they
arrive, and of each only what a `Keep` returns stays in memory.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection

from qwen_operator import objects, untrusted
from qwen_runtime.json_parts import Parts

MOST_LEVELS = 100
# A watch event and a list wrap their objects into two levels at most.
_WRAPPED = MOST_LEVELS + 4

LARGEST_OBJECT = 16 << 20
"""Bytes. etcd takes requests of 1.5 MiB by default, and JSON is up to some times as long as its binary form."""
# A watch event of this size is not worth decoding twice.
_ORDINARY_EVENT = 32 << 10

Keep = Callable[[str, dict[str, Any]], dict[str, Any]]
"""What to keep of an object of the resource with this plural."""

log = logging.getLogger(__name__)


def keep_all(_plural: str, item: dict[str, Any]) -> dict[str, Any]:
    """Keep everything."""
    return item


async def decode_list(stream: aiohttp.StreamReader, plural: str, keep: Keep) -> Any:
    """The JSON value of an answer, and of the objects in a list what `keep` keeps.

    It decodes the objects one by one while they arrive, and skips one that it cannot read. Raises ValueError if the
    answer is not JSON.
    """
    parts = Parts("items", LARGEST_OBJECT, LARGEST_OBJECT)
    items: list[Any] = []
    async for chunk in stream.iter_any():
        for part in parts.feed(chunk):
            items += [item for item in (kept_object(part, plural, keep),) if item is not None]
    if parts.dropped:
        log.warning(
            "%d objects of more than %d bytes are skipped", parts.dropped, LARGEST_OBJECT, extra={"resource": plural}
        )
    value = decode(parts.end())
    if items and isinstance(value, dict):
        value["items"] = items
    return value


def kept_object(content: bytes, plural: str, keep: Keep) -> dict[str, Any] | None:
    """What is kept of one object; None if it is not readable, which is logged."""
    try:
        item = decode(content)
        problem = objects.malformed(item)
        if problem is None:
            return keep(plural, item)
    except Exception as error:
        # Whatever one object holds, the others of its list are read.
        problem = untrusted.clean(error, 200) or type(error).__name__
    log.warning("an object is skipped, because it cannot be read", extra={"resource": plural, "error": problem})
    return None


def decode(content: bytes | str) -> Any:
    """The JSON value of an answer or a watch event, with at most MOST_LEVELS in each object.

    It logs the objects that were deeper. Raises ValueError if the content is not JSON.
    """
    value = untrusted.loads(content, _WRAPPED)
    if not untrusted.deeper(value, MOST_LEVELS - 1):
        return value
    deep = [item for item in _items(value) if untrusted.cut_deep(item, MOST_LEVELS)]
    for item in deep:
        name, namespace = (objects.text(item, "metadata", part) for part in ("name", "namespace"))
        log.warning(
            "an object is nested too deeply: the operator ignores what is below level %d",
            MOST_LEVELS,
            extra={"object": untrusted.clean(f"{namespace}/{name}", 400), "resource": objects.text(item, "kind")},
        )
    # The rest of an answer has few levels, unless it is no answer of an API server.
    untrusted.cut_deep(value, _WRAPPED)
    return value


def _items(value: Any) -> list[Any]:
    """The objects in a list, in a watch event, or the value itself."""
    if isinstance(value, dict) and isinstance(value.get("items"), list):
        return list(value["items"])
    return [value["object"]] if isinstance(value, dict) and isinstance(value.get("object"), dict) else [value]


class GuardedResponse(aiohttp.ClientResponse):
    """An answer of the API server for code that decodes it with `json.loads`, such as kopf's.

    `json()` decodes with `decode_list`. A watch stream has only complete lines that `json.loads` can decode. Of large
    objects it has only what `keep` keeps; a subclass sets it.
    """

    def keep(self, plural: str, item: dict[str, Any]) -> dict[str, Any]:
        """What to keep of an object."""
        return keep_all(plural, item)

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        await super().start(connection)
        if "watch" in self.url.query:
            self.content = cast("Any", _Events(self.content, self._plural, self.keep))
        return self

    async def json(
        self, *, encoding: str | None = None, loads: Any = None, content_type: str | None = "application/json"
    ) -> Any:
        if self.method != "GET" or self._body is not None:
            return await super().json(encoding=encoding, loads=loads or decode, content_type=content_type)
        return await decode_list(self.content, self._plural, self.keep)

    @property
    def _plural(self) -> str:
        """The resource of a list or watch: the last part of its path."""
        return self.url.path.rpartition("/")[2]


class _Events:
    """The body of a watch, line by line. All other members are those of aiohttp's StreamReader."""

    def __init__(self, stream: aiohttp.StreamReader, plural: str, keep: Keep) -> None:
        self._stream = stream
        self._plural = plural
        self._keep = keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        async for line in lines(self._stream):
            if safe := _safe(line, self._plural, self._keep):
                yield safe + b"\n"


async def lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield complete lines. Not `content.readline`, which rejects lines longer than its buffer.

    An incomplete line at the end of a broken stream is dropped: the next watch starts before it. So is a line that is
    longer than any object.
    """
    pieces: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        first, *others = chunk.split(b"\n")
        for index, piece in enumerate((first, *others)):
            if index:
                if size <= LARGEST_OBJECT and (line := b"".join(pieces)).strip():
                    yield line
                pieces, size = [], 0
            size += len(piece)
            if size > LARGEST_OBJECT:
                pieces.clear()
            else:
                pieces.append(piece)


def _safe(line: bytes, plural: str, keep: Keep) -> bytes | None:
    """The line in a form that `json.loads` can decode at any depth of the stack; None if there is none."""
    if len(line) <= _ORDINARY_EVENT and (
        line.count(b"{") + line.count(b"[") <= MOST_LEVELS or untrusted.is_shallow(line, MOST_LEVELS)
    ):
        return line
    try:
        event = decode(line)
        item = event.get("object") if isinstance(event, dict) else None
        if isinstance(item, dict) and event.get("type") in ("ADDED", "MODIFIED", "DELETED"):
            event["object"] = keep(plural, item) if objects.malformed(item) is None else item
        return json.dumps(event, separators=(",", ":")).encode()
    except Exception as error:
        # Whatever one event holds, the next ones are read.
        log.warning("a watch event cannot be read", extra={"resource": plural, "error": untrusted.clean(error, 200)})
        return None
