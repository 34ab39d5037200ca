"""Stand-in engines on loopback: the few SGLang endpoints that the router asks for."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from qwen_runtime.guard import is_open

USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
_RAW = "raw:"


def raw(*pieces: str) -> str:
    """The field `user` of a request that an engine answers with these bytes, with a pause after each piece."""
    return f"{_RAW}{json.dumps(pieces)}"


@dataclass(frozen=True, slots=True)
class Received:
    """A request that reached an engine; the names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class _Engine(BaseHTTPRequestHandler):
    """The field `user` of a request may have headers of the answer, as JSON, or what `raw` made."""

    protocol_version = "HTTP/1.1"
    extra: Mapping[str, str] = {}

    def end_headers(self) -> None:
        for name, value in self.extra.items():
            self.send_header(name, value)
        super().end_headers()

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
        server = self.server
        assert isinstance(server, _Server)
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.received.append(Received(self.path, headers, request))
        user = str(request.get("user"))
        if user.startswith(_RAW):
            self._raw(json.loads(user.removeprefix(_RAW)))
            return
        self.extra = json.loads(user) if user.startswith("{") else {}
        if request.get("stream"):
            if request.get("user") == "ends early":
                self._break_off(request)
            else:
                self._stream(request)
            return
        if words := re.fullmatch(r"answer with (\d+)", str(request.get("user"))):
            self._send(int(words[1]), {"message": "of the engine"}, {"X-Accel-Redirect": "/-/models"})
            return
        content = f"{self.connection.getsockname()[0]} as {request['model']}"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"], "choices": [choice]}
        self._send(200, {**body, "usage": USAGE})

    def _stream(self, request: dict[str, Any]) -> None:
        """`max_tokens` events, with a pause of so many milliseconds between two as the first message says."""
        pause = int(request["messages"][0]["content"]) / 1000
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
        for number in range(request["max_tokens"]):
            choice = {"index": 0, "delta": {"content": f" {number}"}, "finish_reason": None}
            self._event({**head, "choices": [choice]})
            time.sleep(pause)
        if (request.get("stream_options") or {}).get("include_usage"):
            self._event({**head, "choices": [], "usage": USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _break_off(self, request: dict[str, Any]) -> None:
        """Two events as uvicorn sends them, and then the connection ends."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in ("a", "b"):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
            event = b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n"
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()
        time.sleep(0.1)
        self.close_connection = True

    def _raw(self, pieces: list[str]) -> None:
        for piece in pieces:
            self.wfile.write(piece.encode("latin-1"))
            self.wfile.flush()
            time.sleep(0.01)
        self.close_connection = True

    def _event(self, body: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    def _closed(self) -> bool:
        """Refuse what an engine refuses other pods: its guard cannot tell them apart on loopback."""
        path = self.path.partition("?")[0]
        closed = not is_open("http", "10.0.0.5", path)
        if closed:
            self._send(403, {})
        return closed

    def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Engine)
        self.received: list[Received] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed in the middle of a request is part of the tests."""


@contextmanager
def engine(address: str, port: int = 0) -> Iterator[int]:
    """Serve on `address` until the block ends; yields the port. Answers tell the address and the model asked for."""
    with recorded_engine(address, port) as (served, _):
        yield served


@contextmanager
def recorded_engine(address: str, port: int = 0) -> Iterator[tuple[int, list[Received]]]:
    """As `engine`; yields the port and the list of what it receives."""
    server = _Server((address, port))
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1], server.received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
