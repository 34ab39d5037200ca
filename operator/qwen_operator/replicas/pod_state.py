"""The state of one pod of a replica, with a message that explains why it does not answer. Pure.

All parts of the operator read engine pods through this module: reconcile, scaling, metrics and the gateway's agent. The
messages use the words of the scheduler, of the kubelet, and of the runtime's JSON report in the termination message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.conditions import MESSAGE_LIMIT, Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAINING_SINCE,
    ANNOTATION_REPLICA_PODS,
    ENGINE_CONTAINER,
    GROUP_GATE,
    LABEL_REVISION,
    LABEL_ROUTABLE,
    MAX_REPLICA_PODS,
    Manifest,
)
from qwen_operator.manifests.names import FETCH_CONTAINER as FETCH
from qwen_operator.replicas.failures import (
    ENDED_WITH_ANOTHER,
    MOST_RESTARTS,
    NO_RESTARTS,
    Restarts,
    evicted,
    exit_code,
    failure_message,
    failure_of,
    never_ran,
    reason_of,
    report_of,
    served,
)

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_REFUSED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
_ON_THE_WAY = frozenset(
    {Reason.STARTING, Reason.DOWNLOADING, Reason.LOADING, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_NODE}
)
_NAME = re.compile(r"(?P<deployment>.+?)-(?P<revision>[0-9a-f]{8})-(?P<index>\d{1,3})(?:-(?P<rank>\d{1,3}))?", re.ASCII)
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
# The kubelet alternates between the error and the same error after a back-off text. This makes one message of both.
_BACK_OFF = re.compile(r"^Back-off pulling image \"[^\"]*\": (?:ErrImagePull: )?")
# The pods of a replica end within seconds of each other.
_SAME_END_SECONDS = 30.0
_DEFAULT_SCHEDULER = "default-scheduler"
_SCHEDULER = 63
_GATE = 100
_GATES = 4
_MOST_BYTES = 1 << 60
_INSTALL_SCHEDULER = (
    "which spec.pod.schedulerName names: if no scheduler of this name runs in the cluster, install it or remove the "
    "field"
)

REST_SECONDS = 30.0
"""How long a pod that its node ended before any container ran stays as it is.

The scheduler may send the next one to the same node at once, for example while its device plugin has no healthy GPU.
Without a rest there would be a pod a second.
"""
ROUTED_SECONDS = 3.0
"""How many seconds after it became Ready a pod counts as answering.

The gateway's router needs this time to register the pod (2.3 s measured, most of it the engine's own health check).
Before that, the router has no engine for a request.
"""


@dataclass(frozen=True, slots=True)
class PodState:
    """One engine pod, read for the QwenDeployment `deployment`.

    `replica`: the name of its replica. `rank`: its place in it. `replica_pods`: how many pods a whole replica has, by
    the annotation; the pinned plan knows better.
    `index`: None if the operator does not give such names to pods. Then the pod counts as a replica by itself.
    `node`, `address`: "" before the pod has them.
    `up`: the pod is Ready and not being deleted. `ended`: its phase is final.
    `routable`: the gateway may send it requests once it is ready.
    `draining_since`, `cordoned_since`: the annotations as they are written; None if they are absent.
    `started`: the engine has come up since its last start, or it served before a single end. If the pod is not ready,
    it has answered before and may answer again.
    `settles_in`: seconds until a pod that is up also answers through the gateway; see `as_of`.
    `rests_in`: seconds until a pod that its node ended before it ran is made again; see `as_of`.
    `restarts` belongs to `failure`.
    """

    manifest: Manifest
    deployment: str
    name: str
    uid: str
    replica: str
    revision: str
    index: int | None
    rank: int
    replica_pods: int
    node: str
    address: str
    up: bool
    deleting: bool
    ended: bool
    routable: bool
    draining_since: str | None
    cordoned_since: str | None
    started: bool
    reason: Reason
    message: str
    failure: Failure | None
    restarts: Restarts = NO_RESTARTS
    settles_in: float = 0.0
    rests_in: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it answers directly and through the gateway."""
        return self.up and not self.settles_in

    @property
    def crash_looping(self) -> bool:
        """Whether it ends soon after every restart, so that only a person can help."""
        return self.restarts.looping and not self.ready and not self.deleting

    @property
    def on_the_way(self) -> bool:
        """Not ready yet, but nothing prevents it from becoming ready."""
        return not self.ready and self.reason in _ON_THE_WAY


