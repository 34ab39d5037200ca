"""What belongs to others: their names, their objects, and the API server's own no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qwen_operator.actions.refusals import explain
from qwen_operator.actions.types import Kind, Refusal
from qwen_operator.api.claims import RESERVED_SECONDS
from qwen_operator.api.conditions import Reason
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    ApiError,
    Forbidden,
    Gone,
    Invalid,
    Manifest,
    NamespaceTerminating,
    Unavailable,
)
from tests.unit.fakes import Write
from tests.unit.world import World, change, deployment, ready_status, settled


async def test_a_name_belongs_to_its_holder_and_returns_when_it_is_free() -> None:
    world = await settled(deployment("first", servedNames=["a", "b"]))
    world.api.put(QWENDEPLOYMENTS, deployment("second", "other", servedNames=["b", "c"]))
    world.api.put(QWENDEPLOYMENTS, deployment("third", "other", servedNames=["a"]))
    await world.settle()
    assert world.conditions("first")["Ready"] == ("True", "Serving")
    assert world.conditions("second")["Ready"] == ("True", "Serving")
    assert world.conditions("second")["Degraded"] == ("True", "NameConflict")
    words = 'spec.servedNames has "b", which a QwenDeployment in namespace team holds since'
    assert words in world.message("Degraded", "second")
    assert world.conditions("third")["Ready"] == ("False", "NameConflict")
    assert world.qd("second")["status"]["endpoint"]["names"] == ["c"]
    assert words in world.qd("second")["status"]["summary"]["message"]
    # Nobody could ask for it: it takes no GPU.
    assert len(world.names()) == 2
    world.api.remove(world.qd("first"), QWENDEPLOYMENTS)
    await world.settle(2 * RESERVED_SECONDS)
    assert "Degraded" not in world.conditions("second")
    assert world.conditions("third")["Ready"] == ("True", "Serving")


async def test_a_foreign_object_is_never_touched_and_named() -> None:
    world = await World().start()
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "chat-engine", "namespace": "team"},
        "spec": {"minAvailable": 7},
    }
    world.api.put(POD_DISRUPTION_BUDGETS, budget)
    world.api.put(QWENDEPLOYMENTS, deployment())
    world.api.put(QWENDEPLOYMENTS, deployment("second", servedNames=["second"]))
    await world.settle()
    assert world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"] == {"minAvailable": 7}
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Degraded"] == ("True", "ForeignObject")
    assert "PodDisruptionBudget chat-engine" in world.message("Degraded")
    assert world.conditions("second")["Ready"] == ("True", "Serving")
    # Nobody tells when it goes, but the next list finds out.
    world.api.finish(world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine"), POD_DISRUPTION_BUDGETS)
    await world.operator.resync.once()
    await world.settle()
    assert "Degraded" not in world.conditions()
    assert world.api.one(POD_DISRUPTION_BUDGETS, "chat-engine")["spec"]["minAvailable"] == 1


@pytest.mark.parametrize("resource", [PODS, CONTROLLER_REVISIONS], ids=["pod", "revision"])
async def test_a_foreign_pod_or_revision_under_our_name_stops_this_deployment_only(resource: Any) -> None:
    reference = await settled(deployment())
    name = reference.names(resource)[0]
    world = await World().start()
    meta = {"name": name, "namespace": "team", "labels": {"app.kubernetes.io/managed-by": "qwen-operator"}}
    world.api.put(resource, {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, "spec": {}})
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert world.conditions()["Ready"] == ("False", "ForeignObject")
    assert name in world.message("Ready")
    assert world.api.one(resource, name)["metadata"]["labels"] == meta["labels"]
    assert world.events()["ForeignObject"] == 1


async def test_the_pods_of_a_deleted_namesake_are_waited_for_and_not_called_foreign() -> None:
    world = await settled(deployment())
    world.api.objects.pop((QWENDEPLOYMENTS, "team", "chat"))
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.restart()
    await world.settle()
    assert world.conditions()["Ready"][1] in ("Pending", "Starting")
    for resource in (PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS):
        for item in world.api.all(resource):
            world.api.finish(item, resource)
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "ForeignObject" not in world.events()


# The API server's own no.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Invalid(422, "Invalid", 'volumeMounts[9].name: Not found: "x"'), "PodRefused"),
        (Forbidden(403, "Forbidden", "pods is forbidden: violates PodSecurity"), "PodRefused"),
        (Forbidden(403, "Forbidden", "exceeded quota: gpus"), "QuotaExceeded"),
        (Forbidden(403, "Forbidden", "failed quota: cpu: must specify limits.cpu"), "QuotaExceeded"),
        (ApiError(413, "RequestEntityTooLarge", "ValidatingAdmissionPolicy 'small' denied request"), "PodRefused"),
        (Gone(410, "Gone", "admission webhook denied the request"), "PodRefused"),
    ],
    ids=["invalid", "policy", "quota", "quota on limits", "policy of another status", "webhook of another status"],
)
async def test_a_pod_that_the_api_server_refuses_is_a_condition_and_is_tried_again(
    error: Exception, reason: str
) -> None:
    world = await World().start()

    refusing = ["Pod"]

    def admit(verb: str, manifest: Manifest) -> None:
        if manifest["kind"] in refusing:
            raise error

    world.api.admit = admit
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(200)
    assert world.conditions()["Ready"] == ("False", reason)
    # A quota is raised, or room is made: nobody has to change the object.
    assert ("Stalled" in world.conditions()) == (reason == "PodRefused")
    assert str(error).split(": ", 1)[1] in world.message("Ready")
    assert sum(write.verb == "status" for write in world.api.writes) == 1
    refusing.clear()
    await world.wait(70)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_in_a_dying_namespace_nothing_is_made_and_nothing_is_said() -> None:
    world = await World().start()

    def admit(_verb: str, _manifest: Manifest) -> None:
        raise NamespaceTerminating(403, "Forbidden", "namespace team is being terminated")

    world.api.admit = admit
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(200)

    assert [write.verb for write in world.api.writes] == ["create"]
    assert "status" not in world.qd()


def webhook_is_down(_number: int, write: Write) -> None:
    if write.verb == "create" and write.resource == PODS:
        raise Unavailable(500, "InternalError", 'failed calling webhook "pods.example.com": connection refused')


def webhook_is_slow(_number: int, write: Write) -> None:
    """Slower than the operator waits for an answer."""
    if write.verb == "create" and write.resource == PODS:
        raise Unavailable(0, "NoAnswer", "POST /api/v1/namespaces/team/pods: TimeoutError")


def webhook_wants_credentials(_number: int, write: Write) -> None:
    if write.verb == "create" and write.resource == PODS:
        raise Unavailable(401, "Unauthorized", 'admission webhook "pods.example.com" denied the request')


@pytest.mark.parametrize("fault", [webhook_is_down, webhook_is_slow, webhook_wants_credentials])
@pytest.mark.parametrize("served", [False, True])
async def test_a_pod_that_a_broken_webhook_keeps_away_is_told(
    served: bool, fault: Callable[[int, Write], None]
) -> None:
    world = await settled(deployment()) if served else await World().start()
    world.api.before = fault
    if served:
        world.api.remove(world.api.one(PODS, world.names()[0]), PODS)
    else:
        world.api.put(QWENDEPLOYMENTS, deployment())
    await world.wait(120)
    assert world.names() == []
    assert world.conditions()["Ready"] == ("False", "PodRefused")
    assert "webhook" in world.message("Ready")
    world.api.before = lambda _number, _write: None
    await world.wait(120)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Stalled" not in world.conditions()


async def test_without_an_answer_no_further_pod_is_tried_in_the_same_step() -> None:
    world = await World().start()
    tried = 0

    def slow(number: int, write: Write) -> None:
        nonlocal tried
        tried += write.resource == PODS
        webhook_is_slow(number, write)

    world.api.before = slow
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=8))
    await world.wait(60)
    assert world.message("Ready").startswith("the API server gives no answer about the Pod chat-")
    assert tried <= 8, "one in each attempt"


async def test_a_single_error_of_the_api_server_is_not_told() -> None:
    world = await World().start()
    errors = 0

    def once(number: int, write: Write) -> None:
        nonlocal errors
        if not errors and write.resource == PODS:
            errors += 1
            webhook_is_down(number, write)

    world.api.before = once
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    assert world.events() == {"Serving": 1}


async def test_what_cannot_be_made_keeps_nothing_that_is_to_go() -> None:
    world = await settled(deployment(replicas=2, rollout={"drainSeconds": 20}))
    world.busy = set(world.names())
    change(world, replicas=1)
    await world.wait(3)
    world.api.before = webhook_is_down
    change(world, contextTokens=1024)
    await world.wait(120)
    assert len(world.names()) == 1


async def test_a_refusal_delays_nothing_that_time_alone_brings() -> None:
    world = await World().start()

    def admit(verb: str, manifest: Manifest) -> None:
        if verb == "create" and manifest["kind"] == "Pod" and world.names():
            raise Forbidden(403, "Forbidden", "no more pods")

    world.api.admit = admit
    world.kubelet.engine = lambda _pod: None
    world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
    # By now it is tried again once a minute only.
    await world.wait(200)
    up = world.api.clock.stamp()

    def answers(pod: Manifest) -> Manifest:
        status = ready_status(pod)
        status["conditions"][1]["lastTransitionTime"] = up
        return status

    world.kubelet.engine = answers
    await world.wait(6)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_refusal_makes_no_drain_longer() -> None:
    world = await settled(deployment(replicas=3, rollout={"drainSeconds": 10}))
    world.busy = set(world.names())

    def admit(verb: str, manifest: Manifest) -> None:
        if verb == "create" and manifest["kind"] == "Pod":
            raise Forbidden(403, "Forbidden", "no more pods")

    world.api.admit = admit
    change(world, contextTokens=1024)
    await world.wait(200)
    change(world, replicas=2)
    await world.wait(14)
    assert len(world.names()) == 2


async def test_a_removal_that_is_refused_is_told_and_keeps_no_other() -> None:
    world = await settled(deployment(replicas=3))
    first, stuck, _ = world.names()

    def protected(_number: int, write: Write) -> None:
        if write.verb == "delete" and write.name == stuck:
            raise Forbidden(403, "Forbidden", 'admission webhook "protect.example.com" denied the request')

    world.api.before = protected
    change(world, replicas=1)
    await world.wait(300)
    assert world.names() == [first, stuck]
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert f"the API server rejects the deletion of the Pod {stuck}: admission webhook" in world.message("Ready")
    written = [write for write in world.api.writes if write.resource == QWENDEPLOYMENTS]
    await world.wait(600)
    assert [write for write in world.api.writes if write.resource == QWENDEPLOYMENTS] == written
    world.api.before = lambda _number, _write: None
    await world.wait(120)
    assert world.names() == [first]
    assert "Stalled" not in world.conditions()


@pytest.mark.parametrize(
    "words",
    [
        'Pod "chat-0" is invalid: spec.containers[0].resources.requests: Invalid value: "2Gi": must be less than or '
        "equal to memory limit of 512Mi",
        # kubernetes#112835, before 1.27.
        'Pod "chat-0" is invalid: spec.containers[0].resources.requests: Invalid value: "2Gi": must be less than or '
        "equal to memory limit",
    ],
)
def test_a_limit_that_a_limitrange_adds_has_a_cure(words: str) -> None:
    """kubernetes#51430: the default limit of a LimitRange is below what the operator requests."""
    reason, message = explain(Refusal(Kind.POD, "chat-0", words))
    assert reason is Reason.POD_REFUSED
    assert message.startswith(
        f"the API server rejects the Pod chat-0: {words}; if spec.pod.resources sets no limit of "
    )
    assert message.endswith("set spec.pod.resources.limits.memory, or raise that default")
