"""An engine that ends in the middle of a stream: no client may take what it got for a complete answer."""

from collections.abc import Iterator

import openai
import pytest

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
