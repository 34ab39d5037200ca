"""Engines that die, each in its own way: the cause is in the status, and what goes on dying is stalled."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.qd import events, pods, qd, wait_condition, wait_ready
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.processes import pods_processes, send

pytestmark = pytest.mark.e2e
TINY: dict[str, Any] = {"source": {"uri": "pvc://models/tiny-qwen2"}}


def failure(kubectl: Kubectl, space: str, name: str) -> Manifest:
    last: Manifest = (kubectl.get("qd", name, space) or {}).get("status", {}).get("lastFailure") or {}
    return last


def died(kubectl: Kubectl, space: str, name: str, timeout: float) -> Manifest:
    death = wait_for(f"{name} dies", lambda: failure(kubectl, space, name) or None, timeout)
    print(kubectl.run("get", "qd", name, "-n", space, "-o", "wide"))
    return death


@pytest.mark.timeout(400)
def test_a_bad_value_of_an_option_is_a_crash_loop_with_its_cause(kubectl: Kubectl, claim_space: str) -> None:
    engine = {"args": ["--schedule-policy=nonsense"]}
    kubectl.apply(qd(claim_space, "flag", model="e2e-flag", engine=engine, **TINY))

    death = died(kubectl, claim_space, "flag", 180)

    assert (death["reason"], death["exitCode"]) == ("BadFlag", 2)
    assert any("nonsense" in line for line in death["log"])
    obj = wait_condition(kubectl, claim_space, "flag", ("Stalled", "True", "BadFlag"), 240)
    assert "schedule-policy" in obj["status"]["summary"]["message"]
    assert ("Warning", "BadFlag") in events(kubectl, claim_space, "flag")
    kubectl.run("delete", "qd", "flag", "-n", claim_space, "--wait=false")


@pytest.mark.timeout(400)
def test_too_little_memory_for_all_processes_is_said_so(kubectl: Kubectl, claim_space: str) -> None:
    pod = {"resources": {"limits": {"memory": "400Mi"}, "requests": {"memory": "100Mi"}}}
    kubectl.apply(qd(claim_space, "small", model="e2e-small", pod=pod, **TINY))

    death = died(kubectl, claim_space, "small", 180)

    assert death["reason"] == "HostOutOfMemory"
    kubectl.run("delete", "qd", "small", "-n", claim_space, "--wait=false")


@pytest.mark.timeout(600)
def test_a_killed_scheduler_is_no_lack_of_memory_and_comes_back(kubectl: Kubectl, claim_space: str) -> None:
    kubectl.apply(qd(claim_space, "victim", model="e2e-victim", **TINY))
    wait_ready(kubectl, claim_space, "victim", timeout=300)
    [pod] = pods(kubectl, claim_space, "victim")

    send(pods_processes(pod["metadata"]["uid"], "sglang::scheduler"), signal.SIGKILL)

    death = died(kubectl, claim_space, "victim", 120)
    assert (death["reason"], death["phase"]) == ("EngineKilled", "Serving")
    wait_ready(kubectl, claim_space, "victim", timeout=300)
    # A clean end leaves no cause behind.
    before = failure(kubectl, claim_space, "victim")
    kubectl.run("scale", "qd", "victim", "-n", claim_space, "--replicas=0")
    wait_for("no pod", lambda: not pods(kubectl, claim_space, "victim"), 120)
    assert failure(kubectl, claim_space, "victim") == before
    kubectl.run("delete", "qd", "victim", "-n", claim_space, "--wait=false")
