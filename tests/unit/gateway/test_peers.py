"""Limits of tenants over several gateway pods: what one takes counts in the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_operator.gateway.peers import FRESH_SECONDS, MOST_BYTES, PATH, Peers, read_page
from qwen_operator.gateway.proxy import replace
from tests.unit.gateway.proxied import Pod, gateway, until

A_PAGE: dict[str, Any] = {"id": "b-1.000", "age": 9.5, "running": {"x": 1}, "requests": {"x": 2}, "tokens": {"x": 3}}


@contextmanager
def serving(address: str, port: int, answer: Callable[[], bytes]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answer()
            self.send_response(200 if self.path == PATH else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_only_others_that_were_read_lately_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, now, addresses = tmp_path / "peers.json", [100.0], ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    pages = {"127.0.0.1": {**A_PAGE, "id": "own-1.000"}, "127.0.0.2": A_PAGE}

    def content(address: str) -> Callable[[], bytes]:
        return lambda: json.dumps(pages[address]).encode()

    with ExitStack() as stack:
        port = stack.enter_context(serving("127.0.0.1", 0, content("127.0.0.1")))
        others = Peers("own", lambda: addresses, port, file, replace, clock=lambda: now[0], now=lambda: now[0])
        others.step()
        assert not file.exists(), "alone, nothing is written"
        with serving("127.0.0.2", port, content("127.0.0.2")):
            others.step()
            known = {"b-1.000": {part: value for part, value in A_PAGE.items() if part != "id"}}
            assert json.loads(file.read_text()) == {"at": 100.0, "peers": known}
        now[0] += FRESH_SECONDS
        others.step()
        assert json.loads(file.read_text()) == {"at": 105.0, "peers": known}
        now[0] += 1.0
        others.step()
        assert json.loads(file.read_text()) == {"at": 106.0, "peers": {}}
    assert "the gateway pod at 127.0.0.3 cannot be read: [Errno 111] Connection refused. Each pod" in caplog.text


def test_without_the_name_each_pod_counts_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def unknown() -> list[str]:
        raise OSError("Name or service not known")

    others = Peers("own", unknown, 1, tmp_path / "peers.json", replace)
    for _ in range(3):
        others.step()
    assert [record.getMessage() for record in caplog.records] == [
        "the gateway pods cannot be found: Name or service not known. Each pod counts for itself there"
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"id": 7}', b'{"id": ""}', b'{"id": "' + b"x" * 300 + b'"}', b"\xff", b"[" * 100_000],
)
def test_another_page_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_page(content)


def test_a_page_holds_only_numbers_that_count() -> None:
    odd = {"a": -1, "b": "7", "c": True, "d": 1e300, "e": 2, "f": [1], "g": None, "h" * 300: 1, "i": 0}
    ident, page = read_page(json.dumps({"id": "b-1", "age": -5, "running": odd, "requests": [1], "x": 1}).encode())
    assert (ident, page) == ("b-1", {"age": 0.0, "running": {"e": 2}, "requests": {}, "tokens": {}})
    many = {f"t{number}": 1 for number in range(10_001)}
    assert read_page(json.dumps({"id": "b-1", "running": many}).encode())[1]["running"] == {}


def test_a_page_without_end_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving("127.0.0.1", 0, lambda: b" " * (MOST_BYTES + 1)) as port:
        Peers("own", lambda: ["127.0.0.1"], port, tmp_path / "peers.json", replace).step()
    assert "its page is too long or too slow" in caplog.text


LIMITS = {
    "defaults": {},
    "tenants": {
        "some": {"requestsPerMinute": 6},
        "few": {"concurrentRequests": 2},
        "all": {"tokensPerMinute": 600},
    },
}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pod, Pod]]:
    """Two gateways. What they hear of each other is up to the tests."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(gateway(tmp_path_factory.mktemp("gateway"))) for _ in range(2))
        for pod in (first, second):
            pod.write_tenants(LIMITS)
            until(lambda pod=pod: pod.metrics()["qwen_gateway_settings_loads"] == 2, "the limits are taken over")
        yield first, second


def page(pod: Pod) -> Any:
    return httpx.get(f"{pod.metrics_url}{PATH}").json()


def tell(pod: Pod, *pages: Any, at: float = 0.0) -> None:
    """Let a gateway hear pages of others, and for a moment none before."""
    for known in ({}, {one["id"]: one for one in pages}):
        replace(pod.folder / "proxy" / "peers.json", json.dumps({"at": at, "peers": known}))
        until(lambda known=known: pod.metrics()["qwen_gateway_peers"] == len(known), "the gateway has heard it")


