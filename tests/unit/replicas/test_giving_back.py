"""Replicas whose model cannot be fetched give their GPUs back, and are tried again later and later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.names import ANNOTATION_FETCH_FAILURES
from qwen_operator.planning.types import CacheType
from qwen_operator.replicas.giving_back import FAILURES, WORTH_BYTES
from tests.unit.fakes import Crash, Write
from tests.unit.replicas.test_cached_nodes import ON_NODES
from tests.unit.replicas.test_prefetch import failed, world_of
from tests.unit.status.test_cache_column import fetched, told
from tests.unit.world import World, change, deployment

AGAIN = FAILURES - 1


async def begun(reason: str = "AuthRequired", restarts: int = AGAIN, **spec: Any) -> World:
    world = world_of(nodes=4)
    world.kubelet.engine = failed(reason, restarts)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle(20)
    return world


def arrives(world: World) -> None:
    world.kubelet.engine = lambda _pod: fetched(told(0), finishedAt=world.api.clock.stamp())


def remembered(world: World) -> str:
    return str(world.api.all(CONTROLLER_REVISIONS)[0]["metadata"]["annotations"].get(ANNOTATION_FETCH_FAILURES, ""))


def creations(world: World) -> int:
    return sum(write.verb == "create" and write.resource == PODS for write in world.api.writes)


@pytest.mark.parametrize("reason", ["AuthRequired", "GatedModel", "DiskFull", "SourceChanged", "ModelNotFound"])
async def test_a_first_revision_gives_its_gpus_back_and_says_why(reason: str) -> None:
    world = await begun(reason)
    assert world.names() == []
    assert remembered(world).endswith(reason)
    assert world.conditions()["Stalled"] == ("True", reason)
    assert world.conditions()["Ready"] == ("False", reason)
    message = world.message("Ready")
    assert f"{reason} as told; the operator gave the GPUs back, and tries again at 2026-" in message
    assert "or at once if the spec or the annotation qwen-operator.dev/replan changes" in message
    assert world.qd()["status"]["lastFailure"]["reason"] == reason


async def test_it_is_tried_again_later_and_later_and_not_for_ever() -> None:
    world = await begun()
    made: list[int] = []
    for minutes in (2, 4, 8, 16, 32, 60, 60):
        before = creations(world)
        await world.wait(60 * minutes - 40)
        assert creations(world) == before
        await world.wait(40)
        made.append(creations(world) - before)
    assert made == [1] * 7
    assert remembered(world).startswith("8 ")
    assert world.names() == []
    assert world.events()["AuthRequired"] < 20


async def test_another_operator_goes_on_where_the_first_one_was() -> None:
    world = await begun()
    await world.wait(130)
    assert remembered(world).startswith("2 ")
    before = creations(world)
    await world.restart()
    await world.wait(200)
    assert (creations(world), world.names()) == (before, [])
    assert world.conditions()["Ready"] == ("False", "AuthRequired")
    assert "AuthRequired as told" in world.message("Ready")


@pytest.mark.parametrize("verb", ["patch", "delete"])
async def test_a_crash_between_the_note_and_the_deletion_counts_nothing_twice(verb: str) -> None:
    world, crashes = world_of(nodes=4), [Crash()]
    world.kubelet.engine = failed("AuthRequired", AGAIN)

    def crash(_number: int, write: Write) -> None:
        if (write.verb, write.resource) == (verb, CONTROLLER_REVISIONS if verb == "patch" else PODS) and crashes:
            raise crashes.pop()

    world.api.after = crash
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle(30)
    assert (world.crashes, world.names()) == (1, [])
    assert remembered(world).startswith("1 ")


@pytest.mark.parametrize("annotated", [False, True])
async def test_a_change_is_tried_at_once(annotated: bool) -> None:
    world = await begun()
    arrives(world)
    if annotated:
        replan = {"qwen-operator.dev/replan": "1"}
        world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations=replan))
    else:
        change(world, contextTokens=2048)
    await world.settle()
    assert len(world.names()) == 1


async def test_one_replica_tries_and_the_others_follow_when_the_model_is_there() -> None:
    world = await begun(replicas=3)
    assert remembered(world).startswith("1 "), "three replicas at the same time are one attempt"
    world.kubelet.engine = failed("AuthRequired", 0)
    await world.wait(130)
    assert len(world.names()) == 1
    arrives(world)
    await world.settle()
    assert len(world.names()) == 3
    assert remembered(world) == ""


async def test_an_attempt_that_has_just_begun_is_left_alone() -> None:
    world = await begun(restarts=AGAIN - 1)
    await world.wait(3600)
    assert (len(world.names()), remembered(world)) == (1, "")


async def test_what_serves_stays_when_another_replica_cannot_be_fetched() -> None:
    world = world_of(nodes=4)
    arrives(world)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=1))
    await world.settle()
    serving = world.names()
    world.kubelet.engine = lambda pod: (
        None if pod["metadata"]["name"] in serving else failed("AuthRequired", AGAIN)(pod)
    )
    change(world, replicas=3)
    await world.wait(30)
    assert world.names() == serving
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "tries again at" in world.message("Ready")


def once_fetched(world: World, pod: Manifest) -> Manifest | None:
    running = pod["status"].get("phase") == "Running"
    return None if running else fetched(told(0), finishedAt=world.api.clock.stamp())


async def three_beside_a_node_that_cannot(reason: str = "DiskFull", config: Any = ON_NODES) -> World:
    """Three replicas serve. A fourth has failed on gpu-4 for 20 minutes."""
    world = world_of(config, nodes=4)

    def engine(pod: Manifest) -> Manifest | None:
        full = pod["spec"].get("nodeName") == "gpu-4"
        return failed(reason, AGAIN)(pod) if full else once_fetched(world, pod)

    world.kubelet.engine = engine
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=3))
    await world.settle()
    await world.settle()
    change(world, replicas=4)
    await world.wait(60 * 20)
    return world


def nodes_of(world: World) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in world.api.all(PODS))


@pytest.mark.parametrize("lost", [2, 3])
async def test_lost_replicas_come_back_at_once_although_a_node_has_no_room(lost: int) -> None:
    world = await three_beside_a_node_that_cannot()
    assert nodes_of(world) == ["gpu-1", "gpu-2", "gpu-3"]
    assert remembered(world).endswith("DiskFull 3")
    assert int(remembered(world).split()[0]) > 2
    for pod in world.api.all(PODS)[:lost]:
        world.api.remove(pod, PODS)
    await world.wait(10)
    # If all are lost, the first one shows the way.
    assert len(world.names()) >= (3 if lost == 2 else 1)
    await world.wait(120)
    assert nodes_of(world) == ["gpu-1", "gpu-2", "gpu-3"]
    assert remembered(world).endswith("DiskFull 3")


async def test_without_a_token_all_replicas_that_were_lost_do_not_try_for_ever() -> None:
    world = await three_beside_a_node_that_cannot()
    before = creations(world)
    world.kubelet.engine = failed("AuthRequired", AGAIN)
    for pod in world.api.all(PODS):
        world.api.remove(pod, PODS)
    await world.wait(2 * 3600)
    assert creations(world) - before <= 6


async def test_a_successor_that_meets_the_full_node_is_tried_every_two_minutes() -> None:
    world = await three_beside_a_node_that_cannot()
    change(world, replicas=3)
    before = creations(world)
    world.api.edit(NODES, "gpu-1", lambda item: item["spec"].update(unschedulable=True))
    world.kubelet.full = {"gpu-2", "gpu-3"}
    await world.wait(30)
    assert creations(world) == before + 1
    assert int(remembered(world).split()[0]) == 5
    await world.wait(60)
    assert creations(world) == before + 1
    world.kubelet.engine = lambda pod: once_fetched(world, pod)
    await world.wait(60)
    assert creations(world) == before + 2
    assert "gpu-4" in nodes_of(world)


async def test_a_place_is_no_excuse_without_a_cache_that_keeps_models() -> None:
    cache = replace(ON_NODES.engine.cache, type=CacheType.POD)  # type: ignore[type-var]
    config = replace(ON_NODES, engine=replace(ON_NODES.engine, cache=cache))
    world = await three_beside_a_node_that_cannot("AuthRequired", config)
    world.api.remove(world.api.all(PODS)[0], PODS)
    await world.wait(120)
    assert len(world.names()) == 2


async def test_in_a_rollout_the_earlier_revision_comes_back_as_before() -> None:
    world = world_of(nodes=4)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(rollout={"progressDeadlineSeconds": 60}))
    await world.settle()
    serving = world.names()
    world.kubelet.engine = lambda pod: (
        None if pod["metadata"]["name"] in serving else failed("AuthRequired", AGAIN)(pod)
    )
    change(world, contextTokens=2048)
    await world.wait(300)
    assert set(serving) < set(world.names())
    assert world.conditions()["Stalled"] == ("True", "RevisionHeld")


async def test_an_engine_that_ran_keeps_its_pod() -> None:
    """Its node was started anew, so the container fetches again."""

    def restarted(pod: Manifest) -> Manifest:
        ended = {"exitCode": 255, "reason": "Unknown", "finishedAt": "2026-01-01T00:00:00Z"}
        engine = {"name": "engine", "restartCount": 1, "state": {}, "lastState": {"terminated": ended}}
        return {**failed("AuthRequired", AGAIN)(pod), "containerStatuses": [engine]}

    world = await begun()
    world.kubelet.engine = restarted
    await world.wait(130)
    assert len(world.names()) == 1


@pytest.mark.parametrize(
    ("kind", "told", "stays"),
    [
        (CacheType.HOST_PATH, {"silent": True, "presentBytes": 2 * WORTH_BYTES}, False),
        (CacheType.POD, {"silent": True, "presentBytes": WORTH_BYTES}, True),
        # The small files come from the hub itself, and a firewall blocks the network that has the weights.
        (CacheType.POD, {"silent": True, "presentBytes": 20 << 20}, False),
        (CacheType.POD, {"silent": True, "presentBytes": 0}, False),
        # It answers, but not as it should.
        (CacheType.POD, {"presentBytes": WORTH_BYTES}, False),
        # A container of an earlier version says nothing.
        (CacheType.POD, {}, True),
        (CacheType.POD, {"silent": 1, "presentBytes": 10**30}, False),
    ],
)
async def test_a_silent_hub_ends_only_pods_that_lose_little(kind: CacheType, told: dict[str, Any], stays: bool) -> None:
    cache = replace(ON_NODES.engine.cache, type=kind)  # type: ignore[type-var]
    world = world_of(replace(ON_NODES, engine=replace(ON_NODES.engine, cache=cache)))
    world.kubelet.engine = failed("HubUnreachable", 10, **told)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle(20)
    assert bool(world.names()) is stays


@pytest.mark.parametrize(
    "value", ["", "x", "1 soon AuthRequired", "9999 2026-01-01T00:00:00Z AuthRequired", "1 " * 999]
)
async def test_nonsense_in_the_annotation_delays_nothing(value: str) -> None:
    world = await begun(restarts=0)
    name = world.api.all(CONTROLLER_REVISIONS)[0]["metadata"]["name"]

    def fill(item: Manifest) -> None:
        item["metadata"]["annotations"][ANNOTATION_FETCH_FAILURES] = value

    world.api.edit(CONTROLLER_REVISIONS, name, fill)
    change(world, replicas=2)
    await world.settle()
    assert len(world.names()) == 2
