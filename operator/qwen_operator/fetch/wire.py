"""The HTTP client of a fetch: requests for ranges of files, over connections that stay open.

A hub is a foreign service. Redirects lead only where `hubs.redirects` lets them, and the token goes to the hub's own
host alone. The body goes straight from the socket into the caller's buffer: with an HTTP library between the two, the
same download costs twice as much CPU time (`bench/fetch.py`).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import struct
import sys
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.hubs import TERMS_CURE, Hub
from qwen_operator.fetch.faults import FetchError
from qwen_operator.hubs.pauses import asked_pause
from qwen_operator.hubs.redirects import peer_fault, redirect_fault
from qwen_operator.manifests.model_cache import model_folder
from qwen_runtime.checkpoints.reading import shown

TIMEOUT_SECONDS = 30.0
_REDIRECTS = 5
_FOLLOWED = (301, 302, 303, 307, 308)
_ENDED = (OSError, http.client.HTTPException)
_TOKEN = re.compile(r"[!-~]{1,4096}", re.ASCII)
_HEADER = re.compile(r"[ -~]*", re.ASCII)


def certificates() -> ssl.SSLContext:
    """The authorities that the operator trusts too, or those of SSL_CERT_FILE. It takes a tenth of a second."""
    return httpx.create_ssl_context()


def proxy_for(scheme: str, netloc: str) -> str:
    """HOST:PORT of the proxy for a host, from the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY; "" for none."""
    return "" if proxy_bypass(netloc) else urlsplit(getproxies().get(scheme, "")).netloc.rpartition("@")[2]


class Busy(Exception):
    """The hub asks for a pause of `seconds`, or cannot serve the request now.

    `all_wait`: it has too many requests, so all threads wait, also if it does not say for how long.
    """

    def __init__(self, status: int, seconds: float) -> None:
        super().__init__(f"the hub answered {status}")
        self.seconds = seconds
        self.all_wait = seconds > 0 or status in (429, 503)


class Cut(Exception):
    """The connection failed or ended too early. The text is the cause."""


class Expired(Exception):
    """The address to which the hub redirected is no longer valid."""


class RemoteModel(Protocol):
    """Where the files of a model are: a repository of a hub, or a folder in a bucket. `str` names it in messages.

    `base` is the address of the server. `server` is a word for it in messages, and `address_field` the setting with its
    address. `redirects`: its redirects are followed. `folder` is the model's folder below `models` of a cache. `file`:
    the only file to load; "" for all that an engine needs.
    """

    @property
    def base(self) -> str: ...
    @property
    def commit(self) -> str: ...
    @property
    def repository(self) -> str: ...
    @property
    def server(self) -> str: ...
    @property
    def address_field(self) -> str: ...
    @property
    def redirects(self) -> bool: ...
    @property
    def folder(self) -> str: ...
    @property
    def file(self) -> str: ...

    def at(self, commit: str) -> RemoteModel:
        """The same at another commit."""

    def file_url(self, path: str) -> str:
        """The address of a file at the commit."""

    def headers_for(self, method: str, url: str, given: dict[str, str]) -> dict[str, str]:
        """The headers of a request to the server itself. Raises FetchError if the credentials are no good."""

    def refusal(self, response: http.client.HTTPResponse, content: str) -> FetchError:
        """Why the server refuses a request. `content` says in messages what was asked for."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository on a hub at a commit. `base` is the address of the hub or its mirror. `token` is "" without one.

    `file`: the only file to load; "" for all that an engine needs. `place`: its folder below `models` of a cache, if
    that does not follow from the rest.
    """

    hub: Hub
    base: str
    repository: str
    commit: str
    token: str = ""
    file: str = ""
    place: str = ""

    server = "the hub"
    address_field = "hub.url"
    redirects = True

    @property
    def folder(self) -> str:
        return self.place or model_folder(self.hub, self.repository, self.commit, self.file)

    def at(self, commit: str) -> Remote:
        return replace(self, commit=commit)

    def file_url(self, path: str) -> str:
        if self.hub is Hub.MODELSCOPE:
            query = f"Revision={self.commit}&FilePath={quote(path, safe='')}"
            return f"{self.base}/api/v1/models/{self.repository}/repo?{query}"
        return f"{self.base}/{self.repository}/resolve/{self.commit}/{quote(path)}"

    def headers_for(self, method: str, url: str, given: dict[str, str]) -> dict[str, str]:
        del method, url
        return self.headers | given

    def refusal(self, response: http.client.HTTPResponse, content: str) -> FetchError:
        return _refusal(self, response.status, response.headers.get("X-Error-Code", ""), content)

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the hub's own host. Raises FetchError if no header can have the token."""
        if not self.token:
            return {}
        if _TOKEN.fullmatch(self.token) is None:
            # The HTTP client would show the token in its complaint.
            cure = "the entry must have the token alone, in one line of letters, digits and signs"
            raise FetchError(Reason.AUTH_REQUIRED, f"the Secret of spec.source.secretRef has no token: {cure}")
        if self.hub is Hub.MODELSCOPE:
            return {"Authorization": f"Bearer {self.token}", "Cookie": f"m_session_id={self.token}"}
        return {"Authorization": f"Bearer {self.token}"}

    def __str__(self) -> str:
        return f"{self.hub}://{self.repository} at {self.commit[:12]}"


