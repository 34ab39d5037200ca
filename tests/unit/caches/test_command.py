"""`qwen-operator cache ls|rm`. The pods of the fake cluster run the real program over a real cache."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator.caches import session
from qwen_operator.caches.pods import Access, Place, cache_pod
from qwen_operator.cli import cache
from qwen_operator.cli import main as cli
from qwen_operator.kube import DeleteOptions, Forbidden, Manifest, NotFound, Resource
from qwen_operator.planning.types import CacheType, ModelCache
from tests.unit.doctor.facts import named, operator
from tests.unit.doctor.test_collect import FakeSource

OLD, NEW = "0" * 40, "1" * 40
HOUR = 3600
SETTINGS = "/api/v1/namespaces/qwen-system/configmaps/qwen-operator"
RELEASE = "/apis/apps/v1/namespaces/qwen-system/deployments/qwen-operator"
PODS = "/api/v1/namespaces/team-a/pods"


def settings(**values: Any) -> Manifest:
    image = {"reference": "registry.example/qwen-operator:1"}
    content = {
        "image": image,
        "engine": {"image": "sglang", "version": "0.5.23"},
        "gateway": {"namespace": "qwen-system", "keysSecret": "keys", "auth": "none"},
        "cache": {"type": "HostPath", "path": "/var/lib/qwen-models", **values},
    }
    return named("qwen-operator", "qwen-system", data={"config.yaml": yaml.safe_dump(content)})


def release() -> Manifest:
    deployment: Manifest = operator()
    volumes = [{"name": "config", "configMap": {"name": "qwen-operator"}}]
    deployment["spec"]["template"]["spec"]["volumes"] = volumes
    return deployment


def engine(name: str, node: str = "gpu-1") -> Manifest:
    spec = {"nodeName": node, "initContainers": [{"name": "fetch"}], "containers": [{"name": "engine"}]}
    return named(name, "team-a", spec=spec, status={"phase": "Running"})


@dataclass
class Kubelet(FakeSource):
    """A cluster whose nodes run the program of each pod over a folder: that of the node, or `root` for a claim."""

    root: Path = Path()
    made: dict[str, Manifest] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    refusal: Exception | None = None
    hangs: bool = False

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        if self.refusal:
            raise self.refusal
        meta = manifest["metadata"] | {"uid": f"uid-{len(self.made)}"}
        self.made[meta["name"]] = {**manifest, "metadata": meta}
        return self.made[meta["name"]]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        pod = self.made[name]
        if self.hangs:
            waiting = {"waiting": {"reason": "ContainerCreating"}}
            return {**pod, "status": {"containerStatuses": [{"name": "cache", "state": waiting}]}}
        words = pod["spec"]["containers"][0]["command"][1:]
        folder = self.root / pod["spec"].get("nodeName", "claim")
        words = [f"--cache={folder}" if word.startswith("--cache=") else word for word in words]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = cli(words)
        self.answers[f"{PODS}/{name}/log"] = output.getvalue().encode()
        return {
            **pod,
            "status": {"containerStatuses": [{"name": "cache", "state": {"terminated": {"exitCode": code}}}]},
        }

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None:
        assert options.uid == self.made[name]["metadata"]["uid"]
        self.deleted.append(name)

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubelet]:
    node = named("gpu-1", status={"allocatable": {"nvidia.com/gpu": "8"}})
    plain = named("web-1", status={"allocatable": {"cpu": "8"}})
    answers = {SETTINGS: settings(), RELEASE: release(), "/api/v1/nodes": {"items": [node, plain]}, PODS: {"items": []}}
    fake = Kubelet(answers, root=tmp_path)

    async def connect(kubeconfig: str, context: str, *, user_agent: str) -> Kubelet:
        return fake

    async def at_once(_seconds: float) -> None:
        """Nobody waits in a test."""

    monkeypatch.setattr(cache, "connect_as", connect)
    monkeypatch.setattr(cache, "Session", lambda api, access, seconds: session.Session(api, access, seconds, at_once))
    before = os.umask(0o022)
    yield fake
    os.umask(before)
    assert sorted(fake.deleted) == sorted(fake.made)


def model(
    root: Path, repository: str, commit: str, *, size: int = 1000, asked: tuple[str, float] | None = None
) -> Path:
    folder = root / "models" / "hf" / repository.replace("/", "--") / commit
    folder.mkdir(parents=True)
    (folder / ".in-use").touch()
    (folder / "model.safetensors").write_bytes(b"x" * size)
    if asked:
        pod, age = asked
        lease = root / "leases" / f"hf--{repository.replace('/', '--')}--{commit}" / pod
        lease.parent.mkdir(parents=True)
        lease.touch()
        os.utime(lease, (time.time() - age, time.time() - age))
    return folder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    with (folder / ".in-use").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli(["cache", words[0], "-n", "team-a", *words[1:]])
    output = capsys.readouterr()
    return code, output.out + output.err


def states(output: str) -> dict[str, str]:
    return {row["model"]: row["state"] for row in json.loads(output)["models"]}


def test_ls_shows_what_each_node_has_and_whether_it_is_used(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "gpu-1"
    cluster.answers[PODS] = {"items": [engine("chat-0")]}
    busy = model(root, "Qwen/Busy", OLD, size=200_000_000)
    model(root, "Qwen/Soon", OLD, asked=("chat-0", 1800))
    model(root, "Qwen/Left", OLD, asked=("gone-0", 1800))
    model(root, "Qwen/Old", NEW, asked=("gone-1", 50 * HOUR))
    (root / "partial" / f"hf--Qwen--Half--{OLD}").mkdir(parents=True)
    with held(busy):
        code, output = run(capsys, "ls")
        assert code == 0
        lines = [line.split() for line in output.splitlines()]
        assert lines[0] == ["PLACE", "MODEL", "HUB", "COMMIT", "SIZE", "LAST", "USED", "STATE"]
        assert lines[1] == ["node/gpu-1", "Qwen/Busy", "hf", OLD[:12], "0.2", "GB", "now", "in", "use"]
        assert ["node/gpu-1", "Qwen/Old", "hf", NEW[:12], "0.0", "MB", "2d", "ago", "idle"] in lines
        used = "node/gpu-1: 0.2 GB of 500 GiB (cache.sizeGiB) used, "
        assert (output.splitlines()[-1].startswith(used), output.endswith(" of the disk free\n")) == (True, True)
        _, output = run(capsys, "ls", "-o", "json")
    found = {"Busy": "InUse", "Soon": "Starting", "Left": "Idle", "Old": "Idle", "Half": "Partial"}
    assert states(output) == {f"Qwen/{name}": state for name, state in found.items()}


def test_rm_removes_what_nobody_uses_and_says_why_the_rest_stays(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "gpu-1"
    busy, old, new = (
        model(root, "Qwen/Busy", OLD),
        model(root, "Qwen/Idle", OLD),
        model(root, "Qwen/Idle", NEW),
    )
    with held(busy):
        code, output = run(capsys, "rm", "Qwen/Busy", f"hf://Qwen/Idle@{OLD[:7]}", "Qwen/None", "--yes")
    assert code == 1
    assert "Qwen/Busy at 000000000000 stays on node/gpu-1: an engine has it loaded" in output
    assert "no cache has Qwen/None" in output
    assert "removed Qwen/Idle at 000000000000 from node/gpu-1" in output
    assert (busy.exists(), old.exists(), new.exists()) == (True, False, True)
    assert run(capsys, "rm", "--all", "--yes")[0] == 0
    assert not new.exists()


def test_an_engine_that_starts_between_the_list_and_the_removal_keeps_its_model(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "gpu-1", "Qwen/Late", OLD)
    with contextlib.ExitStack() as stack:

        def confirmed(_count: int, _models: int) -> bool:
            stack.enter_context(held(folder))
            return True

        monkeypatch.setattr(cache, "_confirmed", confirmed)
        code, output = run(capsys, "rm", "Qwen/Late")
        assert (code, folder.exists()) == (1, True)
        assert "stays on node/gpu-1" in output


@pytest.mark.parametrize("words", [["--dry-run", "--yes"], []])
def test_without_a_yes_nothing_goes(
    words: list[str], cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = model(tmp_path / "gpu-1", "Qwen/Idle", OLD)
    code, output = run(capsys, "rm", "--all", *words)
    assert "Qwen/Idle" in output
    assert folder.exists()
    assert code == (0 if words else 2)
    assert len(cluster.made) == 1


def test_a_claim_is_read_by_a_pod_beside_the_one_that_has_it(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster.answers[SETTINGS] = settings(type="PersistentVolumeClaim", claimName="models")
    claim = named("models", "team-a", status={"phase": "Bound"})
    cluster.answers["/api/v1/namespaces/team-a/persistentvolumeclaims/models"] = claim
    pod = engine("chat-0", "gpu-7")
    pod["spec"]["volumes"] = [{"name": "m", "persistentVolumeClaim": {"claimName": "models"}}]
    cluster.answers[PODS] = {"items": [pod]}
    model(tmp_path / "gpu-7", "Qwen/Idle", OLD)
    code, output = run(capsys, "ls")
    assert (code, "claim/models" in output) == (0, True)
    [made] = cluster.made.values()
    assert made["spec"]["nodeName"] == "gpu-7"
    assert made["spec"]["containers"][0]["command"][2] == "--cache=/cache/qwen-models"


def test_a_pod_mounts_a_claim_as_a_whole_and_uses_its_folder() -> None:
    access = Access(ModelCache(CacheType.CLAIM, "models", 1), "image")
    (container,) = cache_pod(access, Place("team-a", "claim/models"), "name", ["ls"])["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": "qwen-model-cache", "mountPath": "/cache"}]
    assert container["command"][2:] == ["--cache=/cache/qwen-models", "ls"]


def test_a_pod_meets_the_restricted_profile_and_sees_only_its_namespace() -> None:
    access = Access(ModelCache(CacheType.HOST_PATH, "/var/lib/qwen-models", 1), "image")
    spec = cache_pod(access, Place("team-a", "node/n", "n"), "name", [])["spec"]
    [container] = spec["containers"]
    assert container["volumeMounts"] == [{"name": "qwen-model-cache", "mountPath": "/cache", "subPath": "team-a"}]
    assert spec["volumes"][0]["hostPath"] == {"path": "/var/lib/qwen-models", "type": "Directory"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_gguf_file_is_shown_and_removed_by_its_name(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "gpu-1"
    one, other = model(root, "Qwen/G", f"{OLD}-0123"), model(root, "Qwen/G", f"{OLD}-4567")
    for folder, name in ((one, "q4.gguf"), (other, "q8.gguf")):
        record = {"path": name, "size": 1, "checksum": ""}
        (folder / ".manifest.json").write_text(json.dumps({"version": 1, "files": [record]}))
    assert "Qwen/G:q4.gguf" in run(capsys, "ls")[1]
    assert run(capsys, "rm", "Qwen/G:q4.gguf", "--yes")[0] == 0
    assert (one.exists(), other.exists()) == (False, True)


NO_RIGHT = Forbidden(403, "Forbidden", 'pods is forbidden: User "ann" cannot create resource "pods" in API group ""')
QUOTA = Forbidden(403, "Forbidden", "exceeded quota: compute, requested: pods=1")


@pytest.mark.parametrize(
    ("change", "words", "code", "sentence"),
    [
        ({SETTINGS: None}, [], 2, "give --image and --claim, or --image and --path"),
        ({RELEASE: None}, [], 2, "the settings of the release qwen in qwen-system cannot be read (you may not get"),
        ({SETTINGS: settings(type="None")}, [], 2, "has no cache: its value cache.type is None"),
        ({"/api/v1/nodes": None}, [], 2, "name the nodes with --node"),
        ({}, ["--claim", "models"], 2, "--image goes together with --claim or --path"),
        ({}, ["--image", "i", "--claim", "models"], 2, 'the namespace team-a has no claim "models"'),
        ({}, ["--image", "i", "--claim", "models", "--node", "n"], 2, "--node is for a cache of the type HostPath"),
        ({"refusal": NO_RIGHT}, [], 1, "you may not create pods in team-a: it needs create, get and delete of pods"),
        ({"refusal": QUOTA}, [], 1, "the API server refuses the pod in team-a: exceeded quota: compute"),
        ({"hangs": True}, [], 1, "node/gpu-1: its pod did not end within 120 s: ContainerCreating"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(  # noqa: PLR0917
    change: Mapping[str, Any],
    words: list[str],
    code: int,
    sentence: str,
    cluster: Kubelet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in change.items():
        if name.startswith("/"):
            cluster.answers[name] = value
        else:
            setattr(cluster, name, value)
    found, output = run(capsys, "ls", *words)
    assert sentence in output
    assert (found, output.count("\n")) == (code, 1)


def test_a_tenant_without_the_release_names_image_and_node(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster.answers[RELEASE] = cluster.answers["/api/v1/nodes"] = None
    model(tmp_path / "gpu-3", "Qwen/Idle", OLD)
    code, output = run(capsys, "ls", "--image=i", "--path=/var/lib/qwen-models", "--node=gpu-3")
    assert (code, "Qwen/Idle" in output) == (0, True)


def test_text_of_a_cache_cannot_write_to_the_terminal(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model(tmp_path / "gpu-1", "Qwen/\x1b[2J\nforged", OLD)
    _, output = run(capsys, "ls")
    assert "\x1b" not in output
    assert "\nforged" not in output


def test_a_log_right_that_lacks_is_told(cluster: Kubelet, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model(tmp_path / "gpu-1", "Qwen/Idle", OLD)
    read = cluster.read

    async def refusing(path: str, query: Mapping[str, str], most_bytes: int) -> bytes:
        if path.endswith("/log"):
            raise Forbidden(403, "Forbidden", "no")
        return await read(path, query, most_bytes)

    cluster.read = refusing  # type: ignore[method-assign]
    code, output = run(capsys, "ls")
    assert (code, "you may not get pods/log in team-a" in output) == (1, True)


def test_a_pod_that_somebody_deletes_is_told(
    cluster: Kubelet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(resource: Resource, namespace: str | None, name: str) -> Manifest:
        raise NotFound(404, "NotFound", "no")

    monkeypatch.setattr(cluster, "get", gone)
    assert "somebody deleted the pod" in run(capsys, "ls")[1]
