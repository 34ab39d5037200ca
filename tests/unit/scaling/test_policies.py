"""A second policy is a module and a line: the autoscaler runs whatever keeps the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.api.schema import object_schema
from qwen_operator.api.spec import Scaling
from qwen_operator.controller.autoscaler import Autoscaler, Sources
from qwen_operator.scaling.page import Reading
from qwen_operator.scaling.policies import DEFAULT, POLICIES
from qwen_operator.scaling.types import Bounds, EnginePod, Sample, ScaledDeployment, ScalingDecision


class Counted:
    """Wants as many replicas as there were scrapes."""

    def remember(
        self, history: Any, sample: Sample, engines: tuple[EnginePod, ...], bounds: Bounds, last_wanted: int | None
    ) -> int:
        return int(history or 0) + 1

    def decide(self, history: Any, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
        return ScalingDecision(min(int(history), bounds.most), Reason.STEADY, f"{history} scrapes")


class Quiet:
    async def read(self, engine: EnginePod) -> Reading:
        return Reading(running=0, queued=0, inside=0, tokens_used=0, tokens_capacity=1000, beat=1.0, ticking=True)


async def test_the_autoscaler_runs_the_policy_that_it_is_given() -> None:
    key = ("team", "chat")
    deployment = ScaledDeployment(key, "u", (EnginePod("chat-0", "p0"),), Bounds(1, 3, 0.0))
    autoscaler = Autoscaler(Sources(lambda: [deployment], Quiet()), lambda _key: None, policies={DEFAULT: Counted()})
    wanted = []
    for _ in range(4):
        await autoscaler.scrape()
        state = autoscaler.state(*key, "u")
        wanted.append(state and state.wanted)
    assert wanted == [1, 2, 3, 3]


async def test_a_deployment_chooses_its_policy_and_a_change_starts_with_the_present_size() -> None:
    key = ("team", "chat")
    replicas = tuple(EnginePod(f"chat-{number}", f"p{number}") for number in range(2))
    deployment = ScaledDeployment(key, "u", replicas, Bounds(1, 3, 300.0), size=2, policy="Objective")
    autoscaler = Autoscaler(
        Sources(lambda: [deployment], Quiet()), lambda _key: None, policies=POLICIES | {"Other": Counted()}
    )
    sizes = []
    for name in ("Objective", "Queue", "Other", "Objective", ""):
        deployment = replace(deployment, policy=name)
        await autoscaler.scrape()
        state = autoscaler.state(*key, "u")
        sizes.append(state and state.wanted)
    assert sizes == [2, 2, 1, 2, 2]


def test_the_api_knows_the_same_policies_and_the_same_default() -> None:
    schema = object_schema(Scaling)["properties"]["policy"]
    assert set(schema["enum"]) == set(POLICIES)
    assert Scaling(max_replicas=1).policy == DEFAULT == "Queue"
