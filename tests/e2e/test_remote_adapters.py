"""An adapter that the real PEFT made, in a private repository of a hub, from the manifest to the answer.

The test changes the values of the release, and sets them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.hub_pod import Repositories, start_hub
from tests.e2e.test_adapters import ENGINE, QUESTION
from tests.qd import pods, qd, wait_condition, wait_ready
from tests.testbed.adapters import adapters
from tests.testbed.bed import install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.volumes import claim_manifests, volume_name
from tests.unit.fetch.hub import COMMIT, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
NAME, MODEL = "elsewhere", "tiny-elsewhere"
TOKEN = "hf-secret"


@pytest.fixture(scope="module")
def space(bed: Cluster, kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace with a hub that has one adapter, and with a token for it."""
    meta = {"name": "hf-token", "namespace": claim_space}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": TOKEN, "wrong": "no"}}
    kubectl.apply(*claim_manifests("adapters", claim_space, Path(adapters())), secret)
    hub = start_hub(kubectl, claim_space, Repositories({REPOSITORY: "style-0"}, token=TOKEN), "adapters")
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
