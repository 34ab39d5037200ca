"""Gets facts from an inspection pod, which mounts a source like the engine and reads its files. Pure.

The operator retries a failed inspection with growing delays. So a model starts after a person has repaired its files,
without a change of the QwenDeployment. Between two attempts the failed pod stays as evidence.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.api import uris
from qwen_operator.api.conditions import MESSAGE_LIMIT, Reason
from qwen_operator.api.spec import Spec
from qwen_operator.api.status import Failure
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.adapters import of_report
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError
from qwen_operator.hardware.inventory import GpuProduct, Inventory
from qwen_operator.manifests.adapters import mounted
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.inspection_pods import InspectionPlace, inspection_pod
from qwen_operator.manifests.names import INSPECTION_CONTAINER, Manifest, inspection_pod_name
from qwen_operator.manifests.ownership import Children, Ownership, ownership
from qwen_operator.planning.adapters import MOUNT
from qwen_operator.planning.types import EngineSource
from qwen_operator.replicas.failures import exit_code, report_of, reported_reason
from qwen_operator.replicas.pod_state import awaited_scheduler, stored_failure, unready_reason
from qwen_operator.sources import image_volumes
from qwen_operator.sources.adapters import inspecting
from qwen_operator.sources.outbound import reaching
from qwen_operator.sources.scheme import Facts, SourceContext, VolumeClaim

FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 600
_CANNOT_START = (
    Reason.CLAIM_NOT_FOUND,
    Reason.CLAIM_NOT_BOUND,
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_REFUSED,
    *image_volumes.REASONS,
)
PHASE = "Inspect"
"""`status.lastFailure.phase` of a failed inspection."""


def resolve(
    context: SourceContext, source: EngineSource, shown: Mapping[str, str], base: Checkpoint | None = None
) -> Facts | Blocked:
    """The facts of a source whose files a pod reads, or the reason why they are missing.

    `source` is what the pod mounts or runs. `shown` maps paths in its container to the text that users wrote for them.
    `base` are the facts of the model, if the pod reads only adapters.
    """
    spec, claim = context.spec, context.claim
    near = not source.inspection and (claim is None or not claim.bound)
    source = inspecting(mounted(source, spec), spec, context.defaults)
    source = reaching(source, spec, context.defaults.outbound)
    shown = {**shown, f"{MOUNT}/": uris.PVC.prefix}
    place = InspectionPlace(products(spec, context.inventory), near_gpus=near)
    desired = inspection_pod(context.identity, spec, source, context.runtime, place)
    name, pod, deployment = desired["metadata"]["name"], context.inspection, context.deployment
    before = _failure_before(deployment, name)
    if pod is None:
        why = ActionReason.INSPECT_AGAIN if before else ActionReason.INSPECT
        return _waiting(spec, before, (Create(Kind.POD, desired, why),))
    if objects.is_deleting(pod) or ownership(pod, deployment) is Ownership.LEFTOVER:
        return _waiting(spec, before, ())
    ended = _ended(pod)
    if ended is None:
        unready = image_volumes.unready(pod, source) or unready_reason(pod)
        return _unfinished(context, before, desired, unready)
    outcome = image_volumes.judged(pod, source, _outcome(pod, ended, shown, lambda report: _facts(spec, report, base)))
    if isinstance(outcome, Checkpoint):
        return Facts(outcome)
    reason, message = outcome
    return _failed(_failure(pod, ended, reason, message, before), pod, context.now)


def products(spec: Spec, inventory: Inventory) -> tuple[GpuProduct, ...]:
    """The products that a plan may choose, as far as they are known before there is a plan."""
    names = spec.hardware.products
    usable = inventory.usable(spec.pod.tolerations).offering(spec.hardware.resource_name, names)
    return tuple(item for item in usable.products if not names or any(item.called(name) for name in names))


def _failure_before(deployment: Manifest, pod: str) -> Failure | None:
    failure = stored_failure(objects.mapping(deployment, "status", "lastFailure"))
    return failure if failure is not None and failure.pod == pod and failure.phase == PHASE else None


def _waiting(spec: Spec, before: Failure | None, actions: tuple[Action, ...]) -> Blocked:
    """The reason while the inspection runs. During a retry, the failure of the last inspection stays the reason."""
    if before is not None:
        message = before.log[-1] if before.log else "the inspection failed"
        return Blocked(before.reason, message, waiting=False, failure=before, actions=actions)
    files = [*([spec.source.uri] if spec.source else []), *(f"the adapter {one.name}" for one in spec.adapters)]
    message = f"the inspection pod reads the files of {', '.join(files)}"
    return Blocked(Reason.INSPECTING, message, waiting=True, actions=actions)


def _unfinished(
    context: SourceContext, before: Failure | None, desired: Manifest, unready: tuple[Reason, str]
) -> Blocked:
    pod, claim = context.inspection, context.claim
    assert pod is not None
    repair = pod_repair(desired, pod)
    actions = (Patch(Kind.POD, pod["metadata"]["name"], repair, ActionReason.DRIFTED),) if repair else ()
    reason, message = unready
    if reason is Reason.WAITING_FOR_GPUS and claim is not None and not claim.bound:
        reason, message = Reason.CLAIM_NOT_BOUND, _unbound(claim, pod)
    if reason in _CANNOT_START:
        return Blocked(reason, message, waiting=True, failure=before, actions=actions)
    blocked = _waiting(context.spec, before, actions)
    if before is None and (reason in (Reason.WAITING_FOR_GPUS, Reason.INSPECTING) or awaited_scheduler(pod)):
        return Blocked(Reason.INSPECTING, message, waiting=True, actions=actions)
    return blocked


def _unbound(claim: VolumeClaim, pod: Manifest) -> str:
    cause = untrusted.clean(objects.condition(pod, "PodScheduled").get("message"), 300).rstrip(". ")
    of_class = f'of the StorageClass "{untrusted.clean(claim.storage_class, 63)}"' if claim.storage_class else ""
    return (
        f'the claim "{claim.name}" {of_class or "without a StorageClass"} is not bound ({cause}): kubectl describe pvc '
        f"{claim.name} shows why; the inspection then starts by itself"
    )


def _ended(pod: Manifest) -> Mapping[str, Any] | None:
    """The terminated state of the inspection's container. None while it may still report.

    {} if the pod ended and the kubelet reports no end of the container. The pod itself may run on: a service mesh can
    add a container that never ends.
    """
    container = objects.named(objects.members(pod, "status", "containerStatuses"), INSPECTION_CONTAINER)
    if ended := objects.mapping(container, "state", "terminated"):
        return ended
    return {} if objects.has_ended(pod) else None


def _facts(spec: Spec, report: Mapping[str, Any], base: Checkpoint | None) -> Checkpoint:
    """The facts of the model and of its adapters. Raises InvalidFactsError."""
    facts = base or records.from_inspection(report)
    adapters = [(one.name, one.source.place) for one in spec.sorted_adapters]
    return replace(facts, adapters=of_report(adapters, report)) if adapters else facts


def _outcome(
    pod: Manifest,
    ended: Mapping[str, Any],
    shown: Mapping[str, str],
    read: Callable[[Mapping[str, Any]], Checkpoint],
) -> Checkpoint | tuple[Reason, str]:
    """The facts in the pod's report, or the reason and message of its failure."""
    report = report_of(ended)
    if not report or "error" in report or exit_code(ended) != 0:
        reason, message = _error(pod, ended, report)
        for path, written in shown.items():
            message = message.replace(path, written)
        return reason, message
    try:
        return read(report)
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
        message = untrusted.clean(error.get("message") or "no message", MESSAGE_LIMIT)
        reason = reported_reason(error)
        if reason is not None:
            return reason, message
        return Reason.INSPECTION_FAILED, f"{untrusted.clean(error.get('reason'), 63)}: {message}"
    status = objects.mapping(pod, "status")
    cause = ended.get("message") or status.get("message") or ended.get("reason") or status.get("reason")
    name, code = pod["metadata"]["name"], f", exit code {exit_code(ended)}" if "exitCode" in ended else ""
    return Reason.INSPECTION_FAILED, f"{name} ended without a report{code}: {untrusted.clean(cause, 300)}"


