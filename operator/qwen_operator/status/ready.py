"""The condition Ready: whether requests get an answer. Pure.

It is true if at least one replica answers, even while others start or are replaced.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.events import rfc3339
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.replicas.prefetch import failing
from qwen_operator.status.names import lost_message, lost_reason
from qwen_operator.status.observed import startup_seconds
from qwen_operator.status.types import StatusInput
from qwen_operator.status.unfinished import creation_obstacle

_RESTS = (Reason.ASLEEP, Reason.GATEWAY_SILENT, Reason.SUSPENDED)


def ready_verdict(given: StatusInput, reason: Reason, message: str, seen: Mapping[str, Any] | None) -> Verdict:
    """`reason` and `message`: why the present spec is not completely in use yet."""
    lost, ready = given.names.lost, given.answering
    if given.unreachable and given.blocked is None:
        return Verdict(ConditionType.READY, False, lost_reason(lost), lost_message(given.spec, lost))
    if ready and given.wanted.number:
        text = f"{ready} of {given.wanted.number} replicas answer"
        if reason is not Reason.SERVING:
            text = f"{text}; {message}"
        if lost:
            text = f"{text}; {lost_message(given.spec, lost)}"
        return Verdict(ConditionType.READY, True, Reason.SERVING, f"{text}{_leaving(given)}")
    if given.wanted.number == 0 and given.blocked is None:
        return _resting(given)
    if given.wanted.reason is Reason.WAKING and _comes_by_itself(given):
        text = f"{given.wanted.message}; {message}{_expected(given, seen)}"
        return Verdict(ConditionType.READY, True, Reason.WAKING, text)
    return Verdict(ConditionType.READY, False, reason, message)


def _resting(given: StatusInput) -> Verdict:
    """Ready of a deployment without wanted replicas. A model that sleeps is ready: it answers whoever asks."""
    wanted = given.wanted
    if wanted.reason not in _RESTS:
        return Verdict(ConditionType.READY, False, Reason.SCALED, f"spec.replicas is 0{_leaving(given)}")
    asleep = wanted.reason is Reason.ASLEEP
    return Verdict(ConditionType.READY, asleep, wanted.reason, f"{wanted.message}{_leaving(given)}")


def _comes_by_itself(given: StatusInput) -> bool:
    """Whether nothing keeps the replica that wakes from answering."""
    if given.blocked is not None or creation_obstacle(given) is not None:
        return False
    if given.given_back.reason is not None:
        return False
    if any(failing(pod) for pod in given.prefetch.pods) and not given.current:
        return False
    return all(replica.on_the_way for replica in given.current if not replica.ready)


def _expected(given: StatusInput, seen: Mapping[str, Any] | None) -> str:
    """When the replica that wakes should answer. The time stays the same while it starts."""
    created = [
        objects.moment(objects.text(one.leader.manifest, "metadata", "creationTimestamp")) for one in given.current
    ]
    first = min((moment for moment in created if moment is not None), default=None)
    if first is None or given.running is None:
        return ""
    seconds = startup_seconds(given.running, seen)
    return f"; by plan it answers at {rfc3339(first + timedelta(seconds=seconds))}"


def _leaving(given: StatusInput) -> str:
    """Which replicas drain, and when each is deleted at the latest. The times stay the same while they drain."""
    draining, now = given.replicas.draining, given.rules.now
    times = sorted((then, replica.name) for replica in draining if (then := replica.drains_since(now)) is not None)
    if not times:
        return ""
    first, name = times[0]
    until = rfc3339(first + timedelta(seconds=given.rules.drain_limit))
    if len(draining) == 1:
        return f"; {name} gets no new requests and is deleted when it is idle, by {until} at the latest"
    return (
        f"; {name} and {len(draining) - 1} more get no new requests and are deleted when they are idle, "
        f"the first by {until} at the latest"
    )
