"""What the operator costs the API server, and how fast it is: a burst of QwenDeployments on simulated nodes.

    python -m bench.control_plane [--objects 100] [--idle-seconds 60] [--json]

On the test bed: a real API server and scheduler, nodes played by kwok, one program in place of all engines' /metrics,
the operator in its pods with the chart's own settings. Writes are counted from the audit log, times are those of one
watch, CPU seconds are the processes' own. A bare client that creates as many pods, on the same machine in the same
run, is what they are compared to.

Nodes, namespace and objects are the benchmark's own; it removes them at its end, also when it fails or is interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.qd import MODEL, simulated
from tests.testbed.audit import WRITES, AuditLog, Request
from tests.testbed.bed import Release, bring_up, install
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.ownership import owned
from tests.testbed.processes import pods_processes
from tests.testbed.simulated import Pool

PRODUCT = "NVIDIA-L4"
GPUS = 8
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds, unless the name says otherwise. `writes` are of one object from its creation until it is Ready."""

    objects: int
    writes_per_object: float
    writes: dict[str, float]
    reads_per_object: float
    pod_p50: float
    pod_p99: float
    all_ready: float
    bare_client: float
    operator_cpu: float
    operator_memory_mib: float
    idle_writes: int
    idle_lease_writes: int
    idle_cpu: float
    restart_writes: int


class Watch:
    """When each object of a kind first looked a certain way, by one `kubectl get --watch`."""

    def __init__(self, kubectl: Kubectl, kind: str, space: str, name: Callable[[Manifest], str | None]) -> None:
        command = [str(kubectl.binary), f"--kubeconfig={kubectl.kubeconfig}", "get", kind, "-n", space]
        command += ["--watch", "-o", "json", "--output-watch-events=false"]
        self.seen: dict[str, float] = {}
        self._name = name
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        decoder, rest = json.JSONDecoder(), ""
        while part := os.read(self._process.stdout.fileno(), 1 << 16).decode(errors="replace"):
            now = time.time()
            rest = (rest + part).lstrip()
            while rest:
                try:
                    obj, end = decoder.raw_decode(rest)
                except ValueError:
                    break
                rest = rest[end:].lstrip()
                if name := self._name(obj):
                    self.seen.setdefault(name, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it is measured: the test bed with the chart, nodes for the replicas, and a namespace."""

    bed: Cluster
    kubectl: Kubectl
    release: Release
    nodes: OwnNodes
    space: str


def measure(stage: Stage, objects: int, idle_seconds: float) -> Result:
    """One burst, one idle time and one restart."""
    kubectl, release, space = stage.kubectl, stage.release, stage.space
    bare = _bare_client(stage, objects)
    manifests = [simulated(space, f"qd-{number}", PRODUCT, pod=stage.nodes.pod) for number in range(objects)]
    audit = AuditLog(stage.bed.audit_log)
    with Watch(kubectl, "pods", space, _deployment) as pods, Watch(kubectl, "qd", space, _ready) as ready:
        before = _cpu(kubectl, release)
        start = time.time()
        kubectl.apply(*manifests)
        wait_for("all are Ready", lambda: len(ready.seen) >= objects, 600, every=0.2)
    time.sleep(10)
    burst_cpu = _cpu(kubectl, release) - before
    mine = [r for r in audit.read() if r.user == release.operator_user]
    created = {item["metadata"]["name"]: _stamp(item) for item in kubectl.list("qd", space)}
    delays = sorted(pods.seen[name] - created[name] for name in created)
    memory = _memory(kubectl, release)
    idle_cpu = _cpu(kubectl, release)
    time.sleep(idle_seconds)
    idle = [r for r in audit.read() if r.user == release.operator_user and r.verb in WRITES]
    idle_cpu = _cpu(kubectl, release) - idle_cpu
    restarted = _restart(kubectl, release, audit)
    writes = _by_kind(mine, space, objects)
    return Result(
        objects=objects,
        writes_per_object=round(sum(writes.values()), 2),
        writes=writes,
        reads_per_object=round(sum(r.verb in ("get", "list") and r.namespace == space for r in mine) / objects, 2),
        pod_p50=round(statistics.median(delays), 2),
        pod_p99=round(delays[min(len(delays) - 1, int(len(delays) * 0.99))], 2),
        all_ready=round(max(ready.seen.values()) - start, 2),
        bare_client=round(bare, 2),
        operator_cpu=round(burst_cpu, 2),
        operator_memory_mib=memory,
        idle_writes=sum(r.resource != "leases" for r in idle),
        idle_lease_writes=sum(r.resource == "leases" for r in idle),
        idle_cpu=round(idle_cpu, 2),
        restart_writes=restarted,
    )


def _deployment(pod: Manifest) -> str | None:
    name: str | None = pod["metadata"]["labels"].get("qwen-operator.dev/deployment")
    return name


def _ready(obj: Manifest) -> str | None:
    return str(obj["metadata"]["name"]) if condition(obj, "Ready").get("status") == "True" else None


def _stamp(item: Manifest) -> float:
    # Whole seconds: half a second is what it is wrong by on average.
    return time.mktime(time.strptime(item["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def _by_kind(requests: Sequence[Request], space: str, objects: int) -> dict[str, float]:
    counted = Counter(f"{r.verb} {r.resource}" for r in requests if r.verb in WRITES and r.namespace == space)
    return {kind: round(number / objects, 2) for kind, number in sorted(counted.items())}


def _bare_client(stage: Stage, objects: int) -> float:
    """Seconds that kubectl takes to create as many pods of the same size in one call."""
    kubectl, space = stage.kubectl, stage.space
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"bare-{number}", "namespace": space},
            "spec": {
                "containers": [{"name": "engine", "image": "none"}],
                "nodeSelector": {"nvidia.com/gpu.product": PRODUCT},
            },
        }
        for number in range(objects)
    ]
    start = time.monotonic()
    kubectl.run("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    seconds = time.monotonic() - start
    kubectl.run("delete", "pods", "--all", "-n", space, "--wait=true", "--grace-period=0", "--force", timeout=300)
    return seconds


def _processes(kubectl: Kubectl, release: Release) -> Iterator[int]:
    for pod in kubectl.list("pods", release.namespace, "app.kubernetes.io/component=operator"):
        yield from pods_processes(pod["metadata"]["uid"], "qwen-operator run")


def _cpu(kubectl: Kubectl, release: Release) -> float:
    """CPU seconds of all operator processes so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _processes(kubectl, release)]
    return sum(int(item[11]) + int(item[12]) for item in fields) / TICKS


