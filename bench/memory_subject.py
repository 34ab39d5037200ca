"""The process whose memory `bench.memory` measures. It prints the peak of its resident memory in KiB.

    python -m bench.memory_subject (operator | agent | hubs) ADDRESS QWENDEPLOYMENTS PODS

It imports nothing of this folder, so that it also runs an older version of the operator.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import kopf

from qwen_operator import handlers
from qwen_operator.controller.cache import WATCHED, Store
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.observe import Observer
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.controller.resync import Resync
from qwen_operator.gateway.agent import POD_SELECTOR, Agent
from qwen_operator.hubs.client import fetch
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, KubeApi
from qwen_operator.kube.client import connect
from qwen_operator.kube.mirror import mirror
from qwen_operator.objects import key_of
from qwen_operator.reconcile.decide import decide
from qwen_operator.routing.membership import EntryNaming
from tests.unit.world import CONFIG

DEADLINE_SECONDS = 400.0
HUBS = 3


async def connected(module: str) -> KubeApi:
    """A client as that program makes it. Older versions keep whole objects."""
    if "keep" not in inspect.signature(connect).parameters:
        return await connect()
    keep = __import__(module, fromlist=["keep"]).keep
    return await connect(keep=keep)


async def operator(deployments: int, pods: int) -> None:
    """List and watch as kopf and the operator do, then decide about every object once."""
    store, queue = Store(), WorkQueue(clock=lambda: 0.0, random=lambda: 0.5)
    intake = Intake(store, queue)
    watching: Any = kopf.operator(
        registry=handlers.routes(intake, lambda: None, WATCHED),
        settings=handlers.operator_settings(CONFIG, lambda: 0.5),
        clusterwide=True,
        identity=cast("Any", "bench"),
    )
    task = asyncio.create_task(watching)
    await until(lambda: counted(store) == (deployments, pods))
    api = await connected("qwen_operator.controller.cache")
    await Resync(api, intake, CONFIG, lambda: 0.5, lambda: 0.0).once()
    await api.aclose()
    observer = Observer(store, (), lambda *_: None)
    for number, key in enumerate([key_of(item) for item in store.all(QWENDEPLOYMENTS)]):
        observed = observer.observe(key)
        assert observed is not None
        decide(observed, CONFIG, datetime.now(UTC))
        if number % 100 == 0:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def agent() -> None:
    """Mirror all objects and write the file of workers, as the gateway's agent does."""
    api = await connected("qwen_operator.gateway.kept")
    sources = frozenset({(QWENDEPLOYMENTS.plural, None), (PODS.plural, None)})
    with tempfile.TemporaryDirectory() as folder:
        one = Agent(_Router(), Path(folder), EntryNaming(nonce="bench"), sources)
        one.start()
        tasks = [
            asyncio.create_task(mirror(api, resource, None, labels, one.listener(resource, None)))
            for resource, labels in ((QWENDEPLOYMENTS, ""), (PODS, POD_SELECTOR))
        ]
        await until(lambda: one.listed)
        await one.step()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await api.aclose()


async def hubs(address: str) -> None:
    """Read three repositories at once. What the readings give does not matter."""
    await asyncio.gather(
        *(fetch(f"Qwen/Test{number}", hub_url=address, timeout=60.0) for number in range(HUBS)), return_exceptions=True
    )


class _Router:
    async def workers(self) -> list[dict[str, Any]] | None:
        return []

    async def alive(self) -> bool:
        return True


def counted(store: Store) -> tuple[int, int]:
    return sum(1 for _ in store.all(QWENDEPLOYMENTS)), sum(1 for _ in store.all(PODS))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        # Nothing announces that kopf has delivered the last object.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def peak() -> int:
    """KiB."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))


def main(program: str, address: str, deployments: str, pods: str) -> None:
    match program:
        case "operator":
            asyncio.run(operator(int(deployments), int(pods)))
        case "agent":
            asyncio.run(agent())
        case _:
            asyncio.run(hubs(address))
    print(peak())


if __name__ == "__main__":
    main(*sys.argv[1:])
