"""Replicas of two pods: started, routed, drained, moved and ended as one."""

from __future__ import annotations

from copy import deepcopy

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, POD_DISRUPTION_BUDGETS, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.routing.membership import EntryNaming, GatewayView, Membership, advance
from tests.unit.world import World, change, deployment, node, ready_status, with_groups

ROUTABLE = "qwen-operator.dev/routable"
ROLE = "qwen-operator.dev/role"
SINCE = "qwen-operator.dev/draining-since"


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two replicas of two pods each, on two nodes."""
    with_groups(2, monkeypatch)
    world = await World().start()
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()
    return world


def replicas(world: World) -> dict[str, list[Manifest]]:
    """The pods that nobody deleted, by replica."""
    groups: dict[str, list[Manifest]] = {}
    for pod in world.api.all(PODS):
        if "deletionTimestamp" not in pod["metadata"]:
            groups.setdefault(pod["metadata"]["name"].rpartition("-")[0], []).append(pod)
    return groups


async def test_members_differ_in_name_role_and_route_and_in_little_else(world: World) -> None:
    groups = replicas(world)
    assert [len(members) for members in groups.values()] == [2, 2]
    for replica, (leader, worker) in groups.items():
        assert [one["metadata"]["name"] for one in (leader, worker)] == [f"{replica}-0", f"{replica}-1"]
        assert (leader["metadata"]["labels"][ROLE], worker["metadata"]["labels"][ROLE]) == ("engine", "engine-worker")
        assert (ROUTABLE in leader["metadata"]["labels"], ROUTABLE in worker["metadata"]["labels"]) == (True, False)
        assert [_probed(pod) for pod in (leader, worker)] == [
            {"/ready", "/health"},
            {"/health"},
        ], "the ranks but the first have no /ready"
        assert _without_probes(leader) == _without_probes(worker)
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (2, 2, "2/2")
    assert world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]["minAvailable"] == 2


def _probed(pod: Manifest) -> set[str]:
    (engine,) = pod["spec"]["containers"]
    return {engine[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}


def _without_probes(pod: Manifest) -> Manifest:
    (engine,) = pod["spec"]["containers"]
    return {key: value for key, value in engine.items() if not key.endswith("Probe")}


async def test_a_replica_is_ready_when_all_its_pods_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    world = await World().start()
    world.api.put(NODES, node("gpu-2"))
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"].endswith("-0") else None
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    status = world.qd()["status"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 0)
    assert world.conditions()["Ready"] == ("False", "Starting")
    worker = world.names()[1]
    assert worker in world.message("Ready"), "the member that is not ready is named"

    world.kubelet.engine = ready_status
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_lost_member_ends_its_replica_which_comes_back_whole(world: World, rank: int) -> None:
    lost, other = replicas(world)
    untouched = {pod["metadata"]["uid"] for pod in replicas(world)[other]}
    world.api.remove(world.api.one(PODS, f"{lost}-{rank}"), PODS)
    await world.settle()
    groups = replicas(world)
    assert [len(members) for members in groups.values()] == [2, 2]
    assert {pod["metadata"]["uid"] for pod in groups[other]} == untouched
    assert world.qd()["status"]["readyReplicas"] == 2


async def test_a_member_that_ends_for_good_takes_the_others_with_it(world: World) -> None:
    broken = next(iter(replicas(world)))
    before = {pod["metadata"]["uid"] for pod in replicas(world)[broken]}

    def evicted(pod: Manifest) -> None:
        pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "out of memory"}

    world.api.edit(PODS, f"{broken}-1", evicted)
    await world.settle()
    after = {pod["metadata"]["uid"] for members in replicas(world).values() for pod in members}
    assert before.isdisjoint(after)
    assert len(after) == 4


async def test_a_replica_drains_by_its_leader_and_goes_as_a_whole(world: World) -> None:
    world.busy = set(world.names())
    change(world, replicas=1)
    await world.wait(30)
    draining = [pod["metadata"]["name"] for pod in world.api.all(PODS) if SINCE in pod["metadata"]["annotations"]]
    assert len(draining) == 1
    assert draining[0].endswith("-0")
    assert len(world.names()) == 4, "both pods of the draining replica still work"

    world.busy = set()
    world.operator.intake.enqueue_all()
    await world.settle()
    assert [len(members) for members in replicas(world).values()] == [2]


async def test_a_cordon_of_one_members_node_moves_the_whole_replica(world: World) -> None:
    moved = next(pod["metadata"]["name"] for pod in world.api.all(PODS) if pod["spec"]["nodeName"] == "gpu-2")
    before = {pod["metadata"]["uid"] for pod in replicas(world)[moved.rpartition("-")[0]]}
    world.api.put(NODES, node("gpu-3"))
    world.api.edit(NODES, "gpu-2", lambda item: item["spec"].update(unschedulable=True))
    await world.settle(300)
    groups = replicas(world)
    pods = [pod for members in groups.values() for pod in members]
    assert [len(members) for members in groups.values()] == [2, 2]
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in pods)
    assert all(pod["spec"]["nodeName"] != "gpu-2" for pod in pods)


async def test_a_lost_node_of_one_member_ends_the_whole_replica(world: World) -> None:
    gone = {
        pod["metadata"]["name"].rpartition("-")[0] for pod in world.api.all(PODS) if pod["spec"]["nodeName"] == "gpu-2"
    }
    before = {name: {pod["metadata"]["uid"] for pod in members} for name, members in replicas(world).items()}
    world.api.remove(world.api.one(NODES, "gpu-2"), NODES)
    for pod in list(world.api.all(PODS)):
        if pod["spec"]["nodeName"] == "gpu-2":
            world.api.finish(pod, PODS)  # the garbage collector of pods
    await world.settle(300)
    after = {pod["metadata"]["uid"] for members in replicas(world).values() for pod in members}
    assert gone
    assert all(before[name].isdisjoint(after) for name in gone)
    assert len(after) == 4


async def test_the_gateway_routes_to_the_leader_of_a_replica_that_is_whole(world: World) -> None:
    for number, pod in enumerate(list(world.api.all(PODS))):
        pod["status"]["podIP"] = f"10.0.0.{number}"
    first, second = replicas(world)

    def routed() -> set[str]:
        view = GatewayView([world.qd()], world.api.all(PODS), None)
        return {entry.pod for entry in advance(view, Membership(), EntryNaming("n")).entries}

    assert routed() == {f"{first}-0", f"{second}-0"}
    world.api.edit(PODS, f"{first}-1", lambda item: item["status"].update(conditions=[]))
    assert routed() == {f"{second}-0"}
    world.api.finish(world.api.one(PODS, f"{second}-1"), PODS)
    assert routed() == set()


def copy_of(world: World, name: str, copied: str, **status: object) -> None:
    """A pod beside another one, as `kubectl debug --copy-to=NAME --keep-labels` makes it."""
    pod = deepcopy(world.api.one(PODS, name))
    pod["metadata"] = {
        "name": copied,
        "namespace": pod["metadata"]["namespace"],
        "labels": pod["metadata"]["labels"],
        "annotations": pod["metadata"]["annotations"],
    }
    world.api.put(PODS, pod)
    world.api.edit(PODS, copied, lambda item: item["status"].update(status))


@pytest.mark.parametrize("phase", ["Pending", "Failed"])
async def test_a_pod_that_is_named_like_a_member_takes_no_replica_down(phase: str) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    serving = world.names()[0]
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] == serving else None
    copy_of(world, serving, f"{serving}-1", phase=phase, conditions=[])
    await world.settle(20)
    assert world.names() == [serving], "the copy is removed, the replica is not"
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.qd()["status"]["readyReplicas"] == 1


async def test_an_edited_annotation_makes_no_replica_larger() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    before = [pod["metadata"]["uid"] for pod in world.api.all(PODS)]
    edit = {"qwen-operator.dev/replica-pods": "2"}
    world.api.edit(PODS, world.names()[0], lambda item: item["metadata"]["annotations"].update(edit))
    await world.settle(20)
    assert [pod["metadata"]["uid"] for pod in world.api.all(PODS)] == before
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_foreign_pod_named_like_a_member_keeps_the_route() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    leader = world.api.one(PODS, world.names()[0])
    leader["status"]["podIP"] = "10.0.0.1"
    foreign = deepcopy(leader)
    foreign["metadata"] |= {"name": f"{leader['metadata']['name']}-1", "uid": "foreign"}
    foreign["status"] = {"phase": "Pending"}
    view = GatewayView([world.qd()], [leader, foreign], None)
    entries = advance(view, Membership(), EntryNaming("n")).entries
    assert [entry.pod for entry in entries] == [leader["metadata"]["name"]]


async def test_a_group_survives_edits_of_its_annotation(world: World) -> None:
    before = {pod["metadata"]["uid"] for pod in world.api.all(PODS)}
    for pod, value in zip(list(world.api.all(PODS)), ["1", "7", "3", "64"], strict=True):
        pod["metadata"]["annotations"]["qwen-operator.dev/replica-pods"] = value
        world.api.put(PODS, deepcopy(pod))
    await world.restart()
    await world.settle(20)
    assert {pod["metadata"]["uid"] for pod in world.api.all(PODS)} == before
    assert world.qd()["status"]["readyReplicas"] == 2


async def test_a_foreign_revision_says_nothing_about_the_size_of_a_replica() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    [before] = world.operator.store.replicas(world.qd())
    foreign = deepcopy(world.api.all(CONTROLLER_REVISIONS)[0])
    foreign["metadata"] = {
        "name": f"z-{before.revision}",
        "namespace": "team",
        "labels": foreign["metadata"]["labels"],
    }
    foreign["data"]["plan"]["nodes_per_replica"] = 2
    world.api.put(CONTROLLER_REVISIONS, foreign)
    await world.settle(5)
    [after] = world.operator.store.replicas(world.qd())
    assert (after.pods, after.index, after.up) == (before.pods, before.index, True) == (1, 0, True)


async def test_the_budget_of_the_workers_follows_that_of_the_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    world = await World().start()
    world.kubelet.place = True
    for number in (1, 2, 3):
        world.api.put(NODES, node(f"gpu-{number}", gpus=1))
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"drainSeconds": 20}))
    await world.settle()
    assert _budgets(world) == {"chat-engine": 1, "chat-engine-worker": 1}

    # A successor would need two free nodes, and there is one. So an eviction is allowed after the time of a drain.
    [occupied] = {pod["spec"]["nodeName"] for pod in world.api.all(PODS) if pod["metadata"]["name"].endswith("-1")}
    world.api.edit(NODES, occupied, lambda item: item["spec"].update(unschedulable=True))
    await world.wait(10)
    assert _budgets(world) == {"chat-engine": 1, "chat-engine-worker": 1}
    await world.wait(30)
    assert _budgets(world) == {"chat-engine": 0, "chat-engine-worker": 0}

    change(world, disruption={"policy": "AllowOne"}, replicas=2)
    await world.settle()
    assert _budgets(world) == {"chat-engine": 1, "chat-engine-worker": 1}, "of two workers one may go"


def _budgets(world: World) -> dict[str, int]:
    return {item["metadata"]["name"]: item["spec"]["minAvailable"] for item in world.api.all(POD_DISRUPTION_BUDGETS)}
