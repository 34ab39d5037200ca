"""An engine that ends in the middle of a stream: no client may take what it got for a complete answer."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.unit.gateway.engines import raw
from tests.unit.gateway.proxied import Pod, gateway

MESSAGES = [{"role": "user", "content": "0"}]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with gateway(tmp_path_factory.mktemp("cut")) as running:
        yield running


def test_the_error_is_the_last_event(pod: Pod) -> None:
    body = {"model": "open", "messages": MESSAGES, "stream": True, "user": "ends early"}
    with pod.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    events = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    assert events[-1].startswith('data: {"error":')
    assert "[DONE]" not in answer.text
    assert '"content":"b"' in answer.text.replace(" ", "")


def test_openais_client_raises(pod: Pod) -> None:
    client = openai.OpenAI(base_url=f"{pod.url}/v1", api_key="key-all")
    stream = client.chat.completions.create(
        model="open", messages=[{"role": "user", "content": "0"}], stream=True, user="ends early"
    )
    contents: list[str | None] = []
    with pytest.raises(openai.APIError, match="Stream error"):
        contents.extend(chunk.choices[0].delta.content for chunk in stream)
    assert contents == ["a", "b"]


def test_a_complete_stream_ends_as_ever(pod: Pod) -> None:
    answer = pod.chat("open", stream=True, max_tokens=3)
    assert answer.text.endswith("data: [DONE]\n\n")


HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PIECE, ERROR, DONE = 'data: {"choices":[]}\n\n', 'data: {"error":{"message":"m"}}\n\n', "data: [DONE]\n\n"


def chunks(pieces: Iterable[str]) -> list[str]:
    return [f"{len(piece):x}\r\n{piece}\r\n" for piece in pieces]


def streamed(pod: Pod, *pieces: str) -> str:
    """What a client gets of these pieces of an engine."""
    with pod.client() as client:
        body = {"model": "open", "messages": MESSAGES, "stream": True, "user": raw(*pieces)}
        answer = client.post("/v1/chat/completions", json=body, timeout=5)
    assert answer.status_code == 200
    return answer.text


def test_the_error_is_recognized_wherever_the_stream_is_cut_into_pieces(pod: Pod) -> None:
    stream, chunked = PIECE + ERROR + DONE, "Transfer-Encoding: chunked\r\n\r\n"
    assert streamed(pod, HEAD + chunked, *chunks(stream), "0\r\n\r\n") == PIECE + ERROR
    cuts = range(len(PIECE), len(stream))
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(streamed, pod, HEAD + chunked, *chunks([stream[:cut], stream[cut:]]), "0\r\n\r\n")
            for cut in cuts
        ]
        assert {one.result() for one in asked} == {PIECE + ERROR}


def test_nothing_follows_the_error(pod: Pod) -> None:
    stream = PIECE + ERROR * 200 + PIECE + DONE
    assert streamed(pod, HEAD + "Transfer-Encoding: chunked\r\n\r\n", *chunks([stream]), "0\r\n\r\n") == PIECE + ERROR


def test_the_text_of_an_error_within_an_event_is_no_error(pod: Pod) -> None:
    stream = PIECE.replace("[]", json.dumps([ERROR])) + PIECE + DONE
    assert streamed(pod, HEAD + "Transfer-Encoding: chunked\r\n\r\n", *chunks([stream]), "0\r\n\r\n") == stream


def test_a_stream_with_a_length_ends_too(pod: Pod) -> None:
    """The client would wait for the bytes that the proxy took away."""
    stream = ERROR + DONE
    assert streamed(pod, f"{HEAD}Content-Length: {len(stream)}\r\n\r\n{stream}") == ERROR
