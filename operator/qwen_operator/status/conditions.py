"""The conditions of a QwenDeployment, from the results of a decision. Pure.

Reconciling and Stalled are about the spec (kstatus): the change is in progress, or a person must act.
"""

from collections.abc import Mapping
from typing import Any

from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.status import Failure
from qwen_operator.manifests.names import Manifest
from qwen_operator.status.adapters import not_loaded
from qwen_operator.status.names import lost_message, lost_reason
from qwen_operator.status.observed import mismatch, startup_seconds
from qwen_operator.status.prefetch import broken
from qwen_operator.status.ready import ready_verdict
from qwen_operator.status.rollouts import held_verdict, without_room
from qwen_operator.status.types import StatusInput
from qwen_operator.status.unfinished import unfinished

_STALLED_AFTER_FAILURES = 3
_SHORT_OF_ROOM = (Reason.QUOTA_EXCEEDED, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_NODE)


def all_verdicts(
    meta: Manifest, given: StatusInput, failure: Failure | None, seen: Mapping[str, Any] | None
) -> tuple[Verdict, ...]:
    """All conditions. `failure` is `status.lastFailure`, and `seen` is what the running engines reported."""
    reason, message = unfinished(given)
    ready = ready_verdict(given, reason, message, seen)
    if given.wanted.number == 0 and given.blocked is None:
        reason, message = ready.reason, ready.message
    verdicts = [
        ready,
        _planned(meta, given, seen),
        Verdict(ConditionType.MODEL_LOADED, True, Reason.LOADED, "at least one replica has the model in memory")
        if given.ready
        else Verdict(ConditionType.MODEL_LOADED, False, reason, message),
        *_scaling(given, reason, message),
    ]
    stalled = _held(given) or _stalled(given, reason, message, failure)
    if stalled is not None:
        verdicts.append(stalled)
    elif _in_progress(given):
        verdicts.append(_reconciling(given, reason, message))
    if (degraded := _degraded(given, message, seen)) is not None:
        verdicts.append(degraded)
    return tuple(verdicts)


def _scaling(given: StatusInput, reason: Reason, message: str) -> tuple[Verdict, ...]:
    """ScalingActive and ScalingLimited. If the cluster has no room, that limits the size too."""
    wanted = given.wanted
    active = Verdict(ConditionType.SCALING_ACTIVE, wanted.by_load, wanted.reason, wanted.explained)
    at_maximum = wanted.by_load and wanted.reason == Reason.AT_MAXIMUM
    field = "maxReplicas of the schedule" if wanted.schedules else "spec.scaling.maxReplicas"
    advice = f"{wanted.explained}: raise {field}, or requests wait"
    limited = Verdict(ConditionType.SCALING_LIMITED, at_maximum, wanted.reason, advice)
    short = given.answering < given.wanted.number or given.full is not None
    if given.ready and reason in _SHORT_OF_ROOM and short:
        limited = Verdict(ConditionType.SCALING_LIMITED, True, reason, message)
    return active, limited


def _planned(meta: Manifest, given: StatusInput, seen: Mapping[str, Any] | None) -> Verdict:
    if given.target is None:
        assert given.blocked is not None
        blocked = given.blocked
        return Verdict(ConditionType.PLANNED, False, blocked.reason, blocked.message)
    # What fails comes first: the end of a long message is cut off.
    parts = [broken(given.prefetch), given.target.plan.message, *given.target.plan.warnings]
    if given.newer:
        parts.append(
            "a newer plan is available: kubectl annotate --overwrite qwendeployment "
            f"-n {meta['namespace']} {meta['name']} qwen-operator.dev/replan=$(date +%s)"
        )
    if given.hold is not None:
        parts.append(
            f"it is held back: status.plan shows the earlier revision {given.hold.earlier.revision}, which runs"
        )
    parts += [_long_wake(given, seen), given.prefetch.useless]
    return Verdict(ConditionType.PLANNED, True, Reason.FITS, "; ".join(part for part in parts if part))


