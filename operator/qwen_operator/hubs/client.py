"""Reads the facts of a public repository on a model hub, without downloading its weights.

It needs three small answers: the list of files with their sizes and the commit, config.json, and the index of the
weights. A hub is a foreign service that may be slow, absent or broken. So the client reads every answer as a stream up
to a limit, decodes one answer at a time, follows few redirects (`hubs.redirects` says where to), and ends the whole
reading after a fixed time. It sends only GET requests without credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import re
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import HUB, Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import (
    ADDRESSES,
    DEFAULT_REVISIONS,
    Hub,
    HubCheckpoint,
    HubError,
    HubQuery,
    HubReason,
    is_address,
    is_repository,
)
from qwen_operator.hubs.redirects import reached_fault, redirect_fault
from qwen_runtime.checkpoints import gguf_model
from qwen_runtime.checkpoints.chat import (
    LARGEST_CHAT_FILE,
    ChatFormat,
    Task,
    chat_files,
    chat_format,
    read_chat,
)
from qwen_runtime.checkpoints.config import CONFIG_FILE, LARGEST_CONFIG
from qwen_runtime.checkpoints.gguf import MOST_TENSORS, CutOffError, Header, is_gguf, read_header
from qwen_runtime.checkpoints.gguf_parts import ABOUT_SPLIT, join, parts_of
from qwen_runtime.checkpoints.methods import check_beside
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.checkpoints.reading import MOST_MEMBERS, Fields, kind, parse_json, shown
from qwen_runtime.json_parts import Parts, TooLargeError

INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 32 << 20
LARGEST_LISTING = 8 << 20
MOST_FILES = 10_000
"""Files of weights that an index may name. The largest known model has 200."""
_LARGEST_ENTRY = 64 << 10
_LARGEST_REST = 1 << 20
_ENTRIES_AT_ONCE = 4096
_BATCH = 64 << 10
# Several readings may run at once, but only one decodes: as Python objects an answer is up to ten times larger.
_DECODING = threading.Lock()
# Some networks drop packets silently, so that a connection attempt gets no answer at all.
LONGEST_CONNECT = 5.0
_REDIRECTS = 5
# The header of a Qwen model has about 6 MB.
_BEGINNINGS = (8 << 20, 32 << 20)
_BEGINNING_OF_PART = 256 << 10
_SHOWN_FILES = 6
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    sizes: Mapping[str, int | None]  # bytes by path; None if the hub does not say
    tagged: Task = Task.GENERATE


@dataclass(slots=True)
class _Stored:
    """What the index or the list of files says of the weights.

    `size`: bytes. `heads`: whether there is an output head. `drafts`: whether there are layers for multi-token
    prediction.
    """

    size: int = 0
    heads: bool = False
    drafts: bool = False
    files: set[str] = field(default_factory=set)
    tensors: int = 0

    def add(self, weight_map: Mapping[str, Any], index: Fields) -> None:
        """Count entries of the index. Raises InvalidFactsError."""
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise index.refuse("weight_map", "an object of tensor names and files")
        self.tensors += len(weight_map)
        self.heads = self.heads or any(name.endswith("lm_head.weight") for name in weight_map)
        self.drafts = self.drafts or any(name.startswith("mtp.") for name in weight_map)
        self.files.update(weight_map.values())
        if self.tensors > MOST_MEMBERS or len(self.files) > MOST_FILES:
            counted = f"{MOST_MEMBERS} tensors" if self.tensors > MOST_MEMBERS else f"{MOST_FILES} files"
            raise HubError(HubReason.TOO_LARGE, f"{INDEX} has more than {counted}")


@dataclass(frozen=True, slots=True)
class _Repository:
    client: httpx.AsyncClient
    hub: Hub
    base: str
    name: str

    def file_url(self, commit: str, path: str) -> str:
        if self.hub is Hub.MODELSCOPE:
            return f"{self.base}/api/v1/models/{self.name}/repo?Revision={commit}&FilePath={quote(path, safe='')}"
        return f"{self.base}/{self.name}/resolve/{commit}/{quote(path)}"

    def listing_url(self, revision: str) -> str:
        encoded = quote(revision, safe="")
        if self.hub is Hub.MODELSCOPE:
            return f"{self.base}/api/v1/models/{self.name}/repo/files?Revision={encoded}&Recursive=true"
        return f"{self.base}/api/models/{self.name}/revision/{encoded}?blobs=true"


async def fetch(
    repository: str, revision: str = "", hub: Hub = Hub.HUGGING_FACE, hub_url: str = "", timeout: float = 30.0
) -> HubCheckpoint:
    """The facts of `repository` (ORG/NAME) at `revision` (a branch, tag or commit; "" = the hub's main branch).

    `hub_url` is the address of a mirror, "" for the hub itself. `timeout` is in seconds and covers the whole reading.
    Raises HubError, also for an invalid config.json.
    """
    async with _connected(HubQuery(hub, repository, revision), hub_url, timeout) as (connected, named_revision):
        return await _read(connected, named_revision)


async def fetch_file(query: HubQuery, hub_url: str = "", timeout: float = 30.0) -> HubCheckpoint:
    """The facts of one GGUF file of a repository, from its header. Like `fetch`."""
    async with _connected(query, hub_url, timeout) as (connected, named_revision):
        return await _read_gguf(connected, named_revision, query.file)


@contextlib.asynccontextmanager
async def _connected(query: HubQuery, hub_url: str, timeout: float) -> AsyncIterator[tuple[_Repository, str]]:
    """The repository and the revision to read, for at most `timeout` seconds. Every failure becomes a HubError."""
    repository, base = query.repository, (hub_url or ADDRESSES[query.hub]).rstrip("/")
    named_revision = query.revision or DEFAULT_REVISIONS[query.hub]
    _check(repository, named_revision, base)
    limits = httpx.Timeout(min(timeout, 10.0), connect=min(timeout, LONGEST_CONNECT))
    headers = {"Accept-Encoding": "identity", "User-Agent": "qwen-operator"}
    try:
        async with asyncio.timeout(timeout), httpx.AsyncClient(timeout=limits, headers=headers) as client:
            yield _Repository(client, query.hub, base, repository), named_revision
    except TimeoutError:
        raise _offline(base, f"no answer within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _offline(base, str(error) or type(error).__name__) from None
    except InvalidFactsError as error:
        unknown = isinstance(error, gguf_model.UnknownArchitectureError)
        reason = HubReason.UNKNOWN_ARCHITECTURE if unknown else HubReason.INVALID
        # `public`, because a redirect may have led to a server that answers only inside the network.
        raise HubError(reason, f"{repository} at {base}: {error.public}") from None


def _offline(base: str, detail: str) -> HubError:
    return HubError(HubReason.OFFLINE, f"{base} cannot be reached", detail)


def _check(repository: str, revision: str, base: str) -> None:
    if not is_repository(repository):
        raise HubError(HubReason.INVALID, f"repository is {shown(repository)}, it must be ORGANISATION/NAME")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise HubError(HubReason.INVALID, f"revision is {shown(revision)}, it must be a branch, a tag or a commit")
    if not is_address(base):
        raise HubError(
            HubReason.INVALID, f"the hub's address is {shown(base)}, it must be like https://hub.example.org"
        )


async def _read(repository: _Repository, revision: str) -> HubCheckpoint:
    listing = await _listing(repository, revision)
    if CONFIG_FILE not in listing.sizes:
        gguf = any(is_gguf(path) for path in listing.sizes)
        content = "GGUF files: set spec.source.file to one of them" if gguf else "no readable model"
        raise InvalidFactsError(f"there is no {CONFIG_FILE}; the repository contains {content}")
    raw = await _get(repository, repository.file_url(listing.commit, CONFIG_FILE), LARGEST_CONFIG, CONFIG_FILE)
    # Decoding a file near the limit takes a second, which would block everything else on the event loop.
    await asyncio.to_thread(_config, raw, listing)
    stored = await _weights(repository, listing)
    facts = await asyncio.to_thread(_facts, raw, stored)
    chat = await _chat(repository, listing)
    return HubCheckpoint(replace(facts, digest=hashlib.sha256(raw).hexdigest(), chat=chat), listing.commit)


async def _read_gguf(repository: _Repository, revision: str, file: str) -> HubCheckpoint:
    listing = await _listing(repository, revision)
    parts, headers, tensors = parts_of(file), list[Header](), 0
    if missing := [part for part in parts if part not in listing.sizes]:
        raise _no_file(repository, listing, missing[0])
    for part in parts:
        header = await _gguf_header(repository, listing, part, first=not headers)
        tensors += len(header.tensors)
        if tensors > MOST_TENSORS:
            raise HubError(HubReason.TOO_LARGE, f"{file} and its other parts have more than {MOST_TENSORS} tensors")
        headers.append(header)
    return HubCheckpoint(await asyncio.to_thread(_gguf_facts, headers, parts), listing.commit)


def _no_file(repository: _Repository, listing: _Listing, file: str) -> HubError:
    others = sorted(path for path in listing.sizes if is_gguf(path) and _REVISION.fullmatch(path))
    has = f"its GGUF files are {', '.join(others[:_SHOWN_FILES])}" if others else "it has no GGUF files"
    more = f" and {len(others) - _SHOWN_FILES} more" if len(others) > _SHOWN_FILES else ""
    return HubError(HubReason.NOT_FOUND, f"{repository.name} has no file {file}; {has}{more}")


async def _gguf_header(repository: _Repository, listing: _Listing, file: str, *, first: bool) -> Header:
    """The header of a file. Later parts of a split one have no vocabulary, and only a few of their entries count."""
    url = repository.file_url(listing.commit, file)
    for most in _BEGINNINGS if first else (_BEGINNING_OF_PART, *_BEGINNINGS):
        beginning = await _beginning(repository, url, most, file)
        header = await asyncio.to_thread(_header_in, beginning, file, listing.sizes[file])
        if header is not None:
            about_split = {name: value for name, value in header.values.items() if name.startswith(ABOUT_SPLIT)}
            return header if first else replace(header, values=about_split, places={})
    raise HubError(HubReason.TOO_LARGE, f"the header of {file} has more than {_BEGINNINGS[-1]} bytes")


def _header_in(beginning: bytes, file: str, size: int | None) -> Header | None:
    """The header in the first bytes of a GGUF file of `size` bytes; None if more of it is needed."""
    name = file.rpartition("/")[2]
    with _DECODING:
        try:
            header = read_header(io.BytesIO(beginning).read, name)
        except CutOffError as error:
            if size is not None and size < error.wanted:
                raise InvalidFactsError(f"{error}, and the file has {size} bytes") from None
            return None
        if size is not None and size < header.end:
            raise InvalidFactsError(f"{name} is cut off: it has {size} bytes, its tensors need {header.end}")
        return header


def _gguf_facts(headers: Sequence[Header], parts: Sequence[str]) -> Checkpoint:
    """The facts of a GGUF file, from the headers of its parts."""
    names = [part.rpartition("/")[2] for part in parts]
    with _DECODING:
        header = join(headers, names)
        if not gguf_model.has_tokenizer(header):
            raise InvalidFactsError(f"{names[0]} holds no tokenizer, and the engine gets no other file")
        chat = chat_format(gguf_model.template(header)).to_record()
        report = gguf_model.report(header, names[0]) | {"chat": chat}
        return replace(Checkpoint.from_inspection(report), source=HUB)


async def _beginning(repository: _Repository, url: str, most: int, content: str) -> bytes:
    """At most the first `most` bytes of a file."""
    parts, size = list[bytes](), 0
    async for piece in _stream(repository, url, most, content, first=most):
        parts.append(piece)
        size += len(piece)
        if size >= most:
            break
    return b"".join(parts)[:most]


async def _chat(repository: _Repository, listing: _Listing) -> ChatFormat:
    """How the model answers, from a few small files. The tags of the hub count only if no file says more."""
    files = {
        name: await _get(repository, repository.file_url(listing.commit, name), LARGEST_CHAT_FILE, name)
        for name in chat_files(listing.sizes)
    }
    return await asyncio.to_thread(_read_chat, files, listing)


def _read_chat(files: Mapping[str, bytes], listing: _Listing) -> ChatFormat:
    with _DECODING:
        return read_chat(files, tuple(listing.sizes), listing.tagged)


def _config(raw: bytes, listing: _Listing) -> None:
    """Raise InvalidFactsError if this is no config.json, or not all that describes the weights.

    Its content must not wait in memory for the next answer.
    """
    with _DECODING:
        check_beside(parse_json(raw, CONFIG_FILE, LARGEST_CONFIG), listing.sizes)


def _facts(raw: bytes, stored: _Stored) -> Checkpoint:
    with _DECODING:
        config = parse_json(raw, CONFIG_FILE, LARGEST_CONFIG)
        return from_config(config, weight_bytes=_resident(config, stored), source=HUB)


def _resident(config: Mapping[str, Any], weights: _Stored) -> int:
    """How many of the stored bytes an engine keeps in memory: an upper limit, from names and shapes of the tensors.

    A tied checkpoint may store the embedding again as lm_head. An engine loads it once. An engine loads a layer for
    multi-token prediction only for speculative decoding. Its size is known only if the weights are not quantized.
    """
    stored = weights.size
    facts = from_config(config, weight_bytes=stored)
    copy = 2 * facts.vocab * facts.hidden
    if facts.tied and weights.heads and copy < stored:
        stored -= copy
    if facts.quantization is None and weights.drafts:
        stored = min(stored, from_config(config).weight_bytes)
    return stored


async def _listing(repository: _Repository, revision: str) -> _Listing:
    content = f"the list of files of {repository.name}"
    raw = await _get(repository, repository.listing_url(revision), LARGEST_LISTING, content)
    return await asyncio.to_thread(_read_listing, raw, content, repository.hub, revision)


def _read_listing(raw: bytes, content: str, hub: Hub, revision: str) -> _Listing:
    with _DECODING:
        answer = Fields(parse_json(raw, content, LARGEST_LISTING))
        if hub is Hub.MODELSCOPE:
            return _modelscope_listing(answer, revision)
        return _Listing(_commit(answer, "sha"), _sizes(answer, "siblings", ("rfilename", "size")), _tagged(answer))


def _tagged(answer: Fields) -> Task:
    """What the hub's tags say about the answers. Some chat models carry one such tag, so it takes two."""
    pipeline, tags = answer.values.get("pipeline_tag"), answer.values.get("tags")
    if pipeline == "text-ranking":
        return Task.RERANK
    pools = pipeline in ("feature-extraction", "sentence-similarity")
    sentences = isinstance(tags, list) and "sentence-transformers" in tags
    return Task.EMBED if pools and sentences else Task.GENERATE


def _modelscope_listing(answer: Fields, revision: str) -> _Listing:
    """ModelScope names the commit that last changed each file. The newest of these is the revision's commit."""
    data = answer.nested("Data")
    sizes = _sizes(data, "Files", ("Path", "Size"))
    if _COMMIT.fullmatch(revision):
        return _Listing(revision, sizes)
    dated = [file for file in data.values["Files"] if isinstance(file.get("CommittedDate"), int)]
    if not dated:
        raise data.refuse("Files", "a list of files with CommittedDate and Revision")
    newest = max(dated, key=lambda file: int(file["CommittedDate"]))
    return _Listing(_commit(Fields(newest, "Data.Files."), "Revision"), sizes)


def _commit(fields: Fields, name: str) -> str:
    value = fields.values.get(name)
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise fields.refuse(name, "a commit of 40 hexadecimal digits")
    return value


def _sizes(fields: Fields, name: str, keys: tuple[str, str]) -> dict[str, int | None]:
    files = fields.values.get(name)
    if not isinstance(files, list) or not all(isinstance(file, Mapping) for file in files):
        raise fields.refuse(name, "a list of files")
    sizes: dict[str, int | None] = {}
    for file in files:
        path, size = file.get(keys[0]), file.get(keys[1])
        if isinstance(path, str) and file.get("Type") != "tree":
            valid = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_BYTES
            sizes[path] = size if valid else None
    return sizes


async def _weights(repository: _Repository, listing: _Listing) -> _Stored:
    """The weight files, and what their tensors' names say if there is an index."""
    if INDEX not in listing.sizes:
        files = [path for path in listing.sizes if path.endswith(".safetensors") and "/" not in path]
        if not files:
            raise InvalidFactsError("there are no *.safetensors files; convert the weights to safetensors")
        return _Stored(_total(listing, files))
    index, stored = await _read_index(repository, repository.file_url(listing.commit, INDEX))
    shards = sorted(stored.files)
    missing = next((file for file in shards if file not in listing.sizes), None)
    if missing is not None:
        raise InvalidFactsError(
            f"{INDEX} names {shown(missing)}, which is not in the repository",
            f"{INDEX} names {kind(missing)}, which is not in the repository",
        )
    if index.has("metadata") and any(listing.sizes[file] is None for file in shards):
        stored.size = index.nested("metadata").whole("total_size", MAX_BYTES)
    else:
        stored.size = _total(listing, shards)
    return stored


async def _read_index(repository: _Repository, url: str) -> tuple[Fields, _Stored]:
    """The index without its entries, and what the entries say. It never stands in memory as a whole."""
    parts, stored = Parts("weight_map", _LARGEST_ENTRY, _LARGEST_REST), _Stored()
    entries: list[bytes] = []
    try:
        async for piece in _batches(_stream(repository, url, LARGEST_INDEX, INDEX)):
            entries += await asyncio.to_thread(parts.feed, piece)
            if parts.dropped:
                raise HubError(HubReason.TOO_LARGE, f"an entry of {INDEX} has more than {_LARGEST_ENTRY} bytes")
            if len(entries) >= _ENTRIES_AT_ONCE:
                await asyncio.to_thread(_add_entries, entries, parts.of_object, stored)
                entries = []
    except TooLargeError as error:
        raise HubError(HubReason.TOO_LARGE, f"{INDEX} is too large: {error}") from None
    await asyncio.to_thread(_add_entries, entries, parts.of_object, stored)
    index = Fields(await asyncio.to_thread(parse_json, parts.end(), INDEX, LARGEST_INDEX))
    # A short index may be in the rest as a whole.
    stored.add(index.nested("weight_map").values, index)
    if not stored.files:
        raise index.refuse("weight_map", "an object of tensor names and files")
    return index, stored


async def _batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least _BATCH, because the work for a piece grows with what came before."""
    waiting, size = list[bytes](), 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _add_entries(entries: list[bytes], of_object: bool, stored: _Stored) -> None:
    """Count entries. Those of a list are none: the rest then shows that weight_map is no object."""
    if not of_object:
        return
    with _DECODING:
        weight_map = parse_json(b"{%b}" % b",".join(entries), INDEX, LARGEST_INDEX)
        stored.add(weight_map, Fields({"weight_map": weight_map}))


def _total(listing: _Listing, files: list[str]) -> int:
    """The sum of the files' sizes. It is a few KiB per file too large, because each file has a header."""
    total = 0
    for file in files:
        size = listing.sizes[file]
        if size is None:
            raise InvalidFactsError(
                f"the hub does not say how large {shown(file)} is", f"the hub does not say how large {kind(file)} is"
            )
        total += size
    return total


async def _get(repository: _Repository, url: str, limit: int, content: str) -> bytes:
    """The body of a GET request, at most `limit` bytes. `content` says in messages what it is. Raises HubError."""
    return b"".join([piece async for piece in _stream(repository, url, limit, content)])


async def _stream(repository: _Repository, url: str, limit: int, content: str, first: int = 0) -> AsyncIterator[bytes]:
    """See `_get`: the body in pieces. With `first`, only so many bytes from the beginning, if the server can do that.

    Another server sends the whole body. Then the caller stops reading, and `limit` has no meaning.
    """
    base, headers = url, {"Range": f"bytes=0-{first - 1}"} if first else {}
    for _ in range(_REDIRECTS + 1):
        async with repository.client.stream("GET", url, headers=headers) as response:
            if url != base and (fault := reached_fault(response, repository.base)):
                raise HubError(HubReason.INVALID, f"the hub redirects {content} to {fault}")
            following = response.next_request
            if following is None:
                _check_status(repository, response, content)
                async for piece in _body(response, MAX_BYTES if first else limit, content):
                    yield piece
                return
            target = str(following.url)
            if fault := redirect_fault(url, target, repository.base):
                raise HubError(HubReason.INVALID, f"the hub redirects {content} to {fault}")
            url = target
    raise HubError(HubReason.INVALID, f"the hub redirects {content} more than {_REDIRECTS} times")


def _check_status(repository: _Repository, response: httpx.Response, content: str) -> None:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status == 200 or (status == 206 and "Range" in response.request.headers):
        return
    place = f"{repository.name} at {repository.base}"
    if status == 404 or code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        raise HubError(
            HubReason.NOT_FOUND, f"{content} was not found: {place} or its revision does not exist, or it is private"
        )
    if status in (401, 403):
        raise HubError(HubReason.AUTH_REQUIRED, f"{place} needs a token for {content} (the hub answered {status})")
    if status == 429 or status >= 500:
        raise HubError(HubReason.UNAVAILABLE, f"{place} cannot be read now: the hub answered {status} for {content}")
    raise HubError(HubReason.INVALID, f"the hub answered {status} for {content} of {place}; it must answer 200")


async def _body(response: httpx.Response, limit: int, content: str) -> AsyncIterator[bytes]:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise HubError(
            HubReason.INVALID, f"{content} has the encoding {kind(encoding)}, but the request asked for none"
        )
    announced = response.headers.get("Content-Length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 20 else 0
    if size <= limit:
        size = 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > limit:
                break
            yield piece
    if size > limit:
        raise HubError(HubReason.TOO_LARGE, f"{content} has more than {limit} bytes")
