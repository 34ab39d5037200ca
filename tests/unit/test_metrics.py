"""The operator's own metrics: what a deployment is, what happened to it, and that nothing stays of a deleted one."""

from __future__ import annotations

import ast
import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

import qwen_operator
from qwen_operator.controller.cache import Store
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.endpoints import MetricsPage
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.logkeys import LogKey
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource
from qwen_operator.metrics.process import OperatorMetrics
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling.attainment import Share
from qwen_operator.scaling.demand import ModelDemand
from qwen_operator.scaling.types import EngineLoad, Sample
from tests.unit.fakes import Clock

CHAT = ("team", "chat")


def deployment(name: str = "chat", spec: Manifest | None = None, **status: Any) -> Manifest:
    return {
        "metadata": {"name": name, "namespace": "team", "uid": name},
        "spec": {"model": "Qwen/Qwen1.5-7B-Chat", **(spec or {})},
        "status": status,
    }


def pod(index: int, node: str = "gpu-1", *, draining: bool = False, phase: str = "Running") -> Manifest:
    annotations = {"qwen-operator.dev/owner-uid": "chat"}
    if draining:
        annotations["qwen-operator.dev/draining-since"] = "2026-01-01T00:00:00Z"
    labels = {"qwen-operator.dev/deployment": "chat", "qwen-operator.dev/role": "engine"}
    meta = {"name": f"chat-0a1b2c3d-{index}", "namespace": "team", "uid": f"p{index}", "labels": labels}
    return {
        "metadata": {**meta, "annotations": annotations},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase},
    }


@dataclass
class World:
    store: Store = field(default_factory=Store)
    samples: dict[ObjectKey, Sample] = field(default_factory=dict)
    ages: dict[ObjectKey, float] = field(default_factory=dict)
    held: dict[ObjectKey, ModelDemand] = field(default_factory=dict)
    shares: dict[ObjectKey, dict[str, Share]] = field(default_factory=dict)
    leading: bool = True
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        load = LoadSource(
            lambda: self.samples, lambda: self.ages, lambda: self.held, lambda key: self.shares.get(key, {})
        )
        self.deployments = DeploymentMetrics(self.store, load, lambda: self.leading, self.clock.now)
        self.page = MetricsPage(CollectorRegistry(), self.deployments.slices, clock=itertools.count().__next__)

    def value(self, name: str, **labels: str) -> float | None:
        """The value in the text of the page."""
        asked = {"namespace": "team", "deployment": "chat", **labels}
        samples = [one for family in text_string_to_metric_families(self.text()) for one in family.samples]
        return next((one.value for one in samples if (one.name, one.labels) == (name, asked)), None)

    def text(self) -> str:
        """A new page."""
        self.page = replace(self.page, _task=None)
        return asyncio.run(self.page.body()).decode()


@pytest.fixture
def world() -> World:
    return World()


PLAN = {
    "hash": "0a1b2c3d",
    "gpuProduct": "H100",
    "gpusPerReplica": 2,
    "parallelism": {"tensor": 2},
    "kvTokens": 1000,
    "startupSeconds": 90,
    "engineVersion": "0.5.23",
}


def test_slices_do_not_count_as_gpus(world: World) -> None:
    plan = {**PLAN, "gpusPerReplica": 1, "resourceName": "nvidia.com/mig-3g.40gb", "share": "MIG"}
    world.store.update(QWENDEPLOYMENTS, deployment(plan=plan, readyReplicas=1))
    world.store.update(PODS, pod(0))
    world.store.update(PODS, pod(1))
    slices = {"resource": "nvidia.com/mig-3g.40gb"}
    assert world.value("qwen_deployment_gpu_shares", **slices, state="allocated") == 2
    assert world.value("qwen_deployment_gpu_shares", **slices, state="ready") == 1
    assert world.value("qwen_deployment_gpus", state="allocated") is None


