"""A real engine over two pods that form one replica. There is one real node, so both pods run on it.

Simulated nodes of one GPU each make the plan need two of them; the pods select the real node instead.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Gateway
from tests.qd import alive, qd, wait_ready
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.processes import pods_processes, send
from tests.testbed.simulated import REAL_NODE_PRODUCT, Pool

pytestmark = pytest.mark.e2e
A40 = "NVIDIA-A40"
PAIR, SINGLE, STAGED = "e2e-pair", "e2e-single", "e2e-staged"
URI = {"uri": "pvc://models/tiny-qwen2"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def pair(bed: Cluster, kubectl: Kubectl, release: Release, claim_space: str) -> Iterator[str]:
    """The namespace of the QwenDeployment `pair`, whose replica has two pods; Ready."""
    install(bed, "--set", "engine.distinctNodes=false")
    try:
        with bed.own_nodes(Pool(A40, gpus=1, nodes=2)) as nodes:
            kubectl.apply(
                qd(
                    claim_space,
                    "pair",
                    model=PAIR,
                    source=URI,
                    parallelism={"tensor": 2},
                    hardware={"products": [A40], "maxNodesPerReplica": 2},
                    # SGLang on the CPU needs to know the cores of each rank.
                    engine={"env": [{"name": "SGLANG_CPU_OMP_THREADS_BIND", "value": "0|1"}]},
                    pod={
                        "nodeSelector": {"nvidia.com/gpu.product": REAL_NODE_PRODUCT},
                        "tolerations": nodes.pod["tolerations"],
                    },
                )
            )
            wait_ready(kubectl, claim_space, "pair", timeout=400)
            yield claim_space
            kubectl.run("delete", "qd", "pair", "-n", claim_space, "--ignore-not-found")
    finally:
        install(bed)


def members(kubectl: Kubectl, space: str) -> list[Manifest]:
    """The pods by rank."""
    return sorted(alive(kubectl, space, "pair"), key=lambda pod: pod["metadata"]["name"])


def routed(gateway: Gateway, model: str) -> None:
    wait_for(f"{model} is routed", lambda: gateway.chat(model, max_tokens=1).status_code == 200, 30)


@pytest.mark.timeout(900)
def test_two_pods_answer_with_the_tokens_of_one(kubectl: Kubectl, gateway: Gateway, pair: str) -> None:
    kubectl.apply(qd(pair, "single", model=SINGLE, source=URI))
    wait_ready(kubectl, pair, "single", timeout=300)
    routed(gateway, SINGLE)
    routed(gateway, PAIR)
    texts = [gateway.chat(model, **GREEDY).json()["choices"][0]["message"]["content"] for model in (SINGLE, PAIR)]
    kubectl.run("delete", "qd", "single", "-n", pair)
    assert texts[0] == texts[1] != ""
    leader, worker = members(kubectl, pair)
    assert [one["metadata"]["labels"]["qwen-operator.dev/role"] for one in (leader, worker)] == [
        "engine",
        "engine-worker",
    ]


@pytest.mark.timeout(900)
def test_a_killed_rank_ends_both_which_start_again_in_place(kubectl: Kubectl, gateway: Gateway, pair: str) -> None:
    before = [pod["metadata"]["uid"] for pod in members(kubectl, pair)]
    send(pods_processes(before[1], "sglang::scheduler"), signal.SIGKILL)

    def failed() -> Manifest | None:
        obj = kubectl.get("qd", "pair", pair) or {}
        found: Manifest | None = obj.get("status", {}).get("lastFailure")
        # The kubelet may tell the end of rank 0 first.
        return found if found and found["reason"] != "MemberEnded" else None

    failure = wait_for("the failure is reported", failed, 120)
    assert (failure["reason"], failure["pod"][-2:]) == ("EngineKilled", "-1")
    wait_ready(kubectl, pair, "pair", timeout=400)
    routed(gateway, PAIR)
    assert [pod["metadata"]["uid"] for pod in members(kubectl, pair)] == before


@pytest.mark.timeout(900)
def test_a_deleted_worker_lets_rank_0_finish_its_answer(kubectl: Kubectl, gateway: Gateway, pair: str) -> None:
    routed(gateway, PAIR)
    before = {pod["metadata"]["uid"] for pod in members(kubectl, pair)}
    ends: list[str] = []
    client = threading.Thread(target=lambda: ends.append(gateway.stream(PAIR, 600)))
    client.start()
    wait_for("the engine works", lambda: gateway.chat(PAIR, max_tokens=1).status_code == 200, 30)
    kubectl.run("delete", "pod", members(kubectl, pair)[1]["metadata"]["name"], "-n", pair, "--wait=false")
    client.join(300)
    assert ends == ["length"]

    def came_back() -> bool:
        uids = {pod["metadata"]["uid"] for pod in members(kubectl, pair)}
        return len(uids) == 2 and not uids & before

    wait_for("a new replica", came_back, 120)
    wait_ready(kubectl, pair, "pair", timeout=400)


@pytest.mark.timeout(900)
def test_two_stages_on_two_pods_answer_with_the_tokens_of_tensor_parallelism(
    kubectl: Kubectl, gateway: Gateway, pair: str
) -> None:
    """The layers are divided between two pods (--pp-size=2). The last test: its pods get the cores of the others."""
    routed(gateway, PAIR)
    before = gateway.chat(PAIR, **GREEDY).json()["choices"][0]["message"]["content"]
    spec = (kubectl.get("qd", "pair", pair) or {})["spec"]
    kubectl.run("delete", "qd", "pair", "-n", pair)
    kubectl.apply(qd(pair, "staged", **{**spec, "model": STAGED, "parallelism": {"pipeline": 2}}))
    obj = wait_ready(kubectl, pair, "staged", timeout=400)
    assert obj["status"]["plan"]["parallelism"] == {"tensor": 1, "pipeline": 2}
    routed(gateway, STAGED)
    after = gateway.chat(STAGED, **GREEDY).json()["choices"][0]["message"]["content"]
    kubectl.run("delete", "qd", "staged", "-n", pair)
    assert before == after != ""
