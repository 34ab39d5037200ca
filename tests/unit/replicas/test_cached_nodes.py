"""New pods prefer nodes whose cache has the model, and pods that exist stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.names import ANNOTATION_CACHED_ON
from qwen_operator.planning.types import CacheType, ModelCache
from qwen_operator.replicas import cached_nodes
from qwen_operator.replicas.cached_nodes import MOST_NODES
from tests.unit.status.test_cache_column import fetched, told
from tests.unit.status.test_progress import CACHED, commit
from tests.unit.world import World, deployment, node

ON_NODES = replace(CACHED, engine=replace(CACHED.engine, cache=ModelCache(CacheType.HOST_PATH, "/models", 100)))


async def world_with(config: Any = ON_NODES, **spec: Any) -> World:
    world = World(config, fetch=commit)
    world.kubelet.place = True
    world.kubelet.engine = lambda _pod: fetched(told(7))
    await world.start()
    world.api.put(NODES, node("gpu-2"))
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle()
    return world


def preferred(pod: Manifest) -> list[str]:
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    return [term["preference"]["matchFields"][0]["values"][0] for term in terms if "matchFields" in term["preference"]]


def pods(world: World) -> dict[str, Manifest]:
    return {pod["metadata"]["name"]: pod for pod in world.api.all(PODS)}


async def test_the_second_replica_prefers_the_node_of_the_first_and_the_first_stays() -> None:
    world = await world_with()
    [first] = world.api.all(PODS)
    assert preferred(first) == []
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    assert revision["metadata"]["annotations"][ANNOTATION_CACHED_ON] == first["spec"]["nodeName"]
    writes = len(world.api.writes)
    await world.wait(600)
    assert len(world.api.writes) == writes
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.settle()
    second = next(pod for name, pod in pods(world).items() if name != first["metadata"]["name"])
    assert preferred(second) == [first["spec"]["nodeName"]]
    assert pods(world)[first["metadata"]["name"]]["metadata"]["uid"] == first["metadata"]["uid"]


async def test_the_node_is_remembered_after_a_sleep_and_for_another_revision_of_the_same_model() -> None:
    world = await world_with()
    [first] = world.api.all(PODS)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=0))
    await world.wait(3600)
    assert world.api.all(PODS) == []
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=1, contextTokens=4096))
    await world.settle()
    [later] = world.api.all(PODS)
    assert (
        later["metadata"]["labels"]["qwen-operator.dev/revision"]
        != first["metadata"]["labels"]["qwen-operator.dev/revision"]
    )
    assert preferred(later) == [first["spec"]["nodeName"]]


async def test_a_model_with_another_commit_has_no_nodes() -> None:
    world = await world_with()
    source = {"uri": "hf://Qwen/Qwen1.5-7B-Chat", "revision": "d" * 40}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source=source))
    world.kubelet.engine = lambda _pod: None
    await world.settle()
    assert len(pods(world)) == 2
    assert all(preferred(pod) == [] for pod in pods(world).values())


async def test_the_users_own_affinity_stays() -> None:
    own = {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [own]}}
    world = await world_with(pod={"affinity": affinity})
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.settle()
    for pod in pods(world).values():
        terms = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert terms[0] == own
    assert sorted(len(preferred(pod)) for pod in pods(world).values()) == [0, 1]


async def test_more_nodes_than_are_remembered_cause_no_endless_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_nodes, "MOST_NODES", 2)
    world = await world_with()
    world.api.put(NODES, node("gpu-3"))
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=3))
    await world.settle()
    assert len({pod["spec"]["nodeName"] for pod in world.api.all(PODS)}) == 3
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    assert len(revision["metadata"]["annotations"][ANNOTATION_CACHED_ON].split(",")) == 2
    writes = len(world.api.writes)
    await world.wait(1200)
    assert len(world.api.writes) == writes


async def test_a_claim_and_no_cache_prefer_no_node() -> None:
    for config in (CACHED, replace(CACHED, engine=replace(CACHED.engine, cache=None))):
        world = await world_with(config, replicas=2)
        assert all(preferred(pod) == [] for pod in pods(world).values())
        [revision] = world.api.all(CONTROLLER_REVISIONS)
        assert ANNOTATION_CACHED_ON not in revision["metadata"]["annotations"]


async def test_what_somebody_writes_into_the_annotation_makes_no_bad_pod() -> None:
    world = await world_with()
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    value = ",".join(["Not a node", "gpu-1\n", "", *(f"n{index}" for index in range(50))])
    name = revision["metadata"]["name"]
    world.api.edit(
        CONTROLLER_REVISIONS, name, lambda item: item["metadata"]["annotations"].update({ANNOTATION_CACHED_ON: value})
    )
    await world.settle()
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.settle()
    names = [name for pod in pods(world).values() for name in preferred(pod)]
    assert 0 < len(names) <= MOST_NODES
    assert all(name.isascii() and " " not in name and "\n" not in name for name in names)
