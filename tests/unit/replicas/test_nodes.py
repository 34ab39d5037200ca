"""Nodes that are cordoned, drained, silent, gone: replacements first, and no drain that never ends."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.kube import EVENTS, NODES, POD_DISRUPTION_BUDGETS, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest
from qwen_operator.replicas.node_health import NodeHealth, node_health, stays_when_cordoned
from tests.unit.world import World, change, deployment, node, ready_status

ROUTABLE = "qwen-operator.dev/routable"
CORDONED = "qwen-operator.dev/cordoned-since"


async def placed(replicas: int = 1, nodes: int = 2, **spec: Any) -> World:
    """Serving replicas on as many nodes."""
    world = await World().start()
    world.kubelet.place = True
    for number in range(2, nodes + 1):
        world.api.put(NODES, node(f"gpu-{number}"))
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas, **spec))
    await world.settle()
    return world


def cordon(world: World, name: str = "gpu-1", on: bool = True) -> None:
    world.api.edit(NODES, name, lambda item: item["spec"].update(unschedulable=on))


def where(world: World) -> dict[str, str]:
    """Index to node, of the pods that get requests."""
    return {
        pod["metadata"]["name"][-1]: pod["spec"].get("nodeName", "")
        for pod in world.api.all(PODS)
        if ROUTABLE in pod["metadata"]["labels"] and "deletionTimestamp" not in pod["metadata"]
    }


def available(world: World) -> int:
    return int(world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]["minAvailable"])


def budget_writes(world: World) -> list[str]:
    return [write.verb for write in world.api.writes if write.resource == POD_DISRUPTION_BUDGETS]


def silent(item: Manifest) -> None:
    item["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]


def out_of_service(item: Manifest) -> None:
    item["spec"]["taints"] = [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]


def dead(world: World, name: str) -> None:
    """The kubelet of a node that is away does nothing for its pods any more."""
    step = world.kubelet.step
    frozen = [pod["metadata"]["name"] for pod in world.api.all(PODS) if pod["spec"].get("nodeName") == name]

    def lame() -> bool:
        hidden = {address: item for address, item in world.api.objects.items() if address[2] in frozen}
        for address in hidden:
            world.api.objects.pop(address)
        try:
            return step()
        finally:
            world.api.objects.update(hidden)

    world.kubelet.step = lame  # type: ignore[method-assign]  # one world's kubelet, for this test


@pytest.mark.parametrize("replicas", [1, 2])
async def test_the_replicas_of_a_cordoned_node_are_replaced_before_they_go(replicas: int) -> None:
    world = await placed(replicas, nodes=3)
    old = world.names()
    writes = len(world.api.writes)
    fewest = replicas

    def after(_number: int, _write: object) -> None:
        nonlocal fewest
        ready = {"type": "Ready", "status": "True"}
        serving = [
            pod
            for pod in world.api.all(PODS)
            if ROUTABLE in pod["metadata"]["labels"] and ready in pod["status"].get("conditions", [])
        ]
        fewest = min(fewest, len(serving))

    world.api.after = after
    cordon(world)
    await world.settle()

    assert fewest == replicas
    assert old[0] not in world.names()
    assert len(world.names()) == replicas
    assert "gpu-1" not in where(world).values()
    assert available(world) == replicas
    assert "patch" not in budget_writes(world)
    assert world.events()["NodeCordoned"] == 1
    # The mark and its Event, the new pod, the unrouting, the deletion; and what the status says of it.
    kinds = [write.verb for write in world.api.writes[writes:] if write.verb != "status"]
    assert kinds == ["create", "patch", "create", "patch", "delete"]
    assert "Reconciling" not in world.conditions()


async def test_a_drain_without_room_elsewhere_ends_after_the_drain_time_with_a_warning() -> None:
    world = await placed(1, nodes=1, rollout={"drainSeconds": 60})
    cordon(world)
    await world.wait(55)
    assert where(world) == {"0": "gpu-1", "1": ""}
    assert available(world) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")
    await world.wait(10)
    assert available(world) == 0
    [warning] = [event for event in world.api.all(EVENTS) if event["reason"] == "DrainTimedOut"]
    assert warning["type"] == "Warning"
    assert "may be evicted now" in warning["message"]
    await world.wait(60)
    # It serves until somebody evicts it; then the budget is whole again.
    assert where(world) == {"0": "gpu-1", "1": ""}
    assert world.events()["DrainTimedOut"] == 1
    world.api.remove(world.api.one(PODS, world.names()[0]), PODS)
    await world.settle()
    assert where(world) == {"1": ""}
    assert available(world) == 1
    assert budget_writes(world) == ["create", "patch", "patch"]


async def test_a_replacement_that_found_a_node_may_also_start_before_the_old_one_may_be_evicted() -> None:
    world = await placed(1, nodes=2, rollout={"drainSeconds": 10})
    old = world.names()[0]
    loading = ready_status({})
    loading["conditions"][1]["status"] = "False"
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] == old else loading
    cordon(world)
    await world.wait(215)
    assert available(world) == 1
    # Planned for the start are twice 120 s, and eleven seconds for each gigabyte of a download.
    await world.wait(60)
    assert available(world) == 0


async def test_the_others_stay_protected_while_one_may_be_evicted() -> None:
    world = await placed(2, nodes=2, rollout={"drainSeconds": 10})
    world.kubelet.place = False
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["spec"].get("nodeName") else None
    cordon(world)
    await world.wait(20)
    assert available(world) == 1


async def test_a_drain_without_room_takes_one_at_a_time() -> None:
    world = await placed(2, nodes=1, rollout={"drainSeconds": 10})
    cordon(world)
    await world.wait(20)
    assert available(world) == 1
    world.api.remove(world.api.one(PODS, world.names()[0]), PODS)
    await world.wait(10)
    assert available(world) == 0


async def test_a_cordon_that_is_lifted_leaves_everything_as_it_was() -> None:
    world = await placed(1, nodes=1)
    before = world.names()
    cordon(world)
    await world.wait(30)
    assert CORDONED in world.api.one(PODS, before[0])["metadata"]["annotations"]
    cordon(world, on=False)
    await world.settle()
    assert world.names() == before
    assert CORDONED not in world.api.one(PODS, before[0])["metadata"]["annotations"]


async def test_what_drains_off_a_cordoned_node_does_not_come_back_when_load_returns() -> None:
    world = await placed(1, nodes=2)
    [old] = world.names()
    world.busy.add(old)
    cordon(world)
    await world.wait(20)
    assert old not in where(world)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.wait(20)
    assert where(world) == {"1": "gpu-2", "2": "gpu-2"}
    # Noted, unrouted, and never routed in between.
    assert [write.verb for write in world.api.writes if write.name == old] == ["create", "patch", "patch"]
    # Without the cordon it is as good as any other.
    cordon(world, on=False)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=3))
    await world.wait(20)
    assert where(world) == {"0": "gpu-1", "1": "gpu-2", "2": "gpu-2"}


async def test_what_loads_on_a_cordoned_node_may_come_up_first() -> None:
    world = await World().start()
    world.kubelet.place = True
    up: list[bool] = []
    world.kubelet.engine = lambda pod: ready_status(pod) if up else None
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(5)
    [name] = world.names()
    cordon(world)
    await world.wait(10)
    assert world.names() == [name]
    up.append(True)
    await world.wait(10)
    assert len(world.names()) == 2


async def test_who_tolerates_cordons_is_not_moved_in_circles() -> None:
    world = await placed(1, nodes=2, pod={"tolerations": [{"operator": "Exists"}]})
    before = world.names()
    cordon(world)
    await world.settle()
    assert world.names() == before


@pytest.mark.parametrize("change", [silent, None], ids=["silent", "gone"])
async def test_a_lost_node_is_named_and_its_pod_replaced_once_kubernetes_gives_it_up(change: Any) -> None:
    world = await placed(1, nodes=2)
    [lost] = world.names()
    dead(world, "gpu-1")
    if change is None:
        world.api.finish(world.api.one(NODES, "gpu-1"), NODES)
    else:
        world.api.edit(NODES, "gpu-1", change)
        broken = ready_status({})
        broken["conditions"][1]["status"] = "Unknown"
        world.api.edit(PODS, lost, lambda pod: pod.update(status=broken))
        await world.wait(10)
        assert world.conditions()["Ready"] == ("False", "NodeLost")
        assert "gpu-1" in world.message("Ready")
        assert world.names() == [lost], "its node may still answer"
        world.api.remove(world.api.one(PODS, lost), PODS)
    await world.settle()
    # The name is taken until the node answers: the replacement has another one.
    assert world.names() == [lost, f"{lost[:-1]}1"]
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert not [write for write in world.api.writes if write.verb == "delete" and write.name == lost]


@pytest.mark.parametrize("gone", [False, True], ids=["out of service", "gone"])
async def test_what_waits_for_a_node_that_never_answers_again_is_removed(gone: bool) -> None:
    world = await placed(1, nodes=2)
    [lost] = world.names()
    dead(world, "gpu-1")
    world.api.remove(world.api.one(PODS, lost), PODS)
    ends = {"deletionTimestamp": "2026-01-01T00:10:00Z"}
    world.api.edit(PODS, lost, lambda pod: pod["metadata"].update(ends))
    world.api.edit(NODES, "gpu-1", silent)
    await world.wait(60)
    assert lost in world.names()
    if gone:
        world.api.finish(world.api.one(NODES, "gpu-1"), NODES)
        await world.wait(60)
        assert lost in world.names(), "it has its grace period: the view of the nodes may be behind"
        await world.wait(600)
    else:
        world.api.edit(NODES, "gpu-1", out_of_service)
        await world.wait(3)
    assert lost not in world.names()
    assert len(world.names()) == 1


async def test_a_node_that_the_view_does_not_have_yet_is_not_lost() -> None:
    """Pods and nodes are watched apart: the binding may be told before the node that has just come."""
    world = await World().start()
    world.kubelet.engine = lambda _pod: None
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(3)
    [name] = world.names()
    world.api.edit(PODS, name, lambda pod: pod["spec"].update(nodeName="gpu-new"))
    await world.wait(3)
    assert world.names() == [name]
    assert world.conditions()["Ready"] == ("False", "Starting")


async def test_what_is_removed_by_force_is_removed_once() -> None:
    world = await placed(1, nodes=2)
    [lost] = world.names()
    dead(world, "gpu-1")
    world.api.remove(world.api.one(PODS, lost), PODS)
    world.api.edit(NODES, "gpu-1", silent)
    await world.settle()
    world.api.edit(NODES, "gpu-1", out_of_service)
    world.operator.deliver()
    world.operator.lagging = True
    await world.wait(3)
    assert [write.verb for write in world.api.writes if write.name == lost] == ["create", "delete"]


async def test_a_quota_in_the_way_of_a_replacement_is_said_and_waited_for() -> None:
    world = await placed(1, nodes=2)
    full = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q", "namespace": "team"},
        "spec": {"hard": {"pods": "1"}},
        "status": {"used": {"pods": "1"}},
    }
    world.api.put(RESOURCE_QUOTAS, full)
    cordon(world)
    await world.settle()
    assert where(world) == {"0": "gpu-1"}
    assert world.conditions()["ScalingLimited"] == ("True", "QuotaExceeded")
    assert world.conditions()["Ready"] == ("True", "Serving")
    world.api.edit(RESOURCE_QUOTAS, "q", lambda item: item["spec"]["hard"].update(pods="2"))
    await world.settle()
    assert where(world) == {"1": "gpu-2"}
    assert "ScalingLimited" not in world.conditions()


async def test_without_the_right_to_read_nodes_no_pod_counts_as_lost() -> None:
    world = await placed(1, nodes=1)
    [name] = world.names()
    world.api.remove(world.api.one(PODS, name), PODS)
    for item in list(world.operator.store.all(NODES)):
        world.operator.store.remove(NODES, item)
    await world.wait(3)
    assert not [write for write in world.api.writes if write.verb == "delete" and write.name == name]


STATES: dict[str, tuple[Manifest, NodeHealth]] = {
    "fine": ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, NodeHealth()),
    "says nothing": ({}, NodeHealth()),
    "cordoned": ({"spec": {"unschedulable": True}}, NodeHealth(cordoned=frozenset({"n"}))),
    "cordon taint": (
        {"spec": {"taints": [{"key": "node.kubernetes.io/unschedulable"}]}},
        NodeHealth(cordoned=frozenset({"n"})),
    ),
    "autoscaler": (
        {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}},
        NodeHealth(cordoned=frozenset({"n"})),
    ),
    "other taint": ({"spec": {"taints": [{"key": "team"}]}}, NodeHealth()),
    "not ready, but answers": ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, NodeHealth()),
    "silent": (
        {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
        NodeHealth(silent=frozenset({"n"})),
    ),
    "unreachable": (
        {"spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}},
        NodeHealth(silent=frozenset({"n"})),
    ),
    "out of service": (
        {"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}},
        NodeHealth(out_of_service=frozenset({"n"})),
    ),
}


@pytest.mark.parametrize(("item", "expected"), STATES.values(), ids=STATES.keys())
def test_what_a_node_says(item: Manifest, expected: NodeHealth) -> None:
    health = node_health([{"metadata": {"name": "n"}, **item}])
    assert (health.cordoned, health.silent, health.out_of_service) == (
        expected.cordoned,
        expected.silent,
        expected.out_of_service,
    )
    assert not health.gone("n")
    assert health.gone("other")
    assert not health.gone("")
    assert not NodeHealth().gone("n")


@pytest.mark.parametrize(
    ("toleration", "stays"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "operator": "Exists"}, False),
    ],
    ids=["everything", "cordons", "gpus"],
)
def test_who_may_come_back_to_a_cordoned_node(toleration: Manifest, stays: bool) -> None:
    assert stays_when_cordoned({"spec": {"tolerations": [toleration]}}) is stays


async def test_on_a_node_that_is_not_seen_yet_nothing_is_removed_by_force() -> None:
    world = await World().start()
    status = ready_status({})
    status["conditions"][1]["status"] = "False"
    world.kubelet.engine = lambda _pod: status
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()
    for name in world.names():
        world.api.edit(PODS, name, lambda item: item["spec"].update(nodeName="brand-new"))
    await world.wait(3)
    # A pod takes its time to end.
    dead(world, "brand-new")
    change(world, replicas=1)
    world.operator.deliver()
    # The event of the deletion comes late.
    world.operator.lagging = True
    await world.wait(30)
    assert len(world.names()) == 2
