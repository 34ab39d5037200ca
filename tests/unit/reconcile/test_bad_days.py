"""Days on which more than one thing goes wrong: what serves goes on serving, and nothing gets stuck."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

from qwen_operator.config.types import GatewayConfig
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, Forbidden, Manifest
from tests.unit.world import CONFIG, World, change, deployment, ready_status

LABEL = "qwen-operator.dev/revision"


def loading(started: bool) -> Manifest:
    status = ready_status({})
    status["conditions"][1]["status"] = "False"
    status["containerStatuses"][0]["started"] = started
    return status


async def served(**spec: Any) -> World:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(contextTokens=1024, **spec))
    await world.settle()
    return world


async def test_a_quota_that_refuses_the_new_pod_does_not_keep_the_broken_old_one() -> None:
    world = await World().start()
    world.kubelet.engine = lambda _pod: loading(started=False)
    world.api.put(QWENDEPLOYMENTS, deployment(contextTokens=1024))
    await world.settle()
    [old] = world.names()

    def admit(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Pod" and world.names():
            raise Forbidden(403, "Forbidden", "exceeded quota")

    world.api.admit = admit
    world.kubelet.engine = lambda pod: None if pod["metadata"]["name"] == old else ready_status(pod)
    change(world, contextTokens=2048)
    await world.wait(120)

    assert old not in world.names()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_pod_that_is_not_ready_for_a_moment_is_not_given_up_during_a_rollout() -> None:
    world = await served()
    [old] = world.names()
    dip = False

    def engine(pod: Manifest) -> Manifest:
        if pod["metadata"]["name"] != old:
            return loading(started=False)
        return loading(started=True) if dip else ready_status(pod)

    world.kubelet.engine = engine
    change(world, contextTokens=2048)
    await world.wait(10)
    dip = True
    await world.wait(2)
    dip = False
    await world.wait(10)

    assert old in world.names()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_wrong_spec_after_a_rollback_leaves_what_serves_alone() -> None:
    world = await served()
    first = world.names()
    change(world, contextTokens=2048)
    await world.settle()
    change(world, contextTokens=1024)
    await world.settle()
    assert world.names() == first

    change(world, contextTokens=1024, model="Qwen/Nope")
    await world.settle()

    assert world.names() == first


async def test_a_relabelled_revision_is_put_right_and_disturbs_nothing() -> None:
    world = await served()
    pods, [revision] = world.names(), world.names(CONTROLLER_REVISIONS)
    world.api.edit(CONTROLLER_REVISIONS, revision, lambda item: item["metadata"]["labels"].update({LABEL: "zzzz"}))
    await world.settle()

    assert world.api.one(CONTROLLER_REVISIONS, revision)["metadata"]["labels"][LABEL] == revision[-8:]
    assert world.names() == pods
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_refused_event_does_not_keep_the_status_back() -> None:
    world = await World().start()

    def admit(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Event":
            raise Forbidden(403, "Forbidden", "exceeded quota: count/events")

    world.api.admit = admit
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()

    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_without_the_right_to_make_the_key_the_deployments_are_served() -> None:
    world = World(config=replace(CONFIG, gateway=GatewayConfig("system", "keys", "keys")))

    def admit(_verb: str, manifest: Manifest) -> None:
        if manifest["kind"] == "Secret":
            raise Forbidden(403, "Forbidden", "no")

    world.api.admit = admit
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()

    assert len(world.names(PODS)) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_late_list_brings_nothing_back_that_was_deleted_meanwhile() -> None:
    world = await served()
    late = {resource: await world.api.list(resource, None) for resource in (QWENDEPLOYMENTS, PODS)}
    [pod] = world.names()
    world.api.finish(world.api.one(PODS, pod), PODS)
    world.operator.deliver()
    world.operator.intake.listed(PODS, None, *late[PODS])
    await world.wait(60)
    assert world.names() == [pod], "it was made again"
    world.api.finish(world.qd(), QWENDEPLOYMENTS)
    world.operator.deliver()
    writes = len(world.api.writes)
    world.operator.intake.listed(QWENDEPLOYMENTS, None, *late[QWENDEPLOYMENTS])
    await world.wait(60)
    assert world.operator.store.get(QWENDEPLOYMENTS, ("team", "chat")) is None
    assert len(world.api.writes) == writes


async def test_what_was_deleted_long_ago_is_forgotten() -> None:
    world = await served()
    gone, store = copy.deepcopy(world.qd()), world.operator.store
    world.api.finish(gone, QWENDEPLOYMENTS)
    world.operator.deliver()
    assert store.update(QWENDEPLOYMENTS, gone) is None
    world.api.put(QWENDEPLOYMENTS, deployment("other"))
    for _ in range(2):
        await world.operator.resync.once()
    assert store.update(QWENDEPLOYMENTS, gone), "the store forgot the deletion"


async def test_an_old_replica_that_restarts_once_is_not_given_up_while_the_new_one_does_not_come_up() -> None:
    world = await served()
    [old] = world.names()
    report = {"version": 1, "reason": "CudaOutOfMemory", "phase": "Serving", "exitCode": 137, "log": ["no memory"]}
    times = {"startedAt": "2026-01-01T00:00:05Z", "finishedAt": "2026-01-01T00:02:05Z"}
    end = {"exitCode": 137, "reason": "Error", "message": json.dumps(report), **times}
    restarts = 0

    def engine(pod: Manifest) -> Manifest:
        if pod["metadata"]["name"] == old and not restarts:
            return ready_status(pod)
        status = loading(started=False)
        if pod["metadata"]["name"] == old:
            status["containerStatuses"][0] |= {"restartCount": restarts, "lastState": {"terminated": end}}
        return status

    world.kubelet.engine = engine
    change(world, contextTokens=2048)
    await world.wait(10)
    restarts = 1
    await world.wait(30)
    assert old in world.names()
    # But one that dies again and again takes its GPUs for nothing.
    restarts = 3
    await world.wait(30)
    assert old not in world.names()
