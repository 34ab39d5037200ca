"""Fixtures of the tests that need the test bed. Nothing of it is started unless a test asks for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

from tests.qd import own_namespace
from tests.testbed.audit import AuditLog
from tests.testbed.bed import Release, bring_up, install
from tests.testbed.cluster import Cluster
from tests.testbed.evidence import evidence
from tests.testbed.kubectl import Kubectl

# Hypothesis allows an example 200 ms of wall-clock time: on a busy machine that measures the other processes.
hypothesis.settings.register_profile("busy-machine", deadline=None)
hypothesis.settings.load_profile("busy-machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test on the test bed shows the operator's log and its namespace."""
    report = yield
    known: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and "kubectl" in known and "release" in known:
        space = known.get("space", known.get("claim_space"))
        seconds = int(report.duration) + 30
        report.sections += list(evidence(known["kubectl"], known["release"], space, seconds))
    return report


@pytest.fixture(scope="session")
def bed() -> Cluster:
    """The running test bed, images and models included."""
    return bring_up()


@pytest.fixture(scope="session")
def kubectl(bed: Cluster) -> Kubectl:
    return Kubectl(bed.bin_dir / "kubectl", bed.kubeconfig)


@pytest.fixture(scope="session")
def release(bed: Cluster, kubectl: Kubectl) -> Release:
    """The chart, installed by Helm with the test bed's values and ready."""
    return install(bed)


@pytest.fixture
def audit(bed: Cluster) -> AuditLog:
    """The audit log from now on."""
    return AuditLog(bed.audit_log)


@pytest.fixture
def space(kubectl: Kubectl, release: Release) -> Iterator[str]:
    """A namespace of its own under the restricted profile, deleted afterwards."""
    with own_namespace(kubectl, "t") as name:
        yield name


@pytest.fixture(scope="session")
def high(kubectl: Kubectl) -> str:
    """A PriorityClass above the default one. kube-scheduler ends pods of others for its pods.

    It stays: tests side by side use it.
    """
    name = "qwen-test-high"
    meta = {"name": name}
    kubectl.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": meta, "value": 1000})
    return name