def read_pod(pod: Manifest, deployment: str) -> PodState:
    """The state of an engine pod of the named deployment. It depends only on the manifest; `as_of` adds the time."""
    meta = pod["metadata"]
    name, annotations, labels = meta["name"], objects.annotations(pod), objects.labels(pod)
    identity = _identity(name, deployment)
    deleting, ended = objects.is_deleting(pod), objects.has_ended(pod)
    status = objects.mapping(pod, "status")
    failure, restarts = failure_of(pod)
    up = not deleting and objects.holds(pod, "Ready")
    reason, message = (Reason.SERVING, f"{name} answers") if up else _unready_reason(pod, failure, restarts)
    return PodState(
        manifest=pod,
        deployment=deployment,
        name=name,
        uid=str(meta.get("uid") or ""),
        replica=identity.replica,
        revision=identity.revision or str(labels.get(LABEL_REVISION, "")),
        index=identity.index,
        rank=identity.rank,
        replica_pods=replica_pods(pod),
        node=objects.node_of(pod),
        address="" if ended else objects.text(pod, "status", "podIP"),
        up=up,
        deleting=deleting,
        ended=ended,
        routable=labels.get(LABEL_ROUTABLE) == "true",
        draining_since=_written(annotations, ANNOTATION_DRAINING_SINCE),
        cordoned_since=_written(annotations, ANNOTATION_CORDONED_SINCE),
        started=up or (not deleting and not ended and _came_up(status, restarts)),
        reason=reason,
        message=message,
        failure=failure,
        restarts=restarts,
    )


def as_of(state: PodState, now: datetime) -> PodState:
    """The state at a time (timezone-aware). The gateway does not know a pod yet that has just become Ready."""
    if not state.up:
        return _resting(state, now) if state.ended else state
    since = objects.moment(objects.condition(state.manifest, "Ready").get("lastTransitionTime"))
    # A time in the future comes from another clock. Do not wait for it.
    age = (now - since).total_seconds() if since is not None else ROUTED_SECONDS
    if not 0 <= age < ROUTED_SECONDS:
        return state
    message = f"{state.name} has loaded the model; the gateway registers it"
    return replace(state, settles_in=ROUTED_SECONDS - age, reason=Reason.LOADING, message=message)


def _resting(state: PodState, now: datetime) -> PodState:
    """How long the pod stays. A time in the future comes from another clock."""
    status = objects.mapping(state.manifest, "status")
    since = objects.moment(status.get("startTime")) if never_ran(status) else None
    age = (now - since).total_seconds() if since is not None else REST_SECONDS
    return replace(state, rests_in=REST_SECONDS - age) if 0 <= age < REST_SECONDS else state


@dataclass(frozen=True, slots=True)
class _Identity:
    """The parts of a pod's name. Unlike a label, nobody can edit a name."""

    replica: str
    revision: str = ""
    index: int | None = None
    rank: int = 0


def _identity(name: str, deployment: str) -> _Identity:
    parts = _NAME.fullmatch(name)
    if parts is None or parts["deployment"] != deployment:
        return _Identity(name)
    replica = name if parts["rank"] is None else name.rpartition("-")[0]
    return _Identity(replica, parts["revision"], int(parts["index"]), int(parts["rank"] or 0))


def replica_pods(pod: Manifest) -> int:
    """How many pods the pod's whole replica has. Anybody may edit the annotation, so 1 if it is not a small number."""
    written = objects.annotations(pod).get(ANNOTATION_REPLICA_PODS)
    return min(max(untrusted.digits(written, 999, 1), 1), MAX_REPLICA_PODS)


def _written(annotations: Mapping[str, Any], name: str) -> str | None:
    return str(annotations[name]) if name in annotations else None


def unready_reason(pod: Manifest) -> tuple[Reason, str]:
    """Why an engine or inspection pod does not do its work: a reason and a message."""
    return _unready_reason(pod, *failure_of(pod))


def _unready_reason(pod: Manifest, failure: Failure | None, restarts: Restarts) -> tuple[Reason, str]:
    name, status = pod["metadata"]["name"], objects.mapping(pod, "status")
    if objects.is_deleting(pod):
        return Reason.DRAINING, f"{name} is being stopped"
    if before := _before_the_engine(pod, name, status):
        return before
    if failure is not None:
        return failure.reason, failure_message(failure, restarts)
    return _progress(pod, name, status)


