"""Facts from an inspection pod, which mounts a source as the engine will and reads its files. Pure.

The operator repeats a failed inspection, less and less often, so that a model starts once its files are repaired,
without a change of the object. Between two tries the failed pod stays as evidence.
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
from qwen_operator.manifests.names import Manifest, inspection_pod_name
from qwen_operator.manifests.ownership import Children, Ownership, ownership
from qwen_operator.manifests.pods import inspection_pod
from qwen_operator.planning.types import EngineSource
from qwen_operator.replicas.failures import report_of
from qwen_operator.replicas.pod_state import stored_failure, trouble
from qwen_operator.sources.scheme import Facts, SourceContext

FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 600
PHASE = "Inspect"
"""`status.lastFailure.phase` of a failed inspection."""


def resolve(context: SourceContext, source: EngineSource, shown: Mapping[str, str]) -> Facts | Blocked:
    """The facts of a source whose files a pod reads, or what they wait for.

    `source` is what the pod mounts. `shown` maps places in its container to what users wrote for them.
    """
    spec, near = context.spec, products(context.spec, context.inventory)
    desired = inspection_pod(context.identity, spec, source, context.runtime, near)
    name, pod, deployment = desired["metadata"]["name"], context.inspection, context.deployment
    before = _failure_before(deployment, name)
    if pod is None:
        why = ActionReason.INSPECT_AGAIN if before else ActionReason.INSPECT
        return _waiting(spec, before, (Create(Kind.POD, desired, why),))
    if ownership(pod, deployment) is Ownership.FOREIGN:
        return by_foreign_object(Kind.POD, name)
    if objects.is_deleting(pod) or ownership(pod, deployment) is Ownership.LEFTOVER:
        return _waiting(spec, before, ())
    ended = _ended(pod)
    if ended is None:
        return _unfinished(spec, pod, before, desired)
    outcome = _outcome(pod, ended, shown)
    if isinstance(outcome, Checkpoint):
        return Facts(outcome)
    reason, message = outcome
    return _failed(_failure(pod, ended, reason, message, before), pod, context.now)


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


def _outcome(pod: Manifest, ended: Mapping[str, Any], shown: Mapping[str, str]) -> Checkpoint | tuple[Reason, str]:
    """The facts that the pod reported, or reason and message of its failure."""
    report = report_of(ended)
    if not report or "error" in report or ended.get("exitCode") != 0:
        reason, message = _error(pod, ended, report)
        for place, written in shown.items():
            message = message.replace(place, written)
        return reason, message
    try:
        return Checkpoint.from_inspection(report)
    except InvalidFactsError as error:
        return Reason.INVALID_CONFIG, str(error)


def _failed(failure: Failure, pod: Manifest, now: datetime) -> Blocked:
    due = _due(failure, now)
    again = Delete(Kind.POD, failure.pod, pod["metadata"]["uid"], ActionReason.INSPECT_AGAIN)
    return Blocked(
        failure.reason,
        failure.log[-1],
        waiting=False,
        failure=failure,
        actions=(again,) if due <= 0 else (),
        requeue_after=max(due, 0.0) or None,
    )


def _error(pod: Manifest, ended: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[Reason, str]:
    error = report.get("error")
    if isinstance(error, dict):
        try:
            return Reason(str(error.get("reason"))), str(error.get("message") or "no message")
        except ValueError:
            return Reason.INSPECTION_FAILED, f"{error.get('reason')}: {error.get('message')}"
    status = objects.mapping(pod, "status")
    cause = ended.get("message") or status.get("message") or ended.get("reason") or status.get("reason")
    name, code = pod["metadata"]["name"], ended.get("exitCode", "none")
    return Reason.INSPECTION_FAILED, f"{name} ended without a report, exit code {code}: {str(cause)[:300]}"


def _failure(pod: Manifest, ended: Mapping[str, Any], reason: Reason, message: str, before: Failure | None) -> Failure:
    finished = str(ended.get("finishedAt") or pod["metadata"].get("creationTimestamp") or "")
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


def leftovers(pods: Children, deployment: str, awaited: str) -> tuple[Delete, ...]:
    """Deletions of inspection pods that nobody waits for: all but that of the revision `awaited`, "" for none."""
    kept = inspection_pod_name(deployment, awaited) if awaited else ""
    return tuple(
        Delete(Kind.POD, name, pod["metadata"]["uid"], ActionReason.INSPECTION_DONE)
        for name, pod in pods.owned.items()
        if name.startswith(f"{deployment}-") and name.endswith("-inspect") and name != kept
        if not objects.is_deleting(pod)
    )
