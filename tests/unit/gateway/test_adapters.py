"""Adapters of a model through the real proxy and the real router: what the engine gets, and what the client reads."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.gateway.engines import raw
from tests.unit.gateway.proxied import TENANTS, Pod, gateway, until

NAMES = [f"adapter-{number}" for number in range(10)]
ASKED = "open:adapter-0"
MESSAGES = [{"role": "user", "content": "0"}]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with gateway(tmp_path_factory.mktemp("gateway")) as running:
        loaded = {**dict.fromkeys(NAMES, True), "young": False}
        file = {"version": 1, "waiting": {}, "adapters": {"open": loaded, "gone": {"a": True}}}
        (running.folder / "run/waiting.json").write_text(json.dumps(file))
        until(lambda: running.chat(ASKED).status_code == 200, "the adapters are known")
        yield running


@pytest.fixture(autouse=True)
def settled(pod: Pod) -> None:
    for received in pod.received.values():
        received.clear()


def listed(pod: Pod, key: str) -> list[str]:
    with pod.client(key) as client:
        return [one["id"] for one in client.get("/v1/models").json()["data"]]


def test_ten_adapters_reach_the_engine_of_their_model_by_name(pod: Pod) -> None:
    for name in NAMES:
        answer = pod.chat(f"open:{name}", temperature=0)
        assert (answer.status_code, answer.json()["model"]) == (200, f"open:{name}")
    sent = [one.body for one in pod.received["open"]]
    assert [(one["model"], one["lora_path"], one["temperature"]) for one in sent] == [
        ("open", name, 0) for name in NAMES
    ]
    assert pod.chat("open").json()["model"] == "open"
    assert "lora_path" not in pod.received["open"][-1].body or pod.received["open"][-1].body["lora_path"] is None
    assert pod.metrics()['qwen_gateway_requests_total{tenant="all",model="open:adapter-9",code="200"}'] == 1


@pytest.mark.parametrize("characters", [10, 200_000])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_of_any_length_keeps_all_of_its_fields(pod: Pod, path: str, characters: int) -> None:
    text = "".join(chr(0x20 + number % 90) for number in range(characters))
    said = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    bodies = (
        json.dumps({**said, "model": ASKED, "seed": 7}),
        json.dumps({"model": ASKED, **said, "seed": 7}, indent=2),
    )
    with pod.client() as client:
        for body in bodies:
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.json()["model"] == ASKED
    for one in pod.received["open"]:
        expected = {**said, "model": "open", "lora_path": "adapter-0", "seed": 7}
        assert {name: one.body.get(name) for name in expected} == expected


@pytest.mark.parametrize("at", range(16370, 16400))
def test_the_name_may_lie_across_two_pieces_of_a_long_body(pod: Pod, at: int) -> None:
    start, end = '{"prompt":"', f'","model":"{ASKED}","user":"{"x" * 70000}"}}'
    body = start + "p" * (at - len(start) - len('","model":"')) + end
    with pod.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    (sent,) = (one.body for one in pod.received["open"])
    assert (sent["model"], sent["lora_path"], len(sent["user"])) == ("open", "adapter-0", 70000)
    assert sent["prompt"] == json.loads(body)["prompt"]


def test_a_stream_names_the_adapter_in_every_event(pod: Pod) -> None:
    answer = pod.chat(ASKED, stream=True, max_tokens=20)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["model"] for event in events[:-1]} == {ASKED}
    assert len(events) == 21


QUOTED = json.dumps('"model":"open"')
CHUNK = f'{{"object":"chat.completion.chunk","model":"open","choices":[{{"delta":{{"content":{QUOTED}}}}}]}}'


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_the_name_may_lie_across_two_pieces_of_an_answer_and_text_stays(pod: Pod, cut: int) -> None:
    event = f"data: {CHUNK}\n\n"
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    answer = pod.chat(ASKED, stream=True, user=raw(head + event[:cut], event[cut:] + "data: [DONE]\n\n"))
    first = json.loads(answer.text.splitlines()[0].removeprefix("data: "))
    assert first["model"] == ASKED
    assert first["choices"][0]["delta"]["content"] == '"model":"open"'


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("open:absent", 404, "model_not_found"),
        ("closed:adapter-0", 404, "model_not_found"),
        ("gone:a", 404, "model_not_found"),
        ("adapter-0", 404, "model_not_found"),
        ("open:", 404, "model_not_found"),
        ("open:adapter-0:more", 404, "model_not_found"),
        (":adapter-0", 404, "model_not_found"),
        ("open:young", 503, "model_not_ready"),
    ],
)
def test_what_is_no_loaded_adapter_never_reaches_an_engine(pod: Pod, model: str, status: int, code: str) -> None:
    answer = pod.chat(model)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not any(pod.received.values())


def test_the_field_lora_path_chooses_no_adapter(pod: Pod) -> None:
    bodies: list[dict[str, Any]] = [{"lora_path": "adapter-1"}, {"lora_path": None}, {"lora_path": ["adapter-1"]}]
    for more in bodies:
        for model in ("open", ASKED):
            answer = pod.chat(model, **more)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert not pod.received["open"]
    assert pod.chat("closed", lora_path="own").status_code == 200, "a model without spec.adapters, as before"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages", "/v1/responses"])
def test_other_addresses_say_where_adapters_answer(pod: Pod, path: str) -> None:
    with pod.client() as client:
        answer = client.post(path, json={"model": ASKED, "input": "a", "messages": MESSAGES, "max_tokens": 1})
    assert answer.status_code == 400
    assert "/v1/chat/completions" in answer.text
    assert not pod.received["open"]


def test_the_list_has_what_can_be_asked_for_and_a_tenant_sees_its_own(pod: Pod) -> None:
    assert sorted(listed(pod, "key-all")) == ["closed", "open", *(f"open:{name}" for name in NAMES)]
    with pod.client() as client:
        assert client.get(f"/v1/models/{ASKED}").json()["parent"] == "open"
        assert client.get("/v1/models/open:young").status_code == 404
    loads = pod.metrics()["qwen_gateway_settings_loads"]
    pod.write_tenants({"tenants": {"some": {"models": ["open"]}, "few": {"models": [ASKED]}}})
    until(lambda: pod.metrics()["qwen_gateway_settings_loads"] > loads, "the tenants are taken over")
    assert (listed(pod, "key-some"), listed(pod, "key-few")) == (["open"], [ASKED])
    assert pod.chat(ASKED, "key-some").status_code == 404
    assert (pod.chat(ASKED, "key-few").status_code, pod.chat("open", "key-few").status_code) == (200, 404)
    pod.write_tenants(TENANTS)
