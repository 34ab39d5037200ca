"""A model is downloaded before engine pods need it, and nothing is lost if that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    ApiError,
    Forbidden,
    Invalid,
    Manifest,
    Unavailable,
)
from qwen_operator.manifests.names import ANNOTATION_CACHED_ON, LABEL_ROLE, ROLE_FETCH
from qwen_operator.manifests.quantities import amount
from qwen_operator.replicas.cached_nodes import MOST_NODES
from qwen_operator.replicas.fetch_attempts import START_SECONDS
from qwen_operator.replicas.prefetch import AT_ONCE
from qwen_operator.replicas.quotas import usage
from qwen_operator.status.progress import FetchPage
from qwen_operator.tenancy.lists import Tenancy
from tests.unit.fakes import Crash, Write
from tests.unit.replicas.test_cached_nodes import ON_NODES, preferred
from tests.unit.status.test_cache_column import fetched, told
from tests.unit.status.test_progress import CACHED
from tests.unit.status.test_progress import commit as hub
from tests.unit.world import CONFIG, World, change, deployment, fetched_before, node

SCHEDULED = {"type": "PodScheduled", "status": "True"}
ZERO = {"minReplicas": 0, "maxReplicas": 3}


def running(_pod: Manifest) -> Manifest:
    state = {"running": {"startedAt": "2026-11-01T00:00:00Z"}}
    return {
        "phase": "Pending",
        "podIP": "10.0.0.9",
        "conditions": [SCHEDULED],
        "initContainerStatuses": [{"name": "fetch", "restartCount": 0, "state": state}],
    }


def failed(reason: str, restarts: int = 1, **more: Any) -> Callable[[Manifest], Manifest]:
    report = {"version": 1, "reason": reason, "phase": "Download", "exitCode": 1, "log": [f"{reason} as told"]} | more
    end = {"exitCode": 1, "reason": "Error", "message": json.dumps(report), "finishedAt": "2026-11-01T00:00:00Z"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    status = {
        "name": "fetch",
        "restartCount": restarts,
        "state": {"waiting": waiting},
        "lastState": {"terminated": end},
    }
    return lambda _pod: {"phase": "Pending", "conditions": [SCHEDULED], "initContainerStatuses": [status]}


def world_of(config: Any = ON_NODES, nodes: int = 2) -> World:
    world = World(config, fetch=hub)
    world.kubelet.place = True
    world.kubelet.engine = lambda _pod: fetched(told(0))
    world.kubelet.fetch = running
    for number in range(2, nodes + 1):
        world.api.put(NODES, node(f"gpu-{number}"))
    world.api.put(PERSISTENT_VOLUME_CLAIMS, claim("Bound"))
    return world


def claim(phase: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "m", "namespace": "team"},
        "spec": {},
        "status": {"phase": phase},
    }


async def begun(world: World, **spec: Any) -> World:
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(**{"prefetch": True, **spec}))
    await world.settle()
    return world


def is_fetch(pod: Manifest) -> bool:
    return bool(pod["metadata"]["labels"][LABEL_ROLE] == ROLE_FETCH)


def fetches(world: World) -> list[Manifest]:
    return [pod for pod in world.api.all(PODS) if is_fetch(pod)]


def engines(world: World) -> list[Manifest]:
    return [pod for pod in world.api.all(PODS) if not is_fetch(pod)]


def cache_column(world: World) -> str:
    return str(world.qd()["status"]["summary"].get("cache"))


async def finish(world: World) -> None:
    world.kubelet.fetch = lambda _pod: fetched_before()
    await world.settle()


@pytest.mark.parametrize("config", [ON_NODES, CACHED], ids=["nodes", "claim"])
async def test_the_first_replica_takes_no_gpu_before_its_model_is_there(config: Any) -> None:
    world = await begun(world_of(config))
    [pod] = fetches(world)
    assert engines(world) == []
    world.operator.pages = {pod["metadata"]["uid"]: FetchPage(430, 1000, 7)}
    world.operator.queue.add(("team", "chat"))
    await world.wait(10)
    assert world.qd()["status"]["summary"]["status"] == "Downloading 43%"
    assert "no GPU is taken until it is there" in world.message("Ready")
    assert world.conditions()["Reconciling"] == ("True", "Downloading")
    await finish(world)
    [engine] = engines(world)
    assert fetches(world) == []
    assert world.conditions()["Ready"] == ("True", "Serving")
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    noted = revision["metadata"]["annotations"][ANNOTATION_CACHED_ON]
    assert noted == ("m" if config is CACHED else pod["spec"]["nodeName"])
    assert preferred(engine) == ([] if config is CACHED else [noted])
    assert cache_column(world) == ("hit" if config is CACHED else "hit, 1/1 nodes")
    writes = len(world.api.writes)
    await world.wait(900)
    assert len(world.api.writes) == writes


async def test_the_pod_has_what_the_init_container_has_and_no_gpu() -> None:
    affinity: Manifest = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "nvidia.com/gpu.count", "operator": "Exists"}]}]
            }
        },
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []},
    }
    taint = {"key": "dedicated", "operator": "Exists"}
    own = {
        "affinity": affinity,
        "tolerations": [taint],
        "serviceAccountName": "models",
        "priorityClassName": "high",
        "labels": {"team": "a"},
    }
    exempt = replace(ON_NODES, tenancy=Tenancy(exempt=frozenset({"team/chat"})))
    world = await begun(world_of(exempt), pod=own)
    [pod] = fetches(world)
    await finish(world)
    [engine] = engines(world)
    spec, init = pod["spec"], next(one for one in engine["spec"]["initContainers"] if one["name"] == "fetch")
    assert spec["initContainers"] == [init]
    assert "nvidia.com/gpu" not in json.dumps([one["resources"] for one in spec["containers"]])
    assert [one["name"] for one in spec["containers"]] == ["fetched"]
    for part in (
        "securityContext",
        "serviceAccountName",
        "tolerations",
        "nodeSelector",
        "automountServiceAccountToken",
    ):
        assert spec[part] == engine["spec"][part]
    assert "priorityClassName" not in spec
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": [spec["nodeName"]]}]
    assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.count", "operator": "Exists"}]
    assert list(spec["affinity"]) == ["nodeAffinity"]
    assert {mount["name"] for mount in init["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    labels = pod["metadata"]["labels"]
    assert labels["team"] == "a"
    assert "qwen-operator.dev/routable" not in labels


@pytest.mark.parametrize("reason", ["AuthRequired", "GatedModel", "ModelNotFound", "DiskFull", "SourceChanged"])
async def test_a_failure_is_told_before_a_gpu_is_taken(reason: str) -> None:
    world = world_of(nodes=1)
    world.kubelet.fetch = failed(reason)
    await begun(world)
    await world.wait(int(3 * START_SECONDS))
    assert engines(world) == []
    assert world.conditions()["Ready"] == ("False", reason)
    assert f"{reason} as told" in world.message("Ready")
    assert world.qd()["status"]["lastFailure"]["reason"] == reason
    world.kubelet.fetch = failed(reason, restarts=4)
    await world.settle()
    assert world.conditions()["Stalled"] == ("True", reason)
    await finish(world)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_full_disk_of_one_node_leads_to_another_node() -> None:
    world = world_of()
    full: list[str] = []

    def one_is_full(pod: Manifest) -> Manifest:
        full[:] = full or [pod["spec"]["nodeName"]]
        return failed("DiskFull")(pod) if pod["spec"]["nodeName"] in full else fetched_before()

    world.kubelet.fetch = one_is_full
    await begun(world)
    assert [pod["spec"]["nodeName"] for pod in fetches(world)] == full
    [engine] = engines(world)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert set(preferred(engine)).isdisjoint(full)
    assert "DiskFull as told" in world.message("Planned")


async def test_wrong_credentials_are_not_tried_on_every_node() -> None:
    world = world_of(nodes=8)
    world.kubelet.fetch = failed("AuthRequired")
    await begun(world, replicas=8)
    await world.wait(600)
    assert 0 < len(fetches(world)) <= AT_ONCE
    assert engines(world) == []


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Pending"},
        {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "Insufficient cpu"}],
        },
        {
            "phase": "Pending",
            "conditions": [SCHEDULED],
            "initContainerStatuses": [
                {"name": "fetch", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
            ],
        },
    ],
    ids=["unseen", "no room", "no image"],
)
async def test_a_pod_that_does_not_start_keeps_no_replica_back(status: Manifest) -> None:
    world = world_of()
    world.kubelet.fetch = lambda _pod: status
    await begun(world)
    await world.wait(int(START_SECONDS) + 10)
    assert len(engines(world)) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_if_the_gpus_are_gone_the_replica_downloads_elsewhere() -> None:
    world = await begun(world_of())
    [pod] = fetches(world)
    taken = pod["spec"]["nodeName"]
    world.api.put(QWENDEPLOYMENTS, deployment("other", model="Qwen/Qwen1.5-72B-Chat", parallelism={"tensor": 8}))
    world.kubelet.full = {name for name in ("gpu-1", "gpu-2") if name != taken}
    await world.settle()
    world.kubelet.full = set()
    await finish(world)
    mine = [one for one in engines(world) if one["metadata"]["name"].startswith("chat")]
    assert [one["spec"]["nodeName"] for one in mine] == [name for name in ("gpu-1", "gpu-2") if name != taken]
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_nodes_are_warmed_while_the_model_sleeps_a_few_at_a_time() -> None:
    world = world_of(nodes=6)
    world.wanted = 0
    most: list[int] = []

    def slow(pod: Manifest) -> Manifest:
        most.append(len([one for one in fetches(world) if one["status"]["phase"] != "Succeeded"]))
        return running(pod) if "podIP" not in pod["status"] else fetched_before()

    world.kubelet.fetch = slow
    await begun(world, scaling=ZERO)
    assert engines(world) == fetches(world) == []
    assert cache_column(world) == "3/3 nodes"
    assert max(most) == AT_ONCE
    [revision] = world.api.all(CONTROLLER_REVISIONS)
    warm = revision["metadata"]["annotations"][ANNOTATION_CACHED_ON].split(",")
    assert len(warm) == 3
    world.wanted = 2
    world.operator.queue.add(("team", "chat"))
    await world.settle()
    assert sorted(preferred(engines(world)[0])) == sorted(warm)


def unusable(world: World) -> None:
    world.api.edit(NODES, "gpu-2", lambda item: item["spec"].update(unschedulable=True))
    taint = {"key": "dedicated", "effect": "NoSchedule"}
    world.api.edit(NODES, "gpu-3", lambda item: item["spec"].update(taints=[taint]))
    world.api.put(NODES, node("gpu-4", product="NVIDIA-L4", memory=23034))
    world.api.put(NODES, node("small", gpus=1))


async def test_only_nodes_that_can_run_a_replica_are_warmed() -> None:
    world = world_of(nodes=3)
    unusable(world)
    await begun(world, model="Qwen/Qwen1.5-72B-Chat", scaling={"maxReplicas": 8}, parallelism={"tensor": 4})
    assert {pod["spec"]["nodeName"] for pod in fetches(world)} == {"gpu-1"}


@pytest.mark.parametrize("rollout", [{}, {"maxSurge": 0, "maxUnavailable": 1}], ids=["surge", "in place"])
async def test_a_rollout_begins_when_the_new_model_is_there(rollout: Manifest) -> None:
    world = await begun(world_of(), rollout=rollout)
    await finish(world)
    [old] = world.names()
    world.kubelet.fetch = running
    source = {"uri": "hf://Qwen/Qwen1.5-0.5B-Chat", "revision": "d" * 40}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source=source))
    await world.wait(300)
    assert [pod["metadata"]["name"] for pod in engines(world)] == [old]
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.api.one(PODS, old)["metadata"]["labels"]["qwen-operator.dev/routable"] == "true"
    await finish(world)
    assert len(engines(world)) == 1
    assert old not in world.names()


MOVED = {"uri": "hf://Qwen/Qwen1.5-0.5B-Chat", "revision": "d" * 40}
IN_PLACE = {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("how", ["deleted", "cordoned"])
async def test_a_download_that_is_lost_late_takes_no_old_replica_with_it(how: str) -> None:
    world = await begun(world_of(), rollout=IN_PLACE)
    await finish(world)
    [old] = world.names()
    world.kubelet.fetch = running
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source=dict(MOVED)))
    await world.wait(600)
    [pod] = fetches(world)
    if how == "deleted":
        world.api.finish(pod, PODS)
    else:
        world.api.edit(NODES, pod["spec"]["nodeName"], lambda item: item["spec"].update(unschedulable=True))
    await world.wait(300)
    assert fetches(world)
    assert [one["metadata"]["name"] for one in engines(world)] == [old]
    assert world.api.one(PODS, old)["metadata"]["labels"]["qwen-operator.dev/routable"] == "true"
    assert world.conditions()["Ready"] == ("True", "Serving")


@pytest.mark.parametrize("surge", [0, 1])
async def test_a_full_quota_of_gpus_ends_no_download(surge: int) -> None:
    world = with_quota(world_of(), **{"requests.nvidia.com/gpu": "1"})
    await begun(world, rollout={"maxSurge": surge, "maxUnavailable": 1})
    await finish(world)
    [old] = world.names()
    world.kubelet.fetch = running
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source=dict(MOVED)))
    await world.wait(300)
    assert fetches(world)
    assert [one["metadata"]["name"] for one in engines(world)] == [old]
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_another_revision_of_the_same_model_waits_for_nothing() -> None:
    world = await begun(world_of(CACHED))
    await finish(world)
    world.kubelet.fetch = running
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=4096))
    await world.settle()
    assert fetches(world) == []
    assert len(engines(world)) == 1


async def test_without_the_field_nothing_is_fetched_before_and_what_runs_is_removed() -> None:
    world = await begun(world_of(), prefetch=False)
    assert (fetches(world), len(engines(world))) == ([], 1)
    world = await begun(world_of())
    assert len(fetches(world)) == 1
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].pop("prefetch"))
    await world.settle()
    assert (fetches(world), len(engines(world))) == ([], 1)


async def test_the_field_restarts_nothing() -> None:
    world = await begun(world_of(), prefetch=False)
    [before] = engines(world)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(prefetch=True, scaling={"maxReplicas": 2}))
    await finish(world)
    assert [pod["metadata"]["uid"] for pod in engines(world)] == [before["metadata"]["uid"]]
    assert cache_column(world) == "hit, 2/2 nodes"


async def test_without_a_cache_the_status_says_that_the_field_has_no_effect() -> None:
    world = await begun(world_of(CONFIG))
    assert (fetches(world), len(engines(world))) == ([], 1)
    assert "spec.prefetch has no effect" in world.message("Planned")


async def test_a_foreign_pod_of_its_name_is_left_alone_and_keeps_nothing_back() -> None:
    world = await begun(world_of(CACHED))
    [pod] = fetches(world)
    world.api.remove(world.qd(), QWENDEPLOYMENTS)
    await world.settle()
    foreign = {
        **pod,
        "metadata": {"name": pod["metadata"]["name"], "namespace": "team", "labels": {LABEL_ROLE: "fetch"}},
    }
    world.api.put(PODS, foreign)
    await begun(world)
    writes = len(world.api.writes)
    await world.wait(300)
    assert len(world.api.writes) == writes
    assert len(engines(world)) == 1


async def test_a_node_that_leaves_takes_its_pod_along() -> None:
    world = await begun(world_of())
    [first] = fetches(world)
    world.api.edit(NODES, first["spec"]["nodeName"], lambda item: item["spec"].update(unschedulable=True))
    await world.settle()
    [second] = fetches(world)
    assert second["spec"]["nodeName"] != first["spec"]["nodeName"]


async def test_an_evicted_pod_is_made_again() -> None:
    world = await begun(world_of())
    [first] = fetches(world)
    status = {"phase": "Failed", "reason": "Evicted", "message": "the node was low on disk"}
    world.api.edit(PODS, first["metadata"]["name"], lambda item: item.update(status=status))
    await world.settle()
    [second] = fetches(world)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    await finish(world)
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_replica_over_two_nodes_waits_for_both() -> None:
    world = world_of(nodes=3)
    slow = "gpu-2"
    world.kubelet.fetch = lambda pod: running(pod) if pod["spec"]["nodeName"] == slow else fetched_before()
    model = "Qwen/Qwen3-Coder-480B-A35B-Instruct"
    world.kubelet.engine = lambda _pod: None
    world.api.remove(world.api.one(NODES, "gpu-3"), NODES)
    await begun(world, model=model, hardware={"maxNodesPerReplica": 2})
    assert ({pod["spec"]["nodeName"] for pod in fetches(world)}, engines(world)) == ({slow}, [])
    await finish(world)
    assert len(engines(world)) == 2


async def test_many_nodes_that_are_gone_cause_no_endless_writes() -> None:
    world = world_of(nodes=1)
    world.wanted = 0
    await begun(world, scaling=ZERO)
    await finish(world)
    for tokens in (4096, 8192, 2048):
        change(world, contextTokens=tokens)
        await world.settle()
    gone = ",".join(f"gone-{number}" for number in range(MOST_NODES))
    current = world.qd()["status"]["plan"]["hash"]
    earlier = [name for name in world.names(CONTROLLER_REVISIONS) if current not in name]
    for name in earlier:
        world.api.edit(
            CONTROLLER_REVISIONS,
            name,
            lambda item: item["metadata"]["annotations"].update({ANNOTATION_CACHED_ON: gone}),
        )
    assert min(earlier) < min(name for name in world.names(CONTROLLER_REVISIONS) if current in name)
    world.api.put(NODES, node("gpu-2"))
    world.api.remove(world.api.one(NODES, "gpu-1"), NODES)
    await world.wait(120)
    writes = len(world.api.writes)
    await world.wait(120)
    assert len(world.api.writes) == writes
    assert fetches(world) == []
    assert cache_column(world) == "1/1 nodes"


def ends(reason: str, seconds: float = 0.0) -> Callable[[World], None]:
    """Fetch pods end without success so many seconds after their creation."""

    def arranged(world: World) -> None:
        def fetch(pod: Manifest) -> Manifest | None:
            created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
            over = (world.api.clock.now() - created).total_seconds() >= seconds
            return {"phase": "Failed", "reason": reason, "message": "as told"} if over else None

        world.kubelet.fetch = fetch

    return arranged


def pending(world: World) -> None:
    world.kubelet.fetch = lambda _pod: {"phase": "Pending"}


def deleted(world: World) -> None:
    def fetch(pod: Manifest) -> Manifest | None:
        world.api.finish(pod, PODS)
        return None

    world.kubelet.fetch = fetch


def evicted_while_it_downloads(world: World) -> None:
    def fetch(pod: Manifest) -> Manifest:
        created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
        if (world.api.clock.now() - created).total_seconds() >= 40:
            return {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}
        return running(pod)

    world.kubelet.fetch = fetch


def crashes_otherwise(world: World) -> None:
    world.kubelet.fetch = failed("Unknown")


def cordons(world: World) -> None:
    """Whenever a node gets a fetch pod, somebody cordons it for a moment."""

    def fetch(pod: Manifest) -> Manifest | None:
        world.api.edit(NODES, pod["spec"]["nodeName"], lambda item: item["spec"].update(unschedulable=True))
        return None

    step = world.kubelet.step

    def with_ready_nodes() -> bool:
        for one in world.api.all(NODES):
            if one["spec"].get("unschedulable") and world.api.clock.seconds % 5 == 0:
                world.api.edit(NODES, one["metadata"]["name"], lambda item: item["spec"].pop("unschedulable"))
        return step()

    world.kubelet.fetch = fetch
    world.kubelet.step = with_ready_nodes  # type: ignore[method-assign]


def refused(error: type[ApiError], status: int) -> Callable[[World], None]:
    def arranged(world: World) -> None:
        def admit(verb: str, manifest: Manifest) -> None:
            if verb == "create" and manifest["kind"] == "Pod" and is_fetch(manifest):
                raise error(status, "Forbidden", "exceeded quota, or a webhook says no")

        world.api.admit = admit

    return arranged


def on_one_node(arrange: Callable[[World], None]) -> Callable[[World], None]:
    """The others fetch at once."""

    def arranged(world: World) -> None:
        arrange(world)
        bad = world.kubelet.fetch

        def fetch(pod: Manifest) -> Manifest | None:
            return bad(pod) if pod["spec"]["nodeName"] == "gpu-1" else fetched_before()

        world.kubelet.fetch = fetch

    return arranged


TROUBLES = {
    "pending": pending,
    "at once": ends("UnexpectedAdmissionError"),
    "after two steps": ends("UnexpectedAdmissionError", 2),
    "late": ends("Evicted", 100),
    "very late": ends("Evicted", 300),
    "deleted": deleted,
    "evicted": evicted_while_it_downloads,
    "crashes": crashes_otherwise,
    "cordons": cordons,
    "quota": refused(Forbidden, 403),
    "webhook": refused(Invalid, 422),
    "webhook down": refused(Unavailable, 503),
    "one node at once": on_one_node(ends("UnexpectedAdmissionError")),
    "one node deleted": on_one_node(deleted),
    "one node pending": on_one_node(pending),
    "one node evicted": on_one_node(evicted_while_it_downloads),
}


@pytest.mark.parametrize("scaling", [{"minReplicas": 1, "maxReplicas": 3}, None], ids=["scaled", "one"])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_whatever_fetch_pods_do_engines_exist_and_writes_end(
    trouble: Callable[[World], None], scaling: Manifest | None
) -> None:
    world = world_of(nodes=3)
    world.wanted = 1
    trouble(world)
    await begun(world, **({"scaling": scaling} if scaling else {}))
    await world.wait(int(START_SECONDS))
    assert len(engines(world)) == 1
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert len(world.api.writes) <= 50
    await world.wait(1200)
    before = len(world.api.writes)
    await world.wait(3600)
    assert len(world.api.writes) - before <= 40
    assert len(engines(world)) == 1


@pytest.mark.parametrize("config", [ON_NODES, CACHED], ids=["nodes", "claim"])
@pytest.mark.parametrize("error", [Forbidden(403, "Forbidden", "no"), Unavailable(503, "Down", "webhook is down")])
async def test_a_replica_does_not_wait_for_a_revision_that_is_rejected(config: Any, error: ApiError) -> None:
    """Nothing counts the downloads then. So engine pods do them, as without prefetch."""

    def admit(verb: str, manifest: Manifest) -> None:
        if verb == "create" and manifest["kind"] == "ControllerRevision":
            raise error

    world = world_of(config)
    world.api.admit = admit
    await begun(world)
    await world.wait(30)
    assert len(engines(world)) == 1
    assert fetches(world) == []
    assert world.conditions()["Stalled"] == ("True", "PodRefused")
    assert "spec.prefetch has no effect while the API server rejects the ControllerRevision" in world.message("Planned")
    world.api.admit = lambda _verb, _manifest: None
    await world.wait(600)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "spec.prefetch" not in world.message("Planned")


@pytest.mark.parametrize("rollout", [{}, {"maxSurge": 0, "maxUnavailable": 1}], ids=["surge", "in place"])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_whatever_fetch_pods_do_a_rollout_ends(trouble: Callable[[World], None], rollout: Manifest) -> None:
    world = await begun(world_of(), rollout=rollout)
    await finish(world)
    [old] = [pod["metadata"]["name"] for pod in engines(world)]
    trouble(world)
    source = {"uri": "hf://Qwen/Qwen1.5-0.5B-Chat", "revision": "d" * 40}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(source=source))
    await world.wait(600)
    [new] = [pod["metadata"]["name"] for pod in engines(world)]
    assert new != old


def with_quota(world: World, **hard: str) -> World:
    """A ResourceQuota that counts what is there in each step of the kubelet, and refuses what it has no room for."""
    step, manifest = world.kubelet.step, {"apiVersion": "v1", "kind": "ResourceQuota"}
    hard = {name.replace("_", "."): value for name, value in hard.items()}

    def used() -> dict[str, Decimal]:
        total = dict.fromkeys(hard, Decimal(0))
        for pod in world.api.all(PODS):
            needs = usage(pod) if pod["status"]["phase"] not in ("Succeeded", "Failed") else {}
            total = {name: value + needs.get(name, Decimal(0)) for name, value in total.items()}
        return total

    def count() -> bool:
        moved = step()
        status = {"hard": hard, "used": {name: str(value) for name, value in used().items()}}
        meta = {"name": "few", "namespace": "team"}
        world.api.put(RESOURCE_QUOTAS, {**manifest, "metadata": meta, "spec": {"hard": hard}, "status": status})
        return moved

    def admit(verb: str, new: Manifest) -> None:
        if verb == "create" and new["kind"] == "Pod":
            needs, there = usage(new), used()
            if any(there[name] + needs.get(name, Decimal(0)) > (amount(most) or 0) for name, most in hard.items()):
                raise Forbidden(403, "Forbidden", "exceeded quota: few")

    world.kubelet.step = count  # type: ignore[method-assign]
    world.api.admit = admit
    count()
    return world


STUCK = {"pending": pending, "full disk": lambda world: setattr(world.kubelet, "fetch", failed("DiskFull"))}


@pytest.mark.parametrize("hard", [{"pods": "2"}, {"requests_cpu": "1"}, {"requests_memory": "4Gi"}], ids=str)
@pytest.mark.parametrize("stuck", STUCK.values(), ids=STUCK.keys())
async def test_engine_pods_get_the_quota_first(stuck: Callable[[World], None], hard: dict[str, str]) -> None:
    world = world_of(nodes=4)
    world.wanted = 2
    stuck(world)
    with_quota(world, **hard)
    await begun(world, scaling={"minReplicas": 2, "maxReplicas": 4})
    await world.wait(600)
    assert (len(engines(world)), fetches(world)) == (2, [])
    assert world.conditions()["Ready"] == ("True", "Serving")
    before = len(world.api.writes)
    await world.wait(3600)
    assert len(world.api.writes) - before <= 10


@pytest.mark.parametrize("stuck", [*STUCK.values(), lambda _world: None], ids=[*STUCK.keys(), "downloads"])
async def test_a_replica_that_lacks_quota_ends_the_fetch_pods(stuck: Callable[[World], None]) -> None:
    world = world_of(nodes=4)
    world.wanted = 0
    stuck(world)
    with_quota(world, pods="2")
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(prefetch=True, scaling={"minReplicas": 0, "maxReplicas": 4}))
    await world.wait(60)
    assert len(fetches(world)) == 2
    world.wanted = 2
    world.operator.queue.add(("team", "chat"))
    await world.wait(60)
    assert (len(engines(world)), fetches(world)) == (2, [])
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_claim_that_is_not_bound_is_bound_by_an_engine_pod() -> None:
    world = world_of(CACHED)
    world.api.put(PERSISTENT_VOLUME_CLAIMS, claim("Pending"))
    world.wanted = 0
    await begun(world, scaling=ZERO)
    await world.wait(300)
    assert world.api.all(PODS) == []
    assert "until the claim m is bound" in world.message("Planned")
    world.wanted = 1
    world.operator.queue.add(("team", "chat"))
    await world.wait(20)
    assert (len(engines(world)), fetches(world)) == (1, [])
    assert world.conditions()["Ready"] == ("True", "Serving")


async def test_a_claim_is_filled_as_soon_as_it_is_bound() -> None:
    world = world_of(CACHED)
    world.api.put(PERSISTENT_VOLUME_CLAIMS, claim("Pending"))
    world.wanted = 0
    await begun(world, scaling=ZERO)
    world.api.put(PERSISTENT_VOLUME_CLAIMS, claim("Bound"))
    await world.wait(90)
    assert len(fetches(world)) == 1
    assert "until the claim" not in world.message("Planned")
    await finish(world)
    assert world.api.all(PODS) == []


async def test_a_claim_that_cannot_be_read_any_more_ends_no_download() -> None:
    world = await begun(world_of(CACHED))
    world.api.remove(world.api.one(PERSISTENT_VOLUME_CLAIMS, "m"), PERSISTENT_VOLUME_CLAIMS)
    await world.wait(300)
    assert (len(fetches(world)), engines(world)) == (1, [])


async def whole_story(world: World) -> World:
    await begun(world)
    await finish(world)
    return world


@pytest.mark.parametrize("config", [ON_NODES, CACHED], ids=["nodes", "claim"])
async def test_every_write_may_be_the_last_one_of_a_process(config: Any) -> None:
    calm = await whole_story(world_of(config, nodes=1))
    for last in range(len(calm.api.writes)):
        world = world_of(config, nodes=1)
        due = [last]

        def hit(number: int, _write: Write, due: list[int] = due) -> None:
            if number in due:
                due.clear()
                raise Crash

        world.api.before = hit
        await whole_story(world)
        assert world.crashes == 1
        assert world.state() == calm.state()