def test_what_one_pod_accepts_the_other_does_not(pods: tuple[Pod, Pod]) -> None:
    first, second = pods
    tell(second, page(first))
    assert [first.chat("open", "key-some").status_code for _ in range(4)] == [200] * 4
    told = page(first)
    assert told["requests"] == {"some": 4}
    tell(second, told)
    answers = [second.chat("open", "key-some") for _ in range(4)]
    assert [answer.status_code for answer in answers][-2:] == [429, 429]
    assert [answer.status_code for answer in answers][:2] == [200, 200]
    # All six are gone. The next one comes after ten seconds, whoever took them.
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 10


def test_a_debt_of_all_pods_is_waited_out(pods: tuple[Pod, Pod]) -> None:
    _, second = pods
    other = {"id": "o-1.000", "age": 9000, "running": {}, "requests": {}, "tokens": {"all": 100}}
    tell(second, other)
    tell(second, {**other, "tokens": {"all": 100 + 1200}})
    refused = second.chat("open")
    assert refused.status_code == 429
    # 600 of them are the level, the rest is a debt of a minute.
    assert 50 <= int(refused.headers["Retry-After"]) <= 61
    assert "600 tokens a minute" in refused.text


def test_what_an_old_pod_took_before_is_no_news_and_what_a_new_one_took_is(pods: tuple[Pod, Pod]) -> None:
    first, _ = pods
    taken = {"running": {}, "requests": {"few": 0}, "tokens": {"all": 50_000}}
    tell(first, {"id": "old-1.000", "age": 9000, **taken})
    assert first.chat("open").status_code == 200
    tell(first, {"id": "new-1.000", "age": 0.01, **taken})
    assert first.chat("open").status_code == 429


def test_slots_of_other_pods_count_until_these_are_silent(pods: tuple[Pod, Pod]) -> None:
    first, _ = pods
    other = {"id": "p-1.000", "age": 9000, "running": {"few": 2}, "requests": {}, "tokens": {}}
    tell(first, other)
    refused = first.chat("open", "key-few")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    tell(first, {**other, "running": {"few": 1}}, at=1.0)
    assert first.chat("open", "key-few").status_code == 200
    tell(first, other, at=2.0)
    assert first.chat("open", "key-few").status_code == 429
    until(lambda: first.metrics()["qwen_gateway_peers"] == 0, "nobody writes the file any more")
    assert first.chat("open", "key-few").status_code == 200


def test_a_request_waits_for_a_slot_that_another_pod_has_freed_already(pods: tuple[Pod, Pod]) -> None:
    first, _ = pods
    other = {"id": "q-1.000", "age": 9000, "running": {"few": 2}, "requests": {}, "tokens": {}}
    tell(first, other, at=3.0)
    answers: list[int] = []
    asking = [threading.Thread(target=lambda: answers.append(first.chat("open", "key-few").status_code)) for _ in "ab"]
    for thread in asking:
        thread.start()
    free = {"at": 4.0, "peers": {"q-1.000": {**other, "running": {}}}}
    replace(first.folder / "proxy" / "peers.json", json.dumps(free))
    for thread in asking:
        thread.join()
    assert answers == [200, 200]


def test_no_more_requests_wait_than_may_run(pods: tuple[Pod, Pod]) -> None:
    first, _ = pods
    other = {"id": "r-1.000", "age": 9000, "running": {"few": 2}, "requests": {}, "tokens": {}}
    tell(first, other, at=5.0)
    seconds: list[float] = []

    def ask() -> None:
        answer = first.chat("open", "key-few")
        assert answer.status_code == 429
        seconds.append(answer.elapsed.total_seconds())

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(seconds) == 6
    # The refusal that comes first did not wait. How soon it came depends on the machine.
    assert max(seconds) >= 2.4 > min(seconds)
    until(lambda: first.metrics()["qwen_gateway_peers"] == 0, "nobody writes the file any more")
    assert first.chat("open", "key-few").status_code == 200


def test_a_pod_does_not_hear_itself(pods: tuple[Pod, Pod], tmp_path: Path) -> None:
    port, own = httpx.URL(pods[0].metrics_url).port or 0, page(pods[0])["id"].partition("-")[0]
    for ident, known in ((own, False), ("another", True)):
        Peers(ident, lambda: ["127.0.0.1"], port, tmp_path / ident, replace).step()
        assert (tmp_path / ident).exists() == known


def test_a_pod_hears_those_whose_addresses_a_name_has(tmp_path: Path) -> None:
    with gateway(tmp_path, QWEN_GATEWAY_PEERS="127.0.0.2") as pod:
        port = httpx.URL(pod.metrics_url).port or 0
        assert pod.metrics()["qwen_gateway_peers"] == 0
        with serving("127.0.0.2", port, lambda: json.dumps(A_PAGE).encode()):
            until(lambda: pod.metrics()["qwen_gateway_peers"] == 1, "the other pod is known")
        until(lambda: pod.metrics()["qwen_gateway_peers"] == 0, "the other pod has ended")
