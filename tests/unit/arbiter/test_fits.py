"""What the operator checks before it sends a pod to a node."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from qwen_operator.arbiter.fits import depends_on_pods, lacking, requested
from qwen_operator.arbiter.priorities import Priorities
from qwen_operator.manifests.names import LABEL_REPLICA, Manifest
from tests.unit.arbiter.test_worlds import priority_class
from tests.unit.world import deployment

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pod(*containers: Manifest, init: tuple[Manifest, ...] = (), **spec: Any) -> Manifest:
    return {"spec": {"containers": list(containers), "initContainers": list(init), **spec}, "status": {}}


def container(sidecar: bool = False, **requests: str) -> Manifest:
    return {"resources": {"requests": requests}, **({"restartPolicy": "Always"} if sidecar else {})}


@pytest.mark.parametrize(
    ("one", "cpu"),
    [
        (pod(container(cpu="500m"), container(cpu="1")), "1.5"),
        (pod(container(cpu="1"), init=(container(cpu="3"), container(cpu="2"))), "3"),
        (pod(container(cpu="1"), init=(container(sidecar=True, cpu="1"), container(cpu="3"))), "4"),
        (pod(container(cpu="2"), init=(container(cpu="1"), container(sidecar=True, cpu="1"))), "3"),
        (pod(container(cpu="1"), overhead={"cpu": "250m"}), "1.25"),
        (pod({"resources": {"limits": {"cpu": "2"}}}), "2"),
        (pod(container(cpu="none")), "0"),
    ],
)
def test_what_a_pod_takes(one: Manifest, cpu: str) -> None:
    assert requested(one).get("cpu", Decimal(0)) == Decimal(cpu)
    assert requested(one)["pods"] == 1


@pytest.mark.parametrize(
    ("running", "fits"),
    [
        ([], True),
        ([pod(container(memory="5Gi"))], True),
        ([pod(container(memory="6Gi"))], False),
        ([pod(container()), pod(container()), pod(container())], False),
        ([{**pod(container(memory="8Gi")), "status": {"phase": "Succeeded"}}], True),
    ],
)
def test_room_on_a_node(running: list[Manifest], fits: bool) -> None:
    node = {"status": {"allocatable": {"memory": "8Gi", "pods": "3"}}}
    assert (lacking(node, running, [pod(container(memory="3Gi"))]) == "") is fits


def test_one_pod_of_a_node_is_on_its_network() -> None:
    node = {"status": {"allocatable": {"pods": "10"}}}
    one, other = pod(hostNetwork=True), pod()
    assert not lacking(node, [one], [other])
    assert lacking(node, [one], [pod(hostNetwork=True)]) == "1 of 1 port 8000 are used, and 1 needed"


@pytest.mark.parametrize(
    ("spec", "depends"),
    [
        ({}, False),
        ({"topologySpreadConstraints": [{"whenUnsatisfiable": "ScheduleAnyway"}]}, False),
        ({"topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule"}]}, True),
        ({"affinity": {"podAntiAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}}, True),
        ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}}, True),
        (
            {"affinity": {"podAntiAffinity": {REQUIRED: [{"labelSelector": {"matchLabels": {LABEL_REPLICA: "a"}}}]}}},
            False,
        ),
        ({"affinity": "text"}, False),
    ],
)
def test_rules_about_other_pods(spec: dict[str, Any], depends: bool) -> None:
    assert depends_on_pods(pod(**spec)) is depends


@pytest.mark.parametrize(
    ("classes", "name", "chart", "value"),
    [
        ([], None, None, 0),
        ([priority_class("high", 9)], "high", None, 9),
        ([priority_class("high", 9)], None, "high", 9),
        ([priority_class("high", 9)], "absent", None, 0),
        ([priority_class("usual", 5, globalDefault=True)], None, None, 5),
        ([priority_class("usual", 5, globalDefault=True)], "absent", None, 0),
        ([priority_class("a", 5, globalDefault=True), priority_class("b", 3, globalDefault=True)], None, None, 3),
        ([priority_class("odd", 2**40)], "odd", None, 0),
        ([{"metadata": {"name": "odd"}, "value": "x", "globalDefault": "x"}], "odd", None, 0),
        ([priority_class("low", -5)], "low", None, -5),
    ],
)
def test_the_priority_of_new_pods(classes: list[Manifest], name: str | None, chart: str | None, value: int) -> None:
    made = deployment(pod={"priorityClassName": name}) if name else deployment(pod="wrong")
    assert Priorities(classes).of(made, chart) == value
