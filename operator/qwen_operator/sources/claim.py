"""From the claim of a spec to the facts of its checkpoint, by an inspection pod that is read like any observation.

Pure. A failed inspection is repeated by itself, less and less often, so that a repaired claim starts without anyone
touching the object; between two tries the failed pod stays as evidence.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked, by_foreign_object
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError
from qwen_operator.hardware.inventory import GpuProduct, Inventory
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.names import Manifest, Owner, inspection_pod_name
from qwen_operator.manifests.ownership import Children
from qwen_operator.manifests.pods import SOURCE_MOUNT, SOURCE_VOLUME, inspection_pod
from qwen_operator.replicas.failures import report_of
from qwen_operator.replicas.pod_state import stored_failure, trouble
from qwen_operator.sources.types import Facts, SourceContext

FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 600
PHASE = "Inspect"
"""`status.lastFailure.phase` of a failed inspection."""


def resolve(context: SourceContext) -> Facts | Blocked:
    """The facts of a `pvc://` source, or what they wait for."""
    meta = context.deployment["metadata"]
    owner = Owner(meta["name"], meta["namespace"], meta["uid"])
    near = products(context.spec, context.inventory)
    desired = inspection_pod(owner, context.revision, context.spec, context.runtime, near)
    name = desired["metadata"]["name"]
    before = _failure_before(context.deployment, name)
    if name in context.pods.foreign:
        return by_foreign_object(Kind.POD, name)
    if name not in context.pods:
        reason = ActionReason.INSPECT_AGAIN if before else ActionReason.INSPECT
        return _waiting(context.spec, before, (Create(Kind.POD, desired, reason),))
    pod = context.pods.owned.get(name)
    if pod is None or objects.is_deleting(pod):
        return _waiting(context.spec, before, ())
    ended = _ended(pod)
    if ended is not None:
        return _result(pod, ended, before, context.now)
    return _unfinished(context.spec, pod, before, desired)


def products(spec: Spec, inventory: Inventory) -> tuple[GpuProduct, ...]:
    """The products that the plan may choose from, as far as they are known before there is one."""
    usable = inventory.usable(spec.pod.tolerations).products
    names = spec.hardware.products
    return tuple(item for item in usable if not names or any(item.called(name) for name in names))


def _failure_before(deployment: Manifest, pod: str) -> Failure | None:
    failure = stored_failure(objects.mapping(deployment, "status", "lastFailure"))
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
    actions = (Patch(Kind.POD, name, repair, ActionReason.DRIFTED),) if repair else ()
    reason, message = trouble(pod)
    if reason in (Reason.CLAIM_NOT_FOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED):
        return Blocked(reason, message, waiting=True, failure=before, actions=actions)
    blocked = _waiting(spec, before, actions)
    if reason is Reason.WAITING_FOR_GPUS and before is None:
        return Blocked(Reason.INSPECTING, message, waiting=True, actions=actions)
    return blocked


def _ended(pod: Manifest) -> Mapping[str, Any] | None:
    """The terminated state of the pod's container once the pod has ended; {} if the kubelet left none."""
    if not objects.has_ended(pod):
        return None
    ends = (objects.mapping(one, "state", "terminated") for one in objects.members(pod, "status", "containerStatuses"))
    return next((ended for ended in ends if ended), {})


def _result(pod: Manifest, ended: Mapping[str, Any], before: Failure | None, now: datetime) -> Facts | Blocked:
    report = report_of(ended)
    if "error" not in report and report and ended.get("exitCode") == 0:
        try:
            return Facts(Checkpoint.from_inspection(report))
        except InvalidFactsError as error:
            reason, message = Reason.INVALID_CONFIG, str(error)
    else:
        reason, message = _error(pod, ended, report)
    finished = str(ended.get("finishedAt") or pod["metadata"].get("creationTimestamp") or "")
    failure = _failure(pod, reason, message, finished, before)
    due = _due(failure, now)
    again = Delete(Kind.POD, failure.pod, pod["metadata"]["uid"], ActionReason.INSPECT_AGAIN)
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


def leftovers(pods: Children, deployment: str, revision: str) -> tuple[Delete, ...]:
    """Deletions of inspection pods that nobody waits for: all but that of `revision`, "" for none."""
    keep = inspection_pod_name(deployment, revision) if revision else ""
    return tuple(
        Delete(Kind.POD, name, pod["metadata"]["uid"], ActionReason.INSPECTION_DONE)
        for name, pod in pods.owned.items()
        if name.startswith(f"{deployment}-") and name.endswith("-inspect") and name != keep
        if not objects.is_deleting(pod)
    )
