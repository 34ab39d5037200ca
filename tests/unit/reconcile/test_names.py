"""Served names over time: edits, deletions, restarts, clocks and lagging watches, with the operator and the agent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.api.claims import RESERVED_SECONDS, NameRights
from qwen_operator.api.name_index import holders
from qwen_operator.controller.cache import Store
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from tests.unit.fakes import Clock
from tests.unit.world import CONFIG, World, deployment

NAME = "chat-model"


def wants(namespace: str, name: str, *names: str) -> Manifest:
    """A QwenDeployment with zero replicas: this is about names only."""
    manifest = deployment(name, servedNames=list(names), replicas=0)
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}


def status(world: World, name: str) -> Manifest:
    return dict(world.qd(name)["status"])


def owner(world: World) -> str | None:
    """Who gets the requests for NAME: the agent's answer, from the objects alone."""
    key = holders(world.api.all(QWENDEPLOYMENTS), world.config.name_rights).owners.get(NAME)
    return str(key) if key is not None else None


def edit(world: World, name: str, *names: str) -> None:
    world.api.edit(QWENDEPLOYMENTS, name, lambda item: item["spec"].update(servedNames=list(names)))


def delete(world: World, name: str) -> None:
    world.api.finish(world.qd(name), QWENDEPLOYMENTS)


async def held_by(namespace: str, name: str) -> World:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, wants("team-old", "old", "old-name"))
    await world.settle()
    world.api.clock.advance(3600)
    world.api.put(QWENDEPLOYMENTS, wants(namespace, name, NAME))
    await world.settle()
    assert owner(world) == f"{namespace}/{name}"
    return world


async def test_the_status_says_since_when_a_name_is_held() -> None:
    world = await held_by("team-a", "chat")
    names = status(world, "chat")["names"]
    assert names["uid"] == world.qd("chat")["metadata"]["uid"]
    assert [one["name"] for one in names["held"]] == [NAME]
    since = names["held"][0]["since"]
    world.api.clock.advance(9999)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(labels={"a": "b"}))
    await world.restart()
    await world.settle()
    assert status(world, "chat")["names"]["held"] == [{"name": NAME, "since": since}]


async def test_an_older_object_cannot_take_a_name_by_an_edit_and_learns_why() -> None:
    world = await held_by("team-a", "chat")
    since = status(world, "chat")["names"]["held"][0]["since"]
    edit(world, "old", "old-name", NAME)
    assert owner(world) == "team-a/chat"
    await world.settle()
    assert owner(world) == "team-a/chat"
    message = (
        f'spec.servedNames has "{NAME}", which a QwenDeployment in namespace team-a holds since {since}: choose '
        "another name in spec.servedNames, or have the holder remove it from its own"
    )
    assert world.message("Degraded", "old") == message
    assert world.conditions("old")["Degraded"] == ("True", "NameConflict")
    edit(world, "old", NAME)
    await world.settle()
    assert world.conditions("old")["Stalled"] == ("True", "NameConflict")
    assert "chat" not in message.replace(NAME, "")


async def test_a_model_without_served_names_is_told_that_its_name_is_the_model() -> None:
    world = await World().start()
    for namespace in ("team-a", "team-b"):
        world.api.put(QWENDEPLOYMENTS, wants(namespace, f"of-{namespace}"))
        await world.settle()
    model = world.qd("of-team-b")["spec"]["model"]
    assert world.message("Ready", "of-team-b").startswith(
        f'spec.servedNames is empty, so the name is spec.model "{model}", which a QwenDeployment in namespace team-a'
    )


async def test_within_a_namespace_the_message_names_the_holder() -> None:
    world = await held_by("team-a", "chat")
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat2", NAME))
    await world.settle()
    assert "which QwenDeployment chat of this namespace holds since" in world.message("Ready", "chat2")


async def test_a_name_that_its_holder_gives_up_by_an_edit_goes_to_the_next_at_once() -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    await world.settle()
    edit(world, "chat", "other")
    assert owner(world) is None
    await world.operator.step()
    assert owner(world) == "team-old/old"
    # The former holder changes its mind, too late, and even before its own status is written anew.
    edit(world, "chat", NAME)
    assert owner(world) == "team-old/old"
    await world.settle()
    assert owner(world) == "team-old/old"


@pytest.mark.parametrize("down", [False, True])
async def test_a_holder_that_is_deleted_and_made_anew_gets_its_name_back(down: bool) -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    await world.settle()
    delete(world, "chat")
    if not down:
        await world.wait(RESERVED_SECONDS - 60)
        assert owner(world) is None
        assert "The name is reserved for that namespace until" in world.message("Degraded", "old")
        await world.restart()
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat", NAME))
    if down:
        await world.restart()
    await world.settle()
    assert owner(world) == "team-a/chat"


