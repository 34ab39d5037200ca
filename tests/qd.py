"""Short ways to write and to read QwenDeployments in tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.ownership import owned

MODEL = "Qwen/Qwen1.5-0.5B-Chat"
"""What simulated engines serve, unless a test says otherwise."""

SIMULATED = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
"""Tolerations that let a pod run on the simulated nodes."""


@contextmanager
def own_namespace(kubectl: Kubectl, prefix: str) -> Iterator[str]:
    """A new namespace under the restricted profile, deleted at the end of the block."""
    name = f"{prefix}-{uuid4().hex[:8]}"
    kubectl.namespace(name, {"pod-security.kubernetes.io/enforce": "restricted", **owned()})
    try:
        yield name
    finally:
        kubectl.run("delete", "namespace", name, "--wait=false")


def qd(namespace: str, name: str, **spec: Any) -> Manifest:
    """A QwenDeployment; `spec` has at least `model`."""
    return {
        "apiVersion": "qwen-operator.dev/v1alpha1",
        "kind": "QwenDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def simulated(namespace: str, name: str, product: str, **spec: Any) -> Manifest:
    """One whose engine pods go to the simulated nodes of one GPU product."""
    pod = {"tolerations": SIMULATED, **spec.pop("pod", {})}
    spec.setdefault("model", MODEL)
    # Names are cluster-wide: a name of its own keeps the tests out of each other's way.
    spec.setdefault("servedNames", [f"{namespace}-{name}"])
    # Nothing answers at a simulated pod: a drain would wait for it to the end of its time.
    spec.setdefault("rollout", {"drainSeconds": 3})
    return qd(namespace, name, hardware={"products": [product]}, pod=pod, **spec)


def wait_condition(
    kubectl: Kubectl, namespace: str, name: str, want: tuple[str, str, str], timeout: float = 60
) -> Manifest:
    """Wait until the condition `want` = (type, status, reason) is there; returns the object."""
    kind, status, reason = want

    def probe() -> Manifest | None:
        obj = kubectl.get("qd", name, namespace)
        shown = condition(obj, kind)
        if shown.get("status") == status and shown.get("reason") == reason:
            return obj
        return None

    try:
        return wait_for(f"{name} {kind}={status}/{reason}", probe, timeout)
    except TimeoutError as error:
        obj = kubectl.get("qd", name, namespace) or {}
        raise TimeoutError(f"{error}; conditions: {obj.get('status', {}).get('conditions')}") from None


def wait_ready(kubectl: Kubectl, namespace: str, name: str, timeout: float = 60) -> Manifest:
    return wait_condition(kubectl, namespace, name, ("Ready", "True", "Serving"), timeout)


def wait_load(kubectl: Kubectl, namespace: str, name: str) -> None:
    """Wait for the last news of a deployment that has become Ready: its load, or that no engine tells it."""
    load = ("jsonpath={.status.summary.load}", "-n", namespace)
    wait_for("the load is shown", lambda: kubectl.run("get", "qd", name, "-o", *load) != "-", 60)
    # A status that merely differs in words may be written five seconds later.
    time.sleep(6)


def pods(kubectl: Kubectl, namespace: str, name: str) -> list[Manifest]:
    """Its engine pods of all ranks, sorted by name."""
    labels = f"qwen-operator.dev/deployment={name},qwen-operator.dev/role in (engine,engine-worker)"
    items = kubectl.list("pods", namespace, labels)
    return sorted(items, key=lambda pod: str(pod["metadata"]["name"]))


def alive(kubectl: Kubectl, namespace: str, name: str) -> list[Manifest]:
    """Its engine pods that are not being deleted."""
    return [pod for pod in pods(kubectl, namespace, name) if "deletionTimestamp" not in pod["metadata"]]


def events(kubectl: Kubectl, namespace: str, name: str) -> set[tuple[str, str]]:
    """(type, reason) of the Events about one QwenDeployment."""
    items = kubectl.list("events", namespace)
    return {(e["type"], e["reason"]) for e in items if e["involvedObject"].get("name") == name}


def leader(kubectl: Kubectl, release: Release) -> Manifest:
    """The operator pod that holds the Lease."""

    def probe() -> Manifest | None:
        lease = kubectl.get("lease", release.operator, release.namespace) or {}
        holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
        return kubectl.get("pod", holder.partition("_")[0], release.namespace) if holder else None

    return wait_for("a leader", probe, 60)
