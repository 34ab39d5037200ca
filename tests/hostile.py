"""Hostile objects, pods and reports of one tenant, and a neighbour who must not notice them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.qd import alive, simulated, wait_ready
from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, Manifest, wait_for

L4 = "NVIDIA-L4"
LEVELS = 1100

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
"""Affinities as JSON, and what the status of their object must say."""

MESSAGES: dict[str, str] = {
    "brackets": "[" * 4000,
    # The decoder makes lone surrogates of these escapes, which UTF-8 cannot encode.
    "surrogates": json.dumps({"reason": "Unknown", "phase": "\udfff", "log": ["\ud800"]}),
}
"""Termination messages of an engine."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another tenant's QwenDeployment `other`, on simulated nodes."""

    kubectl: Kubectl
    namespace: str

    def start(self) -> None:
        """Make it, and wait until it serves."""
        self.kubectl.apply(simulated(self.namespace, "other", L4, replicas=1))
        wait_ready(self.kubectl, self.namespace, "other")

    def edit(self) -> float:
        """Change its size between 1 and 2. Returns the seconds until the operator acted on it, at most 20."""
        wanted, start = 3 - self._pods(), time.monotonic()
        self.kubectl.run("scale", "qd", "other", "-n", self.namespace, f"--replicas={wanted}")
        wait_for(f"the other has {wanted} replicas", lambda: self._pods() == wanted, 20)
        return time.monotonic() - start

    def _pods(self) -> int:
        """Its own pods: a forged one has no owner."""
        return sum("ownerReferences" in pod["metadata"] for pod in alive(self.kubectl, self.namespace, "other"))


def create(kubectl: Kubectl, space: str, name: str, affinity: str, folder: Path) -> None:
    """Create an object with this JSON as its affinity. Neither kubectl's YAML nor Python's JSON can write any depth."""
    text = json.dumps(simulated(space, name, L4, pod={"affinity": {"nodeAffinity": "HERE"}}))
    file = folder / f"{name}.json"
    file.write_text(text.replace('"HERE"', affinity))
    kubectl.run(
        "create", "--raw", f"/apis/qwen-operator.dev/v1alpha1/namespaces/{space}/qwendeployments", "-f", str(file)
    )


def planned(kubectl: Kubectl, space: str, name: str) -> str:
    """The reason and message of Planned. Not as JSON: the object is too deep for Python's decoder."""
    path = '{range .status.conditions[?(@.type=="Planned")]}{.reason}: {.message}{end}'
    return kubectl.run("get", "qd", name, "-n", space, "-o", f"jsonpath={path}")


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


def end_with(kubectl: Kubectl, pod: Manifest, message: str) -> None:
    """Write into the status of a simulated pod that its engine has ended once, with this termination message."""
    meta = pod["metadata"]
    patch = ("--subresource=status", "--type=strategic", "-p", json.dumps({"status": _ended(pod, message)}))
    kubectl.run("patch", "pod", meta["name"], "-n", meta["namespace"], *patch)


def _ended(pod: Manifest, message: str) -> dict[str, Any]:
    [engine] = [item for item in pod["status"]["containerStatuses"] if item["name"] == "engine"]
    end = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-11-24T12:00:00Z"}
    return {
        "containerStatuses": [{**engine, "ready": False, "lastState": {"terminated": end}, "restartCount": 1}],
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
    }


def restarts(kubectl: Kubectl, release: Release) -> dict[str, int]:
    """How often each container of the release has restarted. Pods of a rollout that still ends do not count."""
    return {
        f"{pod['metadata']['name']}/{container['name']}": container["restartCount"]
        for pod in kubectl.list("pods", release.namespace)
        if "deletionTimestamp" not in pod["metadata"]
        for container in pod["status"].get("containerStatuses", ())
    }
