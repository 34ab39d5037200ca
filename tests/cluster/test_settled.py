"""What is settled costs no write: neither while nothing happens nor when the same manifest is applied again."""

from __future__ import annotations

import time

import pytest
import yaml

from tests.qd import alive, simulated, wait_load, wait_ready
from tests.testbed.audit import AuditLog
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"


@pytest.fixture
def idle(kubectl: Kubectl, space: str) -> None:
    """A deployment of one replica, Ready, about which nothing more is to be written."""
    kubectl.apply(simulated(space, "own", L4))
    wait_ready(kubectl, space, "own")
    wait_load(kubectl, space, "own")


def test_settled_means_no_write(kubectl: Kubectl, bed: Cluster, release: Release, space: str, idle: None) -> None:
    audit = AuditLog(bed.audit_log)
    time.sleep(20)
    assert [str(write) for write in audit.writes(release.operator_user, space, release.namespace)] == []


# As Argo CD does it: the same manifest, with and without the field `replicas`.
APPLIED = {"argo-1": {}, "argo-2": {"replicas": 2}}


@pytest.mark.timeout(240)
def test_an_apply_every_five_seconds_costs_nothing(
    kubectl: Kubectl, bed: Cluster, release: Release, space: str
) -> None:
    manifests = yaml.safe_dump_all(simulated(space, name, L4, **spec) for name, spec in APPLIED.items())
    command = ("apply", "--server-side", "--field-manager=argocd", "-f", "-")
    kubectl.run(*command, stdin=manifests)
    for name in APPLIED:
        wait_ready(kubectl, space, name)
        wait_load(kubectl, space, name)
    audit = AuditLog(bed.audit_log)

    for _ in range(12):
        kubectl.run(*command, stdin=manifests)
        time.sleep(5)

    writes = [str(write) for write in audit.writes(release.operator_user, space)]
    assert len(writes) <= 1, writes
    assert {name: len(alive(kubectl, space, name)) for name in APPLIED} == {"argo-1": 1, "argo-2": 2}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_idle_minutes_without_a_write(
    kubectl: Kubectl, bed: Cluster, release: Release, space: str, idle: None
) -> None:
    audit = AuditLog(bed.audit_log)
    time.sleep(600)

    writes = audit.writes(release.operator_user, space, release.namespace)
    assert [str(write) for write in writes if (write.verb, write.resource) != ("create", "secrets")] == []