def test_a_deployment_in_numbers(world: World) -> None:
    scaling = {"scaling": {"minReplicas": 2, "maxReplicas": 5}}
    conditions = [{"type": "Ready", "status": "True", "reason": "Serving"}]
    model = {"quantization": "gptq 4 bit"}
    status: Manifest = {"plan": PLAN, "model": model, "conditions": conditions, "readyReplicas": 1}
    world.store.update(QWENDEPLOYMENTS, deployment(spec=scaling, **status, scaling={"wanted": 4, "granted": 3}))
    for one in (pod(0), pod(1), pod(2, node=""), pod(3, draining=True), pod(4, phase="Failed")):
        world.store.update(PODS, one)
    world.samples[CHAT] = Sample(0.0, (EngineLoad("a", "p0", 3, 4, 50, 900), EngineLoad("b", "p1", 1, 0, 5, 800)))
    world.ages[CHAT] = 1.5

    info = {"model": "Qwen/Qwen1.5-7B-Chat", "gpu_product": "H100", "tensor": "2", "quantization": "gptq 4 bit"}
    assert world.value("qwen_deployment_info", **info, engine_version="0.5.23", revision="0a1b2c3d") == 1
    assert world.value("qwen_deployment_condition", type="Ready", status="True", reason="Serving") == 1
    replicas = {"wanted": 4, "limited": 3, "granted": 2, "ready": 1, "starting": 2, "draining": 1}
    assert {state: world.value("qwen_deployment_replicas", state=state) for state in replicas} == replicas
    assert world.value("qwen_deployment_gpus", state="allocated") == 6
    assert world.value("qwen_deployment_gpus", state="ready") == 2
    numbers = {
        "replicas_min": 2,
        "replicas_max": 5,
        "queue_requests": 4,
        "running_requests": 4,
        "kv_used_tokens": 55,
        "kv_capacity_tokens": 1700,
        "observed_kv_tokens": 800,
        "plan_kv_tokens": 1000,
        "plan_startup_seconds": 90,
        "metrics_age_seconds": 1.5,
    }
    assert {name: world.value(f"qwen_deployment_{name}") for name in numbers} == numbers


@pytest.mark.parametrize(("revision", "ratio"), [("0a1b2c3d", 0.8), ("other", None)])
def test_what_engines_report_is_compared_with_their_own_plan(world: World, revision: str, ratio: float | None) -> None:
    seen = {"hash": revision, "kvTokens": 800, "weightBytes": 7, "freeMemoryBytes": 5, "startupSeconds": 120}
    world.store.update(QWENDEPLOYMENTS, deployment(plan=PLAN, observed=seen))
    assert world.value("qwen_deployment_plan_kv_tokens_ratio") == ratio
    names = ("weight_bytes", "free_memory_bytes", "startup_seconds")
    values = [world.value(f"qwen_deployment_observed_{name}") for name in names]
    assert values == ([7, 5, 120] if ratio else [None, None, None])


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [
        ({}, 1, 1),
        ({"replicas": 3}, 3, 3),
        ({"replicas": 0, "scaling": {"maxReplicas": 5}}, 0, 0),
        ({"scaling": {"maxReplicas": 5}}, 1, 5),
    ],
)
def test_between_which_sizes(world: World, spec: Manifest, least: int, most: int) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment(spec=spec))
    assert world.value("qwen_deployment_replicas_min") == least
    assert world.value("qwen_deployment_replicas_max") == most


def test_what_waits_in_the_gateway(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment())
    world.held[CHAT] = ModelDemand(3, 12.5, 0.1)
    assert world.value("qwen_deployment_held_requests") == 3
    assert world.value("qwen_deployment_oldest_held_request_seconds") == 12.5


def test_how_many_requests_kept_the_objective(world: World) -> None:
    scaling = {"scaling": {"maxReplicas": 5, "objective": {"attainmentPercent": 95}}}
    world.store.update(QWENDEPLOYMENTS, deployment(spec=scaling))
    world.shares[CHAT] = {"hour": Share(200, 0.995, 0.99), "day": Share(9000, 0.75, None)}
    names = ("timeToFirstToken", "timePerOutputToken", "all")
    for window, percents in (("hour", (99.5, 99.0, 98.5)), ("day", (75.0, None, 75.0))):
        values = [world.value("qwen_deployment_attainment_percent", window=window, limit=name) for name in names]
        assert values == [percent if percent is None else pytest.approx(percent) for percent in percents]
    assert world.value("qwen_deployment_attainment_requests", window="hour") == 200
    assert world.value("qwen_deployment_objective_percent") == 95


def test_what_is_not_known_is_left_out(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment())
    text = world.text()
    assert 'state="limited"' not in text
    unknown = ("plan_kv_tokens", "queue_requests", "observed_kv_tokens", "metrics_age_seconds", "condition")
    for name in (*unknown, "held_requests", "oldest_held_request_seconds"):
        assert f"qwen_deployment_{name}" not in text


