"""A model in an image: pulled from a registry on the node, mounted by containerd, and answered by SGLang."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.manifests.names import ENGINE_CONTAINER, SOURCE_VOLUME
from qwen_operator.objects import named
from tests.e2e.conftest import Gateway
from tests.qd import pods, qd, wait_condition, wait_ready
from tests.testbed import oci
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, condition, wait_for
from tests.testbed.registry import PASSWORD, USER

pytestmark = pytest.mark.e2e

WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"


@dataclass(frozen=True, slots=True)
class Published:
    """An image with the tiny model under /models, whose repository wants a Secret, and the digest of an artifact."""

    repository: str
    digest: str
    artifact: str

    def source(self, path: str) -> dict[str, Any]:
        return {"uri": f"oci://{self.repository}:v1/{path}", "secretRef": {"name": "registry"}}


@pytest.fixture(scope="module")
def published(
    bed: Cluster, kubectl: Kubectl, claim_space: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    kubectl.apply(pull_secret(claim_space))
    folder = tmp_path_factory.mktemp("image")
    shutil.copytree(bed.models_dir / "tiny-qwen2", folder / "top" / "models")
    # So the node has no layer of an earlier run.
    (folder / "top" / "made-for").write_text(claim_space)
    oci.tar_tree(folder / "top", folder / "layer.tar")
    oci.write_image(folder / "image.tar", "tiny", folder / "layer.tar")
    with tarfile.open(folder / "image.tar") as archive:
        archive.extractall(folder, filter="data")
    digest = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"]
    blobs = folder / "blobs" / "sha256"
    artifact = publish_artifact(blobs, (bed.models_dir / "tiny-qwen2" / "config.json").read_bytes())
    with bed.registry(blobs / digest.removeprefix("sha256:")):
        yield Published(f"localhost/private/{claim_space}", digest, artifact)


def publish_artifact(blobs: Path, file: bytes) -> str:
    """Writes an artifact with one plain file, as tools for ModelPack do. Returns the digest of its manifest."""

    def add(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST_TYPE,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": add(b"{}", CONFIG_TYPE),
        "layers": [add(file, WEIGHTS_TYPE)],
    }
    return str(add(json.dumps(manifest).encode(), oci.MANIFEST_TYPE)["digest"])


def pull_secret(namespace: str) -> dict[str, Any]:
    login = {"auths": {"localhost": {"username": USER, "password": PASSWORD}}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry", "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps(login)},
    }


def test_a_private_image_is_pinned_and_answers(
    kubectl: Kubectl, gateway: Gateway, claim_space: str, published: Published
) -> None:
    name = f"{claim_space}-image"
    kubectl.apply(qd(claim_space, "image", model=name, source=published.source("models")))
    obj = wait_ready(kubectl, claim_space, "image", timeout=400)
    assert f"sha256:{obj['status']['model']['commit']}" == published.digest
    [pod] = pods(kubectl, claim_space, "image")
    reference = named(pod["spec"]["volumes"], SOURCE_VOLUME)["image"]["reference"]
    assert reference == f"{published.repository}@{published.digest}"

    wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 30)
    answer = gateway.chat(name, temperature=0).json()["choices"][0]["message"]["content"]
    assert answer.strip() == "Hello from a tiny language model on this cluster!"

    mount = named(named(pod["spec"]["containers"], ENGINE_CONTAINER)["volumeMounts"], SOURCE_VOLUME)["mountPath"]
    inside = ("exec", pod["metadata"]["name"], "-n", claim_space, "-c", ENGINE_CONTAINER, "--")
    assert kubectl.run(*inside, "cat", f"{mount}/made-for") == claim_space
    mounts = [line.split() for line in kubectl.run(*inside, "cat", "/proc/self/mounts").splitlines()]
    assert [options.split(",")[0] for _, where, _, options, *_ in mounts if where == mount] == ["ro"]
    kubectl.run("delete", "qd", "image", "-n", claim_space, "--wait=false")


def test_each_fault_is_told_before_an_engine_pod_exists(
    kubectl: Kubectl, claim_space: str, published: Published
) -> None:
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "folder": (published.source("other"), "ModelNotFound", "/other does not exist"),
        "refused": (
            {"uri": f"oci://{published.repository}:v2"},
            "AuthRequired",
            "name a Secret of the type kubernetes.io/dockerconfigjson in spec.source.secretRef",
        ),
        "missing": (
            {"uri": f"oci://localhost/tiny@sha256:{'0' * 64}"},
            "ModelNotFound",
            "correct spec.source.uri, or push the image",
        ),
        "artifact": (
            {"uri": f"oci://localhost/tiny@{published.artifact}"},
            "ModelNotFound",
            "an artifact whose layers are no tar archives",
        ),
        "down": (
            {"uri": "oci://localhost:1/tiny:v1"},
            "ImagePullFailed",
            "cannot pull the image localhost:1/tiny:v1: ",
        ),
    }
    for name, (source, _, _) in cases.items():
        kubectl.apply(qd(claim_space, name, model=f"{claim_space}-{name}", source=source))
    for name, (_, reason, says) in cases.items():
        obj = wait_condition(kubectl, claim_space, name, ("Ready", "False", reason), timeout=180)
        assert says in condition(obj, "Ready")["message"]
        assert pods(kubectl, claim_space, name) == []
    kubectl.run("delete", "qd", *cases, "-n", claim_space, "--wait=false")
