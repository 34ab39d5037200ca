"""How a download is shown: in steps that cost few writes, and with numbers that outlive the operator."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from qwen_operator.checkpoints.catalog import lookup
from qwen_operator.checkpoints.hubs import HubCheckpoint, HubQuery
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.objects import moment as read_moment
from qwen_operator.planning.types import CacheType, ModelCache
from qwen_operator.status.progress import FetchPage, ProgressPage, StartPage, read_page, sentence
from tests.unit.world import CONFIG, World, deployment, node, ready_status, with_groups


def moment(text: str) -> datetime:
    time = read_moment(text)
    assert time is not None
    return time


COMMIT = "c" * 40
GB = 10**9
CACHED = replace(CONFIG, hub_lookup=True, engine=replace(CONFIG.engine, cache=ModelCache(CacheType.CLAIM, "m", 100)))
DONE = {"name": "runtime", "state": {"terminated": {"exitCode": 0}}}


def page(**changes: Any) -> bytes:
    told = {"version": 1, "phase": "Download", "bytesTotal": 1000, "bytesDone": 430, "bytesPerSecond": 7}
    return json.dumps(told | changes).encode()


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (page(), FetchPage(430, 1000, 7)),
        (page(bytesTotal=0), None),
        (page(bytesDone=2000, bytesPerSecond=-1), FetchPage(0, 1000, 0)),
        (page(bytesTotal=10**30), None),
        (page(bytesTotal="1000"), None),
    ],
)
def test_a_page_is_read_with_bounds(content: bytes, read: FetchPage | None) -> None:
    assert read_page(content) == read


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", page(version=2), page(phase="Other"), b"[" * 5000])
def test_another_page_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no progress of a download or a start"):
        read_page(content)


def start(**changes: Any) -> bytes:
    told = {"version": 1, "phase": "LoadWeights", "stepsDone": 3, "stepsTotal": 7, "milliseconds": 1500}
    return json.dumps(told | changes).encode()


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (start(), StartPage("LoadWeights", 3, 7, 1.5)),
        (start(phase="CaptureGraphs", stepsDone=9), StartPage("CaptureGraphs", 0, 7, 1.5)),
        (start(phase="WarmUp", stepsTotal="7", milliseconds=True), StartPage("WarmUp", 0, 0, 0.0)),
        (start(stepsTotal=10**9, milliseconds=10**20), StartPage("LoadWeights", 0, 0, 0.0)),
        (start(milliseconds=float("nan")), StartPage("LoadWeights", 3, 7, 0.0)),
        (start(phase="Starting"), None),
        (start(phase="Serving"), None),
    ],
)
def test_the_page_of_a_start_is_read_with_bounds(content: bytes, read: ProgressPage | None) -> None:
    assert read_page(content) == read


@pytest.mark.parametrize(
    ("done", "whole", "rate", "said"),
    [
        (7 * GB, 16 * GB, 512 * 10**6, "7.0 of 16.0 GB at 512 MB/s"),
        (21_400_000, 50_300_000, 600_000, "21 of 50 MB at 0.6 MB/s"),
        (90, 700, 12, "90 of 700 bytes at 12 bytes/s"),
    ],
)
def test_the_numbers_have_units_in_which_they_move(done: int, whole: int, rate: int, said: str) -> None:
    shown = FetchPage(done, whole, rate).numbers(0)
    assert sentence({"phase": "Download", **shown}) == said


async def commit(query: HubQuery, _seconds: float) -> HubCheckpoint:
    facts = lookup(query.repository)
    assert facts is not None
    return HubCheckpoint(facts, COMMIT)


def fetching(_pod: Manifest) -> Manifest:
    return {
        "phase": "Pending",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [DONE, {"name": "fetch", "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}}}],
    }


async def downloading() -> World:
    """A world in which the only pod downloads its model."""
    world = World(CACHED, fetch=commit)
    world.kubelet.engine = fetching
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    return world


async def tell(world: World, done: int, seconds: int = 10) -> None:
    """The pod tells how far it is, and time passes."""
    (pod,) = world.api.all(PODS)
    world.operator.pages = {pod["metadata"]["uid"]: FetchPage(done, 16 * GB, 512 * 10**6)}
    world.operator.queue.add(("team", "chat"))
    await world.wait(seconds)


def column(world: World) -> str:
    return str(world.qd()["status"]["summary"]["status"])


async def test_a_download_is_shown_with_its_numbers() -> None:
    world = await downloading()
    assert (column(world), world.conditions()["Ready"]) == ("Downloading", ("False", "Downloading"))
    assert "progress" not in world.qd()["status"]
    await tell(world, 7 * GB)
    assert column(world) == "Downloading 43%"
    assert world.conditions()["ModelLoaded"] == ("False", "Downloading")
    assert "7.0 of 16.0 GB at 512 MB/s, until about 20" in world.message("Ready")
    shown = world.qd()["status"]["progress"]
    assert (shown["phase"], shown["percent"], shown["bytesTotal"]) == ("Download", 43, 16 * GB)
    assert shown["finishTime"] > shown["time"]
    world.kubelet.engine = ready_status
    await world.settle()
    assert column(world) == "Serving"
    assert "progress" not in world.qd()["status"]


def starting(_pod: Manifest) -> Manifest:
    return {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "engine", "started": False, "state": {"running": {}}}],
    }


async def loading() -> World:
    """A world in which the only pod loads its model."""
    world = World()
    world.kubelet.engine = starting
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    return world


async def tell_start(world: World, page: StartPage, seconds: int = 10) -> None:
    (pod,) = world.api.all(PODS)
    world.operator.pages = {pod["metadata"]["uid"]: page}
    world.operator.queue.add(("team", "chat"))
    await world.wait(seconds)


async def test_a_start_is_shown_phase_by_phase() -> None:
    world = await loading()
    assert column(world) == "Loading"
    await tell_start(world, StartPage("LoadWeights", 3, 4, 30.0))
    assert column(world) == "Loading 75%"
    assert world.conditions()["Ready"] == ("False", "Loading")
    shown, weights = world.qd()["status"]["progress"], world.qd()["status"]["model"]["weightBytes"]
    assert (shown["phase"], shown["percent"]) == ("LoadWeights", 75)
    assert (shown["bytesDone"], shown["bytesTotal"]) == (weights * 3 // 4, weights)
    assert shown["bytesPerSecond"] == weights * 3 // 4 // 30
    assert (moment(shown["finishTime"]) - moment(shown["time"])).total_seconds() == 10
    assert f"is loading the model: it reads the weights, {weights * 0.75e-6:.0f} of" in world.message("Ready")
    await tell_start(world, StartPage("CaptureGraphs", 18, 36, 5.0))
    assert column(world) == "CapturingGraphs 50%"
    assert "it captures CUDA graphs, 50 %, until about 20" in world.message("Ready")
    assert "bytesDone" not in world.qd()["status"]["progress"]
    await tell_start(world, StartPage("WarmUp", 0, 0, 1.0))
    assert (column(world), world.qd()["status"]["progress"].keys()) == ("WarmingUp", {"phase", "pod", "time"})
    assert "it warms up" in world.message("ModelLoaded")
    world.kubelet.engine = ready_status
    await world.settle()
    assert column(world) == "Serving"
    assert "progress" not in world.qd()["status"]


@pytest.mark.parametrize("steps", [0, 1])
async def test_an_engine_that_counts_nothing_shows_no_percent(steps: int) -> None:
    world = await loading()
    await tell_start(world, StartPage("LoadWeights", 0, steps, 30.0))
    assert (column(world), world.qd()["status"]["progress"].keys()) == ("Loading", {"phase", "pod", "time"})


async def test_a_start_of_ten_minutes_costs_few_writes() -> None:
    world = await loading()
    for step in range(300):
        await tell_start(world, StartPage("LoadWeights", step, 300, float(step)), seconds=1)
    for step in range(250):
        await tell_start(world, StartPage("CaptureGraphs", step, 250, float(step)), seconds=1)
    await tell_start(world, StartPage("WarmUp", 0, 0, 50.0), seconds=50)
    world.kubelet.engine = ready_status
    await world.settle()
    assert column(world) == "Serving"
    assert 20 <= len(world.api.writes) <= 25


async def test_the_numbers_of_a_start_outlive_the_operator() -> None:
    world = await loading()
    await tell_start(world, StartPage("LoadWeights", 3, 4, 30.0))
    await world.restart()
    await world.settle()
    assert (world.operator.pages, column(world)) == ({}, "Loading 75%")


async def test_a_download_is_forgotten_when_the_engine_starts() -> None:
    world = await downloading()
    await tell(world, 16 * GB)
    assert column(world) == "Downloading 100%"
    world.kubelet.engine = starting
    await world.settle()
    assert world.operator.pages, "the page was read before the end"
    assert column(world) == "Loading"
    assert "progress" not in world.qd()["status"]


async def test_a_long_download_costs_few_writes() -> None:
    world = await downloading()
    writes = len(world.api.writes)
    for percent in range(101):
        await tell(world, 16 * GB * percent // 100, seconds=6)
    assert column(world) == "Downloading 100%"
    assert 20 <= len(world.api.writes) - writes <= 25


async def test_a_watcher_of_a_throttled_download_sees_steps() -> None:
    """What `kubectl get qd -w` shows of ten minutes at a rate that changes, with a second operator after a third."""
    world = await downloading()
    before, done, seen = len(world.api.writes), 0, [(-10, -5)]
    for second in range(600):
        done += int(16 * GB / 600 * (0.2, 1.8, 1.0)[second // 200])
        if second == 200:
            await world.restart()
        await tell(world, done, seconds=1)
        percent = int(column(world).removeprefix("Downloading ").removesuffix("%"))
        if percent != seen[-1][1]:
            seen.append((second, percent))
    steps = [(later - first, more - less) for (first, less), (later, more) in pairwise(seen)]
    assert all(seconds >= 10 and percent >= 5 for seconds, percent in steps), seen
    assert len(steps) >= 15
    world.kubelet.engine = ready_status
    await world.settle()
    assert column(world) == "Serving"
    status = [write for write in world.api.writes[before:] if write.resource == QWENDEPLOYMENTS]
    assert len(status) <= 25


async def test_a_fast_download_is_written_every_ten_seconds_at_most() -> None:
    world = await downloading()
    await tell(world, 0, seconds=0)
    writes = len(world.api.writes)
    for percent in range(0, 101, 10):
        await tell(world, 16 * GB * percent // 100, seconds=2)
    assert len(world.api.writes) - writes <= 3


async def test_the_numbers_outlive_the_operator() -> None:
    world = await downloading()
    await tell(world, 7 * GB)
    await world.restart()
    await world.settle()
    assert world.operator.pages == {}
    assert column(world) == "Downloading 43%"
    await tell(world, 7 * GB + 1)
    assert world.qd()["status"]["progress"]["bytesDone"] == 7 * GB
    await tell(world, 8 * GB)
    assert column(world) == "Downloading 50%"


async def test_a_failed_download_says_why() -> None:
    world = await downloading()
    await tell(world, 7 * GB)
    report = {"reason": "DiskFull", "phase": "Download", "exitCode": 1, "log": ["it needs 9.0 GB more"]}
    ended = {"exitCode": 1, "message": json.dumps(report), "finishedAt": world.api.clock.stamp(), "reason": "Error"}
    failed = [DONE, {"name": "fetch", "state": {"terminated": ended}, "restartCount": 0}]
    world.kubelet.engine = lambda pod: fetching(pod) | {"initContainerStatuses": failed}
    await world.settle()
    assert (column(world), world.qd()["status"]["lastFailure"]["phase"]) == ("DiskFull", "Download")
    assert "it needs 9.0 GB more" in world.message("Ready")
    assert "progress" not in world.qd()["status"]


async def test_a_rollout_is_not_held_back_by_a_download() -> None:
    world = World(CACHED, fetch=commit)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"progressDeadlineSeconds": 60}))
    await world.settle()
    world.kubelet.engine = lambda pod: None if pod["status"]["phase"] == "Running" else fetching(pod)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=4096))
    await world.wait(300)
    assert "Stalled" not in world.conditions()
    assert len(world.api.all(PODS)) == 2


async def test_a_rollout_is_not_held_back_by_the_download_of_another_pod_of_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_groups(2, monkeypatch)
    world = World(CACHED, fetch=commit)
    world.kubelet.place = True
    await world.start()
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"progressDeadlineSeconds": 60}))
    await world.settle()
    fetched = {"name": "fetch", "state": {"terminated": {"exitCode": 0, "finishedAt": world.api.clock.stamp()}}}

    def engine(pod: Manifest) -> Manifest | None:
        """Rank 0 has its model at once and waits for rank 1, which downloads."""
        if pod["status"]["phase"] == "Running":
            return None
        done = {"phase": "Running", "initContainerStatuses": [DONE, fetched]}
        return fetching(pod) | (done if pod["metadata"]["name"].endswith("-0") else {})

    world.kubelet.engine = engine
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=4096))
    await world.wait(300)
    assert "Stalled" not in world.conditions()
    assert len(world.api.all(PODS)) == 4
