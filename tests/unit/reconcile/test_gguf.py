"""GGUF files from the spec to the pod, and the sentences of those that cannot be served."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.checkpoints.hubs import Hub, HubCheckpoint, HubError, HubQuery, HubReason
from qwen_operator.controller.hub_reader import PATIENCE_SECONDS
from qwen_operator.kube import PODS, QWENDEPLOYMENTS
from qwen_operator.main import read_hub
from qwen_operator.planning.types import CacheType, ModelCache
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.hubs.hub import COMMIT, FakeHub, serving
from tests.unit.runtime.gguf_files import qwen2
from tests.unit.world import CONFIG, World, deployment

SOURCE: dict[str, Any] = {"uri": "pvc://models/qwen", "file": "q4/model.gguf"}


async def of_claim(path: Path, kind: str = "Q4_K", source: dict[str, Any] = SOURCE) -> World:
    world = await World().start()
    world.kubelet.report, _ = examine(qwen2(kind).write(path / "model.gguf"))
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=source))
    await world.settle(60)
    return world


async def test_a_file_of_a_claim_is_inspected_planned_and_loaded(tmp_path: Path) -> None:
    world = await of_claim(tmp_path)
    assert world.conditions()["Ready"] == ("True", "Serving")
    status = world.qd()["status"]
    assert status["plan"]["parallelism"]["tensor"] == 1
    assert any(step.startswith("tensors: Q4_K ") for step in status["plan"]["steps"])
    (engine,) = world.api.all(PODS)
    container = engine["spec"]["containers"][0]
    assert "--model-path=/models/source/qwen/q4/model.gguf" in container["command"]
    assert container["resources"]["requests"]["memory"] == "3Gi"
    commands = [
        pod["spec"]["containers"][0]["command"]
        for _, resource, pod in world.api.journal
        if resource is PODS and pod["metadata"]["name"].endswith("-inspect")
    ]
    assert commands[0][-2:] == ["--path", "/models/source/qwen/q4/model.gguf"]


async def test_a_file_of_a_hub_is_planned_by_its_header_and_pinned_to_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = qwen2("Q8_0").write(tmp_path / "a.gguf").read_bytes()
    async with serving(FakeHub({"a.gguf": content, "README.md": b"#"})) as hub:
        config = replace(CONFIG, hub_lookup=True, engine=replace(CONFIG.engine, hub_url=hub.address))
        world = World(config, fetch=partial(read_hub, config))
        await world.start()
        source = {"uri": "hf://Qwen/Test", "file": "a.gguf"}
        world.api.put(QWENDEPLOYMENTS, deployment(model="tuned", source=source))
        await world.settle(20)
        asked = len(hub.asked)
        await world.restart()
        await world.wait(60)
        assert len(hub.asked) == asked
    assert world.conditions()["Ready"] == ("True", "Serving")
    (engine,) = world.api.all(PODS)
    command = engine["spec"]["containers"][0]["command"]
    assert "--model-path=/models/cached/Qwen/Test/a.gguf" in command
    fetch = engine["spec"]["initContainers"][-1]["command"]
    assert {f"--commit={COMMIT}", "--file=a.gguf", "--of-pod"} <= set(fetch)
    assert world.qd()["status"]["model"]["commit"] == COMMIT


@pytest.mark.parametrize("cache", [ModelCache(CacheType.CLAIM, "models", 100), None], ids=["cache", "pod"])
@pytest.mark.parametrize(
    ("hub_of", "name"),
    [("hf", "a-00001-of-00003.gguf"), ("modelscope", "a-00001-of-00003.gguf"), ("modelscope", "b.gguf")],
)
async def test_a_file_that_sglang_cannot_download_is_planned_by_its_headers_and_fetched(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache | None, hub_of: str, name: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    parts = qwen2("Q8_0").split(1, 9, name="a")
    async with serving(FakeHub({**parts, "b.gguf": qwen2("Q8_0").bytes()})) as hub:
        engine = replace(CONFIG.engine, hub=Hub(hub_of), hub_url=hub.address, cache=cache)
        config = replace(CONFIG, hub_lookup=True, engine=engine)
        world = World(config, fetch=partial(read_hub, config))
        await world.start()
        source = {"uri": f"{hub_of}://Qwen/Test", "file": name}
        world.api.put(QWENDEPLOYMENTS, deployment(model="tuned", source=source))
        await world.settle(20)
    assert world.conditions()["Ready"] == ("True", "Serving")
    (pod,) = world.api.all(PODS)
    assert f"--model-path=/models/cached/Qwen/Test/{name[0]}.gguf" in pod["spec"]["containers"][0]["command"]
    fetch = pod["spec"]["initContainers"][1]["command"]
    assert {f"--file={name}", f"--commit={COMMIT}"} <= set(fetch)
    assert ("--of-pod" in fetch) == (cache is None)


async def test_a_split_file_is_refused_if_sglang_is_told_how_to_download() -> None:
    source = {"uri": "hf://Qwen/Qwen2-72B-Instruct-GGUF", "file": "a-00001-of-00002.gguf"}
    world = await World().start()
    engine = {"env": [{"name": "HF_TOKEN", "value": "x"}]}
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=source, engine=engine))
    await world.settle(60)
    assert world.conditions()["Ready"] == ("False", "InvalidConfig")
    assert world.message("Ready") == (
        "spec.source.file is one of 2 parts of a split file, and SGLang opens only one file. No container downloads "
        "it, because HF_TOKEN tells SGLang how to download: remove it, or set the chart value cache"
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            {"uri": "hf://team/x", "file": "a-00001-of-00002.gguf"},
            "one of 2 parts of a split file, and SGLang opens only",
        ),
        (
            {"uri": "modelscope://team/x", "file": "a.gguf"},
            "in a repository on ModelScope, which SGLang downloads only",
        ),
    ],
)
async def test_such_a_file_is_refused_if_its_commit_is_not_known(
    tmp_path: Path, source: dict[str, Any], says: str
) -> None:
    world = await of_claim(tmp_path, "Q8_0", {**source, "secretRef": {"name": "token"}})
    assert world.conditions()["Ready"] == ("False", "InvalidConfig")
    assert says in world.message("Ready")
    assert "its commit is not known: set spec.source.revision to one" in world.message("Ready")


async def test_a_file_of_a_bucket_is_inspected_by_a_pod_with_its_keys(tmp_path: Path) -> None:
    source = {"uri": "s3://weights/qwen", "file": "q4/model.gguf", "secretRef": {"name": "s3"}}
    world = await World().start()
    report, _ = examine(qwen2().write(tmp_path / "model.gguf"))
    world.kubelet.report = report | {"commit": COMMIT}
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=source))
    await world.settle(60)
    assert world.conditions()["Ready"] == ("True", "Serving")
    commands = [
        pod["spec"]["containers"][0]["command"]
        for _, resource, pod in world.api.journal
        if resource is PODS and pod["metadata"]["name"].endswith("-inspect")
    ]
    assert commands[0] == ["qwen-operator", "inspect-s3", "--s3=s3://weights/qwen", "--file=q4/model.gguf"]
    (engine,) = world.api.all(PODS)
    fetch = engine["spec"]["initContainers"][1]["command"]
    assert {f"--commit={COMMIT}", "--file=q4/model.gguf"} <= set(fetch)


async def test_the_hub_gets_the_whole_time_for_a_file_although_the_catalog_has_the_repository() -> None:
    asked: list[tuple[HubQuery, float]] = []

    async def never(query: HubQuery, seconds: float) -> HubCheckpoint:
        asked.append((query, seconds))
        raise HubError(HubReason.OFFLINE, "https://hub.test cannot be reached")

    world = World(replace(CONFIG, hub_lookup=True), fetch=never)
    await world.start()
    source = {"uri": "hf://Qwen/Qwen1.5-7B-Chat-GGUF", "file": "a.gguf"}
    world.api.put(QWENDEPLOYMENTS, deployment(model="tuned", source=source))
    await world.settle(5)
    query = HubQuery(Hub.HUGGING_FACE, "Qwen/Qwen1.5-7B-Chat-GGUF", "", "a.gguf")
    assert asked[0] == (query, PATIENCE_SECONDS)
    assert world.conditions()["Ready"] == ("False", "UnknownModel")
    assert "https://hub.test cannot be reached; the operator asks it again" in world.message("Ready")


async def test_a_file_that_the_repository_lacks_is_told_with_those_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with serving(FakeHub({"q8.gguf": b"", "README.md": b"#"})) as hub:
        config = replace(CONFIG, hub_lookup=True, engine=replace(CONFIG.engine, hub_url=hub.address))
        world = World(config, fetch=partial(read_hub, config))
        await world.start()
        source = {"uri": "hf://Qwen/Test", "file": "q4.gguf"}
        world.api.put(QWENDEPLOYMENTS, deployment(model="tuned", source=source))
        await world.settle(20)
    assert world.conditions()["Ready"] == ("False", "ModelNotFound")
    assert "Qwen/Test has no file q4.gguf; its GGUF files are q8.gguf: correct spec.source" in world.message("Ready")


async def test_a_model_that_no_gguf_file_can_have_is_refused_as_on_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = qwen2()
    file.values["general.architecture"] = "qwen2moe"
    async with serving(FakeHub({"a.gguf": file.bytes(), "README.md": b"#"})) as hub:
        config = replace(CONFIG, hub_lookup=True, engine=replace(CONFIG.engine, hub_url=hub.address))
        world = World(config, fetch=partial(read_hub, config))
        await world.start()
        source = {"uri": "hf://Qwen/Test", "file": "a.gguf"}
        world.api.put(QWENDEPLOYMENTS, deployment(model="tuned", source=source))
        await world.settle(20)
    assert world.conditions()["Ready"] == ("False", "UnknownArchitecture")
    assert world.message("Ready").endswith("use a checkpoint of *.safetensors files"), "a claim would not help"


@pytest.mark.parametrize(
    ("kind", "source", "reason", "message"),
    [
        (
            "BF16",
            SOURCE,
            "DoesNotFit",
            "weights are gguf 16 bit, which SGLang cannot load: its tensor token_embd.weight has the type BF16",
        ),
        (
            "Q8_0",
            {"uri": "hf://Qwen/Qwen1.5-7B-Chat-GGUF"},
            "InvalidOverride",
            "a GGUF repository holds several files: set spec.source.uri to the repository and spec.source.file",
        ),
        (
            "Q8_0",
            {"uri": "hf://Qwen/Qwen1.5-7B-Chat-GGUF", "file": "qwen1_5-7b-chat-q4_k_m.gguf"},
            "UnknownModel",
            "can be planned only with its header, which the operator must read",
        ),
        (
            "Q8_0",
            {"uri": "hf://Qwen/Qwen2-72B-Instruct-GGUF", "file": "a-00002-of-00002.gguf"},
            "InvalidSpec",
            "is a later part of a split file: name the first part, and the others are found",
        ),
        (
            "Q8_0",
            {"uri": "pvc://models/qwen", "file": "../a.gguf"},
            "InvalidSpec",
            "must be the path of a GGUF file in the source",
        ),
    ],
)
async def test_what_cannot_be_served_is_told(
    tmp_path: Path, kind: str, source: dict[str, Any], reason: str, message: str
) -> None:
    world = await of_claim(tmp_path, kind, source)
    assert world.conditions()["Ready"] == ("False", reason)
    assert message in world.message("Ready")
