"""One tenant's hostile input while another tenant's requests run: none is lost, and a third one's edit is acted on.

One engine start. What is hostile is on simulated nodes, in a namespace of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.traffic import Trickle, flowing, short_answer, stream
from tests.hostile import (
    L4,
    LARGE,
    MESSAGES,
    Neighbour,
    create,
    end_with,
    forged_pod,
    planned,
    restarts,
)
from tests.qd import MODEL as SIMULATED_MODEL
from tests.qd import alive, own_namespace, pods, qd, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.e2e
MODEL, DEPLOYMENT = "e2e-steady", "steady"
SECONDS = 10.0
"""How long each input is there after the operator has said what is wrong with it."""
STREAM_TOKENS = 32
PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the hostile things are made. `folder` is for files."""

    bed: Cluster
    kubectl: Kubectl
    space: str
    folder: Path

    def own(self) -> None:
        """A deployment of the hostile tenant that serves."""
        self.kubectl.apply(simulated(self.space, "own", L4))
        wait_ready(self.kubectl, self.space, "own")

    def stop(self) -> None:
        """The hostile tenant stops it."""
        self.kubectl.run("patch", "qd", "own", "-n", self.space, "--type=merge", "-p", '{"spec":{"replicas":0}}')


Strike = Callable[[], None]
"""Applies the input, and waits until its tenant is told."""


@contextmanager
def large_object(name: str, scene: Scene) -> Iterator[Strike]:
    affinity, problem = LARGE[name]

    def strike() -> None:
        create(scene.kubectl, scene.space, name, affinity, scene.folder)
        wait_for("its status says why it is refused", lambda: problem in planned(scene.kubectl, scene.space, name), 60)

    yield strike
    scene.kubectl.run("delete", "qd", name, "-n", scene.space)


@contextmanager
def forged_pods(scene: Scene) -> Iterator[Strike]:
    """Nobody is told of a pod that no QwenDeployment owns: the tenant's own deployment must go on."""
    scene.own()
    names = ["forged", "forged-as-served"]

    def strike() -> None:
        served = forged_pod(scene.space, names[1], DEPLOYMENT)
        scene.kubectl.apply(forged_pod(scene.space, names[0], "own"), served)
        scene.stop()
        wait_for(
            "only the forged pod is left",
            lambda: [pod["metadata"]["name"] for pod in pods(scene.kubectl, scene.space, "own")] == names[:1],
            60,
        )

    yield strike
    scene.kubectl.run("delete", "pod", *names, "-n", scene.space, "--wait=false")


@contextmanager
def termination_message(name: str, scene: Scene) -> Iterator[Strike]:
    scene.own()
    [pod] = pods(scene.kubectl, scene.space, "own")

    def strike() -> None:
        end_with(scene.kubectl, pod, MESSAGES[name])
        wait_condition(scene.kubectl, scene.space, "own", ("Ready", "False", "Unknown"))

    yield strike
    scene.stop()
    wait_for("the pod is removed", lambda: not pods(scene.kubectl, scene.space, "own"), 90)


@contextmanager
def page_of_4_mb(scene: Scene) -> Iterator[Strike]:
    """An engine that answers every scrape with it."""
    pool, kubectl, space = Pool(L4, gpus=8, nodes=1), scene.kubectl, scene.space
    with scene.bed.own_nodes(pool, answering=True) as nodes, scene.bed.exporter() as exporter:
        exporter.say(SIMULATED_MODEL)
        scaling = {"maxReplicas": 2, "stabilizationSeconds": 5}
        kubectl.apply(simulated(space, "bad", L4, pod=nodes.pod, scaling=scaling))
        wait_ready(kubectl, space, "bad")
        [pod] = alive(kubectl, space, "bad")

        def strike() -> None:
            exporter.flood(pod["status"]["podIP"])
            wait_condition(kubectl, space, "bad", ("ScalingActive", "False", "MetricsInvalid"), 30)

        yield strike
        exporter.flood()
        kubectl.run("delete", "qd", "bad", "-n", space)


HOSTILE: dict[str, Callable[[Scene], AbstractContextManager[Strike]]] = {
    "an object of 1100 levels": partial(large_object, "deep"),
    "an object of 1 MB": partial(large_object, "large"),
    "forged pods": forged_pods,
    "a termination message of brackets": partial(termination_message, "brackets"),
    "lone surrogates": partial(termination_message, "surrogates"),
    "a metrics page of 4 MB": page_of_4_mb,
}


@pytest.fixture(scope="module")
def served(kubectl: Kubectl, gateway: Gateway, claim_space: str) -> Iterator[None]:
    """The tiny model, served and routed."""
    source = {"uri": "pvc://models/tiny-qwen2"}
    kubectl.apply(qd(claim_space, DEPLOYMENT, model=MODEL, source=source))
    wait_ready(kubectl, claim_space, DEPLOYMENT, timeout=300)
    wait_for(f"{MODEL} is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    yield
    kubectl.run("delete", "qd", DEPLOYMENT, "-n", claim_space)


@pytest.fixture
def clients(gateway: Gateway, served: None) -> list[Trickle]:
    """Two that want answers in one piece, and one that wants streams."""
    plain, streamed = partial(short_answer, gateway, MODEL), partial(stream, gateway, MODEL, STREAM_TOKENS)
    return [Trickle(ask, PAUSE) for ask in (plain, plain, streamed)]


@pytest.fixture(scope="module")
def neighbour(kubectl: Kubectl, release: Release) -> Iterator[Neighbour]:
    """A third tenant, who edits."""
    with own_namespace(kubectl, "n") as space:
        made = Neighbour(kubectl, space)
        made.start()
        yield made


@pytest.fixture
def scene(bed: Cluster, kubectl: Kubectl, space: str, tmp_path: Path) -> Scene:
    return Scene(bed, kubectl, space, tmp_path)


def row(*cells: object) -> None:
    """Prints a row of the table about all inputs."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


@pytest.fixture(scope="module", autouse=True)
def head() -> None:
    """The first rows of the table."""
    row("input", "requests", "of them streams", "lost", "neighbour's edit acted on within", "restarts")
    row(*["---"] * 6)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_request_of_another_tenant_is_lost(
    scene: Scene, clients: list[Trickle], neighbour: Neighbour, release: Release, name: str
) -> None:
    before = restarts(scene.kubectl, release)
    with HOSTILE[name](scene) as strike, flowing(clients):
        strike()
        told = time.monotonic()
        seconds = neighbour.edit()
        time.sleep(max(0.0, told + SECONDS - time.monotonic()))
    after = restarts(scene.kubectl, release)
    lost = [what for client in clients for _, what in client.lost]
    asked = [client.answered + len(client.lost) for client in clients]
    restarted = sum(after.values()) - sum(before.values())
    row(name, sum(asked), asked[-1], len(lost), f"{seconds:.1f} s", restarted)
    assert lost == []
    assert after == before
    assert min(client.answered for client in clients) > 0, "every client was answered"
