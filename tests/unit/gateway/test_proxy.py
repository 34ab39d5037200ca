"""The proxy before the router, as its pod runs both: who reaches what, what the engine gets, and what is refused."""

import json
import re
import resource
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from qwen_operator.gateway.nginx import HEALTH, ROUTES
from tests.testbed.packages import ensure_packages
from tests.unit.chart.manual import ROOT, VALUES
from tests.unit.gateway.proxied import KEYS, OPEN, TENANTS, Pod, gateway, until

MESSAGES = [{"role": "user", "content": "0"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/classify": {"input": "a"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
}
# Of smg 1.13.0, beside ROUTES: its strings and its answers were searched for them.
CLOSED_ROUTES = [
    *(("GET", path) for path in ("/", "/get_server_info", "/server_info", "/get_model_info", "/model_info")),
    *(("GET", path) for path in ("/health_generate", "/engine_metrics", "/metrics", "/get_loads", "/v1/loads")),
    *(("GET", path) for path in ("/workers", "/wasm", "/v1/tokenizers", "/v1/responses/x", "/v1/conversations/x")),
    *(("POST", path) for path in ("/generate", "/rerank", "/v1/rerank", "/v1/tokenize", "/v1/detokenize")),
    *(("POST", path) for path in ("/v1/conversations", "/v1/interactions", "/v1/audio/transcriptions")),
    *(("POST", path) for path in ("/v1/realtime/client_secrets", "/v1/tokenizers", "/workers", "/flush_cache")),
    *(("POST", path) for path in ("/parse/reasoning", "/parse/function_call", "/wasm", "/-/models")),
    *(("DELETE", path) for path in ("/workers/x", "/v1/responses/x")),
    ("GET", "/-/models"),
    ("GET", "/v1/models/../../workers"),
    ("POST", "/v1/responses/x/cancel"),
]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    origins = {"QWEN_GATEWAY_CORS_ALLOWED_ORIGINS": "https://chat.example.com http://localhost:3000"}
    small = {"QWEN_GATEWAY_BODY_TIMEOUT_SECONDS": "2", "QWEN_GATEWAY_MAX_BODY_BYTES": "4194304"}
    with gateway(tmp_path_factory.mktemp("gateway"), **origins, **small) as running:
        yield running


@pytest.fixture(autouse=True)
def settled(pod: Pod) -> Iterator[None]:
    """Each test begins with the same keys and tenants, and what engines received before is forgotten."""
    for received in pod.received.values():
        received.clear()
    before = (pod.folder / "proxy/settings.json").read_text()
    yield
    if (pod.folder / "proxy/settings.json").read_text() != before:
        loads = pod.metrics()["qwen_gateway_settings_loads"]
        pod.write_keys(KEYS)
        pod.write_tenants(TENANTS)
        until(lambda: pod.metrics()["qwen_gateway_settings_loads"] > loads, "the usual keys and tenants are back")


def error(answer: httpx.Response) -> tuple[int, str]:
    """(status, code) of a refusal in OpenAI's shape."""
    content = answer.json()["error"]
    assert content.keys() == {"type", "code", "message", "param"}
    return answer.status_code, content["code"]


def body_of(path: str, model: str) -> dict[str, Any]:
    return {"model": model, **BODIES.get(path, {"messages": MESSAGES})}


@pytest.mark.parametrize("path", ROUTES)
def test_a_route_wants_a_key_and_an_allowed_model(pod: Pod, path: str) -> None:
    shape = "message" if path.startswith("/v1/messages") else "code"

    def ask(key: str | None, model: str = "closed") -> tuple[int, bool]:
        with pod.client(key) as client:
            answer = client.post(path, json=body_of(path, model))
        return answer.status_code, shape in answer.json().get("error", {})

    assert ask(None) == (401, True)
    assert ask("wrong") == (401, True)
    assert ask("key-some") == (404, True)
    assert ask("key-some", "unknown") == (404, True)
    assert not pod.received["closed"]
    assert ask("key-some", "open")[0] == 200
    assert ask("key-all")[0] == 200
    assert [one.path for one in pod.received["closed"]] == [path]


@pytest.mark.parametrize(("method", "path"), CLOSED_ROUTES)
def test_every_other_route_is_closed_with_any_key(pod: Pod, method: str, path: str) -> None:
    control_plane = (pod.folder / "run/control-plane-key").read_text()
    for key in (None, "wrong", "key-all", control_plane):
        with pod.client(key) as client:
            content = json.dumps(body_of(path, "open")) if method == "POST" else None
            request = client.build_request(method, path, content=content, headers={"Content-Type": "application/json"})
            request.url = request.url.copy_with(raw_path=path.encode())
            answer = client.send(request)
        assert error(answer) == (404, "unknown_url")
    assert pod.received == {"open": [], "closed": []}


@pytest.mark.parametrize("path", HEALTH)
def test_health_needs_no_key_and_tells_nothing(pod: Pod, path: str) -> None:
    with pod.client(None) as client:
        assert (client.get(path).status_code, client.get(path).text) == (200, "OK")
        assert error(client.post(path)) == (405, "method_not_allowed")


def test_the_list_has_only_what_the_tenant_may_ask_for(pod: Pod) -> None:
    def names(key: str) -> list[str]:
        with pod.client(key) as client:
            return sorted(one["id"] for one in client.get("/v1/models").json()["data"])

    assert (names("key-all"), names("key-some")) == (["closed", "open"], ["open"])
    with pod.client("key-some") as client:
        assert client.get("/v1/models/open").json()["id"] == "open"
        hidden, absent = client.get("/v1/models/closed"), client.get("/v1/models/absent")
        assert hidden.text.replace("closed", "absent") == absent.text
        assert error(hidden) == (404, "model_not_found")
    for key in (None, "wrong"):
        with pod.client(key) as client:
            assert error(client.get("/v1/models")) == (401, "invalid_api_key")


def test_a_model_that_is_not_allowed_looks_like_one_that_does_not_exist(pod: Pod) -> None:
    hidden, absent = pod.chat("closed", "key-some"), pod.chat("absent", "key-some")

    assert hidden.text.replace("closed", "absent") == absent.text
    assert hidden.headers.keys() == absent.headers.keys()


def test_the_engine_gets_its_own_key_and_nothing_else_of_the_client(pod: Pod) -> None:
    secret = {"Cookie": "secret", "X-Custom": "secret", "x-smg-tenant-id": "secret", "x-smg-routing-key": "secret"}
    with pod.client("key-all", **secret) as client:
        for model in ("open", "closed"):
            body = body_of("", model)
            client.post("/v1/chat/completions?key=secret", json=body, headers={"x-request-id": "r-1"})
    with pod.client(None, **{"x-api-key": "key-all"}) as client:
        client.post("/v1/messages", json=body_of("/v1/messages", "open"))

    (chat, message), (other,) = pod.received["open"], pod.received["closed"]
    for one in (chat, message, other):
        assert "key-all" not in repr(one)
        assert "secret" not in repr(one)
        assert not {"authorization", "x-api-key"} & one.headers.keys()


ORDERS = [
    {"X-Accel-Redirect": "/-/models"},
    {"X-Accel-Redirect": "/v1/models"},
    {"X-Accel-Redirect": "@refused"},
    {"X-Accel-Redirect": "/health", "Status": "201"},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("orders", ORDERS)
def test_an_engine_gives_the_proxy_no_orders(pod: Pod, orders: dict[str, str], stream: bool) -> None:
    """nginx would leave the request for another address, and its tenant would never get the slot back."""
    for _ in range(3):
        answer = pod.chat("open", "key-few", user=json.dumps(orders), stream=stream, max_tokens=1)
        assert (answer.status_code, "chat.completion" in answer.text) == (200, True)
    until(lambda: pod.metrics()['qwen_gateway_running_requests{tenant="few"}'] == 0, "the slots are free")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_gives_the_client_no_orders(pod: Pod, stream: bool) -> None:
    orders = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Headers": "*",
        "Access-Control-Allow-Credentials": "true",
        "Alt-Svc": 'h3="127.0.0.1:1"',
        "Clear-Site-Data": '"*"',
        "Link": "<http://127.0.0.1/>; rel=preload",
        "Location": "http://127.0.0.1/",
        "Refresh": "0; url=http://127.0.0.1/",
        "Set-Cookie": "a=b",
        "Strict-Transport-Security": "max-age=9",
        "WWW-Authenticate": "Basic",
        "X-Other": "1",
    }
    answer = pod.chat("open", user=json.dumps(orders), stream=stream, max_tokens=1)
    assert answer.status_code == 200
    length = "transfer-encoding" if stream else "content-length"
    assert answer.headers.keys() == {"server", "date", "content-type", "connection", "x-request-id", length}


def test_the_answer_does_not_name_the_engine(pod: Pod) -> None:
    answer = pod.chat("open")

    assert not [name for name in answer.headers if name.startswith("x-smg")]
    assert answer.headers["server"] == "nginx"


def test_no_key_is_in_a_log_a_file_or_the_arguments(pod: Pod) -> None:
    pod.chat("open", "key-all")
    pod.chat("open", "wrong-key-all")
    texts = [
        pod.log("proxy"),
        pod.log("router"),
        *(path.read_text() for path in (pod.folder / "proxy").glob("*.*") if path.is_file()),
    ]
    texts += [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if str(pod.folder) in _read(path)]
    assert len(texts) > 4
    assert [text for text in texts if "key-all" in text] == []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


AMBIGUOUS = [
    ('{"model":"closed","model":"open"}', 400),
    ('{"model":"open","model":"closed"}', 400),
    (r'{"model":"open","\u006dodel":"closed"}', 400),
    (r'{"\u006dodel":"closed"}', 400),
    ('{"Model":"closed","model":"open"}', 400),
    ('{"model":["closed"]}', 400),
    ('{"model":{"model":"closed"}}', 400),
    ('{"model":null}', 400),
    ("{}", 400),
    ("", 400),
    ("[]", 400),
    ('[{"model":"open"}]', 400),
    ('{"model":"open"} {"model":"closed"}', 400),
    ('{"model":"open"}}', 400),
    ('{"model":"open"', 400),
    ('{"model":"open","a":[}]', 400),
    ('{"model":"open","a":\'"model":"closed"\'}', 400),
    ('{"model":"open"/*,*/}', 400),
    ('\ufeff{"model":"open"}', 400),
    ('{"model":"open","a":' + "[" * 200 + "]" * 200 + "}", 400),
    ('{"model":"closed\\u0000"}', 400),
    ('{"model":"open\n"}', 400),
    ('{"model":" closed"}', 400),
    ('{"model":"' + "a" * 5000 + '"}', 400),
    ('{"model":"unknown"}', 404),
    ('{"model":"closed:adapter"}', 404),
    (r'{"model":"cl\u006fsed"}', 404),
]


@pytest.mark.parametrize(("body", "status"), AMBIGUOUS)
def test_an_ambiguous_body_is_refused(pod: Pod, body: str, status: int) -> None:
    with pod.client("key-some", **{"Content-Type": "application/json"}) as client:
        answer = client.post("/v1/chat/completions", content=body.encode())
        assert error(answer)[0] == status
    assert pod.received == {"open": [], "closed": []}


def test_a_model_inside_another_field_changes_nothing(pod: Pod) -> None:
    body = {"metadata": {"model": "closed"}, "model": "open", "messages": MESSAGES}
    with pod.client("key-some") as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        escaped = json.dumps(body).replace('"open"', r'"\u006fpen"')
        headers = {"Content-Type": "application/json; charset=utf-8"}
        assert client.post("/v1/chat/completions", content=escaped, headers=headers).status_code == 200
    assert len(pod.received["open"]) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data; boundary=a"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_a_body_of_another_format_is_refused(pod: Pod, headers: dict[str, str]) -> None:
    with pod.client("key-some", **headers) as client:
        answer = client.post("/v1/chat/completions", content=b'{"model":"closed"}')
    assert error(answer) == (415, "unsupported_media_type")


def test_a_header_cannot_choose_the_engine(pod: Pod) -> None:
    headers = {"x-smg-target-worker": "1", "x-smg-routing-key": "closed", "x-data-parallel-rank": "1"}
    with pod.client("key-some", **headers) as client:
        for _ in range(4):
            client.post("/v1/chat/completions?model=closed", json=body_of("", "open"))
    assert (len(pod.received["open"]), len(pod.received["closed"])) == (4, 0)


def test_a_method_and_a_browser(pod: Pod) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with pod.client(None, Origin="https://chat.example.com") as client:
        allowed = client.options("/v1/chat/completions", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-methods"]) == (204, "POST")
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
        assert client.post("/v1/chat/completions").headers["access-control-allow-origin"] == "https://chat.example.com"
    with pod.client("key-all", Origin="https://other.example.com") as client:
        assert error(client.options("/v1/chat/completions", headers=asked)) == (405, "method_not_allowed")
        assert "access-control-allow-origin" not in client.get("/v1/models").headers
        assert error(client.get("/v1/chat/completions")) == (405, "method_not_allowed")
        assert error(client.post("/v1/models")) == (405, "method_not_allowed")


def test_a_large_body_is_told_with_the_numbers(pod: Pod) -> None:
    pod.write_tenants({"defaults": {}, "tenants": {"few": {"bodyBytes": 1000}}})
    until(lambda: pod.chat("open", "key-few", user="a" * 2000).status_code == 413, "the new limit")

    answer = pod.chat("open", "key-few", user="a" * 2000)
    assert error(answer) == (413, "request_too_large")
    assert "at most 1000 bytes are allowed" in answer.json()["error"]["message"]
    above = pod.chat("open", "key-all", user="a" * 5_000_000)
    assert "has 50000" in above.json()["error"]["message"]
    assert "at most 4194304 bytes are allowed" in above.json()["error"]["message"]


def test_a_body_of_unknown_length_is_checked_too(pod: Pod) -> None:
    def pieces(size: int) -> Iterator[bytes]:
        body = json.dumps({**body_of("", "open"), "user": "a" * size}).encode()
        yield from (body[at : at + 10000] for at in range(0, len(body), 10000))

    headers = {"Content-Type": "application/json"}
    pod.write_tenants({"defaults": {}, "tenants": {"few": {"bodyBytes": 100_000}}})
    with pod.client("key-few", **headers) as client:
        until(lambda: pod.chat("open", "key-few", user="a" * 200_000).status_code == 413, "the new limit")
        assert client.post("/v1/chat/completions", content=pieces(90_000)).status_code == 200
        assert error(client.post("/v1/chat/completions", content=pieces(300_000))) == (413, "request_too_large")
        assert error(client.post("/v1/chat/completions", content=pieces(5_000_000))) == (413, "request_too_large")


def stalled(pod: Pod, key: str, length: int) -> socket.socket:
    """A client that sends its headers and the beginning of a long body, and then nothing."""
    connection = socket.create_connection(("127.0.0.1", int(pod.url.rsplit(":", 1)[1])))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{".encode())
    return connection


def test_a_slow_body_ends_and_frees_its_slot(pod: Pod) -> None:
    began = time.monotonic()
    slow = [stalled(pod, "key-few", 3_000_000) for _ in range(2)]
    until(lambda: pod.metrics().get('qwen_gateway_running_requests{tenant="few"}') == 2, "two slots are taken")

    refused = pod.chat("open", "key-few")
    assert error(refused) == (429, "rate_limit_exceeded")
    assert "2 requests at once" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert pod.chat("open", "key-some").status_code == 200
    for connection in slow:
        answer = connection.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "did not arrive within 2 seconds" in answer
        connection.close()
    assert time.monotonic() - began >= 2
    until(lambda: pod.chat("open", "key-few").status_code == 200, "the slots are free")
    assert pod.metrics()["qwen_gateway_buffered_bytes"] == 0


def test_a_client_that_leaves_frees_its_slot(pod: Pod) -> None:
    for _ in range(3):
        connections = [stalled(pod, "key-few", 3_000_000) for _ in range(2)]
        until(lambda: pod.metrics().get('qwen_gateway_running_requests{tenant="few"}') == 2, "two slots are taken")
        for connection in connections:
            connection.close()
        until(lambda: pod.metrics()['qwen_gateway_running_requests{tenant="few"}'] == 0, "the slots are free")


def test_bodies_that_take_long_to_read_stop_nobody_else(pod: Pod) -> None:
    """The bodies of one tenant are read one after the other. All at once, the other tenant got 8 answers here."""
    body = ('{"model":"none","a":[' + "[]," * 400_000 + "0]}").encode()

    def greedy() -> int:
        with pod.client("key-all", **{"Content-Type": "application/json"}) as client:
            return client.post("/v1/chat/completions", content=body).status_code

    answered = 0
    with ThreadPoolExecutor(16) as pool, pod.client("key-some") as polite:
        running = [pool.submit(greedy) for _ in range(16)]
        while not all(one.done() for one in running):
            assert error(polite.post("/v1/chat/completions", json=body_of("", "none")))[0] == 404
            answered += 1
        # In this pod a turn is waited for 2 seconds.
        assert {one.result() for one in running} <= {404, 429}
    assert answered > 16


def test_requests_and_tokens_a_minute(pod: Pod) -> None:
    limits = {"some": {"requestsPerMinute": 3}, "few": {"tokensPerMinute": 20}}
    pod.write_tenants({"defaults": {}, "tenants": limits})
    until(lambda: [pod.chat("open", "key-some") for _ in range(5)][-1].status_code == 429, "the new limit")
    refused = pod.chat("open", "key-some")
    assert (refused.status_code, "3 requests a minute" in refused.text) == (429, True)
    assert 1 <= int(refused.headers["retry-after"]) <= 20

    until(lambda: [pod.chat("open", "key-few") for _ in range(3)][-1].status_code == 429, "16 tokens an answer")
    refused = pod.chat("open", "key-few")
    assert (refused.status_code, "20 tokens a minute" in refused.text) == (429, True)
    assert pod.chat("open", "key-all").status_code == 200


def test_keys_rotate_without_a_restart_and_without_a_lost_request(pod: Pod) -> None:
    answers: set[int] = set()
    stop = threading.Event()

    def ask() -> None:
        with pod.client("key-all") as client:
            while not stop.is_set():
                answers.add(client.post("/v1/chat/completions", json=body_of("", "open")).status_code)

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(ask) for _ in range(2)]
        try:
            assert pod.chat("open", "key-new").status_code == 401
            pod.write_keys({**KEYS, "all": "key-all\nkey-new\n"})
            until(lambda: pod.chat("open", "key-new").status_code == 200, "the new key is valid")
            pod.write_keys({**KEYS, "all": "key-all\n"})
            until(lambda: pod.chat("open", "key-new").status_code == 401, "the removed key is not")
        finally:
            stop.set()
        for task in tasks:
            task.result()
    assert answers == {200}


def test_an_invalid_entry_keeps_the_last_good_keys_and_is_told(pod: Pod) -> None:
    pod.write_keys({**KEYS, "some": "two words\n", "new": "key-entirely-new\n"})
    until(lambda: pod.chat("open", "key-entirely-new").status_code == 200, "the good entry is taken over")

    assert pod.chat("open", "key-some").status_code == 200
    assert pod.metrics()["qwen_gateway_settings_problems"] == 1
    assert "key 1 of tenant 'some' is not usable" in pod.log("proxy")
    assert "two words" not in pod.log("proxy")
    pod.write_tenants({"defaults": {"requestsPerMinute": -1}})
    until(lambda: pod.metrics()["qwen_gateway_settings_problems"] == 2, "the wrong limit is told")
    assert "tenantDefaults.requestsPerMinute is -1; it must be a whole number of at least 0" in pod.log("proxy")
    assert pod.chat("closed", "key-some").status_code == 404


def test_usage_is_counted_by_tenant_and_model(pod: Pod) -> None:
    def series(name: str, *labels: str) -> float:
        return pod.metrics().get(f'{name}{{tenant="some",model="open"{"".join(labels)}}}', 0)

    def counts() -> list[float]:
        return [
            series("qwen_gateway_requests_total", ',code="200"'),
            series("qwen_gateway_tokens_total", ',direction="in"'),
            series("qwen_gateway_tokens_total", ',direction="out"'),
            series("qwen_gateway_uncounted_answers_total"),
            round(series("qwen_gateway_request_seconds_total"), 1),
        ]

    before = counts()
    pod.chat("open", "key-some")
    pod.chat("open", "key-some", stream=True, max_tokens=9, stream_options={"include_usage": True})
    slow = [{"role": "user", "content": "30"}]
    with pod.client("key-some") as client:
        body = {"model": "open", "messages": slow, "stream": True, "max_tokens": 20}
        assert client.post("/v1/chat/completions", json=body).text.count("data: ") == 21
    pod.chat("a-name-that-no-model-has", "key-all")

    requests, into, out, uncounted, seconds = (now - then for now, then in zip(counts(), before, strict=True))
    assert (requests, into, out, uncounted) == (3, 22, 10, 1)
    assert 0.5 < seconds < 3
    assert "a-name-that-no-model-has" not in httpx.get(f"{pod.metrics_url}/metrics").text


def test_text_of_a_model_is_no_usage(pod: Pod) -> None:
    fake = ',"usage":{"prompt_tokens":1000000,"completion_tokens":1000000}'
    before = pod.metrics().get('qwen_gateway_tokens_total{tenant="all",model="open",direction="in"}', 0)
    with pod.client() as client:
        client.post("/v1/chat/completions", json={"model": "open", "messages": MESSAGES, "user": fake})
    after = pod.metrics()['qwen_gateway_tokens_total{tenant="all",model="open",direction="in"}']
    assert after - before == 11


def test_a_new_model_is_served_at_once(pod: Pod) -> None:
    path = pod.folder / "run/workers.json"
    before = json.loads(path.read_text())
    added = {**before["workers"][0], "id": "new", "model_id": "new"}
    added["url"] = added["url"].replace("127.77.1.5", "127.77.1.5.")
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({**before, "workers": [*before["workers"], added]}))
    draft.rename(path)
    try:
        until(lambda: pod.chat("new").status_code == 200, "the new model")
    finally:
        path.write_text(json.dumps(before))


def asks(pod: Pod, pause: int, tokens: int) -> Callable[[], tuple[int, int]]:
    """One streamed request: (status, events of the answer)."""

    def ask() -> tuple[int, int]:
        body = {"model": "open", "messages": [{"role": "user", "content": str(pause)}], "stream": True}
        with pod.client() as client:
            answer = client.post("/v1/chat/completions", json={**body, "max_tokens": tokens})
        return answer.status_code, answer.text.count("data: ")

    return ask


def test_no_request_is_lost_when_the_pod_ends(tmp_path: Path) -> None:
    """SIGTERM as the kubelet sends it: to the proxy first, and to the router when the proxy has ended."""
    body = json.dumps(body_of("", "open"))[1:]
    with gateway(tmp_path) as pod, ThreadPoolExecutor(12) as pool, stalled(pod, "key-all", len(body) + 1) as late:
        streams = [pool.submit(asks(pod, 100, 30)) for _ in range(10)]
        until(lambda: len(pod.received["open"]) == 10, "all streams run")
        proxy, router = pod.processes["proxy"], pod.processes["router"]

        proxy.send_signal(signal.SIGTERM)

        until(lambda: not listens(pod), "the proxy takes no new connection")
        late.sendall(body.encode())
        assert late.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert proxy.poll() is None
        assert [stream.result() for stream in streams] == [(200, 31)] * 10
        assert proxy.wait(10) == 0
        router.send_signal(signal.SIGTERM)
        assert router.wait(15) == 0


def test_a_router_that_is_away_is_told(tmp_path: Path) -> None:
    with gateway(tmp_path, QWEN_GATEWAY_HOLD_SECONDS="0") as pod, pod.client() as client:
        pod.processes["router"].kill()
        pod.processes["router"].wait()
        models = client.get("/v1/models")
        assert (*error(models), models.headers["retry-after"]) == (502, "router_unavailable", "1")
        chat = pod.chat("open")
        assert (*error(chat), chat.headers["retry-after"]) == (503, "model_not_ready", "10")
        assert "cannot reach a replica of the model 'open'" in chat.json()["error"]["message"]
        assert client.get("/liveness").status_code == 502


def listens(pod: Pod) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(pod.url.rsplit(":", 1)[1]))).close()
    except OSError:
        return False
    return True


