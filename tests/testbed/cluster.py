"""The test bed as one object, for the command line and the tests."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.testbed.binaries import ensure_binaries, place
from tests.testbed.cache import StepFailed, elapsed, locked, say
from tests.testbed.controlplane import ControlPlane
from tests.testbed.exporter import Exporter, exporting
from tests.testbed.layout import SIMULATED_METRICS_RANGE, Layout, RealNodeNames, layout, write
from tests.testbed.node import CONTAINERD_TOOLS
from tests.testbed.ownership import OWNER, abandoned, owned
from tests.testbed.packages import ensure_packages
from tests.testbed.pki import ensure_pki, pki_is_stale
from tests.testbed.policies import PolicyEngine
from tests.testbed.real_nodes import FIRST, RealNodes
from tests.testbed.registry import serving
from tests.testbed.sandbox import HOLDER, Sandbox
from tests.testbed.simulated import (
    MORE_POOL,
    POOL_LABEL,
    USUAL_TAINTS,
    Pool,
    gpu_labels,
    node_manifest,
    start_kwok,
)
from tests.testbed.teardown import teardown

USER_PROGRAMS = ("kubectl", "helm")
DAEMON_PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kwok",
    "kubelet",
    "kube-proxy",
    "kube-router",
    "coredns",
    "containerd",
)
API_CLIENTS = ("kwok", "kubelet", "kube-proxy", "coredns")


@dataclass(frozen=True, slots=True)
class OwnNodes:
    """Nodes of one owner. A pod with the fields `pod` runs on one of them."""

    names: tuple[str, ...]
    pod: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What simulated nodes offer instead of whole GPUs: their resources, and labels that differ."""

    resources: Mapping[str, str]
    labels: Mapping[str, str]


