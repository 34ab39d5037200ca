"""A hub that answers what no hub should: each time the fetch says so, and blames nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.wire import Client, Cut, Remote, certificates
from tests.unit.fetch.hub import COMMIT, REPOSITORY

CONTEXT = certificates()


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer after the other, byte by byte as written. Gives its address and the requests."""
    asked: list[str] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization', '')}".strip())
            self.wfile.write(left.pop(0).replace(b"HOST", (self.headers["Host"] or "").encode()))
            self.close_connection = True

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(base: str, token: str = "") -> bytes:
    client = Client(Remote(Hub.HUGGING_FACE, base, REPOSITORY, COMMIT, token), CONTEXT, timeout=5.0)
    try:
        return client.read_all(f"{base}/a", "config.json", 10)
    finally:
        client.close()


def redirect(location: str, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + location.encode("latin-1") + b"\r\n" + (body or b"\r\n")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "location",
    [
        "http://[x/y",
        "http://HOST/\xe9",
        f"http://{'a' * 64}/",
        "http://127.0.0.1..x/",
        "file:///etc/passwd",
        "http://u:p@HOST/",
        "",
    ],
)
def test_an_address_to_which_nobody_can_go_is_the_hubs_fault(location: str) -> None:
    with answering(*[redirect(location)] * 6) as (base, _), pytest.raises(FetchError) as refused:
        read(base)
    assert refused.value.reason is Reason.HUB_UNREACHABLE


@pytest.mark.parametrize(
    "body", [b"Content-Length: 500\r\n\r\ncut", b"Transfer-Encoding: chunked\r\n\r\nno number\r\n"]
)
def test_the_body_of_a_redirect_does_not_matter(body: bytes) -> None:
    with answering(redirect("http://HOST/b", body), OK) as (base, asked):
        assert read(base) == b"ok"
    assert asked == ["/a", "/b"]


@pytest.mark.parametrize("token", ["two\nlines", "with space", "\u201cquoted\u201d", "nul\0"])
def test_a_token_that_no_header_can_have_is_told_and_not_shown(token: str) -> None:
    with answering(OK) as (base, asked), pytest.raises(FetchError) as refused:
        read(base, token)
    assert refused.value.reason is Reason.AUTH_REQUIRED
    assert token not in str(refused.value)
    assert asked == []


@pytest.mark.parametrize("value", ["two\nlines", "\u201cquoted\u201d", "nul\0", "\xfc"])
def test_no_header_shows_its_value_in_a_complaint(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "headers_for", lambda *_arguments: {"Authorization": value})
    with answering(OK) as (base, asked), pytest.raises(FetchError) as refused:
        read(base)
    assert refused.value.reason is Reason.AUTH_REQUIRED
    assert value not in str(refused.value)
    assert asked == []


def test_the_token_goes_to_no_other_port() -> None:
    with answering(OK) as (other, others), answering(redirect(f"{other}/b")) as (base, asked):
        assert read(base, "secret") == b"ok"
    assert (asked, others) == (["/a Bearer secret"], ["/b"])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100, FetchError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, FetchError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nx", Cut),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", Cut),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", Cut),
        (b"no HTTP at all\r\n", Cut),
    ],
)
def test_an_answer_without_an_end_is_cut_off(answer: bytes, error: type[Exception]) -> None:
    with answering(answer) as (base, _), pytest.raises(error):
        read(base)


def test_a_proxy_gets_the_whole_address_and_hosts_without_one_are_asked_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with answering(good, good) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,.svc")
        assert read("http://hub.example.org:81") == b"ok"
        assert read(proxy) == b"ok"
    assert [line.split()[0] for line in asked] == ["http://hub.example.org:81/a", "/a"]


def test_a_proxy_is_asked_for_a_tunnel_and_its_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(Cut, match="Tunnel connection failed: 403 Forbidden"):
            read("https://hub.example.org")
    assert asked == ["hub.example.org:443"]
