"""What it costs one process to read the engines of many deployments and to decide, and how often it can.

    python -m bench.looks [--deployments 1000] [--replicas 4] [--busy 0 10 100] [--rounds 20] [--json]

Servers in other processes answer with the pages of an idle and of a loaded SGLang 0.5.23, with counters that move. The
operator's own view, scraper, loop and policy `Objective` run in this process. Nothing else of the operator does: no
watches, no reconcile. `--busy` is the percentage of deployments with requests. The gateway is played, and so is the
clock of the loop: rounds follow each other at once. So the result is CPU time. The interval is the one that the loop
would keep on a core of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qwen_operator.controller import scraper as scraping
from qwen_operator.controller.autoscaler import REST, Autoscaler, Pace, Sources
from qwen_operator.controller.cache import Store
from qwen_operator.controller.scraper import HttpScraper, scraper
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.names import Owner, metadata
from qwen_operator.replicas.scaling_view import scaled_deployments
from qwen_operator.scaling.demand import Demand, ModelDemand
from qwen_operator.scaling.pace import INTERVAL_SECONDS, QUIET_SECONDS
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.types import EnginePod, ScaledDeployment

PAGES = Path(__file__).parents[1] / "tests/unit/scaling/pages"
MODEL = "tiny"
SERVERS = 2
_MOVING = re.compile(
    rb"^(sglang:(?:scheduler_idle_seconds_total|realtime_tokens_total|num_queue_reqs)\{[^\n]*\}) [^\n]*$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Result:
    """`pages` and `cpu_seconds` of a round, as means. `milliseconds`: CPU per page, with all that a look costs.

    `interval`: the seconds between two rounds on a core of its own. `missed`: pages that were not read, in all rounds.
    """

    busy_percent: int
    pages: float
    cpu_seconds: float
    milliseconds: float
    interval: float
    missed: int


class Pages(asyncio.Protocol):
    """One connection. A deployment has requests if its number is below `busy`."""

    def __init__(self, busy: int, replicas: int) -> None:
        self._busy, self._replicas = busy, replicas
        self._transport: Any = None
        self._deployment = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        number = [int(part) for part in transport.get_extra_info("sockname")[0].split(".")]
        self._deployment = ((number[1] - 1) * 62500 + number[2] * 250 + number[3] - 1) // self._replicas

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(_answer(busy=self._deployment < self._busy))


def _parts(name: str) -> list[bytes]:
    """The page in parts: every second one is the beginning of a line whose number moves."""
    return _MOVING.split((PAGES / name).read_bytes())


IDLE, LOADED = _parts("idle.txt"), _parts("loaded.txt")


def _answer(*, busy: bool) -> bytes:
    parts = LOADED if busy else IDLE
    body = bytearray(parts[0])
    for start, end in zip(parts[1::2], parts[2::2], strict=True):
        moves = b"scheduler" in start or busy
        value = time.time() % 1e6 / 2 if moves and b"num_queue" not in start else 0
        body += start + b" %.3f" % value + end
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (len(body), bytes(body))


def _serve(pipe: Connection, port: int, busy: int, replicas: int) -> None:
    async def forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Pages(busy, replicas), "0.0.0.0", port, backlog=4096, reuse_port=True)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(forever())


@contextmanager
def serving(busy: int, replicas: int) -> Iterator[int]:
    """The servers share one port. Yields it."""
    ours, theirs = multiprocessing.Pipe()
    processes, port = [], 0
    for _ in range(SERVERS):
        process = multiprocessing.Process(target=_serve, args=(theirs, port, busy, replicas), daemon=True)
        process.start()
        processes.append(process)
        port = ours.recv()
    try:
        yield port
    finally:
        for process in processes:
            process.terminate()
            process.join()


def filled(deployments: int, replicas: int) -> Store:
    """A store of deployments that the load scales, with ready pods, each with an address of its own."""
    store = Store()
    for number in range(deployments):
        owner = Owner(f"chat-{number}", f"team-{number % 50}", f"uid-{number}")
        store.update(QWENDEPLOYMENTS, _deployment(owner, replicas))
        for index in range(replicas):
            store.update(PODS, _pod(owner, index, number * replicas + index))
    return store


def _deployment(owner: Owner, replicas: int) -> Manifest:
    scaling = {"minReplicas": 1, "maxReplicas": 16, "policy": "Objective"}
    return {
        "metadata": {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
        "spec": {"model": "Qwen/Qwen1.5-7B-Chat", "servedNames": [owner.name], "scaling": scaling},
        "status": {"scaling": {"wanted": replicas, "reason": "Steady"}, "summary": {"load": "low"}},
    }


def _pod(owner: Owner, index: int, address: int) -> Manifest:
    labels = {"qwen-operator.dev/deployment": owner.name, "qwen-operator.dev/role": "engine"}
    meta = metadata(owner, f"{owner.name}-0a1b2c3d-{index}", labels) | {"uid": f"{owner.uid}-{index}"}
    command = ["sglang", f"--served-model-name={MODEL}", "--max-running-requests=64"]
    return {
        "metadata": meta,
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "engine", "command": command}]},
        "status": {
            "phase": "Running",
            "podIP": f"127.{address // 62500 + 1}.{address // 250 % 250}.{address % 250 + 1}",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@dataclass(slots=True)
class Reader:
    """The operator's scraper, counted."""

    own: HttpScraper
    pages: int = 0
    missed: int = 0

    async def read(self, engine: EnginePod) -> Reading | Trouble:
        page = await self.own.read(engine)
        self.pages += 1
        self.missed += isinstance(page, Trouble)
        return page


