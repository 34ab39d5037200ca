"""Upgrades a running installation from another commit to this one, and back, under traffic.

    python -m bench.upgrade --from 57853e4

On the test bed, with the real SGLang: the image and the chart of the other commit come from a `git worktree` of it. One
deployment on the real node answers short requests and streams all the time; some more run on simulated nodes. After
each step this prints what the operator wrote, whether a pod was replaced, and how many requests were lost. Exit code 1
if a pod was replaced, a request was lost, a child or an Event was written, or a status was written twice for anything
but the class of the load, which follows the traffic.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import httpx

from tests.qd import own_namespace, pods, qd, simulated, wait_load, wait_ready
from tests.testbed import images
from tests.testbed.audit import AuditLog
from tests.testbed.bed import CHART, REPOSITORY, SIMULATED, VALUES, Release, bring_up, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest
from tests.testbed.volumes import claim_manifests

MODEL = "upgrade-served"
SIMULATED_OBJECTS = 6
SETTLE_SECONDS = 45.0
LOAD = "summary.load"


@dataclass(frozen=True, slots=True)
class Build:
    """A commit's image and chart; `content` tells its image from another one under the same tag."""

    name: str
    archive: Path
    chart: Path

    @property
    def content(self) -> str:
        return self.archive.parent.name


@dataclass(slots=True)
class Traffic:
    """Short answers and streams, one after the other, until it is stopped."""

    url: str
    key: str
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, tokens: int) -> None:
        while not self._stop.wait(0.2):
            try:
                problem = self._ask(tokens)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                self.lost.append(problem)
            else:
                self.answered += 1

    def stop(self) -> None:
        self._stop.set()

    def _ask(self, tokens: int) -> str:
        """Empty for a whole answer, else what was wrong."""
        message = {"role": "user", "content": f"{uuid4().hex}: tell me"}
        body = {"model": MODEL, "messages": [message], "stream": True, "max_tokens": tokens, "ignore_eos": True}
        with (
            httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=600) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            if answer.status_code != 200:
                return f"HTTP {answer.status_code}: {answer.read().decode()[:200]}"
            return "" if '"finish_reason":"length"' in answer.read().decode().replace(" ", "") else "cut short"