def _failure(pod: Manifest, ended: Mapping[str, Any], reason: Reason, message: str, before: Failure | None) -> Failure:
    finished = untrusted.clean(ended.get("finishedAt") or pod["metadata"].get("creationTimestamp"), 63)
    if before is not None and before.time == finished:
        count = before.count
    else:
        count = before.count + 1 if before is not None else 1
    return Failure(
        reason=reason,
        phase=PHASE,
        pod=pod["metadata"]["name"],
        exit_code=exit_code(ended),
        time=finished,
        count=count,
        log=(message,),
    )


def _due(failure: Failure, now: datetime) -> float:
    """Seconds until the next attempt: 30 after the first failure, then doubling up to 600."""
    delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failure.count - 1, 10))
    finished = objects.moment(failure.time)
    if finished is None:
        return 0.0
    return (finished + timedelta(seconds=delay) - now).total_seconds()


def leftovers(pods: Children, deployment: str, awaited: str) -> tuple[Delete, ...]:
    """The deletions of all inspection pods except that of the revision `awaited` ("" if there is none)."""
    kept = inspection_pod_name(deployment, awaited) if awaited else ""
    return tuple(
        Delete(Kind.POD, name, pod["metadata"]["uid"], ActionReason.INSPECTION_DONE)
        for name, pod in pods.owned.items()
        if name.startswith(f"{deployment}-") and name.endswith("-inspect") and name != kept
        if not objects.is_deleting(pod)
    )
