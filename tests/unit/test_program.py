"""The edges of the operator process: what it watches, what it serves, how it starts and ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest

from qwen_operator import handlers, main
from qwen_operator.cli import COMMANDS, logs
from qwen_operator.cli import main as cli
from qwen_operator.config.types import GatewayConfig
from qwen_operator.controller.gateway_secret import GatewayKeys
from qwen_operator.endpoints import MetricsPage, http_app, serving
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    PRIORITY_CLASSES,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    SECRETS,
    ApiError,
    Forbidden,
    Manifest,
    Resource,
    Unavailable,
)
from qwen_operator.metrics.process import OperatorMetrics
from tests.unit.fakes import Clock, FakeKube
from tests.unit.waiting import until
from tests.unit.watching import watched_by_kopf
from tests.unit.world import CONFIG, Operator, World, deployment


def test_kopf_is_a_watch_shell_that_never_gives_up_and_never_writes() -> None:
    settings = handlers.operator_settings(CONFIG, lambda: 0.0)
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert isinstance(settings.watching.server_timeout, int), "it is sent as it stands"
    delays = settings.networking.error_backoffs
    assert not isinstance(delays, float)
    # A 2-minute outage is far within an endless row, and every request begins anew.
    first = list(itertools.islice(delays, 100))
    assert first[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(first) <= 30
    assert list(itertools.islice(delays, 3)) == first[:3]


async def test_children_are_selected_by_the_api_server_and_nothing_else_is_watched(kubeconfig: Path) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deployment())
    operator = Operator(kube, CONFIG)
    async with watched_by_kopf(operator, kube, kubeconfig) as server:
        await until(operator.queue.take)
        # Whatever kopf would write by itself, it writes right after the event.
        await asyncio.sleep(0.1)
    children = "app.kubernetes.io/managed-by=qwen-operator"
    assert server.watches == {
        (QWENDEPLOYMENTS, ""),
        (PODS, children),
        (CONTROLLER_REVISIONS, children),
        (POD_DISRUPTION_BUDGETS, children),
        (RESOURCE_QUOTAS, ""),
        (NODES, ""),
        (PRIORITY_CLASSES, ""),
    }
    assert server.writers == set(), "neither finalizers nor annotations: no handler asks kopf for them"


async def test_an_event_reaches_the_store_and_the_queue() -> None:
    operator = Operator(FakeKube(), CONFIG)
    relisted: list[None] = []
    handler = handlers.event_handler(operator.intake, lambda: relisted.append(None), QWENDEPLOYMENTS)
    event: Mapping[str, Any] = {
        "type": "ADDED",
        "object": {**deployment(), "metadata": {"name": "q", "namespace": "n", "uid": "u"}},
    }
    await handler(event=event, logger=None)
    assert operator.store.get(QWENDEPLOYMENTS, ("n", "q"))
    assert operator.queue.take() == ("n", "q")
    assert relisted == []
    await handler(event={**event, "type": None}, logger=None)
    assert len(relisted) == 1


def test_credentials_come_from_the_kubeconfig_or_by_address_from_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    account = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: account)
    monkeypatch.setattr(kopf, "login_with_kubeconfig", lambda **_: None)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    credentials = handlers.credentials()
    assert credentials
    assert credentials.server == "https://[fd00::1]:6443"
    monkeypatch.setenv("KUBECONFIG", "somewhere")
    assert handlers.credentials() is None


async def test_health_readiness_and_metrics() -> None:
    wrong: dict[str, str | None] = {"health": None, "ready": "the first list is not complete"}
    metrics = OperatorMetrics()
    metrics.requested("get", "pods", 200, 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checks = (lambda: wrong["health"]), (lambda: wrong["ready"])
    async with serving(port, http_app(*checks, MetricsPage(metrics.registry))), aiohttp.ClientSession() as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert (await get("/healthz"))[0] == 200
        assert await get("/readyz") == (503, "the first list is not complete\n")
        wrong |= {"health": "stuck", "ready": None}
        assert await get("/readyz") == (200, "ok\n")
        assert await get("/healthz") == (503, "stuck\n")
        text = (await get("/metrics"))[1]
    assert 'qwen_operator_api_requests_total{code="200",resource="pods",verb="get"} 1.0' in text


async def test_a_part_that_fails_ends_the_process_with_its_error() -> None:
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()

    async def broken() -> None:
        raise RuntimeError("watcher died")

    with pytest.raises(RuntimeError, match="watcher died"):
        await main.first_to_end([endless(), broken()])
    assert cancelled.is_set()


async def test_nothing_is_decided_before_the_first_list_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.api.put(QWENDEPLOYMENTS, deployment())
    fails = [Unavailable(0, "NoAnswer", "down")] * 2
    listed = world.api.list
    slept: list[float] = []

    async def flaky(resource: Resource, namespace: str | None, labels: str = "") -> Any:
        if resource == NODES and fails:
            raise fails.pop()
        return await listed(resource, namespace, labels)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert world.operator.queue.take() is None or not world.operator.resync.synced.is_set()

    monkeypatch.setattr(world.api, "list", flaky)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await world.operator.resync.first()
    assert world.operator.resync.synced.is_set()
    assert slept == [1.5, 3.0]


async def test_without_the_right_to_read_nodes_the_declared_pools_are_the_inventory() -> None:
    class NoNodes(FakeKube):
        async def list(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> Any:
            if resource == NODES:
                raise Forbidden(403, "Forbidden", "no")
            return await super().list(resource, namespace, labels)

    world = await World(api=NoNodes(Clock())).start()
    assert NODES not in world.operator.resync.readable()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.operator.step()
    assert world.conditions()["Ready"] == ("False", "NoGpus")


async def test_nodes_are_not_even_asked_for_when_the_chart_gives_no_right_to_them() -> None:
    asked: list[Resource] = []

    class Asked(FakeKube):
        async def list(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> Any:
            asked.append(resource)
            return await super().list(resource, namespace, labels)

    await World(api=Asked(Clock()), config=replace(CONFIG, read_nodes=False)).start()
    assert PODS in asked
    assert NODES not in asked


async def test_without_the_right_to_read_quotas_they_are_neither_listed_again_nor_watched() -> None:
    class NoQuotas(FakeKube):
        asked = 0

        async def list(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> Any:
            if resource == RESOURCE_QUOTAS:
                self.asked += 1
                raise Forbidden(403, "Forbidden", "no")
            return await super().list(resource, namespace, labels)

    api = NoQuotas(Clock())
    world = await World(api=api).start()
    await world.operator.resync.once()
    assert api.asked == 1
    assert RESOURCE_QUOTAS not in world.operator.resync.readable()


async def test_a_list_that_is_refused_is_an_error_where_the_operator_cannot_do_without() -> None:
    class NoPods(FakeKube):
        async def list(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> Any:
            if resource == PODS:
                raise Forbidden(403, "Forbidden", "no")
            return await super().list(resource, namespace, labels)

    with pytest.raises(Forbidden):
        await World(api=NoPods(Clock())).operator.resync.once()


async def test_a_quota_wakes_those_who_wait_for_it_and_nobody_else() -> None:
    operator = Operator(FakeKube(), CONFIG)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "team", "uid": "q"}}
    waits = {"conditions": [{"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": ""}]}
    for name, namespace, status in (("waits", "team", waits), ("serves", "team", {}), ("other", "else", waits)):
        qd = deployment(name, namespace)
        operator.store.update(QWENDEPLOYMENTS, {**qd, "metadata": {**qd["metadata"], "uid": name}, "status": status})
    operator.intake.event(RESOURCE_QUOTAS, "MODIFIED", {**quota, "status": {"used": {"pods": "1"}}})
    assert operator.queue.take() == ("team", "waits")
    assert operator.queue.take() is None


async def test_the_gateway_key_is_made_once_never_read_and_never_replaced() -> None:
    api = FakeKube()
    keys = GatewayKeys(api, replace(CONFIG, gateway=GatewayConfig("system", "keys", "keys")))
    assert await keys.ensure() == 3600, "asking is a write request: once an hour"
    secret = api.one(SECRETS, "keys")
    assert len(secret["stringData"]["default"]) >= 43
    assert secret["metadata"]["namespace"] == "system"
    assert await keys.ensure() == 3600
    assert api.one(SECRETS, "keys") == secret
    assert (len(api.all(SECRETS)), api.reads) == (1, 0)


@pytest.mark.parametrize(
    ("error", "wait"), [(Forbidden(403, "Forbidden", "no"), 300), (Unavailable(0, "NoAnswer", "down"), 10)]
)
async def test_a_gateway_key_that_cannot_be_made_is_asked_for_again(error: ApiError, wait: float) -> None:
    def refuse(_verb: str, _manifest: Manifest) -> None:
        raise error

    keys = GatewayKeys(FakeKube(admit=refuse), replace(CONFIG, gateway=GatewayConfig("system", "keys", "keys")))
    assert await keys.ensure() == wait


async def test_without_keys_nothing_is_asked() -> None:
    api = FakeKube()
    await GatewayKeys(api, CONFIG).ensure()
    assert api.writes == []


async def test_keys_of_somebody_else_are_not_made() -> None:
    api = FakeKube()
    await GatewayKeys(api, replace(CONFIG, gateway=GatewayConfig("system", "keys", "keys", create_keys=False))).ensure()
    assert api.writes == []


async def test_only_the_watched_namespaces_are_listed() -> None:
    world = await World(config=replace(CONFIG, namespaces=("team",))).start()
    world.api.put(QWENDEPLOYMENTS, deployment(namespace="elsewhere"))
    await world.operator.resync.once()
    assert world.operator.store.get(QWENDEPLOYMENTS, ("elsewhere", "chat")) is None
    assert list(world.operator.store.all(PODS)) == []


def test_every_log_line_is_one_json_object() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.getLogger("a").makeRecord(
            "a", 20, "f", 1, "made %s", ("it",), sys.exc_info(), extra={"why": "Drifted"}
        )
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["message"], line["level"], line["why"]) == ("made it", "INFO", "Drifted")
    assert "ValueError: x" in line["exception"]


def _says(name: str, message: str, at: float, to: logging.Filter) -> bool:
    record = logging.makeLogRecord({"name": name, "msg": message, "created": at, "levelno": logging.ERROR})
    return bool(to.filter(record))


def test_a_missing_right_fills_no_log() -> None:
    """kopf asks again twice a minute, for ever."""
    rare, kopfs = logs.Rare(), "kopf._cogs.clients.watching"

    def line(attempt: int, path: str = "x/pods", why: str = "APIForbiddenError") -> str:
        query = f"?watch=true&resourceVersion={attempt}"
        return f"Request attempt #{attempt} failed; will retry: GET https://h/{path}{query} -> {why}('no')"

    assert _says(kopfs, line(1), 0, rare)
    assert [_says(kopfs, line(number), 30.0 * number, rare) for number in range(2, 120)] == [False] * 118
    assert _says(kopfs, line(121), logs.RARE_SECONDS + 1, rare)
    assert not _says(kopfs, line(1), logs.RARE_SECONDS + 2, rare), "nor after the next start of the watch"
    assert _says(kopfs, line(122, "x/nodes"), logs.RARE_SECONDS + 2, rare)
    for number in range(3):
        assert _says(kopfs, line(number, why="APIServerError"), 1.0, rare)
        assert _says("qwen_operator.x", line(number), 1.0, rare)


def test_the_commands_explain_themselves_and_crds_are_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert all(command in output for command in COMMANDS)
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        assert cli(["crds"]) == 0
        assert cli(["crds", "--output", str(tmp_path / "new")]) == 0
    finally:
        root.handlers[:] = before
    printed = capsys.readouterr().out
    assert "kind: CustomResourceDefinition" in printed
    assert [file.read_text() for file in (tmp_path / "new").iterdir()] == [printed]


def test_a_wrong_configuration_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("image: {}\n")
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        for path, says in ((file, "image.reference is missing"), (tmp_path / "absent", "absent")):
            monkeypatch.setenv("QWEN_CONFIG", str(path))
            assert cli(["run"]) == 1
            line = capsys.readouterr().err
            assert says in json.loads(line)["message"]
    finally:
        root.handlers[:] = before
