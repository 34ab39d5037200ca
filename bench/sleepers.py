"""Whether requests that wait for models without a replica slow down the requests of a model that serves.

`python -m bench.sleepers` runs the real nginx, relay and smg on loopback before a stand-in engine. A polite client asks
the busy model all the time: alone, while requests of two tenants wait for 20 models, and alone again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.unit.gateway.proxied import Pod, gateway
from tests.unit.waiting import until

SLEEPERS = tuple(f"open-{number}" for number in range(20))
BODY = {"messages": [{"role": "user", "content": "0"}]}


async def polite(session: aiohttp.ClientSession, seconds: float) -> list[float]:
    """The times of requests, one after the other, about every 20 ms."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        async with session.post("/v1/chat/completions", json={**BODY, "model": "open"}) as answer:
            await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the busy model answered {answer.status}")
        times.append(time.monotonic() - begun)
        await asyncio.sleep(0.02)
    return times


async def waits(session: aiohttp.ClientSession, model: str, key: str) -> int:
    """The status of one request for a model that sleeps."""
    headers = {"Authorization": f"Bearer {key}"}
    body = {**BODY, "model": model, "stream": True, "max_tokens": 1}
    async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


def told(pod: Pod, names: tuple[str, ...]) -> None:
    """The agent's file says that these names have no replica."""
    path = pod.folder / "run/waiting.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"version": 1, "waiting": {name: {} for name in names}}))
    draft.rename(path)


async def run(pod: Pod, seconds: float, each: int) -> list[tuple[str, list[float]]]:
    phases = []
    headers, connector = {"Authorization": "Bearer key-all"}, aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(pod.url, headers=headers, connector=connector, timeout=timeout) as session:
        await polite(session, 1.0)
        phases.append(("before", await polite(session, seconds)))
        told(pod, SLEEPERS)
        await asyncio.sleep(1.0)
        keys = ("key-all", "key-some")
        asked = [
            asyncio.create_task(waits(session, name, key)) for name in SLEEPERS for key in keys for _ in range(each)
        ]

        def held() -> bool:
            gauges = pod.metrics()
            return sum(value for name, value in gauges.items() if "held_requests" in name) == len(asked)

        await until(held, 30)
        phases.append((f"{len(asked)} requests wait for {len(SLEEPERS)} models", await polite(session, seconds)))
        told(pod, ())
        await asyncio.gather(*asked)
        phases.append(("after", await polite(session, seconds)))
    return phases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sleepers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--each", type=int, default=5, help="requests of each of two tenants for each model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as pod:
        phases = asyncio.run(run(pod, options.seconds, options.each))
    print("| phase | requests | p50, ms | p99, ms | p99 ÷ before |\n|---|--:|--:|--:|--:|")
    first = statistics.quantiles(phases[0][1], n=100)[98]
    for name, times in phases:
        cuts = statistics.quantiles(times, n=100)
        print(f"| {name} | {len(times):,} | {1000 * cuts[49]:.1f} | {1000 * cuts[98]:.1f} | {cuts[98] / first:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
