"""One pod of a replica, read once: where it is in its life, and in words why it does not answer. Pure.

Every part of the operator that asks what an engine pod is doing reads it here: reconcile, scaling, metrics and the
gateway's agent. The words come from the scheduler, the kubelet, and from the JSON that the operator's own runtime
leaves as termination message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAINING_SINCE,
    ANNOTATION_REPLICA_PODS,
    ENGINE_CONTAINER,
    LABEL_REVISION,
    LABEL_ROUTABLE,
    MAX_REPLICA_PODS,
    Manifest,
)
from qwen_operator.replicas.failures import (
    NO_RESTARTS,
    Restarts,
    death,
    evicted,
    failure_message,
    reason_of,
    served,
)

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_REFUSED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
_ON_THE_WAY = frozenset({Reason.STARTING, Reason.LOADING, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_NODE})
_NAME = re.compile(r"(?P<deployment>.+?)-(?P<revision>[0-9a-f]{8})-(?P<index>\d{1,3})(?:-(?P<rank>\d{1,3}))?", re.ASCII)
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
# The kubelet alternates between the error and the error behind a back-off text: one message for both.
_BACK_OFF = re.compile(r"^Back-off pulling image \"[^\"]*\": (?:ErrImagePull: )?")

ROUTED_SECONDS = 3.0
"""How long after it is Ready a pod counts as answering: the gateway's router registers it meanwhile (2.3 s measured,
most of it the engine's own health check), and before that a request through the gateway finds nobody."""


@dataclass(frozen=True, slots=True)
class PodState:
    """One engine pod, read for the QwenDeployment `deployment`.

    `replica` is the name of the replica that it belongs to, `rank` its place there, `replica_pods` how many pods make
    that replica whole. `index` is None for a pod that has no name of ours; it is then a replica of its own.
    `node` and `address` are "" before the pod has them.
    `up`: Kubernetes says Ready, and nobody deleted it. `ended`: its phase is final. `routable`: the gateway may
    send it requests once it is ready.
    `draining_since` and `cordoned_since` are the annotations as written, None where they are absent.
    `started`: its engine has come up since its last start, or had before a single end, so that a pod that is not
    ready has answered before and may again.
    `settles_in`: seconds until a pod that is up also answers through the gateway; see `as_of`.
    `restarts` belong to `failure`.
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

    @property
    def ready(self) -> bool:
        """Whether it answers, also through the gateway."""
        return self.up and not self.settles_in

    @property
    def crash_looping(self) -> bool:
        """Whether the kubelet starts it again and again and it dies soon each time: only a person can help."""
        return self.restarts.looping and not self.ready and not self.deleting

    @property
    def on_the_way(self) -> bool:
        """Not ready, but nothing says that it will not be."""
        return not self.ready and self.reason in _ON_THE_WAY


def read(pod: Manifest, deployment: str) -> PodState:
    """The state of an engine pod of the named deployment. It depends on the manifest alone; `as_of` adds the time."""
    meta = pod["metadata"]
    name, annotations, labels = meta["name"], objects.annotations(pod), objects.labels(pod)
    identity = _identity(name, deployment)
    deleting, ended = objects.is_deleting(pod), objects.has_ended(pod)
    status = objects.mapping(pod, "status")
    failure, restarts = death(pod)
    up = not deleting and objects.holds(pod, "Ready")
    reason, message = (Reason.SERVING, f"{name} answers") if up else _trouble(pod, failure, restarts)
    return PodState(
        manifest=pod,
        deployment=deployment,
        name=name,
        uid=str(meta.get("uid") or ""),
        replica=identity.replica,
        revision=identity.revision or str(labels.get(LABEL_REVISION, "")),
        index=identity.index,
        rank=identity.rank,
        replica_pods=_replica_pods(annotations.get(ANNOTATION_REPLICA_PODS)),
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
    """The same at a time (timezone-aware): a pod that became Ready a moment ago is not yet known to the gateway."""
    if not state.up:
        return state
    since = objects.moment(objects.condition(state.manifest, "Ready").get("lastTransitionTime"))
    # A time in the future is another clock's, and nothing to wait for.
    age = (now - since).total_seconds() if since is not None else ROUTED_SECONDS
    if not 0 <= age < ROUTED_SECONDS:
        return state
    message = f"{state.name} has loaded the model; the gateway registers it"
    return replace(state, settles_in=ROUTED_SECONDS - age, reason=Reason.LOADING, message=message)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What the name of a pod says, which nobody can edit."""

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


def _replica_pods(written: object) -> int:
    """How many pods make the replica whole; 1 for anything but a small number, as anybody may edit an annotation."""
    number = str(written)
    small = len(number) <= 3 and number.isascii() and number.isdigit()
    return min(max(int(number), 1), MAX_REPLICA_PODS) if small else 1


