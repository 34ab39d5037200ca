"""Stand-in engines on loopback: the few SGLang endpoints that the router asks for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from qwen_runtime.guard import is_open


class _Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._closed():
            return
        answers: dict[str, Any] = {
            "/health": {},
            "/ready": {},
            "/server_info": {"served_model_name": "engine", "model_path": "engine", "version": "0.5.23"},
            "/model_info": {"model_path": "engine", "is_generation": True},
            "/v1/models": {"object": "list", "data": [{"id": "engine", "object": "model", "owned_by": "sglang"}]},
        }
        answer = answers.get(self.path.partition("?")[0])
        self._send(404 if answer is None else 200, answer or {})

    def do_POST(self) -> None:
        if self._closed():
            return
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/rerank":
            self._send(200, [{"score": 0.5, "document": "b", "index": 0}])
            return
        content = f"{self.connection.getsockname()[0]} as {request['model']}"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"], "choices": [choice]}
        self._send(200, body)

    def _closed(self) -> bool:
        """Refuse what an engine refuses other pods: its guard cannot tell them apart on loopback."""
        path = self.path.partition("?")[0]
        closed = not is_open("http", "10.0.0.5", path)
        if closed:
            self._send(403, {})
        return closed

    def _send(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed in the middle of a request is part of the tests."""


@contextmanager
def engine(address: str, port: int = 0) -> Iterator[int]:
    """Serve on `address` until the block ends; yields the port. Answers tell the address and the model asked for."""
    server = _Server((address, port), _Engine)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
