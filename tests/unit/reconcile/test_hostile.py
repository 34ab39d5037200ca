"""What one object, pod or engine holds ends no loop, and its own status tells it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from qwen_operator.api.conditions import Reason
from qwen_operator.controller.cache import Store
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.endpoints import MetricsPage
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.kube.mirror import Mirror
from qwen_operator.manifests.names import Owner, metadata
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource
from qwen_operator.metrics.process import OperatorMetrics
from qwen_operator.replicas.pod_state import read_pod
from qwen_operator.replicas.scaling_view import scaled_deployments
from qwen_operator.routing.membership import EntryNaming, GatewayView, Membership, advance
from qwen_operator.scaling.page import Reading, Trouble
from tests.unit.fakes import Clock, FakeKube
from tests.unit.fuzz.values import NASTY, nested
from tests.unit.scaling.world import read_page
from tests.unit.world import change, deployment, ready_status, settled

MESSAGES = [value for value in NASTY if isinstance(value, str)]


def restarting(message: Any, **container: Any) -> Manifest:
    """A pod whose engine wrote this termination message."""
    end = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-11-24T12:00:00Z"}
    engine = {
        "name": "engine",
        "restartCount": 4,
        "state": {"running": {}},
        "lastState": {"terminated": end},
        **container,
    }
    scheduled = {"type": "PodScheduled", "status": "True"}
    return {"phase": "Running", "conditions": [scheduled], "containerStatuses": [engine]}


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
async def test_a_hostile_termination_message_is_told_and_the_object_can_be_changed(message: str) -> None:
    world = await settled(deployment())
    [pod] = world.api.all(PODS)
    name = pod["metadata"]["name"]
    world.kubelet.engine = lambda _pod: restarting(message)
    world.api.edit(PODS, name, lambda item: item.update(status=restarting(message)))
    await world.settle()
    assert world.conditions()["Ready"] == ("False", Reason.UNKNOWN)
    status = world.qd()["status"]
    assert status["lastFailure"]["pod"] == name
    assert all(line.isprintable() and line.encode("utf-8") for line in status["lastFailure"]["log"])
    change(world, replicas=0)
    await world.settle(1200)
    assert world.names() == []
    assert world.operator.outcomes["crash"] == 0


async def test_a_deep_object_gets_its_status_and_the_next_one_is_served() -> None:
    bad = deployment("bad", pod={"affinity": nested(60)})
    world = await settled(bad, deployment("good", servedNames=["good"]))
    assert world.conditions("bad")["Planned"] == ("False", Reason.INVALID_SPEC)
    assert "spec.pod.affinity: the object has 60 levels, it must have at most 32" in world.message("Planned", "bad")
    assert world.conditions("good")["Ready"] == ("True", Reason.SERVING)


MALFORMED: list[Any] = [
    {},
    {"metadata": []},
    {"metadata": {"name": 7}},
    {"metadata": {"name": "p", "namespace": "n", "uid": {}}},
    {"metadata": {"name": "p", "namespace": "n", "labels": {"a": 1}}},
    {"metadata": {"name": "p", "namespace": "n", "annotations": ["a"]}},
    {"metadata": {"name": "p", "namespace": "n", "resourceVersion": 7}},
]


def test_the_intake_counts_what_is_no_object_and_stores_the_others() -> None:
    store, metrics = Store(), OperatorMetrics()
    intake = Intake(store, WorkQueue(clock=Clock().monotonic, random=lambda: 0.0), metrics.skipped)
    good = {**deployment(), "metadata": {"name": "q", "namespace": "n", "uid": "u", "resourceVersion": "2"}}
    intake.listed(QWENDEPLOYMENTS, None, [*MALFORMED, good], "2")
    for item in MALFORMED:
        intake.event(PODS, "ADDED", item)
    assert [item["metadata"]["name"] for item in store.all(QWENDEPLOYMENTS)] == ["q"]
    value = metrics.registry.get_sample_value
    assert value("qwen_operator_skipped_objects_total", {"resource": "qwendeployments"}) == len(MALFORMED)
    assert value("qwen_operator_skipped_objects_total", {"resource": "pods"}) == len(MALFORMED)


@pytest.mark.parametrize("version", ["²", "9" * 5000, "x", ""])
def test_a_version_that_is_no_number_counts_as_none(version: str) -> None:
    store = Store()
    meta = {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": version}
    assert store.update(PODS, {"metadata": meta}) is not None


async def test_the_mirror_keeps_what_is_an_object() -> None:
    seen: list[int] = []
    mirror = Mirror(_Listing(FakeKube(Clock())), PODS, None, "", lambda objects: seen.append(len(objects)))
    await mirror._list()
    assert seen == [1]


class _Listing:
    """An API server with one pod and much that is none."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kube, name)

    async def list(self, *_args: Any) -> tuple[list[Any], str]:
        return [*MALFORMED, {"metadata": {"name": "p", "namespace": "n"}}], "1"


