"""What a pod's status means: one reason, one sentence, and the failure that it reports, if any.

Pure. The words come from the scheduler, the kubelet, and from the JSON that the operator's own runtime leaves as
termination message.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qwen_operator.actions.types import deleting
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import ENGINE_CONTAINER, LABEL_REVISION, Manifest
from qwen_operator.replicas.failures import NO_RESTARTS, Restarts, death, evicted, failure_message, reason_of, served

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_REFUSED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
_ON_THE_WAY = frozenset({Reason.STARTING, Reason.LOADING, Reason.WAITING_FOR_GPUS})
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
# The kubelet alternates between the error and the error behind a back-off text: one message for both.
_BACK_OFF = re.compile(r"^Back-off pulling image \"[^\"]*\": (?:ErrImagePull: )?")

ROUTED_SECONDS = 3.0
"""How long after it is Ready a pod counts as answering: the gateway's router registers it meanwhile (2.3 s measured,
most of it the engine's own health check), and before that a request through the gateway finds nobody."""


@dataclass(frozen=True, slots=True)
class PodState:
    """`index` is None for a pod that is ours by mark but has no name of ours. `ended`: its phase is final.

    `ready`: it answers, also through the gateway. `settles_in`: seconds until a Ready pod does, else 0. `started`: its
    engine has come up since its last start, or had before a single end, so that a pod that is not ready has answered
    before and may again.
    `restarts` belong to `failure`.
    """

    pod: Manifest
    name: str
    revision: str
    index: int | None
    ready: bool
    deleting: bool
    ended: bool
    reason: Reason
    message: str
    failure: Failure | None
    settles_in: float = 0.0
    started: bool = False
    restarts: Restarts = NO_RESTARTS

    @property
    def crash_looping(self) -> bool:
        """Whether the kubelet starts it again and again and it dies soon each time: only a person can help."""
        return self.restarts.looping and not self.ready and not self.deleting

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def on_the_way(self) -> bool:
        """Not ready, but nothing says that it will not be."""
        return not self.ready and self.reason in _ON_THE_WAY


def read(pod: Manifest, deployment: str, now: datetime) -> PodState:
    """The state of an engine pod of the named deployment; `now` is timezone-aware."""
    name = pod["metadata"]["name"]
    match = re.fullmatch(rf"{re.escape(deployment)}-([0-9a-f]{{8}})-(\d{{1,3}})", name)
    gone = deleting(pod)
    status = pod.get("status") or {}
    failure, restarts = death(pod)
    condition = _condition(status, "Ready")
    up = not gone and condition.get("status") == "True"
    settles_in = _settles_in(condition, now) if up else 0.0
    ready = up and not settles_in
    ended = status.get("phase") in ("Failed", "Succeeded")
    reason, message = _trouble(pod, failure, restarts)
    if up:
        reason, message = Reason.SERVING, f"{name} answers"
    if settles_in:
        reason, message = Reason.LOADING, f"{name} has loaded the model, the gateway takes it up"
    return PodState(
        pod=pod,
        name=name,
        revision=match[1] if match else str((pod["metadata"].get("labels") or {}).get(LABEL_REVISION, "")),
        index=int(match[2]) if match else None,
        ready=ready,
        deleting=gone,
        ended=ended,
        reason=reason,
        message=message,
        failure=failure,
        settles_in=settles_in,
        started=up or (not gone and not ended and (_started(status) or (served(status) and not restarts.looping))),
        restarts=restarts,
    )


def _settles_in(condition: Mapping[str, Any], now: datetime) -> float:
    """Seconds that are left of ROUTED_SECONDS. A time in the future is another clock's, and nothing to wait for."""
    try:
        age = (now - datetime.fromisoformat(str(condition.get("lastTransitionTime")))).total_seconds()
    except (TypeError, ValueError):
        return 0.0
    return ROUTED_SECONDS - age if 0 <= age < ROUTED_SECONDS else 0.0


def trouble(pod: Manifest) -> tuple[Reason, str]:
    """Why a pod does not do its work, whether it is an engine or an inspection."""
    return _trouble(pod, *death(pod))


def _trouble(pod: Manifest, failure: Failure | None, restarts: Restarts) -> tuple[Reason, str]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if deleting(pod):
        return Reason.DRAINING, f"{name} is being stopped"
    scheduled = _condition(status, "PodScheduled")
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
    if _running(status):
        return Reason.LOADING, f"{name} is loading the model"
    return Reason.STARTING, f"{name} is being started"


def _stuck(name: str, status: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """What the kubelet waits for before a container can start, None if nothing."""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
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


def _started(status: Mapping[str, Any]) -> bool:
    """Whether the engine's start-up probe has succeeded in the present container."""
    containers = status.get("containerStatuses") or ()
    return any(item.get("name") == ENGINE_CONTAINER and item.get("started") is True for item in containers)


def _running(status: Mapping[str, Any]) -> bool:
    return any("running" in (item.get("state") or {}) for item in status.get("containerStatuses") or ())


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            found: Mapping[str, Any] = condition
            return found
    return {}


def last_failure(old: Mapping[str, Any], states: Iterable[PodState]) -> Failure | None:
    """The failure to report: the newest of the pods', counted on from the one reported before.

    `old` is `status.lastFailure` as it stands, {} if there is none. An engine that had served for long before its end
    begins the count anew: one crash a week is not the same trouble three times.
    """
    before = stored_failure(old)
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
