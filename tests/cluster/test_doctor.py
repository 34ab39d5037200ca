"""`qwen-operator doctor` on a real API server: as the test bed is, and made bad in ten ways."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster.admission import without_policy
from tests.qd import simulated, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest

pytestmark = pytest.mark.cluster
PROGRAM = Path(sys.executable).with_name("qwen-operator")
LIMITED_CPU = {"hard": {"limits.cpu": "8"}}
POD_RULES = [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]


def doctor(bed: Cluster, *words: str, kubeconfig: Path | None = None) -> tuple[int, str]:
    """Exit code and output. The program must never print a traceback."""
    command = [str(PROGRAM), "doctor", "--kubeconfig", str(kubeconfig or bed.kubeconfig), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    print(done.stdout + done.stderr)
    return done.returncode, done.stdout + done.stderr


def findings(bed: Cluster, *words: str) -> list[tuple[str, str, str]]:
    """(mark, check, message) of every finding."""
    _, output = doctor(bed, "-o", "json", *words)
    return [(one["mark"], one["check"], one["message"]) for one in json.loads(output)["findings"]]


def has(rows: list[tuple[str, str, str]], mark: str, check: str, *parts: str) -> bool:
    return any(row[:2] == (mark, check) and all(part in row[2] for part in parts) for row in rows)


def test_the_bed_as_it_is_has_no_fault(bed: Cluster, kubectl: Kubectl, release: Release, space: str) -> None:
    kubectl.apply(simulated(space, "one", "NVIDIA-L4"))
    wait_ready(kubectl, space, "one")

    code, output = doctor(bed, "--watch-namespace", space, "--dry-run-pods")
    rows = findings(bed, "--watch-namespace", space, "--dry-run-pods")

    assert not [row for row in rows if row[0] == "bad" and space in row[2]], output
    assert has(rows, "ok", "kubernetes", "1.36")
    assert has(rows, "ok", "gpus", "NVIDIA-H100-80GB-HBM3")
    assert has(rows, "ok", "device-plugin")
    assert has(rows, "ok", "definition", "qwendeployments.qwen-operator.dev", f"{release.namespace}/{release.name}")
    assert has(rows, "ok", "operator", "2 of 2")
    assert has(rows, "ok", "lease", "holds the Lease")
    assert has(rows, "ok", "rights", "you may")
    assert has(rows, "ok", "rights", f"{release.namespace}/{release.operator}")
    assert has(rows, "ok", "quota", space)
    assert has(rows, "ok", "limit-range", space)
    assert has(rows, "ok", "pod-security", space, "restricted")
    assert has(rows, "ok", "dry-run", space, "an engine pod")
    assert has(rows, "ok", "dry-run", space, "an inspection pod")
    assert has(rows, "ok", "monitoring")
    assert has(rows, "ok", "gateway", "answers") or has(rows, "warning", "gateway", "answers")
    assert code in (0, 1), "other tests may have made other namespaces bad"


@pytest.fixture
def bad(kubectl: Kubectl, space: str) -> Iterator[str]:
    """A namespace with rules that no engine passes. What is not in a namespace is removed afterwards."""
    unique = uuid4().hex[:8]
    kubectl.run("label", "namespace", space, "istio-injection=enabled", "doctor.test/bad=true")
    kubectl.apply(
        _in(space, "v1", "ResourceQuota", "cpu", spec=LIMITED_CPU),
        _in(space, "v1", "ResourceQuota", "gpus", spec={"hard": {"requests.nvidia.com/gpu": "0"}}),
        _in(space, "v1", "LimitRange", "small", spec={"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}),
        _node(f"shared-{unique}", {"nvidia.com/gpu.replicas": "4"}, "32"),
        _node(f"plain-{unique}", {}, "8"),
        _webhook(f"wall-{unique}"),
        _second_release(space),
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "kubernetes.io/no-provisioner",
         "metadata": {"name": f"slow-{unique}"}},
    )  # fmt: skip
    try:
        with without_policy(kubectl, space):
            volumes = [{"name": "host", "hostPath": {"path": "/"}}]
            kubectl.apply(simulated(space, "root", "NVIDIA-L4", pod={"volumes": volumes}))
        yield unique
    finally:
        for kind, name in (
            ("node", f"shared-{unique}"),
            ("node", f"plain-{unique}"),
            ("validatingwebhookconfiguration", f"wall-{unique}"),
            ("storageclass", f"slow-{unique}"),
        ):
            kubectl.run("delete", kind, name, "--wait=false")


@pytest.mark.alone
def test_each_fault_is_found_by_name(bed: Cluster, kubectl: Kubectl, release: Release, space: str, bad: str) -> None:
    code, output = doctor(bed, "--watch-namespace", space, "--watch-namespace", "not-there")
    rows = findings(bed, "--watch-namespace", space, "--watch-namespace", "not-there")

    assert code == 1, output
    assert has(rows, "bad", "quota", space, '"cpu"', "limits.cpu", "does not state")
    assert has(rows, "bad", "quota", space, '"gpus"', "0 requests.nvidia.com/gpu")
    assert has(rows, "bad", "limit-range", space, '"small"', "an engine pod", "1Gi")
    assert has(rows, "warning", "gpus", f"shared-{bad}", "nvidia.com/gpu.replicas=4")
    assert has(rows, "warning", "gpus", f"plain-{bad}", "kubectl label node")
    assert has(rows, "warning", "admission", f"wall-{bad}.doctor.test", space, "failurePolicy Fail")
    assert has(rows, "warning", "mesh", space, "istio-injection=enabled")
    assert has(rows, "bad", "pod-security", space, "hostPath", "root")
    assert has(rows, "bad", "second-release", f"{space}/other-operator")
    assert has(rows, "warning", "storage", "no StorageClass is the default")
    assert has(rows, "bad", "namespaces", "not-there")


@pytest.mark.alone
def test_a_stopped_operator_and_an_old_definition_are_found(
    bed: Cluster, kubectl: Kubectl, release: Release, space: str
) -> None:
    path = "/spec/versions/0/schema/openAPIV3Schema/description"
    patch = json.dumps([{"op": "replace", "path": path, "value": "of another version"}])
    crd = "qwendeployments.qwen-operator.dev"
    definition = kubectl.json("get", "crd", crd)
    kubectl.run("scale", f"deployment/{release.operator}", f"deployment/{release.gateway}", "-n", release.namespace,
                "--replicas=0")  # fmt: skip
    kubectl.run("patch", "crd", crd, "--type", "json", "-p", patch)
    try:
        kubectl.run("wait", "pods", "-n", release.namespace, "-l", "app.kubernetes.io/part-of=qwen-operator",
                    "--for=delete", "--timeout=90s")  # fmt: skip
        rows = findings(bed, "--watch-namespace", space)
    finally:
        kubectl.apply_as_helm(definition)
        kubectl.run("scale", f"deployment/{release.operator}", "-n", release.namespace, "--replicas=2")
        kubectl.run("scale", f"deployment/{release.gateway}", "-n", release.namespace, "--replicas=1")
        for name in (release.operator, release.gateway):
            kubectl.run("rollout", "status", f"deployment/{name}", "-n", release.namespace, "--timeout=120s")

    assert has(rows, "warning", "definition", "schema differs at description")
    assert has(rows, "bad", "operator", "0 replicas")
    assert has(rows, "bad", "gateway", "does not answer")
    assert has(rows, "bad", "lease") or has(rows, "warning", "lease")


def test_a_user_with_few_rights_gets_answers_and_no_traceback(
    bed: Cluster, kubectl: Kubectl, release: Release, space: str, tmp_path: Path
) -> None:
    kubectl.run("create", "serviceaccount", "guest", "-n", space)
    token = kubectl.run("create", "token", "guest", "-n", space).strip()
    config = kubectl.json("config", "view", "--raw", "--flatten")
    config["users"] = [{"name": "guest", "user": {"token": token}}]
    config["contexts"] = [
        {"name": "guest", "context": {"cluster": config["contexts"][0]["context"]["cluster"], "user": "guest"}}
    ]
    config["current-context"] = "guest"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))

    code, output = doctor(bed, "--watch-namespace", space, kubeconfig=path)

    assert code == 0, "what cannot be looked at is not a fault"
    assert "you may not list nodes" in output
    assert "you may not get deployments.apps in qwen-system" in output
    assert f"you may not list resourcequotas in {space}" in output


def test_one_object_is_collected_without_its_secrets(
    bed: Cluster, kubectl: Kubectl, release: Release, space: str
) -> None:
    secret = "hunter2-Tr0ub4dor"
    env = [{"name": "LC_ALL", "value": secret}, {"name": "HF_TOKEN", "value": "hf_" + "a1B2" * 8}]
    engine = {"env": env, "args": ["--log-level=info"]}
    manifest = simulated(space, "one", "NVIDIA-L4", engine=engine)
    manifest["metadata"]["annotations"] = {"team.example/password": secret}
    kubectl.apply(manifest)
    wait_ready(kubectl, space, "one")

    code, output = doctor(bed, "qd/one", "-n", space)

    assert code == 0
    assert secret not in output
    assert "hf_a1B2" not in output
    for title in ("object", "conditions", "plan", "events", "pods", "revisions", "nodes"):
        assert f"== {title} ==" in output
    assert "Ready True Serving" in output
    assert "name: HF_TOKEN" in output
    assert len(output.encode()) <= 1_000_000


def test_a_missing_object_is_told(bed: Cluster, release: Release, space: str) -> None:
    code, output = doctor(bed, "qd/nobody", "-n", space)
    assert code == 2
    assert "nobody" in output


def _in(space: str, version: str, kind: str, name: str, **members: object) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": space}, **members}


def _node(name: str, labels: dict[str, str], gpus: str) -> Manifest:
    """A node that no controller keeps: Kubernetes marks it as not ready, and nothing is scheduled to it."""
    product = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"} if labels else {}
    metadata = {"name": name, "labels": {**product, **labels}}
    resources = {"cpu": "8", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": gpus}
    taint = {"key": "doctor.test/no-pods", "effect": "NoSchedule"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]},
            "status": {"allocatable": resources, "capacity": resources}}  # fmt: skip


def _webhook(name: str) -> Manifest:
    """A webhook that is never called: its condition is false for every request."""
    webhook = {
        "name": f"{name}.doctor.test",
        "rules": POD_RULES,
        "namespaceSelector": {"matchLabels": {"doctor.test/bad": "true"}},
        "matchConditions": [{"name": "never", "expression": "false"}],
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name}, "webhooks": [webhook]}  # fmt: skip


def _second_release(space: str) -> Manifest:
    """The Deployment of an operator that serves all namespaces, with no pods."""
    labels = {"app.kubernetes.io/part-of": "qwen-operator", "app.kubernetes.io/component": "operator"}
    container = {"name": "operator", "image": "none", "env": [{"name": "QWEN_WATCH_NAMESPACES", "value": ""}]}
    spec = {"replicas": 0, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}  # fmt: skip
    metadata = {"name": "other-operator", "namespace": space, "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
