"""The page on which a pod shows how far its download or its start is. The operator reads it.

A download shows it on the port of the engine, which starts later: so the port is free, and the NetworkPolicy lets the
operator reach it already. A start shows it on a port of its own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import AF_INET6, SHUT_WR
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

PATH = "/progress"
_TIMEOUT_SECONDS = 2.0
_LONGEST_REQUEST = 8192
_POLL_SECONDS = 0.1


class _Server(TCPServer):
    allow_reuse_address = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no event for the log."""


class _Server6(_Server):
    address_family = AF_INET6  # it takes connections by IPv4 too


@contextmanager
def showing(page: Callable[[], bytes], port: int, host: str = "::") -> Iterator[int]:
    """Serve the page until the block ends; gives the port. Without a free port it serves nothing and gives 0."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            # Clients are answered one after the other, and the end of the fetch waits for the last one. So nobody gets
            # more than one reading: whoever sends byte after byte would keep the engine from starting.
            self.request.settimeout(_TIMEOUT_SECONDS)
            self.request.sendall(_answer(self.request.recv(_LONGEST_REQUEST), page))
            self.request.shutdown(SHUT_WR)

    server = _bound(Handler, host, port)
    if server is None:
        yield 0
        return
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: bytes, page: Callable[[], bytes]) -> bytes:
    """The whole answer to the beginning of a request."""
    found = request.startswith(f"GET {PATH} HTTP/1.".encode())
    body, status = (page(), "200 OK") if found else (b"", "404 Not Found")
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _bound(handler: type[BaseRequestHandler], host: str, port: int) -> TCPServer | None:
    """A server on the port; None if it is in use. A node without IPv6 gets one for IPv4."""
    for server, address in ((_Server6, host), (_Server, "0.0.0.0" if host == "::" else host)):
        try:
            return server((address, port), handler)
        except OSError:
            continue
    return None
