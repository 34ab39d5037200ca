"""Checkpoints as the real inspection pod sees them on the real node; no engine starts here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qd import events, pods, qd, wait_condition
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, condition
from tests.testbed.volumes import claim_manifests, volume_name

pytestmark = pytest.mark.e2e

BROKEN = {
    "cut-config": ("pvc://models/bad-config", "InvalidConfig", ["config.json"]),
    "cut-shard": ("pvc://models/truncated", "TruncatedWeights", [".safetensors", "bytes"]),
    "locked-shard": ("pvc://models/unreadable", "UnreadableWeights", [".safetensors", "65532"]),
    "no-tokenizer": ("pvc://models/no-tokenizer", "TokenizerMissing", ["tokenizer"]),
    "no-weights": ("pvc://models/no-weights", "ModelNotFound", ["safetensors"]),
    "no-folder": ("pvc://models/nowhere", "ModelNotFound", ["nowhere"]),
    "cut-gguf": ("pvc://models/gguf#cut.gguf", "TruncatedWeights", ["cut.gguf", "bytes"]),
    "split-gguf": ("pvc://models/gguf#parts-00001-of-00004.gguf", "InvalidConfig", ["4 parts", "llama-gguf-split"]),
    "unnamed-gguf": ("pvc://models/gguf", "ModelNotFound", ["spec.source.file"]),
    "no-claim": ("pvc://missing/tiny-qwen2", "ClaimNotFound", ["missing"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_named_before_an_engine_pod_exists(
    kubectl: Kubectl, claim_space: str, name: str
) -> None:
    uri, reason, words = BROKEN[name]
    folder, _, file = uri.partition("#")
    source = {"uri": folder} | ({"file": file} if file else {})
    kubectl.apply(qd(claim_space, name, model=name, source=source))

    obj = wait_condition(kubectl, claim_space, name, ("Ready", "False", reason), timeout=90)

    message = condition(obj, "Ready")["message"]
    assert [word for word in words if word not in message] == [], message
    assert pods(kubectl, claim_space, name) == []
    assert ("Warning", reason) in events(kubectl, claim_space, name)
    kubectl.run("delete", "qd", name, "-n", claim_space, "--wait=false")


@pytest.fixture
def second_claim(bed: Cluster, kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """Another claim, `second`, on the same models."""
    kubectl.apply(*claim_manifests("second", claim_space, bed.models_dir))
    yield "second"
    kubectl.run("delete", "pvc", "second", "-n", claim_space, "--wait=false")
    kubectl.run("delete", "pv", volume_name("second", claim_space), "--wait=false")


def test_lying_names_are_planned_by_their_config(kubectl: Kubectl, claim_space: str, second_claim: str) -> None:
    folders = {"big-name": ("models", "Qwen1.5-72B-Chat"), "small-name": (second_claim, "tiny-0.5B")}
    for name, (claim, folder) in folders.items():
        kubectl.apply(qd(claim_space, name, model=folder, replicas=0, source={"uri": f"pvc://{claim}/{folder}"}))

    bytes_of = {}
    for name in folders:
        obj = wait_condition(kubectl, claim_space, name, ("Planned", "True", "Fits"), timeout=90)
        bytes_of[name] = obj["status"]["model"]["weightBytes"]
        assert obj["status"]["plan"]["parallelism"] == {"tensor": 1}
        kubectl.run("delete", "qd", name, "-n", claim_space, "--wait=false")

    assert bytes_of["big-name"] < 2_000_000
    assert bytes_of["small-name"] > 50_000_000


def test_an_image_that_cannot_be_pulled_is_named(kubectl: Kubectl, claim_space: str, release: Release) -> None:
    engine = {"image": "localhost/no-such-image:v0.5.23"}
    kubectl.apply(
        qd(claim_space, "no-image", model="no-image", engine=engine, source={"uri": "pvc://models/tiny-qwen2"})
    )

    obj = wait_condition(kubectl, claim_space, "no-image", ("Ready", "False", "ImagePullFailed"), timeout=120)

    assert "localhost/no-such-image:v0.5.23" in condition(obj, "Ready")["message"]
    assert ("Warning", "ImagePullFailed") in events(kubectl, claim_space, "no-image")
    kubectl.run("delete", "qd", "no-image", "-n", claim_space, "--wait=false")


def test_a_repaired_claim_goes_on_by_itself(kubectl: Kubectl, claim_space: str) -> None:
    kubectl.apply(qd(claim_space, "late", model="late", replicas=0, source={"uri": "pvc://late/tiny-qwen2"}))
    wait_condition(kubectl, claim_space, "late", ("Ready", "False", "ClaimNotFound"), timeout=90)

    volume = kubectl.json("get", "pvc", "models", "-n", claim_space)["spec"]["volumeName"]
    source = kubectl.json("get", "pv", volume)
    late = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{volume}-late"},
        "spec": {
            **{k: source["spec"][k] for k in ("accessModes", "capacity", "hostPath")},
            "claimRef": {"namespace": claim_space, "name": "late"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "late", "namespace": claim_space},
        "spec": {
            "accessModes": source["spec"]["accessModes"],
            "storageClassName": "",
            "volumeName": f"{volume}-late",
            "resources": {"requests": source["spec"]["capacity"]},
        },
    }
    kubectl.apply(late, claim)
    try:
        wait_condition(kubectl, claim_space, "late", ("Planned", "True", "Fits"), timeout=120)
    finally:
        kubectl.run("delete", "qd", "late", "-n", claim_space, "--wait=false")
        kubectl.run("delete", "pv", f"{volume}-late", "--wait=false")
