"""Replicas over several nodes get all their nodes, or none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Forbidden, Manifest, Unavailable
from qwen_operator.manifests.kept import kept_pod
from qwen_operator.manifests.multi_node import MultiNode, MultiNodes, TopologyPolicy
from qwen_operator.replicas.places import Neighbours, used_by
from qwen_operator.replicas.pod_state import unready_reason
from qwen_operator.replicas.room import room_for
from tests.unit.world import CONFIG, World, change, deployment, node, ready_status, with_groups

GATE = "qwen-operator.dev/group"
LEADER = "qwen-operator.dev/group-leader"


async def a_world(monkeypatch: pytest.MonkeyPatch, nodes: int, gpus: int = 1, pods: int = 2) -> World:
    """Replicas of so many pods of one GPU each, and nodes with so many GPUs."""
    with_groups(pods, monkeypatch)
    world = await World().start()
    world.kubelet.place = True
    for number in range(1, nodes + 1):
        world.api.put(NODES, node(f"gpu-{number}", gpus=gpus))
    return world


def gated(world: World) -> list[str]:
    return [pod["metadata"]["name"] for pod in world.api.all(PODS) if pod["spec"].get("schedulingGates")]


def bound(world: World) -> dict[str, str]:
    return {
        pod["metadata"]["name"]: pod["spec"]["nodeName"]
        for pod in world.api.all(PODS)
        if pod["spec"].get("nodeName") and pod["metadata"]["namespace"] == "team"
    }


async def test_pods_take_no_gpu_before_all_fit_and_then_get_a_node_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=1)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert len(gated(world)) == 2
    assert bound(world) == {}
    assert world.conditions()["Ready"] == ("False", "WaitingForGpus")
    replica = gated(world)[0].removesuffix("-0")
    assert world.message("Ready") == (
        f"{replica} needs 2 nodes with 1 free nvidia.com/gpu each, 1 of 1 nodes has them (gpu-1 has 1 of 1): its pods "
        "take no GPU before all of them fit, and then start by themselves"
    )
    writes = len(world.api.writes)
    await world.wait(60)
    assert len(world.api.writes) == writes, "waiting writes nothing"

    world.api.put(NODES, node("gpu-2", gpus=1))
    await world.wait(30)
    assert sorted(bound(world).values()) == ["gpu-1", "gpu-2"]
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_the_others_learn_the_address_of_the_first_pod_also_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await a_world(monkeypatch, nodes=3, pods=3)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    leader, *workers = world.api.all(PODS)
    words = f"{leader['status']['podIP']} {leader['metadata']['uid']}"
    assert LEADER not in leader["metadata"]["annotations"]
    assert [one["metadata"]["annotations"][LEADER] for one in workers] == [words, words]

    world.api.edit(PODS, leader["metadata"]["name"], lambda item: item["status"].update(podIP="10.9.9.9"))
    await world.settle()
    _, *workers = world.api.all(PODS)
    assert {one["metadata"]["annotations"][LEADER].split()[0] for one in workers} == {"10.9.9.9"}


async def test_no_gate_opens_for_nodes_that_the_affinity_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    world.api.put(QWENDEPLOYMENTS, deployment(pod={"affinity": {"nodeAffinity": required}}))
    await world.wait(30)
    assert len(gated(world)) == 2
    assert "0 of 0 nodes have them" in world.message("Ready")
    for name in ("gpu-1", "gpu-2"):
        world.api.edit(NODES, name, lambda item: item["metadata"]["labels"].update(zone="a"))
    await world.wait(30)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_two_replicas_that_want_the_last_nodes_do_not_block_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=3)
    for name in ("one", "two"):
        world.api.put(QWENDEPLOYMENTS, deployment(name, servedNames=[name]))
    await world.wait(40)
    assert {name.partition("-")[0] for name in bound(world)} == {"one"}
    assert {name.partition("-")[0] for name in gated(world)} == {"two"}
    assert world.conditions("one")["Ready"] == ("True", "Serving")
    assert "1 of 3 nodes has them" in world.message("Ready", "two")

    world.api.remove(world.qd("one"), QWENDEPLOYMENTS)
    await world.wait(40)
    assert world.conditions("two")["Ready"] == ("True", "Serving")


async def test_a_replica_that_is_not_placed_as_a_whole_gives_its_gpus_back_and_tries_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.kubelet.full = {"gpu-2"}
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert list(bound(world).values()) == ["gpu-1"]
    await world.wait(700)

    failure = world.qd()["status"]["lastFailure"]
    assert (failure["reason"], failure["count"]) == ("GroupNotPlaced", 1)
    assert "1 of 2 pods of" in failure["log"][0]
    assert world.events()["GroupNotPlaced"] == 1
    # After a pause of a minute it tried again, and holds a node for at most ten minutes again.
    held = 0
    for _ in range(3600):
        await world.wait(1)
        held += bool(bound(world))
    assert world.qd()["status"]["lastFailure"]["count"] >= 3
    assert held < 2900, "the pauses grow"

    world.kubelet.full = set()
    await world.wait(2600)
    assert sorted(bound(world).values()) == ["gpu-1", "gpu-2"]
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_the_pauses_grow_also_while_the_present_spec_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    # The revision that served goes on, and loses its nodes.
    change(world, contextTokens=16_000_000)
    await world.settle()
    assert world.conditions()["Planned"][0] == "False"
    world.kubelet.full = {"gpu-2"}
    world.api.remove(world.api.one(PODS, world.names()[1]), PODS)
    held = 0
    for _ in range(3600):
        await world.wait(1)
        held += bool(bound(world))
    assert held < 2900


@pytest.mark.parametrize("written", [None, "never", "2036-01-01T00:00:00Z"])
async def test_a_wrong_time_of_the_release_does_not_hold_gpus_for_ever(
    monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.kubelet.full = {"gpu-2"}
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    edit = {"qwen-operator.dev/released-at": written}
    for name in world.names():
        world.api.edit(PODS, name, lambda item: item["metadata"]["annotations"].update(edit))
    await world.wait(700)
    assert world.qd()["status"]["lastFailure"]["reason"] == "GroupNotPlaced"


async def test_an_operator_that_stopped_while_it_removed_the_gates_goes_on_after_any_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await a_world(monkeypatch, nodes=1)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(900)
    before = [pod["metadata"]["uid"] for pod in world.api.all(PODS)]
    world.api.put(NODES, node("gpu-2", gpus=1))

    def release(item: Manifest) -> None:
        item["spec"].pop("schedulingGates")
        item["metadata"]["annotations"]["qwen-operator.dev/released-at"] = world.api.clock.stamp()

    world.api.edit(PODS, gated(world)[0], release)
    await world.wait(40)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert [pod["metadata"]["uid"] for pod in world.api.all(PODS)] == before


async def test_during_the_pause_the_message_says_when_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.kubelet.full = {"gpu-2"}
    world.api.put(QWENDEPLOYMENTS, deployment())
    for _ in range(800):
        await world.wait(1)
        if "lastFailure" in world.qd()["status"] and len(gated(world)) == 2:
            break
    assert bound(world) == {}
    await world.wait(10)
    assert "was not placed as a whole, and gave its GPUs back: its pods try again at 2026-01-01T" in world.message(
        "Ready"
    )


async def test_a_quota_for_one_and_a_half_replicas_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=4)
    hard = {"requests.nvidia.com/gpu": "3"}
    quota: Manifest = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": "team"},
        "spec": {"hard": hard},
        "status": {"hard": hard, "used": {"requests.nvidia.com/gpu": "0"}},
    }
    world.api.put(RESOURCE_QUOTAS, quota)

    def count(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod":
            used = {"requests.nvidia.com/gpu": str(len(world.names()) + 1)}
            world.api.edit(RESOURCE_QUOTAS, "gpus", lambda item: item["status"].update(used=used))

    world.api.admit = count
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.wait(60)
    assert len(world.names()) == 2
    assert world.qd()["status"]["summary"]["ready"] == "1/2"
    limited = world.message("ScalingLimited")
    assert limited.startswith('the ResourceQuota "gpus" allows 3 requests.nvidia.com/gpu, 2 are used, and ')
    assert "-1 needs on 2 nodes 2: raise the quota or free some of it; the replica then starts by itself" in limited


async def test_a_part_of_a_replica_does_not_hold_a_quota_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)

    def admit(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod" and manifest["metadata"]["name"].endswith("-1"):
            raise Forbidden(403, "Forbidden", "exceeded quota: gpus")

    world.api.admit = admit
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(60)
    (first,) = world.names()
    uid = world.api.one(PODS, first)["metadata"]["uid"]
    await world.wait(700)
    assert uid not in {pod["metadata"]["uid"] for pod in world.api.all(PODS)}
    assert "the pods of rank 1 of" in world.qd()["status"]["lastFailure"]["log"][0]


async def test_gates_of_others_stay_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    kueue = {"name": "kueue.x-k8s.io/admission"}

    def admit(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod" and kueue not in manifest["spec"]["schedulingGates"]:
            manifest["spec"]["schedulingGates"].append(kueue)

    world.api.admit = admit
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert [pod["spec"]["schedulingGates"] for pod in world.api.all(PODS)] == [[kueue], [kueue]]
    assert "waits until somebody removes its scheduling gates: kueue.x-k8s.io/admission" in world.message("Ready")

    # Whoever queues them decides how long: a new pod would lose its place in the queue.
    before = [pod["metadata"]["uid"] for pod in world.api.all(PODS)]
    await world.wait(900)
    assert [pod["metadata"]["uid"] for pod in world.api.all(PODS)] == before


async def test_the_member_that_ended_first_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    first, second = (pod["metadata"]["name"] for pod in world.api.all(PODS))
    reports = {
        first: ("MemberEnded", f"rank 1 ({second}) ended first, CudaOutOfMemory", "2026-01-01T00:10:05Z"),
        second: ("CudaOutOfMemory", "RuntimeError: CUDA out of memory", "2026-01-01T00:10:00Z"),
    }
    world.kubelet.engine = lambda pod: _ended(*reports[pod["metadata"]["name"]])
    await world.settle()
    failure = world.qd()["status"]["lastFailure"]
    assert (failure["reason"], failure["pod"]) == ("CudaOutOfMemory", second)
    assert second in world.message("Ready")
    assert len(world.names()) == 2, "the kubelet starts the containers again, in the same pods"


def _ended(reason: str, line: str, finished: str) -> Manifest:
    report = f'{{"version":1,"reason":"{reason}","phase":"Serving","exitCode":1,"log":["{line}"]}}'
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": finished, "message": report}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
    status = {
        "name": "engine",
        "state": {"waiting": waiting},
        "lastState": {"terminated": ended},
        "restartCount": 1,
    }
    return {
        **ready_status({}),
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [status],
    }


async def test_only_a_setting_for_tests_puts_two_pods_of_a_replica_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    for distinct, ready in ((True, "False"), (False, "True")):
        world = await World(config=replace(CONFIG, distinct_nodes=distinct)).start()
        world.kubelet.place = True
        world.api.put(QWENDEPLOYMENTS, deployment())
        await world.wait(30)
        assert world.conditions()["Ready"][0] == ready


def stranger(on: str, gpus: int = 1) -> Manifest:
    """A pod that the operator does not watch."""
    container = {"name": "notebook", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    meta = {"name": f"notebook-{on}", "namespace": "research", "uid": f"notebook-{on}", "labels": {}}
    return {
        "metadata": meta,
        "spec": {"nodeName": on, "containers": [container]},
        "status": {"phase": "Running"},
    }


async def test_gpus_that_pods_of_others_have_are_seen_before_a_pod_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    world.kubelet.full = {"gpu-2"}
    world.api.put(PODS, stranger("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert len(gated(world)) == 2
    assert bound(world) == {}
    assert "1 of 2 nodes has them (gpu-2 has 0 of 1, gpu-1 has 1 of 1)" in world.message("Ready")
    world.kubelet.full = set()
    world.api.finish(world.api.one(PODS, "notebook-gpu-2"), PODS)
    await world.wait(60)
    assert sorted(bound(world).values()) == ["gpu-1", "gpu-2"]
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_node_of_others_is_passed_over_for_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=8)
    taken = {"gpu-1", "gpu-2", "gpu-4", "gpu-5", "gpu-6", "gpu-7"}
    world.kubelet.full = taken
    for name in taken:
        world.api.put(PODS, stranger(name))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(60)
    assert sorted(bound(world).values()) == ["gpu-3", "gpu-8"]
    assert world.conditions()["Ready"] == ("True", "Serving")


@pytest.mark.parametrize("busy", [12, 40, 200])
async def test_many_nodes_of_others_hold_a_replica_back(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    world = await a_world(monkeypatch, nodes=busy)
    world.kubelet.full = {f"gpu-{number}" for number in range(1, busy + 1)}
    for name in world.kubelet.full:
        world.api.put(PODS, stranger(name))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(60)
    assert len(gated(world)) == 2
    for name in ("gpu-new-1", "gpu-new-2"):
        world.api.put(NODES, node(name, gpus=1))
    await world.wait(60)
    assert sorted(bound(world).values()) == ["gpu-new-1", "gpu-new-2"]


class _Deaf:
    """An API server that lists no pods of a node."""

    error: Exception = Unavailable(0, "NoAnswer", "down")

    async def list(self, *_args: object, fields: str = "") -> object:
        raise self.error


async def test_while_nodes_cannot_be_read_nothing_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    looks, deaf = world.operator.worker.reconciler.free_nodes, _Deaf()
    assert looks is not None
    monkeypatch.setattr(looks.nodes, "api", deaf)
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(40)
    assert len(gated(world)) == 2
    assert "waits until the operator has read which pods of others run on its nodes" in world.message("Ready")
    deaf.error = Forbidden(403, "Forbidden", "no")
    await world.wait(40)
    assert sorted(bound(world).values()) == ["gpu-1", "gpu-2"], "without the right, the scheduler decides"
    assert looks.nodes.blind
    await world.wait(300)
    assert not looks.nodes.blind, "the right may be there by now"


async def test_nodes_in_a_later_block_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    chart = MultiNode(topology_key=BLOCK, topology_policy=TopologyPolicy.REQUIRED)
    world = await World(config=replace(CONFIG, multi_nodes=MultiNodes(chart))).start()
    world.kubelet.place = True
    for name in ("a1", "a2", "b1", "b2", "c1", "c2"):
        one = node(name, gpus=1)
        one["metadata"]["labels"][BLOCK] = name[0]
        world.api.put(NODES, one)
        if name[0] != "c":
            world.kubelet.full.add(name)
            world.api.put(PODS, stranger(name))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(60)
    assert sorted(bound(world).values()) == ["c1", "c2"]


def test_a_pod_of_others_on_the_port_of_engines_is_seen_through_what_is_kept() -> None:
    other = stranger("gpu-1")
    other["spec"]["containers"][0]["ports"] = [{"containerPort": 8000, "hostPort": 8000}]
    assert used_by(kept_pod(other)) == {"nvidia.com/gpu": 1, "port 8000": 1}


def test_gpus_of_sidecars_and_init_containers_of_others_are_not_free() -> None:
    def container(gpus: int, **more: Any) -> Manifest:
        return {"name": f"c{gpus}", "resources": {"limits": {"nvidia.com/gpu": str(gpus), "cpu": "1"}}, **more}

    other = stranger("gpu-1")
    other["spec"]["initContainers"] = [container(2, restartPolicy="Always"), container(4)]
    assert used_by(kept_pod(other)) == {"nvidia.com/gpu": 6}
    other["spec"]["containers"] = [container(3), container(5)]
    assert used_by(kept_pod(other)) == {"nvidia.com/gpu": 10}


async def test_without_the_right_to_look_the_scheduler_finds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    looks = world.operator.worker.reconciler.free_nodes
    assert looks is not None
    looks.nodes.blind_until = float("inf")
    world.kubelet.full = {"gpu-2"}
    world.api.put(PODS, stranger("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(30)
    assert gated(world) == []
    assert len(bound(world)) == 1


def test_a_pod_whose_gates_have_just_gone_is_not_one_without_room() -> None:
    message = "Scheduling is blocked due to non-empty scheduling gates"
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": message}
    free = pod("a-0", 1, gates=[])
    free["status"]["conditions"] = [condition]
    assert unready_reason(free) == (Reason.STARTING, "a-0-1 is being started")


# Room, without a cluster around it.


def pod(replica: str, rank: int, gpus: int = 8, **more: Any) -> Manifest:
    """A pod of a replica of two that nobody has placed, and that is held back unless `gates` says otherwise."""
    spec = {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "schedulingGates": more.get("gates", [{"name": GATE}]),
        "containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}],
        **({"nodeName": more["on"]} if "on" in more else {}),
    }
    meta = {
        "name": f"{replica}-{rank}",
        "namespace": "team",
        "creationTimestamp": more.get("created", "2026-01-01T00:00:00Z"),
        "labels": {"qwen-operator.dev/replica": replica},
        "annotations": {"qwen-operator.dev/replica-pods": "2", "qwen-operator.dev/released-at": more.get("released")},
    }
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}}


def pair(replica: str, **more: Any) -> list[Manifest]:
    return [pod(replica, rank, **more) for rank in (0, 1)]


NOW = datetime(2026, 1, 1, 0, 6, tzinfo=UTC)
AGES_AGO = "2025-12-31T20:00:00Z"
LATER = {"created": "2026-01-01T00:05:00Z"}
FREE: list[dict[str, Any]] = []


def tainted(name: str, key: str) -> Manifest:
    return {**node(name), "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}}


@pytest.mark.parametrize(
    ("nodes", "others", "room"),
    [
        ([node("a"), node("b")], [], True),
        ([node("a")], [], False),
        ([node("a"), node("b", product="NVIDIA-L40S")], [], False),
        ([node("a"), tainted("b", "dedicated")], [], False),
        ([node("a"), tainted("b", "nvidia.com/gpu")], [], True),
        ([node("a"), {**node("b"), "spec": {"unschedulable": True}}], [], False),
        ([node("a"), node("b")], [pod("x", 0, gpus=1, on="b", gates=FREE)], False),
        ([node("a"), node("b"), node("c")], [pod("x", 0, gpus=1, on="b", gates=FREE)], True),
        # Who may be placed already comes first, and so does who is older.
        ([node("a"), node("b"), node("c")], pair("x", gates=FREE), False),
        ([node("a"), node("b"), node("c")], pair("aaa"), False),
        ([node("a"), node("b"), node("c")], pair("x", **LATER), True),
        # The scheduler does not place it, or somebody else does not let it: then it takes nothing.
        ([node("a"), node("b")], [pod("x", 0, gates=FREE, created=AGES_AGO)], True),
        ([node("a"), node("b")], [pod("x", 0, gates=FREE, created=AGES_AGO, released=AGES_AGO)], True),
        ([node("a"), node("b")], [pod("x", 0, gates=FREE, created=AGES_AGO, released="2030-01-01T00:00:00Z")], True),
        ([node("a"), node("b")], [pod("x", 0, gates=FREE, created=AGES_AGO, released="2026-01-01T00:05:00Z")], False),
        ([node("a"), node("b")], pair("x", gates=[{"name": "kueue.x-k8s.io/admission"}]), True),
        # An older one that does not fit itself keeps nobody out.
        ([node("a"), node("b")], pair("aaa", gpus=16), True),
        ([node("a"), node("b")], [pod("aaa", 0)], True),
        # A half of a placed replica does not get a second pod on its first node.
        (
            [node("a", gpus=16), node("b"), node("c")],
            [pod("x", 0, on="a", gates=FREE), pod("x", 1, gates=FREE)],
            True,
        ),
        ([node("a", gpus=16), node("b")], [pod("x", 0, on="a", gates=FREE), pod("x", 1, gates=FREE)], False),
    ],
)
def test_room_is_for_whole_replicas_on_nodes_of_their_own(
    nodes: list[Manifest], others: list[Manifest], room: bool
) -> None:
    why = room_for({"mine"}, "team", Neighbours(tuple(nodes), (*pair("mine"), *others)), NOW).lacks
    assert (why == {}) is room, why


@pytest.mark.parametrize("gates", [FREE, [{"name": GATE}]], ids=["scheduled", "held back"])
def test_pods_without_gpus_keep_no_node_from_anybody(gates: list[dict[str, Any]]) -> None:
    plain = node("cpu")
    plain["status"] = {**plain["status"], "allocatable": {"cpu": "8"}}
    others = pair("aaa", gates=gates)
    for one in others:
        one["spec"] |= {"containers": [{"name": "inspection"}], "nodeSelector": {}}
    nodes = (plain, node("a"), node("b"))
    assert room_for({"mine"}, "team", Neighbours(nodes, (*pair("mine"), *others)), NOW).lacks == {}


def test_a_node_that_does_not_offer_its_gpus_yet_has_none_free() -> None:
    back = {**node("b"), "status": {"capacity": {}, "allocatable": {}}}
    others = (*pair("mine"), pod("x", 0, on="b", gates=FREE))
    why = room_for({"mine"}, "team", Neighbours((node("a"), back), others), NOW).lacks
    assert "(b has 0 of 0, a has 8 of 8)" in why["mine"]


def test_network_cards_are_no_gpus() -> None:
    pods = pair("mine")
    for one in pods:
        one["spec"]["containers"][0]["resources"]["limits"] |= {"nvidia.com/cx7_rdma": "1"}
    assert room_for({"mine"}, "team", Neighbours((node("a"), node("b")), tuple(pods)), NOW).lacks == {}


def with_cards(one: Manifest, cards: str) -> Manifest:
    status = {**one["status"], "allocatable": {**one["status"]["allocatable"], "rdma/hca": cards}}
    return {**one, "status": status}


def test_network_cards_count_where_nodes_offer_them() -> None:
    pods = pair("mine")
    for one in pods:
        one["spec"]["containers"][0]["resources"]["limits"] |= {"rdma/hca": "1"}
    nodes = (with_cards(node("a"), "1"), node("b"))
    why = room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW).lacks["mine"]
    assert "needs 2 nodes with 8 free nvidia.com/gpu and 1 rdma/hca each, 1 of 2 nodes has them" in why
    assert "(b has 8 of 8 and 0 of 0 rdma/hca, a has 8 of 8)" in why
    nodes = (with_cards(node("a"), "1"), with_cards(node("b"), "1"))
    assert room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW).lacks == {}


def test_one_pod_of_a_node_is_on_its_network() -> None:
    pods = [*pair("mine", gpus=1), pod("x", 0, gpus=1, on="b", gates=FREE)]
    nodes = (node("a"), node("b"))
    assert room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW).lacks == {}
    for one in pods:
        one["spec"]["hostNetwork"] = True
    why = room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW).lacks["mine"]
    assert "needs 2 nodes with 1 free nvidia.com/gpu and 1 port 8000 each" in why
    assert "b has 7 of 8 and 0 of 1 port 8000" in why
    shared = Neighbours((node("a"),), tuple(pods[:2]), distinct_nodes=False)
    assert list(room_for({"mine"}, "team", shared, NOW).lacks) == ["mine"]


BLOCK = "topology.example.com/block"


def in_block(name: str, block: str, gpus: int = 8) -> Manifest:
    one = node(name, gpus=gpus)
    return {**one, "metadata": {**one["metadata"], "labels": {**one["metadata"]["labels"], BLOCK: block}}}


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [
        # The smallest block that has room, so that a larger one stays whole.
        ({"a": "1", "b": "2", "c": "2", "d": "3", "e": "3", "f": "3"}, "2"),
        ({"a": "1", "b": "2", "c": "3"}, None),
        ({"a": "1", "b": "1"}, "1"),
    ],
)
def test_nodes_that_must_share_a_block(blocks: dict[str, str], chosen: str | None) -> None:
    pods = pair("mine")
    for one in pods:
        one["metadata"]["annotations"]["qwen-operator.dev/topology"] = f"{BLOCK}=Required"
    nodes = (*(in_block(name, block) for name, block in blocks.items()), node("y"), node("z"))
    room = room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW)
    assert room.blocks == ({"mine": {BLOCK: chosen}} if chosen else {})
    if chosen is None:
        assert f"and must share the label {BLOCK}, of which 3 has 1 of these nodes" in room.lacks["mine"]
    for one in pods:
        one["metadata"]["annotations"]["qwen-operator.dev/topology"] = f"{BLOCK}=Preferred"
    room = room_for({"mine"}, "team", Neighbours(nodes, tuple(pods)), NOW)
    assert (room.lacks, room.blocks) == ({}, {})


async def test_the_operator_chooses_the_block_that_has_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler of this world takes the first node, in a block without room for the second pod."""
    with_groups(2, monkeypatch)
    chart = MultiNode(topology_key=BLOCK, topology_policy=TopologyPolicy.REQUIRED)
    world = await World(config=replace(CONFIG, multi_nodes=MultiNodes(chart))).start()
    world.kubelet.place = True
    for name, block in (("gpu-1", "a"), ("gpu-2", "b"), ("gpu-3", "b")):
        world.api.put(NODES, in_block(name, block, gpus=1))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(40)
    assert sorted(bound(world).values()) == ["gpu-2", "gpu-3"]
    assert world.conditions()["Ready"] == ("True", "Serving")
    # A pod that is made anew joins the others: the block is chosen once for each life of a replica.
    assert {pod["spec"]["nodeSelector"][BLOCK] for pod in world.api.all(PODS)} == {"b"}


