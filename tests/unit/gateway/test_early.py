"""Streams whose head is sent before a replica answers, and what engines and clients may do to them."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.gateway.engines import raw
from tests.unit.gateway.proxied import Pod, gateway, until
from tests.unit.gateway.test_hold import WAITS, held, unready, waits, workers

MESSAGES = [{"role": "user", "content": "0"}]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    bounds = {"QWEN_GATEWAY_HOLD_SECONDS": "6", "QWEN_GATEWAY_HOLD_HEAD_SECONDS": "1"}
    with gateway(tmp_path_factory.mktemp("early"), **bounds) as running:
        yield running


@pytest.fixture(autouse=True)
def served(pod: Pod) -> Iterator[None]:
    """Each test begins and ends with a model that is served."""
    yield
    waits(pod)
    until(lambda: pod.chat("open").status_code == 200, "the model is served")
    pod.received["open"].clear()


def early(pod: Pod, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **body: Any) -> str:
    """What follows the comments of a stream that waited for its model."""
    unready(pod)
    request = {"model": "open", "messages": MESSAGES, "stream": True, "max_tokens": 3, **body}
    with pod.client() as client, ThreadPoolExecutor(1) as pool:
        asked: Any = pool.submit(client.post, path, json=request, headers=headers)
        until(lambda: held(pod) == 1, "it waits")
        time.sleep(1.4)
        waits(pod)
        answer: httpx.Response = asked.result()
    assert answer.status_code == 200
    assert answer.text.startswith(WAITS)
    return answer.text.replace(WAITS, "")


def event(text: str) -> Any:
    """The content of the only event."""
    assert text.startswith("data: ")
    return json.loads(text.removeprefix("data: "))


def test_an_answer_without_a_body_is_complete(pod: Pod) -> None:
    stream = raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n")
    assert early(pod, user=stream) == ""
    assert "runtime error" not in pod.log("proxy")


def test_a_stream_of_an_adapter_has_the_clients_name_also_after_its_head(pod: Pod) -> None:
    events = [line.removeprefix("data: ") for line in early(pod, model="open:kept").split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert [json.loads(one)["model"] for one in events[:-1]] == ["open:kept"] * 3
    assert pod.received["open"][-1].body["lora_path"] == "kept"


def refusal(status: int, text: str) -> str:
    return raw(f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}")


SGLANGS = {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400}


def test_an_engines_error_is_one_that_clients_of_streams_recognize(pod: Pod) -> None:
    """SGLang has the message at the top, and in the events of its own streams below `error`."""
    refused = early(pod, user=refusal(400, json.dumps(SGLANGS)))
    assert event(refused) == {"error": SGLANGS}
    name, data = early(pod, "/v1/messages", user=refusal(400, json.dumps(SGLANGS))).strip().split("\n")
    assert name == "event: error"
    error = event(data)
    assert (error["type"], error["error"]["message"]) == ("error", "too long")


@pytest.mark.parametrize("form", [{"error": {"message": "m", "code": 400}}, {"error": "m", "message": "n"}])
def test_an_error_in_openais_form_stays_as_it_is(pod: Pod, form: dict[str, Any]) -> None:
    assert event(early(pod, user=refusal(400, json.dumps(form)))) == form


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, ""),
        (204, ""),
        (500, "<html>\n\ndata: [DONE]\n\n</html>"),
        (500, json.dumps({"message": ["no", "text"], "error": None})),
        (400, json.dumps({"message": "long", "more": "x" * 20_000})),
    ],
)
def test_an_error_without_a_readable_message_says_its_status(pod: Pod, status: int, text: str) -> None:
    error = event(early(pod, user=refusal(status, text)))["error"]
    assert f"status {status}" in error["message"]
    assert pod.metrics()[f'qwen_gateway_requests_total{{tenant="all",model="open",code="{status}"}}'] >= 1


def counted(pod: Pod, family: str, tenant: str = "all") -> dict[str, float]:
    """The series of a tenant, by what follows the model."""
    start = f'qwen_gateway_{family}_total{{tenant="{tenant}",model="open"'
    return {name.removeprefix(start): value for name, value in pod.metrics().items() if name.startswith(start)}


def chunked(*texts: str) -> str:
    """A stream of these pieces."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return raw(head, *(f"{len(text):x}\r\n{text}\r\n" for text in texts), "0\r\n\r\n")


def anthropic_event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def test_the_tokens_of_the_prompt_are_counted_behind_the_comments(pod: Pod) -> None:
    """Anthropic's streams tell them in the first event."""
    start = anthropic_event("message_start", message={"usage": {"input_tokens": 777, "output_tokens": 1}})
    piece = anthropic_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 900})
    end = anthropic_event("message_delta", delta={}, usage={"output_tokens": 55})
    before = counted(pod, "tokens")
    early(pod, "/v1/messages", user=chunked(start, *[piece] * 8, end))
    until(lambda: counted(pod, "tokens") != before, "it is counted")
    after = counted(pod, "tokens")
    for direction, tokens in ((',direction="in"}', 777), (',direction="out"}', 55)):
        # The model is asked meanwhile whether it is served.
        assert after[direction] - before.get(direction, 0) >= tokens


def test_what_no_engine_answered_costs_no_tokens(pod: Pod) -> None:
    loads = pod.metrics()["qwen_gateway_settings_loads"]
    pod.write_tenants({"defaults": {}, "tenants": {"some": {"models": ["*"], "tokensPerMinute": 60_000}}})
    until(lambda: pod.metrics()["qwen_gateway_settings_loads"] > loads, "the tenants are read")
    unready(pod)
    body = {"model": "open", "messages": MESSAGES, "stream": True, "user": "x" * 300_000}
    with pod.client("key-some") as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert event(answer.text.replace(WAITS, ""))["error"]["code"] == "model_not_ready"
    waits(pod)
    until(lambda: pod.chat("open").status_code == 200, "the model is served")
    assert pod.chat("open", "key-some").status_code == 200
    assert counted(pod, "uncounted_answers", "some") == {}


def test_headers_go_on_whatever_others_there_are(pod: Pod) -> None:
    others = {f"x-number-{number}": "y" for number in range(120)}
    early(pod, headers={**others, "traceparent": "00-1-2-01"})
    assert pod.received["open"][-1].headers["traceparent"] == "00-1-2-01"


def test_a_proxy_that_speaks_http_1_0_gets_the_head_and_the_answer(pod: Pod) -> None:
    """nginx does so unless it is told otherwise."""
    unready(pod)
    body = json.dumps({"model": "open", "messages": MESSAGES, "stream": True, "max_tokens": 3}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.0", "Authorization: Bearer key-all", "Content-Type: application/json"]
    host, port = pod.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        head = client.recv(4096).decode()
        assert head.startswith("HTTP/1.1 200 ")
        assert head.endswith(WAITS)
        waits(pod)
        answer = b"".join(iter(lambda: client.recv(4096), b"")).decode()
    assert answer.endswith("data: [DONE]\n\n")


def test_the_head_comes_in_time_also_if_the_router_gives_the_request_back(tmp_path: Path) -> None:
    """The agent has not noticed that the only replica is gone, and no single wait takes as long as the head."""
    with gateway(tmp_path, QWEN_GATEWAY_HOLD_HEAD_SECONDS="3") as pod:
        workers(pod, {"id": "added-1", "url": "http://127.77.1.9:1", "model_id": "late"})
        begun = time.monotonic()
        body = {"model": "late", "messages": MESSAGES, "stream": True}
        with pod.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert next(answer.iter_text()) == WAITS
            assert time.monotonic() - begun < 5
