"""From the engines' pages to the deletion of a pod, with nothing replaced between them: the pages of SGLang over real
sockets, the scraper, the rule, the decisions and the writes. Only the cluster and the time are the test's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web

from qwen_operator.api.conditions import Reason
from qwen_operator.controller.autoscaler import JITTER, Autoscaler, Pace, Sources
from qwen_operator.controller.scraper import Scraper, scraper
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.replicas.scaling_view import scaled_deployments
from qwen_operator.scaling.demand import Demand, ModelDemand
from qwen_operator.scaling.pace import INTERVAL_SECONDS
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import ScaledDeployment, ScalingState
from tests.unit.fakes import Clock, FakeKube
from tests.unit.world import World, deployment, ready_status

RECORDED = (Path(__file__).parents[1] / "scaling" / "pages" / "loaded.txt").read_text(encoding="utf-8")
NUMBERS = re.compile(
    r"^(sglang:(num_running_reqs|num_queue_reqs|num_used_tokens|scheduler_idle_seconds_total)\{.*\}"
    r'|sglang:(http_requests_active)\{endpoint="/v1/chat/completions",method="POST"\}) .*$',
    re.MULTILINE,
)
# The recorded page has two requests of this kind, and one of them took longer than two seconds.
FIRST_TOKENS = re.compile(
    r'^(sglang:time_to_first_token_seconds_(?:count|bucket)\{engine_type="unified",is_streaming="false",'
    r'(?:le="([^"]+)",)?model_name="tiny"\}) .*$',
    re.MULTILINE,
)
WEIGHTS = re.compile(r"^(sglang:weight_memory_usage_gb\{.*\}) .*$", re.MULTILINE)
MODEL = "Qwen/Qwen1.5-0.5B-Chat"
ROUTABLE = "qwen-operator.dev/routable"
SEEN = Demand(ready=2, read=2)
SIZES = {"minReplicas": 1, "maxReplicas": 3, "stabilizationSeconds": 30}


@dataclass
class Engine:
    """One SGLang: its page is a recorded one with other numbers. `inside` are requests whose answers still go out."""

    clock: Clock
    running: int = 0
    queued: int = 0
    inside: int = 0
    begun: int = 3
    late: int = 1
    weights_gib: float | None = None

    async def page(self, _: web.Request) -> web.Response:
        values = {
            "num_running_reqs": self.running,
            "num_queue_reqs": self.queued,
            "num_used_tokens": self.running,
            "scheduler_idle_seconds_total": self.clock.seconds,
            "http_requests_active": self.running + self.queued + self.inside,
        }
        text = NUMBERS.sub(lambda line: f"{line[1]} {values[line[2] or line[3]]}", RECORDED)
        text = FIRST_TOKENS.sub(lambda line: f"{line[1]} {self.begun - (line[2] == '2.0') * self.late}", text)
        if self.weights_gib is not None:
            text = WEIGHTS.sub(lambda line: f"{line[1]} {self.weights_gib}", text)
        return web.Response(text=text.replace('model_name="tiny"', f'model_name="{MODEL}"'))


def address(index: int) -> str:
    return f"127.0.0.{11 + index}"


@asynccontextmanager
async def serving(engines: list[Engine]) -> AsyncIterator[int]:
    """Each engine at its own address, all on the port that this yields."""
    port = 0
    async with AsyncExitStack() as stack:
        for index, engine in enumerate(engines):
            app = web.Application()
            app.router.add_get("/metrics", engine.page)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, address(index), port).start()
            port = runner.addresses[0][1]
        yield port


def answering(pod: Manifest) -> Manifest:
    """The status of a ready pod, with the address of the engine of its index."""
    index = int(pod["metadata"]["name"].rpartition("-")[2])
    return ready_status(pod) | {"podIP": address(index)}


@dataclass
class ScalingWorld(World):
    """A world whose operator learns of the load from its own autoscaler."""

    scaler: Autoscaler | None = None
    pages: Scraper | None = None
    demand: Demand = SEEN
    on_look: Callable[[Looked], None] | None = None

    async def read_demand(self) -> Demand:
        return self.demand

    def lead(self) -> None:
        """Begin to scale, with what the status remembers."""
        assert self.pages
        operator, clock = self.operator, self.api.clock
        store = operator.store

        def view() -> Iterator[ScaledDeployment]:
            return scaled_deployments(store.all(QWENDEPLOYMENTS), store.replicas, store.names.held, now=clock.now())

        sources = Sources(view, self.pages, self.read_demand)
        self.scaler = Autoscaler(sources, operator.queue.add, Pace(clock=clock.monotonic), on_look=self.on_look)

    async def new_leader(self) -> None:
        await self.restart()
        self.lead()

    def load(self, namespace: str, name: str, uid: str) -> ScalingState | None:
        return self.scaler.state(namespace, name, uid) if self.scaler else None

    async def pass_time(self, seconds: int) -> None:
        """Let so many seconds pass, with a look at the engines at the autoscaler's pace."""
        assert self.scaler
        for _ in range(0, seconds, int(INTERVAL_SECONDS)):
            await self.scaler.scrape()
            await self.wait(int(INTERVAL_SECONDS))

    def replicas(self) -> dict[int, bool]:
        """Which replicas exist by their index, and whether they get requests."""
        return {
            int(pod["metadata"]["name"].rpartition("-")[2]): ROUTABLE in pod["metadata"]["labels"]
            for pod in self.api.all(PODS)
        }

    def scaling(self) -> tuple[int, str]:
        status = self.qd()["status"]
        return status["replicas"], status["scaling"]["reason"]


