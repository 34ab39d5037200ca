"""Agent and launcher beside the real smg, on loopback and with stand-in engines: what smg does forces the rules."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from qwen_operator.gateway.agent import Agent
from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE
from qwen_operator.gateway.smg import Smg
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Resource
from qwen_operator.routing.membership import EntryNaming
from tests.unit.gateway.engines import engine
from tests.unit.gateway.objects import Manifest, deployment, pod, unlabelled, unready

FIRST, SECOND = "127.77.0.5", "127.77.0.6"


@contextmanager
def router(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The router as its container runs it. It is killed: its graceful end takes 5 s."""
    environ = {
        **os.environ,
        "QWEN_GATEWAY_RUN_DIR": str(folder),
        "QWEN_GATEWAY_ROUTER_PORT": str(port),
        "QWEN_GATEWAY_METRICS_PORT": str(unused_port()),
    }
    code = "import os; from qwen_operator.gateway.router import main; raise SystemExit(main(os.environ))"
    with (folder / "smg.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def process_title(process: subprocess.Popen[bytes]) -> str:
    """What `ps` shows."""
    return Path(f"/proc/{process.pid}/cmdline").read_text()


class Client:
    """A client of the router."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.session, self.url = session, f"http://127.0.0.1:{port}"

    async def chat(self, model: str) -> tuple[int, Any]:
        """(status, content of the answer or error object); status 0 when the router does not listen."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        try:
            async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
                answer = await response.json()
        except aiohttp.ClientConnectionError:
            return 0, None
        good = response.status == 200
        return response.status, answer["choices"][0]["message"]["content"] if good else answer["error"]

    async def becomes(self, model: str, wanted: Callable[[tuple[int, Any]], bool], seconds: float = 10) -> None:
        """Ask until the answer is as wanted."""
        answer: tuple[int, Any] = (0, None)
        for _ in range(int(seconds / 0.05)):
            answer = await self.chat(model)
            if wanted(answer):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"after {seconds} s the answer for {model!r} is still {answer}")


def served_by(address: str, model: str = "m") -> Callable[[tuple[int, Any]], bool]:
    return lambda answer: answer == (200, f"{address} as {model}")


class Gateway:
    """An agent that is told what the API server has, beside a real router."""

    def __init__(self, agent: Agent, client: Client) -> None:
        self.agent, self.client = agent, client

    def sees(self, resource: Resource, *objects: Manifest) -> None:
        self.agent.listener(resource, None)(
            {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects}
        )

    def ids(self) -> dict[str, str]:
        return {entry.name: entry.id for entry in self.agent.membership.entries}


@asynccontextmanager
async def gateway(folder: Path, port: int, engine_port: int) -> AsyncIterator[Gateway]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, port)
        agent = Agent(
            router=Smg(session, client.url, folder / CONTROL_PLANE_KEY_FILE),
            run_dir=folder,
            naming=EntryNaming("test", port=engine_port),
            sources=frozenset({("qwendeployments", None), ("pods", None)}),
        )
        agent.start()
        task = asyncio.create_task(agent.loop())
        try:
            yield Gateway(agent, client)
        finally:
            task.cancel()


@pytest.fixture
def engine_port() -> Iterator[int]:
    with engine(FIRST) as port, engine(SECOND, port):
        yield port


async def test_models_that_generate_no_text_have_their_paths(tmp_path: Path, engine_port: int) -> None:
    """docs/parsers.md names these paths. The router has no path for scores of token probabilities."""
    port = unused_port()
    paths = ("/v1/embeddings", "/v1/classify")
    async with gateway(tmp_path, port, engine_port) as it:
        it.sees(QWENDEPLOYMENTS, deployment("d", servedNames=["m"]))
        it.sees(PODS, pod("d-0", "d", FIRST))
        with router(tmp_path, port):
            await it.client.becomes("m", served_by(FIRST))
            got = {}
            for path in (*paths, "/v1/score"):
                sent = {"model": "m", "input": "hello"}
                async with it.client.session.post(f"{it.client.url}{path}", json=sent) as response:
                    got[path] = response.status
            assert got == {**dict.fromkeys(paths, 200), "/v1/score": 404}


async def test_names_errors_and_the_control_plane(tmp_path: Path, engine_port: int) -> None:
    port = unused_port()
    names = ["Qwen/Qwen1.5-7B-Chat", "b", "c", "d"]
    async with gateway(tmp_path, port, engine_port) as it:
        it.sees(QWENDEPLOYMENTS, deployment("d", servedNames=names))
        it.sees(PODS, pod("d-0", "d", FIRST))
        with router(tmp_path, port) as process:
            for name in names:
                await it.client.becomes(name, served_by(FIRST, name))
            await quiet(it)
            status, error = await it.client.chat("engine")
            assert (status, error["code"]) == (404, "model_not_found")
            for headers in ({}, {"Authorization": "Bearer none"}):
                async with it.client.session.get(f"{it.client.url}/workers", headers=headers) as response:
                    assert response.status == 401
            assert (tmp_path / CONTROL_PLANE_KEY_FILE).read_text() not in process_title(process)
            assert await it.agent.router.alive()
        assert not await it.agent.router.alive()


async def test_no_request_is_lost_when_the_only_worker_is_replaced(tmp_path: Path, engine_port: int) -> None:
    port = unused_port()
    first, second = pod("d-0", "d", FIRST), pod("d-1", "d", SECOND)
    async with gateway(tmp_path, port, engine_port) as it:
        it.sees(QWENDEPLOYMENTS, deployment("d"))
        it.sees(PODS, first)
        with router(tmp_path, port):
            await it.client.becomes("m", served_by(FIRST))
            answers: Counter[tuple[int, str]] = Counter()

            async def load() -> None:
                while True:
                    status, content = await it.client.chat("m")
                    answers[status, str(content)] += 1

            loads = [asyncio.create_task(load()) for _ in range(3)]
            for _ in range(2):
                it.sees(PODS, unlabelled(first), second)
                await it.client.becomes("m", served_by(SECOND))
                await quiet(it)
                it.sees(PODS, first, unlabelled(second))
                await it.client.becomes("m", served_by(FIRST))
                await quiet(it)
            for task in loads:
                task.cancel()
            assert answers.keys() == {(200, f"{FIRST} as m"), (200, f"{SECOND} as m")}


async def test_a_worker_returns_while_smg_drains_it_and_a_killed_router_takes_all_again(
    tmp_path: Path, engine_port: int
) -> None:
    port = unused_port()
    first = pod("d-0", "d", FIRST)
    async with gateway(tmp_path, port, engine_port) as it:
        it.sees(QWENDEPLOYMENTS, deployment("d"))
        it.sees(PODS, first)
        with router(tmp_path, port):
            await it.client.becomes("m", served_by(FIRST))
            before = it.ids()
            it.sees(PODS, unready(first))
            await it.client.becomes("m", lambda answer: answer[0] in (404, 503), seconds=3)
            it.sees(PODS, first)
            await it.client.becomes("m", served_by(FIRST), seconds=4)
            back = it.ids()
            assert back["m"] != before["m"]
            await quiet(it)
        await it.agent.step()
        assert not it.agent.ready
        with router(tmp_path, port):
            await it.client.becomes("m", served_by(FIRST))
            await quiet(it)
            assert it.agent.ready
            assert it.ids() == back


async def quiet(it: Gateway) -> None:
    """Wait until the agent awaits nothing and nothing is on its way out."""
    for _ in range(200):
        if it.agent.ready and not it.agent.membership.awaited and not it.agent.membership.leaving:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not settled: {it.agent.membership}")