def _memory(kubectl: Kubectl, release: Release) -> float:
    """MiB of the largest operator process."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _processes(kubectl, release)]
    return round(max(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _restart(kubectl: Kubectl, release: Release, audit: AuditLog) -> int:
    """Writes, but for the Lease and the gateway's key, of operators that start with everything in place."""
    kubectl.run("rollout", "restart", f"deployment/{release.operator}", "-n", release.namespace)
    kubectl.run("rollout", "status", f"deployment/{release.operator}", "-n", release.namespace, "--timeout=180s")
    time.sleep(30)
    mine = [r for r in audit.read() if r.user == release.operator_user and r.verb in WRITES]
    return sum(r.resource not in ("leases", "secrets") for r in mine)


@contextmanager
def prepared(objects: int) -> Iterator[Stage]:
    """The test bed with the chart, and room for so many replicas until the block ends."""
    bed = bring_up()
    kubectl = Kubectl(bed.bin_dir / "kubectl", bed.kubeconfig)
    release = install(bed)
    # The nodes go last: pods of nodes that are gone would stay for a minute.
    with bed.own_nodes(Pool(PRODUCT, GPUS, -(-objects // GPUS)), answering=True) as nodes, _namespace(kubectl) as space:
        yield Stage(bed, kubectl, release, nodes, space)


@contextmanager
def _namespace(kubectl: Kubectl) -> Iterator[str]:
    name = f"bench-{int(time.time())}"
    kubectl.namespace(name, owned())
    try:
        yield name
    finally:
        kubectl.run("delete", "namespace", name, timeout=600)


def table(result: Result) -> str:
    """The result for people, beside KubeAI 0.22 without its 3 s sleep per reconcile (stock: p50 152 s, p99 297 s)."""
    rows: list[tuple[str, Any, Any]] = [
        ("API requests per object to Ready", result.writes_per_object + result.reads_per_object, 8.0),
        ("  of these writes", result.writes_per_object, ""),
        *((f"    {kind}", number, "") for kind, number in result.writes.items()),
        ("create -> pod exists, p50 (s)", result.pod_p50, 2.9),
        ("create -> pod exists, p99 (s)", result.pod_p99, 4.6),
        ("all Ready (s)", result.all_ready, 7.1),
        ("bare client creates the pods (s)", result.bare_client, 0.46),
        ("operator CPU (s)", result.operator_cpu, 0.85),
        ("operator memory (MiB)", result.operator_memory_mib, 78),
        ("idle: writes", result.idle_writes, ""),
        ("idle: Lease writes", result.idle_lease_writes, ""),
        ("idle: CPU (s)", result.idle_cpu, ""),
        ("restart: writes", result.restart_writes, "2 per object"),
    ]
    lines = ["| | qwen-operator | KubeAI 0.22 |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--idle-seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # As with Ctrl-C: the way out leads through everything that cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with prepared(options.objects) as stage, stage.bed.exporter() as exporter:
        exporter.say(MODEL)
        result = measure(stage, options.objects, options.idle_seconds)
    print(json.dumps(asdict(result)) if options.json else table(result))


if __name__ == "__main__":
    main()
