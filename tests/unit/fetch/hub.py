"""A hub on loopback that gives whole files: Hugging Face with its content network, and ModelScope.

Hugging Face redirects a large file to the content network, here another port, with a signature in the address. The
faults are those that a download meets: pauses, cuts, other bytes, expired addresses, refusals.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "0" * 40
"""A commit with the same files."""
REPOSITORY = "Qwen/Test"


@dataclass
class FileHub:
    """`files` of the repository Qwen/Test.

    `others`: more repositories and their files, which do not change. `rates`: bytes of a repository that leave in a
    second, over all connections. `sent_of`: the bytes of complete answers.
    `token`: who asks the hub must have it. `gated`: the token is not enough. `busy`: so many requests get 429, with the
    headers `busy_headers`.
    `cut_after`: so many bytes of each answer arrive, and then the connection ends; 0 is never. `cuts`: how often.
    `stall`: seconds before it ends.
    `flipped`: files of which so many answers have a wrong byte. `expired`: so many redirected requests get 403.
    `missing`: files that the list names and the hub does not have. `unsized`: files whose sizes no list has.
    `delay`: seconds before each 64 KiB. `opened`: no
    byte of a file comes before it is set.
    """

    files: dict[str, bytes]
    token: str = ""
    gated: bool = False
    busy: int = 0
    busy_headers: dict[str, str] = field(default_factory=dict)
    cut_after: int = 0
    cuts: int = 10**6
    stall: float = 0.0
    flipped: dict[str, int] = field(default_factory=dict)
    expired: int = 0
    missing: set[str] = field(default_factory=set)
    unsized: set[str] = field(default_factory=set)
    delay: float = 0.0
    opened: threading.Event | None = None
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    rates: dict[str, int] = field(default_factory=dict)
    address: str = ""
    network: str = ""
    asked: list[str] = field(default_factory=list)
    sent_of: Counter[str] = field(default_factory=Counter)
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _due: dict[str, float] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """The bytes of files that it has sent."""
        return self.sent_of.total()

    def take(self, name: str) -> bool:
        """Whether a fault of this name is due."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left)

    def pause(self, repository: str, count: int) -> None:
        """Wait until so many bytes of the repository may leave."""
        if not (rate := self.rates.get(repository)):
            return
        with self.lock:
            now = time.monotonic()
            self._due[repository] = due = max(self._due.get(repository, now), now) + count / rate
        time.sleep(due - now)

    def files_of(self, repository: str) -> dict[str, bytes]:
        """The files of a repository; none if there is no such repository."""
        return self.files if repository == REPOSITORY else self.others.get(repository, {})

    def list_of(self, repository: str) -> dict[str, Any]:
        """The answer of Hugging Face about a repository."""
        if repository not in self.others:
            return _hugging_face(repository, self.files)
        # The checksums of large files take seconds.
        if repository not in self.lists:
            self.lists[repository] = _hugging_face(repository, self.others[repository])
        return self.lists[repository]


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def zeros(size: int) -> bytearray:
    """A file of weights of so many bytes. It takes no memory before it is written to."""
    for length in range(80, 200):
        count = (size - 8 - length) // 2
        tensor = {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}
        head = json.dumps({"filler.weight": tensor}).encode()
        if len(head) <= length and 8 + length + 2 * count == size:
            content = bytearray(size)
            content[: 8 + length] = length.to_bytes(8, "little") + head.ljust(length)
            return content
    raise ValueError(f"{size} bytes are too few for a file of weights")


def _hugging_face(repository: str, files: dict[str, bytes]) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for name, content in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
        if name.endswith((".safetensors", ".bin")):
            # Git itself has only a pointer to a large file.
            entry["lfs"] = {"sha256": checksum(content), "size": len(content), "pointerSize": 134}
            entry["blobId"] = blob(entry["lfs"]["sha256"].encode())
        else:
            entry["blobId"] = blob(content)
        siblings.append(entry)
    return {"id": repository, "sha": COMMIT, "siblings": siblings}


def _modelscope(hub: FileHub) -> dict[str, Any]:
    files = [
        {
            "Path": name,
            "Type": "blob",
            "Size": len(content),
            "Sha256": checksum(content),
            "Revision": COMMIT,
            "CommittedDate": 1,
        }
        for name, content in hub.files.items()
    ]
    return {"Code": 200, "Data": {"Files": files}, "Success": True}


