"""Every write is a kill point: wherever the operator dies, its successor ends in the same state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, PODS, QWENDEPLOYMENTS, Manifest, Unavailable
from tests.unit.fakes import Crash, Write
from tests.unit.world import CONFIG, World, deployment, node, ready_status, with_groups


def _replicas(world: World, number: int) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=number))


async def _nothing(world: World) -> None:
    return None


async def _two_replicas(world: World) -> None:
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()


async def _three_replicas(world: World) -> None:
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=3))
    await world.settle()


def routes(pod: Manifest) -> bool:
    return "qwen-operator.dev/routable" in pod["metadata"]["labels"]


async def _loaded(world: World) -> None:
    """Two replicas, as the load decided."""
    world.wanted = 2
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"minReplicas": 1, "maxReplicas": 4}))
    await world.settle()


async def _draining(world: World) -> None:
    """Of three replicas two are on their way out, and still work."""
    world.wanted = 3
    world.api.put(QWENDEPLOYMENTS, deployment(scaling={"minReplicas": 1, "maxReplicas": 4}))
    await world.settle()
    world.busy |= set(world.names())
    _load(world, 1)
    await world.wait(8)


def _load(world: World, wanted: int) -> None:
    world.wanted = wanted
    world.operator.intake.enqueue_all()


def _idle(world: World) -> None:
    world.busy.clear()
    world.operator.intake.enqueue_all()


async def _on_nodes(world: World) -> None:
    """Two replicas on a node each."""
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    await _two_replicas(world)


_MORE_NODES = 3
"""A replica of two pods needs two nodes, and its successor beside it two more."""
_NO_SURGE = {"maxSurge": 0, "maxUnavailable": 1}


async def _three_without_surge(world: World) -> None:
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=3, rollout=_NO_SURGE))
    await world.settle()


def _another_spec(world: World) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=8192))


async def _new_pods_fail(world: World) -> None:
    """Two replicas serve; a pod of another spec would never become ready."""
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2, rollout={"progressDeadlineSeconds": 20}))
    await world.settle()
    good = set(world.names())
    loading = {**ready_status({}), "conditions": [{"type": "PodScheduled", "status": "True"}]}
    world.kubelet.engine = lambda pod: ready_status(pod) if pod["metadata"]["name"] in good else loading


async def _held(world: World) -> None:
    await _new_pods_fail(world)
    _another_spec(world)
    await world.settle()
    assert world.conditions()["Stalled"] == ("True", "RevisionHeld")


def _earlier_spec(world: World) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("contextTokens"))


def _cordon(world: World) -> None:
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))


class Broken(BaseException):
    """A promise is broken. Not an Exception: the worker survives those."""


@dataclass(frozen=True)
class Scenario:
    """`before` is done in peace; from `change` on the operator dies, once, at every write in turn."""

    name: str
    before: Callable[[World], Awaitable[None]]
    change: Callable[[World], object]
    pods: int
    serves_throughout: int = 0
    most: int = 0


SCENARIOS = (
    Scenario("fresh", _nothing, lambda world: world.api.put(QWENDEPLOYMENTS, deployment(replicas=2)), 2),
    Scenario(
        "claim",
        _nothing,
        lambda world: world.api.put(QWENDEPLOYMENTS, deployment(source={"uri": "pvc://weights/chat"}, model="local")),
        1,
    ),
    Scenario("scale up", _two_replicas, lambda world: _replicas(world, 4), 4, serves_throughout=2, most=4),
    Scenario("scale down", _three_replicas, lambda world: _replicas(world, 1), 1, serves_throughout=1, most=3),
    Scenario("load up", _loaded, lambda world: _load(world, 4), 4, serves_throughout=2, most=4),
    Scenario("load down", _loaded, lambda world: _load(world, 1), 1, serves_throughout=1, most=2),
    Scenario("load returns", _draining, lambda world: _load(world, 3), 3, serves_throughout=1, most=3),
    Scenario("drained", _draining, _idle, 1, serves_throughout=1, most=1),
    Scenario("cordon", _on_nodes, _cordon, 2, serves_throughout=2, most=2),
    Scenario("to zero", _two_replicas, lambda world: _replicas(world, 0), 0),
    Scenario(
        "rollout",
        _two_replicas,
        _another_spec,
        2,
        serves_throughout=2,
        most=2,
    ),
    Scenario("rollout without surge", _three_without_surge, _another_spec, 3, serves_throughout=2, most=2),
    Scenario("held back", _new_pods_fail, _another_spec, 3, serves_throughout=2, most=2),
    Scenario("rolled back", _held, _earlier_spec, 2, serves_throughout=2, most=2),
    Scenario("recovered", _held, lambda world: setattr(world.kubelet, "engine", ready_status), 2, 2, most=2),
    Scenario("delete", _two_replicas, lambda world: world.api.remove(world.qd(), QWENDEPLOYMENTS), 0),
)


def _watched(world: World, scenario: Scenario, at: int | None, fault: Callable[[], BaseException], late: bool) -> None:
    """Fail the write number `at` from now on, and check the promises at every write."""
    first, serving, most = len(world.api.writes), scenario.serves_throughout, scenario.most

    def check(number: int, write: Write) -> None:
        pods = [pod for pod in world.api.all(PODS) if "deletionTimestamp" not in pod["metadata"]]
        ready = [
            pod
            for pod in pods
            if routes(pod) and {"type": "Ready", "status": "True"} in pod["status"].get("conditions", [])
        ]
        if len(ready) < serving:
            raise Broken(f"only {len(ready)} replicas serve before {write}")
        routed = [pod for pod in pods if routes(pod)]
        if serving and len(routed) > most + 1:
            raise Broken(f"{len(routed)} pods for {most} replicas before {write}")

    faults = [] if at is None else [first + at]

    def hit(number: int, write: Write) -> None:
        if number in faults:
            faults.clear()
            raise fault()

    def before(number: int, write: Write) -> None:
        check(number, write)
        if not late:
            hit(number, write)

    world.api.before = before
    if late:
        world.api.after = hit


async def _played(
    scenario: Scenario, at: int | None, fault: Callable[[], BaseException], late: bool
) -> tuple[World, int]:
    world = await World().start()
    for number in range(_MORE_NODES):
        world.api.put(NODES, node(f"spare-{number}"))
    await scenario.before(world)
    first = len(world.api.writes)
    _watched(world, scenario, at, fault, late)
    scenario.change(world)
    await world.settle()
    return world, len(world.api.writes) - first


def _unavailable() -> BaseException:
    return Unavailable(503, "ServiceUnavailable", "scripted")


FAULTS: dict[str, tuple[Callable[[], BaseException], int]] = {
    "crash": (Crash, 1),
    "unavailable": (_unavailable, 1),
    "crash, groups of two": (Crash, 2),
}
"""A fault, and how many pods each replica has."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize(("fault", "members"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_the_end_is_the_same_wherever_a_write_fails(
    scenario: Scenario,
    fault: Callable[[], BaseException],
    late: bool,
    members: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_groups(members, monkeypatch)
    reference, writes = await _played(scenario, None, fault, late)
    expected, events = reference.state(), reference.events()
    assert len(reference.names()) == scenario.pods * members
    assert (writes == 0) == (scenario.name == "delete")

    for at in range(writes):
        world, spent = await _played(scenario, at, fault, late)
        assert world.state() == expected, f"after a fault at write {at}"
        assert world.events() <= events, f"after a fault at write {at}"
        assert spent <= writes + 3, f"after a fault at write {at}"
        if fault is Crash:
            assert world.crashes == 1
        before = len(world.api.writes)
        await world.restart()
        await world.settle()
        assert world.api.writes[before:] == [], f"the steady state after a fault at write {at}"


