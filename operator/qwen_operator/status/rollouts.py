"""What the status says about a rollout that cannot go on. Pure."""

from __future__ import annotations

from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.holding import Hold

_SERVES = "the earlier revision keeps serving"
_CURE = (
    "or set spec.rollout.maxSurge to 0 and spec.rollout.maxUnavailable to 1, so that an old replica ends before its "
    "successor starts (if it is the only one, requests wait in the gateway until the successor answers)"
)


def held_verdict(hold: Hold, cause_message: str) -> Verdict:
    """Stalled: why the revision is held back, and how to go back or try again."""
    cause = hold.cause
    message = (
        f"{cause.name} does not answer after {hold.seconds:.0f} s, so the operator holds revision {hold.revision} "
        f"back and the earlier revision {hold.earlier.revision} serves. To go back, apply the earlier spec. To try "
        f"again, delete the pod {cause.explaining_pod}. Cause: {cause.reason}: {cause_message}"
    )
    return Verdict(ConditionType.STALLED, True, Reason.REVISION_HELD, message)


def without_room(reason: Reason, message: str, resource: str, rules: RolloutRules) -> str:
    """The message about a successor that has no room beside the replicas that it will replace, with what helps.

    `resource`: the resource of the GPUs. The advice helps only if the old replica has what the successor needs: GPUs of
    the same kind or a part of the quota, but not a node that fits other selectors.
    """
    if reason is Reason.WAITING_FOR_NODE:
        return f"{message}; no GPU is free for the successor until then, and {_SERVES}"
    if not rules.max_surge:
        return message
    if reason is Reason.QUOTA_EXCEEDED:
        return f"{message}; the successor needs room beside the replicas that serve: make room, {_CURE}"
    if reason is Reason.WAITING_FOR_GPUS and f"Insufficient {resource}" in message:
        return f"{message}; no GPU is free for the successor, and {_SERVES}: free GPUs, {_CURE}"
    return message