async def test_nobody_snatches_a_name_between_a_deletion_and_the_new_object() -> None:
    world = await held_by("team-a", "chat")
    delete(world, "chat")
    await world.operator.step()
    edit(world, "old", "old-name", NAME)
    await world.wait(10)
    assert owner(world) is None
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat", NAME))
    await world.settle()
    assert owner(world) == "team-a/chat"


async def test_after_the_reservation_the_name_goes_to_the_next() -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    await world.settle()
    delete(world, "chat")
    await world.wait(10)
    late = wants("team-b", "late", NAME)
    world.api.put(QWENDEPLOYMENTS, late)
    await world.wait(RESERVED_SECONDS - 20)
    assert owner(world) is None
    await world.wait(30)
    assert owner(world) == "team-old/old"
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat", NAME))
    await world.settle()
    assert owner(world) == "team-old/old"
    assert "namespace team-old holds since" in world.message("Ready", "chat")


async def test_a_rename_within_a_namespace_passes_the_name_on_at_once() -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "renamed", NAME))
    await world.settle()
    delete(world, "chat")
    await world.operator.step()
    assert owner(world) == "team-a/renamed"


async def test_a_clock_that_is_set_back_moves_no_name() -> None:
    world = await held_by("team-a", "chat")
    first = status(world, "chat")["names"]["held"][0]["since"]
    edit(world, "old", NAME)
    await world.settle()
    world.api.clock.epoch -= timedelta(hours=2)
    edit(world, "chat", "other")
    await world.operator.step()
    assert owner(world) == "team-old/old"
    assert status(world, "old")["names"]["held"][0]["since"] > first
    edit(world, "chat", NAME)
    await world.settle()
    assert owner(world) == "team-old/old"


async def test_an_upgrade_writes_each_status_once_and_moves_no_name() -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    await world.settle()
    for name in ("chat", "old"):
        world.api.edit(QWENDEPLOYMENTS, name, lambda item: item["status"].pop("names"))
    assert owner(world) == "team-a/chat"
    before = len(world.api.writes)
    await world.restart()
    await world.settle()
    assert sorted((write.verb, write.name) for write in world.api.writes[before:]) == [
        ("status", "chat"),
        ("status", "old"),
    ]
    assert owner(world) == "team-a/chat"
    assert status(world, "chat")["names"]["held"][0]["since"] == world.qd("chat")["metadata"]["creationTimestamp"]


async def test_a_grant_for_an_object_that_changed_meanwhile_is_not_written() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat", NAME))
    world.operator.deliver()
    world.operator.lagging = True
    edit(world, "chat", "other")
    key = world.operator.queue.take()
    assert key is not None
    await world.operator.worker.work(key)
    assert "status" not in world.qd("chat")
    world.operator.lagging = False
    await world.settle()
    assert [one["name"] for one in status(world, "chat")["names"]["held"]] == ["other"]


async def test_two_grants_on_their_way_never_are_for_one_name() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, wants("team-b", "young", NAME))
    world.operator.deliver()
    share = world.operator.store.names.share(("team-b", "young"))
    assert [one.name for one in share.held] == [NAME]
    # The write is on its way when an older object asks for the name.
    older = wants("team-a", "older", NAME)
    older["metadata"] |= {"uid": "older", "resourceVersion": "99", "creationTimestamp": "2001-01-01T00:00:00Z"}
    world.operator.store.update(QWENDEPLOYMENTS, older)
    assert world.operator.store.names.share(("team-a", "older")).held == ()


RIGHTS = replace(CONFIG, name_rights=NameRights({"team-a": ("team-a-*",), "*": ("*",)}))


async def test_a_namespace_without_the_right_is_told_the_field_the_value_and_who_may_allow_it() -> None:
    world = await World(config=RIGHTS).start()
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "chat", NAME))
    world.api.put(QWENDEPLOYMENTS, wants("team-a", "good", "team-a-chat", NAME))
    await world.settle()
    assert world.conditions("chat")["Ready"] == ("False", "NameNotAllowed")
    assert world.message("Ready", "chat") == (
        f'spec.servedNames has "{NAME}", which this namespace may not serve (allowed: "team-a-*"): choose another '
        "name in spec.servedNames, or ask the platform team to allow it in the Helm value servedNames"
    )
    assert world.conditions("good")["Degraded"] == ("True", "NameNotAllowed")
    assert status(world, "good")["endpoint"]["names"] == ["team-a-chat"]


async def test_a_right_that_is_taken_away_frees_the_name_at_once() -> None:
    world = await held_by("team-a", "chat")
    edit(world, "old", "old-name", NAME)
    await world.settle()
    world.config = RIGHTS
    assert owner(world) is None
    await world.restart()
    await world.settle()
    assert owner(world) == "team-old/old"
    assert "held" not in status(world, "chat")["names"]
    # The right comes back, and the name does not.
    world.config = CONFIG
    await world.restart()
    await world.settle()
    assert owner(world) == "team-old/old"


