"""The real engine's queue makes replicas and takes them away, and no stream is lost on the way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.timeline import Timeline
from tests.qd import alive, qd, wait_condition, wait_ready
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.processes import frozen, pods_processes

pytestmark = pytest.mark.e2e
MODEL = "e2e-scaled"
SLOTS = 2
TOKENS = 700
"""Length of an answer: with two at once on one core it lasts far longer than the operator takes to see the queue."""


@pytest.fixture(scope="module")
def scaled(kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace of the QwenDeployment `load`: 1 to 2 replicas of two requests at once."""
    spec = {
        "model": MODEL,
        "source": {"uri": "pvc://models/tiny-qwen2"},
        "engine": {"args": [f"--max-running-requests={SLOTS}"]},
        "scaling": {"minReplicas": 1, "maxReplicas": 2, "stabilizationSeconds": 10},
        "rollout": {"drainSeconds": 120},
    }
    kubectl.apply(qd(claim_space, "load", **spec))
    wait_ready(kubectl, claim_space, "load", timeout=300)
    yield claim_space
    kubectl.run("delete", "qd", "load", "-n", claim_space)


def stream(gateway: Gateway) -> str:
    return gateway.stream(MODEL, TOKENS)


def ends(futures: list[Future[str]]) -> list[str]:
    return [future.result(timeout=600) for future in futures]


def scaling(kubectl: Kubectl, space: str) -> Manifest:
    status: Manifest = (kubectl.get("qd", "load", space) or {}).get("status", {}).get("scaling") or {}
    return status


def test_two_streams_change_nothing(kubectl: Kubectl, gateway: Gateway, scaled: str) -> None:
    with ThreadPoolExecutor(SLOTS) as pool:
        running = [pool.submit(stream, gateway) for _ in range(SLOTS)]
        while not all(future.done() for future in running):
            assert len(alive(kubectl, scaled, "load")) == 1
            assert scaling(kubectl, scaled)["wanted"] == 1
            time.sleep(1)
        assert ends(running) == ["length"] * SLOTS


@pytest.mark.timeout(600)
def test_a_queue_makes_a_second_replica_and_its_end_drains_one(kubectl: Kubectl, gateway: Gateway, scaled: str) -> None:
    line, enough = Timeline(), threading.Event()
    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(streams, gateway, enough) for _ in range(6)]
        try:
            line.note("six streams are open from now on")
            seen = wait_for("two are wanted", lambda: _wanted(kubectl, scaled, 2), 30, every=0.2)
            line.note(f"decision: {seen['message']}")
            counted = re.match(r"(\d) queued \+ \d running, 2 run at once per replica", seen["message"])
            # Two looks have to agree, and the first may fall between the arrivals of six requests.
            assert counted
            assert 1 <= int(counted[1]) <= 4
            wait_for("two pods", lambda: len(alive(kubectl, scaled, "load")) == 2, 15)
            line.note("two pods exist")
            arguments = ("--for=jsonpath={.status.readyReplicas}=2", "--timeout=180s")
            kubectl.run("wait", "qd/load", "-n", scaled, *arguments, timeout=200)
            line.note("two replicas answer")
            queue = wait_for("a short queue", lambda: _short(waiting(kubectl, scaled)), 60)
            line.note(f"{queue[0]} wait")
        finally:
            enough.set()
        reasons = [reason for client in clients for reason in client.result(timeout=600)]
        line.note(f"no load any more; {len(reasons)} streams were complete")
        assert set(reasons) == {"length"}
    wait_for("one is wanted", lambda: _wanted(kubectl, scaled, 1), 60)
    line.note("decision: one is enough")
    wait_for("one pod", lambda: len(alive(kubectl, scaled, "load")) == 1, 60)
    line.note("drained to one pod")
    wait_condition(kubectl, scaled, "load", ("ScalingActive", "True", "Steady"), 60)
    assert scaling(kubectl, scaled)["ready"] == 1


def streams(gateway: Gateway, enough: threading.Event) -> list[str]:
    """One stream after the other until it is enough; the last one is read to its end."""
    reasons = []
    while not enough.is_set():
        reasons.append(stream(gateway))
    return reasons


def waiting(kubectl: Kubectl, space: str) -> int:
    """Requests that wait in the engines."""
    total = 0.0
    for pod in alive(kubectl, space, "load"):
        page = httpx.get(f"http://{pod['status']['podIP']}:8000/metrics", timeout=10).text
        total += sum(float(queued) for queued in re.findall(r"^sglang:num_queue_reqs{.*} (\S+)$", page, re.MULTILINE))
    return int(total)


def _short(queue: int) -> tuple[int] | None:
    print(f"{queue} wait")
    return (queue,) if queue <= 2 else None


def _wanted(kubectl: Kubectl, space: str, number: int) -> Manifest | None:
    status = scaling(kubectl, space)
    return status if status.get("wanted") == number else None


@pytest.mark.timeout(300)
def test_a_frozen_scheduler_holds_the_size(kubectl: Kubectl, scaled: str) -> None:
    [pod] = wait_for("one pod", lambda: engines if len(engines := alive(kubectl, scaled, "load")) == 1 else None, 120)
    with frozen(pods_processes(pod["metadata"]["uid"], "sglang::scheduler")):
        obj = wait_condition(kubectl, scaled, "load", ("ScalingActive", "False", "MetricsFrozen"), 30)
        assert obj["status"]["scaling"]["wanted"] == 1
        assert [p["metadata"]["uid"] for p in alive(kubectl, scaled, "load")] == [pod["metadata"]["uid"]]
    wait_condition(kubectl, scaled, "load", ("ScalingActive", "True", "Steady"), 60)


@pytest.mark.timeout(400)
def test_the_status_shows_that_streams_waited_for_too_long(kubectl: Kubectl, scaled: str) -> None:
    """Of the six streams at once, four had to wait for a slot for longer than two seconds. The status follows within
    five minutes."""
    status = wait_for("a percentage below the objective", lambda: _missed(kubectl, scaled), 330, every=2)
    print(f"of 100 requests kept the objective: {status['attainmentPercent']}")
    assert status["attainmentPercent"]["day"] < 99


def _missed(kubectl: Kubectl, space: str) -> Manifest | None:
    status = scaling(kubectl, space)
    return status if status.get("attainmentPercent", {}).get("hour", 100) < 99 else None
