"""Sleep and waking: when a model has no replicas, and when it gets one."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling import zero
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.types import EngineLoad, EnginePod, ScalingDecision, Work
from qwen_operator.scaling.zero import Rest
from tests.unit.scaling.world import engine, load, sample

IDLE = 60.0
NOBODY, ONE = ModelDemand(), ModelDemand(held=1, oldest=0.5, asked=0.5)
PARTLY, NOT_SEEN = Look(NOBODY, complete=False, silent=False), Look(NOBODY, complete=False, silent=True)
POLICY = ScalingDecision(2, Reason.STEADY, "as counted")


class Life:
    """A model over time; every step is one look, two seconds after the one before."""

    def __init__(self, wanted: int) -> None:
        self.at = 1000.0
        self.rest = zero.begin(wanted, self.at)
        self.engines: tuple[EnginePod, ...] = ()
        self.loads: tuple[EngineLoad, ...] = ()
        self.problems: dict[str, Reason] = {}

    def ready(self, *loads: EngineLoad) -> None:
        self.engines = tuple(engine(number) for number in range(len(loads)))
        self.loads = loads

    def look(self, shown: ModelDemand | Look = NOBODY) -> ScalingDecision:
        """At all gateway pods, if `shown` does not say otherwise."""
        look = shown if isinstance(shown, Look) else Look(shown, complete=True, silent=False)
        self.at += 2.0
        self.rest = zero.advance(self.rest, look, sample(self.at, self.loads, self.problems), self.engines, IDLE)
        return zero.decide(self.rest, look, POLICY)

    def looks(self, seconds: float, demand: ModelDemand | Look = NOBODY) -> ScalingDecision:
        for _ in range(int(seconds / 2) - 1):
            self.look(demand)
        return self.look(demand)


def test_a_new_deployment_sleeps_until_somebody_asks() -> None:
    life = Life(0)
    sleeping = life.looks(600)
    assert sleeping.replicas == 0
    assert "next request" in sleeping.message
    assert "no request for" not in sleeping.message, "nobody knows that of a new one"
    decision = life.look(ONE)
    assert (decision.replicas, decision.reason) == (2, Reason.WAKING)
    assert decision.message == "waking: 1 request waited for 0.5 s when the operator asked for a replica"


def test_a_wake_is_not_broken_off_however_long_the_start_takes() -> None:
    life = Life(0)
    life.look(ONE)
    assert life.looks(10 * IDLE).reason is Reason.WAKING
    life.ready(load(0))
    assert life.looks(6).reason is Reason.WAKING, "the gateway has to notice it"
    assert life.looks(2).reason is Reason.STEADY


def test_a_request_that_did_not_wait_wakes_too_but_not_for_ever() -> None:
    decision = Life(0).look(ModelDemand(asked=29.0))
    assert decision.reason is Reason.WAKING
    assert decision.message == "waking: a request came, and did not wait for the start"
    assert Life(0).look(ModelDemand(asked=31.0)).reason is Reason.ASLEEP


def test_what_somebody_asked_before_it_slept_wakes_nobody() -> None:
    life = Life(1)
    life.ready(load(0))
    life.looks(IDLE + 4)
    assert life.rest.asleep
    assert life.look(ModelDemand(asked=20.0)).reason is Reason.ASLEEP
    assert life.look(ModelDemand(asked=1.0)).reason is Reason.WAKING


def test_it_sleeps_after_the_idle_time_and_not_before() -> None:
    life = Life(1)
    life.ready(load(0))
    assert life.looks(IDLE - 2).replicas == 2
    decision = life.look()
    assert (decision.replicas, decision.reason, decision.active) == (0, Reason.ASLEEP, True)


@pytest.mark.parametrize(
    "busy", ["running", "queued", "counter", "unread", "problem", "held", "gateway", "partly", "unready"]
)
def test_whatever_is_busy_or_not_seen_keeps_it_awake(busy: str) -> None:
    life, work = Life(1), Work(prefilled=10.0, decoded=5.0, idle=0.0)
    life.ready(replace(load(0), work=work))
    life.looks(IDLE - 4)
    demand: ModelDemand | Look = NOBODY
    if busy == "running":
        life.loads = (load(0, running=1),)
    elif busy == "queued":
        life.loads = (load(0, queued=1),)
    elif busy == "counter":
        # A short request between two looks.
        life.loads = (replace(load(0), work=replace(work, decoded=6.0)),)
    elif busy == "unread":
        life.engines = (engine(0), engine(1))
    elif busy == "problem":
        life.problems = {"demo-12345678-0": Reason.METRICS_MISSING}
    elif busy == "held":
        demand = ONE
    elif busy == "gateway":
        demand = NOT_SEEN
    elif busy == "partly":
        demand = PARTLY
    else:
        life.engines = (engine(0, ready=False),)
    life.look(demand)
    life.ready(replace(load(0), work=replace(work, decoded=6.0)))
    life.problems = {}
    assert life.looks(IDLE - 4).replicas == 2
    assert life.looks(10).replicas == 0


def test_a_replica_with_requests_wakes_it_unless_it_drains() -> None:
    life = Life(0)
    life.engines, life.loads = (engine(0, draining=True),), (load(0, running=1),)
    assert life.looks(20).reason is Reason.ASLEEP
    life.engines = (engine(0),)
    assert life.looks(10).reason is Reason.STEADY


def test_a_gateway_that_cannot_be_read_is_said_and_wakes_nobody() -> None:
    decision = Life(0).looks(100, NOT_SEEN)
    assert (decision.replicas, decision.reason, decision.active) == (0, Reason.GATEWAY_SILENT, False)
    assert Life(0).looks(100, PARTLY).reason is Reason.ASLEEP


@pytest.mark.parametrize("demand", [ONE, ModelDemand(asked=1.0)])
def test_one_gateway_pod_is_enough_to_wake_it(demand: ModelDemand) -> None:
    assert Life(0).look(replace(PARTLY, demand=demand)).reason is Reason.WAKING


def test_a_new_leader_goes_on_with_what_the_status_shows() -> None:
    assert zero.begin(0, 5.0).asleep
    awake, woken = (zero.begin(1, 5.0, waking=waking) for waking in (False, True))
    assert (awake.asleep, awake.started, woken.asleep, woken.started) == (False, True, False, False)
    life = Life(1)
    life.ready(load(0))
    assert life.look() == POLICY


demands = st.builds(ModelDemand, st.integers(0, 3), st.just(0.0), st.sampled_from([0.0, 5.0, 100.0, inf]))
shown = st.one_of(st.just(NOT_SEEN), demands, st.builds(lambda one: replace(PARTLY, demand=one), demands))
steps = st.tuples(shown, st.booleans(), st.integers(0, 2))


@given(st.integers(0, 3), st.lists(steps, max_size=60))
def test_nobody_who_waits_finds_it_asleep(wanted: int, story: list[tuple[ModelDemand | Look, bool, int]]) -> None:
    life = Life(wanted)
    for demand, ready, running in story:
        life.engines = (engine(0, ready=ready),)
        life.loads = (load(0, running=running),) if ready else ()
        before = life.rest
        decision = life.look(demand)
        if (demand.demand if isinstance(demand, Look) else demand).held:
            assert decision.replicas > 0
        if life.rest.asleep and not before.asleep:
            assert life.at - before.busy_at >= IDLE
        assert isinstance(life.rest, Rest)
