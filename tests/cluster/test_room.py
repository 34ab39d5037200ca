"""No room, no node, no quota: what is waited for is said, and it goes on by itself."""

from __future__ import annotations

import json

import pytest

from tests.qd import events, pods, simulated, wait_condition, wait_ready
from tests.testbed.audit import AuditLog
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, condition
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"


def quota(space: str, gpus: int) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": space},
        "spec": {"hard": {"requests.nvidia.com/gpu": str(gpus)}},
    }


def test_a_quota_is_named_before_a_pod_is_made(kubectl: Kubectl, bed: Cluster, release: Release, space: str) -> None:
    kubectl.apply(quota(space, 0))
    kubectl.run("wait", "quota/gpus", "-n", space, "--for=jsonpath={.status.hard}", "--timeout=30s")
    audit = AuditLog(bed.audit_log)

    kubectl.apply(simulated(space, "two", L4, replicas=2))

    obj = wait_condition(kubectl, space, "two", ("Ready", "False", "QuotaExceeded"), 30)
    message = condition(obj, "Ready")["message"]
    assert all(word in message for word in ('"gpus"', "allows 0 requests.nvidia.com/gpu", "needs 1")), message
    assert ("Warning", "QuotaExceeded") in events(kubectl, space, "two")
    assert [str(w) for w in audit.writes(release.operator_user, space) if w.code == 403] == []
    kubectl.apply(quota(space, 2))
    wait_ready(kubectl, space, "two")
    assert len(pods(kubectl, space, "two")) == 2


@pytest.mark.alone
@pytest.mark.timeout(240)
def test_a_declared_pool_without_nodes_is_waited_for(
    kubectl: Kubectl, bed: Cluster, release: Release, space: str
) -> None:
    pool = {"name": "h200", "product": "NVIDIA-H200", "memoryMiB": 143771, "gpusPerNode": 8}
    install(bed, "--set-json", f"gpuPools={json.dumps([pool])}")
    try:
        kubectl.apply(simulated(space, "far", "NVIDIA-H200"))
        obj = wait_condition(kubectl, space, "far", ("Ready", "False", "WaitingForNode"), 60)
        assert "h200" in condition(obj, "Ready")["message"].lower()
        with bed.own_nodes(Pool("NVIDIA-H200", gpus=8, nodes=1), exclusive=False):
            wait_ready(kubectl, space, "far")
    finally:
        install(bed)
