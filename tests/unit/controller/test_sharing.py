"""Equal parts of stored objects are one object in memory, within bounds, and nobody changes them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.controller.cache import Store
from qwen_operator.controller.sharing import Shared
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest, Resource
from qwen_operator.manifests.names import LABEL_DEPLOYMENT
from qwen_operator.objects import ObjectKey
from tests.unit.fuzz.values import anything, fuzzed
from tests.unit.world import World, change, deployment, node

SPEC = {"containers": [{"name": "engine", "args": ["--a=1"], "env": [{"name": "A", "value": "1"}]}]}


def pod(name: str, spec: Any) -> Manifest:
    made: Manifest = json.loads(json.dumps({"metadata": {"name": name, "namespace": "team"}, "spec": spec}))
    return made


def test_equal_parts_are_one() -> None:
    shared = Shared()
    one, other = (shared.of(pod(name, SPEC)) for name in ("a", "b"))
    assert one["spec"] is other["spec"]
    assert one["metadata"]["namespace"] is other["metadata"]["namespace"]
    assert one["metadata"] is not other["metadata"]


def test_what_differs_in_a_leaf_shares_the_rest() -> None:
    shared = Shared()
    one, other = (shared.of(pod("a", {"tolerations": [{"key": "k"}], "priority": number})) for number in (1, 2))
    assert (one["spec"]["priority"], other["spec"]["priority"]) == (1, 2)
    assert one["spec"]["tolerations"] is other["spec"]["tolerations"]


@pytest.mark.parametrize("values", [(1, True), (1, 1.0), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ([], {})])
def test_what_json_writes_differently_is_not_shared(values: tuple[Any, Any]) -> None:
    shared = Shared()
    written = [json.dumps(shared.of(pod("a", {"x": [value]}))["spec"]) for value in values]
    assert written == [json.dumps({"x": [value]}) for value in values]


@fuzzed
@given(st.lists(anything, max_size=4))
def test_any_object_stays_equal(values: list[Any]) -> None:
    shared = Shared(2000)
    for value in values:
        made = shared.of({"metadata": {"name": "a"}, "spec": value})
        assert repr(made["spec"]) == repr(value)


def test_the_table_is_bounded_and_keeps_what_is_used() -> None:
    shared = Shared(20_000)
    first = shared.of(pod("a", SPEC))["spec"]
    for number in range(5000):
        shared.of(pod("a", {"nodeName": f"node-{number}"}))
        assert len(shared) < 400
        assert shared.of(pod("b", SPEC))["spec"] is first


@pytest.mark.parametrize("large", [["x"] * 10_000, "x" * 100_000, {f"l{number}": "" for number in range(5000)}])
def test_large_parts_are_not_in_the_table(large: Any) -> None:
    shared = Shared()
    assert shared.of(pod("a", {"large": large}))["spec"] == {"large": large}
    assert len(shared) == 0


async def test_nothing_changes_a_stored_object(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[tuple[Manifest, Manifest]] = []
    put = Store._put

    def recorded(store: Store, resource: Resource, key: ObjectKey, manifest: Manifest) -> None:
        stored.append((manifest, copy.deepcopy(manifest)))
        put(store, resource, key, manifest)

    monkeypatch.setattr(Store, "_put", recorded)
    world = await World().start()
    for name in ("chat", "other"):
        world.api.put(QWENDEPLOYMENTS, deployment(name, servedNames=[name], replicas=2))
    await world.settle()
    change(world, contextTokens=4096, pod={"labels": {"a": "b"}})
    await world.settle()
    world.api.edit(PODS, world.names()[0], lambda item: item["metadata"]["labels"].pop(LABEL_DEPLOYMENT))
    world.api.put(QWENDEPLOYMENTS, deployment("wrong", model="none"))
    world.api.put(NODES, node("gpu-2"))
    world.api.edit(QWENDEPLOYMENTS, "other", lambda item: item["spec"].update(replicas=0))
    await world.settle()
    assert len(stored) > 40
    assert all(manifest == before for manifest, before in stored)
