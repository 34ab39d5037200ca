"""What the operator does about a spec that asks for more than the platform team allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.spec import InvalidSpec, parse
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.hubs import HubCheckpoint, HubError, HubQuery, HubReason, is_repository
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS
from qwen_operator.manifests.revisions import ANNOTATION_SOURCE
from qwen_operator.tenancy.lists import Mode, Setting, Tenancy
from tests.tenancy import (
    ALLOWED,
    CODE,
    HOST,
    MODELS,
    MODELS_ALLOWED,
    MODELS_RATCHET,
    MODELS_REFUSED,
    RATCHET,
    REFUSED,
    Case,
    source,
)
from tests.unit.world import CONFIG, REPORT, World, change, deployment

IMAGE = "localhost/sglang-cpu"
ENGINE = replace(CONFIG.engine, image=IMAGE)
TRUSTED = replace(CONFIG, engine=ENGINE, tenancy=Tenancy(mode=Mode.TRUSTED))
RESTRICTED = replace(CONFIG, engine=ENGINE, tenancy=Tenancy(engine_image=IMAGE))
FREE = replace(RESTRICTED, hub_lookup=True)
NARROW = replace(FREE, tenancy=Tenancy(engine_image=IMAGE, added={Setting.MODELS: MODELS}))
CLAIM = {"source": {"uri": "pvc://weights/chat"}, "model": "local"}


async def hub(query: HubQuery, _seconds: float) -> HubCheckpoint:
    """Every repository that there could be exists."""
    if not is_repository(query.repository):
        raise HubError(HubReason.NOT_FOUND, f"{query} does not exist")
    return HubCheckpoint(records.from_inspection(REPORT), "c0ffee" * 6)


async def served(config: Any = RESTRICTED, **spec: Any) -> World:
    """A world with `chat` in it that has come to rest."""
    world = await World(config=config, fetch=hub).start()
    world.api.put(QWENDEPLOYMENTS, deployment(**spec))
    await world.settle()
    return world


async def upgraded(before: Any = TRUSTED, after: Any = RESTRICTED, **spec: Any) -> World:
    """The same world after an upgrade from an operator that allowed everything."""
    world = await served(before, **spec)
    assert world.conditions()["Ready"] == ("True", "Serving"), world.message("Planned")
    world.config = after
    await world.restart()
    await world.settle()
    return world


def uids(world: World) -> list[str]:
    return [pod["metadata"]["uid"] for pod in world.api.all(PODS)]


async def test_no_pod_is_made_and_the_status_says_why() -> None:
    world = await served(**CLAIM, pod={"serviceAccountName": "builder"})
    assert world.names() == []
    assert world.names(CONTROLLER_REVISIONS) == []
    assert world.conditions()["Planned"] == ("False", "NotAllowed")
    assert world.conditions()["Stalled"] == ("True", "NotAllowed")
    message = world.message("Planned")
    assert "spec.pod.serviceAccountName: 'builder' is not allowed here" in message
    assert "with the chart value tenancy.serviceAccounts" in message
    change(world, pod={})
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_long_list_of_reasons_is_counted() -> None:
    pod = {"volumes": [HOST | {"name": f"v{n}"} for n in range(9)]}
    message = (await served(pod=pod)).message("Planned")
    assert message.startswith("9 entries, of which the first: spec.pod.volumes[0]: ")


async def test_an_exempt_object_is_not_judged() -> None:
    config = replace(RESTRICTED, tenancy=Tenancy(exempt=frozenset({"team/chat"})))
    assert (await served(config, pod={"volumes": [HOST]})).conditions()["Ready"] == ("True", "Serving")


async def test_an_upgrade_ends_no_engine_and_replaces_those_that_are_lost() -> None:
    world = await upgraded(pod={"volumes": [HOST], "tolerations": [{"operator": "Exists"}]}, replicas=2)
    before = uids(world)
    assert world.conditions()["Planned"] == ("True", "Fits")
    world.api.finish(world.api.all(PODS)[0], PODS)
    await world.settle()
    assert len(uids(world)) == 2
    assert before[1] in uids(world)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_an_engine_goes_on_while_its_next_spec_is_refused() -> None:
    world = await served(pod={"labels": {"a": "b"}})
    before = uids(world)
    change(world, pod={"labels": {"a": "b"}, "volumes": [HOST]})
    await world.settle()
    assert world.conditions()["Planned"] == ("False", "NotAllowed")
    assert world.conditions()["Ready"][0] == "True"
    assert uids(world) == before


def _runs(case: Case) -> bool:
    """Whether the operator, which checks more than the lists, makes pods for what the object had before."""
    try:
        parse(deployment(**case.before))
    except InvalidSpec:
        return False
    return bool(case.before)


@pytest.mark.parametrize("case", [case for case in RATCHET if _runs(case)], ids=lambda case: case.id)
async def test_what_the_running_revision_has_may_stay(case: Case) -> None:
    world = await upgraded(**case.before)
    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item.update(spec={"model": item["spec"]["model"], **case.spec})
    )
    await world.settle()
    expected = ("False", "NotAllowed") if case.refused else ("True", "Fits")
    assert world.conditions()["Planned"] == expected, world.message("Planned")
    assert world.conditions()["Ready"][0] == "True"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
async def test_nothing_of_the_table_gets_a_pod(case: Case) -> None:
    world = await served(**case.spec)
    assert world.names() == []
    assert world.conditions()["Planned"][1] in ("NotAllowed", "InvalidSpec", "UnknownFlag", "InvalidOverride")


async def test_everything_that_is_allowed_together_gets_a_pod() -> None:
    pod: dict[str, Any] = {}
    for case in ALLOWED:
        pod |= {key: value for key, value in case.spec.get("pod", {}).items() if key not in ("volumes", "volumeMounts")}
    world = await served(pod=pod)
    assert world.conditions()["Planned"] == ("True", "Fits"), world.message("Planned")


async def test_wrong_options_are_told_as_wrong_not_as_forbidden() -> None:
    world = await served(engine={"args": ["--max-runing-requests=4"]})
    assert world.conditions()["Planned"] == ("False", "UnknownFlag")
    world = await served(engine={"args": ["--max-runing-requests=4"]}, pod={"serviceAccountName": "builder"})
    assert world.conditions()["Planned"] == ("False", "NotAllowed")
    # Without a table of its options, nobody knows what an option of that version does.
    world = await served(engine={"args": [CODE], "version": "0.9.9"})
    assert world.conditions()["Planned"] == ("False", "NotAllowed")


@pytest.mark.parametrize("case", MODELS_REFUSED, ids=lambda case: case.id)
async def test_a_model_that_is_not_listed_gets_no_pod(case: Case) -> None:
    world = await served(NARROW, **case.spec)
    assert world.names() == []
    assert world.names(CONTROLLER_REVISIONS) == []
    assert world.conditions()["Planned"] == ("False", "NotAllowed")
    assert world.message("Planned").startswith(case.refused)


@pytest.mark.parametrize("case", MODELS_ALLOWED, ids=lambda case: case.id)
async def test_a_listed_model_is_planned_as_ever(case: Case) -> None:
    world, free = await served(NARROW, **case.spec), await served(FREE, **case.spec)
    assert world.conditions() == free.conditions()
    assert world.conditions()["Planned"][1] != "NotAllowed"


@pytest.mark.parametrize("case", MODELS_RATCHET, ids=lambda case: case.id)
async def test_the_model_that_runs_may_stay(case: Case) -> None:
    world = await upgraded(FREE, NARROW, **case.before)
    before = uids(world)
    assert world.conditions()["Planned"] == ("True", "Fits")
    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item.update(spec={"model": "Qwen/Qwen1.5-0.5B-Chat", **case.spec})
    )
    await world.settle()
    refused = world.conditions()["Planned"][1] == "NotAllowed"
    assert refused == bool(case.refused), world.message("Planned")
    assert world.conditions()["Ready"][0] == "True"
    if case.refused:
        assert uids(world) == before


async def test_a_revision_of_an_earlier_version_learns_where_its_weights_come_from() -> None:
    """So the model may stay when the list comes. One write for each object, and no new pods."""
    world = await served(FREE, **source("pvc://own/chat"))
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    assert revision["metadata"]["annotations"][ANNOTATION_SOURCE] == "pvc://own/chat"
    before = uids(world)
    name = revision["metadata"]["name"]
    world.api.edit(CONTROLLER_REVISIONS, name, lambda item: item["metadata"]["annotations"].pop(ANNOTATION_SOURCE))
    world.config, written = NARROW, len(world.api.writes)
    await world.restart()
    await world.settle()
    assert [(one.verb, one.resource, one.name) for one in world.api.writes[written:]] == [
        ("patch", CONTROLLER_REVISIONS, name)
    ]
    assert uids(world) == before
    change(world, contextTokens=2048)
    await world.settle()
    assert world.conditions()["Planned"] == ("True", "Fits")
    assert uids(world) != before
    assert {item["metadata"]["annotations"][ANNOTATION_SOURCE] for item in world.api.all(CONTROLLER_REVISIONS)} == {
        "pvc://own/chat"
    }
