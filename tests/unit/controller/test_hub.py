"""Facts from model hubs: who is asked, how often, what is pinned, and what is said when there is no answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.hubs import Hub, HubCheckpoint, HubError, HubQuery, HubReason
from qwen_operator.controller import hub_reader as hubs
from qwen_operator.controller.hub_reader import HubReader
from qwen_operator.hubs.client import fetch
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.main import read_hub
from tests.unit.checkpoints.configs import DENSE
from tests.unit.fakes import Clock
from tests.unit.hubs.hub import COMMIT, FakeHub, repository, serving
from tests.unit.reconcile.test_adapters import listed, report
from tests.unit.world import CONFIG, World, change, deployment

ONLINE = replace(CONFIG, hub_lookup=True)
KNOWN = "Qwen/Qwen1.5-0.5B-Chat"
NAMED: dict[str, Any] = {"source": {"uri": f"hf://{KNOWN}", "revision": "v1.0"}}
OTHER: dict[str, Any] = {"model": "team/tuned"}


@dataclass
class StubHub:
    """A hub in a function: the commit that every revision points to, or the error instead."""

    commit: str = COMMIT
    error: HubError | None = None
    asked: list[tuple[HubQuery, float]] = field(default_factory=list)

    async def fetch(self, query: HubQuery, seconds: float) -> HubCheckpoint:
        self.asked.append((query, seconds))
        # As a request does, so that readings overlap.
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return HubCheckpoint(from_config(DENSE, source="Hub"), self.commit)

    def fail(self, reason: HubReason, message: str = "https://hub.test cannot be reached", detail: str = "") -> StubHub:
        self.error = HubError(reason, message, detail)
        return self


async def online(hub: StubHub, *manifests: Manifest, **config: Any) -> World:
    world = await World(replace(ONLINE, **config), fetch=hub.fetch).start()
    for manifest in manifests:
        world.api.put(QWENDEPLOYMENTS, manifest)
    await world.settle(10)
    return world


def command(world: World) -> list[str]:
    return list(world.api.all(PODS)[0]["spec"]["containers"][0]["command"])


def revisions(world: World) -> list[str]:
    """What the engine or the container before it downloads."""
    pod = world.api.all(PODS)[0]["spec"]
    words = [word for one in (*pod["initContainers"], *pod["containers"]) for word in one.get("command", ())]
    return [word.partition("=")[2] for word in words if word.startswith(("--revision=", "--commit="))]


async def test_what_the_catalog_does_not_have_is_planned_from_its_hub_and_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shards = {"model.safetensors": 927_980_000}
    async with serving(repository(DENSE, shards)) as hub:
        config = replace(ONLINE, engine=replace(CONFIG.engine, hub_url=hub.address))
        world = World(config, fetch=partial(read_hub, config))
        await world.start()
        world.api.put(QWENDEPLOYMENTS, deployment(model="Qwen/Test"))
        await world.settle(10)
        requests = len(hub.asked)
        assert requests == 3
        writes = len(world.api.writes)
        await world.restart()
        await world.wait(2 * hubs.KEPT_SECONDS)
        assert world.api.writes[writes:] == []
        assert len(hub.asked) == requests

    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "--model-path=/models/cached/Qwen/Test" in command(world)
    assert revisions(world) == [COMMIT]
    assert world.message("Planned").endswith(f"; facts from the hub at commit {COMMIT[:12]}")
    model = world.qd()["status"]["model"]
    assert (model["factsFrom"], model["commit"], model["weightBytes"]) == ("Hub", COMMIT, 927_980_000)
    assert world.api.all(CONTROLLER_REVISIONS)[0]["data"]["facts"]["commit"] == COMMIT


async def test_a_branch_that_moves_changes_nothing_until_a_new_plan_is_taken() -> None:
    hub = StubHub()
    world = await online(hub, deployment(**OTHER))
    hub.commit = "a" * 40
    await world.wait(2 * hubs.KEPT_SECONDS)
    world.api.remove(world.api.all(PODS)[0], PODS)
    await world.settle(30)
    assert revisions(world) == [COMMIT]
    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "1"})
    )
    await world.settle(60)
    assert revisions(world) == ["a" * 40]


async def test_an_upgrade_leaves_pods_in_which_sglang_downloads() -> None:
    """Earlier versions had no container for it."""
    hub = StubHub()
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr("qwen_operator.sources.hub_files.downloads_own_way", lambda *_: True)
        world = await online(hub, deployment(**OTHER))
        (before,) = world.api.all(PODS)
    assert f"--revision={COMMIT}" in command(world)
    await world.restart()
    await world.wait(60)
    assert world.api.all(PODS) == [before]
    assert "a newer plan is available" in world.message("Planned")
    world.api.remove(before, PODS)
    await world.settle(30)
    assert world.api.all(PODS)[0]["spec"] == before["spec"]


async def test_of_a_model_of_the_catalog_the_hub_is_asked_once_for_the_commit() -> None:
    """Each replica loaded what the main branch was at its start."""
    hub = StubHub()
    world = await online(hub, deployment())
    model = world.qd()["status"]["model"]
    assert (model["factsFrom"], model["commit"], revisions(world)) == ("Catalog", COMMIT, [COMMIT])
    hub.commit = "a" * 40
    await world.restart()
    await world.wait(2 * hubs.KEPT_SECONDS)
    change(world, replicas=2)
    await world.settle(10)
    assert hub.asked == [(HubQuery(Hub.HUGGING_FACE, KNOWN), hubs.SHORT_PATIENCE_SECONDS)]
    assert {str(pod["spec"]["initContainers"]).count(COMMIT) for pod in world.api.all(PODS)} == {1}

    hub = StubHub()
    world = await online(hub, deployment(**NAMED))
    assert hub.asked == [(HubQuery(Hub.HUGGING_FACE, KNOWN, "v1.0"), hubs.SHORT_PATIENCE_SECONDS)]
    assert revisions(world) == [COMMIT]


@pytest.mark.parametrize("reason", list(HubReason))
async def test_whatever_the_hub_says_a_model_of_the_catalog_is_served(reason: HubReason) -> None:
    world = await online(StubHub().fail(reason), deployment())
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert (world.qd()["status"]["model"]["factsFrom"], revisions(world)) == ("Catalog", [])
    assert "pins no commit, because https://hub.test cannot be reached" in world.message("Planned")


@pytest.mark.parametrize("reason", [HubReason.OFFLINE, HubReason.UNAVAILABLE, HubReason.AUTH_REQUIRED, HubReason.GATED])
async def test_without_an_answer_the_catalog_is_used_at_once_and_the_plan_says_so(reason: HubReason) -> None:
    hub = StubHub().fail(reason)
    world = await online(hub, deployment(**NAMED))
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.qd()["status"]["model"]["factsFrom"] == "Catalog"
    remark = "the operator uses the catalog's facts and pins no commit, because https://hub.test cannot"
    assert remark in world.message("Planned")
    assert revisions(world) == ["v1.0"]
    writes = len(world.api.writes)
    await world.wait(3 * hubs.LAST_RETRY_SECONDS)
    assert (len(hub.asked), world.api.writes[writes:]) == (1, [])


REFUSALS = {
    "401": ("AuthRequired", ("needs a token", "the operator reads no Secrets", "pvc://<claim>/<path>")),
    "404": ("UnknownModel", ('"team/tuned" is not in the catalog', "or it is private: correct spec.model")),
    "503": ("UnknownModel", ("the hub answered 503", "the operator asks it again", "Qwen/Qwen1.5-72B-Chat")),
    "text": ("InvalidConfig", ("is not valid JSON", "choose another repository")),
}


@pytest.mark.parametrize(("fault", "expected"), REFUSALS.items(), ids=REFUSALS.keys())
async def test_a_refusal_says_what_to_do(
    fault: str, expected: tuple[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    status, _, code = fault.partition(" ")
    async with serving(FakeHub({}, fault=status, headers={"X-Error-Code": code})) as hub:
        address = hub.address
        world = World(ONLINE, fetch=lambda query, seconds: fetch(query.repository, "", query.hub, address, seconds))
        await world.start()
        world.api.put(QWENDEPLOYMENTS, deployment(**OTHER))
        await world.settle(10)
    reason, says = expected
    conditions = world.conditions()
    assert conditions["Planned"] == conditions["Ready"] == ("False", reason)
    assert conditions["Stalled"] == ("True", reason)
    assert all(text in world.message("Planned") for text in says), world.message("Planned")
    assert world.names() == []
    assert world.events() == {reason: 1}


async def test_a_revision_that_does_not_exist_is_not_replaced_by_the_catalog() -> None:
    hub = StubHub().fail(HubReason.NOT_FOUND, "the list of files was not found")
    world = await online(hub, deployment(**NAMED))
    assert world.conditions()["Planned"] == ("False", "ModelNotFound")
    assert "correct spec.source.revision, which is v1.0" in world.message("Planned")
    hub.error = None
    await world.wait(hubs.FIRST_RETRY_SECONDS + 10)
    assert revisions(world) == [COMMIT]


async def test_a_cluster_without_internet_is_quiet_and_goes_on_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="qwen_operator")
    hub = StubHub().fail(HubReason.OFFLINE)
    models = {f"m{number}": f"team/model-{number}" for number in range(6)}
    world = await online(hub, *(deployment(name, model=model) for name, model in models.items()))
    messages = [world.message("Planned", name) for name in models]
    assert all(f'"{model}" is not in' in text for model, text in zip(models.values(), messages, strict=True))
    assert len(hub.asked) == 1
    writes = len(world.api.writes)
    # What a resolver says differs from try to try.
    hub.fail(HubReason.OFFLINE, detail="try again")
    await world.wait(4 * 3600)
    assert world.api.writes[writes:] == []
    # After 30, 60, 120, 240, 480 and 960 s, then every half hour; each is one line.
    assert len(hub.asked) == 1 + 6 + (4 * 3600 - 1890) // hubs.LAST_RETRY_SECONDS
    assert [record.getMessage() for record in caplog.records] == ["cannot read the hub"] * len(hub.asked)
    await world.restart()
    await world.settle(10)
    assert world.api.writes[writes:] == []
    hub.error = None
    await world.wait(hubs.LAST_RETRY_SECONDS + 20)
    assert {world.conditions(name)["Ready"] for name in models} == {("True", "Serving")}


async def test_one_answer_serves_all_who_ask_the_same() -> None:
    hub = StubHub()
    world = await online(hub, deployment("a", **OTHER))
    world.api.put(QWENDEPLOYMENTS, deployment("b", servedNames=["b"], **OTHER))
    await world.settle(10)
    assert world.conditions("b")["Ready"] == ("True", "Serving")
    assert len(hub.asked) == 1
    await world.wait(hubs.KEPT_SECONDS)
    world.api.put(QWENDEPLOYMENTS, deployment("c", servedNames=["c"], **OTHER))
    await world.settle(10)
    assert len(hub.asked) == 2


async def test_facts_that_do_not_fit_are_read_again_once_they_are_old() -> None:
    hub = StubHub()
    world = await online(hub, deployment(**OTHER, hardware={"products": ["B200"]}))
    assert world.conditions()["Planned"] == ("False", "NoGpus")
    await world.wait(4 * hubs.KEPT_SECONDS)
    assert len(hub.asked) == 1
    world.operator.intake.enqueue_all()
    await world.settle(10)
    assert len(hub.asked) == 2


@pytest.mark.parametrize(("config", "spec"), [({"hub_lookup": False}, OTHER), ({}, {"model": "tuned"})])
async def test_no_hub_is_asked_where_that_is_switched_off_or_senseless(
    config: dict[str, Any], spec: dict[str, Any]
) -> None:
    hub = StubHub()
    world = await online(hub, deployment(**spec), **config)
    assert hub.asked == []
    assert world.conditions()["Planned"] == ("False", "UnknownModel")
    world = await online(hub, deployment(**NAMED), hub_lookup=False)
    assert hub.asked == []
    assert "revision v1.0 was not looked up, because hub.lookup is false" in world.message("Planned")
    assert revisions(world) == ["v1.0"]


async def test_a_commit_of_modelscope_is_fetched_because_its_client_takes_only_branches() -> None:
    hub = StubHub()
    source = {"uri": "modelscope://team/tuned"}
    world = await online(hub, deployment(model="mine", source=source))
    spec = world.api.all(PODS)[0]["spec"]
    assert hub.asked[0][0] == HubQuery(Hub.MODELSCOPE, "team/tuned")
    assert "SGLANG_USE_MODELSCOPE" not in str(spec["containers"])
    assert revisions(world) == [COMMIT]
    assert world.qd()["status"]["model"]["commit"] == COMMIT


# The reader alone.


async def reading(stub: StubHub, added: list[tuple[str, str]] | None = None, clock: Clock | None = None) -> HubReader:
    return HubReader(stub.fetch, ([] if added is None else added).append, (clock or Clock()).now)


async def test_a_slow_hub_keeps_no_more_than_a_few_readings_busy_and_nobody_waits() -> None:
    running, most, released = 0, 0, asyncio.Event()

    async def slow(_query: HubQuery, _seconds: float) -> HubCheckpoint:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await released.wait()
        running -= 1
        return HubCheckpoint(from_config(DENSE), COMMIT)

    added: list[tuple[str, str]] = []
    reader = HubReader(slow, added.append, Clock().now)
    task = asyncio.create_task(reader.run())
    keys = [("team", f"m{number}") for number in range(10)]
    for key in keys:
        reader.ask(key, HubQuery(Hub.HUGGING_FACE, f"team/{key[1]}"))
        reader.ask(key, HubQuery(Hub.HUGGING_FACE, f"team/{key[1]}"))
    await asyncio.sleep(0.01)
    assert (running, added, reader.answer_for(keys[0])) == (hubs.READINGS, [], None)
    released.set()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (most, sorted(added)) == (hubs.READINGS, keys)


async def test_nothing_is_read_for_who_is_gone() -> None:
    stub, added = StubHub(), list[tuple[str, str]]()
    reader = await reading(stub, added)
    reader.ask(("team", "gone"), HubQuery(Hub.HUGGING_FACE, "team/a"))
    reader.forget(("team", "gone"))
    await reader.answer_next()
    assert (stub.asked, added) == ([], [])
    world = await online(stub, deployment(**OTHER))
    assert world.operator.hub.answer_for(("team", "chat")) is not None
    world.api.remove(world.qd(), QWENDEPLOYMENTS)
    await world.settle(10)
    assert world.operator.hub.answer_for(("team", "chat")) is None


async def test_readings_that_fail_together_are_one_outage() -> None:
    stub = StubHub().fail(HubReason.OFFLINE)
    reader = await reading(stub)
    for name in ("a", "b", "c"):
        reader.ask(("team", name), HubQuery(Hub.HUGGING_FACE, f"team/{name}"))
    await asyncio.gather(*(reader.answer_next() for _ in range(3)))
    assert len(stub.asked) == 3, "all three began before the first of them failed"
    known = [reader.answer_for(("team", name)) for name in ("a", "b", "c")]
    assert [answer and (answer.reason, answer.failures) for answer in known] == [(HubReason.OFFLINE, 1)] * 3
    # Another hub may be there.
    stub.error = None
    reader.ask(("team", "d"), HubQuery(Hub.HUGGING_FACE, "team/d"))
    reader.ask(("team", "e"), HubQuery(Hub.MODELSCOPE, "team/e"))
    for _ in range(2):
        await reader.answer_next()
    answers = [reader.answer_for(("team", name)) for name in ("d", "e")]
    assert [answer and answer.reason for answer in answers] == [HubReason.OFFLINE, None]


async def test_a_pause_that_a_hub_asks_for_holds_for_all_queries_to_it() -> None:
    stub, clock = StubHub(), Clock()
    stub.error = HubError(HubReason.UNAVAILABLE, "https://hub.test cannot be read now", pause_seconds=100.0)
    reader = await reading(stub, clock=clock)

    async def answer(name: str) -> tuple[HubReason | None, str]:
        reader.ask(("team", name), HubQuery(Hub.HUGGING_FACE, f"team/{name}"))
        await reader.answer_next()
        known = reader.answer_for(("team", name))
        assert known is not None
        return known.reason, known.message

    refused = (HubReason.UNAVAILABLE, "https://hub.test cannot be read now")
    assert [await answer(name) for name in ("a", "b")] == [refused, refused]
    clock.advance(99)
    stub.error = None
    assert (await answer("c"), len(stub.asked)) == (refused, 1)
    clock.advance(2)
    assert (await answer("d"), len(stub.asked)) == ((None, ""), 2)


async def test_an_answer_that_nobody_thought_of_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_query: HubQuery, _seconds: float) -> HubCheckpoint:
        raise KeyError("sha")

    reader = HubReader(broken, lambda _key: None, Clock().now)
    reader.ask(("team", "a"), HubQuery(Hub.HUGGING_FACE, "team/a"))
    await reader.answer_next()
    answer = reader.answer_for(("team", "a"))
    assert answer
    assert answer.reason is HubReason.INVALID
    assert answer.message == "the operator does not understand the hub's answer for team/a"
    assert "reading a hub crashed" in caplog.text


MOVED = "a" * 40


async def with_adapter(path: Path, hub: StubHub) -> World:
    world = await World(ONLINE, fetch=hub.fetch).start()
    world.kubelet.report = report(path, "one", base=False, modules=("q_proj", "o_proj"))
    world.api.put(QWENDEPLOYMENTS, deployment(adapters=listed("one")))
    await world.settle(60)
    return world


async def changed(world: World, path: Path, hub: StubHub, *names: str) -> None:
    """Somebody edits the adapters after the hub has changed."""
    world.fetch = hub.fetch
    await world.restart()
    world.kubelet.report = report(path, *sorted(names), base=False, modules=("q_proj", "o_proj"))
    change(world, adapters=listed(*names))
    await world.settle(900)


SILENT = StubHub().fail(HubReason.OFFLINE)


@pytest.mark.parametrize("hub", [StubHub(MOVED), SILENT], ids=["moved", "silent"])
@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three", "four"), ()], ids=len)
async def test_a_change_of_the_adapters_keeps_the_commit_of_the_model(
    tmp_path: Path, hub: StubHub, names: tuple[str, ...]
) -> None:
    """The hub was asked again, so the model moved with its branch, and without an answer it had no commit."""
    world = await with_adapter(tmp_path, StubHub())
    started = world.names()
    await changed(world, tmp_path, hub, *names)
    assert world.conditions()["Ready"] == ("True", "Serving"), world.message("Ready")
    assert (world.qd()["status"]["model"]["commit"], revisions(world)) == (COMMIT, [COMMIT])
    assert (world.names() == started) == (len(names) == 2), "two adapters have the places of one"


async def test_the_first_adapter_keeps_the_commit_of_the_model_and_a_new_plan_takes_another(tmp_path: Path) -> None:
    world = await online(StubHub(), deployment())
    hub = StubHub(MOVED)
    await changed(world, tmp_path, hub, "one")
    assert world.qd()["status"]["adapters"] == {"ready": 1, "total": 1}
    assert (world.qd()["status"]["model"]["commit"], revisions(world), hub.asked) == (COMMIT, [COMMIT], [])
    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "1"})
    )
    await world.settle(900)
    assert (world.qd()["status"]["model"]["commit"], revisions(world)) == (MOVED, [MOVED])


async def test_a_pod_of_a_model_without_a_commit_takes_up_an_adapter(tmp_path: Path) -> None:
    """Earlier versions pinned none for a model of the catalog."""
    world = await with_adapter(tmp_path, SILENT)
    before = world.names()
    await changed(world, tmp_path, StubHub(), "one", "two")
    assert (world.names(), revisions(world)) == (before, [])
    assert "commit" not in world.qd()["status"]["model"]
    assert world.qd()["status"]["adapters"] == {"ready": 2, "total": 2}


@pytest.mark.parametrize("lookup", [True, False])
async def test_an_edit_while_the_hub_is_silent_keeps_the_commit(lookup: bool) -> None:
    world = await online(StubHub(), deployment())
    world.config = replace(ONLINE, hub_lookup=lookup)
    world.fetch = SILENT.fetch
    await world.restart()
    change(world, contextTokens=4096)
    await world.settle(900)
    assert (world.qd()["status"]["model"]["commit"], revisions(world)) == (COMMIT, [COMMIT])
    assert "--context-length=4096" in " ".join(command(world)).replace("--context-length ", "--context-length=")
    assert ("the operator keeps the commit that runs, because" in world.message("Planned")) == lookup
    change(world, model="Qwen/Qwen1.5-1.8B-Chat")
    await world.settle(900)
    assert "commit" not in world.qd()["status"]["model"], "it is that of another model"


async def test_another_default_hub_of_the_chart_is_another_model(tmp_path: Path) -> None:
    """Engines of the first hub take up no adapter for what the second one has under the same name."""
    world = await with_adapter(tmp_path, StubHub())
    started = world.names()
    world.config = replace(ONLINE, engine=replace(ONLINE.engine, hub=Hub.MODELSCOPE))
    await changed(world, tmp_path, StubHub(MOVED), "one", "two")
    assert not set(world.names()) & set(started)
    newest = max(world.api.all(CONTROLLER_REVISIONS), key=lambda item: item["revision"])
    assert newest["data"]["facts"]["commit"] == MOVED
    assert newest["metadata"]["annotations"]["qwen-operator.dev/source"].startswith("modelscope://")


async def test_an_adapter_that_is_added_again_is_read_again(tmp_path: Path) -> None:
    """An earlier revision knows it, as it was then."""
    world = await with_adapter(tmp_path, StubHub())
    for names in (("one", "two"), ("one",), ("one", "three")):
        await changed(world, tmp_path, StubHub(), *names)
    before = inspections(world)
    await changed(world, tmp_path, StubHub(), "one", "two", "three")
    assert inspections(world) == before + 1


def inspections(world: World) -> int:
    """How many inspection pods were ever made."""
    pods = {pod["metadata"]["uid"]: pod for _, resource, pod in world.api.journal if resource is PODS}
    return sum(pod["metadata"]["labels"].get("qwen-operator.dev/role") == "inspection" for pod in pods.values())
