"""How long a replica of a new revision may take, if a container fetches its model before the engine starts."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.kube import NODES, QWENDEPLOYMENTS, Manifest
from tests.unit.replicas.test_holding import DEADLINE, Rollout, begun, loading
from tests.unit.world import World, change, deployment, node, ready_status

WIDE = "Qwen/Qwen3-Coder-480B-A35B-Instruct"


def fetching(state: dict[str, Any], last: dict[str, Any] | None = None) -> Manifest:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    container = {"name": "fetch", "restartCount": 1, "state": state, "lastState": last or {}}
    return {"phase": "Pending", "conditions": [scheduled], "initContainerStatuses": [container]}


def run(begun: str, finished: str, code: int = 1) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error", "startedAt": begun, "finishedAt": finished}}


def fetched(at: str) -> Manifest:
    """The engine loads a model that has arrived."""
    return {**loading(), "initContainerStatuses": [{"name": "fetch", "state": run(at, at, 0)}]}


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}


async def test_a_download_takes_as_long_as_it_takes() -> None:
    it = await begun()
    it.broken = fetching({"running": {}})
    await it.world.wait(10 * DEADLINE)
    assert not it.held


@pytest.mark.parametrize("seconds", [0, 1, 10 * DEADLINE])
async def test_the_time_of_a_download_that_broke_off_does_not_count(seconds: int) -> None:
    it = await begun()
    it.broken = fetching({"running": {}})
    clock = it.world.api.clock
    start = clock.stamp()
    await it.world.wait(seconds)
    it.broken = fetching(BACK_OFF, run(start, clock.stamp()))
    await it.world.wait(DEADLINE // 2)
    assert not it.held
    await it.world.wait(DEADLINE // 2 + 10)
    assert it.held, "it does not stand still for ever either"


async def wide() -> Rollout:
    """A rollout of a replica over two nodes."""
    world = await World().start()
    world.kubelet.place = True
    for name in ("gpu-2", "gpu-3", "gpu-4"):
        world.api.put(NODES, node(name))
    rules = {"progressDeadlineSeconds": DEADLINE}
    spec: dict[str, Any] = {"model": WIDE, "hardware": {"maxNodesPerReplica": 2}, "rollout": rules}
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle()
    it = Rollout(world)
    change(world, contextTokens=2048)
    return it


async def test_the_pods_of_a_replica_wait_for_the_slowest_download() -> None:
    it = await wide()
    clock = it.world.api.clock
    statuses = {"engine": fetched(clock.stamp()), "engine-worker": fetching({"running": {}})}

    def engine(pod: Manifest) -> Manifest:
        if pod["metadata"]["labels"]["qwen-operator.dev/revision"] in it.good:
            return ready_status(pod)
        return statuses[pod["metadata"]["labels"]["qwen-operator.dev/role"]]

    it.world.kubelet.engine = engine
    await it.world.wait(10 * DEADLINE)
    assert len(it.new) == 2
    assert not it.held
    statuses["engine-worker"] = fetched(clock.stamp())
    await it.world.wait(DEADLINE - 10)
    assert not it.held
    await it.world.wait(20)
    assert it.held
