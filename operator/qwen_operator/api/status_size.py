"""Keeps a status within its size: every part has a budget of bytes.

Watchers and etcd carry every status. A part may use more than its budget while others use less. When the whole is too
large, only parts over their budget are shortened, and never below it: so one long part takes nothing from the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from qwen_operator.api.conditions import clip

SIZE_LIMIT = 5120
"""Bytes of a status as compact JSON."""

BUDGETS = {
    "observedGeneration": 40,
    "replicas": 20,
    "readyReplicas": 20,
    "selector": 180,
    "endpoint": 420,
    "names": 1180,
    "model": 330,
    "plan": 400,
    "observed": 160,
    "noFit": 130,
    "lastFailure": 230,
    "scaling": 220,
    "progress": 130,
    "adapters": 70,
    "conditions": 1400,
    "summary": 190,
}
"""Bytes that each part may always use, with its name."""

_SHORTEST_MESSAGE = 20


_SHORTEST_LINE = 40

Step = Callable[[Any], Any | None]
"""Shortens a part a little; None where there is nothing left to shorten."""


def _without_last(entries: str) -> Step:
    """Without the last entry of a list."""
    return lambda part: {**part, entries: part[entries][:-1]} if part.get(entries) else None


def _with_shorter_log(part: Any) -> Any | None:
    """Without the oldest line of the log. The last line has the cause, so it gets shorter but stays."""
    log = part.get("log")
    if not log:
        return None
    if len(log) > 1:
        return {**part, "log": log[1:]}
    length = len(log[0])
    return {**part, "log": [clip(log[0], max(_SHORTEST_LINE, length * 3 // 4))]} if length > _SHORTEST_LINE else None


def _with_fewer_numbers(part: Any) -> Any | None:
    """Without what is only useful to know."""
    name = next((name for name in ("finishTime", "bytesPerSecond", "pod") if name in part), None)
    return None if name is None else {key: value for key, value in part.items() if key != name}


# In this order: the arithmetic of what does not run, what would fit, the arithmetic, the log, the options, the names of
# schedules, which the message has too, the numbers of a download, the adapters that wait, of which the numbers stay.
_CUTS: tuple[tuple[str, Step], ...] = (
    ("noFit", _without_last("steps")),
    ("noFit", _without_last("alternatives")),
    ("plan", _without_last("steps")),
    ("lastFailure", _with_shorter_log),
    ("plan", _without_last("args")),
    ("scaling", _without_last("schedules")),
    ("progress", _with_fewer_numbers),
    ("adapters", _without_last("waiting")),
)


def shortened(status: Mapping[str, Any]) -> dict[str, Any]:
    """The status with at most SIZE_LIMIT bytes; equal to the given one where that is small enough."""
    result = dict(status)
    # Most objects hold one short name. Logs and messages must not fill the room that four long names would take.
    limit = SIZE_LIMIT - max(0, BUDGETS["names"] - _size_of_part(status, "names"))
    if size_of(result) <= limit:
        return result
    for part, step in _CUTS:
        _shorten(result, part, step, limit)
    for part in ("conditions", "scaling", "summary"):
        _shorten(result, part, _with_shorter_message, limit)
    return result


def size_of(value: Any) -> int:
    """Bytes of a value as compact JSON."""
    return len(json.dumps(value, separators=(",", ":")).encode())


def _shorten(status: dict[str, Any], part: str, step: Step, limit: int) -> None:
    """Take steps while both the status and the part are too large, and there is a step to take."""
    while size_of(status) > limit and _size_of_part(status, part) > BUDGETS[part]:
        smaller = step(status[part])
        if smaller is None:
            return
        status[part] = smaller


def _size_of_part(status: Mapping[str, Any], part: str) -> int:
    return size_of({part: status[part]}) if part in status else 0


def _with_shorter_message(part: Any) -> Any | None:
    """The same with its longest message a quarter shorter; None where all are short."""
    holders = part if isinstance(part, list) else [part]
    longest = max(holders, key=lambda holder: len(holder.get("message", "")))
    message = str(longest.get("message", ""))
    if len(message) <= _SHORTEST_MESSAGE:
        return None
    shorter = {**longest, "message": clip(message, max(_SHORTEST_MESSAGE, len(message) * 3 // 4))}
    return [shorter if holder is longest else holder for holder in part] if isinstance(part, list) else shorter
