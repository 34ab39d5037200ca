"""A changed list of adapters: engines with room take it up while they serve, and others are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, Manifest
from qwen_operator.manifests.adapters import wanted_adapters, wanted_text
from tests.unit.reconcile.test_adapters import PVC, engines, inspections, listed, report, serving
from tests.unit.world import World, change, deployment, with_groups

ADAPTERS = "qwen-operator.dev/adapters"


def uids(world: World) -> list[str]:
    return [pod["metadata"]["uid"] for pod in engines(world)]


def noted(world: World) -> list[tuple[str, str]]:
    """What each engine has, and what it should have."""
    return [
        (pod["metadata"]["annotations"][ADAPTERS], ",".join(wanted_adapters(wanted_text(pod))))
        for pod in engines(world)
    ]


async def changed(world: World, path: Path, *names: str, seconds: float = 300, **more: Any) -> World:
    world.kubelet.report = report(path, *sorted(names), **more)
    change(world, adapters=listed(*names))
    await world.settle(seconds)
    return world


def adapters(world: World) -> Manifest:
    shown: Manifest = world.qd()["status"]["adapters"]
    return shown


def reconciling(world: World, at: int) -> list[str]:
    """What the condition has said since this place of the journal."""
    return [
        one["message"]
        for _, resource, item in world.api.journal[at:]
        if resource is QWENDEPLOYMENTS
        for one in item.get("status", {}).get("conditions", ())
        if one["type"] == "Reconciling"
    ]


async def test_an_engine_with_room_loads_an_added_adapter_and_no_pod_is_replaced(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    before, at = uids(world), len(world.api.journal)
    await changed(world, tmp_path, "support", "legal")
    assert uids(world) == before
    assert noted(world) == [("legal,support", "legal,support")]
    assert adapters(world) == {"ready": 2, "total": 2}
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Reconciling" not in world.conditions()
    assert "a newer plan" not in world.message("Planned")
    patches = [
        (pod["metadata"]["annotations"][ADAPTERS], ",".join(wanted_adapters(wanted_text(pod))))
        for _, resource, pod in world.api.journal[at:]
        if resource is PODS and not pod["metadata"]["name"].endswith("-inspect")
    ]
    assert list(dict.fromkeys(patches)) == [("support", "legal,support"), ("legal,support", "legal,support")]
    shown = world.qd()["status"]["plan"]
    assert any(step.startswith("adapters: 2 of rank 8 at most; 4 places") for step in shown["steps"])
    assert "legal=/models/adapters/models/adapters/legal" in shown["args"]


async def test_a_removed_adapter_leaves_the_pod_at_once_and_nobody_reads_files_again(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support", "legal")
    before = uids(world)
    await changed(world, tmp_path, "support")
    assert uids(world) == before
    assert noted(world) == [("support", "support")]
    assert adapters(world) == {"ready": 1, "total": 1}
    assert len(inspections(world)) == 1
    await changed(world, tmp_path, "support", "legal")
    assert (uids(world), noted(world)) == (before, [("legal,support", "legal,support")])
    assert len(inspections(world)) == 1, "the first revision has the facts of both"


async def test_replicas_that_come_later_have_what_the_others_took_up(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    await changed(world, tmp_path, "support", "legal")
    change(world, replicas=3)
    await world.settle(120)
    first = uids(world)
    assert noted(world) == [("legal,support", "legal,support")] * 3
    paths = [pod["spec"]["containers"][0]["command"] for pod in engines(world)]
    assert sum("--lora-paths" in command for command in paths) == 2, "the first one started with one adapter"
    world.api.remove(engines(world)[0], PODS)
    await world.restart()
    await world.settle(120)
    assert noted(world) == [("legal,support", "legal,support")] * 3
    assert len(set(uids(world)) & set(first)) == 2
    await changed(world, tmp_path, "legal")
    assert noted(world) == [("legal", "legal")] * 3
    assert len(set(uids(world)) & set(first)) == 2
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_an_adapter_that_an_engine_cannot_load_is_told_and_everything_else_is_served(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    (before,) = engines(world)
    world.operator.unloadable = {"legal": "the file is gone"}
    await changed(world, tmp_path, "support", "legal", seconds=30)
    assert adapters(world) == {
        "ready": 1,
        "total": 2,
        "waiting": [{"name": "legal", "reason": "AdapterNotLoaded"}],
    }
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Degraded"] == ("True", "AdapterNotLoaded")
    name = before["metadata"]["name"]
    assert world.message("Degraded").startswith(f"spec.adapters[legal]: {name} cannot load it: the file is gone. ")
    world.operator.unloadable = {}
    await world.settle(60)
    assert adapters(world) == {"ready": 2, "total": 2}
    assert "Degraded" not in world.conditions()


async def test_a_new_leader_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    before = uids(world)
    world.kubelet.report = report(tmp_path, "legal", "support")
    change(world, adapters=listed("support", "legal"))
    for _ in range(20):
        await world.wait(1)
        await world.restart()
    await world.settle(60)
    assert (uids(world), noted(world)) == (before, [("legal,support", "legal,support")])


async def test_an_edit_of_the_annotations_is_undone(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    await changed(world, tmp_path, "support", "legal")
    name = engines(world)[0]["metadata"]["name"]
    edits = {ADAPTERS: "legal,other,support", f"{ADAPTERS}-wanted": "{"}
    world.api.edit(PODS, name, lambda pod: pod["metadata"]["annotations"].update(edits))
    await world.settle(60)
    assert noted(world) == [("legal,support", "legal,support")]


REPLACED: dict[str, tuple[list[str], list[dict[str, Any]], dict[str, Any], str]] = {
    "a larger rank": (["a"], listed("a", "b"), {"rank": 16}, "spec.adapters[a] has the rank 16"),
    "other projections": (
        ["a"],
        listed("a", "b"),
        {"modules": ("q_proj", "up_proj")},
        "spec.adapters[a] changes up_proj, for which they have no room",
    ),
    "no place": (["a", "b", "c"], listed("a", "b", "c", "d"), {}, "4 adapters need 8 places, and they have 4"),
    "another claim": (
        ["a"],
        [*listed("a"), *listed("b", claim="others")],
        {},
        'spec.adapters[b] is on the claim "others", which they do not mount',
    ),
    "another folder": (["a"], listed("a", claim="models/v2"), {}, "spec.adapters[a] has another source"),
}


@pytest.mark.parametrize(("before", "after", "facts", "sentence"), REPLACED.values(), ids=REPLACED.keys())
async def test_without_room_new_replicas_come_and_the_status_says_why(
    tmp_path: Path, before: list[str], after: list[dict[str, Any]], facts: dict[str, Any], sentence: str
) -> None:
    world = await serving(tmp_path, *before)
    old, at = set(uids(world)), len(world.api.journal)
    world.kubelet.report = report(tmp_path, *(one["name"] for one in after), **facts)
    change(world, adapters=after)
    await world.settle(900)
    assert not old & set(uids(world))
    assert adapters(world) == {"ready": len(after), "total": len(after)}
    said = reconciling(world, at)
    assert any(sentence in message for message in said), said


def sized(path: Path, sizes: dict[str, int]) -> Manifest:
    """A report on adapters whose tensors have so many MiB."""
    found = report(path, *sorted(sizes))
    for record, name in zip(found["adapters"], sorted(sizes), strict=True):
        record[-1] = sizes[name] << 20
    return found


@pytest.mark.parametrize(
    ("size", "request_", "stays"),
    [(400, None, True), (3 << 10, None, False), (3 << 10, "64Gi", True), (80 << 10, "64Gi", False)],
)
async def test_pods_take_up_only_adapters_for_which_they_requested_memory(
    tmp_path: Path, size: int, request_: str | None, stays: bool
) -> None:
    world = await World().start()
    world.kubelet.report = sized(tmp_path, {"a": 1})
    pod: dict[str, Any] = {"pod": {"resources": {"requests": {"memory": request_}}}} if request_ else {}
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=listed("a"), **pod))
    await world.settle(60)
    old, at = uids(world), len(world.api.journal)
    world.kubelet.report = sized(tmp_path, {"a": 1, "b": size})
    change(world, adapters=listed("a", "b"))
    await world.settle(900)
    assert adapters(world) == {"ready": 2, "total": 2}
    assert (uids(world) == old) is stays
    said = [text for text in reconciling(world, at) if "of host memory in each pod, and they requested" in text]
    assert bool(said) is not stays
    await world.restart()
    await world.settle(60)
    assert len(uids(world)) == 1
    memory = engines(world)[0]["spec"]["containers"][0]["resources"]["requests"]["memory"]
    assert memory == request_ or stays or memory == f"{2 * 1024 + 1 + size}Mi"


async def test_a_name_that_comes_back_with_another_folder_replaces_pods_that_had_it_and_the_status_says_why(
    tmp_path: Path,
) -> None:
    world = await serving(tmp_path, "a", "b")
    old = set(uids(world))
    await changed(world, tmp_path, "b")
    assert set(uids(world)) == old
    at = len(world.api.journal)
    after = [*listed("a", claim="models/v2"), *listed("b")]
    world.kubelet.report = report(tmp_path, "a", "b")
    change(world, adapters=after)
    await world.settle(900)
    assert not old & set(uids(world))
    assert adapters(world) == {"ready": 2, "total": 2}
    said = reconciling(world, at)
    assert any("spec.adapters[a] has another source than they loaded under this name" in one for one in said), said


HUB: dict[str, Any] = {"name": "hub", "source": {"uri": "hf://team/hub", "secretRef": {"name": "hf-token"}}}
BUCKET: dict[str, Any] = {"name": "bucket", "source": {"uri": "s3://weights/bucket"}}


async def fetching(path: Path, *entries: dict[str, Any]) -> World:
    """A world that serves these adapters, with its model on a claim."""
    world = await World().start()
    world.kubelet.report = read_as(path, *entries)
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=list(entries)))
    await world.settle(60)
    return world


def read_as(path: Path, *entries: dict[str, Any], commit: str = "a") -> Manifest:
    places = {one["name"]: one["source"]["uri"] for one in entries}
    commits = ["" if places[name].startswith("pvc") else commit * 40 for name in sorted(places)]
    return report(path, *sorted(places)) | {"adapterCommits": commits}


async def test_a_fetched_adapter_stays_while_others_come_and_go(tmp_path: Path) -> None:
    world = await fetching(tmp_path, HUB, *listed("a"))
    old = uids(world)
    for entries in ([HUB, *listed("a", "b")], [HUB, *listed("b")]):
        world.kubelet.report = read_as(tmp_path, *entries)
        change(world, adapters=entries)
        await world.settle(300)
        assert adapters(world) == {"ready": len(entries), "total": len(entries)}
        assert uids(world) == old
    await world.restart()
    await world.settle(60)
    assert uids(world) == old
    assert "a newer plan" not in world.message("Planned")


@pytest.mark.parametrize(
    ("after", "commit", "why"),
    [
        ([HUB, BUCKET], "a", "spec.adapters[bucket] is at s3://weights/bucket, and is fetched when a pod starts"),
        (listed("a"), "a", "they fetch an adapter that is not in spec.adapters any more"),
        ([HUB, *listed("a", "b")], "b", "spec.adapters[hub] has another commit than they fetched"),
        ([HUB | {"source": HUB["source"] | {"secretRef": {"name": "other"}}}, *listed("a")], "a", ""),
    ],
)
async def test_what_pods_fetch_when_they_start_needs_new_replicas(
    tmp_path: Path, after: list[dict[str, Any]], commit: str, why: str
) -> None:
    world = await fetching(tmp_path, HUB, *listed("a"))
    old, at = set(uids(world)), len(world.api.journal)
    world.kubelet.report = read_as(tmp_path, *after, commit=commit)
    change(world, adapters=after)
    await world.settle(900)
    assert not old & set(uids(world))
    assert adapters(world) == {"ready": len(after), "total": len(after)}
    assert any(why in message for message in reconciling(world, at))


async def test_the_first_and_the_last_adapter_replace_the_replicas(tmp_path: Path) -> None:
    world = await serving(tmp_path, "a")
    with_one = set(uids(world))
    change(world, adapters=[])
    await world.settle(900)
    without = set(uids(world))
    assert not with_one & without
    assert not any(ADAPTERS in pod["metadata"]["annotations"] for pod in engines(world))
    change(world, adapters=listed("a"))
    await world.settle(900)
    assert not without & set(uids(world))


async def test_another_change_beside_it_is_a_rollout(tmp_path: Path) -> None:
    world = await serving(tmp_path, "a")
    old = set(uids(world))
    world.kubelet.report = report(tmp_path, "a", "b")
    change(world, adapters=listed("a", "b"), contextTokens=1024)
    await world.settle(900)
    assert not old & set(uids(world))


async def test_what_was_planned_stays_until_a_replan(tmp_path: Path) -> None:
    world = await serving(tmp_path, "a", "b", "c", "d")
    await changed(world, tmp_path, "a")
    assert "--max-loras-per-batch=8" in world.qd()["status"]["plan"]["args"]
    assert "a newer plan is available" in world.message("Planned")
    old = set(uids(world))
    mark = {"qwen-operator.dev/replan": "1"}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].setdefault("annotations", {}).update(mark))
    await world.settle(900)
    assert not old & set(uids(world))
    assert "--max-loras-per-batch=4" in world.qd()["status"]["plan"]["args"]


async def test_replicas_over_several_nodes_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_groups(2, monkeypatch)
    world = await serving(tmp_path, "a")
    old = set(uids(world))
    assert not any(wanted_text(pod) for pod in engines(world))
    await changed(world, tmp_path, "a", "b", seconds=900)
    assert not old & set(uids(world))
    assert {pod["metadata"]["annotations"][ADAPTERS] for pod in engines(world)} == {"a,b"}


async def test_revisions_of_serving_pods_are_kept(tmp_path: Path) -> None:
    world = await serving(tmp_path, "a")
    (pod,) = engines(world)
    for names in (("a", "b"), ("a", "b", "c"), ("a", "c"), ("c",), ("b", "c"), ("a", "b", "c")):
        await changed(world, tmp_path, *names)
    assert [one["metadata"]["uid"] for one in engines(world)] == [pod["metadata"]["uid"]]
    own = pod["metadata"]["labels"]["qwen-operator.dev/revision"]
    assert f"chat-{own}" in world.names(CONTROLLER_REVISIONS)
