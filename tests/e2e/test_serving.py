"""One real engine behind the real gateway: answers, keys, names, outages, and the end. Two engine starts."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Gateway
from tests.qd import pods, qd, wait_ready
from tests.testbed import images, oci
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for

pytestmark = pytest.mark.e2e
MODEL, ALIAS = "e2e-model", "e2e-alias"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def served(kubectl: Kubectl, claim_space: str) -> Manifest:
    """The QwenDeployment `tiny`, Ready."""
    uri = {"uri": "pvc://models/tiny-qwen2"}
    kubectl.apply(qd(claim_space, "tiny", model=MODEL, servedNames=[MODEL, ALIAS], source=uri))
    return wait_ready(kubectl, claim_space, "tiny", timeout=300)


def engine(kubectl: Kubectl, served: Manifest) -> Manifest:
    [pod] = pods(kubectl, served["metadata"]["namespace"], "tiny")
    return pod


def routed(gateway: Gateway, model: str) -> None:
    wait_for(f"{model} is routed", lambda: gateway.chat(model, max_tokens=1).status_code == 200, 20)


def test_the_gateway_answers_as_the_engine_does(kubectl: Kubectl, gateway: Gateway, served: Manifest) -> None:
    routed(gateway, MODEL)
    pod = engine(kubectl, served)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello world"}], **GREEDY}
    direct = httpx.post(f"http://{pod['status']['podIP']}:8000/v1/chat/completions", json=body, timeout=60).json()

    through = gateway.chat(MODEL, **GREEDY).json()

    assert through["choices"][0]["message"]["content"] == direct["choices"][0]["message"]["content"] != ""
    same = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [through["usage"][k] for k in same] == [direct["usage"][k] for k in same]


def test_the_pod_runs_the_sglang_image(kubectl: Kubectl, served: Manifest) -> None:
    [state] = engine(kubectl, served)["status"]["containerStatuses"]

    assert (state["image"], state["imageID"]) == (images.ENGINE_IMAGE, oci.image_id(images.engine_archive()))


def test_the_openai_client_streams(gateway: Gateway, served: Manifest) -> None:
    routed(gateway, ALIAS)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        stream = client.chat.completions.create(
            model=ALIAS,
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            max_tokens=16,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)

    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in {"length", "stop"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_keys_are_required_and_unknown_models_are_404(gateway: Gateway, served: Manifest) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": MODEL}, headers=headers, timeout=30)
        assert refused.status_code == 401
    assert httpx.get(f"{gateway.url}/v1/models", timeout=30).status_code == 401
    with gateway.client() as client:
        # A namespace of an earlier test may still be terminating: its QwenDeployment goes after its pods.
        assert {MODEL, ALIAS} <= {one["id"] for one in client.get("/v1/models").json()["data"]}
        for path in ("/workers", "/get_server_info", "/engine_metrics"):
            assert client.get(path).status_code == 404
            assert httpx.get(f"{gateway.url}{path}", timeout=30).status_code == 404

    unknown = gateway.chat("no-such-model")

    assert unknown.status_code == 404
    assert "no-such-model" in json.dumps(unknown.json())


@pytest.mark.timeout(600)
def test_keys_and_tenants_change_while_the_gateway_runs(
    kubectl: Kubectl, release: Release, gateway: Gateway, served: Manifest
) -> None:
    """The kubelet takes about a minute for each change of a mounted Secret or ConfigMap."""
    space = release.namespace
    before = {pod["metadata"]["uid"] for pod in kubectl.list("pods", space)}
    other = Gateway(gateway.url, "key-of-another-tenant")
    assert other.chat(MODEL, max_tokens=1).status_code == 401

    def replace_keys(keys: str) -> None:
        content = json.dumps({"stringData": {"other": keys}})
        kubectl.run("patch", "secret", release.keys, "-n", space, "--type=merge", "-p", content)

    def answers(client: Gateway, model: str, status: int) -> None:
        def right() -> bool:
            assert gateway.chat(MODEL, max_tokens=1).status_code == 200
            # Each gateway pod reads the change at its own time.
            return all(client.chat(model, max_tokens=1).status_code == status for _ in range(6))

        wait_for(f"{model} is answered with {status}", right, 150)

    tenants = {"defaults": {}, "tenants": {"other": {"models": [ALIAS]}}}
    chart = kubectl.json("get", "configmap", "qwen-gateway-tenants", "-n", space)
    kubectl.apply_as_helm({**chart, "data": {"tenants.json": json.dumps(tenants)}})
    replace_keys("key-to-come\nkey-of-another-tenant\n")
    answers(other, ALIAS, 200)
    answers(other, MODEL, 404)
    replace_keys("key-to-come\n")
    answers(other, ALIAS, 401)
    kubectl.apply_as_helm(chart)

    assert {pod["metadata"]["uid"] for pod in kubectl.list("pods", space)} == before


def test_status_says_what_runs(kubectl: Kubectl, served: Manifest) -> None:
    status = served["status"]

    assert status["model"]["architecture"] == "Qwen2ForCausalLM"
    assert status["model"]["factsFrom"] == "Inspection"
    assert status["endpoint"]["names"] == [MODEL, ALIAS]
    assert status["summary"]["ready"] == "1/1"
    assert condition(served, "ModelLoaded")["status"] == "True"
    kubectl.run("wait", "qd/tiny", "-n", served["metadata"]["namespace"], "--for=condition=Ready", "--timeout=5s")


def outage(bed: Cluster, gateway: Gateway, seconds: float) -> tuple[int, int]:
    """Requests (answered, not answered) while the API server is away."""
    good = bad = 0
    bed.stop_apiserver()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if gateway.chat(MODEL, max_tokens=4).status_code == 200:
                good += 1
            else:
                bad += 1
            time.sleep(0.5)
    finally:
        bed.start_apiserver()
    return good, bad


def test_requests_go_on_without_the_api_server(
    bed: Cluster, kubectl: Kubectl, release: Release, gateway: Gateway, served: Manifest
) -> None:
    uid = engine(kubectl, served)["metadata"]["uid"]

    good, bad = outage(bed, gateway, 15)

    assert (bad, good > 10) == (0, True)
    assert engine(kubectl, served)["metadata"]["uid"] == uid


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_go_on_through_two_minutes_of_outage(
    bed: Cluster, kubectl: Kubectl, gateway: Gateway, served: Manifest
) -> None:
    uid = engine(kubectl, served)["metadata"]["uid"]

    good, bad = outage(bed, gateway, 120)

    print(f"{good} answered, {bad} not")
    assert bad == 0
    time.sleep(30)
    assert engine(kubectl, served)["metadata"]["uid"] == uid


def test_a_deleted_pod_is_replaced_and_routed_again(kubectl: Kubectl, gateway: Gateway, served: Manifest) -> None:
    before = engine(kubectl, served)
    space = before["metadata"]["namespace"]
    kubectl.run("delete", "pod", before["metadata"]["name"], "-n", space)

    def replaced() -> bool:
        present = pods(kubectl, space, "tiny")
        return len(present) == 1 and present[0]["metadata"]["uid"] != before["metadata"]["uid"]

    wait_for("the pod is replaced", replaced, 60)
    wait_ready(kubectl, space, "tiny", timeout=300)
    routed(gateway, MODEL)


def test_deleting_takes_the_name_away_and_leaves_nothing(kubectl: Kubectl, gateway: Gateway, served: Manifest) -> None:
    space = served["metadata"]["namespace"]
    start = time.monotonic()
    kubectl.run("delete", "qd", "tiny", "-n", space, "--wait=false")

    wait_for("404", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 404, 30, every=0.2)
    print(f"404 after {time.monotonic() - start:.1f} s")

    def gone() -> bool:
        kinds = ("pods", "controllerrevisions", "poddisruptionbudgets")
        return all(not kubectl.list(kind, space, "app.kubernetes.io/managed-by=qwen-operator") for kind in kinds)

    wait_for("nothing is left", gone, 90)
