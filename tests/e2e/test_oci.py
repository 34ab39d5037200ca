"""A model in an image, on the real node: the answer, or the sentence where its runtime mounts no images.

The image is imported into the node, and named by its digest, so that no registry is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from qwen_operator.api.spec import parse
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.sources import registry
from tests.e2e.conftest import Gateway
from tests.qd import pods, qd, wait_condition, wait_ready
from tests.testbed import oci
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, condition, wait_for

pytestmark = pytest.mark.e2e

REPOSITORY = "localhost/qwen-testbed/tiny"


@pytest.fixture(scope="module")
def uri(bed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with the tiny model under /models, as most people make them."""
    folder = tmp_path_factory.mktemp("image")
    shutil.copytree(bed.models_dir / "tiny-qwen2", folder / "top" / "models")
    oci.tar_tree(folder / "top", folder / "layer.tar")
    oci.write_image(folder / "by-tag.tar", f"{REPOSITORY}:1", folder / "layer.tar")
    digest = name_by_digest(folder / "by-tag.tar", folder / "image.tar")
    bed.load_image(folder / "image.tar")
    return f"oci://{REPOSITORY}@{digest}/models"


def name_by_digest(archive: Path, target: Path) -> str:
    """Copies an OCI archive. The image in the copy has its digest as its name. Returns the digest."""
    with tarfile.open(archive) as given, tarfile.open(target, "w") as made:
        for member in given:
            content = given.extractfile(member)
            assert content is not None
            if member.name != "index.json":
                made.addfile(member, content)
                continue
            index = json.load(content)
            (manifest,) = index["manifests"]
            manifest["annotations"] = {oci.NAME_ANNOTATION: f"{REPOSITORY}@{manifest['digest']}"}
            changed = json.dumps(index).encode()
            member.size = len(changed)
            made.addfile(member, io.BytesIO(changed))
    with tarfile.open(target) as made:
        blob = made.extractfile("blobs/" + manifest["digest"].replace(":", "/"))
        assert blob is not None
        assert manifest["digest"] == "sha256:" + hashlib.sha256(blob.read()).hexdigest()
    return str(manifest["digest"])


def mounts_images(kubectl: Kubectl) -> bool:
    """Whether the container runtime of the real node is one that mounts images: containerd 2.1 or newer."""
    versions = set(re.findall(r"containerd://(\d+)\.(\d+)", str(kubectl.json("get", "nodes"))))
    [(major, minor)] = versions
    return (int(major), int(minor)) >= (2, 1)


def test_the_status_of_a_container_that_never_runs_shows_the_digest(
    kubectl: Kubectl, claim_space: str, uri: str
) -> None:
    """So the inspection pod of a tag shows the digest behind it, also where the node mounts no images."""
    spec = parse(qd(claim_space, "tag", model="tag", source={"uri": f"oci://{REPOSITORY}:1"}))
    identity = PodIdentity(Owner("tag", claim_space, "uid"), "0a1b2c3d")
    made = registry.inspection_pod(identity, spec, EngineDefaults("i", "0.5.23"), RuntimeImage("i"), Inventory())
    assert made is not None
    reference = uri.removeprefix("oci://").removesuffix("/models")
    never = next(one for one in made["spec"]["containers"] if one["name"] == "image") | {"image": reference}
    kept = {part: made["spec"][part] for part in ("restartPolicy", "securityContext")}
    meta = {"name": "never", "namespace": claim_space}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": kept | {"containers": [never]}})

    def told() -> str | None:
        found = ((kubectl.get("pod", "never", claim_space) or {}).get("status") or {}).get("containerStatuses") or [{}]
        return found[0].get("imageID") if "terminated" in found[0].get("state", {}) else None

    assert wait_for("the container could not start", told, 120) == reference
    kubectl.run("delete", "pod", "never", "-n", claim_space, "--wait=false")


def test_an_image_is_served_or_it_is_told_before_an_engine_pod_exists(
    kubectl: Kubectl, gateway: Gateway, claim_space: str, uri: str
) -> None:
    name = f"{claim_space}-image"
    kubectl.apply(qd(claim_space, "image", model=name, source={"uri": uri}))
    if mounts_images(kubectl):
        obj = wait_ready(kubectl, claim_space, "image", timeout=400)
        assert f"sha256:{obj['status']['model']['commit']}" in uri
        wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 30)
    else:
        obj = wait_condition(kubectl, claim_space, "image", ("Ready", "False", "ImageVolumesUnsupported"), timeout=180)
        assert "containerd 2.1" in condition(obj, "Ready")["message"]
        assert pods(kubectl, claim_space, "image") == []
    kubectl.run("delete", "qd", "image", "-n", claim_space, "--wait=false")


def test_an_image_that_is_not_there_is_told_before_an_engine_pod_exists(
    kubectl: Kubectl, claim_space: str, uri: str
) -> None:
    missing = "oci://localhost:1/no-such/image:1"
    kubectl.apply(qd(claim_space, "missing", model=f"{claim_space}-missing", source={"uri": missing}))
    obj = wait_condition(kubectl, claim_space, "missing", ("Ready", "False", "ImagePullFailed"), timeout=180)
    assert "cannot pull the image localhost:1/no-such/image:1" in condition(obj, "Ready")["message"]
    assert pods(kubectl, claim_space, "missing") == []
    kubectl.run("delete", "qd", "missing", "-n", claim_space, "--wait=false")