_PIECE = 64 << 10
_NAME = r"[\w-]+/[\w.-]+"
_LIST = re.compile(rf"/api/models/({_NAME})/revision/({COMMIT}|{OTHER_COMMIT}|main)")
_FILE = re.compile(rf"/({_NAME})/resolve/({COMMIT}|{OTHER_COMMIT})/(.+)")
_LARGE = re.compile(rf"/({_NAME}):(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FileHub
    is_network = False

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        with hub.lock:
            hub.asked.append(("cdn" if self.is_network else "") + self.path)
        if self.is_network:
            self.network()
        elif self.path == "/sent":
            self.json({"sent": hub.sent, "of": hub.sent_of})
        elif hub.take("busy"):
            self.fail(429, hub.busy_headers)
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.fail(401, {"X-Error-Code": "RepoNotFound"})
        elif hub.gated:
            self.fail(403, {"X-Error-Code": "GatedRepo"})
        else:
            self.own()

    def network(self) -> None:
        """What the content network answers."""
        assert "Authorization" not in self.headers, "the token must not reach the content network"
        if self.hub.take("expired"):
            self.fail(403)
        else:
            repository, name = _matched(_LARGE, self.path)
            self.file(repository, name)

    def own(self) -> None:
        """What the hub itself answers."""
        hub, parts = self.hub, urlsplit(self.path)
        if parts.path.startswith("/api/v1/models/"):
            path = parse_qs(parts.query).get("FilePath", [""])[0]
            if path:
                self.file(REPOSITORY, path)
            else:
                self.json(_without(_modelscope(hub), hub.unsized))
        elif (listed := _LIST.fullmatch(parts.path)) and hub.files_of(listed[1]):
            self.json(_without(hub.list_of(listed[1]), hub.unsized))
        else:
            self.resolve(*_matched(_FILE, self.path))

    def resolve(self, repository: str, name: str) -> None:
        """A small file, or where a large one is."""
        hub = self.hub
        if name.endswith(".safetensors") and name in hub.files_of(repository) and name not in hub.missing:
            self.fail(302, {"Location": f"{hub.network}/{repository}:{name}?signature=x"})
        else:
            self.file(repository, name)

    def file(self, repository: str, name: str) -> None:
        hub = self.hub
        files = hub.files_of(repository)
        if name not in files or name in hub.missing:
            self.fail(404, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[name]
        with hub.lock:
            if hub.flipped.get(name):
                hub.flipped[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
        first, end = 0, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted:
            first, end = int(wanted[1]), int(wanted[2]) + 1
        body = content[first:end]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if hub.cut_after and len(body) > hub.cut_after and hub.take("cuts"):
            body = body[: hub.cut_after]
            self.close_connection = True
        if hub.opened is not None:
            hub.opened.wait()
        for at in range(0, len(body), _PIECE):
            if hub.delay:
                time.sleep(hub.delay)
            piece = body[at : at + _PIECE]
            hub.pause(repository, len(piece))
            self.wfile.write(piece)
        with hub.lock:
            hub.sent_of[repository] += len(body)
        if self.close_connection:
            self.wfile.flush()
            time.sleep(hub.stall)

    def json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _without(answer: dict[str, Any], unsized: set[str]) -> dict[str, Any]:
    """A list of files that lacks the sizes of some."""
    for entry in answer.get("siblings") or answer["Data"]["Files"]:
        if not unsized.isdisjoint(map(str, entry.values())):
            del entry["Size" if "Size" in entry else "size"]
    return answer


def _matched(pattern: re.Pattern[str], path: str) -> tuple[str, str]:
    """The repository and the file of a path; ("", "") if it has another form."""
    match = pattern.fullmatch(unquote(urlsplit(path).path))
    return (match[1], match[match.re.groups]) if match else ("", "")


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(
    hub: FileHub, ports: tuple[int, int] = (0, 0), host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[FileHub]:
    """The hub at `hub.address` and its content network at `hub.network`, until the block ends.

    `host` is the name by which others reach them.
    """
    servers = []
    for port, is_network in zip(ports, (False, True), strict=True):
        handler = type("Handler", (_Handler,), {"hub": hub, "is_network": is_network})
        servers.append(_QuietServer(("127.0.0.1" if host == "127.0.0.1" else "0.0.0.0", port), handler))
        if tls is not None:
            servers[-1].socket = tls.wrap_socket(servers[-1].socket, server_side=True, do_handshake_on_connect=False)
    scheme = "https" if tls is not None else "http"
    hub.address, hub.network = (f"{scheme}://{host}:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
