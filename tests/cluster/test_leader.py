"""Two operators, one Lease: the other goes on where the leader stopped, and never do both write."""

from __future__ import annotations

import signal
import time

import pytest

from tests.qd import leader, pods, simulated, wait_ready
from tests.testbed.audit import AuditLog
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.processes import frozen, pods_processes, send

pytestmark = [pytest.mark.cluster, pytest.mark.alone]
A100 = "NVIDIA-A100-SXM4-80GB"
PROGRAM = "qwen-operator run"


def settled(kubectl: Kubectl, release: Release) -> None:
    kubectl.run("rollout", "status", f"deployment/{release.operator}", "-n", release.namespace, "--timeout=120s")


@pytest.mark.timeout(240)
def test_a_frozen_leader_is_followed_and_writes_no_more(
    kubectl: Kubectl, bed: Cluster, release: Release, space: str
) -> None:
    kubectl.apply(simulated(space, "before", A100))
    wait_ready(kubectl, space, "before")
    old = leader(kubectl, release)
    processes = pods_processes(old["metadata"]["uid"], PROGRAM)
    with frozen(processes):
        stopped = time.monotonic()
        kubectl.apply(simulated(space, "after", A100))
        wait_for("the other makes the new pod", lambda: pods(kubectl, space, "after"), 40, every=0.2)
        seconds = time.monotonic() - stopped
        print(f"the new object's pod exists {seconds:.1f} s after the leader stopped")
        assert leader(kubectl, release)["metadata"]["name"] != old["metadata"]["name"]
        # It goes on as soon as the other leads: all that it began before is the most recent.
        audit = AuditLog(bed.audit_log)
    wait_for("the old leader's process ends", lambda: not _alive(old, processes), 30)
    time.sleep(2)
    mine = [r for r in audit.read() if r.user == release.operator_user and old["metadata"]["name"] in r.pod]
    assert [str(r) for r in mine if r.verb not in {"get", "list", "watch"}] == []
    assert seconds <= 25
    settled(kubectl, release)


def _alive(pod: Manifest, processes: list[int]) -> bool:
    return bool(set(pods_processes(pod["metadata"]["uid"], PROGRAM)) & set(processes))


@pytest.mark.timeout(300)
def test_a_leader_killed_in_a_burst_leaves_no_pod_double_or_missing(
    kubectl: Kubectl, release: Release, space: str
) -> None:
    names = [f"burst-{number}" for number in range(6)]
    old = leader(kubectl, release)
    kubectl.apply(*(simulated(space, name, A100) for name in names))
    wait_for("the burst has begun", lambda: any(pods(kubectl, space, name) for name in names), 30, every=0.05)
    send(pods_processes(old["metadata"]["uid"], PROGRAM), signal.SIGKILL)

    for name in names:
        wait_ready(kubectl, space, name, timeout=120)
    counts = [len(pods(kubectl, space, name)) for name in names]
    assert counts == [1] * len(names)
    settled(kubectl, release)
