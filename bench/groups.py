"""Replicas over several nodes under failures: whether they converge, what they hold and what they write.

    python -m bench.groups [--replicas 100] [--pods 4] [--percent 30] [--full 12] [--seed 1] [--json]

In memory: the real reconcile loop, an API server in memory, a scheduler and kubelets of a few lines, and a clock that
moves by a second at a time. The given percentage of all pods fails once, at a random time after its creation: it is
deleted, evicted, or its container ends and starts again. For 15 minutes, some nodes are full with pods that the
operator does not see. If they are more than the spare ones, some replicas cannot be placed whole. The same failures hit
replicas of one pod, on nodes with as many GPUs as a replica needs, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.world import Kubelet, World, deployment, node, ready_status

DEPLOYMENTS = 10
SPARE_SHARE = 0.1
FULL_SECONDS = 900
FAILURE_SECONDS, RESTART_SECONDS = 300, 30
LONGEST_SECONDS, IDLE_SECONDS, WINDOW_SECONDS = 4 * 3600, 600, 60
REPLICA, RANK = "qwen-operator.dev/replica", "qwen-operator.dev/rank"


@dataclass(frozen=True, slots=True)
class Case:
    """`pods` of each replica, one on each node; a node has `gpus`. `percent` of all pods fail, `full` percent of the
    needed nodes are full at first."""

    replicas: int
    pods: int
    gpus: int
    percent: int
    full: int
    seed: int


@dataclass(slots=True)
class Result:
    """`seconds` until all replicas are ready. Writes are of the operator; `busiest_minute` has most of them.

    `partial_seconds`: the longest time in which some pods of a replica had a node and others had none.
    """

    pods: int
    seconds: int | None = None
    created: int = 0
    failed: int = 0
    writes: dict[str, int] = field(default_factory=dict)
    writes_without_failures: dict[str, int] = field(default_factory=dict)
    busiest_minute: int = 0
    partial_seconds: int = 0
    gave_back: int = 0
    idle_writes: int = 0


@dataclass
class Fleet(Kubelet):
    """A scheduler and kubelets that look at each pod once in a step, and let some of them fail."""

    random: random.Random = field(default_factory=lambda: random.Random(0))
    percent: int = 0
    seen: set[str] = field(default_factory=set)
    failing: dict[str, tuple[float, str]] = field(default_factory=dict)
    restarting: dict[str, float] = field(default_factory=dict)
    partial_since: dict[str, float] = field(default_factory=dict)
    longest_partial: float = 0.0
    failed: int = 0

    def step(self) -> bool:
        pods = list(self.api.all(PODS))
        replicas: dict[str, list[Manifest]] = defaultdict(list)
        used: Counter[str] = Counter()
        for pod in pods:
            replicas[_replica(pod)].append(pod)
            used[pod["spec"].get("nodeName", "")] += _pod_gpus(pod)
        self._note_partial(replicas)
        present = {pod["metadata"]["uid"] for pod in pods}
        self.failing = {uid: what for uid, what in self.failing.items() if uid in present}
        for pod in pods:
            self._advance(pod, replicas[_replica(pod)], used)
        return True

    def _advance(self, pod: Manifest, replica: list[Manifest], used: Counter[str]) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            self.api.finish(pod, PODS)
        elif not pod["spec"].get("schedulingGates") and not pod["spec"].get("nodeName"):
            self._schedule(pod, replica, used)
        elif pod["spec"].get("nodeName") and not self._fails(pod) and self._group_formed(pod, replica):
            self._serve(pod)

    def _schedule(self, pod: Manifest, replica: list[Manifest], used: Counter[str]) -> None:
        apart = {one["spec"].get("nodeName") for one in replica}
        for item in self.api.all(NODES):
            name, gpus = item["metadata"]["name"], int(item["status"]["allocatable"]["nvidia.com/gpu"])
            if name not in apart | self.full and used[name] + _pod_gpus(pod) <= gpus:
                used[name] += _pod_gpus(pod)
                bound = copy.deepcopy(pod)
                bound["spec"]["nodeName"] = name
                self.api.put(PODS, bound)
                # Later pods of this replica in the same step have to see it.
                pod["spec"]["nodeName"] = name
                return

    def _fails(self, pod: Manifest) -> bool:
        """Whether the pod does nothing in this step because it failed."""
        uid, now = pod["metadata"]["uid"], self.api.clock.monotonic()
        if uid not in self.seen:
            self.seen.add(uid)
            if self.random.random() * 100 < self.percent:
                kind = self.random.choice(("deleted", "evicted", "crashed"))
                self.failing[uid] = (now + self.random.uniform(0, FAILURE_SECONDS), kind)
        if self.restarting.get(uid, 0.0) > now or pod["status"].get("phase") == "Failed":
            return True
        when, kind = self.failing.get(uid, (float("inf"), ""))
        if when > now:
            return False
        del self.failing[uid]
        self.failed += 1
        self._fail(pod, kind)
        return True

    def _fail(self, pod: Manifest, kind: str) -> None:
        if kind == "deleted":
            self.api.remove(pod, PODS)
            return
        changed = copy.deepcopy(pod)
        if kind == "evicted":
            changed["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "low on resource: memory"}
        else:
            self.restarting[pod["metadata"]["uid"]] = self.api.clock.monotonic() + RESTART_SECONDS
            changed["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        self.api.put(PODS, changed)

    def _group_formed(self, pod: Manifest, replica: list[Manifest]) -> bool:
        """Whether all pods of the replica are there and know the address of the first one."""
        needed = int(pod["metadata"].get("annotations", {}).get("qwen-operator.dev/replica-pods", 1))
        if needed == 1:
            return True
        bound = [one for one in replica if one["spec"].get("nodeName")]
        leader = next((one for one in bound if one["metadata"]["labels"][RANK] == "0"), None)
        if leader is None or len(bound) < needed:
            return False
        if not leader["status"].get("podIP"):
            self._give_address(leader)
            return False
        words = f"{leader['status']['podIP']} {leader['metadata']['uid']}"
        told = [one["metadata"]["annotations"].get("qwen-operator.dev/group-leader") for one in bound]
        return told.count(words) == needed - 1

    def _serve(self, pod: Manifest) -> None:
        address = {"podIP": pod["status"]["podIP"]} if "podIP" in pod["status"] else {}
        new = {**ready_status(pod), **address}
        if new != pod["status"]:
            changed = copy.deepcopy(pod)
            changed["status"] = new
            self.api.put(PODS, changed)

    def _note_partial(self, replicas: dict[str, list[Manifest]]) -> None:
        now, present = self.api.clock.monotonic(), set()
        for name, pods in replicas.items():
            needed = int(pods[0]["metadata"].get("annotations", {}).get("qwen-operator.dev/replica-pods", 1))
            bound = sum(bool(one["spec"].get("nodeName")) for one in pods)
            if 0 < bound < needed:
                present.add(name)
                since = self.partial_since.setdefault(name, now)
                self.longest_partial = max(self.longest_partial, now - since)
        self.partial_since = {name: since for name, since in self.partial_since.items() if name in present}


def _replica(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"].get(REPLICA) or pod["metadata"]["name"])


def _pod_gpus(pod: Manifest) -> int:
    return int(pod["spec"]["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu", 0))


async def measured(case: Case) -> Result:
    """One run, until everything is ready and has been so for ten minutes."""
    world, fleet = await _made(case)
    result, at = Result(case.pods), list[float]()
    for second in range(LONGEST_SECONDS):
        if second == FULL_SECONDS:
            fleet.full.clear()
        before = len(world.api.writes)
        await world.wait(1)
        at += [float(second)] * (len(world.api.writes) - before)
        if second % 5 == 0 and not fleet.failing and _all_ready(world, case.replicas):
            result.seconds = second
            break
    writes = world.api.writes
    result.writes = dict(sorted(Counter(f"{one.verb} {one.resource.plural}" for one in writes).items()))
    result.created, result.failed = result.writes.get("create pods", 0), fleet.failed
    result.partial_seconds = int(fleet.longest_partial)
    result.busiest_minute = _busiest(at)
    result.gave_back = sum(
        "GroupNotPlaced" in json.dumps(one.get("status", {})) for one in world.api.all(QWENDEPLOYMENTS)
    )
    before = len(writes)
    await world.wait(IDLE_SECONDS)
    result.idle_writes = len(world.api.writes) - before
    return result


async def _made(case: Case) -> tuple[World, Fleet]:
    world = World()
    fleet = Fleet(world.api, place=True, random=random.Random(case.seed), percent=case.percent)
    world.kubelet = fleet
    for item in list(world.api.all(NODES)):
        world.api.finish(item, NODES)
    needed = case.replicas * case.pods
    for number in range(int(needed * (1 + SPARE_SHARE))):
        world.api.put(NODES, node(f"gpu-{number:04}", gpus=case.gpus))
    if case.percent:
        # The scheduler takes nodes from the first one on, so these are among those that are used.
        taken = fleet.random.sample(range(needed), needed * case.full // 100)
        fleet.full = {f"gpu-{number:04}" for number in taken}
    await world.start()
    tensor, share = case.pods * case.gpus, case.replicas // DEPLOYMENTS
    for number in range(DEPLOYMENTS):
        hardware = {"maxNodesPerReplica": case.pods} if case.pods > 1 else {}
        names = [f"model-{number}"]
        spec: dict[str, Any] = {
            "servedNames": names,
            "parallelism": {"tensor": tensor},
            "hardware": hardware,
            "replicas": share,
        }
        world.api.put(QWENDEPLOYMENTS, deployment(f"model-{number}", **spec))
    return world, fleet


def _all_ready(world: World, replicas: int) -> bool:
    ready = [one.get("status", {}).get("summary", {}).get("ready", "") for one in world.api.all(QWENDEPLOYMENTS)]
    return ready == [f"{replicas // DEPLOYMENTS}/{replicas // DEPLOYMENTS}"] * DEPLOYMENTS


def _busiest(at: list[float]) -> int:
    """The most writes in a minute."""
    most, first = 0, 0
    for last, moment in enumerate(at):
        while moment - at[first] >= WINDOW_SECONDS:
            first += 1
        most = max(most, last - first + 1)
    return most


async def compared(case: Case) -> list[Result]:
    """Replicas over several nodes, and replicas of one pod with as many GPUs on one node."""
    results = []
    for one in (case, replace(case, pods=1, gpus=case.pods)):
        result = await measured(one)
        result.writes_without_failures = (await measured(replace(one, percent=0))).writes
        results.append(result)
    return results


def table(results: list[Result], replicas: int) -> str:
    """Markdown, one column for each kind of replica."""
    head = "| | " + " | ".join(f"{one.pods} pods" if one.pods > 1 else "1 pod" for one in results) + " |"
    rows: list[tuple[str, Callable[[Result], object]]] = [
        ("all replicas ready (simulated s)", lambda one: "never" if one.seconds is None else one.seconds),
        ("pods created", lambda one: one.created),
        ("pods that failed", lambda one: one.failed),
        ("deployments that gave GPUs back", lambda one: one.gave_back),
        ("longest time with a part of the pods on nodes (s)", lambda one: one.partial_seconds),
        ("writes", lambda one: sum(one.writes.values())),
        ("writes in the busiest minute", lambda one: one.busiest_minute),
        ("writes in ten minutes after that", lambda one: one.idle_writes),
        (
            "writes for a replica, without failures",
            lambda one: round(sum(one.writes_without_failures.values()) / replicas, 2),
        ),
    ]
    lines = [head, "|---|" + "---|" * len(results)]
    lines += [f"| {name} | " + " | ".join(str(of(one)) for one in results) + " |" for name, of in rows]
    for kind in sorted({kind for one in results for kind in one.writes_without_failures}):
        counts = [str(round(one.writes_without_failures.get(kind, 0) / replicas, 2)) for one in results]
        lines.append(f"|   {kind} | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or the numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.groups", description=__doc__)
    parser.add_argument("--replicas", type=int, default=100, help="a multiple of 10; default: 100")
    parser.add_argument("--pods", type=int, default=4, help="of a replica; default: 4")
    parser.add_argument("--percent", type=int, default=30, help="of the pods fail; default: 30")
    parser.add_argument("--full", type=int, default=12, help="percent of the needed nodes that are full at first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    case = Case(options.replicas, options.pods, 1, options.percent, options.full, options.seed)
    results = asyncio.run(compared(case))
    print(json.dumps([asdict(one) for one in results]) if options.json else table(results, options.replicas))


if __name__ == "__main__":
    main()
