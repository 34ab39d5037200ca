"""One object that is nested 1,100 deep: the API server stores it, and whoever reads it must go on."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, cast

import kopf
import pytest

from qwen_operator import handlers
from qwen_operator.controller.cache import WATCHED
from qwen_operator.controller.resync import Resync
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.kube.client import connect
from qwen_operator.kube.decoding import MOST_LEVELS, decode
from qwen_operator.kube.mirror import Mirror
from qwen_operator.objects import ObjectKey
from qwen_operator.untrusted import size_of
from tests.unit import api_server
from tests.unit.fakes import FakeKube
from tests.unit.waiting import until
from tests.unit.world import CONFIG, Operator, deployment


def deep(name: str) -> Manifest:
    base = deployment()
    pod = {"affinity": {"nodeAffinity": api_server.DEEP}}
    return {**base, "metadata": {**base["metadata"], "name": name}, "spec": {**base["spec"], "pod": pod}}


def good(name: str) -> Manifest:
    base = deployment()
    return {**base, "metadata": {**base["metadata"], "name": name}}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "kubeconfig"


def names(keys: Any) -> set[str]:
    return {key[1] for key in keys}


async def test_a_list_and_a_watch_deliver_the_others(kubeconfig: Path) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deep("bad"))
    kube.put(QWENDEPLOYMENTS, good("first"))
    seen: dict[ObjectKey, Manifest] = {}
    async with api_server.serving(kube, kubeconfig):
        api = await connect()
        task = asyncio.create_task(Mirror(api, QWENDEPLOYMENTS, None, "", seen.update).run())
        await until(lambda: len(seen) == 2)
        kube.put(QWENDEPLOYMENTS, deep("worse"))
        kube.put(QWENDEPLOYMENTS, good("second"))
        await until(lambda: len(seen) == 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.aclose()
    assert names(seen) == {"bad", "worse", "first", "second"}
    assert all(size_of(item).levels <= MOST_LEVELS for item in seen.values())


async def test_a_list_of_the_operator_stores_and_queues_all(kubeconfig: Path) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deep("bad"))
    kube.put(QWENDEPLOYMENTS, good("first"))
    operator = Operator(kube, CONFIG)
    async with api_server.serving(kube, kubeconfig):
        api = await connect()
        await Resync(api, operator.intake, CONFIG, lambda: 0.0, lambda: 0.0).once()
        await api.aclose()
    assert names({operator.queue.take(), operator.queue.take()}) == {"bad", "first"}


async def test_kopf_keeps_watching(kubeconfig: Path, caplog: pytest.LogCaptureFixture) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deep("bad"))
    kube.put(QWENDEPLOYMENTS, good("first"))
    operator = Operator(kube, CONFIG)

    def stored(name: str) -> bool:
        return any(item["metadata"]["name"] == name for item in operator.store.all(QWENDEPLOYMENTS))

    async with api_server.serving(kube, kubeconfig) as server:
        watching = kopf.operator(
            registry=handlers.routes(operator.intake, lambda: None, WATCHED),
            settings=handlers.operator_settings(CONFIG, lambda: 0.0),
            clusterwide=True,
            identity=cast("Any", "operator-0"),
        )
        task = asyncio.create_task(watching)
        await until(lambda: len(server.watches) == len(WATCHED) and stored("first") and stored("bad"))
        kube.put(QWENDEPLOYMENTS, deep("worse"))
        kube.put(QWENDEPLOYMENTS, good("second"))
        await until(lambda: stored("second") and stored("worse"))
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    logged = [record for record in caplog.records if "too deeply" in record.getMessage()]
    assert {getattr(record, "object").rpartition("/")[2] for record in logged} == {"bad", "worse"}  # noqa: B009


def test_what_is_cut_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    raw = '{"kind":"QwenDeployment","metadata":{"namespace":"n","name":"q"},"spec":' + "[" * 3000 + "]" * 3000 + "}"
    with caplog.at_level(logging.WARNING):
        value = decode(raw)
    assert size_of(value).levels == MOST_LEVELS
    assert value["metadata"]["name"] == "q"
    assert caplog.records[0].__dict__["object"] == "n/q"


def test_an_ordinary_answer_is_what_json_makes_of_it() -> None:
    text = json.dumps({"items": [deployment()], "metadata": {"resourceVersion": "1"}, "n": [1, 1.5, None, True, "ü"]})
    assert decode(text) == decode(text.encode()) == json.loads(text)
