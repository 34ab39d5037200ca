"""Half an hour of bad luck under a trickle of answers and streams: all converges, every lost request is explained."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.traffic import Trickle, flowing, short_answer, stream
from tests.qd import pods, qd, wait_ready
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, KubectlError, Manifest, condition, wait_for
from tests.testbed.processes import pods_processes, send

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SECONDS = float(os.environ.get("QWEN_CHAOS_SECONDS", "1800"))
SEED = int(os.environ.get("QWEN_CHAOS_SEED", "1"))
MODEL = "e2e-chaos"
# A deletion, a kill or a change of size can be blamed for what fails within this time after it.
AFTERMATH_SECONDS = 60.0
# The kubelet lets a container that was killed more often wait for minutes: then no operator is there at all.
KILLS = 3
STREAM_TOKENS = 400
"""A stream is open for most of the time between two misfortunes."""


@dataclass(frozen=True, slots=True)
class World:
    bed: Cluster
    kubectl: Kubectl
    release: Release
    space: str
    luck: random.Random

    def delete_a_pod(self) -> str:
        """One of at least two that answer: the last one's end is an outage, whoever serves."""
        present = pods(self.kubectl, self.space, "chaos")
        if sum(condition(pod, "Ready").get("status") == "True" and not _going(pod) for pod in present) < 2:
            return ""
        pod = self.luck.choice(present)["metadata"]["name"]
        self.kubectl.run("delete", "pod", pod, "-n", self.space, "--wait=false")
        return f"pod {pod} deleted"

    def kill_an_operator(self) -> str:
        space = self.release.namespace
        pod = self.luck.choice(self.kubectl.list("pods", space, "app.kubernetes.io/component=operator"))
        name, containers = pod["metadata"]["name"], pod["status"].get("containerStatuses") or ()
        if sum(container["restartCount"] for container in containers) >= KILLS:
            self.kubectl.run("delete", "pod", name, "-n", space, "--grace-period=0", "--force")
            return f"operator {name} deleted by force"
        send(pods_processes(pod["metadata"]["uid"], "qwen-operator run"), signal.SIGKILL)
        return f"operator {name} killed"

    def restart_the_api_server(self) -> str:
        away = self.luck.uniform(1, 20)
        self.bed.stop_apiserver()
        try:
            time.sleep(away)
        finally:
            self.bed.start_apiserver()
        return f"API server away for {away:.0f} s"

    def change_the_size(self) -> str:
        replicas = self.luck.choice([2, 3])
        self.kubectl.run("scale", "qd", "chaos", "-n", self.space, f"--replicas={replicas}")
        return f"scaled to {replicas}"


def _going(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def strike(world: World, deed: Callable[[], str]) -> tuple[float, str]:
    """Do it; what the API server's absence makes fail is tried until it works."""
    return time.monotonic(), wait_for("the deed", lambda: _tried(deed), 240, every=2)


def _tried(deed: Callable[[], str]) -> str:
    try:
        return deed()
    except (KubectlError, ProcessLookupError, IndexError):
        return ""


@pytest.mark.timeout(SECONDS + 1200)
def test_chaos(bed: Cluster, kubectl: Kubectl, release: Release, gateway: Gateway, claim_space: str) -> None:
    source = {"uri": "pvc://models/tiny-qwen2"}
    spec = {"model": MODEL, "source": source, "replicas": 2, "rollout": {"drainSeconds": 20}}
    kubectl.apply(qd(claim_space, "chaos", **spec))
    wait_ready(kubectl, claim_space, "chaos", timeout=300)
    world = World(bed, kubectl, release, claim_space, random.Random(SEED))
    deeds = [world.delete_a_pod, world.kill_an_operator, world.restart_the_api_server, world.change_the_size]
    asks = (partial(short_answer, gateway, MODEL), partial(stream, gateway, MODEL, STREAM_TOKENS))
    trickles = [Trickle(ask) for ask in asks]
    log: list[tuple[float, str]] = []
    start = time.monotonic()
    with flowing(trickles):
        while time.monotonic() - start < SECONDS:
            log.append(strike(world, world.luck.choice(deeds)))
            print(f"{log[-1][0] - start:7.1f} s  {log[-1][1]}", flush=True)
            time.sleep(world.luck.uniform(5, 40))
        wanted = wait_for("the API server", lambda: kubectl.get("qd", "chaos", claim_space), 60)["spec"]["replicas"]
        arguments = (f"--for=jsonpath={{.status.readyReplicas}}={wanted}", "--timeout=300s")
        kubectl.run("wait", "qd/chaos", "-n", claim_space, *arguments, timeout=330)
        wait_for("no pod too many", lambda: len(pods(kubectl, claim_space, "chaos")) == wanted, 120)
    lost = sorted(loss for trickle in trickles for loss in trickle.lost)
    short, streams = (trickle.answered for trickle in trickles)
    print(f"{short} short answers and {streams} whole streams, {len(lost)} lost, after {len(log)} deeds")
    for at, what in lost:
        cause = max((deed for deed in log if deed[0] <= at), default=(start, "nothing"))
        print(f"{at - start:7.1f} s  {what}, {at - cause[0]:.1f} s after: {cause[1]}")
    assert short > SECONDS / 10
    assert streams > SECONDS / 60
    unexplained = [what for at, what in lost if not any(0 <= at - deed[0] < AFTERMATH_SECONDS for deed in log)]
    assert unexplained == []