async def test_an_invalid_spec_keeps_its_names() -> None:
    world = await held_by("team-a", "chat")
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas="many"))
    await world.settle()
    assert world.conditions("chat")["Stalled"] == ("True", "InvalidSpec")
    edit(world, "old", NAME)
    await world.settle()
    assert owner(world) == "team-a/chat"


# One edit among thousands of objects that share a name.


def _shared(number: int) -> tuple[Intake, WorkQueue, list[Manifest]]:
    clock = Clock()
    queue = WorkQueue(clock=clock.monotonic, random=lambda: 0.5)
    intake = Intake(Store(), queue)
    objects = [wants(f"team-{index}", "chat", NAME) for index in range(number)]
    for index, item in enumerate(objects):
        item["metadata"] |= {"uid": f"u{index}", "resourceVersion": str(index + 1), "generation": 1}
    held = [{"name": NAME, "since": "2026-01-01T00:00:00Z"}]
    objects[0]["status"] = {"names": {"uid": "u0", "held": held}}
    intake.listed(QWENDEPLOYMENTS, None, objects, str(number))
    _drain(queue)
    return intake, queue, objects


def _drain(queue: WorkQueue) -> int:
    taken = 0
    while (key := queue.take()) is not None:
        queue.done(key)
        taken += 1
    return taken


def _edited(item: Manifest, version: int, *names: str) -> Manifest:
    meta = {**item["metadata"], "resourceVersion": str(version)}
    return {**item, "metadata": meta, "spec": {**item["spec"], "servedNames": list(names)}}


def test_an_edit_of_one_of_3000_that_wait_for_a_name_queues_one() -> None:
    intake, queue, objects = _shared(3000)
    intake.event(QWENDEPLOYMENTS, "MODIFIED", _edited(objects[7], 9001, NAME, "more"))
    assert (_drain(queue), len(queue)) == (1, 0)
    intake.event(QWENDEPLOYMENTS, "MODIFIED", _edited(objects[7], 9002, "more"))
    assert _drain(queue) == 1
    intake.event(QWENDEPLOYMENTS, "DELETED", _edited(objects[8], 9003, NAME))
    assert _drain(queue) == 1


def test_a_holder_that_gives_up_queues_itself_and_the_next_and_the_others_little_by_little() -> None:
    intake, queue, objects = _shared(3000)
    intake.event(QWENDEPLOYMENTS, "MODIFIED", _edited(objects[0], 9001, "other"))
    assert _drain(queue) == 2
    assert queue.has_appointments


NAMES = [("team-a", "a1"), ("team-a", "a2"), ("team-b", "b1"), ("team-c", "c1")]


def _exists(world: World, name: str) -> bool:
    return any(item["metadata"]["name"] == name for item in world.api.all(QWENDEPLOYMENTS))


async def _act(world: World, action: str, index: int) -> None:
    """One step of a story. Steps that are not possible do nothing."""
    namespace, name = NAMES[index]
    if action == "create" and not _exists(world, name):
        world.api.put(QWENDEPLOYMENTS, wants(namespace, name, NAME))
    elif action == "add" and _exists(world, name):
        edit(world, name, NAME, f"own-{name}")
    elif action == "drop" and _exists(world, name):
        edit(world, name, f"own-{name}")
    elif action == "delete" and _exists(world, name):
        delete(world, name)
    elif action == "lag":
        world.operator.lagging = not world.operator.lagging
    elif action == "restart":
        await world.restart()
    elif action == "step":
        await world.operator.step()
    elif action == "clock":
        world.api.clock.epoch += timedelta(seconds=(-5000, -1, 400, 5000)[index])


def _asks(world: World, key: str) -> bool:
    items = {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": item for item in world.api.all(QWENDEPLOYMENTS)
    }
    return key in items and NAME in items[key]["spec"]["servedNames"]


ACTIONS = ["create", "add", "drop", "delete", "lag", "restart", "step", "step", "clock"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3)), max_size=25))
def test_in_no_story_does_a_live_name_move_before_its_holder_gives_it_up(story: list[tuple[str, int]]) -> None:
    asyncio.run(_story(story))


async def _story(story: list[tuple[str, int]]) -> None:
    world = await World().start()
    live: str | None = None
    for action, index in story:
        gave_up = action in ("drop", "delete") and live == "/".join(NAMES[index])
        await _act(world, action, index)
        now = owner(world)
        if live is not None and not gave_up:
            assert now == live, (action, index)
        live = now
        assert live is None or _asks(world, live)
    world.operator.lagging = False
    await world.wait(1)
    await world.restart()
    await world.wait(RESERVED_SECONDS * 2)
    asking = [item for item in world.api.all(QWENDEPLOYMENTS) if NAME in item["spec"]["servedNames"]]
    recorded = [item for item in asking if NAME in [one["name"] for one in item["status"]["names"].get("held", ())]]
    assert len(recorded) == min(1, len(asking))
