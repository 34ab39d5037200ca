"""What a person reads: for every bad input and every state of a pod one reason, a sentence, and an Event."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_operator.controller.worker import PACE_SECONDS
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NODES,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
)
from tests.unit.world import (
    CUT,
    REPORT,
    Behaviour,
    World,
    deployment,
    ended_status,
    node,
    ready_status,
    settled,
)

CLAIM: dict[str, Any] = {"source": {"uri": "pvc://weights/chat"}, "model": "local"}
SCHEDULED = {"type": "PodScheduled", "status": "True"}


def always(status: Manifest | None) -> Behaviour:
    return lambda _pod: status


@dataclass(frozen=True)
class Refused:
    spec: dict[str, Any]
    reason: str
    says: tuple[str, ...]


@pytest.mark.parametrize(
    "case",
    [
        Refused({"servedNames": ["a:b"]}, "InvalidSpec", ("servedNames", "a:b")),
        Refused({"contextTokens": "many"}, "InvalidSpec", ("contextTokens", "many")),
        Refused({"model": "Someone/Else"}, "UnknownModel", ("Someone/Else", "Qwen/Qwen1.5-7B", "spec.source.uri")),
        Refused({"model": "qwen1.5-7b-chat"}, "UnknownModel", ("did you mean Qwen/Qwen1.5-7B-Chat?",)),
        Refused({"engine": {"args": ["--tp", "2"]}}, "InvalidOverride", ("--tp cannot", "spec.parallelism.tensor")),
        Refused({"engine": {"args": ["--max-runing-requests=4"]}}, "UnknownFlag", ("--max-running-requests",)),
        Refused({"source": {"uri": "hf://Some/Thing"}}, "UnknownModel", ("hf://Some/Thing",)),
        Refused({"contextTokens": 10_000_000}, "InvalidOverride", ("10000000",)),
        Refused({"parallelism": {"tensor": 3}}, "InvalidOverride", ("3",)),
        Refused({"engine": {"args": ["--no-such-flag"]}}, "UnknownFlag", ("--no-such-flag",)),
        Refused({"hardware": {"products": ["B200"]}}, "NoGpus", ("B200",)),
    ],
    ids=lambda case: str(next(iter(case.spec.values()))),
)
async def test_a_bad_spec_is_refused_in_words_before_a_pod_exists(case: Refused) -> None:
    world = await settled(deployment(**case.spec))
    conditions = world.conditions()
    assert conditions["Ready"] == ("False", case.reason)
    assert conditions["Planned"] == ("False", case.reason)
    assert conditions["Stalled"] == ("True", case.reason)
    assert all(text in world.message("Ready") for text in case.says), world.message("Ready")
    assert world.names() == []
    assert world.events() == {case.reason: 1}
    assert world.qd()["status"]["summary"]["status"] == case.reason


async def test_an_object_without_a_usable_spec_does_not_disturb_the_others() -> None:
    broken = deployment("broken")
    broken["spec"] = {"model": 7, "replicas": "x", "servedNames": 3}
    world = await settled(broken, deployment())
    assert world.conditions("broken")["Ready"] == ("False", "InvalidSpec")
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.operator.outcomes["crash"] == 0


async def test_what_does_not_fit_starts_when_a_node_comes() -> None:
    world = await settled(deployment(model="Qwen/Qwen1.5-72B-Chat", hardware={"maxGpusPerReplica": 1}))
    assert world.conditions()["Ready"] == ("False", "DoesNotFit")
    assert world.qd()["status"]["noFit"]
    world.api.put(NODES, node("big", 1, 400_000, "NVIDIA-HUGE-400GB"))
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "noFit" not in world.qd()["status"]


def _pending(message: str) -> Manifest:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [scheduled]}


def _waiting(reason: str, message: str) -> Manifest:
    container = {
        "name": "engine",
        "image": "example/sglang:v0.5.23",
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return {"phase": "Pending", "conditions": [SCHEDULED], "containerStatuses": [container]}


def _died(report: str, restarts: int, reason: str = "Error", code: int = 1) -> Manifest:
    ended = {"exitCode": code, "reason": reason, "message": report, "finishedAt": "2026-01-01T00:00:30Z"}
    container = {
        "name": "engine",
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": ended},
    }
    return {"phase": "Running", "conditions": [SCHEDULED], "containerStatuses": [container]}


OOM = json.dumps(
    {"version": 1, "reason": "CudaOutOfMemory", "phase": "CaptureGraphs", "exitCode": 1, "log": ["a", "no memory"]}
)
PULL = 'Back-off pulling image "x": ErrImagePull: not found'


@pytest.mark.parametrize(
    ("status", "reason", "says", "optional"),
    [
        ({"phase": "Pending"}, "Starting", "is being started", "Reconciling"),
        (
            _pending("0/1 nodes: 1 Insufficient nvidia.com/gpu."),
            "WaitingForGpus",
            "Insufficient nvidia.com/gpu",
            "Reconciling",
        ),
        (
            _pending('persistentvolumeclaim "weights" not found'),
            "ClaimNotFound",
            '"weights" does not exist',
            "Reconciling",
        ),
        (_waiting("ImagePullBackOff", PULL), "ImagePullFailed", "example/sglang:v0.5.23: not found", "Reconciling"),
        (_waiting("ErrImagePull", "not found"), "ImagePullFailed", "example/sglang:v0.5.23: not found", "Reconciling"),
        (_waiting("CreateContainerConfigError", 'secret "s" not found'), "PodRefused", 'secret "s"', "Reconciling"),
        (_waiting("PodInitializing", ""), "Starting", "is being started", "Reconciling"),
        (
            {
                "phase": "Running",
                "conditions": [SCHEDULED],
                "containerStatuses": [{"name": "engine", "state": {"running": {}}}],
            },
            "Loading",
            "is loading",
            "Reconciling",
        ),
        (_died(OOM, 1), "CudaOutOfMemory", "exit code 1 while in CaptureGraphs: no memory", "Reconciling"),
        (_died(OOM, 3), "CudaOutOfMemory", "no memory", "Stalled"),
        (_died("", 1, "OOMKilled", 137), "HostOutOfMemory", "exit code 137", "Reconciling"),
        (_died("not json", 1), "Unknown", "not json", "Reconciling"),
        (_died('{"reason": "MadeUp"}', 1), "Unknown", "exit code 1", "Reconciling"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_pod_that_does_not_serve_says_why(status: Manifest, reason: str, says: str, optional: str) -> None:
    world = await settled(deployment(), engine=always(status))
    conditions = world.conditions()
    assert conditions["Ready"] == ("False", reason)
    assert conditions["Planned"] == ("True", "Fits")
    assert conditions["ModelLoaded"] == ("False", reason)
    assert conditions[optional] == ("True", reason)
    assert says in world.message("Ready")
    progress = reason in ("Starting", "Loading")
    assert world.events() == ({} if progress else {reason: 1})


async def test_the_last_failure_is_kept_and_counted_until_the_model_serves() -> None:
    world = await settled(deployment(), engine=always(_died(OOM, 1)))
    failure = world.qd()["status"]["lastFailure"]
    assert failure["reason"] == "CudaOutOfMemory"
    assert failure["phase"] == "CaptureGraphs"
    assert failure["exitCode"] == 1
    assert failure["log"] == ["a", "no memory"]
    writes = len(world.api.writes)
    await world.operator.resync.once()
    await world.settle()
    assert len(world.api.writes) == writes, "the same failure is not counted twice"
    for second in ("31", "32"):
        again = json.loads(json.dumps(_died(OOM, 1)).replace("00:30Z", f"00:{second}Z"))
        world.kubelet.engine = always(again)
        await world.settle()
    assert world.qd()["status"]["lastFailure"]["count"] == 3
    assert world.conditions()["Stalled"] == ("True", "CudaOutOfMemory")
    # Running again after a crash is not yet success: the reason stays, no flapping.
    restarted = _died(OOM, 3)
    restarted["containerStatuses"][0]["state"] = {"running": {}}
    world.kubelet.engine = always(restarted)
    await world.settle()
    assert world.conditions()["Ready"] == ("False", "CudaOutOfMemory")
    world.kubelet.engine = ready_status
    await world.settle()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "Stalled" not in world.conditions()


async def test_one_broken_replica_of_two_is_degraded_and_still_serves() -> None:
    world = await settled(
        deployment(replicas=2),
        engine=lambda pod: _died(OOM, 4) if pod["metadata"]["name"].endswith("-1") else ready_status(pod),
    )
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Degraded"] == ("True", "ReplicaLost")
    assert world.qd()["status"]["summary"]["ready"] == "1/2"


async def test_scaling_up_is_not_a_rollout() -> None:
    world = await settled(deployment())
    world.kubelet.engine = always(None)
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=2))
    await world.settle()
    assert set(world.conditions()) == {"Ready", "Planned", "ModelLoaded", "ScalingActive"}
    assert world.qd()["status"]["summary"]["status"] == "ScalingUp"
    assert world.qd()["status"]["summary"]["ready"] == "1/2"


async def test_no_replicas_is_said_as_such() -> None:
    world = await settled(deployment(replicas=0))
    assert world.conditions() == {
        "Ready": ("False", "Scaled"),
        "Planned": ("True", "Fits"),
        "ModelLoaded": ("False", "Scaled"),
        "ScalingActive": ("False", "ReplicasSet"),
    }
    assert world.message("Ready") == "spec.replicas is 0"


async def test_a_pod_that_ended_is_replaced() -> None:
    ends = [True]

    def engine(pod: Manifest) -> Manifest:
        if ends and ends.pop():
            return {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        return ready_status(pod)

    world = await settled(deployment(), engine=engine)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert [pod["status"]["phase"] for pod in world.api.all(PODS)] == ["Running"]
    # It kept its place until it was removed: a pod that ends at once must not make two of it.
    assert [name[-1] for name in world.names()] == ["0"]


# Inspection.


async def test_a_claim_is_read_once_and_planned_by_its_own_config() -> None:
    big = {
        **REPORT,
        "layers": 80,
        "hidden": 8192,
        "heads": 64,
        "kvHeads": 64,
        "headDim": 128,
        "weightBytes": 144_000_000_000,
    }
    world = await settled(deployment(**{**CLAIM, "model": "Qwen/Qwen1.5-0.5B-Chat"}), report=big)
    status = world.qd()["status"]
    assert status["model"]["weightBytes"] == 144_000_000_000
    assert status["plan"]["gpusPerReplica"] > 1
    assert [name for name in world.names() if name.endswith("-inspect")] == []


async def test_cut_weights_are_named_before_an_engine_exists_and_repaired_ones_start_by_themselves() -> None:
    world = await World().start()
    world.kubelet.report = CUT
    world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
    await world.wait(5)
    inspection = world.names()[0]
    assert world.conditions()["Ready"] == ("False", "TruncatedWeights")
    assert world.conditions()["Stalled"] == ("True", "TruncatedWeights")
    assert world.message("Ready") == CUT["error"]["message"]
    assert world.names() == [inspection]
    assert world.events() == {"TruncatedWeights": 1}
    writes = len(world.api.writes)
    await world.wait(300)
    # Again after 30, 60 and 120 s; each time a deletion, a creation and the new count.
    assert len(world.api.writes) - writes == 9
    assert world.events() == {"TruncatedWeights": 1}
    assert world.qd()["status"]["lastFailure"]["count"] == 4
    world.kubelet.report = REPORT
    await world.wait(601)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert "lastFailure" not in world.qd()["status"]


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        (_pending('persistentvolumeclaim "weights" not found'), "ClaimNotFound", '"weights"'),
        (_pending("0/1 nodes are available: 1 node is cordoned."), "Inspecting", "cordoned"),
        (_waiting("ImagePullBackOff", PULL), "ImagePullFailed", "not found"),
        (ended_status("inspection", 137, "", "2026-01-01T00:00:01Z"), "InspectionFailed", "exit code 137"),
        (ended_status("inspection", 0, '{"version": 1}', "2026-01-01T00:00:01Z"), "InvalidConfig", "layers"),
        (
            ended_status("inspection", 1, '{"error": {"reason": "New", "message": "m"}}', "2026-01-01T00:00:01Z"),
            "InspectionFailed",
            "New: m",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "InspectionFailed", "low on memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_inspection_that_cannot_be_done_says_why(status: Manifest, reason: str, says: str) -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
    await world.operator.step()
    world.api.edit(PODS, world.names()[0], lambda pod: pod.update(status=status))
    await world.operator.step()
    world.api.clock.advance(PACE_SECONDS)
    await world.operator.step()
    assert world.conditions()["Ready"] == ("False", reason)
    assert says in world.message("Ready")


async def test_a_new_spec_that_does_not_work_leaves_the_old_pods_serving() -> None:
    world = await settled(deployment(replicas=2))
    before = world.names()
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(CLAIM))
    world.kubelet.report = CUT
    await world.settle()
    assert [name for name in world.names() if not name.endswith("-inspect")] == before
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.conditions()["Planned"] == ("False", "TruncatedWeights")
    assert world.conditions()["Stalled"] == ("True", "TruncatedWeights")
    # They are kept, not only left: a lost one comes back.
    world.api.finish(world.api.one(PODS, before[0]), PODS)
    await world.settle()
    assert before[0] in world.names()


async def test_a_wrong_spec_hides_nothing_of_what_goes_on() -> None:
    world = await settled(deployment())
    before = world.qd()["status"]
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(parallelism={"tensor": 3}))
    await world.settle()
    after = world.qd()["status"]
    assert world.conditions()["Planned"] == ("False", "InvalidOverride")
    assert world.conditions()["ModelLoaded"] == ("True", "Loaded")
    assert (after["plan"], after["summary"]["gpus"]) == (before["plan"], before["summary"]["gpus"])


async def test_a_pod_that_was_told_to_stop_did_not_fail() -> None:
    world = await settled(deployment())
    pod = world.api.one(PODS, world.names()[0])
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pod["status"] = ended_status("engine", 0, "", "2026-01-01T00:00:05Z")
    world.api.put(PODS, pod)
    await world.settle()
    assert "lastFailure" not in world.qd()["status"]


async def test_a_revision_that_cannot_be_read_is_named_and_left_alone() -> None:
    world = await settled(deployment())
    name = world.names(CONTROLLER_REVISIONS)[0]
    world.api.objects[CONTROLLER_REVISIONS, "team", name]["data"] = {"from": "elsewhere"}
    pods = world.names()
    await world.restart()
    await world.settle()
    assert world.names() == pods
    assert world.conditions()["Planned"] == ("False", "Unknown")
    assert name in world.message("Planned")


async def test_status_stays_within_its_size() -> None:
    log = ["x" * 500] * 40
    report = json.dumps({"reason": "Hung", "phase": "Serving", "exitCode": 1, "log": log})
    names = [f"name-{number}-{'y' * 50}" for number in range(4)]
    world = await settled(deployment(servedNames=names), engine=always(_died(report, 5)))
    status = world.qd()["status"]
    assert len(json.dumps(status.pop("names")).encode()) <= 1180
    assert len(json.dumps(status).encode()) <= 4400