@asynccontextmanager
async def scaled(engines: list[Engine], clock: Clock) -> AsyncIterator[ScalingWorld]:
    """A QwenDeployment that is scaled by the load of these engines."""
    async with serving(engines) as port, scraper(port) as pages:
        world = ScalingWorld(api=FakeKube(clock))
        await world.start()
        world.kubelet.engine = answering
        world.pages = pages
        world.lead()
        world.api.put(QWENDEPLOYMENTS, deployment(scaling=SIZES))
        yield world


async def test_what_an_engine_reports_of_its_start_is_written_once() -> None:
    clock = Clock()
    async with scaled([Engine(clock)], clock) as world:
        await world.pass_time(20)
        seen = world.qd()["status"]["observed"]
        assert (seen["kvTokens"], seen["startupSeconds"]) == (8192, 34)
        assert world.conditions()["Degraded"] == ("True", "PlanMismatch")
        writes = len(world.api.writes)
        await world.pass_time(60)
        await world.new_leader()
        await world.pass_time(20)
        assert world.api.writes[writes:] == []
        assert world.qd()["status"]["observed"] == seen


async def test_an_engine_that_reports_other_numbers_with_every_page_causes_few_writes() -> None:
    clock = Clock()
    engine = Engine(clock, weights_gib=1)
    async with scaled([engine], clock) as world:
        await world.pass_time(20)
        writes = len(world.api.writes)
        for number in range(2, 92):
            engine.weights_gib = number
            await world.pass_time(2)
        assert 1 <= len(world.api.writes) - writes <= 4
        assert world.qd()["status"]["observed"]["weightBytes"] >= 60 << 30


@pytest.mark.parametrize("quietest", range(3))
async def test_when_the_load_falls_the_quietest_replica_is_drained_and_deleted(quietest: int) -> None:
    clock = Clock()
    engines = [Engine(clock) for _ in range(3)]
    async with scaled(engines, clock) as world:
        await world.pass_time(10)
        assert world.replicas() == {0: True}
        # 656 requests, and a replica runs 256 at once.
        engines[0].running, engines[0].queued = 256, 400
        await world.pass_time(20)
        assert world.replicas() == {0: True, 1: True, 2: True}
        assert world.scaling() == (3, Reason.STEADY)

        others = {0, 1, 2} - {quietest}
        for index, engine in enumerate(engines):
            engine.running, engine.queued = 20 if index == quietest else 140, 0
        await world.pass_time(20)
        assert all(world.replicas().values()), "30 s have not passed"
        await world.pass_time(20)
        assert world.replicas() == {quietest: False, **dict.fromkeys(others, True)}
        assert world.scaling() == (2, Reason.STEADY)

        await world.pass_time(60)
        assert len(world.replicas()) == 3, "20 requests are running"
        engines[quietest].running, engines[quietest].inside = 0, 1
        await world.pass_time(20)
        assert len(world.replicas()) == 3, "the scheduler is done, but an answer still goes out"
        engines[quietest].inside = 0
        await world.pass_time(6)
        assert world.replicas() == dict.fromkeys(others, True)

        deleted = [write.name.rpartition("-")[2] for write in world.api.writes if write.verb == "delete"]
        assert deleted == [str(quietest)]
        assert "DrainTimedOut" not in world.events()


