"""The agent's loop against an in-memory API and router, with a clock that the test moves."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from qwen_operator.gateway import agent as agent_module
from qwen_operator.gateway.agent import Agent, http_app
from qwen_operator.gateway.settings import AgentSettings
from qwen_operator.gateway.smg import Smg
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Forbidden, KubeApi, Resource, Unavailable
from qwen_operator.routing.membership import EntryNaming
from tests.unit.gateway.objects import Manifest, deleting, deployment, pod, worker
from tests.unit.waiting import until


class FakeRouter:
    """`answer` None: does not listen."""

    def __init__(self) -> None:
        self.answer: list[dict[str, Any]] | None = []

    async def workers(self) -> list[dict[str, Any]] | None:
        return self.answer

    async def alive(self) -> bool:
        return self.answer is not None


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """An agent with everything around it replaced."""

    def __init__(self, folder: Path) -> None:
        self.router, self.clock, self.folder = FakeRouter(), FakeClock(), folder
        self.agent = Agent(
            router=self.router,
            run_dir=folder,
            naming=EntryNaming("n"),
            sources=frozenset({("qwendeployments", None), ("pods", None)}),
            clock=self.clock,
        )
        self.agent.start()

    def sees(self, resource: Resource, *objects: Manifest) -> None:
        by_key = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects}
        self.agent.listener(resource, None)(by_key)

    @property
    def file(self) -> list[dict[str, str]]:
        return cast(list[dict[str, str]], json.loads((self.folder / "workers.json").read_text())["workers"])

    @property
    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def smg_takes_the_file(self) -> None:
        self.router.answer = [worker(entry["id"], entry["url"]) for entry in self.file]

    def metric(self, name: str) -> float | None:
        return self.agent.metrics.registry.get_sample_value(name)


D, P0, P1 = deployment("d"), pod("d-0", "d", "10.0.0.5"), pod("d-1", "d", "10.0.0.6")


async def test_nothing_but_an_empty_file_is_written_before_both_lists_are_complete(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.file == []
    world.sees(PODS, P0)
    await world.agent.step()
    assert world.file == []
    assert not world.agent.ready
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    assert [entry["model_id"] for entry in world.file] == ["m"]


async def test_ready_means_that_smg_listens_and_has_taken_the_list(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.router.answer = None
    world.sees(PODS, P0)
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    assert not world.agent.ready
    world.router.answer = []
    await world.agent.step()
    assert not world.agent.ready
    assert (world.metric("qwen_gateway_members"), world.metric("qwen_gateway_members_wanted")) == (0.0, 1.0)
    world.smg_takes_the_file()
    await world.agent.step()
    assert world.agent.ready
    assert world.metric("qwen_gateway_members") == 1.0
    world.router.answer = None
    await world.agent.step()
    assert not world.agent.ready


async def test_an_empty_cluster_is_ready_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sees(PODS)
    world.sees(QWENDEPLOYMENTS)
    await world.agent.step()
    assert world.agent.ready


async def test_a_worker_that_smg_never_takes_is_logged_and_does_not_keep_the_gateway_from_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    world.sees(PODS, P0)
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    world.clock.now += 29
    await world.agent.step()
    assert not world.agent.ready
    world.clock.now += 1
    await world.agent.step()
    assert world.agent.ready
    assert world.agent.pause() == 5.0
    await world.agent.step()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the router does not report this worker as ready: demo/d/d-0/uid-d-0/n-1"]


async def test_the_file_is_replaced_only_when_its_content_changes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sees(PODS, P0)
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    inode = (tmp_path / "workers.json").stat().st_ino
    world.sees(PODS, {**P0, "status": {**P0["status"], "message": "changed"}})
    await world.agent.step()
    assert (tmp_path / "workers.json").stat().st_ino == inode
    assert world.metric("qwen_gateway_membership_writes_total") == 2.0
    assert sorted(world.files) == ["waiting.json", "workers.json"]


@pytest.mark.parametrize(
    "damage", [b"", b'{"workers": [{"id"', b"\xff\xfe\x00", None], ids=["empty", "cut", "no text", "gone"]
)
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_damaged_file_is_written_again(tmp_path: Path, damage: bytes | None, restarts: bool) -> None:
    """A full disk or a person did it. The router keeps its workers meanwhile, but learns of no change."""
    world = World(tmp_path)
    world.sees(QWENDEPLOYMENTS, D)
    world.sees(PODS, P0)
    await world.agent.step()
    written = world.file
    for name in ("workers.json", "waiting.json"):
        path = tmp_path / name
        path.unlink() if damage is None else path.write_bytes(damage)
    if restarts:
        world = World(tmp_path)
        world.sees(QWENDEPLOYMENTS, D)
        world.sees(PODS, P0)
    await world.agent.step()
    assert [entry["url"] for entry in world.file] == [entry["url"] for entry in written]
    json.loads((tmp_path / "waiting.json").read_text())


async def test_a_restarted_agent_keeps_file_and_ids(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.sees(PODS, P0)
    first.sees(QWENDEPLOYMENTS, D)
    await first.agent.step()
    before = first.file
    second = World(tmp_path)
    await second.agent.step()
    assert second.file == before
    second.sees(PODS, P0)
    second.sees(QWENDEPLOYMENTS, D)
    await second.agent.step()
    assert second.file == before


async def test_a_worker_that_smg_has_given_up_is_looked_for_often(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sees(PODS, P0)
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    world.smg_takes_the_file()
    await world.agent.step()
    world.clock.now += 100
    assert world.agent.pause() == agent_module.SLOW_POLL_SECONDS
    world.router.answer = []
    await world.agent.step()
    assert world.agent.pause() == agent_module.FAST_POLL_SECONDS
    world.clock.now += 100
    assert world.agent.pause() == agent_module.SLOW_POLL_SECONDS


async def test_the_names_without_a_ready_worker_are_written_before_the_workers(tmp_path: Path) -> None:
    world = World(tmp_path)
    path = tmp_path / "waiting.json"

    def waiting() -> list[str]:
        return list(json.loads(path.read_text())["waiting"])

    world.sees(PODS, P0)
    await world.agent.step()
    assert not path.exists()
    world.sees(QWENDEPLOYMENTS, D)
    await world.agent.step()
    assert (waiting(), world.metric("qwen_gateway_waiting_models")) == (["m"], 1.0)
    world.smg_takes_the_file()
    await world.agent.step()
    assert (waiting(), world.metric("qwen_gateway_waiting_models")) == ([], 0.0)
    path.unlink()
    path.mkdir()
    world.sees(PODS)
    with pytest.raises(IsADirectoryError):
        await world.agent.step()
    assert [entry["model_id"] for entry in world.file] == ["m"]


async def test_the_loop_makes_before_it_breaks(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sees(PODS, P0)
    world.sees(QWENDEPLOYMENTS, D)
    task = asyncio.create_task(world.agent.loop())
    try:
        await until(lambda: len(world.file) == 1)
        world.smg_takes_the_file()
        await until(lambda: world.agent.ready)
        world.sees(PODS, deleting(P0), P1)
        await until(lambda: len(world.file) == 2)
        assert world.agent.pause() == 0.25
        world.smg_takes_the_file()
        await until(lambda: len(world.file) == 1)
        assert world.file[0]["url"] == "http://10.0.0.6:8000"
        assert world.agent.pause() == 5.0
    finally:
        task.cancel()


async def test_what_is_left_out_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path)
    world.sees(QWENDEPLOYMENTS, D)
    world.sees(PODS, pod("d-0", "d", "not-an-ip"))
    await world.agent.step()
    await world.agent.step()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "demo/d-0: status.podIP 'not-an-ip' is not an IP address" in caplog.text


async def test_health_is_the_loops_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with serve(http_app(world.agent)) as get:
        assert (await get("/healthz"))[0] == 200
        assert (await get("/readyz"))[0] == 503
        world.clock.now += 60
        assert (await get("/healthz"))[0] == 503
        world.sees(PODS)
        world.sees(QWENDEPLOYMENTS)
        await world.agent.step()
        assert (await get("/healthz"))[0] == 200
        assert await get("/readyz") == (200, "ok\n")
        assert "qwen_gateway_members_wanted 0.0" in (await get("/metrics"))[1]


async def test_the_router_is_asked_with_its_key_and_any_failure_is_no_answer(tmp_path: Path) -> None:
    replies: list[web.Response] = [
        web.json_response({"workers": [{"id": "1"}, 3]}),
        web.json_response([]),
        web.Response(status=401),
        web.Response(text="no json", content_type="application/json"),
    ]
    seen: list[str | None] = []

    async def workers(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return replies.pop(0)

    app = web.Application()
    app.router.add_get("/workers", workers)
    key = tmp_path / "key"
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        smg = Smg(session, str(server.make_url("/")).rstrip("/"), key)
        assert await smg.workers() is None
        key.write_text("K")
        assert [await smg.workers() for _ in range(4)] == [[{"id": "1"}], None, None, None]
        assert seen == ["Bearer K"] * 4
        assert await Smg(session, f"http://127.0.0.1:{unused_port()}", key).workers() is None


class FakeKube:
    """Lists what it has, then fails every watch: the API server went away."""

    def __init__(self, objects: dict[Resource, list[Manifest]]) -> None:
        self.objects = objects
        self.asked: set[tuple[str, str | None, str]] = set()
        self.watches = 0

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        self.asked.add((resource.plural, namespace, labels))
        return [item for item in self.objects[resource] if item["metadata"]["namespace"] == namespace], "1"

    async def watch(self, *_args: object) -> AsyncIterator[tuple[str, Manifest]]:
        self.watches += 1
        raise Unavailable(0, "NoAnswer", "gone")
        yield


POD_SELECTOR = "qwen-operator.dev/role in (engine,engine-worker)"


async def test_run_watches_the_given_namespaces_and_keeps_the_members_while_the_api_is_away(tmp_path: Path) -> None:
    kube = FakeKube({QWENDEPLOYMENTS: [D, deployment("x", namespace="two")], PODS: [P0]})
    port = unused_port()
    settings = AgentSettings.from_env(
        {
            "QWEN_WATCH_NAMESPACES": "demo,two",
            "QWEN_GATEWAY_RUN_DIR": str(tmp_path),
            "QWEN_GATEWAY_ROUTER_URL": f"http://127.0.0.1:{unused_port()}",
            "QWEN_AGENT_PORT": str(port),
        }
    )
    task = asyncio.create_task(agent_module.run(settings, cast(KubeApi, kube)))
    try:
        await until(lambda: kube.watches >= 4 and "10.0.0.5" in (tmp_path / "workers.json").read_text())
        assert kube.asked == {
            (plural, namespace, labels)
            for plural, labels in (("qwendeployments", ""), ("pods", POD_SELECTOR))
            for namespace in ("demo", "two")
        }
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 503
    finally:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


class TwoNamespaces(World):
    """An agent that serves the namespaces demo and shut, and that has not seen anything yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.agent.sources = frozenset(
            (plural, namespace) for plural in ("qwendeployments", "pods") for namespace in ("demo", "shut")
        )

    def sees_in(self, namespace: str, resource: Resource, *objects: Manifest) -> None:
        by_key = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects}
        self.agent.on_right(resource, namespace)(True)
        self.agent.listener(resource, namespace)(by_key)

    def sees_demo(self) -> None:
        self.sees_in("demo", QWENDEPLOYMENTS, D)
        self.sees_in("demo", PODS, P0)

    def sees_shut(self) -> None:
        self.sees_in("shut", QWENDEPLOYMENTS, X)
        self.sees_in("shut", PODS, PX)

    def refused(self, *resources: Resource) -> None:
        """The mirrors of shut are refused, once more."""
        for resource in resources:
            self.agent.on_right(resource, "shut")(False)

    @property
    def addresses(self) -> list[str]:
        return sorted(entry["url"].removeprefix("http://").removesuffix(":8000") for entry in self.file)

    async def later(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.agent.step()


X = deployment("x", namespace="shut", servedNames=["other"])
PX = pod("x-0", "x", "10.0.0.9", namespace="shut")
refusals = pytest.mark.parametrize(
    "refused",
    [(QWENDEPLOYMENTS, PODS), (PODS,), (QWENDEPLOYMENTS,)],
    ids=["everything", "pods", "deployments"],
)


def sees_the_rest(world: TwoNamespaces, refused: tuple[Resource, ...]) -> None:
    for resource, item in ((QWENDEPLOYMENTS, X), (PODS, PX)):
        if resource not in refused:
            world.sees_in("shut", resource, item)


@refusals
async def test_a_new_gateway_pod_serves_without_a_namespace_that_it_may_not_read(
    tmp_path: Path, refused: tuple[Resource, ...]
) -> None:
    world = TwoNamespaces(tmp_path)
    world.sees_demo()
    world.refused(*refused)
    sees_the_rest(world, refused)
    await world.later(0)
    assert not world.agent.listed
    await world.later(14)
    assert not world.agent.listed, "rights may be gone for a moment"
    world.refused(*refused)
    await world.later(1)
    world.smg_takes_the_file()
    await world.agent.step()
    assert world.addresses == ["10.0.0.5"]
    assert world.agent.ready
    assert world.metric("qwen_gateway_unreadable_namespaces") == 1.0
    # The right comes back.
    world.sees_shut()
    await world.later(1)
    assert world.addresses == ["10.0.0.5", "10.0.0.9"]
    assert world.metric("qwen_gateway_unreadable_namespaces") == 0.0


async def test_rights_that_come_back_at_once_are_waited_for(tmp_path: Path) -> None:
    """As in an upgrade of the chart that makes a RoleBinding anew: a new pod must not be ready without the models."""
    world = TwoNamespaces(tmp_path)
    world.sees_demo()
    world.refused(QWENDEPLOYMENTS, PODS)
    await world.later(8)
    world.sees_in("shut", QWENDEPLOYMENTS, X)
    world.refused(PODS)
    await world.later(6)
    assert not world.agent.ready
    world.sees_in("shut", PODS, PX)
    await world.later(0)
    assert world.addresses == ["10.0.0.5", "10.0.0.9"]


@refusals
async def test_a_right_that_goes_removes_no_worker(tmp_path: Path, refused: tuple[Resource, ...]) -> None:
    world = TwoNamespaces(tmp_path)
    world.sees_demo()
    world.sees_shut()
    await world.later(0)
    world.smg_takes_the_file()
    before = world.file
    world.refused(*refused)
    for _ in range(3):
        await world.later(3600)
    assert world.file == before
    assert world.agent.ready
    world.sees_in("demo", PODS, P0, P1)
    await world.later(1)
    assert "10.0.0.6" in world.addresses, "the others go on"


@refusals
async def test_a_restarted_agent_keeps_the_workers_of_a_namespace_that_it_may_not_read(
    tmp_path: Path, refused: tuple[Resource, ...]
) -> None:
    first = TwoNamespaces(tmp_path)
    first.sees_demo()
    first.sees_shut()
    await first.later(0)
    before = first.file
    second = TwoNamespaces(tmp_path)
    second.sees_demo()
    second.refused(*refused)
    sees_the_rest(second, refused)
    await second.later(20)
    assert second.agent.listed
    assert second.file == before
    # Serials go on, also for a worker of the others.
    second.sees_in("demo", PODS, P0, P1)
    await second.later(1)
    assert [entry for entry in second.file if entry in before] == before
    second.sees_shut()
    await second.later(1)
    assert [entry for entry in second.file if entry in before] == before
    second.sees_in("shut", PODS)
    await second.later(1)
    assert "10.0.0.9" not in second.addresses


async def test_if_no_namespace_can_be_read_the_agent_waits(tmp_path: Path) -> None:
    world = TwoNamespaces(tmp_path)
    world.refused(QWENDEPLOYMENTS, PODS)
    world.agent.on_right(PODS, "demo")(False)
    world.sees_in("demo", QWENDEPLOYMENTS, D)
    await world.later(3600)
    assert not world.agent.listed
    assert not world.agent.ready


async def test_a_cluster_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sees(QWENDEPLOYMENTS, D)
    world.agent.on_right(PODS, None)(False)
    world.clock.now += 3600
    await world.agent.step()
    assert not world.agent.listed


async def test_a_list_that_only_takes_long_is_waited_for(tmp_path: Path) -> None:
    world = TwoNamespaces(tmp_path)
    world.sees_demo()
    await world.later(3600)
    assert not world.agent.listed


class Refusing(FakeKube):
    """Like FakeKube, but one namespace is refused."""

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        if namespace == "shut":
            raise Forbidden(403, "Forbidden", "no")
        return await super().list(resource, namespace, labels)


async def test_run_is_ready_without_a_namespace_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(agent_module, "Smg", lambda *_: FakeRouter())
    port = unused_port()
    settings = AgentSettings.from_env(
        {"QWEN_WATCH_NAMESPACES": "demo,shut", "QWEN_GATEWAY_RUN_DIR": str(tmp_path), "QWEN_AGENT_PORT": str(port)}
    )
    kube = Refusing({QWENDEPLOYMENTS: [D], PODS: []})
    task = asyncio.create_task(agent_module.run(settings, cast(KubeApi, kube)))
    try:
        async with aiohttp.ClientSession() as session:

            async def page(path: str) -> str:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                        return await response.text()
                return ""

            for _ in range(500):
                if await page("/readyz") == "ok\n":
                    break
                await asyncio.sleep(0.02)
            assert await page("/readyz") == "ok\n"
            assert "qwen_gateway_unreadable_namespaces 1.0" in await page("/metrics")
    finally:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[Any]:
    async with TestServer(app) as server, aiohttp.ClientSession() as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(server.make_url(path)) as response:
                return response.status, await response.text()

        yield get
