"""A model with minReplicas: 0 sleeps, wakes for a request that waits, and sleeps again; no request is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.conftest import Gateway
from tests.qd import alive, qd, wait_condition
from tests.testbed.kubectl import Kubectl, condition, wait_for

pytestmark = pytest.mark.e2e
MODEL = "e2e-sleeper"
IDLE_SECONDS = 30


@pytest.fixture(scope="module")
def space(kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace of the QwenDeployment `sleeper`, which nobody has asked for yet."""
    spec = {
        "model": MODEL,
        "source": {"uri": "pvc://models/tiny-qwen2"},
        "scaling": {"minReplicas": 0, "maxReplicas": 1, "stabilizationSeconds": 0, "idleSeconds": IDLE_SECONDS},
    }
    kubectl.apply(qd(claim_space, "sleeper", **spec))
    yield claim_space
    kubectl.run("delete", "qd", "sleeper", "-n", claim_space)


def asleep(kubectl: Kubectl, space: str, seconds: float) -> None:
    wait_condition(kubectl, space, "sleeper", ("Ready", "True", "Asleep"), seconds)
    wait_for("no pod is left", lambda: not alive(kubectl, space, "sleeper"), 60)


def listed(gateway: Gateway) -> set[str]:
    with gateway.client() as client:
        return {one["id"] for one in client.get("/v1/models").json()["data"]}


def ask(gateway: Gateway) -> httpx.Response:
    return gateway.chat(MODEL, max_tokens=8)


@pytest.mark.timeout(900)
def test_requests_for_a_model_at_zero_wait_and_are_answered(kubectl: Kubectl, gateway: Gateway, space: str) -> None:
    asleep(kubectl, space, 120)
    wait_for("the gateway lists the model that sleeps", lambda: MODEL in listed(gateway), 10)
    for cycle in range(2):
        with ThreadPoolExecutor(8) as pool:
            asked = time.monotonic()
            plain: list[Future[httpx.Response]] = [pool.submit(ask, gateway) for _ in range(6)]
            streams = [pool.submit(gateway.stream, MODEL, 8) for _ in range(2)]
            wait_for("a replica is wanted", lambda: alive(kubectl, space, "sleeper"), 30)
            woken = time.monotonic() - asked
            # The status follows the decision within a moment.
            waking = wait_condition(kubectl, space, "sleeper", ("Ready", "True", "Waking"), 10)
            message = condition(waking, "Ready")["message"]
            print(f"cycle {cycle}: a pod {woken:.1f} s after the first request; {message}")
            assert "when the operator asked for a replica" in message
            assert [future.result().status_code for future in plain] == [200] * 6
            assert [future.result() for future in streams] == ["length"] * 2
            answered = time.monotonic() - asked
        wait_condition(kubectl, space, "sleeper", ("Ready", "True", "Serving"), 30)
        idle = time.monotonic()
        asleep(kubectl, space, IDLE_SECONDS + 60)
        print(f"cycle {cycle}: all answered after {answered:.1f} s, asleep {time.monotonic() - idle:.1f} s later")
        # The bed's load must not decide, only the order: it stays awake for the idle time.
        assert time.monotonic() - idle > IDLE_SECONDS - 10


def test_a_suspended_model_is_not_woken(kubectl: Kubectl, gateway: Gateway, space: str) -> None:
    asleep(kubectl, space, 120)
    kubectl.run("patch", "qd", "sleeper", "-n", space, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_condition(kubectl, space, "sleeper", ("Ready", "False", "Suspended"), 20)
    wait_for("the gateway knows", lambda: ask(gateway).status_code == 503, 10)
    answer = ask(gateway)
    assert answer.json()["error"]["code"] == "model_stopped"
    assert "spec.suspend is true" in answer.json()["error"]["message"]
    assert MODEL not in listed(gateway)
    time.sleep(5)
    assert alive(kubectl, space, "sleeper") == []
