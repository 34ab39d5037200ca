"""Counts what clients lose while the only replica of a model is replaced or killed.

`python -m bench.loss` runs the gateway as its pod does (the real nginx, relay and smg, and the agent) on loopback, with
stand-in engines in processes of their own. Clients ask all the time: short answers, streams and large bodies. The last
line is a verdict, and the exit status is 1 if a request was lost or executed twice without need.

A request is lost if it ends in anything but its complete answer. A stream whose engine is killed after its first token
cannot be completed by anybody; it is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.test_utils import unused_port

from qwen_operator.gateway.agent import Agent
from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE
from qwen_operator.gateway.smg import Smg
from qwen_operator.kube import PODS, QWENDEPLOYMENTS
from qwen_operator.routing.membership import EntryNaming
from tests.unit.gateway.objects import Manifest, deployment, pod, unready
from tests.unit.gateway.proxied import Pod, gateway
from tests.unit.waiting import until

MODEL = "m"
TOKENS, TOKEN_SECONDS = 8, 0.02
LARGE_BYTES = 200_000
POISON = "poison"
TOKEN = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
# How long a kubelet takes to report that a container ended.
NOTICE_SECONDS = 1.0
EVENTS = ("replaced", "killed")


@dataclass(slots=True)
class Tally:
    """`ids` of requests: answered, lost (with the reason) and cut after the first token."""

    answered: set[str] = field(default_factory=set)
    lost: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What one kind of event gave. `twice`: requests that began twice although no engine died under them."""

    event: str
    cycles: int
    tally: Tally
    held: int
    twice: list[str]
    repeated: int
    handover: list[float]

    @property
    def good(self) -> bool:
        return not self.tally.lost and not self.twice

    def row(self) -> str:
        tally = self.tally
        asked = len(tally.answered) + len(tally.lost) + len(tally.cut)
        return (
            f"| {self.event} | {self.cycles} | {asked} | {self.held} | {len(tally.lost)} | {len(self.twice)} | "
            f"{self.repeated} | {len(tally.cut)} | {min(self.handover):.2f}-{max(self.handover):.2f} |"
        )


def serve_engine(address: str, port: int, log: Path) -> None:
    """Run a stand-in engine until it is killed. It notes the begin and the end of each request. POISON ends it."""
    notes = log.open("a", buffering=1)

    def note(what: str, ident: str) -> None:
        notes.write(f"{time.monotonic():.3f} {what} {ident}\n")

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        note("begin", body["user"])
        if body["user"] == POISON:
            os._exit(9)
        head = {"id": "1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            await asyncio.sleep(TOKEN_SECONDS)
            choice = {"index": 0, "message": {"role": "assistant", "content": body["user"]}, "finish_reason": "stop"}
            note("end", body["user"])
            return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(TOKENS):
            await answer.write(TOKEN)
            await asyncio.sleep(TOKEN_SECONDS)
        await answer.write(b"data: [DONE]\n\n")
        note("end", body["user"])
        return answer

    async def about(_: web.Request) -> web.Response:
        return web.json_response({"served_model_name": MODEL, "model_path": MODEL, "version": "0.5.23", "data": []})

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", chat)
    for path in ("/health", "/ready", "/server_info", "/model_info", "/v1/models"):
        app.router.add_get(path, about)
    web.run_app(app, host=address, port=port, print=None, access_log=None)


class World:
    """The gateway's agent, and what the API server would tell it. One engine runs at a time."""

    def __init__(self, agent: Agent, folder: Path, port: int) -> None:
        self.agent, self.folder, self.port = agent, folder, port
        folder.mkdir()
        self.engine: subprocess.Popen[bytes] | None = None
        self.manifest: Manifest = {}
        self._numbers = itertools.count(1)

    def sees(self, *pods: Manifest) -> None:
        self.agent.listener(PODS, None)({("demo", one["metadata"]["name"]): one for one in pods})

    async def start(self) -> float:
        """A new engine answers, and the agent learns that its pod is ready. Returns when."""
        number = next(self._numbers)
        address = f"127.79.{number // 250}.{number % 250 + 1}"
        self.engine = self._launch(address, self.folder / f"engine-{number:03}.log")
        self.manifest = pod(f"d-{number}", "d", address)
        while True:
            try:
                (await asyncio.open_connection(address, self.port))[1].close()
                break
            except OSError:
                await asyncio.sleep(0.02)
        self.sees(self.manifest)
        return time.monotonic()

    def _launch(self, address: str, log: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "bench.loss", "--engine", address, str(self.port), str(log)])

    async def replaced(self) -> float:
        """Without room for a second replica: no new requests, the running ones end, it ends, the next one starts."""
        self.sees(unready(self.manifest))
        await asyncio.sleep(NOTICE_SECONDS)
        self._stop(signal.SIGTERM)
        self.sees()
        await asyncio.sleep(NOTICE_SECONDS)
        return await self.start()

    async def killed(self) -> float:
        """SIGKILL, which the agent learns late."""
        self._stop(signal.SIGKILL)
        await asyncio.sleep(NOTICE_SECONDS)
        self.sees(unready(self.manifest))
        await asyncio.sleep(NOTICE_SECONDS)
        self.sees()
        return await self.start()

    def _stop(self, how: signal.Signals) -> None:
        assert self.engine is not None
        self.engine.send_signal(how)
        self.engine.wait()

    def notes(self) -> Iterator[tuple[str, float, str, str]]:
        """(engine, time, begin or end, request) of all engines."""
        for log in sorted(self.folder.glob("engine-*.log")):
            for line in log.read_text().splitlines():
                moment, what, ident = line.split()
                yield log.stem, float(moment), what, ident


