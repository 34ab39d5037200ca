"""One tenant's hostile object and one hostile engine on the real API server: the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.qd import pods, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"
LEVELS = 1100


def create_deep(kubectl: Kubectl, space: str, name: str, folder: Path) -> None:
    """Create an object whose affinity has LEVELS levels. Neither kubectl's YAML nor Python's JSON can write it."""
    text = json.dumps(simulated(space, name, L4, pod={"affinity": {"nodeAffinity": "DEEP"}}))
    file = folder / f"{name}.json"
    file.write_text(text.replace('"DEEP"', '{"a":' * LEVELS + "{}" + "}" * LEVELS))
    kubectl.run(
        "create", "--raw", f"/apis/qwen-operator.dev/v1alpha1/namespaces/{space}/qwendeployments", "-f", str(file)
    )


def planned(kubectl: Kubectl, space: str, name: str) -> str:
    """The reason and message of Planned. Not as JSON: the object is too deep for Python's decoder."""
    path = '{range .status.conditions[?(@.type=="Planned")]}{.reason}: {.message}{end}'
    return kubectl.run("get", "qd", name, "-n", space, "-o", f"jsonpath={path}")


def restarts(kubectl: Kubectl, release: Release) -> dict[str, int]:
    """How often each container of the release has restarted. Pods of a rollout that still ends do not count."""
    return {
        f"{pod['metadata']['name']}/{container['name']}": container["restartCount"]
        for pod in kubectl.list("pods", release.namespace)
        if "deletionTimestamp" not in pod["metadata"]
        for container in pod["status"].get("containerStatuses", ())
    }


def test_a_deep_object_gets_its_status_and_the_others_are_served(
    kubectl: Kubectl, space: str, release: Release, tmp_path: Path
) -> None:
    before = restarts(kubectl, release)
    create_deep(kubectl, space, "deep", tmp_path)
    wait_for("the deep object is told", lambda: "InvalidSpec" in planned(kubectl, space, "deep"), 60)
    message = planned(kubectl, space, "deep")
    assert "spec.pod.affinity: the object has more than 32 levels, it must have at most 32" in message
    kubectl.apply(simulated(space, "good", L4))
    wait_ready(kubectl, space, "good")
    assert restarts(kubectl, release) == before
    kubectl.run("delete", "qd", "deep", "-n", space)


def test_a_hostile_termination_message_does_not_keep_its_object_from_being_changed(
    kubectl: Kubectl, space: str, release: Release
) -> None:
    kubectl.apply(simulated(space, "own", L4))
    wait_ready(kubectl, space, "own")
    [pod] = pods(kubectl, space, "own")
    [engine] = [item for item in pod["status"]["containerStatuses"] if item["name"] == "engine"]
    end = {"exitCode": 1, "reason": "Error", "message": "[" * 4000, "finishedAt": "2026-11-24T12:00:00Z"}
    status = {
        "containerStatuses": [{**engine, "ready": False, "lastState": {"terminated": end}, "restartCount": 1}],
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
    }
    name = pod["metadata"]["name"]
    kubectl.run(
        "patch",
        "pod",
        name,
        "-n",
        space,
        "--subresource=status",
        "--type=strategic",
        "-p",
        json.dumps({"status": status}),
    )
    wait_condition(kubectl, space, "own", ("Ready", "False", "Unknown"))
    kubectl.apply(simulated(space, "other", L4))
    wait_ready(kubectl, space, "other")
    kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for("the pod is removed", lambda: not pods(kubectl, space, "own"), 90)