def test_idle_connections_take_no_place_of_others(tmp_path: Path) -> None:
    """They may stay for an hour, so nginx must close the oldest ones when it has no connection left."""
    few = {"QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS": "1", "QWEN_GATEWAY_QUEUE_SIZE": "1"}
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Many systems begin with 1024 open files.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with gateway(tmp_path, **few) as pod, ExitStack() as idle:
        port = int(pod.url.rsplit(":", 1)[1])
        for _ in range(1200):
            connection = idle.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 404 ")
        assert pod.chat("open").status_code == 200
        assert re.search(r"worker_connections 10\d\d;", (tmp_path / "proxy/nginx.conf").read_text())


def test_without_keys_there_is_one_tenant_with_limits(tmp_path: Path) -> None:
    with gateway(tmp_path, QWEN_GATEWAY_AUTH="none") as pod:
        assert pod.chat("closed", None).status_code == 200
        pod.write_tenants({"defaults": {}, "tenants": {"anonymous": {"models": ["open"]}}})
        until(lambda: pod.chat("closed", None).status_code == 404, "the limits of the tenant anonymous")
        assert pod.chat("open", "any-key").status_code == 200
        assert "any-key" not in repr(pod.received)
        assert 'qwen_gateway_running_requests{tenant="anonymous"}' in pod.metrics()


