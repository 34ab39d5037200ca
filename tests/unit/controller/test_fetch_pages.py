"""Reading the progress of downloads from pods, which may answer anything or nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from aiohttp import web

from qwen_operator.controller.cache import Store
from qwen_operator.controller.fetch_pages import PATH, FetchingPod, FetchPages, fetching_pods
from qwen_operator.controller.scraper import pod_session
from qwen_operator.fetch.progress import Progress
from qwen_operator.kube import Manifest
from qwen_operator.replicas.pod_state import PodState, read_pod
from qwen_operator.status.progress import PAGE_BYTES, FetchPage, StartPage
from qwen_runtime.engine_log import EngineLog, Patience
from qwen_runtime.page import showing
from qwen_runtime.progress import start_page
from tests.unit.runtime.known import KNOWN

KEY = ("team", "chat")
POD = FetchingPod(KEY, "uid", "127.0.0.1")


@asynccontextmanager
async def reading(port: int, *pods: FetchingPod) -> AsyncIterator[tuple[FetchPages, list[Any]]]:
    changed: list[Any] = []
    async with pod_session("application/json") as session:
        yield FetchPages(session, lambda: pods, changed.append, port), changed


async def test_the_page_of_the_real_program_is_read() -> None:
    progress = Progress(total=1000)
    with showing(progress.page, 0) as port:
        async with reading(port, POD) as (pages, changed):
            await pages.step()
            progress.add(430)
            await pages.step()
            progress.add(1)
            await pages.step()
            assert pages.pages["uid"].done == 431
    # Less than a percent is no reason to look at the object again.
    assert changed == [KEY, KEY]


async def test_the_page_of_a_real_start_is_read_and_replaces_that_of_the_download() -> None:
    log = EngineLog(KNOWN, Patience(), time.monotonic)
    progress = Progress(total=1000, done=1000)
    with showing(progress.page, 0) as port, showing(lambda: start_page(log), 0) as start_port:
        async with reading(port, POD) as (pages, changed):
            pages.start_port = start_port
            await pages.step()
            pages.view = lambda: [replace(POD, starting=True)]
            await pages.step()
            assert pages.pages == {}, "an engine that has not begun to load has nothing to show"
            log.observe("Load weight begin. avail mem=17.09 GB")
            log.glance("Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:11<00:15,  3.8s/it]")
            await pages.step()
            page = pages.pages["uid"]
            assert isinstance(page, StartPage)
            assert (page.phase, page.done, page.total) == ("LoadWeights", 3, 7)
    assert changed == [KEY, KEY, KEY]


async def test_before_the_list_of_files_is_read_there_is_nothing_to_show() -> None:
    with showing(Progress().page, 0) as port:
        async with reading(port, POD) as (pages, changed):
            await pages.step()
    assert (pages.pages, changed) == ({}, [])


def test_a_deployment_whose_pods_cannot_be_read_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    fetching = {"initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}], "podIP": "127.0.0.1"}
    pod = read_pod({"metadata": {"name": "chat-0a1b2c3d-0", "uid": "uid"}, "status": fetching}, "chat")

    class Cluster:
        def with_unready_pods(self) -> list[Manifest]:
            return [{"metadata": {"namespace": "team", "name": name}} for name in ("bad", "chat")]

        def engine_pods(self, deployment: Manifest) -> tuple[PodState, ...]:
            if deployment["metadata"]["name"] == "bad":
                raise TypeError("nobody thought of this")
            return (pod,) if pod.index is not None else ()

        def fetch_pods(self, _deployment: Manifest) -> tuple[PodState, ...]:
            return (pod,) if pod.index is None else ()

    assert list(fetching_pods(cast(Store, Cluster()))) == [POD]
    pod = read_pod({"metadata": {"name": "chat-0a1b2c3d-fetch", "uid": "uid"}, "status": fetching}, "chat")
    assert list(fetching_pods(cast(Store, Cluster()))) == [POD]
    caplog.clear()
    loading = {"containerStatuses": [{"name": "engine", "state": {"running": {}}}], "podIP": "127.0.0.1"}
    pod = read_pod({"metadata": {"name": "chat-0a1b2c3d-0", "uid": "uid"}, "status": loading}, "chat")
    assert list(fetching_pods(cast(Store, Cluster()))) == [replace(POD, starting=True)]
    worker = "chat-0a1b2c3d-0-1"
    pod = read_pod({"metadata": {"name": worker, "uid": "uid"}, "status": loading}, "chat")
    assert list(fetching_pods(cast(Store, Cluster()))) == []
    caplog.clear()
    assert list(fetching_pods(cast(Store, Cluster()))) == []
    assert [record.__dict__["deployment"] for record in caplog.records] == ["team/bad"]


def answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers)


GOOD = json.dumps({"version": 1, "phase": "Download", "bytesTotal": 100, "bytesDone": 50, "bytesPerSecond": 1}).encode()


@pytest.mark.parametrize(
    "bad",
    [
        answer(GOOD, 500),
        answer(b"", 302, {"Location": "/elsewhere"}),
        answer(b"<html>"),
        answer(b" " * PAGE_BYTES + GOOD),
        answer(b"\x1f\x8b", 200, {"Content-Encoding": "gzip"}),
    ],
)
async def test_a_bad_answer_keeps_the_last_page(bad: web.Response) -> None:
    answers = [answer(GOOD), bad]

    async def handle(_request: web.Request) -> web.Response:
        return answers.pop(0)

    async with serving(handle) as port, reading(port, POD) as (pages, changed):
        await pages.step()
        await pages.step()
        assert pages.pages == {"uid": FetchPage(50, 100, 1)}
        assert (changed, answers) == ([KEY], [])


async def test_a_silent_pod_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_operator.controller.fetch_pages.TIMEOUT_SECONDS", 0.2)

    async def handle(request: web.Request) -> web.Response:
        if request.url.host == "127.0.0.2":
            await asyncio.sleep(30)
        return answer(GOOD)

    silent, wrong = FetchingPod(("team", "a"), "silent", "127.0.0.2"), FetchingPod(("team", "b"), "wrong", "host")
    async with serving(handle, "0.0.0.0") as port, reading(port, silent, POD, wrong) as (pages, changed):
        await pages.step()
        assert set(pages.pages) == {"uid"}
        assert changed == [KEY]


@asynccontextmanager
async def serving(handle: Any, host: str = "127.0.0.1") -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get(PATH, handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
