"""The two readers of a simulated API server: kopf with the operator's routes, and the agent's mirror."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import kopf

from qwen_operator import handlers
from qwen_operator.controller.cache import WATCHED
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.kube.client import connect
from qwen_operator.kube.decoding import Keep, keep_all
from qwen_operator.kube.mirror import Mirror
from qwen_operator.objects import ObjectKey
from tests.unit import api_server
from tests.unit.fakes import FakeKube
from tests.unit.waiting import until
from tests.unit.world import CONFIG, Operator, deployment


@asynccontextmanager
async def watched_by_kopf(operator: Operator, kube: FakeKube, kubeconfig: Path) -> AsyncIterator[api_server.ApiServer]:
    """kopf watches every resource until the block ends. It must not have ended by itself."""
    async with api_server.serving(kube, kubeconfig) as server:
        watching = kopf.operator(
            registry=handlers.routes(operator.intake, lambda: None, WATCHED),
            settings=handlers.operator_settings(CONFIG, lambda: 0.0),
            clusterwide=True,
            identity=cast("Any", "operator-0"),
        )
        task = asyncio.create_task(watching)
        await until(lambda: len(server.watches) == len(WATCHED))
        yield server
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def mirrored(
    bad: Callable[[str], Manifest], kubeconfig: Path, keep: Keep = keep_all
) -> dict[ObjectKey, Manifest]:
    """What a mirror has of four QwenDeployments: one bad and one good object in its list, and one of each in its watch.

    The good ones are `first` and `second`.
    """
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, bad("bad"))
    kube.put(QWENDEPLOYMENTS, deployment("first"))
    seen: dict[ObjectKey, Manifest] = {}
    async with api_server.serving(kube, kubeconfig):
        api = await connect(keep=keep)
        task = asyncio.create_task(Mirror(api, QWENDEPLOYMENTS, None, "", seen.update).run())
        await until(lambda: len(seen) == 2)
        kube.put(QWENDEPLOYMENTS, bad("worse"))
        kube.put(QWENDEPLOYMENTS, deployment("second"))
        await until(lambda: len(seen) == 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.aclose()
    return seen
