"""An adapter that the real PEFT made, in a private repository of a hub, from the manifest to the answer.

The test changes the values of the release, and sets them back.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.hub_pod import Repositories, start_hub
from tests.e2e.test_adapters import ENGINE, QUESTION
from tests.e2e.traffic import Trickle, flowing, short_answer
from tests.qd import alive, pods, qd, wait_condition, wait_ready
from tests.testbed.adapters import adapters
from tests.testbed.bed import install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.processes import pods_processes, send
from tests.testbed.volumes import claim_manifests, volume_name
from tests.unit.fetch.hub import COMMIT, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
NAME, MODEL = "elsewhere", "tiny-elsewhere"
TOKEN = "hf-secret"
CACHE, SECOND = "adapter-cache", "Qwen/Second"


@pytest.fixture(scope="module")
def space(bed: Cluster, kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace with a hub that has one adapter, and with a token for it."""
    meta = {"name": "hf-token", "namespace": claim_space}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": TOKEN, "wrong": "no"}}
    kubectl.apply(*claim_manifests("adapters", claim_space, Path(adapters())), secret)
    hub = start_hub(
        kubectl, claim_space, Repositories({REPOSITORY: "style-0", SECOND: "style-2"}, token=TOKEN), "adapters"
    )
    install(bed, "--set", f"hub.url={hub.url}")
    yield claim_space
    install(bed)
    kubectl.run("delete", "pv", volume_name("adapters", claim_space), "--wait=false")


def manifest(space: str, name: str, key: str) -> Manifest:
    source = {"uri": f"hf://{REPOSITORY}", "secretRef": {"name": "hf-token", "key": key}}
    listed = [
        {"name": "style", "source": source},
        # What the engine needs on a CPU is on this claim.
        {"name": "beside", "source": {"uri": "pvc://adapters/style-1"}},
    ]
    base = {"uri": "pvc://models/tiny-qwen2"}
    made: Manifest = qd(space, name, model=f"{MODEL}-{name}", source=base, engine=ENGINE, adapters=listed)
    return made


