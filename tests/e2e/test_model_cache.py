"""A model of a hub through the cache, from the manifest to the answer. The hub is a pod that speaks its protocol.

These tests change the values of the release, and set them back.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.hub_pod import Hub, Repositories, start_hub
from tests.e2e.watching import watching
from tests.qd import own_namespace, pods, qd, wait_condition, wait_ready
from tests.testbed.bed import install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.ownership import owned
from tests.testbed.volumes import claim_manifests, volume_name
from tests.unit.fetch.hub import COMMIT, OTHER_COMMIT, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

TOKEN = "hf-secret"
CLAIM = "model-cache"
LARGER = "Qwen/Larger"
# The tiny model has less than a megabyte: so slowly it takes long enough to be watched. The larger one has 50.
HAS = Repositories(
    {REPOSITORY: "tiny-qwen2", LARGER: "tiny-0.5B"}, token=TOKEN, rates={REPOSITORY: 32_000, LARGER: 600_000}
)


@pytest.fixture(scope="module")
def hub(kubectl: Kubectl, claim_space: str) -> Hub:
    return start_hub(kubectl, claim_space, HAS)


@pytest.fixture(scope="module")
def cached(bed: Cluster, kubectl: Kubectl, claim_space: str, hub: Hub) -> Iterator[str]:
    """The namespace, with a claim that is the cache, and the token."""
    folder = bed.models_dir.parent / f"cache-{claim_space}"
    folder.mkdir()
    folder.chmod(0o777)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hf-token", "namespace": claim_space},
        "stringData": {"token": TOKEN, "wrong": "no"},
    }
    kubectl.apply(secret, *claim_manifests(CLAIM, claim_space, folder, access_mode="ReadWriteMany"))
    cache = ["cache.type=PersistentVolumeClaim", f"cache.claimName={CLAIM}", f"hub.url={hub.url}"]
    install(bed, *(word for value in cache for word in ("--set", value)))
    yield claim_space
    install(bed)
    kubectl.run("delete", "pv", volume_name(CLAIM, claim_space), "--wait=false")


def source(key: str = "token", repository: str = REPOSITORY) -> Manifest:
    return {"uri": f"hf://{repository}", "secretRef": {"name": "hf-token", "key": key}}


def test_a_wrong_token_is_told_before_an_engine_pod_exists(kubectl: Kubectl, cached: str) -> None:
    kubectl.apply(qd(cached, "refused", model="refused", source=source("wrong")))
    obj = wait_condition(kubectl, cached, "refused", ("Ready", "False", "AuthRequired"), timeout=120)
    assert "correct the token in the Secret" in condition(obj, "Ready")["message"]
    assert pods(kubectl, cached, "refused") == []
    kubectl.run("delete", "qd", "refused", "-n", cached, "--wait=false")


def test_a_private_model_is_downloaded_with_progress_and_once(
    kubectl: Kubectl, gateway: Gateway, cached: str, hub: Hub
) -> None:
    name = f"{cached}-tiny"
    kubectl.apply(qd(cached, "tiny", model=name, source=source()))

    def column() -> str | None:
        shown = str(kubectl.run("get", "qd", "tiny", "-n", cached, "-o", "jsonpath={.status.summary.status}"))
        return shown if shown.startswith("Downloading ") else None

    assert wait_for("a download with numbers", column, 180).endswith("%")
    obj = wait_ready(kubectl, cached, "tiny", timeout=300)
    assert obj["status"]["model"]["commit"] == COMMIT
    assert "progress" not in obj["status"]
    wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 20)
    [pod] = pods(kubectl, cached, "tiny")
    engine = pod["spec"]["containers"][0]
    assert TOKEN not in str(pod)
    assert "secretKeyRef" not in str(engine)
    before = hub.sent()
    kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", cached)
    wait_for("another pod", lambda: pods(kubectl, cached, "tiny") or None, 60)
    wait_ready(kubectl, cached, "tiny", timeout=300)
    assert hub.sent() == before


@pytest.fixture
def empty(bed: Cluster, kubectl: Kubectl, cached: str, hub: Hub) -> Iterator[str]:
    """A namespace with an empty claim as its cache, and the token."""
    with own_namespace(kubectl, "early") as name:
        folder = bed.models_dir.parent / f"cache-{name}"
        folder.mkdir()
        folder.chmod(0o777)
        meta = {"name": "hf-token", "namespace": name}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": TOKEN}}
        kubectl.apply(secret, *claim_manifests(CLAIM, name, folder, access_mode="ReadWriteMany"))
        yield name
        kubectl.run("delete", "pv", volume_name(CLAIM, name), "--wait=false")


def test_no_engine_pod_exists_before_a_pod_without_gpus_has_filled_the_claim(kubectl: Kubectl, empty: str) -> None:
    kubectl.apply(qd(empty, "early", model=f"{empty}-early", source=source(), prefetch=True))

    def downloading() -> Manifest | None:
        obj = kubectl.get("qd", "early", empty) or {}
        shown = obj.get("status", {}).get("summary", {}).get("status", "")
        return obj if shown.startswith("Downloading ") else None

    obj = wait_for("a download with numbers", downloading, 180)
    assert obj["status"]["progress"]["pod"].endswith("-fetch")
    assert pods(kubectl, empty, "early") == []
    obj = wait_ready(kubectl, empty, "early", timeout=300)
    assert obj["status"]["summary"]["cache"] == "hit"
    [pod] = kubectl.list("pods", empty, "qwen-operator.dev/deployment=early")
    assert pod["metadata"]["labels"]["qwen-operator.dev/role"] == "engine"
    kubectl.run("delete", "qd", "early", "-n", empty, "--wait=false")


def cache_command(bed: Cluster, *words: str) -> str:
    """What `qwen-operator cache` prints, with the bed's kubeconfig."""
    program = str(Path(sys.executable).with_name("qwen-operator"))
    command = [program, "cache", *words, f"--kubeconfig={bed.kubeconfig}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return done.stdout + done.stderr


def test_the_command_lists_the_cache_and_keeps_what_an_engine_uses(bed: Cluster, cached: str) -> None:
    [row] = json.loads(cache_command(bed, "ls", "-n", cached, "-o", "json"))["models"]
    assert (row["model"], row["commit"], row["state"]) == (REPOSITORY, COMMIT, "InUse")
    assert row["place"] == f"claim/{CLAIM}"
    assert "an engine has it loaded" in cache_command(bed, "rm", "-n", cached, REPOSITORY, "--yes")


# It takes two minutes, because a download that shows its steps needs most of them.
@pytest.mark.slow
def test_who_watches_sees_the_download_and_the_start(kubectl: Kubectl, cached: str) -> None:
    manifest = qd(cached, "chat", model=f"{cached}-chat", source=source(repository=LARGER))
    # The list of all would show the deployments of the other tests too.
    with watching(kubectl, "qd", "-n", cached, "--field-selector=metadata.name=chat") as screen:
        kubectl.apply(manifest)
        wait_ready(kubectl, cached, "chat", timeout=600)
        # The load comes with the first look at the engine's metrics.
        time.sleep(10)
    print(f"\n{screen.text()}")
    kubectl.run("delete", "qd", "chat", "-n", cached)
    steps = screen.percents("Downloading")
    assert len(steps) >= 5
    for (before, less), (after, more) in pairwise(steps):
        assert more - less >= 5
        # A second for the way to this process.
        assert after - before > 9
    words = [status.split()[0] for _, status in screen.statuses()]
    # Starting is there twice: of the pod, and of the engine's container after the download.
    order = [word for word, _ in groupby(words)]
    assert order[:4] == ["Inspecting", "Starting", "Downloading", "Starting"]
    assert order[4:] in (["Loading", "Registering", "Serving"], ["Loading", "WarmingUp", "Registering", "Serving"])
    # Without the column AGE, each line says something new. Loading has no number while SGLang has counted no file.
    shown = [line.split()[:-1] for _, line in screen.lines]
    assert {line[-2] for line, again in pairwise(shown) if line == again} <= {"Loading"}


@pytest.mark.slow
def test_a_rollout_to_another_commit_and_back_downloads_each_commit_once(
    kubectl: Kubectl, cached: str, hub: Hub
) -> None:
    def settled(commit: str) -> str:
        """The column CACHE as soon as two replicas with this commit answer, and no other pod is left."""

        def there() -> str | None:
            status = (kubectl.get("qd", "two", cached) or {}).get("status", {})
            summary, alone = status.get("summary", {}), len(pods(kubectl, cached, "two")) == 2
            done = status.get("model", {}).get("commit") == commit and summary.get("ready") == "2/2"
            return str(summary.get("cache")) if done and alone else None

        return wait_for(f"two replicas of {commit[:7]}", there, 900)

    # Two cores are requested by four engines.
    in_place = {"maxSurge": 0, "maxUnavailable": 1}
    manifest = qd(cached, "two", model=f"{cached}-two", replicas=2, rollout=in_place)
    received = []
    # Whether the first commit is in the cache already depends on the tests before. The second replica gets nothing.
    hits, one = re.compile("2 hits"), re.compile(r"1 hit, [\d.]+ MB")
    for commit, right in ((COMMIT, (hits, one)), (OTHER_COMMIT, (one,)), (COMMIT, (hits,))):
        manifest["spec"]["source"] = source() | {"revision": commit}
        kubectl.apply(manifest)
        words = settled(commit)
        assert any(form.fullmatch(words) for form in right), words
        received.append(hub.sent())
        print(f"\n== {commit[:7]}: {words}; the hub has sent {received[-1]} bytes")
    assert received[1] > received[0]
    assert received[2] == received[1]
    kubectl.run("delete", "qd", "two", "-n", cached, "--wait=false")


def test_a_folder_of_the_node_is_refused_with_a_sentence(bed: Cluster, kubectl: Kubectl, cached: str, hub: Hub) -> None:
    values = ["cache.type=HostPath", "cache.path=/var/lib/qwen-models", f"hub.url={hub.url}"]
    install(bed, *(word for value in values for word in ("--set", value)))
    with own_namespace(kubectl, "h") as name:
        token = {"name": "hf-token", "namespace": name}
        kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": token, "stringData": {"token": TOKEN}})
        kubectl.apply(qd(name, "node", model=f"{name}-node", source=source()))
        obj = wait_condition(kubectl, name, "node", ("Ready", "False", "PodRefused"), timeout=120)
        assert "set cache.type to PersistentVolumeClaim or None" in condition(obj, "Ready")["message"]


def test_a_folder_of_the_node_serves_a_privileged_namespace(
    bed: Cluster, kubectl: Kubectl, gateway: Gateway, cached: str, hub: Hub
) -> None:
    folder = bed.models_dir.parent / "node-cache"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    values = ["cache.type=HostPath", f"cache.path={folder}", f"hub.url={hub.url}"]
    install(bed, *(word for value in values for word in ("--set", value)))
    space = f"{cached}-priv"
    kubectl.namespace(space, {"pod-security.kubernetes.io/enforce": "privileged", **owned()})
    token = {"name": "hf-token", "namespace": space}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": token, "stringData": {"token": TOKEN}})
    kubectl.apply(qd(space, "tiny", model=space, source=source()))
    wait_ready(kubectl, space, "tiny", timeout=400)
    wait_for(f"{space} is routed", lambda: gateway.chat(space, max_tokens=1).status_code == 200, 20)
    assert (folder / space / "models" / "hf" / "Qwen--Test" / COMMIT / ".manifest.json").exists()
    kubectl.run("delete", "namespace", space, "--wait=false")


@pytest.fixture
def without(bed: Cluster, kubectl: Kubectl, cached: str, hub: Hub) -> Iterator[str]:
    """A namespace with the token, and no cache in the release."""
    install(bed, "--set", f"hub.url={hub.url}")
    with own_namespace(kubectl, "bare") as name:
        kubectl.apply(token_in(name, TOKEN))
        yield name


@pytest.fixture
def modelscope(bed: Cluster, kubectl: Kubectl, cached: str, hub: Hub) -> Iterator[str]:
    """A namespace with the token, no cache, and a mirror of ModelScope."""
    install(bed, "--set", "hub.default=modelscope", "--set", f"hub.url={hub.url}")
    with own_namespace(kubectl, "scope") as name:
        kubectl.apply(token_in(name, TOKEN))
        yield name


def test_a_private_model_of_modelscope_answers(kubectl: Kubectl, gateway: Gateway, modelscope: str) -> None:
    uri = f"modelscope://{REPOSITORY}"
    kubectl.apply(qd(modelscope, "scope", model=modelscope, source={**source(), "uri": uri}))
    obj = wait_ready(kubectl, modelscope, "scope", timeout=400)
    assert obj["status"]["model"]["commit"] == COMMIT
    wait_for(f"{modelscope} is routed", lambda: gateway.chat(modelscope, max_tokens=1).status_code == 200, 20)
    [pod] = pods(kubectl, modelscope, "scope")
    assert "--hub=modelscope" in pod["spec"]["initContainers"][-1]["command"]


def token_in(namespace: str, token: str) -> Manifest:
    meta = {"name": "hf-token", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": token}}


def test_without_a_cache_a_container_downloads_into_the_pod_and_a_lost_token_gives_its_gpus_back(
    kubectl: Kubectl, gateway: Gateway, without: str
) -> None:
    kubectl.apply(qd(without, "bare", model=without, source=source()))
    obj = wait_ready(kubectl, without, "bare", timeout=400)
    assert obj["status"]["model"]["commit"] == COMMIT
    wait_for(f"{without} is routed", lambda: gateway.chat(without, max_tokens=1).status_code == 200, 20)
    [pod] = pods(kubectl, without, "bare")
    fetch = pod["spec"]["initContainers"][-1]
    assert (fetch["name"], "--of-pod" in fetch["command"]) == ("fetch", True)
    assert "secretKeyRef" not in str(pod["spec"]["containers"])

    kubectl.apply(token_in(without, "wrong"))
    kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", without)

    def given_back() -> Manifest | None:
        found = kubectl.get("qd", "bare", without) or {}
        ready = condition(found, "Ready")
        told = "the operator gave the GPUs back" in ready.get("message", "")
        return ready if told and not pods(kubectl, without, "bare") else None

    ready = wait_for("no pod is left", given_back, 240)
    assert (ready["status"], ready["reason"]) == ("False", "AuthRequired")
    kubectl.apply(token_in(without, TOKEN))
    kubectl.run("annotate", "qd", "bare", "-n", without, "qwen-operator.dev/replan=1")
    wait_ready(kubectl, without, "bare", timeout=400)
    kubectl.run("delete", "qd", "bare", "-n", without, "--wait=false")
