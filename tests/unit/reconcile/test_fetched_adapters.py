"""Adapters of hubs and buckets come and go while engines serve, if the chart has a cache. A bad one harms nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS, Manifest
from qwen_operator.manifests.adapters import wanted_adapters, wanted_text
from qwen_operator.manifests.names import ANNOTATION_ADAPTER_PODS
from qwen_operator.tenancy.lists import Tenancy
from tests.unit.reconcile.test_adapter_changes import ADAPTERS, BUCKET, HUB, adapters, noted, read_as, reconciling, uids
from tests.unit.reconcile.test_adapters import PVC, listed
from tests.unit.replicas.test_cached_nodes import ON_NODES
from tests.unit.replicas.test_prefetch import failed, running
from tests.unit.status.test_progress import CACHED
from tests.unit.world import CONFIG, World, change, deployment, fetched_before, node

OTHER: dict[str, Any] = {"name": "other", "source": {"uri": "modelscope://team/other", "revision": "v1"}}
FETCHED = "/models/adapters/.fetched"


def is_adapter_pod(pod: Manifest) -> bool:
    return "-adapter-" in pod["metadata"]["name"]


def fetches(world: World) -> list[Manifest]:
    return [pod for pod in world.api.all(PODS) if is_adapter_pod(pod)]


def gets_other(pod: Manifest) -> bool:
    return any("--hub=modelscope" in word for word in _options(pod))


def had(world: World) -> list[str]:
    """What each engine has, beside pods that download."""
    pods = (pod for pod in world.api.all(PODS) if not is_adapter_pod(pod))
    return [pod["metadata"]["annotations"][ADAPTERS] for pod in pods]


def all_fetches(world: World, at: int = 0) -> dict[str, Manifest]:
    """The pods for adapters that there ever were, by name."""
    made = (pod for _, resource, pod in world.api.journal[at:] if resource is PODS and is_adapter_pod(pod))
    return {pod["metadata"]["name"]: pod for pod in made}


async def serving(path: Path, *entries: dict[str, Any], config: Any = ON_NODES, **spec: Any) -> World:
    """A world whose engines serve these adapters, with the model on a claim."""
    world = World(config)
    world.kubelet.place = True
    world.api.put(NODES, node("gpu-2"))
    await world.start()
    world.kubelet.report = read_as(path, *entries)
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=list(entries), **spec))
    await world.settle(120)
    assert world.conditions()["Ready"] == ("True", "Serving"), world.message("Ready")
    return world


async def changed(world: World, path: Path, *entries: dict[str, Any], seconds: int = 60, **more: Any) -> World:
    world.kubelet.report = read_as(path, *entries, **more)
    change(world, adapters=list(entries))
    await world.settle(seconds)
    return world


@pytest.mark.parametrize(("config", "pods"), [(ON_NODES, 2), (CACHED, 1)], ids=["nodes", "claim"])
async def test_an_added_adapter_is_fetched_where_engines_run_and_no_pod_is_replaced(
    tmp_path: Path, config: Any, pods: int
) -> None:
    world = await serving(tmp_path, HUB, config=config, replicas=2)
    before, at = uids(world), len(world.api.journal)
    assert fetches(world) == []
    await changed(world, tmp_path, HUB, BUCKET)
    assert uids(world) == before
    assert noted(world) == [("bucket,hub", "bucket,hub")] * 2
    assert adapters(world) == {"ready": 2, "total": 2}
    assert "Reconciling" not in world.conditions()
    assert "a newer plan" not in world.message("Planned")
    assert len(all_fetches(world, at)) == pods
    assert {pod["spec"]["nodeName"] for pod in all_fetches(world).values()} <= {"gpu-1", "gpu-2"}
    assert fetches(world) == [], "they go when the engines have the adapter"
    writes = len(world.api.writes)
    await world.wait(900)
    assert len(world.api.writes) == writes


async def test_the_pod_has_one_adapter_and_its_credentials_and_no_gpu(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    secret = {"secretRef": {"name": "s3"}}
    await changed(world, tmp_path, HUB, {**BUCKET, "source": BUCKET["source"] | secret}, OTHER)
    by_option = {pod["spec"]["initContainers"][0]["command"][2]: pod for pod in all_fetches(world).values()}
    assert sorted(by_option) == [
        f"--adapter=--hub=modelscope --repository=team/other --commit={'a' * 40} "
        f"--folder=adapters/modelscope--team--other/{'a' * 40}-f9ad40812fae",
        f"--adapter=--s3=s3://weights/bucket --commit={'a' * 40} "
        f"--folder=adapters/s3--weights--bucket-35a70fa1e5a7/{'a' * 40}-f9ad40812fae",
    ]
    of_bucket = next(pod for option, pod in by_option.items() if "s3" in option)
    (fetch,) = of_bucket["spec"]["initContainers"]
    assert fetch["command"][3:] == ["--cache=/cache", "--size-gib=100", "--kept-free-percent=15", "--port=8000"]
    assert [one["name"] for one in fetch["env"]] == [
        f"ADAPTER_0_AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION")
    ]
    assert "hf-token" not in json.dumps(of_bucket)
    assert "nvidia.com/gpu" not in json.dumps(of_bucket["spec"]["containers"])
    assert [volume["name"] for volume in of_bucket["spec"]["volumes"]] == ["qwen-model-cache"]
    assert "qwen-operator.dev/routable" not in of_bucket["metadata"]["labels"]
    pinned = {"key": "metadata.name", "operator": "In", "values": [of_bucket["spec"]["nodeName"]]}
    assert (
        pinned
        in json.loads(json.dumps(of_bucket["spec"]["affinity"]["nodeAffinity"]))[
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"][0]["matchFields"]
    )


async def test_a_new_pod_mounts_the_folder_of_all_adapters_and_fetches_the_whole_list(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    await changed(world, tmp_path, HUB, BUCKET)
    change(world, replicas=2)
    await world.settle(120)
    new = next(pod for pod in world.api.all(PODS) if len(_options(pod)) == 2)
    assert new["metadata"]["annotations"]["qwen-operator.dev/adapters"] == "bucket,hub"
    engine, fetch = new["spec"]["containers"][0], new["spec"]["initContainers"][1]
    (mount,) = [one for one in engine["volumeMounts"] if one["mountPath"].startswith(FETCHED)]
    assert mount == {
        "name": "qwen-engine-cache",
        "subPath": "models/adapters",
        "mountPath": FETCHED,
        "readOnly": True,
    }
    assert fetch["command"][-1] == "--adapters=/qwen-adapters"
    assert fetch["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "hf-token", "key": "token", "optional": True}
    folders = [word.split("--folder=adapters/")[1] for word in _options(new)]
    paths = engine["command"][engine["command"].index("--lora-paths") + 1 :][:2]
    assert sorted(paths) == sorted(
        f"{name}={FETCHED}/{folder}" for name, folder in zip(("bucket", "hub"), folders, strict=True)
    )
    assert not any(word.startswith("--hold=") for word in engine["command"]), "the runtime locks what it loads"
    assert adapters(world) == {"ready": 2, "total": 2}


def _options(pod: Manifest) -> list[str]:
    return [
        word
        for one in pod["spec"].get("initContainers", ())
        for word in one.get("command", ())
        if word.startswith("--adapter=")
    ]


async def test_a_removed_adapter_is_gone_at_once_and_can_come_back_without_a_download(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB, BUCKET)
    before, at = uids(world), len(world.api.journal)
    await changed(world, tmp_path, HUB)
    assert noted(world) == [("hub", "hub")]
    await changed(world, tmp_path, HUB, BUCKET)
    assert (uids(world), noted(world)) == (before, [("bucket,hub", "bucket,hub")])
    assert all_fetches(world, at) == {}


async def test_the_last_one_of_a_hub_may_go_while_others_stay(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB, *listed("a"))
    before = uids(world)
    await changed(world, tmp_path, *listed("a"))
    assert (uids(world), noted(world)) == (before, [("a", "a")])
    change(world, replicas=2)
    await world.settle(120)
    assert noted(world) == [("a", "a")] * 2
    assert sorted(len(_options(pod)) for pod in world.api.all(PODS)) == [0, 1]
    await changed(world, tmp_path, *listed("a"), BUCKET, seconds=120)
    assert noted(world) == [("a,bucket", "a,bucket")] * 2
    assert set(before) < set(uids(world))


@pytest.mark.parametrize("reason", ["AuthRequired", "GatedModel", "ModelNotFound", "DiskFull", "SourceChanged"])
async def test_a_failed_download_has_a_reason_of_its_own_and_everything_else_is_served(
    tmp_path: Path, reason: str
) -> None:
    world = await serving(tmp_path, HUB)
    before = uids(world)
    world.kubelet.fetch = lambda pod: failed(reason)(pod) if "s3://" in json.dumps(pod) else fetched_before()
    await changed(world, tmp_path, HUB, BUCKET, OTHER)
    assert [uid for uid in uids(world) if uid in before] == before
    waiting = [{"name": "bucket", "reason": reason}]
    assert adapters(world) == {"ready": 2, "total": 3, "waiting": waiting}
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Degraded"] == ("True", reason)
    assert world.message("Degraded").startswith("spec.adapters[bucket]: chat-")
    assert f"{reason} as told" in world.message("Degraded")
    assert len(fetches(world)) == 1
    await world.wait(900)
    assert len(all_fetches(world)) == 2, "the kubelet tries it again, in the same pod"
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.settle(60)
    assert adapters(world) == {"ready": 3, "total": 3}
    assert "Degraded" not in world.conditions()
    assert fetches(world) == []


async def test_a_new_replica_starts_without_an_adapter_that_nobody_can_fetch(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    (first,) = uids(world)
    world.kubelet.fetch = failed("AuthRequired")
    await changed(world, tmp_path, HUB, BUCKET)
    change(world, replicas=2)
    await world.settle(120)
    assert world.conditions()["Ready"] == ("True", "Serving")
    engines = [pod for pod in world.api.all(PODS) if not is_adapter_pod(pod)]
    assert [len(_options(pod)) for pod in engines] == [1, 1], "its container would not end with the other one"
    for pod in engines:
        assert [one["name"] for one in pod["spec"]["initContainers"][1]["env"]] == ["ADAPTER_0_QWEN_HUB_TOKEN"]
    assert [sorted(wanted_adapters(wanted_text(pod))) for pod in engines] == [["bucket", "hub"]] * 2
    world.api.remove(next(pod for pod in engines if pod["metadata"]["uid"] == first), PODS)
    await world.settle(120)
    assert world.conditions()["Ready"] == ("True", "Serving")
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.settle(60)
    assert adapters(world) == {"ready": 2, "total": 2}
    change(world, replicas=3)
    await world.settle(60)
    assert sorted(len(_options(pod)) for pod in world.api.all(PODS)) == [1, 1, 2]


async def test_a_new_replica_starts_with_every_adapter_that_an_engine_has_had(tmp_path: Path) -> None:
    """One adapter of the list is broken. That takes no other one away from clients when a replica comes."""
    world = await serving(tmp_path, HUB)
    begun: dict[str, Any] = {}

    def fetch(pod: Manifest) -> Manifest:
        if gets_other(pod):
            return failed("ModelNotFound")(pod)
        now = world.api.clock.now()
        late = (now - begun.setdefault(pod["metadata"]["uid"], now)).total_seconds() < 40
        return running(pod) if late else fetched_before()

    world.kubelet.fetch = fetch
    await changed(world, tmp_path, HUB, BUCKET, OTHER)
    await world.wait(60)
    assert adapters(world)["ready"] == 2
    change(world, replicas=2)
    for _ in range(120):
        await world.wait(1)
        assert adapters(world)["ready"] == 2
    engines = [pod for pod in world.api.all(PODS) if not is_adapter_pod(pod)]
    assert had(world) == ["bucket,hub"] * 2
    assert sorted(len(_options(pod)) for pod in engines) == [1, 2]
    new = next(pod for pod in engines if len(_options(pod)) == 2)
    by_option = zip(_options(new), ("bucket", "hub"), strict=True)
    assert all(name in option for option, name in by_option)
    assert [one["name"] for one in new["spec"]["initContainers"][1]["env"]] == ["ADAPTER_1_QWEN_HUB_TOKEN"]


async def test_what_an_engine_has_had_is_known_when_no_pod_is_left(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = lambda pod: failed("DiskFull")(pod) if gets_other(pod) else fetched_before()
    await changed(world, tmp_path, HUB, BUCKET, OTHER)
    await changed(world, tmp_path, BUCKET, OTHER)
    for pod in world.api.all(PODS):
        world.api.remove(pod, PODS)
    await world.restart()
    await world.settle(120)
    assert had(world) == ["bucket"]
    (engine,) = [pod for pod in world.api.all(PODS) if not is_adapter_pod(pod)]
    assert len(_options(engine)) == 1
    assert not any("hf-token" in json.dumps(one) for one in engine["spec"]["initContainers"])


async def test_a_new_replica_starts_without_adapters_if_no_engine_has_had_one_of_the_list(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = failed("ModelNotFound")
    await changed(world, tmp_path, BUCKET)
    change(world, replicas=2)
    await world.settle(120)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert had(world) == [""] * 2


async def test_a_lost_replica_comes_back_without_an_adapter_that_nobody_can_fetch(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = failed("AuthRequired")
    for number in range(4):
        await changed(world, tmp_path, HUB, BUCKET | {"name": f"bucket-{number}"}, seconds=20)
    for pod in world.api.all(PODS):
        world.api.remove(pod, PODS)
    await world.restart()
    await world.settle(120)
    assert world.conditions()["Ready"] == ("True", "Serving")
    (engine,) = [pod for pod in world.api.all(PODS) if not is_adapter_pod(pod)]
    assert [word.split()[1] for word in _options(engine)] == ["--repository=team/hub"]
    assert adapters(world)["waiting"] == [{"name": "bucket-3", "reason": "AuthRequired"}]
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.settle(60)
    assert adapters(world) == {"ready": 2, "total": 2}


@pytest.mark.parametrize("tolerates", [True, False], ids=["stays", "waits for its successor"])
async def test_an_engine_on_a_cordoned_node_gets_an_added_adapter(tmp_path: Path, tolerates: bool) -> None:
    tolerations = [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
    exempt = replace(ON_NODES, tenancy=Tenancy(exempt=frozenset({"team/chat"})))
    world = await serving(tmp_path, HUB, config=exempt, pod={"tolerations": tolerations if tolerates else []})
    (before,) = world.api.all(PODS)
    place = before["spec"]["nodeName"]
    (other,) = {"gpu-1", "gpu-2"} - {place}
    world.api.edit(NODES, other, lambda one: one["status"]["allocatable"].update({"nvidia.com/gpu": "0"}))
    world.api.edit(NODES, place, lambda one: one["spec"].update(unschedulable=True))
    await world.wait(30)
    await changed(world, tmp_path, HUB, BUCKET)
    assert adapters(world) == {"ready": 2, "total": 2}
    assert "bucket,hub" in had(world)
    assert before["metadata"]["uid"] in uids(world)
    assert {pod["spec"].get("nodeName") for pod in all_fetches(world).values()} == {place}


async def test_a_pod_that_does_not_start_is_made_again_later_and_later(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = lambda _pod: {"phase": "Pending"}
    await changed(world, tmp_path, HUB, BUCKET, seconds=20)
    assert len(fetches(world)) == 1
    before = uids(world)
    await world.wait(3600)
    made = {
        pod["metadata"]["uid"] for _, resource, pod in world.api.journal if resource is PODS and is_adapter_pod(pod)
    }
    assert 4 <= len(made) <= 10
    (now,) = [
        item
        for item in world.api.all(CONTROLLER_REVISIONS)
        if ANNOTATION_ADAPTER_PODS in item["metadata"]["annotations"]
    ]
    assert now["metadata"]["annotations"][ANNOTATION_ADAPTER_PODS].startswith(f"{len(made)} ")
    assert [uid for uid in before if uid in uids(world)]
    assert world.conditions()["Ready"] == ("True", "Serving")
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.wait(3700)
    assert adapters(world) == {"ready": 2, "total": 2}


async def test_a_new_leader_does_not_begin_again(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = running
    await changed(world, tmp_path, HUB, BUCKET, seconds=20)
    assert adapters(world)["waiting"] == [{"name": "bucket", "reason": "Downloading"}]
    (pod,) = fetches(world)
    for _ in range(5):
        await world.restart()
        await world.wait(5)
    assert [one["metadata"]["uid"] for one in fetches(world)] == [pod["metadata"]["uid"]]
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.settle(60)
    assert adapters(world) == {"ready": 2, "total": 2}


async def test_an_adapter_that_the_cache_has_lost_again_is_fetched_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = lambda _pod: fetched_before(finished=world.api.clock.stamp())
    with monkeypatch.context() as lost:
        lost.setattr("tests.unit.world.in_cache", lambda _api, _engine, path: "s3--" not in path)
        await changed(world, tmp_path, HUB, BUCKET, seconds=20)
        (first,) = fetches(world)
        await world.wait(60)
        assert [pod["metadata"]["uid"] for pod in fetches(world)] == [first["metadata"]["uid"]], "it may still load"
        await world.wait(3600)
        made = {
            pod["metadata"]["uid"] for _, resource, pod in world.api.journal if resource is PODS and is_adapter_pod(pod)
        }
        assert 2 <= len(made) <= 4
        assert adapters(world)["waiting"] == [{"name": "bucket", "reason": "Loading"}]
    await world.wait(60)
    assert adapters(world) == {"ready": 2, "total": 2}
    assert fetches(world) == []


async def test_what_is_removed_while_it_downloads_is_not_downloaded_any_more(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.fetch = running
    await changed(world, tmp_path, HUB, BUCKET, seconds=20)
    assert len(fetches(world)) == 1
    await changed(world, tmp_path, HUB)
    assert fetches(world) == []
    assert adapters(world) == {"ready": 1, "total": 1}


async def test_an_adapter_that_engines_cannot_load_is_fetched_once(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.operator.unloadable = {"bucket": "no such layer"}
    await changed(world, tmp_path, HUB, BUCKET)
    assert adapters(world)["waiting"] == [{"name": "bucket", "reason": "AdapterNotLoaded"}]
    assert "cannot load it: no such layer" in world.message("Degraded")
    for pod in fetches(world):
        world.api.remove(pod, PODS)
    await world.settle(60)
    assert len(all_fetches(world)) == 1


async def test_without_quota_nothing_else_suffers(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    full = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "pods", "namespace": "team"},
        "spec": {"hard": {"pods": "2"}},
        "status": {"hard": {"pods": "2"}, "used": {"pods": "2"}},
    }
    world.kubelet.report = read_as(tmp_path, HUB, BUCKET)
    change(world, adapters=[HUB, BUCKET])
    await world.wait(2)
    world.api.put(RESOURCE_QUOTAS, full)
    await world.wait(60)
    assert fetches(world) == []
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert adapters(world)["waiting"] == [{"name": "bucket", "reason": "QuotaExceeded"}]
    assert world.message("Degraded").startswith('spec.adapters[bucket]: the ResourceQuota "pods" allows 2 pods')
    world.api.edit(RESOURCE_QUOTAS, "pods", lambda item: item["status"]["hard"].update(pods="9"))
    await world.settle(120)
    assert adapters(world) == {"ready": 2, "total": 2}


@pytest.mark.parametrize(
    "case",
    [
        (
            CONFIG,
            [HUB],
            [HUB, BUCKET],
            "a",
            "is at s3://weights/bucket, and is fetched when a pod starts, because they",
        ),
        (ON_NODES, listed("a"), [*listed("a"), HUB], "a", "is at hf://team/hub, and is fetched when a pod starts"),
        (ON_NODES, [HUB], [HUB, BUCKET], "b", "spec.adapters[hub] has another commit than they fetched"),
    ],
    ids=["no cache", "the first one", "the branch has moved"],
)
async def test_what_still_needs_new_replicas_says_why(tmp_path: Path, case: tuple[Any, Any, Any, str, str]) -> None:
    config, before, after, commit, why = case
    world = await serving(tmp_path, *before, config=config)
    old, at = set(uids(world)), len(world.api.journal)
    await changed(world, tmp_path, *after, seconds=900, commit=commit)
    assert not old & set(uids(world))
    assert all_fetches(world) == {}
    assert adapters(world) == {"ready": len(after), "total": len(after)}
    said = reconciling(world, at)
    assert any(why in message for message in said), said


async def test_another_secret_replaces_nothing(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    before = uids(world)
    await changed(world, tmp_path, HUB | {"source": HUB["source"] | {"secretRef": {"name": "new"}}})
    assert (uids(world), noted(world)) == (before, [("hub", "hub")])
    change(world, replicas=2)
    await world.settle(60)
    assert {"name": "new", "key": "token", "optional": True} in [
        one["valueFrom"]["secretKeyRef"]
        for pod in world.api.all(PODS)
        for one in pod["spec"].get("initContainers", [{}])[-1].get("env", ())
    ]


async def test_an_operator_that_starts_anew_every_second_loses_nothing(tmp_path: Path) -> None:
    world = await serving(tmp_path, HUB)
    world.kubelet.report = read_as(tmp_path, HUB, BUCKET)
    change(world, adapters=[HUB, BUCKET])
    for _ in range(30):
        await world.wait(1)
        await world.restart()
    await world.settle(300)
    assert adapters(world) == {"ready": 2, "total": 2}
    assert fetches(world) == []