def test_a_wrong_token_is_told_before_an_engine_pod_exists(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(manifest(space, "wrong", "wrong"))
    found = wait_condition(kubectl, space, "wrong", ("Ready", "False", "AuthRequired"), timeout=180)
    assert "spec.adapters[style].source.secretRef" in condition(found, "Ready")["message"]
    assert pods(kubectl, space, "wrong") == []
    kubectl.run("delete", "qd", "wrong", "-n", space, "--wait=false")


def test_an_adapter_of_a_private_repository_answers(kubectl: Kubectl, gateway: Gateway, space: str) -> None:
    kubectl.apply(manifest(space, NAME, "token"))
    wait_ready(kubectl, space, NAME, timeout=300)
    [pod] = pods(kubectl, space, NAME)
    assert f"--repository={REPOSITORY} --commit={COMMIT}" in str(pod["spec"]["initContainers"])
    assert "secretKeyRef" not in str(pod["spec"]["containers"])
    name = f"{MODEL}-{NAME}"
    wait_for("the adapter is routed", lambda: gateway.chat(f"{name}:style", max_tokens=1).status_code == 200, 60)
    certainties = []
    for model in (name, f"{name}:style", f"{name}:beside"):
        answer = gateway.chat(model, QUESTION, max_tokens=12, temperature=0, logprobs=True)
        certainties.append(answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"])
    assert len(set(certainties)) == 3, certainties
    kubectl.run("delete", "qd", NAME, "-n", space, "--wait=false")


@pytest.fixture
def cached(bed: Cluster, kubectl: Kubectl, space: str) -> Iterator[str]:
    """The namespace with a claim that is the cache."""
    url = f"http://hub.{space}.svc:8000"
    folder = bed.models_dir.parent / f"{CACHE}-{space}"
    folder.mkdir()
    folder.chmod(0o777)
    kubectl.apply(*claim_manifests(CACHE, space, folder, access_mode="ReadWriteMany"))
    cache = ("cache.type=PersistentVolumeClaim", f"cache.claimName={CACHE}", f"hub.url={url}")
    install(bed, *(word for value in cache for word in ("--set", value)))
    yield space
    install(bed, "--set", f"hub.url={url}")
    kubectl.run("delete", "pv", volume_name(CACHE, space), "--wait=false")


def of_hub(name: str, repository: str) -> Manifest:
    return {"name": name, "source": {"uri": f"hf://{repository}", "secretRef": {"name": "hf-token", "key": "token"}}}


BESIDE: Manifest = {"name": "beside", "source": {"uri": "pvc://adapters/style-1"}}


def change(kubectl: Kubectl, space: str, name: str, *entries: Manifest) -> float:
    """Change the list. Returns the time of it, by the monotonic clock."""
    patch, begun = json.dumps({"spec": {"adapters": list(entries)}}), time.monotonic()
    kubectl.run("patch", "qd", name, "-n", space, "--type=merge", "-p", patch)
    return begun


def adapter_pods(kubectl: Kubectl, space: str) -> list[str]:
    return [one for one in kubectl.run("get", "pods", "-n", space, "-o", "name").split() if "-adapter-" in one]


def test_adapters_of_a_hub_come_and_go_while_the_same_engine_serves(
    kubectl: Kubectl, gateway: Gateway, cached: str
) -> None:
    name, model = "cached", f"{MODEL}-cached"
    base, style = {"uri": "pvc://models/tiny-qwen2"}, of_hub("style", REPOSITORY)
    kubectl.apply(qd(cached, name, model=model, source=base, engine=ENGINE, adapters=[style, BESIDE]))
    wait_ready(kubectl, cached, name, timeout=300)
    [before] = alive(kubectl, cached, name)
    pod = before["metadata"]["name"]
    asked, added = f"{model}:beside", f"{model}:second"
    wait_for("the first ones are routed", lambda: gateway.chat(f"{model}:style").status_code == 200, 60)
    traffic = [Trickle(lambda one=one: short_answer(gateway, one), 0.2) for one in (model, asked)]  # type: ignore[misc]
    with flowing(traffic):
        begun = change(kubectl, cached, name, style, BESIDE, of_hub("second", SECOND))
        wait_for("a pod fetches it", lambda: adapter_pods(kubectl, cached), 120, 0.1)
        fetching = time.monotonic() - begun
        wait_for("the added adapter answers", lambda: gateway.chat(added, max_tokens=1).status_code == 200, 120, 0.1)
        answered = time.monotonic() - begun
        change(kubectl, cached, name, BESIDE, of_hub("second", SECOND))
        wait_for("the removed one is unknown", lambda: gateway.chat(f"{model}:style").status_code == 404, 60, 0.1)
        log = ("logs", pod, "-n", cached, "-c", "engine", "--tail=-1")
        wait_for("the engine unloads it", lambda: "the adapter style is unloaded" in kubectl.run(*log), 60)
    assert [trickle.lost for trickle in traffic] == [[], []]
    assert [one["metadata"]["uid"] for one in alive(kubectl, cached, name)] == [before["metadata"]["uid"]]
    wait_for("the pod that fetched is gone", lambda: not adapter_pods(kubectl, cached), 60)
    print(f"added: a pod fetches after {fetching:.1f} s, it answers after {answered:.1f} s")
    certainties = []
    for one in (model, asked, added):
        answer = gateway.chat(one, QUESTION, max_tokens=12, temperature=0, logprobs=True)
        certainties.append(answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"])
    assert len(set(certainties)) == 3, certainties

    send(pods_processes(before["metadata"]["uid"], "launch_server")[:1], signal.SIGKILL)

    def back() -> bool:
        [again] = alive(kubectl, cached, name)
        restarts = again["status"]["containerStatuses"][0]["restartCount"]
        return restarts > 0 and condition(again, "Ready").get("status") == "True"

    wait_for("the engine runs again", back, 300)
    assert gateway.chat(added, max_tokens=1).status_code == 200
    kubectl.run("delete", "qd", name, "-n", cached, "--wait=false")