def test_sizes_and_ends_of_engines_are_counted_from_what_is_written(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment())
    died = {"reason": "CudaOutOfMemory", "time": "t1", "pod": "p", "count": 1}
    steps: list[Manifest] = [
        {},
        {"scaling": {"wanted": 1, "reason": "Steady"}},
        {"scaling": {"wanted": 3, "reason": "ScalingUp"}, "lastFailure": died},
        {"scaling": {"wanted": 3, "reason": "Steady"}, "lastFailure": died},
        {"scaling": {"wanted": 2, "reason": "ScalingDown"}, "lastFailure": {**died, "time": "t2", "count": 2}},
        {},
    ]
    for old, new in itertools.pairwise(steps):
        world.deployments.count_changes(CHAT, old, new)
    assert world.value("qwen_deployment_scale_total", direction="up", reason="ScalingUp") == 1
    assert world.value("qwen_deployment_scale_total", direction="down", reason="ScalingDown") == 1
    assert world.value("qwen_deployment_scale_total", direction="up", reason="Steady") is None
    assert world.value("qwen_deployment_engine_failures_total", reason="CudaOutOfMemory") == 2


def fetched(index: int, count: int, finished: str) -> Manifest:
    ended = {"exitCode": 0, "finishedAt": finished, "message": f'{{"version": 1, "hubBytes": {count}}}'}
    one = pod(index)
    return one | {
        "status": one["status"] | {"initContainerStatuses": [{"name": "fetch", "state": {"terminated": ended}}]}
    }


def test_a_fetch_counts_once_and_only_in_the_process_that_saw_it_end(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment(plan=PLAN))
    for index, count, finished in ((0, 7, "2999-01-01"), (1, 0, "2999-01-01"), (2, 9, "2001-01-01")):
        world.store.update(PODS, fetched(index, count, f"{finished}T00:00:00Z"))
    for _ in range(2):
        assert world.value("qwen_deployment_model_fetches_total", result="miss") == 1
        assert world.value("qwen_deployment_model_fetches_total", result="hit") == 1
        assert world.value("qwen_deployment_model_fetched_bytes_total") == 7
    world.store.remove(PODS, pod(0))
    assert world.value("qwen_deployment_model_fetched_bytes_total") == 7
    world.store.remove(QWENDEPLOYMENTS, deployment())
    assert 'deployment="chat"' not in world.text()


def gpu_seconds(world: World) -> dict[str, float]:
    """By phase, on a new page."""
    samples = [one for family in text_string_to_metric_families(world.text()) for one in family.samples]
    return {one.labels["phase"]: one.value for one in samples if one.name == "qwen_deployment_gpu_seconds_total"}


def test_gpus_are_counted_by_what_they_did_since_the_last_page(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment(plan=PLAN))
    up = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "engine", "started": True}],
    }
    for one in (pod(0), pod(1), pod(2), pod(3, node=""), pod(4, draining=True)):
        ready = one["metadata"]["uid"] in ("p0", "p1")
        world.store.update(PODS, one | {"status": one["status"] | (up if ready else {})})
    world.samples[CHAT] = Sample(0.0, (EngineLoad("a", "p0", 3, 4, 50, 900), EngineLoad("b", "p1", 0, 0, 5, 800)))
    assert gpu_seconds(world) == {}
    world.clock.advance(10)
    assert gpu_seconds(world) == {"serving": 20, "idle": 20, "loading": 20, "draining": 20}
    world.samples[CHAT] = Sample(0.0)
    assert gpu_seconds(world) == {"serving": 20, "idle": 20, "loading": 20, "draining": 20}, "no time has passed"
    world.clock.advance(5)
    assert gpu_seconds(world)["serving"] == 40, "an engine that tells nothing may be busy"
    world.leading = False
    assert gpu_seconds(world) == {}
    world.clock.advance(1000)
    world.leading = True
    assert gpu_seconds(world)["serving"] == 40, "another process has counted meanwhile"
    world.clock.advance(100_000)
    assert gpu_seconds(world)["serving"] == 40 + 4 * 600, "nobody knows what happened in so long a gap"


def test_nothing_stays_of_a_deleted_deployment(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment(plan=PLAN))
    failure = {"reason": "Hung", "time": "t", "pod": "p"}
    world.deployments.count_changes(CHAT, {}, {"lastFailure": failure})
    world.samples[CHAT] = Sample(0.0)
    assert 'deployment="chat"' in world.text()
    world.store.remove(QWENDEPLOYMENTS, deployment())
    assert 'deployment="chat"' not in world.text()
    world.store.update(QWENDEPLOYMENTS, deployment())
    assert world.value("qwen_deployment_engine_failures_total", reason="Hung") is None


