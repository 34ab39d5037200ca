"""A namespace that the operator may not read: it harms itself only, and nothing is decided about it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from qwen_operator.api.claims import RESERVED_SECONDS, NameRights
from qwen_operator.api.name_index import holders
from qwen_operator.config.types import NetworkPolicyConfig
from qwen_operator.controller import resync
from qwen_operator.controller.network_policies import NetworkPolicies
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    Forbidden,
    Manifest,
    Resource,
    Unavailable,
)
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource
from qwen_operator.metrics.process import OperatorMetrics
from qwen_operator.replicas.scaling_view import scaled_deployments
from tests.unit.world import CONFIG, World, deployment

TWO = replace(CONFIG, namespaces=("team", "shut"))
NAME = "shared-name"
needed = pytest.mark.parametrize(
    "resource",
    [None, QWENDEPLOYMENTS, PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS],
    ids=lambda one: one.plural if one else "everything",
)


async def two_teams(**spec: object) -> World:
    """`chat` of team and `other` of shut serve."""
    world = await World(config=TWO).start()
    world.api.put(QWENDEPLOYMENTS, deployment("chat", "team", servedNames=["chat"]))
    world.api.put(QWENDEPLOYMENTS, deployment("other", "shut", servedNames=["other"], **spec))
    await world.settle()
    assert [world.conditions(name)["Ready"][0] for name in ("chat", "other")] == ["True", "True"]
    return world


def everything_in(world: World, namespace: str) -> list[Manifest]:
    return [item for (_, where, _), item in sorted(world.api.objects.items(), key=str) if where == namespace]


def pods_of(world: World, name: str) -> list[str]:
    labels = "qwen-operator.dev/deployment"
    return [pod["metadata"]["uid"] for pod in world.api.all(PODS) if pod["metadata"]["labels"].get(labels) == name]


async def look(world: World) -> None:
    await world.operator.resync.once()
    await world.settle()


@needed
async def test_after_a_restart_the_others_are_served_and_nothing_changes_there(resource: Resource | None) -> None:
    """With a part of the rights, what cannot be read would look absent: no pods, so make them anew."""
    world = await two_teams()
    world.api.refused = {(resource, "shut")}
    before = everything_in(world, "shut")
    await world.restart()
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    world.api.put(QWENDEPLOYMENTS, deployment("late", "team", servedNames=["chat", "other", "chat-2"]))
    await world.settle()
    assert len(pods_of(world, "chat")) == 2
    assert everything_in(world, "shut") == before


@needed
async def test_a_right_that_comes_back_needs_no_restart(resource: Resource | None) -> None:
    world = await two_teams()
    world.api.refused = {(resource, "shut")}
    await world.restart()
    world.api.edit(QWENDEPLOYMENTS, "other", lambda item: item["spec"].update(replicas=2))
    lost = pods_of(world, "other")
    await world.settle()
    assert pods_of(world, "other") == lost
    world.api.refused.clear()
    await world.operator.resync._ask_again()
    await world.settle()
    assert len(pods_of(world, "other")) == 2
    assert lost[0] in pods_of(world, "other")
    assert world.conditions("other")["Ready"] == ("True", "Serving")


@needed
async def test_a_right_that_is_gone_for_a_moment_removes_nothing(resource: Resource | None) -> None:
    world = await two_teams()
    pods = pods_of(world, "other")
    world.api.refused = {(resource, "shut")}
    await look(world)
    assert world.operator.store.get(QWENDEPLOYMENTS, ("shut", "other")) is not None
    # What happens meanwhile is seen afterwards.
    world.api.finish(world.api.all(PODS)[0], PODS)
    world.api.refused.clear()
    await look(world)
    assert len(pods_of(world, "other")) == len(pods)
    assert world.conditions("other")["Ready"] == ("True", "Serving")


async def test_a_deleted_namespace_is_one_that_cannot_be_read() -> None:
    world = await two_teams()
    for item in everything_in(world, "shut"):
        world.api.objects.pop(next(key for key, value in world.api.objects.items() if value is item))
    world.api.refused = {(None, "shut")}
    await world.restart()
    world.api.put(QWENDEPLOYMENTS, deployment("more", "team", servedNames=["chat", "more"]))
    await world.settle()
    assert world.conditions()["Ready"][0] == "True"
    assert world.operator.resync.synced.is_set() is False, "the world lists once; `first` sets it"
    await world.operator.resync.first()
    assert world.operator.resync.synced.is_set()


async def test_if_no_namespace_can_be_read_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await two_teams()
    world.api.refused = {(PODS, "shut"), (None, "team")}
    with pytest.raises(Forbidden, match='in the namespace "team"'):
        await world.restart()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert not world.operator.resync.synced.is_set()
        if len(slept) == 3:
            world.api.refused = {(PODS, "shut")}

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await world.operator.resync.first()
    assert len(slept) == 3


async def test_an_api_server_that_does_not_answer_is_no_missing_right() -> None:
    world = await two_teams()
    listed = world.api.list

    async def down(
        resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        if namespace == "shut":
            raise Unavailable(0, "NoAnswer", "down")
        return await listed(resource, namespace, labels, fields)

    world.api.list = down  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await world.operator.resync.once()
    assert world.operator.store.unreadable == frozenset()


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "qwen_operator.controller.resync"
    ]


async def test_the_log_says_once_which_right_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = await two_teams()
    world.api.refused = {(PODS, "shut")}
    for _ in range(3):
        await look(world)
        await world.operator.resync._ask_again()
    pods = "the operator may not list pods in namespace shut: it changes nothing there until it may"
    assert told(caplog) == [("WARNING", pods)]
    assert 'cannot list resource "pods" in the namespace "shut"' in caplog.records[-1].__dict__["error"]
    world.api.refused = {(None, "shut")}
    await look(world)
    world.api.refused.clear()
    await look(world)
    everything = pods.replace("pods", "qwendeployments")
    assert told(caplog)[1:] == [("WARNING", everything), ("INFO", "the operator may read namespace shut again")]


async def test_a_metric_shows_it_and_the_numbers_of_what_is_unknown_are_gone() -> None:
    world = await two_teams()
    metrics = OperatorMetrics()
    world.operator.resync.on_readable = metrics.readable
    store = world.operator.store
    numbers = DeploymentMetrics(store, LoadSource(dict, dict), lambda: True)

    def namespaces() -> set[str]:
        families = [family for part in numbers.slices() for family in part]
        return {sample.labels["namespace"] for family in families for sample in family.samples}

    def readable(namespace: str) -> float | None:
        return metrics.registry.get_sample_value("qwen_operator_namespace_readable", {"namespace": namespace})

    await look(world)
    assert (readable("team"), readable("shut"), namespaces()) == (1.0, 1.0, {"team", "shut"})
    world.api.refused = {(PODS, "shut")}
    await look(world)
    assert (readable("team"), readable("shut"), namespaces()) == (1.0, 0.0, {"team"})
    world.api.refused.clear()
    await look(world)
    assert (readable("shut"), namespaces()) == (1.0, {"team", "shut"})


async def test_scaling_does_not_take_unseen_pods_for_none() -> None:
    """It would let a model sleep that serves, and the pods would go when they can be seen again."""
    world = await two_teams(scaling={"minReplicas": 0, "maxReplicas": 3})
    world.api.refused = {(PODS, "shut")}
    await world.restart()
    store = world.operator.store
    assert store.get(QWENDEPLOYMENTS, ("shut", "other")) is not None
    assert [one.key for one in scaled_deployments(store.deployments(), store.replicas)] == [("team", "chat")]


@pytest.mark.parametrize("resource", [QWENDEPLOYMENTS, PODS], ids=lambda one: one.plural)
async def test_a_network_policy_stays_where_nobody_knows_who_needs_it(resource: Resource) -> None:
    world = await two_teams()
    config = NetworkPolicyConfig(enabled=True, name="system.qwen-engines", ingress=({},))

    async def step() -> list[str]:
        policies = NetworkPolicies(world.api, world.operator.store, config, TWO.namespaces, lambda: 0.0)
        for scope in TWO.namespaces:
            items, _ = await world.api.list(NETWORK_POLICIES, scope)
            policies.listener(scope)({(scope, item["metadata"]["name"]): item for item in items})
        await policies.step()
        return [item["metadata"]["namespace"] for item in world.api.all(NETWORK_POLICIES)]

    assert await step() == ["shut", "team"]
    world.api.refused = {(resource, "shut")}
    await world.restart()
    assert await step() == ["shut", "team"]


async def test_quotas_that_cannot_be_read_in_one_namespace_are_read_in_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await two_teams()
    world.api.put(
        RESOURCE_QUOTAS,
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "team"}, "spec": {}},
    )
    world.api.refused = {(RESOURCE_QUOTAS, "shut")}
    await world.restart()
    await look(world)
    assert RESOURCE_QUOTAS in world.operator.resync.readable()
    assert len(world.operator.store.in_namespace(RESOURCE_QUOTAS, "team")) == 1
    assert world.operator.store.unreadable == frozenset()
    assert [message for _, message in told(caplog)] == [
        "the operator may not read resourcequotas in namespace shut: it notices a quota that is too small only when "
        "the API server rejects a pod"
    ]
    world.api.refused = {(None, "shut"), (RESOURCE_QUOTAS, "team")}
    await world.restart()
    assert RESOURCE_QUOTAS not in world.operator.resync.readable(), "where anything can be read, quotas cannot"


async def test_it_is_asked_for_again_every_thirty_seconds_and_not_with_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await two_teams()
    world.api.refused = {(PODS, "shut")}
    await look(world)
    waited: list[int] = []
    asked: list[tuple[str, str | None]] = []
    timeout, listed = asyncio.timeout, world.api.list

    def soon(seconds: float) -> contextlib.AbstractAsyncContextManager[object]:
        waited.append(round(seconds))
        if len(waited) == 3:
            world.api.refused.clear()
        if len(waited) == 5:
            raise asyncio.CancelledError
        return timeout(0)

    async def counted(resource: Resource, namespace: str | None, labels: str = "") -> tuple[list[Manifest], str]:
        asked.append((resource.plural, namespace))
        return await listed(resource, namespace, labels)

    monkeypatch.setattr(asyncio, "timeout", soon)
    monkeypatch.setattr(world.api, "list", counted)
    with pytest.raises(asyncio.CancelledError):
        await world.operator.resync.run()
    assert waited == [30, 30, 30, 210, 300]
    assert asked[:2] == [("qwendeployments", "shut"), ("pods", "shut")]
    assert "team" not in {namespace for _, namespace in asked[:9]}
    assert resync.REFUSED_SECONDS == 30


# Served names.


def wants(namespace: str, name: str, *names: str) -> Manifest:
    return deployment(name, namespace, servedNames=list(names), replicas=0)


def held(world: World, name: str) -> list[str]:
    return [one["name"] for one in (world.qd(name).get("status") or {}).get("names", {}).get("held", [])]


def owner(world: World) -> str | None:
    """Who gets the requests for NAME, if all objects can be read."""
    key = holders(world.api.all(QWENDEPLOYMENTS), NameRights()).owners.get(NAME)
    return str(key) if key else None


async def with_holder(*waiting: Manifest, rights: NameRights | None = None) -> World:
    """`holder` of shut holds NAME, and the operator has been started anew without a right in shut."""
    world = await World(config=replace(TWO, name_rights=rights or NameRights())).start()
    world.api.put(QWENDEPLOYMENTS, wants("shut", "holder", NAME))
    await world.settle()
    for manifest in waiting:
        world.api.put(QWENDEPLOYMENTS, manifest)
        await world.settle()
    assert owner(world) == "shut/holder"
    world.api.refused = {(None, "shut")}
    await world.restart()
    await world.settle()
    return world


async def test_a_name_that_an_unread_object_may_hold_is_not_given_away() -> None:
    world = await with_holder()
    world.api.put(QWENDEPLOYMENTS, wants("team", "thief", NAME))
    await world.settle()
    await world.wait(RESERVED_SECONDS + 60)
    assert held(world, "thief") == []
    assert world.message("Ready", "thief") == (
        f'spec.servedNames has "{NAME}", which a QwenDeployment in namespace shut may hold. The operator may not read '
        "that namespace, so it does not know: choose another name in spec.servedNames, or let the platform team give "
        "the operator its rights there back, or take the namespace out of the Helm value watchNamespaces"
    )
    world.api.refused.clear()
    await world.operator.resync._ask_again()
    await world.settle()
    assert owner(world) == "shut/holder"
    assert "in namespace shut holds since" in world.message("Ready", "thief")


async def test_a_free_name_is_granted_as_soon_as_it_is_known_to_be_free() -> None:
    world = await with_holder()
    world.api.put(QWENDEPLOYMENTS, wants("team", "new", "new-name"))
    await world.settle()
    assert held(world, "new") == []
    world.api.refused.clear()
    await world.operator.resync._ask_again()
    await world.settle()
    assert held(world, "new") == ["new-name"]


async def test_what_a_waiting_object_knows_of_the_holder_outlives_the_right() -> None:
    world = await with_holder(wants("team", "second", NAME))
    await world.wait(RESERVED_SECONDS + 60)
    assert held(world, "second") == []
    known = world.qd("second")["status"]["names"]["waiting"]
    assert [(one["name"], one["namespace"], "until" in one) for one in known] == [(NAME, "shut", False)]
    await world.restart()
    await world.wait(RESERVED_SECONDS + 60)
    assert held(world, "second") == []
    # The platform team gives the namespace up, and with it the names.
    world.config = replace(TWO, namespaces=("team",))
    await world.restart()
    await world.settle(RESERVED_SECONDS + 60)
    assert held(world, "second") == [NAME]


async def test_names_that_the_namespace_may_not_serve_are_given_as_ever() -> None:
    rights = NameRights({"shut": (NAME,), "*": ("*",)})
    world = await with_holder(wants("team", "second", NAME), rights=rights)
    world.api.put(QWENDEPLOYMENTS, wants("team", "new", "new-name", NAME))
    await world.settle()
    assert held(world, "new") == ["new-name"]
    # The platform team takes the name from that namespace.
    world.config = replace(TWO, name_rights=NameRights({"shut": (), "*": ("*",)}))
    await world.restart()
    await world.settle(RESERVED_SECONDS + 60)
    assert held(world, "second") == [NAME]


async def test_of_several_namespaces_the_one_that_is_known_to_hold_the_name_is_named() -> None:
    world = await with_holder(wants("team", "second", NAME))
    world.config = replace(TWO, namespaces=("team", "closed", "shut"))
    world.api.refused |= {(None, "closed")}
    world.api.put(QWENDEPLOYMENTS, wants("team", "new", "new-name"))
    await world.restart()
    await world.settle()
    assert "a QwenDeployment in namespace shut may hold" in world.message("Ready", "second")
    assert "a QwenDeployment in namespace closed or 1 more may hold" in world.message("Ready", "new")


async def test_what_the_others_hold_moves_among_them_as_ever() -> None:
    world = await World(config=TWO).start()
    world.api.put(QWENDEPLOYMENTS, wants("team", "old", NAME))
    await world.settle()
    world.api.refused = {(None, "shut")}
    await world.restart()
    await world.settle()
    assert held(world, "old") == [NAME]
    world.api.put(QWENDEPLOYMENTS, wants("team", "new", NAME))
    world.api.finish(world.qd("old"), QWENDEPLOYMENTS)
    await world.settle()
    assert held(world, "new") == [NAME]


def leave(world: World) -> None:
    world.api.edit(QWENDEPLOYMENTS, "first", lambda item: item["spec"].update(servedNames=["none"]))


def delete(world: World) -> None:
    world.api.finish(world.qd("first"), QWENDEPLOYMENTS)


@pytest.mark.parametrize("end", [leave, delete])
async def test_who_only_waits_there_takes_no_name_from_others(end: Callable[[World], None]) -> None:
    """Its tenant deletes the RoleBinding: the operator cannot write the name into that status."""
    world = await World(config=TWO).start()
    for manifest in (wants("team", "first", NAME), wants("shut", "second", NAME), wants("team", "third", NAME)):
        world.api.put(QWENDEPLOYMENTS, manifest)
        await world.settle()
        world.api.clock.advance(60)
    world.api.refused = {(None, "shut")}
    await look(world)
    end(world)
    await world.settle(RESERVED_SECONDS + 60)
    assert held(world, "third") == [NAME]
    world.api.refused.clear()
    await look(world)
    assert owner(world) == "team/third"


async def test_what_is_held_there_stays_held_when_the_right_goes() -> None:
    world = await World(config=TWO).start()
    world.api.put(QWENDEPLOYMENTS, wants("shut", "holder", NAME))
    world.api.put(QWENDEPLOYMENTS, wants("team", "second", NAME, "free"))
    await world.settle()
    world.api.refused = {(None, "shut")}
    await look(world)
    # The holder gives the name up, and nobody sees it.
    world.api.edit(QWENDEPLOYMENTS, "holder", lambda item: item["spec"].update(servedNames=["none"]))
    await world.wait(RESERVED_SECONDS + 60)
    assert held(world, "second") == ["free"]
    world.api.put(QWENDEPLOYMENTS, wants("team", "new", "new-name"))
    await world.settle()
    assert held(world, "new") == ["new-name"], "what was read once is known: no name is kept back for it"
    world.api.refused.clear()
    await look(world)
    assert NAME in held(world, "second")
