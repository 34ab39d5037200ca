"""The chart as the real Helm renders it, and ways to look into what came out."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.testbed.bed import Release, roll_by_content
from tests.testbed.binaries import ensure_binaries
from tests.testbed.cache import StepFailed
from tests.testbed.cluster import Cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/qwen-operator"
CRD = "qwendeployments.qwen-operator.dev"
Manifest = dict[str, Any]

POOL: Manifest = {"name": "l4", "product": "NVIDIA-L4", "memoryMiB": 23034, "gpusPerNode": 8}
NAMESPACED: Manifest = {"watchNamespaces": ["team-a", "team-b"], "gpuPools": [POOL]}
TESTBED: Manifest = yaml.safe_load((ROOT / "tests/testbed/values.yaml").read_text())
PROMETHEUS: Manifest = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
VALUES = {
    "default": {},
    "namespaced": NAMESPACED,
    "testbed": TESTBED,
    "open": {"gateway": {"auth": "none"}},
    "ingress": {"gateway": {"ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": {"secretName": "tls"}}}},
    "routed": {"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}},
    "monitored": {
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {"metricsFrom": [PROMETHEUS]},
    },
}
all_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


@functools.cache
def binary() -> str:
    """$HELM, else helm on PATH, else the test bed's."""
    return os.environ.get("HELM") or shutil.which("helm") or str(ensure_binaries()["helm"] / "helm")


def helm(*args: str, values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run Helm with these values on standard input."""
    command = [binary(), *args, "-f", "-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)


def live(bed: Cluster, *args: str, values: Mapping[str, Any] | None = None) -> str:
    """Run Helm against the test bed, with these values if given; returns all that it wrote. Raises StepFailed."""
    command = [str(bed.bin_dir / "helm"), *args, *(() if values is None else ("-f", "-"))]
    environment = {**os.environ, **bed.environment()}
    given = json.dumps(values or {})
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailed(f"helm {' '.join(args)} failed: {done.stderr.strip()}\n{done.stdout.strip()}")
    return done.stdout + done.stderr


def install_beside(bed: Cluster, release: Release, values: Mapping[str, Any]) -> None:
    """Install the chart once more, as another release with the test bed's values and these, and wait for its pods."""
    args = ("install", release.name, str(CHART), "-n", release.namespace, *roll_by_content())
    live(bed, *args, "--wait", "--timeout", "4m", values={**TESTBED, **values})


def newer_chart(folder: Path) -> Path:
    """The chart's next version, made in a folder; its only news is an optional field `spec.later` of the CRD."""
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "99.0.0"}))
    path = chart / f"files/crds/{CRD}.yaml"
    crd = yaml.safe_load(path.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["later"] = {"type": "integer", "description": "A field of the future."}
    path.write_text(yaml.safe_dump(crd))
    return chart


def text(values: Mapping[str, Any], release: str = "qwen", namespace: str = "qwen-system", chart: Path = CHART) -> str:
    done = helm("template", release, str(chart), "-n", namespace, values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(values: Mapping[str, Any], release: str = "qwen", namespace: str = "qwen-system") -> list[Manifest]:
    return [doc for doc in yaml.safe_load_all(text(values, release, namespace)) if doc]


def refused(values: Mapping[str, Any]) -> str:
    """What Helm says when it refuses the values; an error when it does not."""
    done = helm("template", "qwen", str(CHART), values=values)
    assert done.returncode != 0, done.stdout
    return done.stderr


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (manifest,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return manifest


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(metadata, spec) of every pod and pod template."""
    yield from ((m["metadata"], m["spec"]) for m in of_kind(manifests, "Pod"))
    for m in of_kind(manifests, "Deployment"):
        yield m["spec"]["template"]["metadata"], m["spec"]["template"]["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def environment(manifests: list[Manifest], deployment: str, container: str) -> dict[str, str | None]:
    spec = one(manifests, "Deployment", deployment)["spec"]["template"]["spec"]
    (named,) = [c for c in containers(spec) if c["name"] == container]
    return {entry["name"]: entry.get("value") for entry in named["env"]}


def config(manifests: list[Manifest]) -> Manifest:
    loaded: Manifest = yaml.safe_load(one(manifests, "ConfigMap", "qwen-operator")["data"]["config.yaml"])
    return loaded
