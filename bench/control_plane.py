"""The load of the operator on the API server, and its speed, for a burst of QwenDeployments on simulated nodes.

    python -m bench.control_plane [--objects 100] [--idle-seconds 60] [--json]

It runs on the test bed: a real API server and scheduler, nodes simulated by kwok, one program that serves /metrics for
all engines, and the operator in its pods with the chart's own settings. It counts writes in the audit log, takes times
from one watch, and reads CPU seconds from the processes. For comparison, a bare client creates the same number of pods
on the same machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.qd import simulated
from tests.testbed.audit import WRITES, AuditLog, Request
from tests.testbed.bed import Release, bring_up, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.processes import pods_processes
from tests.testbed.simulated import Pool

PRODUCT = "NVIDIA-L4"
GPUS = 8
MODEL = "Qwen/Qwen1.5-0.5B-Chat"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds, unless the name says otherwise. `writes` are for one object from its creation until it is Ready."""

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
    """The time at which `name` first returned a name for each object of a kind, from one `kubectl get --watch`."""

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

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@dataclass(frozen=True, slots=True)
class Burst:
    """The measured creation of all objects. `pod_delays` are sorted seconds from an object's creation to its pod."""

    pod_delays: list[float]
    all_ready: float
    cpu: float
    requests: list[Request]


def _burst(kubectl: Kubectl, release: Release, audit: AuditLog, space: str, objects: int) -> Burst:
    manifests = [simulated(space, f"qd-{number}", PRODUCT, model=MODEL) for number in range(objects)]
    pods = Watch(kubectl, "pods", space, lambda pod: pod["metadata"]["labels"].get("qwen-operator.dev/deployment"))
    ready = Watch(kubectl, "qd", space, _ready)
    cpu_before = _cpu(kubectl, release)
    start = time.time()
    kubectl.apply(*manifests)
    wait_for("all are Ready", lambda: len(ready.seen) >= objects, 600, every=0.2)
    pods.stop()
    ready.stop()
    time.sleep(10)
    cpu = _cpu(kubectl, release) - cpu_before
    requests = [r for r in audit.read() if r.user == release.operator_user]
    created = {item["metadata"]["name"]: _stamp(item) for item in kubectl.list("qd", space)}
    delays = sorted(pods.seen[name] - created[name] for name in created)
    return Burst(delays, max(ready.seen.values()) - start, cpu, requests)


def measure(bed: Cluster, kubectl: Kubectl, release: Release, objects: int, idle_seconds: float) -> Result:
    """One burst, one idle time and one restart in a namespace of their own."""
    space = f"bench-{int(time.time())}"
    kubectl.namespace(space)
    bare = _bare_client(kubectl, space, objects)
    audit = AuditLog(bed.audit_log)
    burst = _burst(kubectl, release, audit, space, objects)
    memory = _memory(kubectl, release)
    idle_cpu = _cpu(kubectl, release)
    time.sleep(idle_seconds)
    idle = [r for r in audit.read() if r.user == release.operator_user and r.verb in WRITES]
    idle_cpu = _cpu(kubectl, release) - idle_cpu
    restarted = _restart(kubectl, release, audit)
    kubectl.run("delete", "namespace", space, timeout=600)
    writes = _by_kind(burst.requests, space, objects)
    reads = sum(r.verb in ("get", "list") and r.namespace == space for r in burst.requests)
    delays = burst.pod_delays
    return Result(
        objects=objects,
        writes_per_object=round(sum(writes.values()), 2),
        writes=writes,
        reads_per_object=round(reads / objects, 2),
        pod_p50=round(statistics.median(delays), 2),
        pod_p99=round(delays[min(len(delays) - 1, int(len(delays) * 0.99))], 2),
        all_ready=round(burst.all_ready, 2),
        bare_client=round(bare, 2),
        operator_cpu=round(burst.cpu, 2),
        operator_memory_mib=memory,
        idle_writes=sum(r.resource != "leases" for r in idle),
        idle_lease_writes=sum(r.resource == "leases" for r in idle),
        idle_cpu=round(idle_cpu, 2),
        restart_writes=restarted,
    )


def _ready(obj: Manifest) -> str | None:
    return str(obj["metadata"]["name"]) if condition(obj, "Ready").get("status") == "True" else None


def _stamp(item: Manifest) -> float:
    # The timestamp has whole seconds, so the mean error is half a second.
    return time.mktime(time.strptime(item["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def _by_kind(requests: Sequence[Request], space: str, objects: int) -> dict[str, float]:
    counted = Counter(f"{r.verb} {r.resource}" for r in requests if r.verb in WRITES and r.namespace == space)
    return {kind: round(number / objects, 2) for kind, number in sorted(counted.items())}


def _bare_client(kubectl: Kubectl, space: str, objects: int) -> float:
    """Seconds that kubectl takes to create the same number of pods of the same size in one call."""
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
    """Writes, without the Lease and the gateway's key, of operators that start when all objects exist already."""
    kubectl.run("rollout", "restart", f"deployment/{release.operator}", "-n", release.namespace)
    kubectl.run("rollout", "status", f"deployment/{release.operator}", "-n", release.namespace, "--timeout=180s")
    time.sleep(30)
    mine = [r for r in audit.read() if r.user == release.operator_user and r.verb in WRITES]
    return sum(r.resource not in ("leases", "secrets") for r in mine)


@contextmanager
def installed(objects: int) -> Iterator[tuple[Cluster, Kubectl, Release]]:
    """The test bed with room for this number of replicas, and the chart."""
    bed = bring_up([Pool(PRODUCT, GPUS, -(-objects // GPUS))])
    yield bed, Kubectl(bed.bin_dir / "kubectl", bed.kubeconfig), install(bed)


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
    with installed(options.objects) as (bed, kubectl, release), bed.exporter() as exporter:
        exporter.say(MODEL)
        result = measure(bed, kubectl, release, options.objects, options.idle_seconds)
    print(json.dumps(asdict(result)) if options.json else table(result))


if __name__ == "__main__":
    main()
