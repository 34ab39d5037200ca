"""Adapters that the real PEFT made, served by the real SGLang, as OpenAI's client asks the gateway for them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.test_clients import python_client
from tests.e2e.traffic import Trickle, flowing, short_answer
from tests.qd import alive, qd, wait_ready
from tests.testbed.adapters import STANDINS, adapters
from tests.testbed.kubectl import Kubectl, condition, wait_for
from tests.testbed.processes import pods_processes, send
from tests.testbed.volumes import claim_manifests, volume_name

pytestmark = pytest.mark.e2e
NAME, MODEL = "styles", "tiny-styles"
TEN = tuple(f"style-{number}" for number in range(10))
OPENAI = """
import json, sys
import openai
given = json.load(sys.stdin)
client = openai.OpenAI(base_url=given["url"], api_key=given["key"])
messages = [{"role": "user", "content": given["text"]}]
def ask(model):
    return client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
answer = ask(given["model"])
try:
    ask(given["model"] + "x")
except openai.NotFoundError as error:
    refused = [error.status_code, error.code]
print(json.dumps({"model": answer.model, "text": answer.choices[0].message.content, "refused": refused}))
"""
QUESTION = "What is Kubernetes?"
ENGINE = {
    "args": ["--lora-backend=torch_native"],
    "env": [{"name": "PYTHONPATH", "value": f"/models/adapters/adapters/{STANDINS}:/opt/standins"}],
}


@pytest.fixture(scope="module")
def space(kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace with the claim `adapters` beside `models`."""
    kubectl.apply(*claim_manifests("adapters", claim_space, Path(adapters())))
    yield claim_space
    kubectl.run("delete", "pv", volume_name("adapters", claim_space), "--wait=false")


def manifest(space: str, names: tuple[str, ...], name: str = NAME, model: str = MODEL) -> dict[str, Any]:
    listed = [{"name": one, "source": {"uri": f"pvc://adapters/{one}"}} for one in names]
    source = {"uri": "pvc://models/tiny-qwen2"}
    made: dict[str, Any] = qd(space, name, model=model, source=source, engine=ENGINE, adapters=listed)
    return made


def said(gateway: Gateway, model: str) -> str:
    content: str = choice(gateway, model)["message"]["content"]
    return content


def choice(gateway: Gateway, model: str) -> dict[str, Any]:
    answer = gateway.chat(model, QUESTION, max_tokens=12, temperature=0, logprobs=True)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


def certainty(gateway: Gateway, model: str) -> float:
    """The logarithm of the first token's probability. Small adapters may leave the words as they are."""
    number: float = choice(gateway, model)["logprobs"]["content"][0]["logprob"]
    return number


