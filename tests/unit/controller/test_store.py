"""The store: the newest state wins, whatever order it arrives in, and missed deletions are found."""

from __future__ import annotations

import json

import pytest

from qwen_operator.arbiter.fits import lacking
from qwen_operator.controller.cache import WATCHED, Store, keep
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.kube import NODES, PODS, QWENDEPLOYMENTS, Manifest, Resource
from tests.unit.fakes import Clock
from tests.unit.world import deployment, node


def _pod(version: int, uid: str = "u1", name: str = "p", **status: object) -> Manifest:
    meta = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    labels = {"qwen-operator.dev/deployment": "chat"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "labels": labels}, "status": status}


KEY = ("team", "p")


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    store = Store()
    assert store.update(PODS, _pod(9, phase="Running"))
    assert store.update(PODS, _pod(10, phase="Running")) is None
    assert store.update(PODS, _pod(8, phase="Pending")) is None
    assert store.get(PODS, KEY) == _pod(10, phase="Running")


def test_a_late_event_of_a_deleted_object_does_not_touch_its_successor() -> None:
    store = Store()
    store.update(PODS, _pod(20, "new"))
    assert store.update(PODS, _pod(15, "old")) is None
    assert store.remove(PODS, _pod(16, "old")) is None
    assert store.get(PODS, KEY) == _pod(20, "new")
    assert store.remove(PODS, _pod(21, "new"))
    assert store.get(PODS, KEY) is None


def test_a_list_finds_deletions_but_not_what_was_made_after_it() -> None:
    store = Store()
    store.update(PODS, _pod(5, name="missed"))
    store.update(PODS, _pod(30, name="made-since"))
    store.update(PODS, _pod(6, name="kept"))
    changes = store.replace(PODS, "team", [_pod(6, name="kept")], "20")
    assert [change.old and change.old["metadata"]["name"] for change in changes] == ["missed"]
    assert sorted(item["metadata"]["name"] for item in store.all(PODS)) == ["kept", "made-since"]
    assert store.replace(PODS, "other", [], "99") == []


def test_an_accepted_deletion_counts_until_the_event_comes() -> None:
    store = Store()
    store.update(PODS, _pod(5))
    store.mark_deleting(PODS, KEY, "another", "now")
    assert store.get(PODS, KEY) == _pod(5)
    store.mark_deleting(PODS, KEY, "u1", "now")
    pod = store.get(PODS, KEY)
    assert pod is not None
    assert pod["metadata"]["deletionTimestamp"] == "now"


def test_a_nodes_heartbeat_is_no_change_but_its_gpus_are() -> None:
    store, clock = Store(), Clock()
    queue = WorkQueue(clock=clock.monotonic, random=lambda: 0.0)
    intake = Intake(store, queue)
    chat = deployment()
    chat["metadata"] |= {"uid": "q", "resourceVersion": "1"}
    intake.event(QWENDEPLOYMENTS, "ADDED", chat)

    def seen(version: int, memory: str, gpus: int) -> bool:
        item = node(gpus=gpus)
        item["metadata"] |= {"uid": "n", "resourceVersion": str(version)}
        item["status"]["allocatable"]["memory"] = memory
        intake.event(NODES, "MODIFIED", item)
        key = queue.take()
        if key:
            queue.done(key)
        return key is not None

    assert seen(2, "1Gi", 8)
    assert not seen(3, "2Gi", 8)
    assert seen(4, "2Gi", 4)


def test_a_child_wakes_the_deployment_that_it_names_now_or_named_before() -> None:
    queue = WorkQueue(clock=Clock().monotonic, random=lambda: 0.0)
    intake = Intake(Store(), queue)
    intake.event(PODS, None, _pod(1))
    assert queue.take() == ("team", "chat")
    queue.done(("team", "chat"))
    bare = _pod(2)
    bare["metadata"]["labels"] = {}
    intake.event(PODS, "MODIFIED", bare)
    assert queue.take() == ("team", "chat")
    queue.done(("team", "chat"))
    bare["metadata"]["resourceVersion"] = "3"
    bare["metadata"]["ownerReferences"] = [{"kind": "QwenDeployment", "name": "other", "uid": "x"}]
    intake.event(PODS, "MODIFIED", bare)
    assert queue.take() == ("team", "other")