def _written(annotations: Mapping[str, Any], name: str) -> str | None:
    return str(annotations[name]) if name in annotations else None


def trouble(pod: Manifest) -> tuple[Reason, str]:
    """Why a pod does not do its work, whether it is an engine or an inspection."""
    return _trouble(pod, *death(pod))


def _trouble(pod: Manifest, failure: Failure | None, restarts: Restarts) -> tuple[Reason, str]:
    name, status = pod["metadata"]["name"], objects.mapping(pod, "status")
    if objects.is_deleting(pod):
        return Reason.DRAINING, f"{name} is being stopped"
    scheduled = objects.condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(name, str(scheduled.get("message", "")))
    if stuck := _stuck(name, status):
        return stuck
    if failure is not None:
        return failure.reason, failure_message(failure, restarts)
    return _progress(name, status)


def _progress(name: str, status: Mapping[str, Any]) -> tuple[Reason, str]:
    """How far a pod is whose containers have nothing to report."""
    if status.get("phase") in ("Failed", "Succeeded"):
        reason = Reason.EVICTED if evicted(status) else Reason.UNKNOWN
        return reason, f"{name} ended: {status.get('message') or status.get('reason') or status['phase']}"
    if any("running" in objects.mapping(one, "state") for one in objects.members(status, "containerStatuses")):
        return Reason.LOADING, f"{name} is loading the model"
    return Reason.STARTING, f"{name} is being started"


def _stuck(name: str, status: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """What the kubelet waits for before a container can start, None if nothing."""
    for container in (
        *objects.members(status, "initContainerStatuses"),
        *objects.members(status, "containerStatuses"),
    ):
        waiting = objects.mapping(container, "state", "waiting")
        text = str(waiting.get("message") or waiting.get("reason") or "")
        if waiting.get("reason") in _PULL:
            cause = _BACK_OFF.sub("", text)
            return Reason.IMAGE_PULL_FAILED, f"{name} cannot pull the image {container.get('image')}: {cause}"
        if waiting.get("reason") in _REFUSED:
            return Reason.POD_REFUSED, f"{name}: the node cannot start container {container.get('name')}: {text}"
    return None


def _unscheduled(name: str, message: str) -> tuple[Reason, str]:
    if claim := _MISSING_CLAIM.search(message):
        return Reason.CLAIM_NOT_FOUND, (
            f'the claim "{claim[1]}" does not exist in this namespace: create the PersistentVolumeClaim, '
            f"{name} then starts by itself"
        )
    # What the scheduler tried besides is of no use to the reader.
    cause = message.split(" preemption:", maxsplit=1)[0].removesuffix(" no new claims to deallocate,").rstrip(". ")
    hope = "starts by itself"
    if cause and "Insufficient" not in cause:
        hope = "starts by itself when a node fits spec.pod.nodeSelector, spec.pod.affinity and spec.pod.tolerations"
    return Reason.WAITING_FOR_GPUS, f"no node has room for {name}: {cause or 'not scheduled yet'}; {hope}"


def _came_up(status: Mapping[str, Any], restarts: Restarts) -> bool:
    """Whether the engine's start-up probe has succeeded in the present container, or it served before its last end."""
    engine = objects.named(objects.members(status, "containerStatuses"), ENGINE_CONTAINER)
    return engine.get("started") is True or (served(status) and not restarts.looping)


def last_failure(record: Mapping[str, Any], states: Iterable[PodState]) -> Failure | None:
    """The failure to report: the newest of the pods', counted on from the one reported before.

    `record` is `status.lastFailure` as it stands, {} if there is none. An engine that had served for long before its
    end begins the count anew: one crash a week is not the same trouble three times.
    """
    before = stored_failure(record)
    ends = [(state.failure, state.restarts.soon) for state in states if state.failure]
    newest, soon = max(ends, key=lambda end: end[0].time, default=(None, False))
    if newest is None or (before is not None and before.time >= newest.time):
        return before
    if not soon:
        return replace(newest, count=1)
    if before is None:
        return newest
    return replace(newest, count=before.count + 1 if before.reason == newest.reason else 1)


def stored_failure(record: Mapping[str, Any]) -> Failure | None:
    """`status.lastFailure` as a value; None if it is not there or from another version of this program."""
    reason = reason_of(record.get("reason"))
    if reason is None:
        return None
    return Failure(
        reason=reason,
        phase=str(record.get("phase", "")),
        pod=str(record.get("pod", "")),
        exit_code=int(record.get("exitCode", -1)),
        time=str(record.get("time", "")),
        count=int(record.get("count", 1)),
        log=tuple(str(line) for line in record.get("log") or ()),
    )
