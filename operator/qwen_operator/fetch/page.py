"""The page on which a pod shows how far its download is. The operator reads it on the port of the engine.

The engine starts after the download, so the port is free, and the NetworkPolicy lets the operator reach it already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET6
from typing import Any

PATH = "/progress"
_TIMEOUT_SECONDS = 2.0
_POLL_SECONDS = 0.1


class _Server(HTTPServer):
    address_family = AF_INET6  # it takes connections by IPv4 too
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no event for the log."""


@contextmanager
def showing(page: Callable[[], bytes], port: int, host: str = "::") -> Iterator[int]:
    """Serve the page until the block ends; gives the port. Without a free port it serves nothing and gives 0."""

    class Handler(BaseHTTPRequestHandler):
        # One slow client must not keep the others away for long: they are answered one after the other.
        timeout = _TIMEOUT_SECONDS

        def do_GET(self) -> None:
            body = page() if self.path == PATH else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """The log has the progress, not who asked for it."""

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


def _bound(handler: type[BaseHTTPRequestHandler], host: str, port: int) -> HTTPServer | None:
    """A server on the port; None if it is in use. A node without IPv6 gets one for IPv4."""
    for server, address in ((_Server, host), (HTTPServer, "0.0.0.0" if host == "::" else host)):
        try:
            return server((address, port), handler)
        except OSError:
            continue
    return None
