"""The complete test bed: cluster, images, models, and the chart on request.

`Cluster` knows nothing about this project. This module installs the project into it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import images
from tests.testbed.cache import StepFailed, locked, say
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl
from tests.testbed.packages import ensure_packages
from tests.testbed.simulated import Pool

SIMULATED = (Pool("NVIDIA-A100-SXM4-80GB", 8, 1), Pool("NVIDIA-L4", 8, 2))
"""The simulated GPU nodes beside the real one. Tests share them; one that counts GPUs brings nodes of its own."""

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts/qwen-operator"
VALUES = REPOSITORY / "tests/testbed/values.yaml"


@dataclass(frozen=True, slots=True)
class Release:
    """The installed chart, by the names of its objects."""

    name: str = "qwen"
    namespace: str = "qwen-system"
    operator: str = "qwen-operator"
    gateway: str = "qwen-gateway"
    keys: str = "qwen-gateway-keys"

    @property
    def operator_user(self) -> str:
        """The operator's user in the audit log."""
        return f"system:serviceaccount:{self.namespace}:{self.operator}"

    def key(self, kubectl: Kubectl) -> str:
        """The API key that the operator made."""
        secret = kubectl.json("get", "secret", self.keys, "-n", self.namespace)
        return base64.b64decode(secret["data"]["default"]).decode()


def bring_up(more: Sequence[Pool] = (), *, real_nodes: int = 0) -> Cluster:
    """The running test bed, with the images in its nodes and the models in place. Builds what is missing.

    more: simulated nodes in addition to the usual ones. real_nodes: how many real ones run then; 0: at least one, and
    those that run already.
    """
    ensure_packages()
    archives = (images.engine_archive(), images.operator_archive())
    models = images.models()
    cluster = Cluster()
    cluster.up(simulated=(*SIMULATED, *more))
    # Test processes side by side all come here.
    with locked("bed"):
        for archive in archives:
            cluster.load_image(archive)
        _place(models, cluster.models_dir)
    if real_nodes:
        cluster.keep_real_nodes(real_nodes)
    return cluster


def _place(models: Path, target: Path) -> None:
    """Copy the missing model folders. Ownership and modes matter: one of them is unreadable on purpose."""
    for folder in sorted(models.iterdir()):
        if not (target / folder.name).exists():
            shutil.copytree(folder, target / folder.name, symlinks=True)


def install(cluster: Cluster, *arguments: str) -> Release:
    """Install or upgrade the chart with Helm and the test bed's values. Returns when its pods are ready."""
    release = Release()
    command = [
        str(cluster.bin_dir / "helm"), "upgrade", "--install", release.name, str(CHART), "-f", str(VALUES),
        "-n", release.namespace, "--create-namespace", *roll_by_content(), *arguments, "--wait", "--timeout", "4m",
    ]  # fmt: skip
    environment = {**os.environ, **cluster.environment()}
    # Helm refuses two upgrades of one release at a time.
    with locked("release"):
        _end_interrupted(cluster, release)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailed(f"helm did not install the chart: {done.stderr.strip()}\n{_why(cluster, release)}")
    say(f"the chart is installed in namespace {release.namespace}")
    return release


def _end_interrupted(cluster: Cluster, release: Release) -> None:
    """End what a run left that was interrupted within Helm.

    Helm itself would refuse each later upgrade, because "another operation is in progress". But nobody else is at it:
    this process has the lock.
    """
    environment = {**os.environ, **cluster.environment()}
    helm, of = str(cluster.bin_dir / "helm"), (release.name, "-n", release.namespace)
    found = subprocess.run(
        [helm, "status", *of, "-o", "json"], env=environment, capture_output=True, text=True, check=False
    )
    status = json.loads(found.stdout)["info"]["status"] if found.returncode == 0 else ""
    if not status.startswith("pending-"):
        return
    # Before the first installation was complete there is nothing to go back to.
    step = ("uninstall", *of, "--wait") if status == "pending-install" else ("rollback", *of)
    say(f"an interrupted run left the release {status}, so Helm refuses to upgrade it: helm {step[0]}")
    ended = subprocess.run([helm, *step], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise StepFailed(f"helm {step[0]} did not end the release that is {status}: {ended.stderr.strip()}")


def roll_by_content() -> tuple[str, ...]:
    """Helm arguments that replace the pods when the operator's code changes, because its image's tag is constant."""
    content = images.operator_archive().parent.name
    return tuple(
        word
        for part in ("operator", "gateway")
        for word in ("--set-string", f"{part}.podAnnotations.content={content}")
    )


def _why(cluster: Cluster, release: Release) -> str:
    kubectl = Kubectl(cluster.bin_dir / "kubectl", cluster.kubeconfig)
    events = kubectl.run("get", "events", "-n", release.namespace, "--sort-by=.lastTimestamp")
    return "\n".join([kubectl.run("get", "pods", "-n", release.namespace, "-o", "wide"), *events.splitlines()[-15:]])
