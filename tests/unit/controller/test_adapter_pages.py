"""Reading from engines which adapters they have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from qwen_operator.controller import adapter_pages as adapter_pages_module
from qwen_operator.controller.adapter_pages import (
    AGAIN_SECONDS,
    SILENT_AFTER,
    STEP_SECONDS,
    AdapterPages,
    LoadingPod,
    loading_pods,
)
from qwen_operator.controller.cache import Store
from qwen_operator.controller.fetch_pages import AT_ONCE
from qwen_operator.controller.scraper import pod_session
from qwen_operator.kube import Manifest
from qwen_operator.replicas.adapters import AdaptersPage, read_adapters_page
from qwen_operator.replicas.pod_state import PodState, read_pod
from qwen_runtime.adapter_list import digest
from qwen_runtime.adapters import Loader
from qwen_runtime.engine_log import EngineLog, Patience
from qwen_runtime.page import showing
from qwen_runtime.progress import start_page
from tests.unit.runtime.known import KNOWN
from tests.unit.runtime.test_adapters import A, B, Engine

KEY = ("team", "chat")
BOTH = json.dumps({"a": A, "b": B})


@asynccontextmanager
async def reading(port: int, *pods: LoadingPod) -> AsyncIterator[tuple[AdapterPages, list[Any], list[float]]]:
    changed: list[Any] = []
    now = [0.0]
    async with pod_session("application/json") as session:
        yield AdapterPages(session, lambda: pods, changed.append, port, clock=lambda: now[0]), changed, now


async def step(pages: AdapterPages) -> None:
    """A step, and the end of all that it reads."""
    pages.step()
    await asyncio.gather(*pages.reading.values())


async def test_the_page_of_the_real_program_is_read_until_it_has_answered(tmp_path: Path) -> None:
    engine, log = Engine(a=A), EngineLog(KNOWN, Patience(), lambda: 1.0)
    loader = Loader(tmp_path, engine, lambda: 1000.0)
    engine.broken = {"b"}
    pod = LoadingPod(KEY, "uid", "127.0.0.1", BOTH)
    with showing(lambda: start_page(log, loader.page()), 0) as port:
        async with reading(port, pod) as (pages, changed, now):
            await step(pages)
            assert (pages.pages, changed) == ({}, []), "the page is about no list"
            (tmp_path / "wanted").write_text(BOTH)
            loader.step()
            await step(pages)
            failed = {"b": f"no file in {B}"}
            assert pages.pages == {"uid": AdaptersPage(digest(BOTH), frozenset({"a"}), failed)}
            assert changed == [KEY]
            engine.broken = set()
            loader._due, loader._failed = 0.0, {}
            loader.step()
            await step(pages)
            assert pages.pages["uid"].loaded == {"a"}, "who has answered is not asked in every step"
            now[0] += AGAIN_SECONDS
            await step(pages)
            assert pages.pages["uid"].loaded == {"a", "b"}
            pages.view = tuple
            await step(pages)
            assert pages.pages == {}


async def test_a_pod_that_says_something_else_each_time_drives_no_reconciles() -> None:
    asked = iter(range(100))
    answer = [""]

    def content() -> bytes:
        part = {"wanted": answer[0], "loaded": [], "failed": {"a": f"fault {next(asked)}"}}
        return json.dumps({"version": 1, "adapters": part}).encode()

    with showing(content, 0) as port:
        async with reading(port, LoadingPod(KEY, "uid", "127.0.0.1", BOTH)) as (pages, changed, now):
            for _ in range(20):
                now[0] += STEP_SECONDS
                await step(pages)
            assert changed == []
            answer[0] = digest(BOTH)
            for _ in range(20):
                now[0] += STEP_SECONDS
                await step(pages)
            assert changed == [KEY] * 2, "once in AGAIN_SECONDS"


async def test_who_does_not_answer_is_asked_less_and_less_often_until_it_gets_another_list() -> None:
    """The kubelet shows an engine its list after a second or after a minute."""
    asked: list[float] = []

    def content() -> bytes:
        asked.append(now[0])
        return json.dumps({"version": 1, "adapters": {"wanted": "", "loaded": [], "failed": {}}}).encode()

    async def for_seconds(seconds: int) -> list[float]:
        asked.clear()
        for _ in range(2 * seconds):
            now[0] += STEP_SECONDS
            await step(pages)
        return list(asked)

    with showing(content, 0) as port:
        pod = LoadingPod(KEY, "uid", "127.0.0.1", BOTH)
        async with reading(port, pod) as (pages, _, now):
            first = await for_seconds(60)
            assert first[:6] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.5]
            assert [late - early for early, late in zip(first[-4:], first[-3:], strict=False)] == [AGAIN_SECONDS] * 3
            pages.view = lambda: [replace(pod, wanted=json.dumps({"a": A}))]
            assert len(await for_seconds(2)) == 4


async def test_a_silent_pod_delays_no_other_and_is_asked_less_often() -> None:
    silent = LoadingPod(KEY, "silent", "192.0.2.1", BOTH)
    others = [LoadingPod(KEY, f"silent-{number}", "192.0.2.1", BOTH) for number in range(2 * AT_ONCE)]
    good = LoadingPod(("team", "other"), "good", "127.0.0.1", BOTH)
    part = {"wanted": digest(BOTH), "loaded": ["a", "b"], "failed": {}}
    asked: list[str] = []
    ended = asyncio.Event()

    async def of_nobody(_session: Any, url: str) -> bytes:
        asked.append(url)
        if "127.0.0.1" in url:
            return json.dumps({"version": 1, "adapters": part}).encode()
        await ended.wait()
        raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_pages_module, "get_page", of_nobody)
        async with reading(1, silent) as (pages, changed, now):
            ended.set()
            for _ in range(SILENT_AFTER + 5):
                now[0] += STEP_SECONDS
                await step(pages)
            assert len(asked) == SILENT_AFTER, "then it is asked every AGAIN_SECONDS"
            now[0] += AGAIN_SECONDS
            await step(pages)
            assert len(asked) == SILENT_AFTER + 1
            pages.view = lambda: others
            for _ in range(SILENT_AFTER):
                await step(pages)
            ended.clear()
            now[0] += AGAIN_SECONDS
            pages.view = lambda: [*others, good]
            pages.step()
            await pages.reading["good"]
            assert (list(pages.pages), changed) == (["good"], [good.key])
            assert not any(pages.reading[pod.uid].done() for pod in others)
            await pages.stop()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"version":1}', b'{"version":1,"adapters":{"wanted":7,"loaded":[]}}', b"\xff" * 4000],
)
async def test_another_page_says_nothing(content: bytes) -> None:
    with showing(lambda: content, 0) as port:
        async with reading(port, LoadingPod(KEY, "uid", "127.0.0.1", BOTH)) as (pages, changed, _):
            await step(pages)
            assert (pages.pages, changed) == ({}, [])
    with pytest.raises(ValueError, match="adapters"):
        read_adapters_page(content)


def test_what_a_page_may_hold_is_bounded() -> None:
    part = {"wanted": "x", "loaded": ["a", 7, "b:c"], "failed": {"b": "x\n" * 999, "c:d": "no"}}
    page = read_adapters_page(json.dumps({"version": 1, "adapters": part}).encode())
    assert page.loaded == {"a"}
    assert list(page.failed) == ["b"]
    assert len(page.failed["b"]) <= 200


def test_only_pods_that_are_up_and_lack_an_adapter_are_asked(caplog: pytest.LogCaptureFixture) -> None:
    annotations = {"qwen-operator.dev/adapters": "a", "qwen-operator.dev/adapters-wanted": BOTH}
    up = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    made: Manifest = {"metadata": {"name": "chat-0a1b2c3d-0", "uid": "uid", "annotations": annotations}, "status": up}

    class Cluster:
        def __init__(self, pod: Manifest) -> None:
            self.pod = read_pod(pod, "chat")

        def deployments(self) -> list[Manifest]:
            of = ({"namespace": "team", "name": name} for name in ("none", "x", "chat"))
            adapters: list[dict[str, list[int]]] = [{}, {"adapters": [1]}, {"adapters": [1]}]
            return [{"metadata": meta, "spec": spec} for meta, spec in zip(of, adapters, strict=True)]

        def engine_pods(self, deployment: Manifest) -> tuple[PodState, ...]:
            if deployment["metadata"]["name"] == "x":
                raise TypeError("nobody thought of this")
            return (self.pod,)

    def found(pod: Manifest) -> list[LoadingPod]:
        return list(loading_pods(cast(Store, Cluster(pod))))

    asked = LoadingPod(KEY, "uid", "127.0.0.1", BOTH)
    assert found(made) == [asked]
    assert found({**made, "status": {"podIP": "127.0.0.1"}}) == []
    metadata = {**made["metadata"], "annotations": annotations | {"qwen-operator.dev/adapters": "a,b"}}
    assert found({**made, "metadata": metadata}) == []
    assert {record.__dict__["deployment"] for record in caplog.records} == {"team/x"}
    caplog.clear()