class Cluster:
    """One test bed per state folder. Several objects, even in several processes, can use the same one."""

    def __init__(self, at: Layout | None = None) -> None:
        self._at = at or layout()
        self._sandbox = Sandbox(self._at)
        self._control_plane = ControlPlane(self._at, self._sandbox)
        self._real = RealNodes(self._at, self._sandbox, self.kubectl)
        self._policies = PolicyEngine(self._at, self._sandbox)

    @property
    def state_dir(self) -> Path:
        return self._at.root

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig (user testbed-admin)."""
        return self._at.kubeconfig

    @property
    def bin_dir(self) -> Path:
        """Folder of kubectl and helm."""
        return self._at.bin

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON object per line. The test bed's own requests have their own users."""
        return self._at.audit_log

    @property
    def models_dir(self) -> Path:
        """The model folders that tests mount as hostPath volumes. It is empty after a fresh start."""
        return self._at.models

    @property
    def logs_dir(self) -> Path:
        return self._at.logs

    def environment(self) -> dict[str, str]:
        """Variables with which programs use this cluster and leave nothing in the user's home folder."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{self.bin_dir}:{os.environ.get('PATH', os.defpath)}",
            "KUBECACHEDIR": str(self._at.root / "home" / "kubectl"),
            **{
                f"HELM_{use}_HOME": str(self._at.root / "home" / "helm" / use.lower())
                for use in ("CACHE", "CONFIG", "DATA")
            },
        }

    def is_up(self) -> bool:
        """Whether the API server answers."""
        return bool(self._sandbox.holders()) and bool(self._sandbox.running("kube-apiserver"))

    def up(self, *, node: bool = True, simulated: Sequence[Pool] = ()) -> None:
        """Starts the cluster, or its missing parts. First it removes what a crash left behind.

        node: also start the real node. If false, a running one stays. simulated: nodes that must exist afterwards.
        """
        start = time.monotonic()
        _must_be_root()
        ensure_packages()
        parts = ensure_binaries()
        with locked("cluster"):
            self._clear_if_stale(parts)
            self._place(parts)
            self._sandbox.create()
            self._sandbox.connect()
            self._start(parts, node=node, simulated=simulated)
        say(f"the cluster is up after {elapsed(time.monotonic() - start)}")

    def down(self) -> None:
        """Removes everything except the cache. Harmless if nothing is running."""
        _must_be_root()
        with locked("cluster"):
            teardown(self._at, self._sandbox)
        say("the test bed is down")

    def status(self) -> dict[str, Any]:
        """The pids of each program, and the nodes if the API server answers."""
        names = (HOLDER, *DAEMON_PROGRAMS)
        running = {name: [process.pid for process in self._sandbox.running(name)] for name in names}
        nodes: list[str] = []
        if running["kube-apiserver"]:
            nodes = self.kubectl("get", "nodes", "-o", "name", "--request-timeout=5s").split()
        more = {"more": self._real.status()} if self._real.more() else {}
        return {"state": str(self.state_dir), "processes": running, **more, "nodes": nodes}

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Runs kubectl as the test bed's own user and returns its output. Raises StepFailed with its error text."""
        argv = [str(self._at.bin / "kubectl"), "--kubeconfig", str(self._at.kubeconfig_of("testbed")), *arguments]
        env = {**os.environ, **self.environment()}
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=env)
        if done.returncode != 0:
            raise StepFailed(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def stop_apiserver(self) -> None:
        """Starts an API outage. etcd, the pods and everything else keep running."""
        self._control_plane.stop_apiserver()

    def start_apiserver(self) -> None:
        """Ends the outage. Returns when the API server answers. Clients may need up to a minute to reconnect."""
        self._control_plane.start_apiserver()

    def stop_dns(self) -> None:
        """Names have no addresses until start_dns."""
        self._real.first.stop_dns()

    def start_dns(self) -> None:
        self._real.first.start_dns()

    def restart_kubelet(self) -> None:
        """Restarts the kubelet. Returns when the node is ready and has its GPUs again."""
        self._real.first.restart_kubelet()
        self._real.ready(FIRST)

    def remove_node(self, name: str) -> None:
        """Removes a simulated node. The cluster's controllers then remove its pods. No error if it does not exist."""
        self.kubectl("delete", "node", name, "--ignore-not-found")

    @contextmanager
    def own_nodes(
        self, pool: Pool, *, exclusive: bool = True, answering: bool = False, parts: Parts | None = None
    ) -> Iterator[OwnNodes]:
        """Adds simulated nodes, whatever other nodes there are, and removes them at the end of the block.

        exclusive: their taint keeps the pods of others away. answering: an exporter, while there is one, answers for
        their pods. parts: what the nodes offer instead of whole GPUs.
        """
        # It begins with a letter: Kubernetes reads an unquoted 6087e4 as a number, unlike the writer of YAML used here.
        label = f"p{uuid4().hex[:6]}"
        taints = {POOL_LABEL: label} if exclusive else USUAL_TAINTS
        tolerations = [{"key": key, "operator": "Equal", "value": value} for key, value in taints.items()]
        own = OwnNodes(
            names=tuple(f"{pool.product.lower()}-{label}-{number}" for number in range(1, pool.nodes + 1)),
            pod={"nodeSelector": {POOL_LABEL: label}, "tolerations": tolerations},
        )
        labels = {**gpu_labels(pool.product, pool.gpus), POOL_LABEL: label, **owned()}
        pod_range = SIMULATED_METRICS_RANGE if answering else ""
        gpus, resources = (pool.gpus, {}) if parts is None else (0, dict(parts.resources))
        labels |= {} if parts is None else parts.labels
        manifests = [
            node_manifest(name, labels, gpus, taints=taints, pod_range=pod_range, resources=resources)
            for name in own.names
        ]
        try:
            self._apply_nodes(manifests)
            self._wait_ready(own.names)
            yield own
        finally:
            self.kubectl("delete", "nodes", "-l", f"{POOL_LABEL}={label}")

    def keep_real_nodes(self, number: int) -> None:
        """Lets exactly so many real nodes run, 1 to MOST_NODES. The first one must run."""
        with locked("cluster"):
            for node in self._real.more():
                if node.number > number:
                    self._real.remove(node)
            for node in (RealNodeNames(place) for place in range(2, number + 1)):
                self._real.add(node, self._pause())

    @contextmanager
    def more_real_nodes(self, number: int) -> Iterator[OwnNodes]:
        """Exactly so many real nodes beside the first, each with one GPU. Afterwards there are as many as before."""
        before = 1 + len(self._real.more())
        nodes = [RealNodeNames(place) for place in range(2, number + 2)]
        toleration = {"key": POOL_LABEL, "operator": "Equal", "value": MORE_POOL}
        try:
            self.keep_real_nodes(number + 1)
            yield OwnNodes(
                tuple(node.name for node in nodes),
                {"nodeSelector": {POOL_LABEL: MORE_POOL}, "tolerations": [toleration]},
            )
        finally:
            self.keep_real_nodes(before)

    def lose_real_node(self, name: str) -> None:
        """Ends everything on a real node that is not the first, as a loss of power does."""
        self._real.lose(self._node_called(name))

    def stop_kubelet(self, name: str) -> None:
        """The pods of a real node that is not the first go on, and nobody reports on them."""
        self._real.stop_kubelet(self._node_called(name))

    def return_real_node(self, name: str) -> None:
        """After `lose_real_node` or `stop_kubelet`: starts what is missing. Returns when the node is ready."""
        self._real.add(self._node_called(name), self._pause())

    def slow_registry(self, node: str, image: str, seconds: float) -> AbstractContextManager[None]:
        """Until the block ends, this node can pull `image` under other tags. It waits for the registry each time."""
        return self._real.registry(self._node_called(node), image, seconds)

    def registry(self, manifest: Path) -> AbstractContextManager[None]:
        """Until the block ends, the first real node can pull the image of this manifest from `localhost`.

        The file has its SHA-256 as its name, and the blobs of the image are beside it, under theirs.
        """
        return serving(self._sandbox.enter([]), manifest)

    def _node_called(self, name: str) -> RealNodeNames:
        return next(node for node in self._real.more() if node.name == name)

    def _pause(self) -> Path:
        return ensure_binaries()["pause"] / "pause.tar"

    def exporter(self) -> AbstractContextManager[Exporter]:
        """An exporter that serves chosen metrics for the simulated engines until the block ends."""
        return exporting(self._sandbox, self._at.root)

    @contextmanager
    def enforcing_policies(self) -> Iterator[None]:
        """Enforces NetworkPolicies on the real node until the block ends. The rest of the time nothing does."""
        self._policies.start()
        try:
            yield
        finally:
            self._policies.stop()

    def load_image(self, archive: Path) -> None:
        """Imports an image archive (OCI or Docker) into all real nodes that do not have this file's images."""
        self._real.load(archive)

    def images(self) -> list[str]:
        """References of the images in the first real node."""
        return self._real.first.images()

    def _clear_if_stale(self, parts: Mapping[str, Path]) -> None:
        """Before a start, removes what a crash, or a test bed with other programs, left behind."""
        if not self.state_dir.exists():
            return
        built_of = self.state_dir / "parts"
        same = built_of.exists() and built_of.read_text() == _names(parts)
        if self._sandbox.holders() and same and not pki_is_stale(self._at):
            return
        say("clearing what an earlier test bed left behind")
        teardown(self._at, self._sandbox)

    def _place(self, parts: Mapping[str, Path]) -> None:
        for folder in (self._at.bin, self._at.libexec, self._at.logs, self._at.models):
            folder.mkdir(parents=True, exist_ok=True)
        write(self.state_dir / "parts", _names(parts))
        for name in USER_PROGRAMS:
            place(_program(parts, name), self._at.bin / name)
        for name in (*DAEMON_PROGRAMS, *CONTAINERD_TOOLS):
            place(_program(parts, name), self._at.libexec / name)
        place(parts["pause"] / "pause", self._at.libexec / HOLDER)
        place(parts["kwok"] / "stages.yaml", self._at.libexec / "kwok-stages.yaml")

    def _start(self, parts: Mapping[str, Path], *, node: bool, simulated: Sequence[Pool]) -> None:
        ensure_pki(self._at)
        if not self._sandbox.running("kube-apiserver"):
            # After an outage these programs may retry only after a minute. A restart avoids that wait.
            for name in API_CLIENTS:
                self._sandbox.stop(name, patience=5)
        self._control_plane.up()
        start_kwok(self._at, self._sandbox)
        if node:
            self._real.first.up(parts["pause"] / "pause.tar")
        wanted = [
            node_manifest(name, gpu_labels(pool.product, pool.gpus), pool.gpus)
            for pool in simulated
            for name in pool.names()
        ]
        if wanted:
            self._apply_nodes(wanted)
            self._wait_ready([manifest["metadata"]["name"] for manifest in wanted])
        if node:
            self._real.ready(FIRST)
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        """Removes what owners that were killed have left."""
        for kind in ("namespaces", "nodes"):
            items = json.loads(self.kubectl("get", kind, "-l", OWNER, "-o", "json"))["items"]
            if names := abandoned(items):
                say(f"removing {kind} that a killed process left behind: {' '.join(names)}")
                self.kubectl("delete", kind, *names, "--wait=false")

    def _wait_ready(self, names: Sequence[str]) -> None:
        nodes = [f"node/{name}" for name in names]
        self.kubectl("wait", *nodes, "--for=condition=Ready", "--timeout=60s")

    def _apply_nodes(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "--field-manager=testbed", "-f", "-", stdin=document
        )


def _must_be_root() -> None:
    if os.geteuid() != 0:
        raise StepFailed("the test bed creates namespaces, mounts and cgroups on this machine: run it as root")


def _names(parts: Mapping[str, Path]) -> str:
    return "".join(f"{name} {folder.name}\n" for name, folder in sorted(parts.items()))


def _program(parts: Mapping[str, Path], name: str) -> Path:
    return next(folder / name for folder in parts.values() if (folder / name).exists())
