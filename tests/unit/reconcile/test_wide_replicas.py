"""A replica that needs several nodes is worked out, but not run yet."""

from __future__ import annotations

from qwen_operator.kube import NODES, QWENDEPLOYMENTS
from tests.unit.world import World, deployment, node


async def test_a_plan_over_several_nodes_is_refused_in_words_before_a_pod_exists() -> None:
    world = await World().start()
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(model="Qwen/Qwen3-Coder-480B-A35B-Instruct"))
    await world.settle()
    assert world.conditions()["Planned"] == ("False", "DoesNotFit")
    message = world.message("Planned")
    assert message.startswith("needs 2 nodes (16 x NVIDIA-H100-80GB-HBM3 per replica, TP 16, 2 nodes")
    assert "this version of the operator does not run replicas over several nodes" in message
    assert world.names() == []
