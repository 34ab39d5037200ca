"""Requests for a model without a replica that answers: the proxy before the real router, as its pod runs both."""

import json
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.unit.gateway.proxied import Pod, gateway, until
from tests.unit.gateway.test_proxy import error

HELD = 'qwen_gateway_held_requests{model="open"}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    bounds = {
        "QWEN_GATEWAY_HOLD_REQUESTS": "8",
        "QWEN_GATEWAY_HOLD_SECONDS": "6",
        "QWEN_GATEWAY_HOLD_HEAD_SECONDS": "1",
    }
    with gateway(tmp_path_factory.mktemp("hold"), **bounds) as running:
        yield running


@pytest.fixture(autouse=True)
def served(pod: Pod) -> Iterator[None]:
    """Each test begins and ends with a model that is served."""
    yield
    waits(pod)
    until(lambda: pod.chat("open").status_code == 200, "the model is served")
    until(lambda: pod.chat("probe").status_code == 404, "the proxy has read the file")
    # For some milliseconds after a look, a name that is not known causes no other one.
    time.sleep(0.1)
    pod.received["open"].clear()


ADAPTERS: dict[str, Any] = {"open": {"kept": True}}


def waits(pod: Pod, adapters: dict[str, Any] = ADAPTERS, **names: dict[str, Any]) -> None:
    """The agent's file: the names without a ready worker, and the adapters of names."""
    path = pod.folder / "run/waiting.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"version": 1, "waiting": names, "adapters": adapters}))
    draft.rename(path)


def unready(pod: Pod, **fields: Any) -> None:
    """The model has no ready worker, and the proxy knows it."""
    waits(
        pod,
        open={"stopped": "", "stalled": False, "startupSeconds": 0, "startedAt": 0, **fields},
        probe={"stopped": "spec.replicas is 0"},
    )
    until(lambda: pod.chat("probe").status_code == 503, "the proxy has read the file")


def held(pod: Pod) -> float:
    return pod.metrics().get(HELD, 0)


def ask(pool: ThreadPoolExecutor, pod: Pod, count: int, key: str = "key-all") -> list[Future[httpx.Response]]:
    return [pool.submit(pod.chat, "open", key) for _ in range(count)]