def _long_wake(given: StatusInput, seen: Mapping[str, Any] | None) -> str:
    """The warning that the first requests after a sleep are not held until they are answered."""
    scaling, seconds = given.spec.scaling, startup_seconds(given.running, seen)
    if scaling is None or scaling.min_replicas:
        return ""
    if seconds <= given.hold_seconds:
        return ""
    return (
        f"a start takes about {seconds} s, but requests wait in the gateway for at most "
        f"{given.hold_seconds} s (chart value gateway.hold.maxSeconds): with spec.scaling.minReplicas 0, the first "
        "requests after a sleep get 503 with Retry-After"
    )


def _held(given: StatusInput) -> Verdict | None:
    if given.hold is None or given.blocked is not None or given.unreachable:
        return None
    cause = given.hold.cause
    message = without_room(cause.reason, cause.message, given.spec.hardware.resource_name, given.rules)
    return held_verdict(given.hold, message)


def _stalled(given: StatusInput, reason: Reason, message: str, failure: Failure | None) -> Verdict | None:
    blocked = given.blocked
    if blocked is not None:
        return None if blocked.waiting else Verdict(ConditionType.STALLED, True, blocked.reason, blocked.message)
    if given.unreachable:
        lost = given.names.lost
        return Verdict(ConditionType.STALLED, True, lost_reason(lost), lost_message(given.spec, lost))
    if reason is Reason.QUOTA_EXCEEDED:
        return None
    if given.refusal is not None or (given.foreign and not given.ready):
        return Verdict(ConditionType.STALLED, True, reason, message)
    failing = failure is not None and failure.reason is reason and failure.count >= _STALLED_AFTER_FAILURES
    if failing and failure is not None:
        text = f"{failure.count} identical failures; {message}"
        return Verdict(ConditionType.STALLED, True, reason, text)
    looping = any(replica.crash_looping and replica.reason is reason for replica in given.current)
    looping = looping or reason is given.given_back.reason
    looping = looping or any(pod.crash_looping and pod.reason is reason for pod in given.prefetch.pods)
    return Verdict(ConditionType.STALLED, True, reason, message) if looping else None


def _reconciling(given: StatusInput, reason: Reason, message: str) -> Verdict:
    why = f"; new replicas come because {given.why_replaced}" if given.why_replaced else ""
    if given.ready and reason is Reason.SERVING:
        reason, message = Reason.REPLACING, f"the operator replaces pods of an earlier revision{why}"
    elif given.blocked is not None:
        reason, message = given.blocked.reason, given.blocked.message
    else:
        message = f"{message}{why}"
    return Verdict(ConditionType.RECONCILING, True, reason, message)


def _in_progress(given: StatusInput) -> bool:
    """Whether the spec is not completely in use yet.

    Adding replicas to a serving revision does not count: only the message of Ready shows that.
    """
    if given.blocked is not None:
        return True
    if given.wanted.reason in (Reason.ASLEEP, Reason.WAKING):
        # Sleep and waking are no changes of the spec.
        return given.outdated
    if given.wanted.number == 0:
        return bool(given.replicas.all)
    return given.outdated or not any(replica.ready for replica in given.current)


def _degraded(given: StatusInput, message: str, seen: Mapping[str, Any] | None) -> Verdict | None:
    lost = given.names.lost
    if lost and not given.unreachable:
        return Verdict(ConditionType.DEGRADED, True, lost_reason(lost), lost_message(given.spec, lost))
    if not given.ready or not given.wanted.number:
        return None
    if given.foreign:
        return Verdict(ConditionType.DEGRADED, True, Reason.FOREIGN_OBJECT, given.foreign)
    broken = [replica for replica in given.current if not replica.ready and not replica.on_the_way]
    if broken:
        return Verdict(ConditionType.DEGRADED, True, Reason.REPLICA_LOST, message)
    if (failed := not_loaded(given.adapter_failures, given.adapter_downloads)) is not None:
        return failed
    return mismatch(given.running.plan, seen) if given.running else None
