"""A model in a bucket, from the manifest to the answer. The store is a pod with moto, which checks signatures."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Gateway
from tests.qd import pods, qd, wait_condition, wait_ready
from tests.testbed.bed import VALUES
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.volumes import claim_manifests, volume_name
from tests.unit.fetch.s3 import BUCKET, URI, Store

pytestmark = pytest.mark.e2e

IMAGE = yaml.safe_load(VALUES.read_text())["image"]
# What moto's server needs and the image does not have.
PACKAGES = (
    "moto", "boto3", "botocore", "s3transfer", "jmespath", "dateutil", "flask", "flask_cors", "werkzeug", "jinja2",
    "markupsafe", "itsdangerous", "click", "blinker", "responses", "requests", "charset_normalizer", "idna", "certifi",
    "urllib3", "xmltodict.py", "six.py", "yaml", "_yaml", "cryptography", "py_partiql_parser",
)  # fmt: skip
SERVICES = ("s3", "iam", "sts")


def copy_packages(target: Path) -> None:
    """The installed packages, without the many services that botocore describes."""
    installed = Path(sysconfig.get_path("purelib"))

    def others(folder: str, names: list[str]) -> list[str]:
        if folder != str(installed / "botocore" / "data"):
            return ["__pycache__"]
        return [name for name in names if Path(folder, name).is_dir() and name not in SERVICES]

    for name in PACKAGES:
        if (installed / name).is_dir():
            shutil.copytree(installed / name, target / name, ignore=others)
        elif (installed / name).exists():
            shutil.copy(installed / name, target / name)
    for library in installed.glob("_cffi_backend*.so"):
        shutil.copy(library, target)
    # Some packages ask for the version of others.
    for metadata in installed.glob("*.dist-info/METADATA"):
        (target / metadata.parent.name).mkdir()
        shutil.copy(metadata, target / metadata.parent.name)


def store_manifests(namespace: str) -> list[Manifest]:
    labels, meta = {"app": "store"}, {"name": "store", "namespace": namespace}
    container = {
        "name": "store",
        "image": f"{IMAGE['repository']}:{IMAGE['tag']}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", "import sys; from moto.server import main; main(sys.argv[1:])"],
        "args": ["-H", "0.0.0.0", "-p", "8000"],
        # The first word of the Service's name is no bucket.
        "env": [
            {"name": "PYTHONPATH", "value": "/moto"},
            {"name": "S3_IGNORE_SUBDOMAIN_BUCKETNAME", "value": "true"},
        ],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "moto", "mountPath": "/moto"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    volumes = [
        {"name": "moto", "persistentVolumeClaim": {"claimName": "moto", "readOnly": True}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 8000}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**meta, "labels": labels},
            "spec": {"containers": [container], "securityContext": user, "volumes": volumes},
        },
    ]


@pytest.fixture(scope="module")
def store(bed: Cluster, kubectl: Kubectl, claim_space: str) -> Iterator[Store]:
    """A bucket with the tiny model, also as a split GGUF file, and a Secret with the keys of its only reader."""
    folder = bed.models_dir.parent / f"moto-{claim_space}"
    folder.mkdir()
    copy_packages(folder)
    kubectl.apply(*claim_manifests("moto", claim_space, folder), *store_manifests(claim_space))

    def up() -> Manifest | None:
        pod = kubectl.get("pod", "store", claim_space) or {}
        return pod if condition(pod, "Ready").get("status") == "True" else None

    pod = wait_for("the store is up", up, 180)
    store = Store(f"http://{pod['status']['podIP']}:8000")
    store.client().create_bucket(Bucket=BUCKET)
    tiny = bed.models_dir / "tiny-qwen2"
    store.put({path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()})
    parts = sorted((bed.models_dir / "gguf").glob("parts-*.gguf"))
    assert len(parts) == 4
    store.put({path.name: path.read_bytes() for path in parts}, prefix="qwen/gguf/")
    store.check_signatures()
    wrong = store.keys | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    kubectl.apply(*(secret(claim_space, name, keys) for name, keys in (("s3", store.keys), ("wrong", wrong))))
    yield store
    kubectl.run("delete", "pv", volume_name("moto", claim_space), "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


def secret(namespace: str, name: str, entries: dict[str, str]) -> Manifest:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": entries}


def source(namespace: str, name: str = "s3", **more: str) -> Manifest:
    return {"uri": URI, "endpoint": f"http://store.{namespace}.svc:8000", "secretRef": {"name": name}, **more}


def test_wrong_keys_are_told_before_an_engine_pod_exists(kubectl: Kubectl, claim_space: str, store: Store) -> None:
    kubectl.apply(qd(claim_space, "wrong", model="wrong", source=source(claim_space, "wrong")))
    obj = wait_condition(kubectl, claim_space, "wrong", ("Ready", "False", "AuthRequired"), timeout=180)
    assert "SignatureDoesNotMatch): correct them" in condition(obj, "Ready")["message"]
    assert pods(kubectl, claim_space, "wrong") == []
    kubectl.run("delete", "qd", "wrong", "-n", claim_space, "--wait=false")


def test_a_model_in_a_bucket_answers(kubectl: Kubectl, gateway: Gateway, claim_space: str, store: Store) -> None:
    name = f"{claim_space}-bucket"
    kubectl.apply(qd(claim_space, "bucket", model=name, source=source(claim_space)))
    obj = wait_ready(kubectl, claim_space, "bucket", timeout=400)
    commit = obj["status"]["model"]["commit"]
    wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 30)
    [pod] = pods(kubectl, claim_space, "bucket")
    assert "secretKeyRef" not in str(pod["spec"]["containers"])
    assert store.keys["AWS_SECRET_ACCESS_KEY"] not in str(pod)
    assert f"--commit={commit}" in str(pod["spec"]["initContainers"])
    kubectl.run("delete", "qd", "bucket", "-n", claim_space, "--wait=false")


def test_the_parts_of_a_split_gguf_file_answer_as_one(
    kubectl: Kubectl, gateway: Gateway, claim_space: str, store: Store
) -> None:
    """Parts that the package gguf has written. The real SGLang opens the file that the download made of them."""
    name = f"{claim_space}-split"
    place = source(claim_space, uri="s3://weights/qwen/gguf", file="parts-00001-of-00004.gguf")
    kubectl.apply(qd(claim_space, "split", model=name, source=place))
    obj = wait_ready(kubectl, claim_space, "split", timeout=400)
    assert any(step.startswith("tensors: F16 ") for step in obj["status"]["plan"]["steps"])
    [pod] = pods(kubectl, claim_space, "split")
    assert "--model-path=/models/cached/weights/qwen/gguf/parts.gguf" in pod["spec"]["containers"][0]["command"]
    wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 30)
    answer = gateway.chat(name, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=40, temperature=0)
    assert "I am a tiny model in the shape of Qwen2" in answer.json()["choices"][0]["message"]["content"]
    kubectl.run("delete", "qd", "split", "-n", claim_space, "--wait=false")


def test_other_files_are_told_before_an_engine_pod_exists(kubectl: Kubectl, claim_space: str, store: Store) -> None:
    kubectl.apply(qd(claim_space, "pinned", model="pinned", source=source(claim_space, revision="0" * 40)))
    obj = wait_condition(kubectl, claim_space, "pinned", ("Ready", "False", "SourceChanged"), timeout=180)
    assert "the files of s3://weights/qwen/chat were changed" in condition(obj, "Ready")["message"]
    assert pods(kubectl, claim_space, "pinned") == []
    kubectl.run("delete", "qd", "pinned", "-n", claim_space, "--wait=false")
