"""Who sets the size: kubectl scale, the real HorizontalPodAutoscaler, server-side apply, the operator's policy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.qd import MODEL, alive, simulated, wait_condition, wait_ready
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.exporter import Exporter
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"


@pytest.fixture(scope="module")
def nodes(bed: Cluster) -> Iterator[OwnNodes]:
    """Nodes for whose pods the exporter answers."""
    with bed.own_nodes(Pool(L4, gpus=8, nodes=1), answering=True) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def exporter(bed: Cluster, nodes: OwnNodes) -> Iterator[Exporter]:
    with bed.exporter() as exporter:
        yield exporter


def answering(nodes: OwnNodes, space: str, name: str, **spec: Any) -> Manifest:
    """A QwenDeployment whose engines the exporter speaks for."""
    return simulated(space, name, L4, pod=nodes.pod, **spec)


def scaled(kubectl: Kubectl, space: str, name: str, wanted: int, seconds: float = 60) -> Manifest:
    """Wait for the size; returns the object."""

    def probe() -> Manifest | None:
        obj = kubectl.get("qd", name, space) or {}
        shown = obj.get("status", {}).get("scaling", {}).get("wanted")
        return obj if (shown, len(alive(kubectl, space, name))) == (wanted, wanted) else None

    return wait_for(f"{wanted} replicas of {name}", probe, seconds)


def test_the_queue_decides_between_minimum_and_maximum(
    kubectl: Kubectl, nodes: OwnNodes, exporter: Exporter, space: str
) -> None:
    exporter.say(MODEL)
    scaling = {"minReplicas": 1, "maxReplicas": 3, "stabilizationSeconds": 5}
    kubectl.apply(answering(nodes, space, "q", scaling=scaling))
    wait_ready(kubectl, space, "q")
    wait_condition(kubectl, space, "q", ("ScalingActive", "True", "Steady"), 30)

    exporter.say(MODEL, running=30, queued=400, tokens=90_000)

    obj = scaled(kubectl, space, "q", 3)
    assert condition(obj, "ScalingLimited")["status"] == "True"
    assert "400 queued" in obj["status"]["scaling"]["message"]
    exporter.say(MODEL)
    obj = scaled(kubectl, space, "q", 1)
    assert condition(obj, "ScalingLimited") == {}


@pytest.mark.slow
def test_a_schedule_sets_the_minimum_until_its_end(
    kubectl: Kubectl, nodes: OwnNodes, exporter: Exporter, space: str
) -> None:
    exporter.say(MODEL)
    now = datetime.now(UTC)
    start, end = now - timedelta(minutes=2), now + timedelta(seconds=120)
    day = {"name": "day", "start": f"{start:%M %H} * * *", "end": f"{end:%M %H} * * *", "minReplicas": 2}
    kubectl.apply(
        answering(nodes, space, "d", scaling={"maxReplicas": 3, "stabilizationSeconds": 5, "schedules": [day]})
    )

    obj = scaled(kubectl, space, "d", 2)
    assert obj["status"]["scaling"]["schedules"] == ["day"]
    sets = "the schedule day sets minReplicas 2 and maxReplicas 3 until"
    assert sets in condition(obj, "ScalingActive")["message"]
    obj = scaled(kubectl, space, "d", 1, 200)
    assert "schedules" not in obj["status"]["scaling"]


FAULTS = {"another model": "MetricsInvalid", "401": "MetricsUnauthorized"}


@pytest.mark.parametrize("fault", FAULTS)
def test_without_metrics_the_size_is_held_and_the_reason_is_said(
    kubectl: Kubectl, nodes: OwnNodes, exporter: Exporter, space: str, fault: str
) -> None:
    exporter.say(MODEL, running=4, queued=4)
    scaling = {"maxReplicas": 2, "stabilizationSeconds": 0}
    kubectl.apply(answering(nodes, space, "m", scaling=scaling))
    scaled(kubectl, space, "m", 2)
    try:
        if fault == "401":
            exporter.refuse()
        else:
            exporter.forget(MODEL)
        obj = wait_condition(kubectl, space, "m", ("ScalingActive", "False", FAULTS[fault]), 30)
        assert obj["status"]["scaling"]["wanted"] == 2
        assert len(alive(kubectl, space, "m")) == 2
    finally:
        exporter.refuse(refused=False)
        exporter.say(MODEL)
    # It can be read again, and is idle: only now one goes.
    scaled(kubectl, space, "m", 1)


def test_an_engine_with_a_page_of_4_mb_keeps_no_other_from_being_scaled(
    kubectl: Kubectl, nodes: OwnNodes, exporter: Exporter, space: str
) -> None:
    exporter.say(MODEL)
    scaling = {"maxReplicas": 2, "stabilizationSeconds": 5}
    kubectl.apply(*(answering(nodes, space, name, scaling=scaling) for name in ("bad", "good")))
    for name in ("bad", "good"):
        wait_ready(kubectl, space, name)
    [pod] = alive(kubectl, space, "bad")
    try:
        exporter.flood(pod["status"]["podIP"])
        wait_condition(kubectl, space, "bad", ("ScalingActive", "False", "MetricsInvalid"), 30)
        exporter.say(MODEL, running=30, queued=400, tokens=90_000)
        scaled(kubectl, space, "good", 2)
        assert len(alive(kubectl, space, "bad")) == 1
    finally:
        exporter.flood()
        exporter.say(MODEL)


def test_a_number_that_is_set_wins_and_says_by_whom(
    kubectl: Kubectl, nodes: OwnNodes, exporter: Exporter, space: str
) -> None:
    exporter.say(MODEL)
    kubectl.apply(answering(nodes, space, "s", scaling={"maxReplicas": 4}))
    wait_ready(kubectl, space, "s")

    kubectl.run("scale", "qd", "s", "-n", space, "--replicas=2")

    obj = scaled(kubectl, space, "s", 2)
    active = condition(obj, "ScalingActive")
    assert (active["status"], active["reason"]) == ("False", "ReplicasSet")
    assert "kubectl scale" in active["message"]
    kubectl.run("patch", "qd", "s", "-n", space, "--type=json", "-p", '[{"op":"remove","path":"/spec/replicas"}]')
    wait_condition(kubectl, space, "s", ("ScalingActive", "True", "Steady"), 30)
    assert len(alive(kubectl, space, "s")) == 2, "handing back changes no size by itself"


def test_the_real_autoscaler_scales_by_the_subresource(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(simulated(space, "h", L4, replicas=1))
    wait_ready(kubectl, space, "h")
    target = {"apiVersion": "qwen-operator.dev/v1alpha1", "kind": "QwenDeployment", "name": "h"}
    metric = {"type": "External", "external": {"metric": {"name": "none"}, "target": {"type": "Value", "value": "1"}}}
    kubectl.apply(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "namespace": space},
            "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3, "metrics": [metric]},
        }
    )

    obj = scaled(kubectl, space, "h", 2)

    assert obj["spec"]["replicas"] == 2
    assert "kube-controller-manager" in condition(obj, "ScalingActive")["message"]
