"""The whole process, as `qwen-operator run` starts it: only the cluster is another one, behind HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
import prometheus_client
import pytest

from qwen_operator import main
from qwen_operator.api.claims import NameRights
from qwen_operator.cli import logs, recordings
from qwen_operator.config.types import Config, GatewayConfig, RecordingConfig
from qwen_operator.controller.cache import WATCHED
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    LEASES,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    SECRETS,
    Manifest,
)
from qwen_operator.kube.lease import NotLeading
from tests.unit.api_server import ApiServer, serving
from tests.unit.fakes import Clock, FakeKube
from tests.unit.waiting import until
from tests.unit.world import CONFIG, Kubelet, deployment, node

LEASE: Manifest = {
    "apiVersion": LEASES.api_version,
    "kind": LEASES.kind,
    "metadata": {"name": CONFIG.lease_name, "namespace": CONFIG.namespace},
}


class WallClock(Clock):
    """The time of the operator's process, which nothing replaces here."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Cluster:
    """A cluster with one node, and the process that works in it."""

    kube: FakeKube
    server: ApiServer
    config: Config
    process: asyncio.Task[None]
    session: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"http://127.0.0.1:{self.config.http_port}{path}") as answer:
            return answer.status, await answer.text()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; fails with the process if that ends before."""
        await until(lambda: self.process.done() or condition())
        if self.process.done():
            self.process.result()

    async def until_readyz(self, status: int) -> None:
        """Wait until /readyz answers with this status."""
        for _ in range(500):
            with contextlib.suppress(aiohttp.ClientConnectionError):
                if (await self.get("/readyz"))[0] == status:
                    return
            await asyncio.sleep(0.02)
        raise AssertionError(f"/readyz did not answer {status} within 10 s")

    async def until_looked(self) -> None:
        """Wait until the autoscaler has looked."""
        for _ in range(500):
            if "qwen_deployment_queue_requests{" in (await self.get("/metrics"))[1]:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("no look within 10 s")

    def holder(self) -> str | None:
        """Who holds the Lease, None while there is none."""
        return next((str(lease["spec"]["holderIdentity"]) for lease in self.kube.all(LEASES)), None)

    def conditions(self) -> dict[str, tuple[str, str]]:
        status = self.kube.one(QWENDEPLOYMENTS, "chat").get("status") or {}
        return {item["type"]: (item["status"], item["reason"]) for item in status.get("conditions") or ()}

    async def end(self) -> None:
        """SIGTERM, as the kubelet sends it."""
        assert not self.process.done(), "nobody would take the signal"
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(self.process, 20)


@contextlib.asynccontextmanager
async def running(
    folder: Path, *, closed: bool = False, lease: Manifest | None = None, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[Cluster]:
    """The process and its cluster. `closed`: the API server does not answer yet; `lease` is there already.

    Of several `namespaces`, the operator may not read the last one, which may serve names like other-*.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kube = FakeKube(WallClock())
    kube.put(NODES, node())
    if lease is not None:
        kube.put(LEASES, lease)
    kube.refused = {(None, one) for one in namespaces[1:]}
    config = replace(CONFIG, http_port=port, gateway=GatewayConfig("system", "keys", "keys"), namespaces=namespaces)
    config = replace(config, recording=RecordingConfig(("team/*",), 1, str(folder / "recording")))
    config = replace(config, name_rights=NameRights({**dict.fromkeys(namespaces[1:], ("other-*",)), "*": ("*",)}))
    async with serving(kube, folder / "kubeconfig") as server, aiohttp.ClientSession() as session:
        if closed:
            server.open.clear()
        process = asyncio.create_task(main.run(config))
        kubelet = asyncio.create_task(_kubelet(kube))
        try:
            yield Cluster(kube, server, config, process, session)
        finally:
            for task in (process, kubelet):
                task.cancel()
            await asyncio.gather(process, kubelet, return_exceptions=True)


async def _kubelet(kube: FakeKube) -> None:
    kubelet = Kubelet(kube, place=True)
    while True:
        kubelet.step()
        await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def environment(kubeconfig: Path) -> Iterator[Path]:
    yield kubeconfig
    # The process switches them off for itself, and here for all tests.
    cast("Any", prometheus_client).enable_created_metrics()


