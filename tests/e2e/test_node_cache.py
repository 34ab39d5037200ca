"""A cache in a folder of each node: it is too small for all models, and a node loses its power.

These tests change the values of the release, and set them back.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.fetch.files import RemoteFile
from qwen_operator.fetch.store import Store, read_manifest
from tests.e2e.conftest import Gateway
from tests.e2e.hub_pod import Hub, Repositories, start_hub
from tests.e2e.timeline import Timeline
from tests.e2e.traffic import Trickle, flowing, short_answer
from tests.qd import own_namespace, pods, qd, wait_condition, wait_ready
from tests.testbed.bed import install
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.layout import NODE
from tests.testbed.ownership import owned
from tests.testbed.simulated import MORE_PRODUCT
from tests.unit.fetch.hub import COMMIT, REPOSITORY

# Each takes two to four minutes: the downloads must be larger than the smallest cache, and a node that is lost is
# missed only after 40 seconds.
pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(900)]

# The smallest cache has 1 GiB.
SIZE, TOO_LARGE, SLOW = 400_000_000, 1_500_000_000, "Qwen/Slow"
OLDER, OLD, NEW, LARGE = "Qwen/Older", "Qwen/Old", "Qwen/New", "Qwen/Large"
FILLED = (OLDER, OLD, NEW, LARGE, SLOW)
HAS = Repositories(
    dict.fromkeys((REPOSITORY, *FILLED), "tiny-qwen2"),
    rates={SLOW: 8_000_000},
    fillers={LARGE: TOO_LARGE, SLOW: SIZE // 2, **dict.fromkeys((OLDER, OLD, NEW), SIZE)},
)
CHUNK = 16 << 20


@dataclass(frozen=True, slots=True)
class Scene:
    """A namespace that allows folders of the node, and its folder `cache` on every node: they share one disk."""

    bed: Cluster
    kubectl: Kubectl
    hub: Hub
    space: str
    cache: Path

    def apply(self, name: str, repository: str = REPOSITORY, **spec: object) -> None:
        source = {"uri": f"hf://{repository}"}
        self.kubectl.apply(qd(self.space, name, model=f"{self.space}-{name}", source=source, **spec))

    def pods(self, name: str) -> list[Manifest]:
        return pods(self.kubectl, self.space, name)

    def runs(self, name: str) -> list[tuple[str, int]]:
        """Each engine pod, and how often its container was started again."""
        found = self.pods(name)
        return [(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in found]

    def summary(self, name: str) -> Manifest:
        status = (self.kubectl.get("qd", name, self.space) or {}).get("status", {})
        return dict(status.get("summary", {}))

    def fetched(self, name: str, timeout: float = 180) -> None:
        """Wait until one node has the model, and the pod that fetched it is gone."""
        labels = f"qwen-operator.dev/deployment={name}"

        def there() -> bool:
            nodes = self.summary(name).get("cache", "")
            return "1/1 nodes" in nodes and not self.kubectl.list("pods", self.space, labels)

        wait_for(f"{name} is in the cache of a node", there, timeout)

    def ls(self, node: str, *words: str) -> str:
        """What `qwen-operator cache ls` prints about a node."""
        program = str(Path(sys.executable).with_name("qwen-operator"))
        where = ("-n", self.space, "--node", node)
        command = [program, "cache", "ls", *where, *words, f"--kubeconfig={self.bed.kubeconfig}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self, node: str) -> dict[str, str]:
        """The state of each model in the cache of a node."""
        print(f"\n$ qwen-operator cache ls -n {self.space} --node {node}\n{self.ls(node)}")
        rows = json.loads(self.ls(node, "-o", "json"))["models"]
        return {row["model"]: row["state"] for row in rows}

    def leases(self, repository: str) -> dict[Path, float]:
        """When each pod asked for a model."""
        place = self.cache / "leases" / f"hf--{repository.replace('/', '--')}--{COMMIT}"
        return {path: path.stat().st_mtime for path in place.iterdir()}

    def age(self, repository: str, hours: float) -> None:
        """Let the model look as if the last pod had asked for it so long ago."""
        then = time.time() - hours * 3600
        for path in self.leases(repository):
            os.utime(path, (then, then))

    def is_whole(self, repository: str) -> bool:
        """Whether every file of a model has the checksum of the hub."""
        place = self.cache / "models" / "hf" / repository.replace("/", "--") / COMMIT
        return all(_is_right(file, place) for file in read_manifest(place) or [NO_FILE])


NO_FILE = RemoteFile("none", 0, "0" * 40)


def _is_right(file: RemoteFile, folder: Path) -> bool:
    digest, path = file.digest(), folder / file.path
    if digest is None or not path.exists():
        return False
    digest.update(path.read_bytes())
    return digest.hexdigest() == file.checksum


@pytest.fixture(scope="module")
def root(bed: Cluster, kubectl: Kubectl, claim_space: str) -> Iterator[tuple[Hub, Path]]:
    """The hub, and the folder of the cache."""
    hub = start_hub(kubectl, claim_space, HAS)
    folder = bed.models_dir.parent / "small-cache"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if (room := Store(folder, 0, kept_free_percent=15).free()) < 2 * SIZE + TOO_LARGE:
        pytest.fail(f"a cache on this disk may have {room} bytes, because 15 % stay free: these tests need 2.3 GB")
    folder.chmod(0o777)
    values = ("cache.type=HostPath", f"cache.path={folder}", "cache.sizeGiB=1", f"hub.url={hub.url}")
    install(bed, *(word for value in values for word in ("--set", value)))
    yield hub, folder
    install(bed)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def scene(bed: Cluster, kubectl: Kubectl, root: tuple[Hub, Path]) -> Iterator[Scene]:
    hub, folder = root
    with own_namespace(kubectl, "n") as space:
        kubectl.namespace(space, {"pod-security.kubernetes.io/enforce": "privileged", **owned()})
        yield Scene(bed, kubectl, hub, space, folder / space)
        # Engines end before their folder goes.
        kubectl.run("delete", "qd", "--all", "-n", space, timeout=180)


def test_what_does_not_run_makes_room_and_what_runs_stays(scene: Scene, gateway: Gateway) -> None:
    kubectl, space, name = scene.kubectl, scene.space, f"{scene.space}-serves"
    scene.apply("serves")
    wait_ready(kubectl, space, "serves", timeout=300)
    wait_for(f"{name} is routed", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 30)
    before = scene.runs("serves")
    clients = [Trickle(partial(short_answer, gateway, name)) for _ in range(2)]
    with flowing(clients):
        for which, repository in (("older", OLDER), ("old", OLD)):
            scene.apply(which, repository, replicas=0, prefetch=True)
            scene.fetched(which)
        found = scene.states(NODE)
        assert (set(found), found[REPOSITORY]) == ({REPOSITORY, OLDER, OLD}, "InUse")
        scene.apply("large", LARGE, prefetch=True)
        obj = wait_condition(kubectl, space, "large", ("Ready", "False", "DiskFull"), timeout=180)
        scene.apply("new", NEW, replicas=0, prefetch=True)
        told = wait_for("that there is no room for now", lambda: _remark(scene, "new"), 120)
        message = condition(obj, "Ready")["message"]
        print(f"\n$ kubectl get qd -n {space} -o wide\n{kubectl.run('get', 'qd', '-n', space, '-o', 'wide')}")
        print(f"large: {message}\nnew: {told}")
        assert "has 1.5 GB, and the cache may have 1.1 GB in all: enlarge cache.sizeGiB (1 GiB)" in message
        assert "no GPU is taken" in message
        assert scene.pods("large") == []
        assert "or run qwen-operator cache rm" in told
        assert "needs 0.4 GB more, the cache has 0.3 GB besides models used within an hour" in told
        # Nothing has gone for what does not fit.
        assert set(scene.states(NODE)) == {REPOSITORY, OLDER, OLD}
        # What runs is the least recently used of all. The container tries again by itself.
        for repository, hours in ((REPOSITORY, 5), (OLDER, 3), (OLD, 2)):
            scene.age(repository, hours)
        scene.fetched("new")
        found = scene.states(NODE)
        assert set(found) == {REPOSITORY, OLD, NEW}
        assert (found[REPOSITORY], found[OLD]) == ("InUse", "Idle")
    lost = [what for client in clients for _, what in client.lost]
    answered = sum(client.answered for client in clients)
    print(f"\n== {answered} requests were answered meanwhile, {len(lost)} were lost")
    assert lost == []
    assert answered > 50
    assert scene.runs("serves") == before
    assert scene.hub.sent(LARGE) < 20_000_000


def _remark(scene: Scene, name: str) -> str:
    """What the condition Planned says of the downloads before engine pods need the model, if one fails."""
    message = str(condition(scene.kubectl.get("qd", name, scene.space), "Planned").get("message", ""))
    return message if "spec.prefetch" in message else ""


@pytest.fixture
def nodes(bed: Cluster) -> Iterator[OwnNodes]:
    with bed.more_real_nodes(1) as nodes:
        yield nodes


def test_a_node_that_lost_its_power_comes_back_with_its_models(scene: Scene, gateway: Gateway, nodes: OwnNodes) -> None:
    kubectl, space, hub, line = scene.kubectl, scene.space, scene.hub, Timeline()
    node, name = nodes.names[0], f"{space}-serves"
    there: dict[str, Any] = {"hardware": {"products": [MORE_PRODUCT]}, "pod": nodes.pod}
    scene.apply("idle", OLDER, replicas=0, prefetch=True, **there)
    scene.fetched("idle")
    scene.age(OLDER, 30)
    scene.apply("serves", **there)
    wait_ready(kubectl, space, "serves", timeout=300)
    [(uid, _)] = scene.runs("serves")
    scene.apply("half", SLOW, replicas=0, prefetch=True, **there)
    wait_for("a part of a download is there", lambda: hub.sent(SLOW) > 4 * CHUNK, 120)
    idle, sent, asked = scene.leases(OLDER), hub.sent(REPOSITORY), scene.leases(REPOSITORY)
    scene.bed.lose_real_node(node)
    half = hub.sent(SLOW)
    line.note(f"{node} has lost its power; the hub has sent {half} of {SIZE // 2} bytes of {SLOW}")
    wait_condition(kubectl, space, "serves", ("Ready", "False", "NodeLost"), timeout=120)
    line.note("the status says NodeLost")
    scene.bed.return_real_node(node)
    line.note(f"{node} is back")
    wait_for("the engine has started again", lambda: any(count for _, count in scene.runs("serves")), 240)
    wait_ready(kubectl, space, "serves", timeout=300)
    wait_for(f"{name} answers", lambda: gateway.chat(name, max_tokens=1).status_code == 200, 60)
    line.note(f"requests are answered; the hub has sent {hub.sent(REPOSITORY) - sent} bytes of {REPOSITORY}")
    scene.fetched("half", timeout=300)
    line.note(f"the download is complete; the hub has sent {hub.sent(SLOW) - half} more bytes of {SLOW}")
    assert [one for one, _ in scene.runs("serves")] == [uid], "it is the same pod"
    assert hub.sent(REPOSITORY) == sent
    assert hub.sent(SLOW) - half <= SIZE // 2 - 4 * CHUNK, "what had arrived stays"
    assert scene.summary("serves")["cache"] == "hit"
    assert [one for one in (REPOSITORY, OLDER, SLOW) if not scene.is_whole(one)] == []
    found = scene.states(node)
    assert (found.pop(SLOW) != "Partial", found) == (True, {REPOSITORY: "InUse", OLDER: "Idle"})
    assert scene.leases(OLDER) == idle
    again = scene.leases(REPOSITORY)
    assert (set(again), min(again.values()) > max(asked.values())) == (set(asked), True)