@dataclass(slots=True)
class Run:
    """One measurement: `busy` deployments of `store` have requests. `now` is the loop's clock."""

    store: Store
    busy: int
    now: float = 0.0
    costs: list[tuple[int, float]] = field(default_factory=list)
    """Pages and CPU seconds of each round."""

    async def demand(self) -> Demand:
        models = {f"chat-{number}": ModelDemand(came=0.0) for number in range(self.busy)}
        return Demand(models, ready=1, read=1, hears=True)

    def view(self) -> Iterable[ScaledDeployment]:
        return scaled_deployments(
            self.store.deployments(), self.store.replicas, self.store.names.held, now=datetime.now(UTC)
        )

    async def measure(self, port: int, percent: int, rounds: int, pages: int) -> Result:
        async with scraper(port) as own:
            reader = Reader(own)
            pace = Pace(clock=lambda: self.now)
            scaler = Autoscaler(Sources(self.view, reader, self.demand), lambda _key: None, pace)
            # The first look opens the connections. Before the second, enough time passes to be quiet.
            await scaler.scrape()
            self.now += QUIET_SECONDS
            await scaler.scrape()
            while len(self.costs) < rounds and sum(read for read, _ in self.costs) < pages:
                self.now += INTERVAL_SECONDS
                before, began = reader.pages, time.process_time()
                await scaler.scrape()
                self.costs.append((reader.pages - before, time.process_time() - began))
        read, used = sum(read for read, _ in self.costs), sum(used for _, used in self.costs)
        mean = used / len(self.costs)
        interval = max(INTERVAL_SECONDS, mean * (1 + REST))
        return Result(percent, read / len(self.costs), mean, 1000 * used / max(1, read), interval, reader.missed)


def measure(deployments: int, replicas: int, percent: int, rounds: int) -> Result:
    busy = deployments * percent // 100
    # The servers share the machine with this process. That they are slow is no result.
    scraping.TIMEOUT_SECONDS = 60.0
    with serving(busy, replicas) as port:
        run = Run(filled(deployments, replicas), busy)
        return asyncio.run(run.measure(port, percent, rounds, 2 * deployments * replicas))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.looks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=4, help="engines of each deployment")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 10, 100], help="percent with requests")
    parser.add_argument("--rounds", type=int, default=20, help="how many to measure, fewer if they read much")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(options.deployments, options.replicas, one, options.rounds) for one in options.busy]
    if options.json:
        print(json.dumps([asdict(one) for one in results]))
        return
    print("| with requests | pages in a round | CPU of a round (s) | per page (ms) | interval (s) | not read |")
    print("|--:|--:|--:|--:|--:|--:|")
    for one in results:
        print(
            f"| {one.busy_percent} % | {one.pages:.0f} | {one.cpu_seconds:.2f} | {one.milliseconds:.2f} "
            f"| {one.interval:.1f} | {one.missed} |"
        )


if __name__ == "__main__":
    main()
