"""What the proxy in front of the router costs, and what it protects: smg alone against nginx before smg.

`python -m bench.gateway` runs both on this machine, with a stand-in engine, and prints the tables of
docs/benchmarks/gateway.md. The two alternate in short rounds, so that other work on the machine meets both. Compare
numbers within a row only: engine, router, proxy and load generator share the processors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.test_utils import unused_port

from tests.unit.gateway.proxied import Pod, gateway, until

MODEL = "bench"
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
TOKEN = f"data: {json.dumps({**CHUNK, 'choices': [{'index': 0, 'delta': {'content': ' word'}}]})}\n\n".encode()
UPLOADS, UPLOAD_BYTES = 16, 30 * 1024 * 1024
# The greedy client has more requests than the gateway has slots, and each takes half a second.
SLOTS, GREEDY_CLIENTS, GREEDY_PAUSE_MS, GREEDY_REST = 64, 128, 500, 0.25


async def _chat(request: web.Request) -> web.StreamResponse:
    """`max_tokens` events; the first message has the milliseconds between two."""
    body = await request.json()
    pause = int(body["messages"][0]["content"]) / 1000
    if not body.get("stream"):
        await asyncio.sleep(pause)
        choice = {"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}
        return web.json_response({**CHUNK, "object": "chat.completion", "choices": [choice]})
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for _ in range(body["max_tokens"]):
        await answer.write(TOKEN)
        await asyncio.sleep(pause)
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def _about(_: web.Request) -> web.Response:
    data = [{"id": MODEL, "object": "model"}]
    return web.json_response({"served_model_name": MODEL, "model_path": MODEL, "version": "0.5.23", "data": data})


def serve_engine(port: int) -> None:
    """Run the stand-in engine until it is killed."""
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", _chat)
    for path in ("/health", "/ready", "/server_info", "/model_info", "/v1/models"):
        app.router.add_get(path, _about)
    web.run_app(app, host="127.77.9.1", port=port, print=None, access_log=None)


@contextmanager
def running(folder: Path) -> Iterator[Pod]:
    """The gateway before the stand-in engine, which runs in a process of its own."""
    port = unused_port()
    engine = subprocess.Popen([sys.executable, "-m", "bench.gateway", "--engine", str(port)])
    try:
        limits = {"QWEN_GATEWAY_MAX_BODY_BYTES": str(2**25), "QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS": str(SLOTS)}
        with gateway(folder, **limits) as pod:
            path = folder / "run/workers.json"
            content = json.loads(path.read_text())
            url = f"http://127.77.9.1:{port}"
            content["workers"].append({"id": MODEL, "url": url, "worker_type": "regular", "model_id": MODEL})
            path.write_text(json.dumps(content))
            pod.write_tenants({"defaults": {}, "tenants": {"some": {"concurrentRequests": 16}}})
            until(lambda: pod.chat(MODEL).status_code == 200, "the stand-in engine is routed")
            yield pod
    finally:
        engine.kill()
        engine.wait()


@dataclass(frozen=True, slots=True)
class Target:
    """One of the three: its address, and the processes whose processor time counts."""

    name: str
    url: str
    pids: tuple[int, ...]


def targets(pod: Pod) -> tuple[Target, Target, Target]:
    """The engine itself, the router before it, and the proxy before both."""
    workers = json.loads((pod.folder / "run/workers.json").read_text())["workers"]
    direct = Target("the engine itself", next(one["url"] for one in workers if one["model_id"] == MODEL), ())
    router = pod.processes["router"].pid
    # nginx and its relay.
    nginx = [worker for master in _children(pod.processes["proxy"].pid) for worker in _children(master)]
    alone = Target("smg alone", f"http://127.0.0.1:{pod.environ['QWEN_GATEWAY_ROUTER_PORT']}", (router,))
    return direct, alone, Target("nginx before smg", pod.url, (router, *nginx))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """User and system time of the processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


@dataclass(slots=True)
class Client:
    """Asks with one key and notes seconds: of first tokens for streams, of whole answers otherwise."""

    session: aiohttp.ClientSession
    target: Target
    key: str = "key-all"
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: dict[int, int] = field(default_factory=dict)

    async def ask(self, pause_ms: int, tokens: int = 0) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": str(pause_ms)}], "max_tokens": tokens or 1}
        headers = {"Authorization": f"Bearer {self.key}"}
        began = time.perf_counter()
        url = f"{self.target.url}/v1/chat/completions"
        async with self.session.post(url, json={**body, "stream": tokens > 0}, headers=headers) as answer:
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            async for line in answer.content:
                if line.startswith(b"data: {") and len(self.seconds) < sum(self.statuses.values()):
                    self.seconds.append(time.perf_counter() - began)
                self.tokens += line.startswith(b"data: {")
        if not tokens:
            self.seconds.append(time.perf_counter() - began)

    async def repeat(self, until_time: float, pause_ms: int, tokens: int = 0, rest: float = 0.0) -> None:
        while time.perf_counter() < until_time:
            await self.ask(pause_ms, tokens)
            await asyncio.sleep(rest)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round measured of one target. Times in milliseconds, processor time in microseconds per token."""

    p50: float
    p99: float
    cpu: float
    tokens_per_second: float


async def stream_round(target: Target, clients: int, pause_ms: int, seconds: float) -> Round:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        users = [Client(session, target) for _ in range(clients)]
        before, began = cpu_seconds(target.pids), time.perf_counter()
        await asyncio.gather(*(user.repeat(began + seconds, pause_ms, 40) for user in users))
        spent, took = cpu_seconds(target.pids) - before, time.perf_counter() - began
    first = [one for user in users for one in user.seconds]
    tokens = sum(user.tokens for user in users)
    return Round(*percentiles(first), spent / tokens * 1e6, tokens / took)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds."""
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1000, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000


