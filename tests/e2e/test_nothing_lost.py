"""What clients of a model with one real engine lose while things happen to it and to the gateway. `bench.loss` counts
thousands of requests with stand-in engines; this counts some hundreds with SGLang, the kubelet and the API server."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.traffic import Trickle, flowing, short_answer, stream
from tests.qd import alive, qd, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.processes import pods_processes, send

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL, NAME = "e2e-lossless", "lossless"
STREAM_TOKENS = 48
PATIENCE_SECONDS = 400


@dataclass(frozen=True, slots=True)
class Scene:
    bed: Cluster
    kubectl: Kubectl
    release: Release
    space: str

    def engine(self) -> Manifest:
        (pod,) = alive(self.kubectl, self.space, NAME)
        return pod

    def part(self, component: str) -> Manifest:
        """One pod of the release that answers."""
        labels = f"app.kubernetes.io/component={component}"
        found = self.kubectl.list("pods", self.release.namespace, labels)
        return next(pod for pod in found if condition(pod, "Ready").get("status") == "True")

    def gateways(self, number: int) -> None:
        """So many gateway pods answer. The chart's default is two."""
        name, space = f"deployment/{self.release.gateway}", self.release.namespace
        live = self.kubectl.json("get", name, "-n", space)
        self.kubectl.apply_as_helm({**live, "spec": {**live["spec"], "replicas": number}})
        self.kubectl.run("rollout", "status", name, "-n", space, "--timeout=120s", timeout=130)
        # Every node's rules for the Service follow within a moment, and a pod that ends accepts requests until then.
        time.sleep(5)

    def patch(self, spec: Manifest) -> None:
        patch = json.dumps({"spec": spec})
        self.kubectl.run("patch", "qd", NAME, "-n", self.space, "--type=merge", "-p", patch)

    def replaced(self, before: Manifest) -> None:
        """Another replica than `before` answers, and it is alone."""

        def done() -> bool:
            present = alive(self.kubectl, self.space, NAME)
            return [condition(pod, "Ready").get("status") for pod in present] == ["True"] and (
                present[0]["metadata"]["uid"] != before["metadata"]["uid"]
            )

        wait_for("another replica answers", done, PATIENCE_SECONDS)


def pod_deleted(scene: Scene) -> None:
    before = scene.engine()
    scene.kubectl.run("delete", "pod", before["metadata"]["name"], "-n", scene.space, "--wait=false")
    scene.replaced(before)


def notice_of_thirty_seconds(scene: Scene) -> None:
    """As on a spot node: the pod has 30 s, whatever its own grace period is."""
    before = scene.engine()
    name = before["metadata"]["name"]
    scene.kubectl.run("delete", "pod", name, "-n", scene.space, "--grace-period=30", "--wait=false")
    scene.replaced(before)


def evicted(scene: Scene) -> None:
    """By a node autoscaler, which the policy AllowOne lets do so."""
    before = scene.engine()
    name = before["metadata"]["name"]
    scene.patch({"disruption": {"policy": "AllowOne"}})
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": scene.space}}
    path = f"/api/v1/namespaces/{scene.space}/pods/{name}/eviction"

    def accepted() -> bool:
        try:
            scene.kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
        except RuntimeError:
            return False
        return True

    wait_for("the eviction is allowed", accepted, 30)
    scene.replaced(before)
    scene.patch({"disruption": {"policy": "Strict"}})


def node_drained(scene: Scene) -> None:
    """The only node with a GPU for it: no successor can start before the drain has ended."""
    before = scene.engine()
    node = before["spec"]["nodeName"]
    selector = f"--pod-selector=qwen-operator.dev/deployment={NAME}"
    try:
        scene.kubectl.run("drain", node, selector, "--delete-emptydir-data", "--timeout=300s", timeout=330)
    finally:
        scene.kubectl.run("uncordon", node)
    scene.replaced(before)


def rolled_out(scene: Scene) -> None:
    before = scene.engine()
    scene.patch({"contextTokens": 1024})
    scene.replaced(before)


