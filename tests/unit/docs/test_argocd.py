"""What Argo CD shows: the script of docs/examples/argocd reads objects as the operator leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from tests.unit.world import World, change, deployment, ready_status, settled

FOLDER = Path(__file__).parents[3] / "docs/examples/argocd"
SCRIPT = (FOLDER / "health.lua").read_text(encoding="utf-8")
LARGE = "Qwen/Qwen1.5-72B-Chat"


def health(obj: Manifest) -> tuple[str, str]:
    """What Argo CD would show: a status and a message."""
    lua = LuaRuntime(register_eval=False)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    found = lua.execute(SCRIPT)
    return found.status, found.message


STATES: dict[str, tuple[dict[str, Any], str, str]] = {
    "it answers": ({}, "Healthy", "1 of 1 replicas answer"),
    "no replica is asked for": ({"replicas": 0}, "Healthy", "spec.replicas is 0"),
    "suspended": ({"suspend": True}, "Suspended", "spec.suspend is true"),
    "no GPU has room": ({"model": LARGE, "hardware": {"maxGpusPerReplica": 1}}, "Degraded", "would fit"),
    "a wrong field": ({"parallelism": {"tensor": 3}}, "Degraded", "spec.parallelism.tensor is 3"),
}


@pytest.mark.parametrize(("spec", "status", "says"), STATES.values(), ids=STATES.keys())
async def test_the_health_of_a_state(spec: dict[str, Any], status: str, says: str) -> None:
    world = await settled(deployment(**spec))
    shown, message = health(world.qd())
    assert (shown, says in message) == (status, True), message


async def test_what_goes_on_by_itself_is_progress() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    assert health(world.qd()) == ("Progressing", "the operator has not seen this change yet")
    world.kubelet.engine = loading_status
    await world.settle()
    assert health(world.qd()) == ("Progressing", world.message("Ready"))
    world.kubelet.engine = ready_status
    await world.settle()
    assert health(world.qd())[0] == "Healthy"


async def test_a_change_is_progress_until_its_replicas_answer() -> None:
    world = await settled(deployment())
    before = world.names()
    world.kubelet.engine = lambda pod: (ready_status if pod["metadata"]["name"] in before else loading_status)(pod)
    change(world, contextTokens=1024)
    await world.settle()
    assert world.conditions()["Ready"][0] == "True", "the old replica answers"
    assert health(world.qd())[0] == "Progressing"
    world.kubelet.engine = ready_status
    await world.settle()
    assert health(world.qd())[0] == "Healthy"


def loading_status(_pod: Manifest) -> Manifest:
    engine = {"name": "engine", "state": {"running": {}}, "ready": False, "started": False}
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [engine],
    }


def test_the_config_map_has_the_script() -> None:
    patch = yaml.safe_load((FOLDER / "argocd-cm.yaml").read_text(encoding="utf-8"))
    assert patch == {"data": {"resource.customizations.health.qwen-operator.dev_QwenDeployment": SCRIPT}}
