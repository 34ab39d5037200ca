"""A pod that is Ready counts as answering a moment later: the gateway's router needs that time to take it up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.replicas.pod_state import as_of, read_pod
from tests.unit.world import World, deployment, ready_status

NOW = datetime(2026, 11, 24, 12, 0, 10, tzinfo=UTC)


def ready_since(stamp: str | None) -> Manifest:
    status = ready_status({})
    status["conditions"][1]["lastTransitionTime"] = stamp
    return {"metadata": {"name": "chat-0a1b2c3d-0", "uid": "u"}, "status": status}


@pytest.mark.parametrize(
    ("stamp", "left"),
    [
        ("2026-11-24T12:00:10Z", 3.0),
        ("2026-11-24T12:00:08Z", 1.0),
        ("2026-11-24T12:00:07Z", 0.0),
        ("2026-11-24T12:00:40Z", 0.0),  # another machine's clock
        (None, 0.0),
        ("yesterday", 0.0),
    ],
)
def test_a_ready_pod_settles(stamp: str | None, left: float) -> None:
    state = as_of(read_pod(ready_since(stamp), "chat"), NOW)

    assert (state.settles_in, state.ready) == (left, left == 0)
    assert state.reason is (Reason.LOADING if left else Reason.SERVING)


async def test_ready_is_said_by_itself_when_the_time_is_over() -> None:
    world = await World().start()
    start = world.api.clock.now()
    world.kubelet.engine = lambda _pod: ready_since(start.strftime("%Y-%m-%dT%H:%M:%SZ"))["status"]
    world.api.put(QWENDEPLOYMENTS, deployment())

    await world.settle()

    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.api.clock.now() - start >= timedelta(seconds=3)


async def test_the_column_does_not_go_back_to_loading_while_the_gateway_takes_the_pod_up() -> None:
    world = await World().start()
    world.kubelet.engine = lambda _pod: {"phase": "Pending"}
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    now = world.api.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.kubelet.engine = lambda _pod: ready_since(now)["status"]

    await world.wait(2)

    assert world.qd()["status"]["summary"]["status"] == "Registering"
    assert world.conditions()["Ready"] == ("False", "Loading")