def test_who_stands_by_says_nothing_about_deployments(world: World) -> None:
    world.store.update(QWENDEPLOYMENTS, deployment(plan=PLAN))
    world.leading = False
    assert world.text() == ""


def test_many_deployments_have_one_head_for_each_family_and_all_their_lines(world: World) -> None:
    for number in range(25):
        world.store.update(QWENDEPLOYMENTS, deployment(f"d{number}", plan=PLAN))
    lines = world.text().splitlines()
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads))
    assert sum(line.startswith("qwen_deployment_info{") for line in lines) == 25
    families = [line.partition("{")[0] for line in lines if not line.startswith("#")]
    assert [name for name, _ in itertools.groupby(families)] == list(dict.fromkeys(families))


@dataclass
class Slow:
    """Slices that count how often they were asked for; each takes a second of the page's clock."""

    now: float = 0.0
    renderings: int = 0
    seen: list[int] = field(default_factory=list)

    def slices(self) -> Iterator[list[Metric]]:
        self.renderings += 1
        for number in range(3):
            self.now += 1
            family = GaugeMetricFamily("m", "text", labels=("n",))
            family.add_metric((str(number),), self.renderings)
            yield [family]


async def test_scrapes_at_the_same_time_share_one_rendering_that_gives_way() -> None:
    slow = Slow()
    page = MetricsPage(CollectorRegistry(), slow.slices, lambda: slow.now)
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while turns < 100:
            turns += 1
            await asyncio.sleep(0)

    work = asyncio.create_task(other_work())
    gone = asyncio.create_task(page.body())
    await asyncio.sleep(0)
    gone.cancel()
    bodies = await asyncio.gather(*(page.body() for _ in range(50)))
    assert turns >= 3
    assert slow.renderings == 1
    assert len(set(bodies)) == 1
    assert bodies[0].decode().splitlines()[2:] == ['m{n="0"} 1.0', 'm{n="1"} 1.0', 'm{n="2"} 1.0']
    # A page is served for ten times as long as it took.
    slow.now += 29
    assert await page.body() == bodies[0]
    slow.now += 2
    assert await page.body() != bodies[0]
    await work


async def test_a_rendering_that_fails_is_tried_again() -> None:
    fails = [True]

    def slices() -> Iterator[list[Metric]]:
        if fails.pop():
            raise OSError("no")
        yield []

    page = MetricsPage(CollectorRegistry(), slices)
    with pytest.raises(OSError, match="no"):
        await page.body()
    fails.append(False)
    assert await page.body() == b""


def test_the_machine_in_numbers() -> None:
    clock, leading = Clock(), [False]
    queue = WorkQueue(clock=clock.monotonic, random=lambda: 0.5)
    metrics = OperatorMetrics()
    metrics.follow(queue, lambda: leading[0], lambda: 2.1)
    queue.add(CHAT)
    clock.advance(7)
    metrics.reconciled("acted", 0.1)
    metrics.failed("Forbidden")

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"qwen_operator_{name}", labels)

    assert (value("leader"), value("queue_depth"), value("queue_age_seconds")) == (0, 0, 0)
    leading[0] = True
    assert (value("leader"), value("queue_depth"), value("queue_age_seconds")) == (1, 1, 7)
    assert value("reconciles_total", outcome="acted") == 1
    assert value("reconcile_seconds_count") == 1
    assert value("reconcile_errors_total", reason="Forbidden") == 1
    assert value("build_info", version=qwen_operator_version()) == 1
    assert metrics.registry.get_sample_value("process_cpu_seconds_total") is not None


def qwen_operator_version() -> str:
    from importlib.metadata import version

    return version("qwen-operator")


def _logged(tree: ast.AST) -> Iterator[tuple[int, str | None]]:
    """Line and key of everything that a log call gives as `extra`; None for what is not a constant."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for keyword in call.keywords:
            if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
                for key in keyword.value.keys:
                    if isinstance(key, ast.Constant):
                        yield call.lineno, str(key.value)
            elif keyword.arg == "extra":
                yield call.lineno, None


def test_log_lines_use_the_keys_of_the_enum_and_none_is_left_unused() -> None:
    root = Path(str(qwen_operator.__file__)).parent
    used = {"deployment"}
    for file in root.rglob("*.py"):
        for line, key in _logged(ast.parse(file.read_text(encoding="utf-8"))):
            assert key in set(LogKey), f"{file.relative_to(root)}:{line} logs {key!r}"
            used.add(str(key))
    assert used == set(LogKey)