async def client(session: aiohttp.ClientSession, name: str, tally: Tally, ends: asyncio.Event) -> None:
    """One request after the other: three short ones, three streams, one large body."""
    for number in itertools.count():
        if ends.is_set():
            return
        ident, kind = f"{name}-{number}", number % 7
        text = "x" * LARGE_BYTES if kind == 6 else "x"
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "user": ident}
        begun = time.monotonic()
        outcome = await ask(session, {**body, "stream": kind < 3}, ident)
        tally.seconds.append(time.monotonic() - begun)
        if outcome == "":
            tally.answered.add(ident)
        elif outcome == "cut":
            tally.cut.add(ident)
        else:
            tally.lost[ident] = outcome


async def ask(session: aiohttp.ClientSession, body: dict[str, object], ident: str) -> str:
    """ "" for a complete answer, "cut" for a stream that ended after its first token, or what went wrong."""
    content = ""
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            content = (await response.read()).decode()
    except (aiohttp.ClientError, TimeoutError) as error:
        return repr(error)
    if response.status != 200:
        return f"{response.status} {content[:200]}"
    if not body["stream"]:
        return "" if ident in content else content[:200]
    events = content.count('"delta"')
    if events == TOKENS and content.endswith("data: [DONE]\n\n"):
        return ""
    return "cut" if events else content[:200]


@asynccontextmanager
async def world(running: Pod, folder: Path) -> AsyncIterator[World]:
    """An agent beside the router of `running`, and one engine."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        port = unused_port()
        router = f"http://127.0.0.1:{running.environ['QWEN_GATEWAY_ROUTER_PORT']}"
        agent = Agent(
            router=Smg(session, router, running.folder / "run" / CONTROL_PLANE_KEY_FILE),
            run_dir=running.folder / "run",
            naming=EntryNaming("loss", port=port),
            sources=frozenset({("qwendeployments", None), ("pods", None)}),
        )
        agent.start()
        agent.listener(QWENDEPLOYMENTS, None)({("demo", "d"): deployment("d")})
        loop = asyncio.create_task(agent.loop())
        made = World(agent, folder, port)
        try:
            await made.start()
            await until(lambda: agent.ready, 60)
            await asyncio.to_thread(running.chat, MODEL, user="first")
            yield made
        finally:
            loop.cancel()
            if made.engine is not None:
                made.engine.kill()
                made.engine.wait()


async def run(running: Pod, event: str, cycles: int, clients: int, pause: float) -> Result:
    """Let the event happen `cycles` times, `pause` seconds apart, while the clients ask."""
    tally, ends, ready = Tally(), asyncio.Event(), list[float]()
    before = _holds(running)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    headers = {"Authorization": "Bearer key-all"}
    async with (
        world(running, running.folder / event) as made,
        aiohttp.ClientSession(running.url, connector=connector, timeout=timeout, headers=headers) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in range(clients):
            group.create_task(client(session, f"{event}-{number}", tally, ends))
        for _ in range(cycles):
            await asyncio.sleep(pause)
            ready.append(await (made.replaced() if event == "replaced" else made.killed()))
        await asyncio.sleep(pause)
        ends.set()
    return _result(event, ready, tally, list(made.notes()), _holds(running) - before)


def _holds(running: Pod) -> int:
    return int(running.metrics().get(f'qwen_gateway_holds_total{{tenant="all",model="{MODEL}"}}', 0))


def _result(
    event: str, ready: list[float], tally: Tally, notes: list[tuple[str, float, str, str]], held: int
) -> Result:
    begins = Counter(ident for _, _, what, ident in notes if what == "begin")
    ends = Counter(ident for _, _, what, ident in notes if what == "end")
    first: dict[str, float] = {}
    for engine, moment, _, _ in notes:
        first.setdefault(engine, moment)
    handover = [moment - since for since, moment in zip(ready, sorted(first.values())[1:], strict=True)]
    repeated = [ident for ident, count in begins.items() if count > 1]
    # An engine that was killed noted no end, so only what it did not finish may begin again.
    twice = [ident for ident in repeated if event != "killed" or ends[ident] > 1]
    return Result(event, len(ready), tally, held, twice, len(repeated), handover)


@contextmanager
def _gateway() -> Iterator[Pod]:
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as running:
        yield running


def main() -> int:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", nargs=3, metavar=("ADDRESS", "PORT", "LOG"))
    parser.add_argument("--cycles", type=int, default=10, help="of each kind of event")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two events")
    options = parser.parse_args()
    if options.engine:
        address, port, log = options.engine
        serve_engine(address, int(port), Path(log))
        return 0
    print("| event | times | requests | waited | lost | twice | again after a kill | streams cut | ready to first, s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    results = []
    for event in EVENTS:
        with _gateway() as running:
            results.append(asyncio.run(run(running, event, options.cycles, options.clients, options.pause)))
        print(results[-1].row(), flush=True)
        for reason, count in Counter(results[-1].tally.lost.values()).most_common(5):
            print(f"  lost {count} times: {reason}")
    good = all(result.good for result in results)
    print("nothing lost, nothing twice" if good else "FAILED: requests were lost or executed twice")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
