"""The cost of reading the metrics of N engines: the operator's own reader compared with httpx.

    python -m bench.scrape [--engines 10 100 400] [--looks 5] [--json]

One server in its own process serves a page of a loaded SGLang 0.5.23 at N loopback addresses. The result is the CPU
time of the reader alone, per page. It reads all engines at once, like the operator's loop. The two readers take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
from aiohttp import web

from qwen_operator.controller.scraper import pod_url, scraper
from qwen_operator.scaling.page import Page, Reading, Trouble
from qwen_operator.scaling.types import EnginePod

PAGE = Path(__file__).parents[1] / "tests/unit/scaling/pages/loaded.txt"
MODEL = "tiny"
_SLOTS = 64
Read = Callable[[EnginePod], Awaitable[Reading | Trouble]]


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds of CPU per page, as medians of the looks. `parser` is the part that every client needs."""

    engines: int
    operator: float
    httpx: float
    parser: float

    @property
    def ratio(self) -> float:
        """The cost of httpx divided by the cost of the operator's own reader."""
        return self.httpx / self.operator


def _serve(pipe: Connection, body: bytes) -> None:
    async def page(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="text/plain")

    async def forever() -> None:
        app = web.Application()
        app.router.add_get("/metrics", page)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 0, backlog=1024).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(forever())


@contextmanager
def serving(body: bytes) -> Iterator[int]:
    """A server of that page on every loopback address. Yields its port."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(theirs, body), daemon=True)
    server.start()
    try:
        yield ours.recv()
    finally:
        server.terminate()
        server.join()


def fleet(count: int) -> list[EnginePod]:
    return [
        EnginePod(
            f"pod-{n}", f"uid-{n}", f"127.1.{n // 250}.{n % 250 + 1}", ready=True, draining=False, limit=0, model=MODEL
        )
        for n in range(count)
    ]


async def cpu_per_page(read_one: Read, engines: list[EnginePod]) -> float:
    """Milliseconds of CPU per page. Raises RuntimeError if a page cannot be read."""
    start = time.process_time()
    pages = await asyncio.gather(*(read_one(engine) for engine in engines))
    used = time.process_time() - start
    missed = [one for one in pages if isinstance(one, Trouble)]
    if missed:
        raise RuntimeError(f"{len(missed)} of {len(engines)} pages were not read: {missed[0].detail}")
    return 1000 * used / len(engines)


async def measure(count: int, port: int, looks: int) -> Result:
    engines, slots = fleet(count), asyncio.Semaphore(_SLOTS)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with scraper(port) as own, httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:

        async def by_httpx(engine: EnginePod) -> Reading | Trouble:
            async with slots:
                response = await client.get(pod_url(engine.address, port, "/metrics"))
            return parsed(response.content, engine.model)

        readers: tuple[Read, Read] = (own.read, by_httpx)
        costs: tuple[list[float], list[float]] = ([], [])
        for _ in range(looks + 1):
            for reader, of_reader in zip(readers, costs, strict=True):
                of_reader.append(await cpu_per_page(reader, engines))
    # The first look opens the connections, so it does not count.
    mine, theirs = (statistics.median(of_reader[1:]) for of_reader in costs)
    return Result(count, mine, theirs, parsing(looks * 10))


def parsing(times: int) -> float:
    page = PAGE.read_bytes()
    start = time.process_time()
    for _ in range(times):
        parsed(page, MODEL)
    return 1000 * (time.process_time() - start) / times


def parsed(content: bytes, model: str) -> Reading | Trouble:
    page = Page()
    page.feed(content)
    return page.read(model)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[10, 100, 400], help="numbers of engines to read")
    parser.add_argument("--looks", type=int, default=5, help="how often to read all of them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with serving(PAGE.read_bytes()) as port:
        results = [asyncio.run(measure(count, port, options.looks)) for count in options.engines]
    if options.json:
        print(json.dumps([asdict(one) for one in results]))
        return
    print("| engines | operator (ms of CPU per page) | httpx | httpx ÷ operator | of that the parser |")
    print("|---|---|---|---|---|")
    for one in results:
        print(f"| {one.engines} | {one.operator:.2f} | {one.httpx:.2f} | {one.ratio:.1f} | {one.parser:.2f} |")


if __name__ == "__main__":
    main()