async def test_load_that_returns_during_a_drain_has_the_replica_routed_again_within_five_seconds() -> None:
    """At its slowest: it returns right after a look, and both looks that must see it are as late as they may be."""
    clock = Clock()
    engines = [Engine(clock) for _ in range(2)]
    async with scaled(engines, clock) as world:
        engines[0].running, engines[0].queued = 256, 100
        await world.pass_time(20)
        assert world.replicas() == {0: True, 1: True}
        engines[0].running, engines[0].queued, engines[1].running = 100, 0, 1
        for _ in range(60):
            await world.pass_time(2)
            if not all(world.replicas().values()):
                break
        assert world.replicas() == {0: True, 1: False}

        assert world.scaler
        await world.scaler.scrape()
        engines[0].running, engines[0].queued = 256, 100
        returned = clock.seconds
        for _ in range(2):
            clock.advance(INTERVAL_SECONDS * (1 + JITTER))
            await world.scaler.scrape()
            await world.operator.step()
        assert world.replicas() == {0: True, 1: True}
        assert clock.seconds - returned < 5
        assert [write.verb for write in world.api.writes if write.verb == "delete"] == []


async def test_engines_that_cannot_be_read_lose_no_replica() -> None:
    clock = Clock()
    engines = [Engine(clock) for _ in range(3)]
    async with scaled(engines[:1], clock) as world:
        engines[0].running, engines[0].queued = 256, 400
        await world.pass_time(30)
        assert world.replicas() == {0: True, 1: True, 2: True}
        engines[0].running, engines[0].queued = 0, 0
        await world.pass_time(120)
        assert world.replicas() == {0: True, 1: True, 2: True}
        assert world.scaling() == (3, Reason.METRICS_MISSING)


SLEEPS = {"minReplicas": 0, "maxReplicas": 3, "stabilizationSeconds": 30, "idleSeconds": 60}


def verdict(world: ScalingWorld, kind: str) -> Manifest:
    (one,) = [one for one in world.qd()["status"]["conditions"] if one["type"] == kind]
    return dict(one)


def condition(world: ScalingWorld, kind: str) -> tuple[str, str]:
    one = verdict(world, kind)
    return one["status"], one["reason"]


async def drains(world: ScalingWorld) -> None:
    """Wait until the only replica drains."""
    for _ in range(60):
        await world.pass_time(2)
        if world.replicas() != {0: True}:
            break
    assert world.replicas() == {0: False}


async def test_a_model_wakes_when_somebody_asks_and_sleeps_when_nobody_does() -> None:
    clock = Clock()
    engines = [Engine(clock)]
    async with scaled(engines, clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        await world.pass_time(120)
        assert world.replicas() == {}
        assert world.scaling() == (0, Reason.ASLEEP)
        assert condition(world, "Ready") == ("True", Reason.ASLEEP)

        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=2, asked=0.1)})
        await world.pass_time(2)
        assert list(world.replicas()) == [0]
        world.demand = SEEN
        engines[0].running = 2
        await world.pass_time(200)
        assert world.replicas() == {0: True}
        assert condition(world, "Ready") == ("True", Reason.SERVING)

        engines[0].running = 0
        await world.pass_time(50)
        assert world.replicas() == {0: True}
        await drains(world)
        await world.pass_time(10)
        assert world.replicas() == {}
        assert condition(world, "Ready") == ("True", Reason.ASLEEP)
        assert {"ScaledUp", "ScaledDown", "Serving"} <= set(world.events())


async def test_a_request_that_comes_while_the_last_replica_drains_gets_it_back() -> None:
    clock = Clock()
    engines = [Engine(clock)]
    async with scaled(engines, clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(4)
        world.demand = SEEN
        await drains(world)
        engines[0].running = 1
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(4)
        assert world.replicas() == {0: True}
        assert [write.verb for write in world.api.writes if write.verb == "delete"] == []


async def test_what_a_user_reads_while_a_model_sleeps_and_wakes() -> None:
    clock = Clock()
    engines = [Engine(clock)]
    async with scaled(engines, clock) as world:
        world.kubelet.engine = lambda _pod: None
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        await world.pass_time(10)
        assert world.qd()["status"]["summary"]["status"] == "Asleep"
        assert {one["type"] for one in world.qd()["status"]["conditions"]} == {
            "Ready",
            "Planned",
            "ModelLoaded",
            "ScalingActive",
        }, "sleep is no work in progress, and nothing is wrong"
        # The chart of this test lets no request wait.
        assert "requests wait in the gateway for at most 0 s" in verdict(world, "Planned")["message"]

        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=2, oldest=1.2, asked=0.1)})
        await world.pass_time(4)
        ready = verdict(world, "Ready")
        assert (ready["status"], ready["reason"]) == ("True", Reason.WAKING)
        assert ready["message"].startswith(
            "waking: 2 requests waited, the first for 1.2 s, when the operator asked for a replica; chat-"
        )
        assert "by plan it answers at 20" in ready["message"]
        before = world.qd()["metadata"]["resourceVersion"]
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=90, asked=0.1)})
        await world.pass_time(20)
        assert world.qd()["metadata"]["resourceVersion"] == before, "not every request is a write"