def test_only_what_all_decisions_share_makes_a_generation() -> None:
    store = Store()

    def grows(resource: Resource, manifest: Manifest) -> bool:
        before = store.generation(resource)
        store.update(resource, manifest)
        return store.generation(resource) > before

    chat = deployment()
    meta = {**chat["metadata"], "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z"}

    def seen(version: int, **changes: object) -> Manifest:
        return {**chat, "metadata": {**meta, "resourceVersion": str(version)}, **changes}

    assert grows(QWENDEPLOYMENTS, seen(1))
    assert not grows(QWENDEPLOYMENTS, seen(2, status={"replicas": 1}))
    assert not grows(QWENDEPLOYMENTS, seen(3, spec={**chat["spec"], "servedNames": ["other"]}))
    assert grows(QWENDEPLOYMENTS, {**chat, "metadata": {**meta, "uid": "u2", "resourceVersion": "4"}})
    machine = node()
    assert grows(NODES, {**machine, "metadata": {**machine["metadata"], "uid": "n1", "resourceVersion": "5"}})
    assert not grows(NODES, {**machine, "metadata": {**machine["metadata"], "uid": "n1", "resourceVersion": "6"}})
    before = store.generation(NODES)
    store.remove(NODES, {**machine, "metadata": {**machine["metadata"], "uid": "n1"}})
    assert store.generation(NODES) > before


def test_deployments_with_pods_that_are_not_ready() -> None:
    store = Store()
    chat = deployment("chat")
    store.update(QWENDEPLOYMENTS, chat)
    namespace = chat["metadata"]["namespace"]
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pod = _pod(1) | {"metadata": {**_pod(1)["metadata"], "namespace": namespace}}
    assert store.with_unready_pods() == []
    store.update(PODS, pod)
    assert [one["metadata"]["name"] for one in store.with_unready_pods()] == ["chat"]
    newer = {**pod["metadata"], "resourceVersion": "2"}
    store.update(PODS, pod | {"metadata": newer, "status": ready})
    assert store.with_unready_pods() == []
    store.update(PODS, pod | {"metadata": {**newer, "resourceVersion": "3"}})
    store.set_unreadable([namespace])
    assert store.with_unready_pods() == []
    store.set_unreadable([])
    store.remove(PODS, pod | {"metadata": {**newer, "resourceVersion": "4"}})
    assert store.with_unready_pods() == []


def test_a_node_keeps_its_room_however_often_it_is_trimmed() -> None:
    """A large watch event is trimmed, becomes JSON again, and is trimmed again."""
    allocatable = {"cpu": "2", "memory": "8Gi", "pods": "110", "ephemeral-storage": "9", "nvidia.com/gpu": "8"}
    meta = {"name": "n", "uid": "u", "resourceVersion": "1"}
    item = {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}, "status": {"allocatable": allocatable}}
    once = json.loads(json.dumps(keep("nodes", item)))
    store = Store()
    store.replace(NODES, None, [once], "1")
    [stored] = store.all(NODES)
    assert stored == once
    assert lacking(stored, [], [{"spec": {"containers": [{"resources": {"requests": {"cpu": "2"}}}]}}]) == ""


@pytest.mark.parametrize("resource", WATCHED, ids=lambda one: one.plural)
def test_what_was_trimmed_when_it_was_read_is_stored_as_it_is(resource: Resource) -> None:
    meta = {"name": "n", "namespace": "team", "uid": "u", "resourceVersion": "1", "managedFields": [{"manager": "m"}]}
    read = keep(resource.plural, {"metadata": meta, "extra": "large"})
    store = Store()
    store.replace(resource, None, [read], "1")
    [stored] = store.all(resource)
    assert stored is read
    # Only the operator's own work counts as trimmed, and only for the same kind of object.
    other = next(one for one in WATCHED if one != resource)
    for same in ({**read, "extra": "large"}, keep(other.plural, {"metadata": meta, "extra": "large"})):
        once_more = Store()
        once_more.update(resource, same)
        [stored] = once_more.all(resource)
        assert stored is not same
        assert "extra" not in stored
