"""What engines report beside the plan: which numbers stand in the status, and when they do not match."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from qwen_operator.api.engine import Engine
from qwen_operator.controller.worker import PACE_SECONDS
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS
from qwen_operator.manifests.revisions import read_revision
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, Plan
from qwen_operator.scaling.types import NOTHING_REPORTED, Reported, ScalingState
from qwen_operator.status.observed import mismatch, promised, startup_seconds
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pools, spec
from tests.unit.world import World, deployment

GIB = 1 << 30


@dataclass
class ReportingWorld(World):
    """A world whose engines report the same of their start, or what a test says of a pod by its name."""

    reported: Reported = NOTHING_REPORTED
    of_pod: dict[str, Reported] = field(default_factory=dict)

    def load(self, namespace: str, name: str, uid: str) -> ScalingState | None:
        state = super().load(namespace, name, uid)
        if state is None:
            return None
        pods = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in self.api.all(PODS)}
        return replace(state, reported={uid: self.of_pod.get(name, self.reported) for uid, name in pods.items()})

    def seen(self) -> Any:
        return self.qd()["status"].get("observed")


async def serving(reported: Reported, **spec_: Any) -> ReportingWorld:
    world = ReportingWorld(reported=reported)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(**spec_))
    await world.settle()
    return world


async def again(world: ReportingWorld) -> int:
    """Let the operator look once more. The number of writes to the API server that it makes."""
    before = len(world.api.writes)
    world.operator.intake.enqueue_all()
    await world.settle(2 * int(PACE_SECONDS) + 10)
    return len(world.api.writes) - before


async def test_the_status_has_what_the_engines_report() -> None:
    world = await serving(Reported(60_000, 36 * GIB, 5 * GIB, 200), replicas=2)
    revision = world.qd()["status"]["plan"]["hash"]
    numbers = {"kvTokens": 60_000, "weightBytes": 36 * GIB, "freeMemoryBytes": 5 * GIB, "startupSeconds": 200}
    assert world.seen() == {"hash": revision, **numbers}
    assert await again(world) == 0
    # Of several replicas, the least favourable numbers count.
    world.of_pod[world.names()[1]] = Reported(59_000, 37 * GIB, 4 * GIB, 250)
    assert await again(world) == 1
    worse = {"kvTokens": 59_000, "weightBytes": 37 * GIB, "freeMemoryBytes": 4 * GIB, "startupSeconds": 250}
    assert world.seen() == {"hash": revision, **worse}


async def test_it_stays_while_nothing_can_be_read_and_ends_with_the_revision() -> None:
    world = await serving(Reported(60_000))
    seen = world.seen()
    world.reported = Reported()
    assert await again(world) == 0
    world.blind = True
    await world.restart()
    assert await again(world) == 0
    assert world.seen() == seen
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=4096))
    await world.settle()
    assert world.seen() is None


@pytest.mark.parametrize(("seconds", "expected"), [(900, 900), (10, None), (10**9, 86_400)])
async def test_a_start_that_took_longer_than_planned_counts_for_the_next_ones(
    seconds: int, expected: int | None
) -> None:
    world = await serving(Reported(startup_seconds=seconds))
    (revision,) = world.operator.store.all(CONTROLLER_REVISIONS)
    pinned = read_revision(revision)
    assert startup_seconds(pinned, world.seen()) == (expected or pinned.plan.startup_seconds)
    assert startup_seconds(pinned, {**world.seen(), "hash": "other"}) == pinned.plan.startup_seconds
    assert startup_seconds(None, world.seen()) == 0


async def test_engines_that_report_nothing_leave_no_part() -> None:
    assert (await serving(Reported())).seen() is None


async def test_a_status_that_somebody_wrote_is_not_believed() -> None:
    world = await serving(Reported(60_000))
    revision = world.seen()["hash"]
    world.blind = True
    world.api.edit(
        QWENDEPLOYMENTS,
        "chat",
        lambda item: item["status"].update(observed={"hash": revision, "kvTokens": "x", "startupSeconds": -1}),
    )
    await again(world)
    assert world.seen() == {"hash": revision}


async def test_fewer_tokens_than_promised_are_told_with_both_numbers() -> None:
    world = await serving(Reported(10_000_000))
    right = world.qd()["status"]["plan"]["kvTokens"]
    assert "Degraded" not in world.conditions()
    world.reported = Reported(right // 2, 200 * GIB)
    assert await again(world) == 2  # the status and its Event
    assert world.conditions()["Degraded"] == ("True", "PlanMismatch")
    assert world.conditions()["Ready"] == ("True", "Serving")
    message = world.message("Degraded")
    assert f"an engine has room for {right // 2} tokens of KV cache, but the plan promised {right}" in message
    assert "weights take 200.0 GiB of a GPU, planned were" in message
    assert world.events()["PlanMismatch"] == 1
    assert await again(world) == 0
    world.reported = Reported(right)
    await again(world)
    assert "Degraded" not in world.conditions()


@pytest.mark.parametrize(("percent", "told"), [(94, True), (95, False), (100, False), (130, False)])
def test_a_small_difference_is_no_mismatch(percent: int, told: bool) -> None:
    made = planned()
    assert (mismatch(made, {"kvTokens": made.kv_tokens * percent // 100 + 1}) is not None) is told
    assert mismatch(made, None) is None
    assert mismatch(made, {"weightBytes": 1}) is None


def planned(chart: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> Plan:
    defaults: EngineDefaults = replace(DEFAULTS, args=chart)
    asked = spec(engine=Engine(args=own))
    made = plan(asked, facts("Qwen1.5-7B-Chat"), pools("H100-80GB"), defaults, DOWNLOADED)
    assert isinstance(made, Plan), made
    return Plan.from_json(json.loads(json.dumps(made.to_json())))


WHOLE = planned().kv_tokens


@pytest.mark.parametrize(
    ("chart", "own", "right"),
    [
        ((), (), WHOLE),
        # What the platform team sets is what everybody gets.
        (("--max-total-tokens=8192",), (), 8192),
        (("--max-total-tokens=8192", "--device=cpu"), (), 8192),
        (("--max-total-tokens=8192", "--device=cpu", "--max-running-requests=4"), (), 8192),
        (("--max-total-tokens=99999999",), (), WHOLE),
        # A limit that the memory may not allow is no promise.
        (("--max-total-tokens=8192", "--mem-fraction-static=0.5"), (), None),
        (("--max-total-tokens=8192", "--dtype=float32"), (), None),
        (("--max-total-tokens=\N{SUPERSCRIPT TWO}",), (), None),
        (("--device=cpu",), (), None),
        (("--mem-fraction-static=0.5",), (), None),
        (("--sleep-on-idle",), (), WHOLE),
        # What the object itself takes away is told.
        ((), ("--max-total-tokens=8192",), WHOLE),
        (("--max-total-tokens=8192",), ("--max-total-tokens=1024",), 8192),
    ],
)
def test_the_promise_follows_the_options_of_the_chart(
    chart: tuple[str, ...], own: tuple[str, ...], right: int | None
) -> None:
    made = planned(chart, own)
    assert promised(made) == right
    told = mismatch(made, {"kvTokens": 1000})
    assert (told is not None) is (right is not None)
    if own and told:
        assert "these options change it:" in told.message
        assert f"spec.engine.args sets {own[0]}" in told.message


def test_a_plan_of_an_earlier_version_promises_what_its_warnings_allow() -> None:
    record = planned().to_json()
    assert "promised_tokens" not in record
    assert promised(Plan.from_json(record)) == WHOLE
    void = Plan.from_json(record | {"warnings": ["prediction void: the chart's engine.args sets --device=cpu"]})
    assert promised(void) is None
