"""Drift: what is ours is put back, what others added stays, and nothing is written when nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
    Resource,
)
from tests.unit.world import World, deployment, edit_image

MANAGED = "app.kubernetes.io/managed-by"
CHILDREN = (PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS)


def _context(world: World, tokens: int) -> None:
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=tokens))


def _unlabel(item: Manifest) -> None:
    item["metadata"]["labels"].pop("qwen-operator.dev/deployment")
    item["metadata"]["labels"]["app.kubernetes.io/instance"] = "someone"


def _hide(item: Manifest) -> None:
    item["metadata"]["labels"].pop(MANAGED)


def _unmark(item: Manifest) -> None:
    item["metadata"]["annotations"].pop("qwen-operator.dev/owner-uid")


def _orphan(item: Manifest) -> None:
    item["metadata"].pop("ownerReferences")


def _demote(item: Manifest) -> None:
    item["metadata"]["ownerReferences"][0]["controller"] = False


@pytest.mark.parametrize(
    ("resource", "edit"),
    [
        *((resource, edit) for resource in CHILDREN for edit in (_unlabel, _hide, _orphan, _unmark, _demote)),
        (PODS, edit_image),
    ],
    ids=lambda value: value.plural if isinstance(value, Resource) else value.__name__.strip("_"),
)
async def test_an_edit_of_what_is_ours_is_undone(resource: Resource, edit: Callable[[Manifest], None]) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    before, name = world.state(), world.names(resource)[0]
    uid = world.api.one(resource, name)["metadata"]["uid"]

    def both(item: Manifest) -> None:
        edit(item)
        item["metadata"].setdefault("annotations", {})["foreign"] = "stays"
        item["metadata"]["labels"]["foreign"] = "stays"

    world.api.edit(resource, name, both)
    await world.settle()
    repaired = world.api.one(resource, name)
    assert repaired["metadata"]["uid"] == uid, "repaired, not replaced"
    assert repaired["metadata"]["annotations"].pop("foreign") == "stays"
    assert repaired["metadata"]["labels"].pop("foreign") == "stays"
    assert world.state() == before
    writes = len(world.api.writes)
    await world.restart()
    await world.settle()
    assert len(world.api.writes) == writes


@pytest.mark.parametrize("resource", CHILDREN, ids=lambda resource: resource.plural)
@pytest.mark.parametrize("event", [True, False], ids=["event", "missed"])
async def test_what_is_deleted_comes_back_also_when_no_event_tells(resource: Resource, event: bool) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    await world.settle()
    before = world.state()
    world.api.finish(world.api.one(resource, world.names(resource)[0]), resource)
    if not event:
        world.operator.miss()
        await world.operator.resync.once()
    await world.settle()
    assert world.state() == before


async def test_a_copy_of_a_pod_under_another_name_is_removed() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    copy = world.api.one(PODS, world.names()[0])
    world.api.put(PODS, {**copy, "metadata": {**copy["metadata"], "name": "chat-copy"}})
    await world.settle()
    assert "chat-copy" not in world.names()
    assert len(world.names()) == 1


async def test_old_revisions_are_kept_for_going_back_but_not_for_ever() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(contextTokens=1024))
    await world.settle()
    first = world.names(CONTROLLER_REVISIONS)
    for tokens in (2048, 4096, 8192, 16384):
        _context(world, tokens)
        await world.settle()
    assert len(world.names(CONTROLLER_REVISIONS)) == 3
    assert first[0] not in world.names(CONTROLLER_REVISIONS)
    _context(world, 8192)
    await world.settle()
    assert len(world.names(CONTROLLER_REVISIONS)) == 3
    assert len(world.names()) == 1
