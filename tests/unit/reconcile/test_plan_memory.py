"""A decision plans a pinned revision anew only when something that the plan depends on has changed."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.api.spec import Spec
from qwen_operator.kube import NODES, QWENDEPLOYMENTS
from qwen_operator.planning import plan as planning
from qwen_operator.planning.types import NoFit, Plan
from tests.unit.world import World, deployment, node, settled


@pytest.fixture
async def world() -> World:
    return await settled(deployment(), deployment("other"))


async def test_a_decision_plans_again_only_for_other_nodes_or_another_spec(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[str] = []
    real = planning.plan

    def counted(spec: Spec, *rest: Any) -> Plan | NoFit:
        planned.append(spec.model)
        return real(spec, *rest)

    monkeypatch.setattr(planning, "plan", counted)
    for _ in range(3):
        world.operator.intake.enqueue_all()
        await world.settle(5)
    assert planned == []

    world.api.put(NODES, node("gpu-2"))
    await world.settle()
    assert len(planned) == 2, "once for each QwenDeployment"

    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.settle()
    assert len(planned) == 2, "the number of replicas is no part of a plan"

    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=2048))
    await world.settle()
    assert len(planned) == 4, "the new revision, and once more after it is pinned"


async def test_what_is_remembered_never_outlives_its_deployment(world: World) -> None:
    plans = world.operator.worker.reconciler.observer.observe(("team", "chat"))
    assert plans is not None
    assert plans.plans.remembered == {item["metadata"]["uid"] for item in world.api.all(QWENDEPLOYMENTS)}
    world.api.remove(world.qd(), QWENDEPLOYMENTS)
    await world.settle()
    assert plans.plans.remembered == {world.qd("other")["metadata"]["uid"]}
