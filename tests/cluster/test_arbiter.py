"""Two priorities on nodes that are too small for both: the real scheduler, and no engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qd import alive, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L40S = "NVIDIA-L40S"


@pytest.fixture
def nodes(bed: Cluster, release: Release) -> Iterator[OwnNodes]:
    """Two nodes of two GPUs each."""
    with bed.own_nodes(Pool(L40S, gpus=2, nodes=2)) as nodes:
        yield nodes


def preemptions(kubectl: Kubectl, space: str) -> list[str]:
    """What the scheduler says about pods that it ended for others."""
    return [
        f"{event['involvedObject']['name']}: {event.get('message')}"
        for event in kubectl.list("events", space)
        if event.get("reason") == "Preempted"
    ]


def plain(space: str, name: str, nodes: OwnNodes, limits: Manifest, spec: Manifest) -> Manifest:
    """A pod of somebody else on these nodes."""
    container = {
        "name": "other",
        "image": "localhost/none",
        "resources": {"limits": limits, "requests": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space},
        "spec": {**nodes.pod, "securityContext": user, "containers": [container], **spec},
    }


def test_a_pod_cannot_choose_to_end_nobody(kubectl: Kubectl, high: str, space: str) -> None:
    """Otherwise the operator could simply make such pods."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "calm", "namespace": space},
        "spec": {
            "priorityClassName": high,
            "preemptionPolicy": "Never",
            "containers": [{"name": "c", "image": "localhost/none"}],
        },
    }
    assert "PreemptionPolicy (Never) must not be provided in pod spec" in kubectl.refused(pod)


@pytest.mark.timeout(300)
def test_a_lower_one_drains_and_the_scheduler_ends_nobody(
    kubectl: Kubectl, nodes: OwnNodes, high: str, space: str
) -> None:
    kubectl.apply(simulated(space, "low", L40S, pod=nodes.pod, replicas=4))
    wait_ready(kubectl, space, "low")

    urgent = simulated(space, "urgent", L40S, pod={**nodes.pod, "priorityClassName": high}, replicas=2)
    kubectl.apply(urgent)
    seen: list[tuple[int, int]] = []

    def settled() -> bool:
        low, top = (alive(kubectl, space, name) for name in ("low", "urgent"))
        # One list: between two of them, a pod may end and its successor get the node.
        bound = [pod for pod in kubectl.list("pods", space) if pod["spec"].get("nodeName")]
        seen.append((len(low), len(top)))
        assert len(bound) <= 4
        assert not preemptions(kubectl, space)
        return (len(low), len(top)) == (2, 2)

    wait_for("two of each", settled, 120, every=0.3)
    print(f"(low, urgent): {sorted(set(seen), reverse=True)}")
    wait_ready(kubectl, space, "urgent")
    waiting = wait_condition(kubectl, space, "low", ("ScalingLimited", "True", "WaitingForGpus"), 60)
    assert waiting["status"]["scaling"]["granted"] == 2
    assert waiting["status"]["scaling"]["wanted"] == 4

    def told() -> bool:
        conditions = (kubectl.get("qd", "low", space) or {})["status"]["conditions"]
        words = "the GPUs suffice for 2 of 4 wanted replicas; the rest is used by urgent"
        return any(words in condition["message"] for condition in conditions)

    wait_for("the status says who has the rest", told, 30)
    assert preemptions(kubectl, space) == []
    hosts = {pod["spec"]["nodeSelector"].get("kubernetes.io/hostname") for pod in alive(kubectl, space, "urgent")}
    assert hosts <= set(nodes.names)

    kubectl.run("delete", "qd", "urgent", "-n", space)
    kubectl.run("wait", "qd/low", "-n", space, "--for=jsonpath={.status.readyReplicas}=4", "--timeout=60s")
    assert preemptions(kubectl, space) == []

    # What the operator keeps from happening: the scheduler ends a replica for a pod that does not wait for its room.
    kubectl.apply(plain(space, "rude", nodes, {"nvidia.com/gpu": "1"}, {"priorityClassName": high}))
    wait_for("a replica is ended", lambda: preemptions(kubectl, space), 60)


@pytest.mark.timeout(300)
def test_gpus_and_memory_of_pods_of_others_count(kubectl: Kubectl, nodes: OwnNodes, high: str, space: str) -> None:
    """The operator does not watch them. On the first node they have a GPU, on the second nearly all memory."""
    taking = {"nodeName": nodes.names[0]}, {"nodeName": nodes.names[1]}
    kubectl.apply(plain(space, "gpu", nodes, {"nvidia.com/gpu": "1"}, taking[0]))
    kubectl.apply(plain(space, "memory", nodes, {"memory": "2047Gi"}, taking[1]))
    kubectl.apply(simulated(space, "low", L40S, pod=nodes.pod))
    wait_ready(kubectl, space, "low")
    urgent = simulated(space, "urgent", L40S, pod={**nodes.pod, "priorityClassName": high})
    kubectl.apply(urgent)

    def has_place() -> bool:
        assert not preemptions(kubectl, space)
        return len(alive(kubectl, space, "urgent")) == 1

    wait_for("urgent has the place of low", has_place, 90, every=0.3)
    wait_ready(kubectl, space, "urgent")
    assert alive(kubectl, space, "low") == []
    assert [pod["spec"]["nodeName"] for pod in alive(kubectl, space, "urgent")] == [nodes.names[0]]
    assert preemptions(kubectl, space) == []