def test_the_trial_of_the_documentation_works_without_a_key(tmp_path: Path) -> None:
    ensure_packages({"curl": "curl"})
    port = yaml.safe_load(VALUES.read_text())["gateway"]["service"]["port"]
    with gateway(tmp_path, QWEN_GATEWAY_AUTH="none") as pod:
        for name in ("gateway.md", "clients.md"):
            page = (ROOT / "docs" / name).read_text()
            assert f"kubectl port-forward -n qwen-system svc/qwen-gateway 8000:{port}" in page
            [command] = re.findall(r"```\n(curl http://localhost:8000/.*?)```", page, re.DOTALL)
            assert "Authorization" not in command
            here = command.replace("http://localhost:8000", pod.url).replace("Qwen/Qwen1.5-0.5B-Chat", "open")
            done = subprocess.run(
                [*shlex.split(here), "--silent", "--fail"], capture_output=True, text=True, check=True
            )
            assert json.loads(done.stdout)["choices"][0]["message"]["content"] == f"{OPEN} as open"


def test_a_tool_of_the_request_has_the_router_call_nobody(pod: Pod) -> None:
    """smg can call MCP servers itself; before engines that speak HTTP it passes the tool on."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pod.client() as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        tool = {"type": "mcp", "server_label": "a", "server_url": url, "require_approval": "never"}
        client.post("/v1/responses", json={"model": "open", "input": "a", "tools": [tool]})
        listener.settimeout(1)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert [one.path for one in pod.received["open"]] == ["/v1/responses"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_engine_is_asked_five_times_and_then_its_answer_counts(pod: Pod, status: int) -> None:
    pod.received["open"].clear()
    answer = pod.chat("open", user=f"answer with {status}")
    assert (answer.status_code, len(pod.received["open"])) == (status, 5)
    assert answer.elapsed.total_seconds() < 5
    assert pod.chat("open").status_code == 200, "the router still uses the engine"