async def test_an_object_costs_no_more_writes_than_it_has_to() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert Counter(f"{write.verb} {write.resource.plural}" for write in world.api.writes) == {
        "create controllerrevisions": 1,
        "create poddisruptionbudgets": 1,
        "create pods": 1,
        "create events": 1,
        "status qwendeployments": 2,
    }


async def test_steady_state_writes_nothing_also_over_resyncs_and_restarts() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    world.api.put(QWENDEPLOYMENTS, deployment("local", source={"uri": "pvc://weights/x"}, model="local"))
    await world.settle()
    before = len(world.api.writes)
    for _ in range(3):
        await world.operator.resync.once()
        await world.settle()
        await world.restart()
        await world.settle()
    assert world.api.writes[before:] == []


async def test_what_was_made_while_engines_had_a_service_stays_and_is_no_older_plan() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    former = {"subdomain": "chat-engine"}
    world.api.one(CONTROLLER_REVISIONS, world.names(CONTROLLER_REVISIONS)[0])["data"]["template"]["spec"] |= former
    name = world.names()[0]
    world.api.one(PODS, name)["spec"] |= {"hostname": name, **former}

    before = len(world.api.writes)
    await world.restart()
    await world.settle()

    assert world.api.writes[before:] == []
    assert "newer plan" not in world.message("Planned")


async def test_a_pinned_revision_outlives_other_nodes_and_defaults() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    before = world.state()

    world.config = replace(CONFIG, engine=replace(CONFIG.engine, version="0.6.0"))
    world.api.put(NODES, node("other", 4, 24564, "NVIDIA-L4"))
    await world.restart()
    await world.settle()
    assert "a newer plan is available: kubectl annotate" in world.message("Planned")
    after = world.state()
    assert {key: value for key, value in after.items() if "qwendeployment" not in key} == {
        key: value for key, value in before.items() if "qwendeployment" not in key
    }

    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "1"})
    )
    await world.settle()
    assert [pod["spec"]["containers"][0]["image"] for pod in world.api.all(PODS)] == ["example/sglang:v0.6.0"]
    assert "newer plan" not in world.message("Planned")
