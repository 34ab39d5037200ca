"""From the claim of a spec to the facts of its checkpoint, by an inspection pod that is read like any observation.

Pure. A failed inspection is repeated by itself, less and less often, so that a repaired claim starts without anyone
touching the object; between two tries the failed pod stays as evidence.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from qwen_operator.actions.types import (
    Action,
    Blocked,
    Create,
    Delete,
    Kind,
    Observed,
    Patch,
    Standing,
    Why,
    deleting,
    standing,
)
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError
from qwen_operator.hardware.inventory import GpuProduct, Inventory
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.names import Manifest, Owner, inspection_pod_name
from qwen_operator.manifests.pods import SOURCE_MOUNT, SOURCE_VOLUME, RuntimeImage, inspection_pod
from qwen_operator.replicas.failures import report_of
from qwen_operator.replicas.pod_state import stored_failure, trouble

FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 600
PHASE = "Inspect"
"""`status.lastFailure.phase` of a failed inspection."""


def resolve(
    spec: Spec, revision: str, observed: Observed, runtime: RuntimeImage, now: datetime
) -> Checkpoint | Blocked:
    """The facts of a `pvc://` source, or what they wait for."""
    meta = observed.deployment["metadata"]
    owner = Owner(meta["name"], meta["namespace"], meta["uid"])
    desired = inspection_pod(owner, revision, spec, runtime, products(spec, observed.inventory))
    pod = next((pod for pod in observed.pods if pod["metadata"]["name"] == desired["metadata"]["name"]), None)
    before = _failure_before(observed, desired["metadata"]["name"])
    if pod is None:
        why = Why.INSPECT_AGAIN if before else Why.INSPECT
        return _waiting(spec, before, (Create(Kind.POD, desired, why),))
    if standing(pod, observed.deployment) is Standing.FOREIGN:
        return foreign(Kind.POD, desired["metadata"]["name"])
    if deleting(pod) or standing(pod, observed.deployment) is Standing.LEFTOVER:
        return _waiting(spec, before, ())
    ended = _ended(pod)
    if ended is not None:
        return _result(pod, ended, before, now)
    return _unfinished(spec, pod, before, desired)


def products(spec: Spec, inventory: Inventory) -> tuple[GpuProduct, ...]:
    """The products that the plan may choose from, as far as they are known before there is one."""
    usable = inventory.usable(spec.pod.tolerations).products
    names = spec.hardware.products
    return tuple(item for item in usable if not names or any(item.called(name) for name in names))


def foreign(kind: Kind, name: str) -> Blocked:
    """One of our names is taken by someone else's object."""
    return Blocked(Reason.FOREIGN_OBJECT, foreign_message(kind, name), waiting=False)


def foreign_message(kind: Kind, name: str) -> str:
    return (
        f"the {kind} {name} exists and does not belong to this QwenDeployment: it is left alone; "
        "delete it, or give this object another name"
    )


def _failure_before(observed: Observed, pod: str) -> Failure | None:
    failure = stored_failure((observed.deployment.get("status") or {}).get("lastFailure") or {})
    return failure if failure is not None and failure.pod == pod and failure.phase == PHASE else None


def _waiting(spec: Spec, before: Failure | None, actions: tuple[Action, ...]) -> Blocked:
    """Inspecting; but while a failed one is repeated, the known failure stays the answer."""
    if before is not None:
        message = before.log[-1] if before.log else "the inspection failed"
        return Blocked(before.reason, message, waiting=False, failure=before, actions=actions)
    uri = spec.source.uri if spec.source else ""
    return Blocked(Reason.INSPECTING, f"reading the files of {uri}", waiting=True, actions=actions)


def _unfinished(spec: Spec, pod: Manifest, before: Failure | None, desired: Manifest) -> Blocked:
    name = pod["metadata"]["name"]
    repair = pod_repair(desired, pod)
    actions = (Patch(Kind.POD, name, repair, Why.DRIFTED),) if repair else ()
    reason, message = trouble(pod)
    if reason in (Reason.CLAIM_NOT_FOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED):
        return Blocked(reason, message, waiting=True, failure=before, actions=actions)
    blocked = _waiting(spec, before, actions)
    if reason is Reason.WAITING_FOR_GPUS and before is None:
        return Blocked(Reason.INSPECTING, message, waiting=True, actions=actions)
    return blocked


