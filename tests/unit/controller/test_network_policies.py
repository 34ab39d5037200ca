"""One NetworkPolicy in each namespace with QwenDeployments: made, repaired, removed, and never in the way."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from qwen_operator.config.types import NetworkPolicyConfig
from qwen_operator.controller.cache import Store
from qwen_operator.controller.network_policies import NetworkPolicies
from qwen_operator.kube import (
    NETWORK_POLICIES,
    PODS,
    QWENDEPLOYMENTS,
    Forbidden,
    Manifest,
    NamespaceTerminating,
    Resource,
)
from tests.unit.fakes import Clock, FakeKube

NAME = "system.qwen-engines"
RULE = {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 8000}]}
CONFIG = NetworkPolicyConfig(enabled=True, name=NAME, ingress=(RULE,))


def deployment(namespace: str, name: str = "one") -> Manifest:
    meta = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1"}
    return {"apiVersion": "qwen-operator.dev/v1alpha1", "kind": "QwenDeployment", "metadata": meta, "spec": {}}


def engine(namespace: str) -> Manifest:
    meta = {"name": "pod", "namespace": namespace, "uid": "p", "labels": {"qwen-operator.dev/role": "engine"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}


@dataclass
class World:
    """The policies beside an API server; `look` shows them what a watch would show."""

    config: NetworkPolicyConfig = CONFIG
    kube: FakeKube = field(default_factory=FakeKube)
    store: Store = field(default_factory=Store)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.policies = NetworkPolicies(self.kube, self.store, self.config, (), self.clock.monotonic)
        self.look()

    def sees(self, resource: Resource, *manifests: Manifest) -> World:
        for manifest in manifests:
            self.store.update(resource, manifest)
        return self

    def gone(self, resource: Resource, manifest: Manifest) -> None:
        self.store.remove(resource, {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "99"}})

    def look(self) -> None:
        labelled = [item for item in self.kube.all(NETWORK_POLICIES) if item["metadata"].get("labels")]
        self.policies.listener(None)(
            {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in labelled}
        )

    async def steps(self, number: int = 1) -> World:
        for _ in range(number):
            await self.policies.step()
        return self

    def verbs(self) -> list[str]:
        return [write.verb for write in self.kube.writes]

    def spec(self) -> Manifest:
        spec: Manifest = self.kube.one(NETWORK_POLICIES, NAME)["spec"]
        return spec


async def test_each_namespace_with_a_deployment_gets_one_policy_and_a_second_look_writes_nothing() -> None:
    world = World().sees(QWENDEPLOYMENTS, deployment("a"), deployment("a", "two"), deployment("b"))
    await world.steps(2)
    world.look()
    await world.steps(2)
    assert [item["metadata"]["namespace"] for item in world.kube.all(NETWORK_POLICIES)] == ["a", "b"]
    assert world.spec()["ingress"] == [RULE]
    assert world.verbs() == ["create", "create"]


def opened(policy: Manifest) -> None:
    policy["spec"]["ingress"] = [{}]


def narrowed(policy: Manifest) -> None:
    policy["spec"]["podSelector"]["matchLabels"] = {"no": "pod"}


def relabelled(policy: Manifest) -> None:
    policy["metadata"]["labels"]["app.kubernetes.io/name"] = "mine"


def unlabelled(policy: Manifest) -> None:
    policy["metadata"]["labels"] = {}


@pytest.mark.parametrize("change", [opened, narrowed, relabelled, unlabelled])
async def test_an_edited_policy_is_repaired_whole(change: Callable[[Manifest], None]) -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).steps()
    intended = copy.deepcopy(world.kube.one(NETWORK_POLICIES, NAME))
    world.kube.edit(NETWORK_POLICIES, NAME, change)
    world.look()
    await world.steps()
    repaired = world.kube.one(NETWORK_POLICIES, NAME)
    assert (repaired["spec"], repaired["metadata"]["labels"]) == (intended["spec"], intended["metadata"]["labels"])
    world.look()
    writes = len(world.kube.writes)
    await world.steps(3)
    assert len(world.kube.writes) == writes


async def test_defaults_that_the_api_server_adds_are_no_drift() -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).steps()

    def default(policy: Manifest) -> None:
        policy["spec"]["ingress"][0]["ports"][0]["endPort"] = 8000

    # The answer to a write has the defaults already.
    policy = world.kube.edit(NETWORK_POLICIES, NAME, default)
    intended, _ = world.policies._written["a"]
    world.policies._written["a"] = (intended, policy["spec"])
    world.look()
    await world.steps(3)
    assert world.verbs() == ["create"]


async def test_a_policy_goes_with_the_last_deployment_and_the_last_engine() -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).sees(PODS, engine("a")).steps()
    world.look()
    world.gone(QWENDEPLOYMENTS, deployment("a"))
    await world.steps()
    assert len(world.kube.all(NETWORK_POLICIES)) == 1
    world.gone(PODS, engine("a"))
    await world.steps()
    assert world.kube.all(NETWORK_POLICIES) == []


async def test_pods_with_our_labels_alone_make_no_policy() -> None:
    assert (await World().sees(PODS, engine("a")).steps()).kube.writes == []


async def test_the_policy_of_another_release_stays() -> None:
    world = World()
    other = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": "other.qwen-engines",
            "namespace": "a",
            "labels": {"app.kubernetes.io/managed-by": "qwen-operator"},
        },
        "spec": {},
    }
    world.kube.put(NETWORK_POLICIES, other)
    world.look()
    await world.steps()
    world.sees(QWENDEPLOYMENTS, deployment("a"))
    await world.steps()
    assert {item["metadata"]["name"]: item["spec"] == {} for item in world.kube.all(NETWORK_POLICIES)} == {
        NAME: False,
        "other.qwen-engines": True,
    }


async def test_a_release_that_no_longer_wants_policies_removes_its_own() -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).steps()
    later = World(NetworkPolicyConfig(enabled=False, name=NAME), world.kube, world.store)
    await later.steps()
    assert world.kube.all(NETWORK_POLICIES) == []


async def test_a_refusal_is_logged_once_and_the_other_namespaces_get_theirs(caplog: pytest.LogCaptureFixture) -> None:
    def quota(_verb: str, manifest: Manifest) -> None:
        if manifest["metadata"]["namespace"] == "a":
            raise Forbidden(403, "Forbidden", "exceeded quota: policies")

    world = World(kube=FakeKube(admit=quota)).sees(QWENDEPLOYMENTS, deployment("a"), deployment("b"))
    await world.steps(5)
    assert [item["metadata"]["namespace"] for item in world.kube.all(NETWORK_POLICIES)] == ["b"]
    assert world.verbs() == ["create", "create"]
    world.clock.advance(61)
    await world.steps()
    assert world.verbs() == ["create", "create", "create"]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.__dict__["object"] for record in warnings] == [f"a/{NAME}"]
    world.kube.admit = lambda _verb, _manifest: None
    world.clock.advance(61)
    await world.steps()
    assert len(world.kube.all(NETWORK_POLICIES)) == 2


async def test_a_namespace_that_is_being_deleted_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    def terminating(_verb: str, _manifest: Manifest) -> None:
        raise NamespaceTerminating(403, "Forbidden", "because it is being terminated")

    world = World(kube=FakeKube(admit=terminating)).sees(QWENDEPLOYMENTS, deployment("a"))
    await world.steps()
    assert caplog.records == []


async def test_without_the_right_it_warns_once_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    class Closed(FakeKube):
        async def list(
            self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
        ) -> tuple[list[Manifest], str]:
            raise Forbidden(403, "Forbidden", "networkpolicies is forbidden")

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            raise asyncio.CancelledError

    policies = NetworkPolicies(Closed(), Store(), CONFIG, (), Clock().monotonic, sleep)
    follow, repair = policies.parts()
    repair.close()
    with pytest.raises(asyncio.CancelledError):
        await follow
    assert slept == [300.0] * 4
    assert len(caplog.records) == 1


async def test_the_mirrors_begin_before_the_first_write() -> None:
    """Until every mirror has its first list, a policy that is not in it would look absent."""
    kube, store = FakeKube(), Store()
    store.update(QWENDEPLOYMENTS, deployment("a"))
    policies = NetworkPolicies(kube, store, CONFIG, ("a", "b"), Clock().monotonic, lambda _s: asyncio.sleep(0))
    first, second, repair = policies.parts()
    task = asyncio.create_task(repair)
    await asyncio.sleep(0.01)
    assert kube.writes == []
    tasks = [task, asyncio.create_task(first), asyncio.create_task(second)]
    await asyncio.sleep(0.05)
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [item["metadata"]["namespace"] for item in kube.all(NETWORK_POLICIES)] == ["a"]


async def test_a_namespace_whose_policies_cannot_be_listed_keeps_no_other_open() -> None:
    class Closed(FakeKube):
        async def list(
            self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
        ) -> tuple[list[Manifest], str]:
            if namespace == "b":
                raise Forbidden(403, "Forbidden", "networkpolicies is forbidden")
            return await super().list(resource, namespace, labels)

    kube, store = Closed(), Store()
    for namespace in ("a", "b"):
        store.update(QWENDEPLOYMENTS, deployment(namespace))
    policies = NetworkPolicies(kube, store, CONFIG, ("a", "b"), Clock().monotonic, lambda _s: asyncio.sleep(0))
    tasks = [asyncio.create_task(part) for part in policies.parts()]
    await asyncio.sleep(0.05)
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [item["metadata"]["namespace"] for item in kube.all(NETWORK_POLICIES)] == ["a"]


def test_a_release_without_a_policy_name_runs_nothing() -> None:
    policies = NetworkPolicies(FakeKube(), Store(), NetworkPolicyConfig(), (), Clock().monotonic)
    assert policies.parts() == []


def leader(namespace: str, uid: str = "11112222-3333", **meta: object) -> Manifest:
    labels = {
        "qwen-operator.dev/role": "engine",
        "qwen-operator.dev/deployment": "one",
        "qwen-operator.dev/replica": "one-0a1b2c3d-0",
    }
    owner = {"kind": "QwenDeployment", "name": "one", "uid": f"{namespace}-one", "controller": True}
    full: Manifest = {
        "name": "one-0a1b2c3d-0-0",
        "namespace": namespace,
        "uid": uid,
        "labels": labels,
        "annotations": {"qwen-operator.dev/owner-uid": f"{namespace}-one"},
        "ownerReferences": [owner],
        **meta,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": full, "spec": {}}


GROUP = f"{NAME}.one-0a1b2c3d-0.11112222"


async def test_pods_of_one_replica_reach_each_other_on_all_tcp_ports_and_nobody_else_gets_in_or_out() -> None:
    world = World().sees(QWENDEPLOYMENTS, deployment("a")).sees(PODS, leader("a"))
    await world.steps(2)
    world.look()
    await world.steps(2)
    assert world.verbs() == ["create", "create"]
    policy = world.kube.one(NETWORK_POLICIES, GROUP)
    members = {"qwen-operator.dev/deployment": "one", "qwen-operator.dev/replica": "one-0a1b2c3d-0"}
    assert policy["spec"]["podSelector"] == {"matchLabels": members}
    # The gateway still gets in: a policy that selects a pod closes it to everybody whom no policy lets in.
    inside = {"from": [{"podSelector": {"matchLabels": members}}], "ports": [{"protocol": "TCP"}]}
    assert policy["spec"]["ingress"] == [inside, RULE]
    assert [one["uid"] for one in policy["metadata"]["ownerReferences"]] == ["11112222-3333"]


async def test_a_replica_that_came_back_has_a_policy_of_its_own() -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).sees(PODS, leader("a")).steps()
    world.gone(PODS, leader("a"))
    await world.sees(PODS, leader("a", "44445555-6666", resourceVersion="100")).steps()
    names = [item["metadata"]["name"] for item in world.kube.all(NETWORK_POLICIES)]
    assert names == [NAME, GROUP, f"{NAME}.one-0a1b2c3d-0.44445555"]


@pytest.mark.parametrize(
    "meta",
    [
        {"ownerReferences": []},
        {"annotations": {"qwen-operator.dev/owner-uid": "another"}},
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        {"labels": {"qwen-operator.dev/role": "engine", "qwen-operator.dev/deployment": "one"}},
    ],
)
async def test_no_policy_for_pods_of_others_that_end_or_that_are_alone(meta: Manifest) -> None:
    world = await World().sees(QWENDEPLOYMENTS, deployment("a")).sees(PODS, leader("a", **meta)).steps()
    assert [item["metadata"]["name"] for item in world.kube.all(NETWORK_POLICIES)] == [NAME]


async def test_without_policies_no_replica_gets_one() -> None:
    world = World(NetworkPolicyConfig(enabled=False, name=NAME, ingress=(RULE,)))
    await world.sees(QWENDEPLOYMENTS, deployment("a")).sees(PODS, leader("a")).steps()
    assert world.kube.writes == []