async def test_without_the_gateway_nothing_sleeps_and_a_sleeper_says_so() -> None:
    clock = Clock()
    engines = [Engine(clock)]
    async with scaled(engines, clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        world.demand = Demand()
        await world.pass_time(10)
        assert condition(world, "Ready") == ("False", Reason.GATEWAY_SILENT)
        world.demand = Demand({MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(6)
        world.demand = Demand()
        await world.pass_time(300)
        assert world.replicas() == {0: True}


async def test_one_gateway_pod_that_cannot_be_read_stops_no_wake() -> None:
    """A pod of a dead node counts as ready for a while, and requests wait at the others."""
    clock = Clock()
    async with scaled([Engine(clock)], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        await world.pass_time(10)
        writes = len(world.api.writes)
        world.demand = Demand(ready=2, read=1)
        await world.pass_time(10)
        assert condition(world, "Ready") == ("True", Reason.ASLEEP)
        assert len(world.api.writes) == writes
        # A request that did not wait, because the start takes too long.
        world.demand = Demand({MODEL: ModelDemand(asked=0.1)}, ready=2, read=1)
        await world.pass_time(4)
        assert list(world.replicas()) == [0]


async def test_what_suspends_a_deployment_removes_its_replicas_and_nobody_wakes_it() -> None:
    clock = Clock()
    engines = [Engine(clock)]
    async with scaled(engines, clock) as world:
        await world.pass_time(10)
        assert world.replicas() == {0: True}
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(suspend=True))
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(30)
        assert world.replicas() == {}
        assert condition(world, "Ready") == ("False", Reason.SUSPENDED)
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("suspend"))
        await world.pass_time(10)
        assert world.replicas() == {0: True}


async def test_what_was_switched_on_by_hand_while_it_slept_does_not_end_with_the_hand() -> None:
    """It sleeps after idleSeconds without requests, whoever started it."""
    clock = Clock()
    engines = [Engine(clock), Engine(clock)]
    async with scaled(engines, clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        await world.pass_time(10)
        assert world.scaling() == (0, Reason.ASLEEP)
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
        await world.pass_time(20)
        assert world.replicas() == {0: True, 1: True}
        engines[0].running = 1
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("replicas"))
        await world.pass_time(20)
        assert world.replicas() == {0: True, 1: True}
        assert condition(world, "Ready") == ("True", Reason.SERVING)


@pytest.mark.parametrize("scaling", [SIZES, SLEEPS], ids=["awake", "may sleep"])
@pytest.mark.parametrize("waits", [0, 1], ids=["the autoscaler sees it first", "reconcile sees it first"])
async def test_what_is_handed_back_keeps_its_size_until_the_load_was_measured(scaling: Manifest, waits: int) -> None:
    """Advice from before, for example one replica or none, is not followed."""
    clock = Clock()
    async with scaled([Engine(clock), Engine(clock)], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=scaling, replicas=2))
        await world.pass_time(100)
        assert world.qd()["status"]["scaling"]["advised"] == scaling["minReplicas"]
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("replicas"))
        await world.wait(waits)
        await world.pass_time(26)
        assert world.replicas() == {0: True, 1: True}
        await world.pass_time(60)
        assert world.scaling()[0] == scaling["minReplicas"]


async def test_a_sleeper_that_was_suspended_sleeps_on() -> None:
    """As a new leader finds it."""
    clock = Clock()
    async with scaled([Engine(clock)], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(10)
        assert world.replicas() == {0: True}
        world.demand = SEEN
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(suspend=True))
        await world.pass_time(30)
        assert world.replicas() == {}
        assert world.scaler
        assert world.scaler.held() == {}
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("suspend"))
        await world.pass_time(10)
        assert world.scaling() == (0, Reason.ASLEEP)


