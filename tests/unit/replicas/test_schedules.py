"""The number of replicas follows the clock, although nothing in the cluster changes."""

from __future__ import annotations

from typing import Any

from qwen_operator.kube import QWENDEPLOYMENTS
from tests.unit.world import World, deployment

DAY = {"name": "day", "start": "10 0 * * *", "end": "40 0 * * *", "minReplicas": 3}


async def _world(**spec: Any) -> World:
    world = World(wanted=1)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle()
    return world


async def test_replicas_start_and_drain_with_the_schedule() -> None:
    world = await _world(scaling={"maxReplicas": 4, "schedules": [DAY]})
    assert len(world.names()) == 1
    await world.wait(590)
    assert len(world.names()) == 3, "it is 00:10"
    assert world.qd()["status"]["scaling"]["schedules"] == ["day"]
    await world.wait(1500)
    assert len(world.names()) == 3
    await world.wait(400)
    assert len(world.names()) == 1, "it is past 00:40"
    assert "schedules" not in world.qd()["status"]["scaling"]


async def test_a_schedule_changes_no_number_that_somebody_set() -> None:
    world = await _world(replicas=1, scaling={"maxReplicas": 4, "schedules": [DAY]})
    await world.wait(700)
    assert len(world.names()) == 1
    messages = [one["message"] for one in world.qd()["status"]["conditions"] if one["type"] == "ScalingActive"]
    assert "the schedule day sets minReplicas 3" in messages[0]


async def test_a_wrong_schedule_is_named_and_changes_nothing() -> None:
    world = await _world(scaling={"maxReplicas": 4, "minReplicas": 2})
    wrong = {"maxReplicas": 4, "schedules": [DAY | {"end": "40 24 * * *"}]}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=wrong))
    await world.wait(700)
    assert len(world.names()) == 2
    summary = world.qd()["status"]["summary"]
    assert "spec.scaling.schedules[0].end: '40 24 * * *'" in summary["message"]