async def test_the_process_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Not ready, ready, leading; a model of the catalog is served; SIGTERM gives the Lease back, and looks are kept."""
    async with running(tmp_path, closed=True) as cluster:
        kube = cluster.kube
        await cluster.until_readyz(503)
        assert await cluster.get("/readyz") == (503, "the first list is not complete\n")
        assert await cluster.get("/healthz") == (200, "ok\n")
        cluster.server.open.set()
        await cluster.until_readyz(200)
        await cluster.until(cluster.holder)
        assert str(cluster.holder()).startswith("operator-0_")

        kube.put(QWENDEPLOYMENTS, deployment())
        await cluster.until(lambda: cluster.conditions().get("Ready") == ("True", "Serving"))
        [revision], [budget], [pod] = (kube.all(kind) for kind in (CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS, PODS))
        uid = kube.one(QWENDEPLOYMENTS, "chat")["metadata"]["uid"]
        assert {child["metadata"]["ownerReferences"][0]["uid"] for child in (revision, budget, pod)} == {uid}
        await cluster.until(lambda: [secret["metadata"]["name"] for secret in kube.all(SECRETS)] == ["keys"])
        assert cluster.server.writers == {"qwen-operator"}, "kopf writes nothing"
        status, page = await cluster.get("/metrics")
        assert status == 200
        assert "qwen_operator_leader 1.0" in page
        assert 'qwen_deployment_replicas{deployment="chat",namespace="team",state="ready"} 1.0' in page

        await cluster.until_looked()
        await cluster.end()
        assert cluster.holder() == ""
        looked = list(recordings.looks(str(path) for path in (tmp_path / "recording").iterdir()))
        assert {look.deployment.key for look in looked} == {("team", "chat")}
        assert looked[0].run.endswith("-operator-0")
        with pytest.raises(aiohttp.ClientConnectionError):
            await cluster.get("/healthz")


async def test_who_stands_by_is_ready_and_writes_nothing(tmp_path: Path) -> None:
    other = {"holderIdentity": "operator-1", "leaseDurationSeconds": 3600}
    async with running(tmp_path, lease={**LEASE, "spec": other}) as cluster:
        cluster.kube.put(QWENDEPLOYMENTS, deployment())
        await cluster.until_readyz(200)
        await cluster.until(lambda: len(cluster.server.watches) == len(WATCHED))
        assert "qwen_operator_leader 0.0" in (await cluster.get("/metrics"))[1]
        await cluster.end()
        assert cluster.holder() == "operator-1"
        assert cluster.kube.writes == []


async def test_who_loses_the_lease_ends_with_an_error(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        await cluster.until(cluster.holder)
        cluster.kube.edit(LEASES, CONFIG.lease_name, lambda lease: lease["spec"].update(holderIdentity="operator-1"))
        with pytest.raises(NotLeading, match="operator-1 holds it now"):
            await asyncio.wait_for(asyncio.shield(cluster.process), 20)
        assert cluster.holder() == "operator-1"


@contextlib.contextmanager
def logged_by_kopf() -> Iterator[list[str]]:
    """The lines of kopf that pass the filter of the log."""
    handler, lines = logging.Handler(), list[str]()
    handler.addFilter(logs.Rare())
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("kopf").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("kopf").removeHandler(handler)


async def test_a_namespace_that_cannot_be_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With kopf, which watches there too and logs each attempt: of those lines one passes for each address."""
    monkeypatch.setattr("qwen_operator.controller.resync.REFUSED_SECONDS", 0.2)
    monkeypatch.setattr("qwen_operator.handlers.Backoffs.__iter__", lambda _self: itertools.repeat(0.05))
    with logged_by_kopf() as lines:
        await _stops_nobody(tmp_path, lines)


async def _stops_nobody(tmp_path: Path, lines: list[str]) -> None:
    async with running(tmp_path, namespaces=("team", "shut")) as cluster:
        kube = cluster.kube
        kube.put(QWENDEPLOYMENTS, deployment())
        kube.put(QWENDEPLOYMENTS, deployment("other", "shut", servedNames=["other-1"]))
        await cluster.until(lambda: cluster.conditions().get("Ready") == ("True", "Serving"))
        await asyncio.sleep(0.5)
        assert not kube.one(QWENDEPLOYMENTS, "other").get("status")
        assert 'qwen_operator_namespace_readable{namespace="shut"} 0.0' in (await cluster.get("/metrics"))[1]
        refused = [line.partition(" GET ")[2].partition("?")[0] for line in lines if "APIForbiddenError" in line]
        assert len(refused) == len(set(refused)), "one line for each resource"
        assert len(refused) == sum(one.namespaced for one in WATCHED)
        kube.refused.clear()
        await cluster.until(lambda: kube.one(QWENDEPLOYMENTS, "other").get("status"))
        await cluster.until(lambda: any(pod["metadata"]["namespace"] == "shut" for pod in kube.all(PODS)))
        kube.put(QWENDEPLOYMENTS, deployment("third", "shut", servedNames=["other-3"]))
        await cluster.until(lambda: kube.one(QWENDEPLOYMENTS, "third").get("status"))
        await cluster.end()