def rolled_out_without_surge(scene: Scene) -> None:
    """The old replica drains first, and its successor starts on what it had: no replica answers meanwhile."""
    before = scene.engine()
    scene.patch({"contextTokens": 512, "rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    scene.replaced(before)
    scene.patch({"rollout": {"maxSurge": None, "maxUnavailable": None}})


def revision_held(scene: Scene) -> None:
    """A revision that cannot start, and the earlier spec again."""
    before = scene.engine()
    repository = before["spec"]["containers"][0]["image"].rpartition(":")[0]
    scene.patch({"engine": {"image": f"{repository}:absent"}, "rollout": {"progressDeadlineSeconds": 15}})
    held = wait_condition(scene.kubectl, scene.space, NAME, ("Stalled", "True", "RevisionHeld"), 90)
    print(condition(held, "Stalled")["message"])
    assert condition(held, "Ready")["status"] == "True"
    scene.patch({"engine": {"image": None}, "rollout": {"progressDeadlineSeconds": None}})
    wait_for("only the earlier pod is left", lambda: len(alive(scene.kubectl, scene.space, NAME)) == 1, 60)
    assert scene.engine()["metadata"]["uid"] == before["metadata"]["uid"]


def discovery_file_damaged(scene: Scene) -> None:
    """And then a change that the router must learn of."""
    [agent, *_] = pods_processes(scene.part("gateway")["metadata"]["uid"], "qwen-operator gateway-agent")
    path = Path(f"/proc/{agent}/root/run/qwen/workers.json")
    written = path.read_text()
    path.write_text(written[: len(written) // 2])
    wait_for("the agent writes it again", lambda: path.read_text() == written, 30)
    pod_deleted(scene)


def dns_away(scene: Scene) -> None:
    """While the engine is replaced, so that requests wait and the router learns of a new address."""
    scene.bed.stop_dns()
    try:
        pod_deleted(scene)
    finally:
        scene.bed.start_dns()


def operator_killed(scene: Scene) -> None:
    pod = scene.part("operator")
    send(pods_processes(pod["metadata"]["uid"], "qwen-operator run"), signal.SIGKILL)
    time.sleep(5)


def api_server_away(scene: Scene) -> None:
    scene.bed.stop_apiserver()
    time.sleep(10)
    scene.bed.start_apiserver()


def agent_killed(scene: Scene) -> None:
    """While the engine is replaced, so that requests wait. A pod without its agent is not ready: another one serves."""
    scene.gateways(2)
    before, pod = scene.engine(), scene.part("gateway")
    scene.kubectl.run("delete", "pod", before["metadata"]["name"], "-n", scene.space, "--wait=false")
    time.sleep(2)
    send(pods_processes(pod["metadata"]["uid"], "qwen-operator gateway-agent"), signal.SIGKILL)
    scene.replaced(before)
    scene.gateways(1)


def gateway_rolled(scene: Scene) -> None:
    name = f"deployment/{scene.release.gateway}"
    scene.kubectl.run("rollout", "restart", name, "-n", scene.release.namespace)
    arguments = ("-n", scene.release.namespace, "--timeout=180s")
    scene.kubectl.run("rollout", "status", name, *arguments, timeout=200)
    time.sleep(10)


PLANNED: tuple[Callable[[Scene], None], ...] = (
    rolled_out,
    pod_deleted,
    notice_of_thirty_seconds,
    evicted,
    node_drained,
    rolled_out_without_surge,
    revision_held,
    discovery_file_damaged,
    dns_away,
    operator_killed,
    api_server_away,
    agent_killed,
    gateway_rolled,
)


def engine_killed(scene: Scene) -> None:
    """SIGKILL of all processes of the pod: streams that had begun cannot be completed by anybody."""
    before = scene.engine()
    restarts = before["status"]["containerStatuses"][0]["restartCount"]
    send(pods_processes(before["metadata"]["uid"]), signal.SIGKILL)

    def answers_again() -> bool:
        present = alive(scene.kubectl, scene.space, NAME)
        return any(
            condition(pod, "Ready").get("status") == "True"
            and (
                pod["metadata"]["uid"] != before["metadata"]["uid"]
                or pod["status"]["containerStatuses"][0]["restartCount"] > restarts
            )
            for pod in present
        )

    wait_for("an engine answers again", answers_again, PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def scene(bed: Cluster, kubectl: Kubectl, release: Release, gateway: Gateway, claim_space: str) -> Iterator[Scene]:
    spec = {"model": MODEL, "source": {"uri": "pvc://models/tiny-qwen2"}, "rollout": {"drainSeconds": 20}}
    kubectl.apply(qd(claim_space, NAME, **spec))
    wait_ready(kubectl, claim_space, NAME, timeout=300)
    wait_for("the model is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    yield Scene(bed, kubectl, release, claim_space)
    kubectl.run("delete", "qd", NAME, "-n", claim_space)


@dataclass(frozen=True, slots=True)
class Count:
    """What one event gave. `lost` of plain requests and of streams."""

    asked: int
    lost: list[str]
    cut: list[str]


def count(gateway: Gateway, event: Callable[[], None]) -> Count:
    clients = [Trickle(partial(short_answer, gateway, MODEL), pause=0.1) for _ in range(3)]
    streams = [Trickle(partial(stream, gateway, MODEL, STREAM_TOKENS), pause=0.1)]
    with flowing([*clients, *streams]):
        time.sleep(3)
        event()
        time.sleep(5)
    everyone = [*clients, *streams]
    asked = sum(one.answered + len(one.lost) for one in everyone)
    lost, cut = ([what for one in group for _, what in one.lost] for group in (clients, streams))
    return Count(asked, lost, cut)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("event", PLANNED, ids=lambda event: event.__name__)
def test_a_planned_event_loses_nothing(scene: Scene, gateway: Gateway, event: Callable[[Scene], None]) -> None:
    begun = time.monotonic()
    counted = count(gateway, lambda: event(scene))
    seconds = time.monotonic() - begun
    print(f"| {event.__name__} | {counted.asked} | {len(counted.lost) + len(counted.cut)} | {seconds:.0f} s |")
    assert (counted.lost, counted.cut) == ([], [])
    assert counted.asked > 10


@pytest.mark.timeout(900)
def test_an_engine_that_is_killed_loses_only_the_streams_that_had_begun(scene: Scene, gateway: Gateway) -> None:
    counted = count(gateway, lambda: engine_killed(scene))
    print(f"| engine_killed | {counted.asked} | {len(counted.lost)}, and {len(counted.cut)} streams cut |")
    assert counted.lost == []
    assert len(counted.cut) <= 1


@pytest.mark.timeout(900)
def test_a_router_that_is_killed_loses_only_what_it_had(scene: Scene, gateway: Gateway) -> None:
    def killed() -> None:
        scene.gateways(2)
        pod = scene.part("gateway")
        send(pods_processes(pod["metadata"]["uid"], "smg"), signal.SIGKILL)
        time.sleep(10)
        scene.gateways(1)

    counted = count(gateway, killed)
    print(f"| router_killed | {counted.asked} | {len(counted.lost)}, and {len(counted.cut)} streams cut |")
    for what in {*counted.lost, *counted.cut}:
        print(f"  {what}")
    # One request at a time of each of the four clients.
    assert len(counted.lost) + len(counted.cut) <= 4