async def test_a_change_of_the_leader_interrupts_no_wake() -> None:
    """Ready stays true: nothing is wrong, and nobody needs an alert."""
    clock = Clock()
    async with scaled([Engine(clock)], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        await world.pass_time(10)
        world.kubelet.engine = lambda _pod: {"phase": "Pending"}
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(10)
        assert condition(world, "Ready") == ("True", Reason.WAKING)
        await world.new_leader()
        for _ in range(5):
            await world.pass_time(4)
            assert condition(world, "Ready") == ("True", Reason.WAKING)
        assert list(world.replicas()) == [0]


async def test_replicas_without_a_status_do_not_fall_asleep_at_once() -> None:
    """Somebody removed the status, or another version wrote it."""
    clock = Clock()
    async with scaled([Engine(clock)], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS))
        world.demand = replace(SEEN, models={MODEL: ModelDemand(held=1, asked=0.1)})
        await world.pass_time(10)
        world.demand = SEEN
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item.pop("status"))
        await world.new_leader()
        await world.pass_time(30)
        assert world.replicas() == {0: True}
        assert condition(world, "Ready") == ("True", Reason.SERVING)


@pytest.mark.parametrize("spec", [{"replicas": 1}, {"scaling": SIZES}], ids=["a fixed size", "by load"])
async def test_the_status_shows_how_many_requests_kept_the_objective(spec: Manifest) -> None:
    clock = Clock()
    engine = Engine(clock)
    async with scaled([engine], clock) as world:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update({"scaling": None, **spec}))
        await world.pass_time(10)
        assert "attainmentPercent" not in world.qd()["status"]["scaling"], "nothing came since the first look"
        engine.begun, engine.late = engine.begun + 100, engine.late + 3
        await world.pass_time(64)
        assert world.qd()["status"]["scaling"]["attainmentPercent"] == {"hour": 97, "day": 97}
        writes = world.qd()["metadata"]["resourceVersion"]
        for _ in range(100):
            engine.begun += 1
            await world.pass_time(2)
        assert world.qd()["metadata"]["resourceVersion"] == writes
        await world.pass_time(120)
        assert world.qd()["status"]["scaling"]["attainmentPercent"] == {"hour": 98, "day": 98}
        await world.new_leader()
        await world.pass_time(20)
        assert world.qd()["status"]["scaling"]["attainmentPercent"] == {"hour": 98, "day": 98}


async def test_a_schedule_starts_replicas_of_a_model_that_sleeps_and_lets_it_sleep_again() -> None:
    clock = Clock()
    engines = [Engine(clock) for _ in range(2)]
    day = {"name": "day", "start": "10 1 * * *", "end": "20 2 * * *", "timeZone": "Europe/Berlin", "minReplicas": 2}
    async with scaled(engines, clock) as world:
        world.api.edit(
            QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling={**SLEEPS, "schedules": [day]})
        )
        await world.pass_time(500)
        assert world.scaling() == (0, Reason.ASLEEP), "it is 01:08 in Berlin"
        await world.pass_time(130)
        assert world.replicas() == {0: True, 1: True}, "nobody asked for it"
        assert world.scaling() == (2, Reason.STEADY)
        sets = "the schedule day sets minReplicas 2 and maxReplicas 3 until 2026-01-01T01:20:00Z"
        assert world.qd()["status"]["scaling"]["schedules"] == ["day"]
        assert sets in verdict(world, "ScalingActive")["message"]

        clock.advance(3600)
        await world.pass_time(400)
        assert world.replicas() == {0: True, 1: True}, "the schedule is in force, and nobody asks"
        await world.pass_time(400)
        assert world.replicas() == {}
        assert world.scaling() == (0, Reason.ASLEEP)
        assert "schedules" not in world.qd()["status"]["scaling"]


async def test_a_new_leader_names_the_schedules_once() -> None:
    clock = Clock()
    async with scaled([Engine(clock, running=1)], clock) as world:
        day = {"name": "day", "start": "0 0 * * *", "end": "20 1 * * *", "maxReplicas": 2}
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling={**SIZES, "schedules": [day]}))
        await world.pass_time(20)
        message = verdict(world, "ScalingActive")["message"]
        assert "; the schedule day sets minReplicas 1 and maxReplicas 2 until" in message
        for _ in range(2):
            await world.new_leader()
            await world.pass_time(20)
            assert verdict(world, "ScalingActive")["message"] == message
