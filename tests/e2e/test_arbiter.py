"""Two priorities and two free GPUs, with real engines: the lower one gives up a replica, and no request is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.timeline import Timeline
from tests.e2e.traffic import Trickle, flowing, short_answer, stream
from tests.qd import alive, qd, wait_condition, wait_ready
from tests.testbed import images
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.simulated import REAL_NODE_GPUS

pytestmark = pytest.mark.e2e
LOW, URGENT = "e2e-low", "e2e-urgent"
FREE_GPUS = 2
TOKENS = 300


@pytest.fixture
def taken(kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """A pod of somebody else has all GPUs of the node but two. The operator does not watch it."""
    resources = {"nvidia.com/gpu": str(REAL_NODE_GPUS - FREE_GPUS)}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "other", "namespace": claim_space},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "other",
                        "image": images.operator_image(),
                        "command": ["sleep", "3600"],
                        "resources": {"limits": resources, "requests": resources},
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ],
            },
        }
    )
    yield "other"
    kubectl.run("delete", "pod", "other", "-n", claim_space, "--wait=false")


def deployment(space: str, name: str, model: str, **spec: object) -> Manifest:
    source = {"uri": "pvc://models/tiny-qwen2"}
    return qd(space, name, model=model, source=source, rollout={"drainSeconds": 120}, **spec)


@pytest.mark.timeout(580)
def test_the_lower_one_gives_up_a_replica_and_loses_no_request(
    kubectl: Kubectl, gateway: Gateway, claim_space: str, taken: str, high: str
) -> None:
    line = Timeline()

    def shown(name: str) -> str:
        status = (kubectl.get("qd", name, claim_space) or {}).get("status", {})
        scaling = status.get("scaling") or {}
        granted = scaling.get("granted", scaling.get("wanted"))
        pods, ready = len(alive(kubectl, claim_space, name)), status.get("readyReplicas", 0)
        return f"{name}: wanted {scaling.get('wanted')}, granted {granted}, pods {pods}, ready {ready}"

    def note(text: str) -> None:
        line.note(f"{text}  [{shown('low')} | {shown('urgent')}]")

    kubectl.apply(deployment(claim_space, "low", LOW, replicas=FREE_GPUS))
    wait_ready(kubectl, claim_space, "low", timeout=300)
    note("both GPUs serve the lower one")
    flow = [Trickle(lambda: short_answer(gateway, LOW)), Trickle(lambda: stream(gateway, LOW, TOKENS))]
    with flowing(flow):
        urgent = deployment(claim_space, "urgent", URGENT, replicas=1, pod={"priorityClassName": high})
        kubectl.apply(urgent)
        wait_condition(kubectl, claim_space, "urgent", ("Ready", "False", "WaitingForGpus"), 60)
        note("the higher one waits")
        assert len(alive(kubectl, claim_space, "urgent")) == 0

        def placed() -> bool:
            both = len(alive(kubectl, claim_space, "low")), len(alive(kubectl, claim_space, "urgent"))
            assert both in ((2, 0), (1, 0), (1, 1)), both
            return both == (1, 1)

        wait_for("the higher one has the GPU", placed, 180, every=0.2)
        note("the drain is over, and the pod of the higher one exists")
        wait_ready(kubectl, claim_space, "urgent", timeout=240)
        note("the higher one serves")
    answered, lost = sum(one.answered for one in flow), [what for one in flow for what in one.lost]
    line.note(f"{answered} requests of the lower one were answered, {len(lost)} lost: {lost}")
    assert answered
    assert not lost
    assert not short_answer(gateway, URGENT)
    events = kubectl.list("events", claim_space)
    assert not [event for event in events if event.get("reason") == "Preempted"]

    kubectl.run("delete", "qd", "urgent", "-n", claim_space)
    two = (f"--for=jsonpath={{.status.readyReplicas}}={FREE_GPUS}", "--timeout=200s")
    kubectl.run("wait", "qd/low", "-n", claim_space, *two, timeout=220)
    note("the GPU is back")
    kubectl.run("delete", "qd", "low", "-n", claim_space)
