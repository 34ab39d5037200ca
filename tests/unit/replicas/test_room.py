"""Room: quotas that are too small, pools without nodes, and the budget that protects what serves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest

from qwen_operator.actions.types import ActionReason, Create, Kind
from qwen_operator.hardware.inventory import GpuPool
from qwen_operator.kube import NODES, POD_DISRUPTION_BUDGETS, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest
from qwen_operator.replicas.quotas import usage, within_quotas
from tests.unit.world import CONFIG, World, deployment, node, ready_status


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": "team"},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": used or {}},
    }


def pod(name: str = "chat-1", **resources: Any) -> Create:
    container = {"name": "engine", "resources": resources}
    first = {"name": "runtime", "resources": {"requests": {"cpu": "2", "memory": "32Mi"}}}
    spec = {"containers": [container], "initContainers": [first]}
    return Create(Kind.POD, {"metadata": {"name": name}, "spec": spec}, ActionReason.REPLICA_MISSING)


GPUS: dict[str, Any] = {
    "requests": {"cpu": "500m", "memory": "2Gi", "nvidia.com/gpu": "4"},
    "limits": {"nvidia.com/gpu": "4"},
}


@dataclass(frozen=True)
class Case:
    hard: dict[str, str]
    used: dict[str, str]
    says: tuple[str, ...]
    spec: dict[str, Any]


CASES = {
    "room": Case({"requests.nvidia.com/gpu": "8"}, {"requests.nvidia.com/gpu": "4"}, (), {}),
    "no room": Case(
        {"requests.nvidia.com/gpu": "8"},
        {"requests.nvidia.com/gpu": "6"},
        ('"gpus"', "8 requests.nvidia.com/gpu", "6 are used", "needs 4"),
        {},
    ),
    "nothing used yet": Case({"requests.nvidia.com/gpu": "2"}, {}, ("0 are used", "needs 4"), {}),
    "pods": Case({"pods": "3"}, {"pods": "3"}, ("3 pods", "needs 1"), {}),
    "count": Case({"count/pods": "0"}, {}, ("count/pods",), {}),
    "memory": Case({"requests.memory": "3Gi"}, {"requests.memory": "2Gi"}, ("needs 2Gi",), {}),
    "short name": Case({"memory": "1Gi"}, {}, ("1Gi memory",), {}),
    "the largest init container": Case({"cpu": "1900m"}, {}, ("needs 2",), {}),
    "limits": Case({"limits.nvidia.com/gpu": "3"}, {}, ("limits.nvidia.com/gpu",), {}),
    "not asked for": Case({"limits.cpu": "0"}, {}, (), {}),
    "no quantity": Case({"pods": "many"}, {}, (), {}),
    "scoped": Case({"pods": "0"}, {}, (), {"scopes": ["Terminating"]}),
    "scope selector": Case({"pods": "0"}, {}, (), {"scopeSelector": {"matchExpressions": []}}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_quota_has_room_or_says_in_numbers_why_not(case: Case) -> None:
    kept, message = within_quotas([pod(**GPUS)], [quota(case.hard, case.used, **case.spec)])
    assert bool(kept) == (not case.says)
    assert all(text in (message or "") for text in case.says), message
    assert (message is None) == (not case.says)


def test_pods_that_are_granted_count_and_other_actions_pass() -> None:
    budget = Create(Kind.POD_DISRUPTION_BUDGET, {"metadata": {"name": "s"}, "spec": {}}, ActionReason.BUDGET_MISSING)
    actions = [pod("a", **GPUS), budget, pod("b", **GPUS), pod("c", **GPUS)]
    kept, message = within_quotas(actions, [quota({"requests.nvidia.com/gpu": "8"})])
    assert [action.manifest["metadata"]["name"] for action in kept if isinstance(action, Create)] == ["a", "s", "b"]
    assert message is not None
    assert "c needs 4" in message


def test_fractions_are_whole_numbers() -> None:
    assert usage(pod(requests={"cpu": "2500m"}).manifest)["requests.cpu"] == Decimal("2.5")
    _, message = within_quotas([pod(requests={"cpu": "2500m"})], [quota({"cpu": "2"})])
    assert message is not None
    assert "needs 2500m" in message


async def test_no_pod_is_made_that_a_quota_forbids_and_it_goes_on_by_itself() -> None:
    world = await World().start()
    world.api.put(RESOURCE_QUOTAS, quota({"requests.nvidia.com/gpu": "1"}, {"requests.nvidia.com/gpu": "1"}))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert world.names() == []
    assert world.conditions()["Ready"] == ("False", "QuotaExceeded")
    assert world.conditions()["Reconciling"] == ("True", "QuotaExceeded")
    assert "Stalled" not in world.conditions()
    assert world.events()["QuotaExceeded"] == 1
    assert all(write.resource != PODS for write in world.api.writes)

    world.api.edit(
        RESOURCE_QUOTAS, "gpus", lambda item: item["status"]["hard"].update({"requests.nvidia.com/gpu": "2"})
    )
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_quota_of_another_namespace_is_none_of_ours() -> None:
    world = await World().start()
    other = quota({"pods": "0"})
    other["metadata"]["namespace"] = "other"
    world.api.put(RESOURCE_QUOTAS, other)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_an_inspection_waits_for_a_quota_too() -> None:
    world = await World().start()
    world.api.put(RESOURCE_QUOTAS, quota({"pods": "0"}))
    world.api.put(QWENDEPLOYMENTS, deployment(source={"uri": "pvc://weights/chat"}, model="local"))
    await world.settle()
    assert world.names() == []
    assert world.conditions()["Ready"] == ("False", "QuotaExceeded")
    assert "Stalled" not in world.conditions()
    world.api.put(RESOURCE_QUOTAS, quota({"pods": "5"}))
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


@pytest.mark.parametrize(
    ("products", "pools"), [([], ["a", "b"]), (["NVIDIA-B200"], ["b"])], ids=["any", "one product"]
)
async def test_an_inspection_goes_to_the_pools_that_the_spec_allows(products: list[str], pools: list[str]) -> None:
    declared = [
        GpuPool(name, product, 183_000, 8, {"pool": name}, ({"key": name, "operator": "Exists"},))
        for name, product in (("a", "NVIDIA-A"), ("b", "NVIDIA-B200"))
    ]
    world = World(config=replace(CONFIG, pools=tuple(declared), read_nodes=False))
    await world.start()
    claim: dict[str, Any] = {"source": {"uri": "pvc://weights/chat"}, "model": "local"}
    world.api.put(QWENDEPLOYMENTS, deployment(**claim, hardware={"products": products}))
    await world.operator.step()
    [pod] = world.api.all(PODS)
    keys = [toleration["key"] for toleration in pod["spec"]["tolerations"]]
    assert [key for key in keys if key in "ab"] == pools
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = [term["matchExpressions"][0]["values"] for term in required["nodeSelectorTerms"]]
    assert terms == [[name] for name in pools]


async def test_a_size_that_a_quota_forbids_is_a_limit_and_no_outage() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()
    world.api.put(RESOURCE_QUOTAS, quota({"pods": "2"}, {"pods": "2"}))
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=3))
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["ScalingLimited"] == ("True", "QuotaExceeded")
    assert "Degraded" not in world.conditions()
    assert world.qd()["status"]["summary"] | {"message": "", "gpus": ""} == {
        "ready": "2/3",
        "status": "ScalingUp",
        "load": "-",
        "message": "",
        "gpus": "",
    }


UNSCHEDULED: Manifest = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient nvidia.com/gpu."}],
}


@pytest.mark.parametrize(
    ("exists", "readable", "reason"),
    [(False, True, "WaitingForNode"), (True, True, "WaitingForGpus"), (False, False, "WaitingForGpus")],
    ids=["no node", "full nodes", "nodes unknown"],
)
async def test_a_pool_without_nodes_is_told_from_one_that_is_full(exists: bool, readable: bool, reason: str) -> None:
    pool = GpuPool("big", "NVIDIA-B200", 183_000, 8, {"pool": "big"})
    world = World(config=replace(CONFIG, pools=(pool,), read_nodes=readable))
    world.kubelet.engine = lambda item: ready_status(item) if item["spec"].get("nodeName") else UNSCHEDULED
    if exists:
        world.api.put(NODES, node("b", product="NVIDIA-B200", memory=183_000))
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(hardware={"products": ["NVIDIA-B200"]}))
    await world.wait(10)
    assert world.conditions()["Ready"] == ("False", reason)
    assert world.conditions()["Reconciling"] == ("True", reason)


# The budget.


async def test_the_budget_asks_for_all_wanted_replicas_and_is_written_only_when_their_number_changes() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()

    def spec() -> Manifest:
        budget: Manifest = world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]
        return budget

    assert spec()["minAvailable"] == 2
    world.api.remove(world.api.one(PODS, world.names()[0]), PODS)
    await world.settle()

    def scale(to: int) -> None:
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=to))

    for replicas in (3, 0, 1):
        scale(replicas)
        await world.settle()
        assert spec()["minAvailable"] == replicas
    writes = [write.verb for write in world.api.writes if write.resource == POD_DISRUPTION_BUDGETS]
    assert writes == ["create", "patch", "patch", "patch"]


async def test_nothing_to_protect_needs_no_budget() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=0))
    await world.settle()
    assert world.names(POD_DISRUPTION_BUDGETS) == []


@pytest.mark.parametrize(("replicas", "budget"), [(1, None), (3, 2)])
async def test_where_cordons_cannot_be_seen_a_drain_may_take_one_at_a_time(replicas: int, budget: int | None) -> None:
    pool = GpuPool("h", "NVIDIA-H100-80GB-HBM3", 81559, 8)
    world = await World(config=replace(CONFIG, pools=(pool,), read_nodes=False)).start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas))
    await world.settle()
    least = [item["spec"]["minAvailable"] for item in world.api.all(POD_DISRUPTION_BUDGETS)]
    assert least == ([] if budget is None else [budget])


async def test_the_counting_of_the_disruption_controller_is_no_news() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    steps = world.operator.outcomes.total()
    counted = {"currentHealthy": 1, "disruptionsAllowed": 0}
    world.api.edit(POD_DISRUPTION_BUDGETS, "chat-engine", lambda item: item.update(status=counted))
    await world.wait(3)
    assert world.operator.outcomes.total() == steps


@pytest.mark.parametrize(
    "edit",
    [
        {"minAvailable": 0},
        {"maxUnavailable": 1, "minAvailable": None},
        {"selector": {"matchLabels": {"a": "b"}}},
        {"unhealthyPodEvictionPolicy": "IfHealthyBudget"},
    ],
    ids=lambda edit: next(iter(edit)),
)
async def test_an_edited_budget_is_put_right(edit: dict[str, Any]) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    before = world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]

    def edited(item: Manifest) -> None:
        item["spec"] = {key: value for key, value in {**item["spec"], **edit}.items() if value is not None}

    world.api.edit(POD_DISRUPTION_BUDGETS, "chat-engine", edited)
    await world.settle()
    assert world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"] == before
