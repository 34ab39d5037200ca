"""One tenant's hostile object, pod or engine on the real API server: the others go on.

A page of 4 MB from an engine is in `test_replicas.py`, which has the engines that answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qd import alive, own_namespace, pods, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, Manifest, wait_for

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"
LEVELS = 1100


@pytest.fixture(scope="module")
def other(kubectl: Kubectl, release: Release) -> Iterator[str]:
    """The namespace of another tenant, whose QwenDeployment `other` has been serving."""
    with own_namespace(kubectl, "t") as space:
        kubectl.apply(simulated(space, "other", L4, replicas=1))
        wait_ready(kubectl, space, "other")
        yield space


@pytest.fixture
def others_go_on(kubectl: Kubectl, release: Release, other: str) -> Iterator[Callable[[], None]]:
    """The operator acts on an edit of the other tenant's object within seconds. In the whole test nothing restarts."""

    def own() -> int:
        return sum("ownerReferences" in pod["metadata"] for pod in alive(kubectl, other, "other"))

    def reconciled() -> None:
        wanted = 3 - own()
        kubectl.run("scale", "qd", "other", "-n", other, f"--replicas={wanted}")
        wait_for(f"the other has {wanted} replicas", lambda: own() == wanted, 20)

    before = restarts(kubectl, release)
    yield reconciled
    assert restarts(kubectl, release) == before


def create(kubectl: Kubectl, space: str, name: str, affinity: str, folder: Path) -> None:
    """Create an object with this JSON as its affinity. Neither kubectl's YAML nor Python's JSON can write any depth."""
    text = json.dumps(simulated(space, name, L4, pod={"affinity": {"nodeAffinity": "HERE"}}))
    file = folder / f"{name}.json"
    file.write_text(text.replace('"HERE"', affinity))
    kubectl.run(
        "create", "--raw", f"/apis/qwen-operator.dev/v1alpha1/namespaces/{space}/qwendeployments", "-f", str(file)
    )


def forged_pod(space: str, name: str, deployment: str) -> Manifest:
    """A pod of nobody's under the operator's labels. It is never scheduled."""
    labels = {"qwen-operator.dev/deployment": deployment, "qwen-operator.dev/role": "engine"}
    container: Manifest = {
        "name": "engine",
        "image": "example.invalid/engine",
        "args": [f"--max-running-requests={'9' * 5000}"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": labels},
        "spec": {
            "schedulingGates": [{"name": "example.org/never"}],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


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


LARGE: dict[str, tuple[str, str]] = {
    "deep": (
        '{"a":' * LEVELS + "{}" + "}" * LEVELS,
        "spec.pod.affinity: the object has more than 32 levels, it must have at most 32",
    ),
    "large": (
        json.dumps({"a": ["x" * 1000] * 1000}),
        "spec.pod.affinity: the object has 1000013 characters, it must have at most 16384",
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_an_object_without_bounds_gets_its_status_and_the_others_are_served(
    kubectl: Kubectl, space: str, others_go_on: Callable[[], None], tmp_path: Path, name: str
) -> None:
    affinity, problem = LARGE[name]
    create(kubectl, space, name, affinity, tmp_path)
    wait_for("its status says why it is refused", lambda: "InvalidSpec" in planned(kubectl, space, name), 60)
    assert problem in planned(kubectl, space, name)
    others_go_on()
    kubectl.run("delete", "qd", name, "-n", space)


def test_a_forged_pod_ends_no_loop(kubectl: Kubectl, space: str, other: str, others_go_on: Callable[[], None]) -> None:
    kubectl.apply(simulated(space, "own", L4, scaling={"maxReplicas": 2}))
    wait_ready(kubectl, space, "own")
    kubectl.apply(forged_pod(space, "forged", "own"), forged_pod(other, "forged", "other"))
    others_go_on()
    kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for(
        "only the forged pod is left",
        lambda: [pod["metadata"]["name"] for pod in pods(kubectl, space, "own")] == ["forged"],
        60,
    )
    kubectl.run("delete", "pod", "forged", "-n", other)


MESSAGES: dict[str, str] = {
    "brackets": "[" * 4000,
    # The decoder makes lone surrogates of these escapes, which UTF-8 cannot encode.
    "surrogates": json.dumps({"reason": "Unknown", "phase": "\udfff", "log": ["\ud800"]}),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_hostile_termination_message_does_not_keep_its_object_from_being_changed(
    kubectl: Kubectl, space: str, others_go_on: Callable[[], None], message: str
) -> None:
    kubectl.apply(simulated(space, "own", L4))
    wait_ready(kubectl, space, "own")
    [pod] = pods(kubectl, space, "own")
    kubectl.run(
        "patch",
        "pod",
        pod["metadata"]["name"],
        "-n",
        space,
        "--subresource=status",
        "--type=strategic",
        "-p",
        json.dumps({"status": ended(pod, MESSAGES[message])}),
    )
    wait_condition(kubectl, space, "own", ("Ready", "False", "Unknown"))
    others_go_on()
    kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for("the pod is removed", lambda: not pods(kubectl, space, "own"), 90)


def ended(pod: Manifest, message: str) -> dict[str, Any]:
    """The status of a pod whose engine has ended once, with this termination message."""
    [engine] = [item for item in pod["status"]["containerStatuses"] if item["name"] == "engine"]
    end = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-11-24T12:00:00Z"}
    return {
        "containerStatuses": [{**engine, "ready": False, "lastState": {"terminated": end}, "restartCount": 1}],
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
    }
