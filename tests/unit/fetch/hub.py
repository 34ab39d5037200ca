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

    `token`: who asks the hub must have it. `gated`: the token is not enough. `busy`: so many requests get 429.
    `cut_after`: so many bytes of each answer arrive, and then the connection ends; 0 is never. `cuts`: how often.
    `stall`: seconds before it ends.
    `flipped`: files of which so many answers have a wrong byte. `expired`: so many redirected requests get 403.
    `missing`: files that the list names and the hub does not have. `delay`: seconds before each 64 KiB. `opened`: no
    byte of a file comes before it is set.
    """

    files: dict[str, bytes]
    token: str = ""
    gated: bool = False
    busy: int = 0
    retry_after: str = "0"
    cut_after: int = 0
    cuts: int = 10**6
    stall: float = 0.0
    flipped: dict[str, int] = field(default_factory=dict)
    expired: int = 0
    missing: set[str] = field(default_factory=set)
    delay: float = 0.0
    opened: threading.Event | None = None
    address: str = ""
    network: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether a fault of this name is due."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left)


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hugging_face(hub: FileHub) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for name, content in hub.files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob(content)}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"sha256": checksum(content), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}


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
            self.json({"sent": hub.sent})
        elif hub.take("busy"):
            self.fail(429, {"Retry-After": hub.retry_after})
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
            self.file(unquote(urlsplit(self.path).path.removeprefix("/")))

    def own(self) -> None:
        """What the hub itself answers."""
        hub, parts = self.hub, urlsplit(self.path)
        name = unquote(re.sub(f"^/{REPOSITORY}/resolve/({COMMIT}|{OTHER_COMMIT})/", "", parts.path))
        if parts.path.startswith("/api/v1/models/"):
            path = parse_qs(parts.query).get("FilePath", [""])[0]
            if path:
                self.file(path)
            else:
                self.json(_modelscope(hub))
        elif parts.path in (f"/api/models/{REPOSITORY}/revision/{ref}" for ref in (COMMIT, OTHER_COMMIT, "main")):
            self.json(_hugging_face(hub))
        elif name.endswith(".safetensors") and name in hub.files and name not in hub.missing:
            self.fail(302, {"Location": f"{hub.network}/{name}?signature=x"})
        else:
            self.file(name)

    def file(self, name: str) -> None:
        hub = self.hub
        if name not in hub.files or name in hub.missing:
            self.fail(404, {"X-Error-Code": "EntryNotFound"})
            return
        content = hub.files[name]
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
            self.wfile.write(body[at : at + _PIECE])
        with hub.lock:
            hub.sent += len(body)
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
