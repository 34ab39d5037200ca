"""The Events that a change of conditions makes: only for transitions, and one for each reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_operator.api.conditions import METRICS_LOST, PROGRESS, ConditionType, Reason


@dataclass(frozen=True, slots=True)
class Event:
    """One Event on the QwenDeployment; `reason` is a condition reason."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Events for the step from the old `status.conditions` to the new ones. Empty if nothing changed.

    A change of only the message is no transition. Conditions with the same reason make one Event. Steps of progress
    (inspecting, starting, loading) and a plan that fits make none, because the Event Serving follows. ScalingActive
    makes an Event only when the metrics cannot be used.
    """
    before = {str(condition.get("type")): (condition.get("status"), condition.get("reason")) for condition in old}
    old_reasons = {reason for _, reason in before.values()}
    events: dict[str, Event] = {}
    for condition in new:
        now = (condition["status"], condition["reason"])
        event = _event(condition)
        if event is None or before.get(condition["type"]) == now:
            continue
        # Another condition had this fault before, so there was an Event for it.
        if event.type == "Warning" and event.reason in old_reasons:
            continue
        events.setdefault(event.reason, event)
    return list(events.values())


def _event(condition: Mapping[str, Any]) -> Event | None:
    kind, reason, message = condition["type"], condition["reason"], condition["message"]
    true = condition["status"] == "True"
    if kind in (ConditionType.STALLED, ConditionType.DEGRADED, ConditionType.SCALING_LIMITED):
        return Event("Warning", reason, message)
    if kind == ConditionType.SCALING_ACTIVE:
        return Event("Warning", reason, message) if reason in METRICS_LOST else None
    if kind == ConditionType.READY and true:
        # The change of the size has an Event.
        return None if reason in (Reason.ASLEEP, Reason.WAKING) else Event("Normal", reason, message)
    if true or kind == ConditionType.RECONCILING or reason in PROGRESS:
        return None
    return Event("Warning", reason, message)
