"""Objects of megabytes: lists and watches hold one of them at a time, and keep little of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import untrusted
from qwen_operator.controller.cache import keep
from qwen_operator.gateway import kept
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.fakes import FakeKube
from tests.unit.waiting import until
from tests.unit.watching import mirrored, watched_by_kopf
from tests.unit.world import CONFIG, Operator, deployment


def large(name: str) -> Manifest:
    made = deployment(name, pod={"affinity": {"a": [{}] * 100_000}})
    notes = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000, "qwen-operator.dev/replan": "1"}
    return {**made, "metadata": {**made["metadata"], "annotations": notes}}


def small(item: Manifest) -> bool:
    size = untrusted.size_of(item)
    return size.values < 200 and size.characters < 5000


async def test_the_agent_keeps_little_of_a_large_object(kubeconfig: Path) -> None:
    seen = await mirrored(large, kubeconfig, kept.keep)
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
    async with watched_by_kopf(operator, kube, kubeconfig):
        await until(lambda: bool(delivered))
        kube.put(QWENDEPLOYMENTS, large("worse"))
        kube.put(QWENDEPLOYMENTS, deployment("first"))
        await until(lambda: {item["metadata"]["name"] for item in delivered} == {"bad", "worse", "first"})
    assert all(small(item) for item in delivered)


def test_an_object_of_another_resource_stays_as_it_is() -> None:
    event = {"metadata": {"name": "e"}, "message": "m"}
    assert keep("events", event) == event
    assert kept.keep("events", event) == event
    assert json.loads(json.dumps(keep(PODS.plural, {"metadata": {"name": "p"}}))) == {"metadata": {"name": "p"}}