def test_one_deployment_that_scaling_cannot_read_is_left_out() -> None:
    def replicas(item: Manifest) -> tuple[()]:
        if item["metadata"]["name"] == "bad":
            raise RecursionError
        return ()

    items = [deployment("bad"), deployment("good")]
    for item in items:
        item["metadata"]["uid"] = "u"
    skipped: list[str] = []
    readable = list(scaled_deployments(items, replicas, skipped=lambda key, _error: skipped.append(key[1])))
    assert [item.key[1] for item in readable] == ["good"]
    assert skipped == ["bad"]


def test_one_pod_that_the_agent_cannot_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(pod: Manifest, name: str) -> Any:
        if pod["metadata"]["uid"] == "bad":
            raise OverflowError
        return read_pod(pod, name)

    monkeypatch.setattr("qwen_operator.routing.membership.read_pod", picky)
    qd = deployment()
    qd["metadata"]["uid"] = "q"
    qd["status"] = {"names": {"uid": "q", "held": [{"name": qd["spec"]["model"], "since": "2026-01-01T00:00:00Z"}]}}
    labels = {"qwen-operator.dev/deployment": "chat", "qwen-operator.dev/routable": "true"}
    owner = Owner("chat", "team", "q")
    pods = [
        {
            "metadata": {**metadata(owner, f"chat-0a1b2c3d-{index}", labels), "uid": uid},
            "status": {**ready_status({}), "podIP": f"10.0.0.{index + 1}"},
        }
        for index, uid in enumerate(("bad", "good"))
    ]
    advanced = advance(GatewayView([qd], pods, None), Membership(), EntryNaming(nonce="n", cluster_domain="c"))
    assert [entry.uid for entry in advanced.entries] == ["good"]
    assert [str(drop.reason) for drop in advanced.dropped] == ["Unreadable"]


STATUSES: list[Any] = [
    {"conditions": [{"type": "Ready"}, {}], "readyReplicas": "x", "plan": {"kvTokens": "many", "gpusPerReplica": []}},
    {"plan": {"kvTokens": 10**400, "startupSeconds": float("nan")}, "scaling": {"wanted": -(10**30)}},
    {"plan": {"parallelism": {"tensor": "\ud800"}, "gpuProduct": "\x00" * 9000}},
    [],
]


@pytest.mark.parametrize("status", STATUSES, ids=range(len(STATUSES)))
def test_one_status_does_not_break_the_metrics_page(status: Any) -> None:
    store = Store()
    for name, its in (("bad", status), ("good", {"readyReplicas": 1, "scaling": {"wanted": 1}})):
        meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"}
        store.update(QWENDEPLOYMENTS, {**deployment(name), "metadata": meta, "status": its})
    deployments = DeploymentMetrics(store, LoadSource(dict, dict), lambda: True)
    page = asyncio.run(MetricsPage(CollectorRegistry(), deployments.slices).body()).decode()
    assert 'qwen_deployment_replicas{deployment="good",namespace="team",state="wanted"} 1.0' in page
    assert 'state="wanted"} 1.0' in page


RUNNING = "sglang:num_running_reqs"
PAGES = {
    "4 MB of labels": RUNNING + "{" + ",".join(f'l{index}="v"' for index in range(400_000)) + "} 1",
    "500 KB of escapes": RUNNING + '{a="' + '\\"' * 250_000 + '"} 1',
    "lines of 4 KB": "\n".join([RUNNING + '{a="' + "\\\\" * 2000 + '"} 1'] * 100),
    "many lines": "\n".join([RUNNING + " 1"] * 40_000),
    "empty lines": "\n" * 500_000,
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_nasty_page_is_refused_in_time(page: str) -> None:
    start = time.process_time()
    assert isinstance(read_page(page, ""), Trouble)
    # On a quiet machine these are 10 ms.
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("value", ["8e307", "9" * 400, "1e16", "NaN", "-1", "Inf"])
def test_absurd_numbers_are_refused_and_an_absurd_beat_is_no_beat(value: str) -> None:
    numbers = {"num_running_reqs": "1", "num_queue_reqs": "2", "num_used_tokens": "3", "max_total_num_tokens": "4"}
    good = "\n".join(f"sglang:{name} {number}" for name, number in numbers.items())
    for name in numbers:
        result = read_page("\n".join(f"sglang:{key} {value if key == name else 1}" for key in numbers), "")
        assert isinstance(result, Trouble), name
    ticking = read_page(f"{good}\nsglang:scheduler_process_cpu_seconds_total {value}", "")
    assert isinstance(ticking, Reading)
    assert (ticking.ticking, ticking.beat) == (False, 0)