@dataclass(slots=True)
class Statuses:
    """Every status of each QwenDeployment in a namespace, by looking twice a second.

    A watch would end when Helm changes the CustomResourceDefinition.
    """

    kubectl: Kubectl
    space: str
    seen: dict[str, list[Manifest]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        """Look until `stop` is called."""
        while not self._stop.wait(0.5):
            for deployment in self.kubectl.list("qd", self.space):
                self.take(deployment)

    def stop(self) -> None:
        self._stop.set()

    def take(self, deployment: Manifest) -> None:
        """Keep a status that differs from the one before."""
        statuses = self.seen.setdefault(deployment["metadata"]["name"], [])
        status = deployment.get("status", {})
        if not statuses or statuses[-1] != status:
            statuses.append(status)

    def changes(self) -> dict[str, list[set[str]]]:
        """For each object and each write, the paths of the members that it changed."""
        return {name: [_changed(*pair) for pair in pairwise(statuses)] for name, statuses in self.seen.items()}


def _changed(old: Manifest, new: Manifest) -> set[str]:
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _leaves(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _leaves(member, f"{path}[{index}]")
    else:
        yield path, value


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of the commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", path, commit], cwd=REPOSITORY, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=REPOSITORY, check=True)


def build_of(tree: Path, name: str) -> Build:
    """The operator's image of a checkout, built by that checkout's own code."""
    command = [sys.executable, "-m", "tests.testbed.images", "operator"]
    done = subprocess.run(command, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    return Build(name, Path(done.stdout.splitlines()[-1]), tree / CHART.relative_to(REPOSITORY))


def install_build(bed: Cluster, build: Build) -> Release:
    """Install or upgrade to this build; returns when its pods are ready."""
    bed.load_image(build.archive)
    release = Release()
    content = [
        word
        for part in ("operator", "gateway")
        for word in ("--set-string", f"{part}.podAnnotations.content={build.content}")
    ]
    helm = [str(bed.bin_dir / "helm"), "upgrade", "--install", release.name, str(build.chart), "-f", str(VALUES)]
    options = ["-n", release.namespace, "--create-namespace", *content, "--wait", "--timeout", "4m"]
    subprocess.run([*helm, *options], env=bed.environment(), check=True, capture_output=True)
    return release


def step(bed: Cluster, kubectl: Kubectl, build: Build, space: str, traffic: Traffic) -> list[str]:
    """Go to this build; prints what happened, and returns what must not happen."""
    before = _uids(kubectl, space)
    audit, answered, lost, statuses = (
        AuditLog(bed.audit_log),
        traffic.answered,
        len(traffic.lost),
        Statuses(kubectl, space),
    )
    follower = threading.Thread(target=statuses.follow)
    follower.start()
    try:
        release = install_build(bed, build)
        time.sleep(SETTLE_SECONDS)
    finally:
        statuses.stop()
        follower.join()
    writes = audit.writes(release.operator_user, space)
    count = sum(write.resource == "qwendeployments/status" for write in writes)
    others = [str(write) for write in writes if write.resource != "qwendeployments/status"]
    replaced = before != _uids(kubectl, space)
    gone = traffic.lost[lost:]
    print(
        f"to {build.name}: {traffic.answered - answered} requests answered, {len(gone)} lost; pods replaced: "
        f"{'yes' if replaced else 'none'}; status writes: {count}; other writes: {others or 'none'}",
        flush=True,
    )
    worded = {name: [paths for paths in changes if paths - {LOAD}] for name, changes in statuses.changes().items()}
    for name, changes in worded.items():
        print(f"  {name}: {[sorted(paths) for paths in changes]}", flush=True)
    return [
        *(["a pod was replaced"] if replaced else []),
        *(f"lost: {problem}" for problem in gone),
        *(f"written: {write}" for write in others),
        *(f"status of {name} written {len(changes)} times" for name, changes in worded.items() if len(changes) > 1),
    ]


def _uids(kubectl: Kubectl, space: str) -> set[str]:
    engines = kubectl.list("pods", space, "qwen-operator.dev/role=engine")
    return {str(pod["metadata"]["uid"]) for pod in engines}


def _serve(bed: Cluster, kubectl: Kubectl, space: str) -> None:
    """Two replicas of the real engine, and deployments on simulated nodes."""
    kubectl.apply(*claim_manifests("models", space, bed.models_dir))
    kubectl.apply(qd(space, "served", model=MODEL, source={"uri": "pvc://models/tiny-qwen2"}, replicas=2))
    product = SIMULATED[0].product
    names = [f"simulated-{number}" for number in range(SIMULATED_OBJECTS)]
    kubectl.apply(*(simulated(space, name, product) for name in names))
    for name in ("served", *names):
        wait_ready(kubectl, space, name, timeout=300)
    wait_load(kubectl, space, "served")
    assert len(pods(kubectl, space, "served")) == 2


def measure(bed: Cluster, kubectl: Kubectl, old: Build, new: Build) -> list[str]:
    """From the old build to the new one and back; returns what must not happen."""
    release = install_build(bed, old)
    with own_namespace(kubectl, "upgrade") as space:
        _serve(bed, kubectl, space)
        address = kubectl.json("get", "service", release.gateway, "-n", release.namespace)["spec"]["clusterIP"]
        traffic = Traffic(f"http://{address}", release.key(kubectl))
        threads = [threading.Thread(target=traffic.run, args=(tokens,)) for tokens in (8, 200)]
        for thread in threads:
            thread.start()
        try:
            return [
                *step(bed, kubectl, new, space, traffic),
                *step(bed, kubectl, old, space, traffic),
            ]
        finally:
            traffic.stop()
            for thread in threads:
                thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.upgrade", description=__doc__)
    parser.add_argument("--from", dest="commit", required=True, help="the commit to upgrade from")
    commit = parser.parse_args().commit
    bed = bring_up()
    kubectl = Kubectl(bed.bin_dir / "kubectl", bed.kubeconfig)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with worktree(commit) as tree:
        problems = measure(bed, kubectl, build_of(tree, commit), Build("this commit", images.operator_archive(), CHART))
        bed.load_image(images.operator_archive())
        install(bed)
    print("\n".join(problems) or "nothing was replaced, lost or written without need")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