def _ended(pod: Manifest) -> Mapping[str, Any] | None:
    """The terminated state of the pod's container once the pod has ended; {} if the kubelet left none."""
    status = pod.get("status") or {}
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    for container in status.get("containerStatuses") or ():
        if ended := (container.get("state") or {}).get("terminated"):
            found: Mapping[str, Any] = ended
            return found
    return {}


def _result(pod: Manifest, ended: Mapping[str, Any], before: Failure | None, now: datetime) -> Checkpoint | Blocked:
    report = report_of(ended)
    if "error" not in report and report and ended.get("exitCode") == 0:
        try:
            return Checkpoint.from_inspection(report)
        except InvalidFactsError as error:
            reason, message = Reason.INVALID_CONFIG, str(error)
    else:
        reason, message = _error(pod, ended, report)
    finished = str(ended.get("finishedAt") or pod["metadata"].get("creationTimestamp") or "")
    failure = _failure(pod, reason, message, finished, before)
    due = _due(failure, now)
    again = Delete(Kind.POD, failure.pod, pod["metadata"]["uid"], Why.INSPECT_AGAIN)
    return Blocked(
        reason,
        message,
        waiting=False,
        failure=failure,
        actions=(again,) if due <= 0 else (),
        requeue_after=max(due, 0.0) or None,
    )


def _error(pod: Manifest, ended: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[Reason, str]:
    error = report.get("error")
    if isinstance(error, dict):
        try:
            return Reason(str(error.get("reason"))), _as_written(pod, str(error.get("message") or "no message"))
        except ValueError:
            return Reason.INSPECTION_FAILED, f"{error.get('reason')}: {error.get('message')}"
    status = pod.get("status") or {}
    said = ended.get("message") or status.get("message") or ended.get("reason") or status.get("reason")
    name, code = pod["metadata"]["name"], ended.get("exitCode", "none")
    return Reason.INSPECTION_FAILED, f"{name} ended without a report, exit code {code}: {str(said)[:300]}"


def _as_written(pod: Manifest, message: str) -> str:
    """The message with paths as the user wrote them: pvc://claim/path, not the place of the mount."""
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in (pod.get("spec") or {}).get("volumes") or ()
        if "persistentVolumeClaim" in volume and volume.get("name") == SOURCE_VOLUME
    ]
    return message.replace(SOURCE_MOUNT, f"pvc://{claims[0]}") if claims else message


def _failure(pod: Manifest, reason: Reason, message: str, finished: str, before: Failure | None) -> Failure:
    ended = _ended(pod) or {}
    if before is not None and before.time == finished:
        count = before.count
    else:
        count = before.count + 1 if before is not None else 1
    code = ended.get("exitCode")
    return Failure(
        reason=reason,
        phase=PHASE,
        pod=pod["metadata"]["name"],
        exit_code=code if isinstance(code, int) else -1,
        time=finished,
        count=count,
        log=(message,),
    )


def _due(failure: Failure, now: datetime) -> float:
    """Seconds until the next try: 30 after the first failure, doubling to 600."""
    delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failure.count - 1, 10))
    try:
        finished = datetime.fromisoformat(failure.time)
    except ValueError:
        return 0.0
    return (finished + timedelta(seconds=delay) - now).total_seconds()


def leftovers(observed: Observed, deployment: str, revision: str, pinned: bool) -> tuple[Action, ...]:
    """Deletions of inspection pods that nobody waits for: of other revisions, and of one that is pinned."""
    keep = "" if pinned else inspection_pod_name(deployment, revision)
    actions: list[Action] = []
    for pod in observed.pods:
        meta = pod["metadata"]
        done = meta["name"].startswith(f"{deployment}-") and meta["name"].endswith("-inspect") and meta["name"] != keep
        if done and not deleting(pod) and standing(pod, observed.deployment) is Standing.OURS:
            actions.append(Delete(Kind.POD, meta["name"], meta["uid"], Why.INSPECTION_DONE))
    return tuple(actions)
