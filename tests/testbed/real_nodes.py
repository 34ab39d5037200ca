"""The real nodes of the cluster: the first one, and more of them on request.

Each further node has a mount, process and network namespace of its own, inside the process namespace of the test bed.
A link and a route lead to its pods. It takes the images of the first node, and one GPU is claimed for it. Only pods
that ask for it run there.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from tests.testbed.binaries import place
from tests.testbed.cache import StepFailed, say
from tests.testbed.layout import MOST_NODES, NAME, Layout, RealNodeNames
from tests.testbed.node import CONTAINERD_TOOLS, RealNode
from tests.testbed.registry import serving
from tests.testbed.sandbox import HOLDER, Sandbox, environment, hierarchies, stop, wait_for
from tests.testbed.simulated import real_node_labels, real_node_patch
from tests.testbed.teardown import remove_node

PROGRAMS = ("containerd", "kubelet", "kube-proxy")
FIRST = RealNodeNames(1)


class Kubectl(Protocol):
    def __call__(self, *arguments: str) -> str: ...


class RealNodes:
    """Starts and stops the real nodes of one test bed. `kubectl` is the test bed's own."""

    def __init__(self, at: Layout, sandbox: Sandbox, kubectl: Kubectl) -> None:
        self._at, self._sandbox, self._kubectl = at, sandbox, kubectl
        self.first = RealNode(at, sandbox, FIRST)

    def more(self) -> list[RealNodeNames]:
        """Those beside the first that run or have left something, by number."""
        every = (RealNodeNames(number) for number in range(2, MOST_NODES + 1))
        return [node for node in every if self._at.of_node(node).root.exists()]

    def add(self, node: RealNodeNames, pause_archive: Path) -> None:
        """Starts a node beside the first, or what is missing of it. Returns when it is ready."""
        sandbox, real = self._of(node)
        if not self._sandbox.running("kubelet"):
            raise StepFailed(f"{node.name} needs the first real node, which does not run: start it with `up`")
        if not sandbox.holders():
            say(f"starting the node {node.name}")
        self._place(node)
        sandbox.create()
        self._connect(node, sandbox)
        real.take_images(self._at)
        real.up(pause_archive)
        self.ready(node)

    def load(self, archive: Path) -> None:
        """Imports the images of an archive into all nodes that run."""
        for node in (FIRST, *self.more()):
            sandbox, real = self._of(node)
            if node == FIRST or sandbox.running("containerd"):
                real.load(archive)

    def remove(self, node: RealNodeNames) -> None:
        """Ends a node beside the first, and removes it from the cluster. The cluster then deletes its pods."""
        sandbox, _ = self._of(node)
        remove_node(self._at.of_node(node), sandbox)
        if self._sandbox.running("kube-apiserver"):
            self._kubectl("delete", "node", node.name, "--ignore-not-found")

    def lose(self, node: RealNodeNames) -> None:
        """Cuts its link and ends all its processes, as a loss of power does. `add` starts it again."""
        sandbox, _ = self._of(node)
        # Without the cut, the kernel would still tell the other ends of its connections that they are closed.
        _in_network(self._sandbox.holders()[0].pid, _CUT, node.folder)
        stop(sandbox.holders(), self._at.of_node(node).libexec / HOLDER, patience=0)

    def stop_kubelet(self, node: RealNodeNames) -> None:
        """Nobody reports on the node and its pods, and they go on. `add` starts the kubelet again."""
        self._of(node)[0].stop("kubelet")

    def registry(self, node: RealNodeNames, image: str, seconds: float) -> AbstractContextManager[None]:
        """A registry on this node that knows only this image, which the node has, by any tag."""
        sandbox, real = self._of(node)
        manifest = self._at.of_node(node).content / real.digest(image).removeprefix("sha256:")
        return serving(sandbox.enter([]), manifest, seconds)

    def status(self) -> Mapping[str, Mapping[str, list[int]]]:
        """The pids of each program of each further node."""
        return {
            node.name: {
                name: [process.pid for process in self._of(node)[0].running(name)] for name in (HOLDER, *PROGRAMS)
            }
            for node in self.more()
        }

    def ready(self, node: RealNodeNames) -> None:
        """Waits for the node, labels it, and sets its GPUs until they stay in its status."""
        log = self._at.of_node(node).logs / "kubelet.log"
        wait_for(f"the kubelet of {node.name}", lambda: self._kubelet_ready(node), log=log, seconds=90)
        labels = [f"{key}={value}" for key, value in real_node_labels(node).items()]
        self._kubectl("label", "node", node.name, "--overwrite", *labels)
        # A starting kubelet without its saved state removes unknown resources from its node, so this must be repeated.
        wait_for(f"the GPUs of {node.name}", lambda: self._gpus_shown(node), log=log, seconds=30)
        self._kubectl("wait", f"node/{node.name}", "--for=condition=Ready", "--timeout=60s")

    def _of(self, node: RealNodeNames) -> tuple[Sandbox, RealNode]:
        if node.number == 1:
            return self._sandbox, self.first
        sandbox = Sandbox(self._at.of_node(node), inside=self._sandbox)
        return sandbox, RealNode(self._at, sandbox, node)

    def _place(self, node: RealNodeNames) -> None:
        """A program is known by its path, so each node has its own."""
        own = self._at.of_node(node)
        for folder in (own.libexec, own.logs):
            folder.mkdir(parents=True, exist_ok=True)
        for name in (HOLDER, *PROGRAMS, *CONTAINERD_TOOLS):
            place(self._at.libexec / name, own.libexec / name)

    def _connect(self, node: RealNodeNames, sandbox: Sandbox) -> None:
        """The link between the first node and this one, the routes over it, and the cgroups. It can be repeated."""
        inner, outer = sandbox.holders()[0].pid, self._sandbox.holders()[0].pid
        here, there = node.link
        _in_network(outer, _OUTER, node.folder, str(inner), here, there, node.pod_range)
        _in_network(inner, _INNER, here, there, node.address)
        for hierarchy in hierarchies():
            (hierarchy / NAME / node.folder).mkdir(exist_ok=True)

    def _kubelet_ready(self, node: RealNodeNames) -> bool:
        if not self._of(node)[0].running("kubelet"):
            log = self._at.of_node(node).logs / "kubelet.log"
            tail = log.read_text(errors="replace").splitlines()[-20:]
            raise StepFailed("\n".join([f"the kubelet of {node.name} has ended; the end of its log:", *tail]))
        with suppress(StepFailed):
            return self._kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/healthz").strip() == "ok"
        return False

    def _gpus_shown(self, node: RealNodeNames) -> bool:
        patch = real_node_patch(node)
        arguments = ("--subresource=status", "--type=strategic", "-p", json.dumps(patch))
        self._kubectl("patch", "node", node.name, *arguments)
        time.sleep(0.5)
        status = json.loads(self._kubectl("get", "node", node.name, "-o", "json"))["status"]
        room = patch["status"]
        return all(status[kind].get(key) == value for kind in room for key, value in room[kind].items())


_OUTER = """\
link=$1 inner=$2 here=$3 there=$4 pods=$5
ip link show dev "$link" > /dev/null 2>&1 || ip link add "$link" type veth peer name uplink netns "$inner"
ip addr replace "$here/30" dev "$link"
ip link set dev "$link" up
ip route replace "$pods" via "$there" dev "$link"
"""
_CUT = 'ip link delete dev "$1"'
_INNER = """\
here=$1 there=$2 address=$3
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set dev lo up
ip link show dev cni0 > /dev/null 2>&1 || ip link add cni0 type bridge
ip addr replace "$address/24" dev cni0
ip link set dev cni0 up
ip addr replace "$there/30" dev uplink
ip link set dev uplink up
ip route replace default via "$here" dev uplink src "$address"
"""


def _in_network(pid: int, script: str, *words: str) -> None:
    """Runs a script in the network namespace of a process, and in no other of its namespaces."""
    argv = ["nsenter", "--target", str(pid), "--net", "/bin/sh", "-eu", "-c", script, "sh", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise StepFailed(f"the network of a node could not be made: {done.stderr.strip()}")
