"""Which Events a change of conditions is worth: transitions only, one per reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_operator.api.conditions import METRICS_LOST, PROGRESS, ConditionType


@dataclass(frozen=True, slots=True)
class Event:
    """One Event on the QwenDeployment; `reason` is a condition reason."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Events for the step from the old `status.conditions` to the new ones; empty when nothing changed.

    A change of the message alone is no transition. Conditions that say the same reason give one Event, and steps
    of progress (inspecting, starting, loading) and a plan that fits give none: the Event Serving follows. Of
    ScalingActive only the loss of the metrics is told.
    """
    before = {str(condition.get("type")): (condition.get("status"), condition.get("reason")) for condition in old}
    known = {reason for status, reason in before.values()}
    events: dict[str, Event] = {}
    for condition in new:
        now = (condition["status"], condition["reason"])
        event = _event(condition)
        if event is None or before.get(condition["type"]) == now:
            continue
        # A fault that another condition told before is not news.
        if event.type == "Warning" and event.reason in known:
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
        return Event("Normal", reason, message)
    if true or kind == ConditionType.RECONCILING or reason in PROGRESS:
        return None
    return Event("Warning", reason, message)