def by_openai_client(gateway: Gateway, model: str) -> dict[str, Any]:
    """The model and the text of an answer, and the refusal of an adapter that does not exist."""
    python = python_client("openai_sdk").command[0]
    given = json.dumps({"url": f"{gateway.url}/v1", "key": gateway.key, "model": model, "text": QUESTION})
    answered = subprocess.run([python, "-c", OPENAI], input=given, capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(answered.stdout)
    return read


def listed(gateway: Gateway) -> list[str]:
    with gateway.client() as client:
        return sorted(one["id"] for one in client.get("/v1/models").json()["data"] if one["id"].startswith(MODEL))


def ready(kubectl: Kubectl, space: str, total: int) -> None:
    def shown() -> bool:
        status = kubectl.json("get", "qd", NAME, "-n", space).get("status", {})
        return bool(status.get("adapters") == {"ready": total, "total": total})

    wait_for(f"{total} adapters are ready", shown, 300)


def test_ten_adapters_answer_by_name_and_a_killed_replica_comes_back_with_them(
    kubectl: Kubectl, space: str, gateway: Gateway
) -> None:
    kubectl.apply(manifest(space, TEN))
    wait_ready(kubectl, space, NAME, timeout=300)
    asked = [f"{MODEL}:{one}" for one in TEN]
    wait_for("the adapters are routed", lambda: listed(gateway) == [MODEL, *asked], 30)
    answers = {name: said(gateway, name) for name in (MODEL, *asked)}
    assert answers[MODEL].startswith("Kubernetes runs")
    assert len(set(answers.values())) > 5, answers
    certainties = {name: certainty(gateway, name) for name in answers}
    assert len(set(certainties.values())) == 11, certainties
    stream = gateway.chat(asked[0], QUESTION, max_tokens=12, temperature=0, stream=True).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert {event["model"] for event in events} == {asked[0]}
    for wrong in (f"{MODEL}:style-10", "style-0", f"{MODEL}:"):
        refused = gateway.chat(wrong, QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")

    expected = {"model": asked[0], "text": answers[asked[0]], "refused": [404, "model_not_found"]}
    assert by_openai_client(gateway, asked[0]) == expected

    (pod,) = kubectl.json("get", "pods", "-n", space, "-l", f"qwen-operator.dev/deployment={NAME}")["items"]
    kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", space, "--grace-period=1", "--wait=false")
    assert {name: said(gateway, name) for name in asked[:3]} == {name: answers[name] for name in asked[:3]}


def test_a_change_of_the_list_loses_no_request(kubectl: Kubectl, space: str, gateway: Gateway) -> None:
    kubectl.apply(manifest(space, TEN[:1]))
    ready(kubectl, space, 1)
    kept, added = f"{MODEL}:{TEN[0]}", f"{MODEL}:all-linear"
    wait_for("one adapter is listed", lambda: listed(gateway) == [MODEL, kept], 60)
    assert gateway.chat(f"{MODEL}:{TEN[1]}").status_code == 404
    end, failed = Event(), list[str]()

    def ask() -> None:
        while not end.is_set():
            answer = gateway.chat(kept, QUESTION, max_tokens=4)
            if answer.status_code != 200:
                failed.append(answer.text)
            time.sleep(0.2)

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        try:
            kubectl.apply(manifest(space, (TEN[0], "all-linear")))
            ready(kubectl, space, 2)
            wait_for("the added adapter answers", lambda: gateway.chat(added, QUESTION).status_code == 200, 60)
        finally:
            end.set()
        asking.result()
    assert failed == []
    assert certainty(gateway, added) != certainty(gateway, MODEL)


def engine(kubectl: Kubectl, space: str) -> dict[str, Any]:
    (pod,) = alive(kubectl, space, NAME)
    return pod


def told(kubectl: Kubectl, space: str) -> str:
    """The list of adapters that the engine should have."""
    return str(engine(kubectl, space)["metadata"]["annotations"]["qwen-operator.dev/adapters-wanted"])


def change(kubectl: Kubectl, space: str, *names: str) -> float:
    """Change the list. Returns the time of it, by the monotonic clock."""
    patch = json.dumps({"spec": {"adapters": manifest(space, names)["spec"]["adapters"]}})
    begun = time.monotonic()
    kubectl.run("patch", "qd", NAME, "-n", space, "--type=merge", "-p", patch)
    return begun


def logged(kubectl: Kubectl, space: str, pod: str, line: str) -> bool:
    return line in kubectl.run("logs", pod, "-n", space, "-c", "engine", "--tail=-1")


def steps(kubectl: Kubectl, space: str, pod: str) -> str:
    """What the runtime says with the kubelet's time stamps, for the report of a measurement."""
    lines = kubectl.run("logs", pod, "-n", space, "-c", "engine", "--timestamps", "--tail=-1").splitlines()
    return "\n".join(line for line in lines if "qwen-runtime: the adapter" in line)


def test_adapters_come_and_go_while_the_same_engine_serves(kubectl: Kubectl, space: str, gateway: Gateway) -> None:
    kubectl.apply(manifest(space, TEN[:2]))
    ready(kubectl, space, 2)
    kept, removed, added = (f"{MODEL}:{one}" for one in TEN[:3])
    wait_for("both are listed", lambda: listed(gateway) == [MODEL, kept, removed], 60)
    before = engine(kubectl, space)
    name = before["metadata"]["name"]
    asked = [Trickle(lambda one=one: short_answer(gateway, one), 0.2) for one in (MODEL, kept)]  # type: ignore[misc]
    with flowing(asked):
        begun = change(kubectl, space, *TEN[:3])
        wait_for("its files are read", lambda: TEN[2] in told(kubectl, space), 120, 0.1)
        read = time.monotonic() - begun
        wait_for("the engine loads it", lambda: logged(kubectl, space, name, f"{TEN[2]} is loaded"), 120, 0.1)
        loaded = time.monotonic() - begun
        wait_for("the added adapter answers", lambda: gateway.chat(added, max_tokens=1).status_code == 200, 60, 0.1)
        answered = time.monotonic() - begun
        ready(kubectl, space, 3)
        assert listed(gateway) == [MODEL, kept, removed, added]
        begun = change(kubectl, space, TEN[0], TEN[2])
        wait_for("the removed adapter is unknown", lambda: gateway.chat(removed).status_code == 404, 60, 0.1)
        unknown = time.monotonic() - begun
        wait_for("the engine unloads it", lambda: logged(kubectl, space, name, f"{TEN[1]} is unloaded"), 60)
        ready(kubectl, space, 2)
    assert [trickle.lost for trickle in asked] == [[], []]
    assert all(trickle.answered for trickle in asked)
    assert engine(kubectl, space)["metadata"]["uid"] == before["metadata"]["uid"]
    assert listed(gateway) == [MODEL, kept, added]
    assert gateway.chat(removed).status_code == 404
    print(f"added: read after {read:.1f} s, loaded after {loaded:.1f} s, answered after {answered:.1f} s")
    print(f"removed: unknown after {unknown:.1f} s")
    print(f"requests: {[trickle.answered for trickle in asked]}, none lost")
    print(steps(kubectl, space, name))
    certain = {one: certainty(gateway, one) for one in (MODEL, kept, added)}
    assert len(set(certain.values())) == 3, certain

    send(pods_processes(before["metadata"]["uid"], "launch_server")[:1], signal.SIGKILL)

    def back() -> bool:
        pod = engine(kubectl, space)
        restarts = pod["status"]["containerStatuses"][0]["restartCount"]
        return restarts > 0 and condition(pod, "Ready").get("status") == "True"

    wait_for("the engine runs again", back, 300)
    assert {one: certainty(gateway, one) for one in certain} == certain
    kubectl.run("delete", "pod", name, "-n", space, "--grace-period=1", "--wait=false")
    wait_for("its successor exists", lambda: engine(kubectl, space)["metadata"]["name"] != name, 60)
    assert {one: certainty(gateway, one) for one in certain} == certain
    assert listed(gateway) == [MODEL, kept, added]


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ("wrong-rank", "r is 4, but tensor "),
        ("of-another-base", "it is for a base model of 6 layers or more, and this one has 2"),
        ("dora", "use_dora is true, it must be false"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_an_engine_exists(
    kubectl: Kubectl, space: str, adapter: str, sentence: str
) -> None:
    kubectl.apply(manifest(space, (adapter,), name=adapter, model=adapter))

    def message() -> str:
        status = kubectl.json("get", "qd", adapter, "-n", space).get("status", {})
        shown = [one for one in status.get("conditions", ()) if one["reason"] == "AdapterMismatch"]
        return str(shown[0]["message"]) if shown else ""

    wait_for("the adapter is refused", lambda: bool(message()), 120)
    assert message().startswith(f"spec.adapters[{adapter}] ")
    assert sentence in message()
    selector = f"qwen-operator.dev/deployment={adapter},qwen-operator.dev/role=engine"
    assert not kubectl.json("get", "pods", "-n", space, "-l", selector)["items"]
    kubectl.run("delete", "qd", adapter, "-n", space)