@pytest.mark.parametrize("others", [{}, {"gpu-7": "c"}], ids=["two blocks", "and one that is too small"])
async def test_after_a_failure_another_block_is_tried(others: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    chart = MultiNode(topology_key=BLOCK, topology_policy=TopologyPolicy.REQUIRED)
    world = await World(config=replace(CONFIG, multi_nodes=MultiNodes(chart))).start()
    world.kubelet.place, world.kubelet.full = True, {"gpu-2"}
    for name, block in {"gpu-1": "a", "gpu-2": "a", "gpu-3": "b", "gpu-4": "b", **others}.items():
        world.api.put(NODES, in_block(name, block, gpus=1))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(60)
    assert list(bound(world).values()) == ["gpu-1"]
    await world.wait(800)
    assert sorted(bound(world).values()) == ["gpu-3", "gpu-4"]
    assert world.conditions()["Ready"] == ("True", "Serving")


def test_a_pool_that_may_grow_counts_with_the_nodes_that_it_may_get() -> None:
    neighbours = Neighbours((node("a"),), tuple(pair("mine")))
    assert room_for({"mine"}, "team", neighbours, NOW, future_nodes=1).lacks == {}
    assert list(room_for({"mine"}, "team", neighbours, NOW).lacks) == ["mine"]


def test_nodes_that_a_pool_may_get_are_for_one_replica_only() -> None:
    pods = (*pair("mine"), *pair("mine-too", **LATER))
    neighbours = Neighbours((node("a"),), pods)
    both = {"mine", "mine-too"}
    assert list(room_for(both, "team", neighbours, NOW, future_nodes=2).lacks) == ["mine-too"]
    assert room_for(both, "team", neighbours, NOW, future_nodes=3).lacks == {}
    # Those of another replica that the scheduler may place already come first.
    taken = Neighbours((), (*pair("mine"), *pair("x", gates=FREE)))
    assert list(room_for({"mine"}, "team", taken, NOW, future_nodes=3).lacks) == ["mine"]


async def test_pods_that_no_qwendeployment_controls_keep_no_replica_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await a_world(monkeypatch, nodes=2)
    for forged in pair("aaa", gpus=1, created="2025-12-31T23:59:00Z"):
        forged["metadata"]["labels"] |= {
            "app.kubernetes.io/managed-by": "qwen-operator",
            "qwen-operator.dev/role": "engine",
            "qwen-operator.dev/deployment": "chat",
        }
        forged["metadata"] |= {"uid": f"uid-of-{forged['metadata']['name']}", "annotations": {}}
        world.api.put(PODS, {"apiVersion": "v1", "kind": "Pod", **forged})
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(40)
    assert world.conditions()["Ready"] == ("True", "Serving")