def test_a_request_waits_until_a_replica_answers_and_reaches_it_once(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(8) as pool:
        asked = ask(pool, pod, 4)
        until(lambda: held(pod) == 4, "four requests wait")
        assert pod.received["open"] == []
        waits(pod)
        assert [one.result().status_code for one in asked] == [200] * 4
    assert len(pod.received["open"]) == 4
    assert held(pod) == 0
    metrics = pod.metrics()
    assert metrics['qwen_gateway_holds_total{tenant="all",model="open"}'] >= 4
    assert metrics['qwen_gateway_hold_seconds_total{tenant="all",model="open"}'] > 0


def test_a_large_body_and_a_stream_wait_too(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(pod.chat, "open", user="x" * 300_000)
        stream = pool.submit(pod.chat, "open", stream=True, max_tokens=3)
        until(lambda: held(pod) == 2, "both wait")
        waits(pod)
        assert large.result().status_code == 200
        assert stream.result().text.endswith("data: [DONE]\n\n")
    assert {len(one.body.get("user", "")) for one in pod.received["open"]} == {0, 300_000}


def test_other_models_are_served_meanwhile(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(4) as pool:
        asked = ask(pool, pod, 3)
        until(lambda: held(pod) == 3, "three wait")
        assert pod.chat("closed").status_code == 200
        waits(pod)
        assert {one.result().status_code for one in asked} == {200}


def test_a_client_that_leaves_frees_its_place_and_is_not_executed(pod: Pod) -> None:
    unready(pod)
    with pod.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json={"model": "open", "messages": []}, timeout=0.7)
    until(lambda: held(pod) == 0, "the place is free")
    waits(pod)
    time.sleep(0.5)
    assert pod.received["open"] == []


def test_a_tenant_has_half_of_the_places(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(16) as pool:
        first = ask(pool, pod, 4)
        until(lambda: held(pod) == 4, "half of the places are taken")
        refused = pod.chat("open")
        assert error(refused) == (503, "model_not_ready")
        assert "4 requests wait for tenant all" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "10"
        second = ask(pool, pod, 4, "key-some")
        until(lambda: held(pod) == 8, "all places are taken")
        assert "8 requests wait for it" in pod.chat("open", "key-few").json()["error"]["message"]
        waits(pod)
        assert {one.result().status_code for one in first + second} == {200}


def test_nobody_waits_longer_than_the_bound(pod: Pod) -> None:
    unready(pod)
    begun = time.monotonic()
    answer = pod.chat("open")
    assert 5.5 < time.monotonic() - begun < 9
    assert error(answer) == (503, "model_not_ready")
    assert "for 6 s" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "10"


@pytest.mark.parametrize(
    ("fields", "code", "words", "after"),
    [
        ({"stopped": "spec.replicas is 0"}, "model_stopped", "spec.replicas is 0", "60"),
        ({"stalled": True}, "model_not_ready", "until somebody acts", "60"),
        ({"startupSeconds": 1831}, "model_not_ready", "needs about 1831 s more", "1831"),
    ],
)
def test_waiting_that_is_of_no_use_ends_at_once(
    pod: Pod, fields: dict[str, Any], code: str, words: str, after: str
) -> None:
    unready(pod, **fields)
    answer = pod.chat("open")
    assert error(answer) == (503, code)
    assert words in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == after
    assert answer.elapsed.total_seconds() < 2
    with pod.client() as client:
        anthropic = client.post("/v1/messages", json={"model": "open", "messages": [], "max_tokens": 1})
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (503, "overloaded_error")


def test_a_download_before_a_short_start_is_counted(pod: Pod) -> None:
    unready(pod, startupSeconds=1, startedAt=int(time.time()) + 5000)
    answer = pod.chat("open")
    assert error(answer) == (503, "model_not_ready")
    assert 4900 < int(answer.headers["retry-after"]) <= 5001


def test_a_start_that_is_nearly_over_is_waited_for(pod: Pod) -> None:
    unready(pod, startupSeconds=1831, startedAt=int(time.time()) - 1830)
    with ThreadPoolExecutor(1) as pool:
        (asked,) = ask(pool, pod, 1)
        until(lambda: held(pod) == 1, "it waits")
        waits(pod)
        assert asked.result().status_code == 200


def test_the_list_has_the_models_for_which_a_request_waits(pod: Pod) -> None:
    waits(pod, new={}, off={"stopped": "spec.replicas is 0"}, open={})
    until(lambda: pod.chat("off").status_code == 503, "the proxy has read the file")
    with pod.client() as client, pod.client("key-some") as some:
        listed = client.get("/v1/models").json()["data"]
        assert sorted(one["id"] for one in listed) == ["closed", "new", "open", "open:kept"]
        models = [one for one in listed if ":" not in one["id"]]
        assert len({json.dumps({**one, "id": ""}, sort_keys=True) for one in models}) == 1
        assert client.get("/v1/models/new").json()["id"] == "new"
        assert client.get("/v1/models/off").status_code == 404
        assert sorted(one["id"] for one in some.get("/v1/models").json()["data"]) == ["open", "open:kept"]


def test_who_may_not_ask_for_it_learns_nothing(pod: Pod) -> None:
    waits(pod, closed={"stopped": "spec.replicas is 0"})
    until(lambda: pod.chat("closed").status_code == 503, "the proxy has read the file")
    assert error(pod.chat("closed", "key-some")) == (404, "model_not_found")


def test_a_name_that_is_given_up_meanwhile_is_unknown(pod: Pod) -> None:
    waits(pod, gone={})
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(pod.chat, "gone")
        until(lambda: pod.metrics().get('qwen_gateway_held_requests{model="gone"}') == 1, "it waits")
        waits(pod)
        assert error(asked.result()) == (404, "model_not_found")


def test_without_a_time_no_request_waits(tmp_path: Path) -> None:
    with gateway(tmp_path, QWEN_GATEWAY_HOLD_SECONDS="0") as pod:
        unready(pod)
        answer = pod.chat("open")
        assert error(answer) == (503, "model_not_ready")
        assert answer.headers["retry-after"] == "10"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_what_an_engine_answers_reaches_the_client_as_it_is(pod: Pod, status: int) -> None:
    answer = pod.chat("open", user=f"answer with {status}")
    assert (answer.status_code, answer.json()) == (status, {"message": "of the engine"})
    assert "x-accel-redirect" not in answer.headers
    assert held(pod) == 0


def workers(pod: Pod, *added: dict[str, str]) -> None:
    path = pod.folder / "run/workers.json"
    content = json.loads(path.read_text())
    kept = [one for one in content["workers"] if not one["id"].startswith("added")]
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({**content, "workers": [*kept, *added]}))
    draft.rename(path)


def test_a_request_that_the_router_gives_back_is_sent_again(pod: Pod) -> None:
    """The agent has not noticed yet that the only replica is gone."""
    port = json.loads((pod.folder / "run/workers.json").read_text())["workers"][0]["url"].rsplit(":", 1)[1]
    workers(pod, {"id": "added-1", "url": "http://127.77.1.9:1", "model_id": "late"})
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(pod.chat, "late")
            until(lambda: pod.metrics().get('qwen_gateway_held_requests{model="late"}') == 1, "it waits")
            workers(pod, {"id": "added-2", "url": f"http://127.77.1.5.:{port}", "model_id": "late"})
            assert asked.result().status_code == 200
        workers(pod, {"id": "added-3", "url": "http://127.77.1.9:1", "model_id": "never"})
        until(lambda: pod.chat("never").status_code != 404, "the proxy has read the file")
        answer = pod.chat("never")
        assert error(answer) == (503, "model_not_ready")
        assert "for 6 s" in answer.json()["error"]["message"]
    finally:
        workers(pod)


def test_requests_wait_also_while_the_pod_ends(tmp_path: Path) -> None:
    with gateway(tmp_path, QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS="9") as pod, ThreadPoolExecutor(8) as pool:
        unready(pod)
        first = ask(pool, pod, 4)
        other = pool.submit(pod.chat, "gone")
        until(lambda: held(pod) == 4, "they wait")
        assert other.result().status_code == 404
        waits(pod, open={}, gone={})
        with pod.client() as client:
            until(lambda: "gone" in client.get("/v1/models").text, "the proxy has read the file")
        other = pool.submit(pod.chat, "gone")
        until(lambda: pod.metrics().get('qwen_gateway_held_requests{model="gone"}') == 1, "it waits")

        pod.processes["proxy"].send_signal(signal.SIGTERM)
        time.sleep(1)
        waits(pod, gone={})

        assert [one.result().status_code for one in first] == [200] * 4
        assert "gateway pod ends" in other.result().json()["error"]["message"]
        assert (other.result().status_code, other.result().headers["retry-after"]) == (503, "1")
        assert pod.processes["proxy"].wait(10) == 0


def test_the_proxy_ends_with_its_relay(tmp_path: Path) -> None:
    with gateway(tmp_path) as pod:
        os.kill(int((tmp_path / "proxy/relay.pid").read_text()), signal.SIGTERM)
        assert pod.processes["proxy"].wait(10) == 1
        pod.start("proxy")
        pod.becomes_ready()


def demand(pod: Pod) -> dict[str, Any]:
    """What the operator reads."""
    models: dict[str, Any] = httpx.get(f"{pod.metrics_url}/demand").json()["models"]
    return models


def test_the_operator_sees_who_waits_and_for_how_long(pod: Pod) -> None:
    unready(pod)
    assert demand(pod).get("open", {}).get("held", 0) == 0
    with ThreadPoolExecutor(2) as pool:
        asked = ask(pool, pod, 2)
        until(lambda: demand(pod).get("open", {}).get("held") == 2, "two requests wait")
        time.sleep(0.5)
        seen = demand(pod)["open"]
        assert 0.5 <= seen["oldest"] < 5
        assert 0.4 <= seen["asked"] < 5
        waits(pod)
        assert {one.result().status_code for one in asked} == {200}
    assert demand(pod)["open"]["held"] == 0
    assert "asked" not in demand(pod).get("closed", {}), "nobody had to wait for it"


def test_the_operator_sees_who_asked_for_a_model_whose_start_takes_too_long(pod: Pod) -> None:
    unready(pod, startupSeconds=1831)
    assert error(pod.chat("open")) == (503, "model_not_ready")
    seen = demand(pod)["open"]
    assert (seen["held"], seen["asked"] < 2) == (0, True)


def test_who_asks_for_what_is_switched_off_wakes_nothing(pod: Pod) -> None:
    unready(pod, stopped="spec.suspend is true")
    before = demand(pod).get("open", {}).get("asked")
    answer = pod.chat("open")
    assert error(answer) == (503, "model_stopped")
    assert "spec.suspend is true" in answer.json()["error"]["message"]
    after = demand(pod).get("open", {}).get("asked")
    assert after is None or (before is not None and after >= before)


def test_the_operator_sees_who_came_to_a_model_that_answers(pod: Pod) -> None:
    assert pod.chat("open").status_code == 200
    seen = demand(pod)["open"]
    assert (seen["held"], seen["came"] < 5) == (0, True)
    assert httpx.get(f"{pod.metrics_url}/demand").json()["hears"] is True
    assert pod.chat("unknown").status_code == 404
    assert "unknown" not in demand(pod)


def test_who_may_not_ask_for_a_model_does_not_wake_it(pod: Pod) -> None:
    waits(pod, closed={}, probe={"stopped": "spec.replicas is 0"})
    until(lambda: pod.chat("probe").status_code == 503, "the proxy has read the file")
    begun = time.monotonic()
    assert pod.chat("closed", "key-some").status_code == 404
    # Whoever asked before is there for a minute.
    shown = demand(pod).get("closed", {"held": 0, "came": math.inf})
    assert shown["held"] == 0
    assert shown["came"] > time.monotonic() - begun


WAITS = ": the request waits for a replica\n\n"


def streamed(pod: Pod, **body: Any) -> tuple[int, list[tuple[float, str]], str]:
    """Status, (second, text) of each piece, and what ended it before its time."""
    begun, pieces, broken = time.monotonic(), list[tuple[float, str]](), ""
    request = {"model": "open", "messages": [{"role": "user", "content": "0"}], "stream": True, **body}
    with pod.client() as client, client.stream("POST", "/v1/chat/completions", json=request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        try:
            pieces += [(time.monotonic() - begun, text) for text in answer.iter_text()]
        except httpx.TransportError as error:
            broken = type(error).__name__
        return answer.status_code, pieces, broken


def test_a_stream_that_waits_long_gets_its_head_and_then_its_answer(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(streamed, pod, max_tokens=3, user="x" * 200_000)
        until(lambda: held(pod) == 1, "it waits")
        time.sleep(2.5)
        waits(pod)
        status, pieces, broken = asked.result()
    text = "".join(piece for _, piece in pieces)
    assert (status, broken) == (200, "")
    assert 0.9 < pieces[0][0] < 2.4
    assert pieces[0][1] == WAITS
    assert text.removeprefix(WAITS).startswith("data: {")
    assert text.endswith("data: [DONE]\n\n")
    assert text.count('"content"') == 3
    (received,) = pod.received["open"]
    assert len(received.body["user"]) == 200_000
    metrics = pod.metrics()
    assert metrics['qwen_gateway_requests_total{tenant="all",model="open",code="200"}'] >= 1


def test_what_goes_wrong_after_the_head_is_an_event(pod: Pod) -> None:
    unready(pod)
    status, pieces, broken = streamed(pod)
    text = "".join(piece for _, piece in pieces)
    assert (status, broken) == (200, "")
    event = text.removeprefix(WAITS)
    assert event.startswith("data: ")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "model_not_ready"
    assert "[DONE]" not in text
    assert pod.metrics()['qwen_gateway_requests_total{tenant="all",model="open",code="503"}'] >= 1


def test_anthropics_clients_get_their_own_form_of_it(pod: Pod) -> None:
    unready(pod)
    body = {"model": "open", "messages": [], "max_tokens": 1, "stream": True}
    with pod.client() as client:
        answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 200
    event, data = answer.text.removeprefix(WAITS).strip().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "overloaded_error"


def test_an_answer_that_is_no_stream_waits_in_silence(pod: Pod) -> None:
    unready(pod)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(pod.chat, "open"), pool.submit(pod.chat, "open", stream=False)]
        until(lambda: held(pod) == 2, "both wait")
        time.sleep(1.5)
        waits(pod)
        assert [one.result().json()["object"] for one in asked] == ["chat.completion"] * 2


def test_requests_wait_while_the_router_starts_again(tmp_path: Path) -> None:
    with gateway(tmp_path) as pod, ThreadPoolExecutor(4) as pool:
        pod.processes["router"].kill()
        pod.processes["router"].wait()
        pod.received["open"].clear()
        asked, stream = ask(pool, pod, 2), pool.submit(streamed, pod, max_tokens=2)
        until(lambda: held(pod) == 3, "they wait")
        pod.start("router")
        assert [one.result().status_code for one in asked] == [200, 200]
        assert stream.result()[0] == 200
    assert len(pod.received["open"]) == 3


def test_a_router_that_ends_in_the_middle_is_said(tmp_path: Path) -> None:
    """Nobody knows whether an engine has begun with the request."""
    slow = [{"role": "user", "content": "400"}]
    with gateway(tmp_path) as pod, ThreadPoolExecutor(1) as pool:
        pod.received["open"].clear()
        asked = pool.submit(streamed, pod, messages=slow, max_tokens=20)
        until(lambda: len(pod.received["open"]) == 1, "the engine has it")
        time.sleep(0.5)
        pod.processes["router"].kill()
        _, pieces, broken = asked.result()
    assert "[DONE]" not in "".join(text for _, text in pieces)
    assert broken == "RemoteProtocolError"


@contextmanager
def router_that_times_out(pod: Pod, seconds: float) -> Iterator[list[str]]:
    """In place of the router: the first request gets smg's time-out after so many seconds, the others an answer."""
    pod.processes["router"].kill()
    pod.processes["router"].wait()
    paths: list[str] = []

    class Router(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.append(self.path)
            first = len(paths) == 1
            time.sleep(seconds if first else 0)
            self.send_response(504 if first else 200)
            if first:
                self.send_header("x-smg-error-code", "call_upstream_timeout")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", int(pod.environ["QWEN_GATEWAY_ROUTER_PORT"])), Router)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("seconds", "status", "times"), [(0.1, 200, 2), (3.8, 504, 1)])
def test_only_an_engine_that_cannot_be_reached_is_asked_again(
    tmp_path: Path, seconds: float, status: int, times: int
) -> None:
    """The other one had the request for all the time that a request may take."""
    with (
        gateway(tmp_path, QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS="4") as pod,
        router_that_times_out(pod, seconds) as paths,
    ):
        assert pod.chat("open").status_code == status
    assert len(paths) == times


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_its_body_was_read_takes_no_place(pod: Pod, size: int, stream: bool) -> None:
    """nginx then learns that it has gone together with its last bytes."""
    unready(pod)
    body = json.dumps({"model": "open", "messages": [], "stream": stream, "user": "x" * size}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Authorization: Bearer key-all"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    before = pod.metrics().get('qwen_gateway_holds_total{tenant="all",model="open"}', 0)
    host, port = pod.url.removeprefix("http://").split(":")
    os.kill(worker_of(pod), signal.SIGSTOP)
    try:
        with socket.create_connection((host, int(port))) as client:
            client.sendall("\r\n".join(lines).encode() + body)
    finally:
        os.kill(worker_of(pod), signal.SIGCONT)
    time.sleep(1)
    assert held(pod) == 0
    assert pod.metrics().get('qwen_gateway_holds_total{tenant="all",model="open"}', 0) == before
    assert pod.metrics()['qwen_gateway_running_requests{tenant="all"}'] == 0
    assert pod.metrics()["qwen_gateway_buffered_bytes"] == 0


def worker_of(pod: Pod, program: str = "nginx") -> int:
    """The process of nginx that serves clients, or that of the relay."""
    master = (pod.folder / f"proxy/{program}.pid").read_text().strip()
    return int(Path(f"/proc/{master}/task/{master}/children").read_text())


def bodies(pod: Pod) -> list[str]:
    """The files of bodies that nginx has open."""
    folder = Path(f"/proc/{worker_of(pod)}/fd")
    return [path for one in folder.iterdir() if "/bodies/" in (path := str(one.readlink()))]


def test_a_client_that_leaves_while_its_body_is_searched_leaves_no_file_open(pod: Pod) -> None:
    """A deleted file that is open keeps its place on the disk, and the room of its tenant is free again."""
    body = b'{"model":"open","messages":[' + b'"a",' * 450_000 + b'"b"]}'
    for delay in (0.05, 0.1, 0.15, 0.2):
        with pod.client() as client, suppress(httpx.ReadTimeout):
            client.post("/v1/chat/completions", content=body, headers=JSON, timeout=httpx.Timeout(5, read=delay))
    until(lambda: pod.metrics()["qwen_gateway_buffered_bytes"] == 0, "the room is free")
    assert bodies(pod) == []


def test_a_client_that_leaves_while_its_body_is_sent_leaves_no_file_open(pod: Pod) -> None:
    unready(pod)
    body = {"model": "open", "messages": [], "stream": True, "user": "x" * 5_000_000}
    relay = worker_of(pod, "relay")
    with pod.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_text()
        assert next(pieces) == WAITS
        os.kill(relay, signal.SIGSTOP)
        try:
            waits(pod)
            until(lambda: len(bodies(pod)) == 2, "the body is on its way to the router")
            answer.close()
            until(lambda: pod.metrics()["qwen_gateway_buffered_bytes"] == 0, "the room is free")
            assert bodies(pod) == []
        finally:
            os.kill(relay, signal.SIGCONT)


def test_a_request_for_an_adapter_waits_as_for_its_model_and_knows_a_change_of_the_list(pod: Pod) -> None:
    def after(adapters: dict[str, Any]) -> httpx.Response:
        unready(pod)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(pod.chat, "open:kept")
            until(lambda: held(pod) == 1, "it waits under the name of its model")
            waits(pod, adapters)
            return asked.result()

    try:
        answer = after(ADAPTERS)
        assert (answer.status_code, answer.json()["model"]) == (200, "open:kept")
        assert after({"open": {"other": True}}).status_code == 404
        late = after({"open": {"kept": False}})
        assert (late.status_code, late.headers["Retry-After"]) == (503, "10")
    finally:
        waits(pod)
