"""Objects of megabytes: lists and watches hold one of them at a time, and keep little of each."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import kopf
import pytest

from qwen_operator import handlers, untrusted
from qwen_operator.controller.cache import WATCHED, keep
from qwen_operator.gateway import kept
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.kube.client import connect
from qwen_operator.kube.mirror import Mirror
from qwen_operator.objects import ObjectKey
from tests.unit import api_server
from tests.unit.fakes import FakeKube
from tests.unit.waiting import until
from tests.unit.world import CONFIG, Operator, deployment


def large(name: str) -> Manifest:
    base = deployment()
    spec = {**base["spec"], "pod": {"affinity": {"a": [{}] * 100_000}}}
    notes = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000, "qwen-operator.dev/replan": "1"}
    return {**base, "metadata": {**base["metadata"], "name": name, "annotations": notes}, "spec": spec}


def good(name: str) -> Manifest:
    base = deployment()
    return {**base, "metadata": {**base["metadata"], "name": name}}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "kubeconfig"


def small(item: Manifest) -> bool:
    size = untrusted.size_of(item)
    return size.values < 200 and size.characters < 5000


async def test_the_agent_keeps_little_of_a_large_object(kubeconfig: Path) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, large("bad"))
    kube.put(QWENDEPLOYMENTS, good("first"))
    seen: dict[ObjectKey, Manifest] = {}
    async with api_server.serving(kube, kubeconfig):
        api = await connect(keep=kept.keep)
        task = asyncio.create_task(Mirror(api, QWENDEPLOYMENTS, None, "", seen.update).run())
        await until(lambda: len(seen) == 2)
        kube.put(QWENDEPLOYMENTS, large("worse"))
        kube.put(QWENDEPLOYMENTS, good("second"))
        await until(lambda: len(seen) == 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.aclose()
    assert all(small(item) for item in seen.values())
    assert all(item["spec"] == {"model": "Qwen/Qwen1.5-0.5B-Chat"} for item in seen.values())


async def test_kopf_delivers_the_others_and_little_of_a_large_object(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, large("bad"))
    operator = Operator(kube, CONFIG)
    delivered: list[Manifest] = []
    event = operator.intake.event

    def noted(resource: Any, kind: str | None, manifest: Manifest) -> None:
        delivered.append(manifest)
        event(resource, kind, manifest)

    monkeypatch.setattr(operator.intake, "event", noted)
    async with api_server.serving(kube, kubeconfig) as server:
        watching = kopf.operator(
            registry=handlers.routes(operator.intake, lambda: None, WATCHED),
            settings=handlers.operator_settings(CONFIG, lambda: 0.0),
            clusterwide=True,
            identity=cast("Any", "operator-0"),
        )
        task = asyncio.create_task(watching)
        await until(lambda: len(server.watches) == len(WATCHED) and bool(delivered))
        kube.put(QWENDEPLOYMENTS, large("worse"))
        kube.put(QWENDEPLOYMENTS, good("first"))
        await until(lambda: {item["metadata"]["name"] for item in delivered} == {"bad", "worse", "first"})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert all(small(item) for item in delivered)


def test_an_object_of_another_resource_stays_as_it_is() -> None:
    event = {"metadata": {"name": "e"}, "message": "m"}
    assert keep("events", event) == event
    assert kept.keep("events", event) == event
    assert json.loads(json.dumps(keep(PODS.plural, {"metadata": {"name": "p"}}))) == {"metadata": {"name": "p"}}
