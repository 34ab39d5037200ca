"""A real engine over two pods on two real nodes, whose ranks and nodes die in every way. Prints a time line of each.

The test starts the further nodes and ends them again. Each claims one GPU, so the model needs two of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.timeline import Timeline, watched
from tests.e2e.traffic import Trickle, flowing, short_answer, stream
from tests.qd import alive, pods, qd, wait_condition, wait_ready
from tests.testbed.bed import install
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.images import ENGINE_IMAGE, ENGINE_REPOSITORY, ENGINE_VERSION, operator_image
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.processes import pods_processes, send
from tests.testbed.simulated import MORE_PRODUCT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
NAME, MODEL, SINGLE = "far", "e2e-far", "e2e-near"
URI = {"uri": "pvc://models/tiny-qwen2"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
# SGLang on the CPU needs to know the cores of each rank.
THREADS = [{"name": "SGLANG_CPU_OMP_THREADS_BIND", "value": "0|1"}]
START_SECONDS = 400
STREAM_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Scene:
    """The QwenDeployment `far`, whose replica has a pod on each of two real nodes."""

    bed: Cluster
    kubectl: Kubectl
    gateway: Gateway
    space: str

    def members(self) -> list[Manifest]:
        """The pods by rank."""
        found = alive(self.kubectl, self.space, NAME)
        return sorted(found, key=lambda pod: str(pod["metadata"]["labels"]["qwen-operator.dev/rank"]))

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.members()}

    def serves(self) -> bool:
        return self.gateway.chat(MODEL, max_tokens=1).status_code == 200

    def scheduler(self, rank: int) -> list[int]:
        return pods_processes(self.members()[rank]["metadata"]["uid"], "sglang::scheduler")

    def failure(self) -> Manifest:
        status = (self.kubectl.get("qd", NAME, self.space) or {}).get("status", {})
        return dict(status.get("lastFailure") or {})

    def fails(self, act: Callable[[], None], reason: str, seconds: float) -> Manifest:
        """The failure for this reason that the status tells after this. Another one may be told first."""
        before = self.failure()
        act()

        def told() -> Manifest | None:
            now = self.failure()
            return now if now != before and now.get("reason") == reason else None

        return wait_for(f"the failure {reason} is told", told, seconds)

    def ready(self) -> None:
        wait_ready(self.kubectl, self.space, NAME, timeout=START_SECONDS)
        wait_for("requests are answered", self.serves, 60)


@contextmanager
def timeline(scene: Scene, title: str) -> Iterator[Timeline]:
    print(f"\n== {title}")
    line = Timeline()
    with watched(line, scene.kubectl, scene.space, NAME):
        time.sleep(2)
        yield line
        time.sleep(2)


@pytest.fixture(scope="module")
def nodes(bed: Cluster) -> Iterator[OwnNodes]:
    with bed.more_real_nodes(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def place(bed: Cluster, kubectl: Kubectl, gateway: Gateway, claim_space: str, nodes: OwnNodes) -> Iterator[Scene]:
    """Nothing runs yet."""
    yield Scene(bed, kubectl, gateway, claim_space)
    kubectl.run("delete", "qd", NAME, "-n", claim_space, "--ignore-not-found")


@pytest.fixture
def scene(place: Scene, nodes: OwnNodes) -> Scene:
    """The replica answers. What an earlier test left of it is used again."""
    place.kubectl.apply(manifest(place.space, nodes))
    place.ready()
    return place


def manifest(space: str, nodes: OwnNodes, **spec: Any) -> Manifest:
    usual: dict[str, Any] = {
        "model": MODEL,
        "source": URI,
        "parallelism": {"tensor": 2},
        "hardware": {"products": [MORE_PRODUCT], "maxNodesPerReplica": 2},
        "engine": {"env": THREADS},
        "pod": nodes.pod,
    }
    return qd(space, NAME, **{**usual, **spec})


def test_pods_on_two_nodes_answer_with_the_tokens_of_one(scene: Scene, nodes: OwnNodes) -> None:
    hosts = [pod["spec"]["nodeName"] for pod in scene.members()]
    assert sorted(hosts) == sorted(nodes.names)
    scene.kubectl.apply(qd(scene.space, "near", model=SINGLE, source=URI))
    wait_ready(scene.kubectl, scene.space, "near", timeout=START_SECONDS)
    wait_for("both are routed", lambda: scene.gateway.chat(SINGLE, max_tokens=1).status_code == 200, 30)
    texts = [scene.gateway.chat(name, **GREEDY).json()["choices"][0]["message"]["content"] for name in (SINGLE, MODEL)]
    scene.kubectl.run("delete", "qd", "near", "-n", scene.space)
    print(f"\n== {MODEL} on {' and '.join(hosts)}: {texts[1]!r}")
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_rank(scene: Scene, rank: int) -> None:
    before = scene.uids()
    with timeline(scene, f"the scheduler of rank {rank} is killed") as line:

        def kill() -> None:
            send(scene.scheduler(rank), signal.SIGKILL)
            line.note(f"the scheduler of rank {rank} was killed")

        failure = scene.fails(kill, "EngineKilled", 120)
        line.note(f"the status tells {failure['reason']} of {failure['pod']}")
        scene.ready()
        line.note("requests are answered")
    assert failure["pod"].endswith(f"-{rank}"), "the pod that ended first"
    assert scene.uids() == before, "the containers start again in place"


def test_a_rank_that_a_signal_stopped(scene: Scene) -> None:
    before = scene.uids()
    with timeline(scene, "the scheduler of rank 1 is stopped") as line:
        stopped = scene.scheduler(1)

        def stop() -> None:
            send(stopped, signal.SIGSTOP)
            line.note("the scheduler of rank 1 was stopped")

        failure = scene.fails(stop, "Hung", 90)
        line.note(f"the status tells {failure['reason']} of {failure['pod']}")
        scene.ready()
        line.note("requests are answered")
    assert failure["pod"].endswith("-1")
    assert scene.uids() == before


def test_a_kubelet_that_is_away_for_a_minute_costs_waiting_and_no_restart(scene: Scene) -> None:
    """Its pods go on, but Kubernetes says that they are not ready, so no request is sent to them."""
    before, worker = scene.uids(), scene.members()[1]["spec"]["nodeName"]
    counted = [restarts(pod) for pod in scene.members()]
    with timeline(scene, "the kubelet of rank 1 is away for a minute") as line, ThreadPoolExecutor(1) as pool:
        scene.bed.stop_kubelet(worker)
        line.note(f"the kubelet of {worker} was stopped")
        try:
            wait_for("the node is given up", lambda: not node_ready(scene.kubectl, worker), 90)
            line.note("Kubernetes says that the node is not ready")
            wait_condition(scene.kubectl, scene.space, NAME, ("Ready", "False", "NodeLost"), 30)
            request = pool.submit(scene.serves)
            line.note("a request comes")
            time.sleep(5)
        finally:
            scene.bed.return_real_node(worker)
        line.note("the kubelet is back")
        assert request.result(timeout=90)
        line.note("the request is answered")
        scene.ready()
    assert scene.uids() == before
    assert [restarts(pod) for pod in scene.members()] == counted


def restarts(pod: Manifest) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def node_ready(kubectl: Kubectl, name: str) -> bool:
    return condition(kubectl.json("get", "node", name), "Ready").get("status") == "True"


def test_a_node_that_is_lost(scene: Scene) -> None:
    before, worker = scene.uids(), scene.members()[1]["spec"]["nodeName"]
    with timeline(scene, "the node of rank 1 loses its power and is deleted") as line:
        scene.bed.lose_real_node(worker)
        line.note(f"{worker} has lost its power")
        obj = wait_condition(scene.kubectl, scene.space, NAME, ("Ready", "False", "MemberEnded"), 60)
        line.note("rank 0 has ended its engine")
        assert "rank 1 does not answer any more" in condition(obj, "Ready")["message"]
        scene.bed.remove_node(worker)
        line.note(f"the node {worker} was deleted")
        wait_for("a new replica waits for nodes", lambda: len(scene.uids() - before) == 2, 180)
        line.note("there is a new replica")
        scene.bed.return_real_node(worker)
        line.note(f"{worker} is back")
        scene.ready()
        line.note("requests are answered")
    assert not scene.uids() & before


def test_a_slow_pull_on_one_node_costs_waiting_and_no_restart(place: Scene, nodes: OwnNodes) -> None:
    scene, tag = place, f"v{ENGINE_VERSION}-{uuid4().hex[:6]}"
    engine = {"image": f"{ENGINE_REPOSITORY}:{tag}", "version": ENGINE_VERSION, "env": THREADS}
    scene.kubectl.run("delete", "qd", NAME, "-n", scene.space, "--ignore-not-found")
    fast, slow = nodes.names
    with (
        scene.bed.slow_registry(fast, ENGINE_IMAGE, 0),
        scene.bed.slow_registry(slow, ENGINE_IMAGE, 30),
        timeline(scene, f"{slow} waits for each answer of the registry for 30 seconds") as line,
    ):
        scene.kubectl.apply(manifest(scene.space, nodes, engine=engine))
        line.note("the QwenDeployment was created")
        scene.ready()
        line.note("requests are answered")
        members = scene.members()
    assert [restarts(pod) for pod in members] == [0, 0]
    assert {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in members} == {tag}
    scene.kubectl.run("delete", "qd", NAME, "-n", scene.space)


def test_a_node_without_room_holds_the_other_one_free(scene: Scene, nodes: OwnNodes) -> None:
    """As seen by the operator, which then gives no node away."""
    scene.kubectl.run("cordon", nodes.names[1])
    try:
        with timeline(scene, f"{nodes.names[1]} is cordoned, and the replica is made anew") as line:
            scene.kubectl.run("scale", "qd", NAME, "-n", scene.space, "--replicas=0")
            wait_for("no pod", lambda: not pods(scene.kubectl, scene.space, NAME), 120)
            scene.kubectl.run("scale", "qd", NAME, "-n", scene.space, "--replicas=1")
            obj = wait_condition(scene.kubectl, scene.space, NAME, ("Ready", "False", "WaitingForGpus"), 60)
            assert "take no GPU before all of them fit" in condition(obj, "Ready")["message"]
            assert {pod["spec"].get("nodeName") for pod in scene.members()} == {None}
            scene.kubectl.run("uncordon", nodes.names[1])
            line.note(f"{nodes.names[1]} takes pods again")
            scene.ready()
            line.note("requests are answered")
    finally:
        scene.kubectl.run("uncordon", nodes.names[1])


@pytest.fixture
def four_nodes(bed: Cluster, nodes: OwnNodes) -> Iterator[OwnNodes]:
    """Room for two replicas."""
    with bed.more_real_nodes(4) as four:
        yield four


def scaled_down(scene: Scene) -> None:
    scene.kubectl.run("scale", "qd", NAME, "-n", scene.space, "--replicas=1")
    wait_for("one replica is left", lambda: len(pods(scene.kubectl, scene.space, NAME)) == 2, 240)


def rolled_out(scene: Scene) -> None:
    before = scene.uids()
    patch = '{"spec": {"contextTokens": 1024}}'
    scene.kubectl.run("patch", "qd", NAME, "-n", scene.space, "--type=merge", "-p", patch)
    wait_for("a new replica serves", lambda: len(scene.uids()) == 2 and not scene.uids() & before, START_SECONDS)
    wait_for("the old one is gone", lambda: len(pods(scene.kubectl, scene.space, NAME)) == 2, 240)


def test_scale_down_and_rollout_lose_nothing(scene: Scene, four_nodes: OwnNodes) -> None:
    with timeline(scene, "two replicas become one, and that one is replaced, while clients ask") as line:
        scene.kubectl.run("scale", "qd", NAME, "-n", scene.space, "--replicas=2")
        arguments = ("--for=jsonpath={.status.readyReplicas}=2", f"--timeout={START_SECONDS}s")
        scene.kubectl.run("wait", f"qd/{NAME}", "-n", scene.space, *arguments, timeout=START_SECONDS + 10)
        line.note("two replicas answer")
        everyone = [Trickle(partial(short_answer, scene.gateway, MODEL), pause=0.2) for _ in range(2)]
        everyone += [Trickle(partial(stream, scene.gateway, MODEL, STREAM_TOKENS), pause=0.2) for _ in range(2)]
        with flowing(everyone):
            for event in (scaled_down, rolled_out):
                time.sleep(5)
                line.note(f"{event.__name__} begins")
                event(scene)
                line.note(f"{event.__name__} is over, {asked(everyone)} requests so far")
            time.sleep(5)
        lost = [what for one in everyone for _, what in one.lost]
        line.note(f"of {asked(everyone)} requests, half of the clients' streams, {len(lost)} were lost")
    assert lost == []
    assert asked(everyone) >= 100


def asked(trickles: Sequence[Trickle]) -> int:
    return sum(one.answered + len(one.lost) for one in trickles)


@pytest.fixture
def on_the_hosts_network(place: Scene) -> Iterator[Scene]:
    """The chart gives the pods the network of their nodes, and the lock of memory. Nothing runs yet."""
    settings = ("hostNetwork=true", "ipcLock=true", "interface=cni0")
    place.kubectl.run("delete", "qd", NAME, "-n", place.space, "--ignore-not-found")
    wait_for("no pod", lambda: not pods(place.kubectl, place.space, NAME), 120)
    install(place.bed, *(word for one in settings for word in ("--set", f"engine.multiNode.{one}")))
    try:
        yield place
    finally:
        place.kubectl.run("delete", "qd", NAME, "-n", place.space, "--ignore-not-found")
        enforce(place, "restricted")
        install(place.bed)


def enforce(scene: Scene, level: str) -> None:
    label = f"pod-security.kubernetes.io/enforce={level}"
    scene.kubectl.run("label", "namespace", scene.space, label, "--overwrite")


def test_the_network_of_the_host_and_locked_memory(on_the_hosts_network: Scene, nodes: OwnNodes) -> None:
    scene = on_the_hosts_network
    with timeline(scene, "the chart gives the network of the host and IPC_LOCK") as line:
        scene.kubectl.apply(manifest(scene.space, nodes))
        obj = wait_condition(scene.kubectl, scene.space, NAME, ("Ready", "False", "PodRefused"), 60)
        line.note(condition(obj, "Ready")["message"][:160])
        enforce(scene, "privileged")
        line.note("the namespace enforces privileged")
        scene.ready()
        line.note("requests are answered")
    members = scene.members()
    assert {pod["status"]["podIP"] for pod in members} == {pod["status"]["hostIP"] for pod in members}
    for pod in members:
        words = ("exec", pod["metadata"]["name"], "-n", scene.space, "-c", "engine", "--", "cat", "/proc/1/status")
        status = dict(entry.split(":\t", 1) for entry in scene.kubectl.run(*words).splitlines() if ":\t" in entry)
        assert int(status["CapEff"], 16) == 1 << 14, "IPC_LOCK and nothing else"
        assert status["NoNewPrivs"] == "1"


def test_a_gpu_that_a_pod_of_others_has(place: Scene, nodes: OwnNodes) -> None:
    """The operator watches no pods of others. It reads those of a node before it sends a replica there."""
    scene = place
    scene.kubectl.run("delete", "qd", NAME, "-n", scene.space, "--ignore-not-found")
    with timeline(scene, f"a foreign pod takes the GPU of {nodes.names[1]}") as line:
        wait_for("no pod", lambda: not pods(scene.kubectl, scene.space, NAME), 120)
        scene.kubectl.apply(taking(scene.space, nodes))
        scene.kubectl.run("wait", "pod/thief", "-n", scene.space, "--for=condition=Ready", "--timeout=60s")
        scene.kubectl.apply(manifest(scene.space, nodes))
        obj = wait_condition(scene.kubectl, scene.space, NAME, ("Ready", "False", "WaitingForGpus"), 60)
        assert f"{nodes.names[1]} has 0 of 1" in condition(obj, "Ready")["message"]
        assert [pod["spec"].get("nodeName") for pod in scene.members()] == [None, None]
        scene.kubectl.run("delete", "pod", "thief", "-n", scene.space)
        line.note("the foreign pod is gone")
        scene.ready()
        line.note("requests are answered")


def taking(space: str, nodes: OwnNodes) -> Manifest:
    """A pod of somebody else that has the GPU of the last of these nodes."""
    container = {
        "name": "main",
        "image": operator_image(),
        "command": ["sleep", "3600"],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": nodes.names[-1]},
        "tolerations": nodes.pod["tolerations"],
        "terminationGracePeriodSeconds": 0,
        "securityContext": security,
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "thief", "namespace": space}, "spec": spec}
