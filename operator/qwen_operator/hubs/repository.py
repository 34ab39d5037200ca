"""One repository on a hub: where its files are, and how they are read.

A hub is a foreign service that may be slow, absent or broken. So every answer is read as a stream up to a limit, few
redirects are followed (`hubs.redirects` says where to), and the whole reading ends after a fixed time. There are only
GET requests without credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from qwen_operator.checkpoints.facts import InvalidFactsError
from qwen_operator.checkpoints.hubs import (
    ADDRESSES,
    DEFAULT_REVISIONS,
    Hub,
    HubError,
    HubQuery,
    HubReason,
    is_address,
    is_repository,
)
from qwen_operator.hubs.pauses import asked_pause
from qwen_operator.hubs.redirects import reached_fault, redirect_fault
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.checkpoints.reading import UnknownArchitectureError, kind, shown

# Some networks drop packets silently, so that a connection attempt gets no answer at all.
_LONGEST_CONNECT = 5.0
_REDIRECTS = 5
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository, and the client that reads it. `base` is the address of the hub or of its mirror."""

    client: httpx.AsyncClient
    hub: Hub
    base: str
    name: str

    def file_url(self, commit: str, path: str) -> str:
        """Where a file is."""
        if self.hub is Hub.MODELSCOPE:
            return f"{self.base}/api/v1/models/{self.name}/repo?Revision={commit}&FilePath={quote(path, safe='')}"
        return f"{self.base}/{self.name}/resolve/{commit}/{quote(path)}"

    def listing_url(self, revision: str) -> str:
        """Where the list of files is."""
        encoded = quote(revision, safe="")
        if self.hub is Hub.MODELSCOPE:
            return f"{self.base}/api/v1/models/{self.name}/repo/files?Revision={encoded}&Recursive=true"
        return f"{self.base}/api/models/{self.name}/revision/{encoded}?blobs=true"


@contextlib.asynccontextmanager
async def connect(query: HubQuery, hub_url: str, timeout: float) -> AsyncIterator[tuple[Repository, str]]:
    """The repository and the revision to read, for at most `timeout` seconds. Every failure becomes a HubError."""
    repository, base = query.repository, (hub_url or ADDRESSES[query.hub]).rstrip("/")
    named_revision = query.revision or DEFAULT_REVISIONS[query.hub]
    _check(repository, named_revision, base)
    limits = httpx.Timeout(min(timeout, 10.0), connect=min(timeout, _LONGEST_CONNECT))
    headers = {"Accept-Encoding": "identity", "User-Agent": "qwen-operator"}
    try:
        async with asyncio.timeout(timeout), httpx.AsyncClient(timeout=limits, headers=headers) as client:
            yield Repository(client, query.hub, base, repository), named_revision
    except TimeoutError:
        raise _offline(base, f"no answer within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _offline(base, str(error) or type(error).__name__) from None
    except InvalidFactsError as error:
        unknown = isinstance(error, UnknownArchitectureError)
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


async def get(repository: Repository, url: str, limit: int, content: str) -> bytes:
    """The body of a GET request, at most `limit` bytes. `content` says in messages what it is. Raises HubError."""
    return b"".join([piece async for piece in stream(repository, url, limit, content)])


async def stream(repository: Repository, url: str, limit: int, content: str, first: int = 0) -> AsyncIterator[bytes]:
    """See `get`: the body in pieces. With `first`, only so many bytes from the beginning, if the server can do that.

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


def _check_status(repository: Repository, response: httpx.Response, content: str) -> None:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status == 200 or (status == 206 and "Range" in response.request.headers):
        return
    place = f"{repository.name} at {repository.base}"
    if status == 404 or code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        raise HubError(
            HubReason.NOT_FOUND, f"{content} was not found: {place} or its revision does not exist, or it is private"
        )
    if status in (401, 403) and code == "GatedRepo":
        raise HubError(HubReason.GATED, f"{place} is gated")
    if status in (401, 403):
        raise HubError(HubReason.AUTH_REQUIRED, f"{place} needs a token for {content} (the hub answered {status})")
    pause = asked_pause(response.headers.get)
    if status == 429 or (status == 503 and pause):
        message = f"{repository.base} cannot be read now: the hub answered {status}, which asks for a pause"
        raise HubError(HubReason.UNAVAILABLE, message, pause_seconds=pause)
    if status >= 500:
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