def _before_the_engine(pod: Manifest, name: str, status: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """Why no container of the engine runs yet; None if one does, or may."""
    if gated := _gated(pod, name):
        return gated
    scheduled = objects.condition(pod, "PodScheduled")
    # Once its gates are gone, a pod keeps this condition until the scheduler has looked at it.
    if scheduled.get("status") == "False" and scheduled.get("reason") != "SchedulingGated":
        return _unscheduled(pod, name, untrusted.clean(scheduled.get("message"), MESSAGE_LIMIT))
    if stuck := _stuck(pod, name, status):
        return stuck
    return (Reason.DOWNLOADING, f"{name} downloads the model into the cache") if fetch_of(pod).running else None


@dataclass(frozen=True, slots=True)
class FetchState:
    """The container that fetches the model.

    `finished`: when it succeeded, None if it has not. `spent`: seconds that its last run took, if that failed.
    `silent`: the hub gave that run no answer. `present`: so many bytes were there then.
    """

    running: bool = False
    finished: datetime | None = None
    spent: float = 0.0
    silent: bool = False
    present: int = 0


def fetch_of(pod: Manifest) -> FetchState:
    """How far the container is that fetches the model. A pod without one has neither."""
    container = objects.named(objects.members(pod, "status", "initContainerStatuses"), FETCH)
    state = objects.mapping(container, "state")
    if "running" in state:
        return FetchState(running=True)
    ended = objects.mapping(state, "terminated") or objects.mapping(container, "lastState", "terminated")
    begun, finished = (objects.moment(objects.text(ended, part)) for part in ("startedAt", "finishedAt"))
    if "terminated" in state and exit_code(ended) == 0:
        return FetchState(finished=finished)
    report = report_of(ended)
    return FetchState(
        spent=max(0.0, (finished - begun).total_seconds()) if begun and finished else 0.0,
        # A container of an earlier version says neither.
        silent=report.get("silent") is True or "presentBytes" not in report,
        present=untrusted.whole(report.get("presentBytes"), 0, _MOST_BYTES, _MOST_BYTES),
    )


def awaited_scheduler(pod: Manifest) -> str:
    """The scheduler of spec.pod.schedulerName that has not looked at the pod yet; "" if there is none."""
    name = untrusted.clean(objects.text(pod, "spec", "schedulerName"), _SCHEDULER)
    looked_at = objects.node_of(pod) or objects.condition(pod, "PodScheduled")
    return "" if looked_at or name in ("", _DEFAULT_SCHEDULER) else name


def _progress(pod: Manifest, name: str, status: Mapping[str, Any]) -> tuple[Reason, str]:
    """How far a pod is if none of its containers has a problem."""
    if status.get("phase") in ("Failed", "Succeeded"):
        reason = Reason.EVICTED if evicted(status) else Reason.UNKNOWN
        text = status.get("message") or status.get("reason") or status["phase"]
        return reason, f"{name} ended: {untrusted.clean(text, MESSAGE_LIMIT)}"
    if scheduler := awaited_scheduler(pod):
        return Reason.STARTING, f"{name} waits for the scheduler {scheduler!r}, {_INSTALL_SCHEDULER}"
    containers = objects.members(status, "containerStatuses")
    if any("running" in objects.mapping(container, "state") for container in containers):
        return Reason.LOADING, f"{name} is loading the model"
    return Reason.STARTING, f"{name} is being started"


def _stuck(pod: Manifest, name: str, status: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """The problem that keeps a container from starting; None if there is none."""
    for container in (
        *objects.members(status, "initContainerStatuses"),
        *objects.members(status, "containerStatuses"),
    ):
        waiting = objects.mapping(container, "state", "waiting")
        text = untrusted.clean(waiting.get("message") or waiting.get("reason"), MESSAGE_LIMIT)
        if waiting.get("reason") in _PULL:
            cause = _BACK_OFF.sub("", text)
            image = _mounted_image(pod, text) or container.get("image")
            return Reason.IMAGE_PULL_FAILED, f"{name}: the node cannot pull the image {image}: {cause}"
        if waiting.get("reason") in _REFUSED:
            return Reason.POD_REFUSED, f"{name}: the node cannot start container {container.get('name')}: {text}"
    return None


def _mounted_image(pod: Manifest, text: str) -> str:
    """The image of a volume that the kubelet's text is about; "" if it is about none."""
    volumes = objects.members(pod, "spec", "volumes")
    images = (objects.text(volume, "image", "reference") for volume in volumes)
    return next((untrusted.clean(image, MESSAGE_LIMIT) for image in images if image and image in text), "")


def is_gated(pod: Manifest) -> bool:
    """Whether the operator's own gate keeps the scheduler from placing the pod."""
    return any(gate.get("name") == GROUP_GATE for gate in objects.members(pod, "spec", "schedulingGates"))


def _gated(pod: Manifest, name: str) -> tuple[Reason, str] | None:
    """Which scheduling gates keep the pod from being placed; None if there are none. Others, as Kueue, have theirs."""
    if is_gated(pod):
        return Reason.STARTING, f"{name} waits until all pods of its replica can be placed"
    gates = objects.members(pod, "spec", "schedulingGates")
    if not gates:
        return None
    shown = ", ".join(untrusted.clean(gate.get("name"), _GATE) for gate in gates[:_GATES])
    return Reason.WAITING_FOR_GPUS, f"{name} waits until somebody removes its scheduling gates: {shown}"


def _claims(pod: Manifest) -> list[str]:
    volumes = objects.members(pod, "spec", "volumes")
    names = (objects.text(volume, "persistentVolumeClaim", "claimName") for volume in volumes)
    return [untrusted.clean(name, 63) for name in names if name][:4]


def _unscheduled(pod: Manifest, name: str, message: str) -> tuple[Reason, str]:
    if claim := _MISSING_CLAIM.search(message):
        return Reason.CLAIM_NOT_FOUND, (
            f'the claim "{claim[1]}" does not exist in this namespace: create the PersistentVolumeClaim; '
            f"{name} then starts by itself"
        )
    if "unbound" in message and "PersistentVolumeClaim" in message:
        claims = ", ".join(f'"{claim}"' for claim in _claims(pod)) or "of the pod"
        return Reason.CLAIM_NOT_BOUND, (
            f"{name} waits until the claim {claims} is bound: kubectl describe pvc shows its StorageClass and what is "
            "missing"
        )
    # Cut the scheduler's notes on preemption, which do not help the reader.
    cause = message.split(" preemption:", maxsplit=1)[0].removesuffix(" no new claims to deallocate,").rstrip(". ")
    outlook = "it starts by itself when there is room"
    if cause and "Insufficient" not in cause:
        outlook = (
            "it starts by itself when a node fits spec.pod.nodeSelector, spec.pod.affinity and spec.pod.tolerations"
        )
    return Reason.WAITING_FOR_GPUS, f"no node has room for {name}: {cause or 'not scheduled yet'}; {outlook}"


def _came_up(status: Mapping[str, Any], restarts: Restarts) -> bool:
    """Whether the start-up probe has succeeded in the present container, or the engine served before its last end."""
    engine = objects.named(objects.members(status, "containerStatuses"), ENGINE_CONTAINER)
    return engine.get("started") is True or (served(status) and not restarts.looping)


def last_failure(record: Mapping[str, Any], states: Iterable[PodState]) -> Failure | None:
    """The failure to report: the newest of the pods. Its count continues that of the reported one.

    `record` is the present `status.lastFailure`; {} if there is none. If the engine had served for long before its end,
    the count starts again: three crashes in three weeks are not a crash loop.
    """
    before = stored_failure(record)
    ends = [(state.failure, state.restarts.soon) for state in states if state.failure]
    # If the pods of a replica end together, the one that ended first has the cause.
    causes = [end for end in ends if end[0].reason not in ENDED_WITH_ANOTHER] or ends
    newest, soon = max(causes, key=lambda end: end[0].time, default=(None, False))
    if newest is None or (before is not None and before.time >= newest.time and not _is_cause(newest, before)):
        return before
    if not soon:
        return replace(newest, count=1)
    if before is None:
        return newest
    return replace(newest, count=before.count + 1 if before.reason == newest.reason else 1)


def _is_cause(failure: Failure, reported: Failure) -> bool:
    """Whether a failure is the cause of the reported one, although its pod ended later or the kubelet told it later."""
    if reported.reason not in ENDED_WITH_ANOTHER or failure.reason in ENDED_WITH_ANOTHER:
        return False
    then, now = objects.moment(reported.time), objects.moment(failure.time)
    if then is None or now is None or failure.pod.rpartition("-")[0] != reported.pod.rpartition("-")[0]:
        return False
    return abs((now - then).total_seconds()) <= _SAME_END_SECONDS


def stored_failure(record: Mapping[str, Any]) -> Failure | None:
    """`status.lastFailure` as a value; None if it is absent or has a reason that this version does not know."""
    reason = reason_of(record.get("reason"))
    if reason is None:
        return None
    log = record.get("log")
    return Failure(
        reason=reason,
        phase=str(record.get("phase", "")),
        pod=str(record.get("pod", "")),
        exit_code=exit_code(record),
        time=str(record.get("time", "")),
        count=untrusted.whole(record.get("count"), 1, MOST_RESTARTS, 1),
        log=tuple(str(line) for line in log) if isinstance(log, list) else (),
    )