@dataclass(slots=True)
class Answer:
    """The head of an answer. `response` must be read to its end or closed. `url` is where it came from."""

    response: http.client.HTTPResponse
    url: str
    status: int
    length: int


class Body:
    """The body of an answer, read from the socket itself: one call of the system fills a buffer.

    Without a `connection` that stays open, or if its length is not known, it comes through the HTTP library. Close it
    when it was read to its end: then the connection serves the next request. `timeout` is in seconds.
    """

    def __init__(self, response: http.client.HTTPResponse, connection: socket.socket | None, timeout: float) -> None:
        self._response, self._timeout, self._flags = response, timeout, 0
        self._socket = connection if response.length is not None else None
        # The library reads the head through a buffer, which has the beginning of the body too.
        self._ahead = sys.maxsize if self._socket is None else len(response.fp.peek())
        if self._socket is not None and not isinstance(self._socket, ssl.SSLSocket):
            # With a timeout of Python's own, a socket gives what has arrived, and that in two calls of the system.
            whole, part = divmod(timeout, 1.0)
            waits = struct.pack("@ll", int(whole), int(part * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, waits)
            self._socket.settimeout(None)
            self._flags = socket.MSG_WAITALL

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer, which must not be larger than what is left. Gives the number of bytes.

        There are fewer if the connection fell silent or ended, and none if nothing came. Raises OSError and
        HTTPException if the first reading fails.
        """
        count = 0
        while count < len(buffer):
            try:
                got = self._read(buffer[count:])
            except OSError:
                if count:
                    break
                raise
            if not got:
                break
            count += got
        return count

    def _read(self, buffer: memoryview) -> int:
        if self._socket is None or self._ahead:
            got = self._response.readinto(buffer[: self._ahead])
            self._ahead -= got
            return got
        return self._socket.recv_into(buffer, len(buffer), self._flags)

    def close(self) -> None:
        """Let the connection serve the next request."""
        if self._socket is not None:
            self._socket.settimeout(self._timeout)
            self._response.close()


@dataclass(slots=True)
class Client:
    """For one thread. It keeps one connection for each host."""

    remote: RemoteModel
    context: ssl.SSLContext
    timeout: float = TIMEOUT_SECONDS
    _open: dict[tuple[str, str], http.client.HTTPConnection] = field(default_factory=dict)

    def get(self, url: str, content: str, first: int = 0, last: int | None = None) -> Answer:
        """The answer to a GET request, after redirects, with the status 200 or 206.

        `first` and `last` are the range of bytes; None asks for all of them. `content` says in messages what it is.
        Raises FetchError, Busy, Cut and Expired.
        """
        for _ in range(_REDIRECTS + 1):
            response = self._send("GET", url, {} if last is None else {"Range": f"bytes={first}-{last}"})
            if response.status not in _FOLLOWED or not self.remote.redirects:
                self._check(response, content, redirected=not self._is_own(url))
                return Answer(response, url, response.status, _length(response))
            target = _target(url, response.headers.get("Location", ""))
            # The rest of the body is not worth reading, so the connection ends.
            self._drop(url)
            response.close()
            if fault := redirect_fault(url, target, self.remote.base):
                raise FetchError(Reason.HUB_UNREACHABLE, f"the hub redirects {content} to {fault}")
            url = target
        raise FetchError(Reason.HUB_UNREACHABLE, f"the hub redirects {content} more than {_REDIRECTS} times")

    def head(self, url: str, content: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers of the answer to a HEAD request, by their names in small letters. Raises as `get` does."""
        response = self._send("HEAD", url, headers)
        self._check(response, content, redirected=False)
        response.read()
        return {name.lower(): value for name, value in response.headers.items()}

    def body(self, answer: Answer) -> Body:
        """The body of an answer, to read as long as no other request is made. Raises Cut."""
        parts = urlsplit(answer.url)
        try:
            return Body(answer.response, self._open[parts.scheme, parts.netloc].sock, self.timeout)
        except OSError as error:
            self.close()
            raise Cut(str(error) or type(error).__name__) from None

    def read_all(self, url: str, content: str, limit: int) -> bytes:
        """The whole body of a small file. Raises FetchError if it has more than `limit` bytes, and as `get` does."""
        answer = self.get(url, content)
        body = self.read(answer, limit + 1)
        if len(body) > limit:
            self.close()
            raise FetchError(Reason.INVALID_CONFIG, f"{content} has more than {limit} bytes")
        return body

    def read(self, answer: Answer, most: int) -> bytes:
        """The first `most` bytes of a body, or all of it. Raises Cut if the connection ends too early."""
        try:
            body = answer.response.read(most)
        except _ENDED as error:
            self.close()
            raise Cut(str(error) or type(error).__name__) from None
        if len(body) < most and answer.response.length:
            # http.client gives what has arrived, and says nothing.
            self.close()
            raise Cut(f"the connection ended {answer.response.length} bytes too early")
        return body

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def _is_own(self, url: str) -> bool:
        """Whether the address is of the hub itself, and not of its content network."""
        return urlsplit(url)[:2] == urlsplit(self.remote.base)[:2]

    def _send(self, method: str, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        parts, own = urlsplit(url), self._is_own(url)
        all_headers = {
            "Accept-Encoding": "identity",
            "User-Agent": "qwen-operator",
            **(self.remote.headers_for(method, url, headers) if own else headers),
        }
        if not all(map(_HEADER.fullmatch, all_headers.values())):
            # The HTTP client would show the value, which may be a secret, in its complaint.
            message = f"the credentials of {self.remote.server} must each have one line of letters, digits and signs"
            raise FetchError(Reason.AUTH_REQUIRED, message)
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        if parts.scheme == "http" and proxy_for("http", parts.netloc):
            # A proxy learns from the whole address where the request goes.
            target = parts._replace(fragment="").geturl()
        try:
            connection = self._connection(parts.scheme, parts.netloc)
            connection.request(method, target, headers=all_headers)
            peer = connection.sock.getpeername()[0] if connection.sock is not None else ""
            if not own and (fault := peer_fault(peer, url, self.remote.base)):
                raise FetchError(Reason.HUB_UNREACHABLE, f"the hub redirects to {fault}")
            return connection.getresponse()
        except _ENDED as error:
            self._drop(url)
            raise Cut(str(error) or type(error).__name__) from None
        except ValueError:
            # A part of the name is empty or too long, or the address is wrong in another way.
            self._drop(url)
            raise FetchError(Reason.HUB_UNREACHABLE, f"{shown(parts.hostname)} is no name of a host") from None

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        known = self._open.get((scheme, netloc))
        if known is None:
            proxy = proxy_for(scheme, netloc)
            if scheme == "https":
                known = http.client.HTTPSConnection(proxy or netloc, timeout=self.timeout, context=self.context)
                if proxy:
                    parts = urlsplit(f"//{netloc}")
                    known.set_tunnel(parts.hostname or "", parts.port or 443)
            else:
                known = http.client.HTTPConnection(proxy or netloc, timeout=self.timeout)
            self._open[scheme, netloc] = known
        return known

    def _drop(self, url: str) -> None:
        parts = urlsplit(url)
        connection = self._open.pop((parts.scheme, parts.netloc), None)
        if connection is not None:
            connection.close()

    def _check(self, response: http.client.HTTPResponse, content: str, *, redirected: bool) -> None:
        if response.status in (200, 206):
            return
        status = response.status
        try:
            if status == 429 or status >= 500 or status in (408, 425):
                raise Busy(status, asked_pause(response.headers.get))
            if redirected and status in (401, 403, 404, 410):
                raise Expired
            raise self.remote.refusal(response, content)
        finally:
            self.close()


def _refusal(remote: Remote, status: int, code: str, content: str) -> FetchError:
    place = f"{remote.hub}://{remote.repository}"
    if code == "GatedRepo":
        cure = "accept its terms on the hub's page with the account of the token" if remote.token else TERMS_CURE
        return FetchError(Reason.GATED_MODEL, f"{place} is gated: {cure}")
    if status in (401, 403):
        if remote.token:
            cure = "correct the token in the Secret of spec.source.secretRef, which must be allowed to read it"
            return FetchError(Reason.AUTH_REQUIRED, f"{place} refuses the token (the hub answered {status}): {cure}")
        cure = "name a Secret with a token in spec.source.secretRef, or correct the repository"
        return FetchError(
            Reason.AUTH_REQUIRED, f"{place} does not exist or is private (the hub answered {status}): {cure}"
        )
    if status == 404:
        cure = "correct spec.source.uri or spec.source.revision"
        return FetchError(Reason.MODEL_NOT_FOUND, f"{content} of {remote} does not exist: {cure}")
    return FetchError(Reason.HUB_UNREACHABLE, f"the hub answered {status} for {content} of {remote}")


def _target(url: str, location: str) -> str:
    """Where a redirect leads; "" if nobody could follow it."""
    try:
        target = urljoin(url, location)
        return target if target.isascii() else ""
    except ValueError:
        return ""


def _length(response: http.client.HTTPResponse) -> int:
    return response.length if response.length is not None else -1
