"""How long one `/metrics` of the operator keeps the event loop from other work: the page compared with one rendering.

    python -m bench.metrics_page [--deployments 5000] [--replicas 2] [--json]

"At once" renders the whole page in one piece, as prometheus_client does. "In slices" is the operator's own page, with
ten scrapes at the same time. The pause is the longest time in which the event loop did nothing else, in CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from qwen_operator.controller.cache import Store
from qwen_operator.endpoints import MetricsPage
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.names import Owner, metadata
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource

SCRAPES = 10


@dataclass(frozen=True, slots=True)
class _Registry:
    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds: the longest pause of the event loop, and all CPU of ten scrapes at the same time."""

    deployments: int
    pause_at_once: float
    pause_in_slices: float
    cpu_at_once: float
    cpu_in_slices: float

    @property
    def ratio(self) -> float:
        """The pause before, divided by the pause now."""
        return self.pause_at_once / self.pause_in_slices


def filled(deployments: int, replicas: int) -> Store:
    """A store of serving deployments with their pods."""
    store = Store()
    for number in range(deployments):
        name = f"chat-{number}"
        owner = Owner(name, f"team-{number % 50}", f"uid-{number}")
        store.update(QWENDEPLOYMENTS, _deployment(owner, replicas))
        for index in range(replicas):
            labels = {"qwen-operator.dev/deployment": name, "qwen-operator.dev/role": "engine"}
            pod = metadata(owner, f"{name}-0a1b2c3d-{index}", labels)
            pod |= {"uid": f"{owner.uid}-{index}"}
            store.update(PODS, {"metadata": pod, "spec": {"nodeName": "gpu-1"}, "status": {"phase": "Running"}})
    return store


def _deployment(owner: Owner, replicas: int) -> Manifest:
    conditions = [
        {"type": kind, "status": "True", "reason": "Serving"}
        for kind in ("Ready", "Planned", "ModelLoaded", "ScalingActive")
    ]
    plan = {"hash": "0a1b2c3d", "gpuProduct": "NVIDIA-L4", "gpusPerReplica": 1, "kvTokens": 1000, "startupSeconds": 90}
    return {
        "metadata": {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
        "spec": {"model": "Qwen/Qwen1.5-7B-Chat", "servedNames": [owner.name]},
        "status": {"conditions": conditions, "plan": plan, "readyReplicas": replicas, "scaling": {"wanted": replicas}},
    }


async def longest_pause(render: Callable[[], Awaitable[object]], scrapes: int) -> tuple[float, float]:
    """The longest CPU time between two turns of another task, and all CPU, while the scrapes run. In milliseconds."""
    longest, last, done = 0.0, 0.0, False

    async def other_work() -> None:
        nonlocal longest, last
        last = time.process_time()
        while not done:
            await asyncio.sleep(0)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    gc.collect()
    work = asyncio.create_task(other_work())
    await asyncio.sleep(0)
    start = time.process_time()
    for rendering in [asyncio.create_task(_one(render)) for _ in range(scrapes)]:
        await rendering
    used = time.process_time() - start
    done = True
    await work
    return 1000 * longest, 1000 * used


async def _one(render: Callable[[], Awaitable[object]]) -> None:
    await render()


async def measure(deployments: int, replicas: int) -> Result:
    metrics = DeploymentMetrics(filled(deployments, replicas), LoadSource(dict, dict), lambda: True)

    async def at_once() -> None:
        for part in metrics.slices():
            for family in part:
                generate_latest(_Registry([family]))

    page = MetricsPage(CollectorRegistry(), metrics.slices)
    # Ten scrapes at once would make one pause of ten times the length. For the pause, one scrape counts.
    before, now = await longest_pause(at_once, 1), await longest_pause(page.body, SCRAPES)
    return Result(deployments, before[0], now[0], SCRAPES * before[1], now[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.metrics_page", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--deployments", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = asyncio.run(measure(options.deployments, options.replicas))
    if options.json:
        print(json.dumps(asdict(result)))
        return
    print(
        "| deployments | longest pause at once (ms) | in slices | ratio | CPU of 10 scrapes at once (ms) | in slices |"
    )
    print("|---|---|---|---|---|---|")
    print(
        f"| {result.deployments} | {result.pause_at_once:.0f} | {result.pause_in_slices:.1f} | {result.ratio:.0f} "
        f"| {result.cpu_at_once:.0f} | {result.cpu_in_slices:.0f} |"
    )


if __name__ == "__main__":
    main()
