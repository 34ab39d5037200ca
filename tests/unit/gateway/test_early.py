"""Streams whose head is sent before a replica answers, and what engines and clients may do to them."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.unit.gateway.engines import raw
from tests.unit.gateway.proxied import Pod, gateway, until
from tests.unit.gateway.test_hold import WAITS, held, unready, waits

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
