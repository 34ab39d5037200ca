"""The column CACHE: how the present pods got their model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from tests.unit.status.test_progress import CACHED, DONE, commit
from tests.unit.world import World, deployment, ready_status

MODEL = 15_200_000_000


def fetched(message: Any, **changes: Any) -> Manifest:
    """The status of a pod that serves, after its container told this."""
    text = message if isinstance(message, str) else json.dumps(message)
    ended = {"exitCode": 0, "message": text, "finishedAt": "2026-11-01T00:00:00Z", **changes}
    fetch = {"name": "fetch", "state": {"terminated": ended}}
    return ready_status({}) | {"initContainerStatuses": [DONE, fetch]}


def told(count: object) -> dict[str, object]:
    return {"version": 1, "bytes": MODEL, "hubBytes": count}


@pytest.mark.parametrize(
    ("pods", "shown"),
    [
        ([told(0)], "hit"),
        ([told(MODEL)], "15.2 GB"),
        ([told(MODEL), told(0)], "1 hit, 15.2 GB"),
        ([told(0), told(0)], "2 hits"),
        ([told(5_000_000)], "5.0 MB"),
        ([{"version": 1, "bytes": MODEL}], "15.2 GB"),
        ([{"version": 1, "bytes": 0}], "hit"),
        ([told(10**30), told(-1), told("x")], "3 hits"),
        (["[" * 4000], "hit"),
    ],
)
async def test_the_column_says_how_many_pods_hit_and_what_came_from_the_hub(pods: list[Any], shown: str) -> None:
    world = World(CACHED, fetch=commit)
    by_index = {f"-{index}": fetched(pod) for index, pod in enumerate(pods)}
    world.kubelet.engine = lambda pod: by_index[pod["metadata"]["name"][-2:]]
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=len(pods)))
    await world.settle()
    assert world.qd()["status"]["summary"]["cache"] == shown


async def test_without_a_cache_there_is_nothing_to_say() -> None:
    world = World()
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert "cache" not in world.qd()["status"]["summary"]


async def test_a_download_that_runs_or_failed_is_no_hit() -> None:
    world = World(CACHED, fetch=commit)
    world.kubelet.engine = lambda _pod: fetched(told(0), exitCode=1)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert "cache" not in world.qd()["status"]["summary"]