async def greedy(url: str) -> None:
    """Ask as often as the rest allows, until the process is ended; then print how often each status came."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(session, Target("", url, ()), key="key-some")
        forever = time.perf_counter() + 3600
        users = [client.repeat(forever, GREEDY_PAUSE_MS, rest=GREEDY_REST) for _ in range(GREEDY_CLIENTS)]
        task = asyncio.ensure_future(asyncio.gather(*users))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
    print(json.dumps(client.statuses))


@contextmanager
def attackers(target: Target) -> Iterator[dict[str, int]]:
    """Stalled uploads and a greedy client, with keys of other tenants; yields the greedy client's later statuses."""
    port = int(target.url.rsplit(":", 1)[1])
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key-few\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
    uploads = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(UPLOADS)]
    for upload in uploads:
        # The proxy refuses those beyond the tenant's slots, in the middle of their body.
        with contextlib.suppress(OSError):
            upload.sendall(head.encode() + b"{" + b" " * (UPLOAD_BYTES - 2))
    command = [sys.executable, "-m", "bench.gateway", "--greedy", target.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    statuses: dict[str, int] = {}
    try:
        yield statuses
    finally:
        process.send_signal(signal.SIGTERM)
        statuses.update(json.loads(process.communicate()[0]))
        for upload in uploads:
            upload.close()


async def polite(target: Target, seconds: float, router: int) -> list[str]:
    """The row of one target: a polite client before, during and after the attack."""

    async def ask() -> tuple[float, float]:
        client = Client(session, target)
        await client.repeat(time.perf_counter() + seconds, 5, rest=0.02)
        return percentiles(client.seconds)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        memory = rss_mib(router)
        before = await ask()
        with attackers(target) as statuses:
            await asyncio.sleep(2)
            during = await ask()
            held = rss_mib(router) - memory
        await asyncio.sleep(2)
        after = await ask()
    cells = [f"{p50:.1f} / {p99:.1f}" for p50, p99 in (before, during, after)]
    return [target.name, *cells, f"{held}", f"{statuses.get('200', 0)} / {statuses.get('429', 0)}"]


async def measure(pod: Pod, rounds: int, seconds: float) -> None:
    direct, *both = targets(pod)
    print("| load | target | TTFT p50, ms | TTFT p99, ms | CPU per token, us | tokens/s |\n|---|---|--:|--:|--:|--:|")
    for label, clients, pause in (("40 clients, 20 ms per token", 40, 20), ("16 clients, flat out", 16, 0)):
        measured: dict[str, list[Round]] = {target.name: [] for target in (direct, *both)}
        for _ in range(rounds):
            for target in (direct, *both):
                measured[target.name].append(await stream_round(target, clients, pause, seconds))
        for name, own in measured.items():
            numbers = [statistics.median(getattr(one, what) for one in own) for what in Round.__dataclass_fields__]
            print(f"| {label} | {name} | {numbers[0]:.1f} | {numbers[1]:.1f} | {numbers[2]:.1f} | {numbers[3]:,.0f} |")
        engine, *pair = measured.values()
        ratios = [(new.p50 / old.p50, new.p99 / old.p99, new.cpu / old.cpu) for old, new in zip(*pair, strict=True)]
        medians = (f"{statistics.median(column):.2f}" for column in zip(*ratios, strict=True))
        kept = [new.tokens_per_second / old.tokens_per_second for old, new in zip(engine, pair[1], strict=True)]
        print(f"| {label} | nginx ÷ smg, median of rounds | {' | '.join(medians)} | |")
        print(f"| {label} | nginx ÷ the engine itself, median | | | | {statistics.median(kept):.3f} |")
    print("\n| target | before | during | after | smg's memory grew by, MiB | greedy client: 200 / 429 |")
    print("|---|--:|--:|--:|--:|--:|")
    for target in reversed(both):
        print(f"| {' | '.join(await polite(target, seconds * 2, pod.processes['router'].pid))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one round")
    parser.add_argument("--greedy", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.greedy:
        asyncio.run(greedy(arguments.greedy))
        return
    if arguments.engine:
        serve_engine(arguments.engine)
        return
    with tempfile.TemporaryDirectory(prefix="qwen-bench-") as folder, running(Path(folder)) as pod:
        asyncio.run(measure(pod, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
