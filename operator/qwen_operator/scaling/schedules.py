"""Which schedules of spec.scaling are in force at a moment, and until when. Pure.

A schedule is in force from each moment of its `start` to the next moment of its `end`. If both are the same moment, the
start counts. Cron expressions name whole minutes, so nothing changes within a minute.

The local clock may jump. As in Debian's cron, a time that the clock leaves out counts as the first minute after the
jump, and a time that comes twice counts only the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim

from qwen_operator.api.schedules import Schedule
from qwen_operator.api.spec import Scaling

_MINUTE = timedelta(minutes=1)
# No clock that is set back shows the same time again so late.
_JUMP = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Limits:
    """The smallest and largest number of replicas at a moment.

    `schedules`: the names of the schedules in force, in the order of the spec. `until`: when the next schedule begins
    or ends; None if none ever does.
    """

    least: int
    most: int
    schedules: tuple[str, ...] = ()
    until: datetime | None = None


def limits(scaling: Scaling, now: datetime | None) -> Limits:
    """The limits at `now`, which is timezone-aware. None: without the schedules.

    If several schedules are in force, the larger minReplicas and the larger maxReplicas count.
    """
    if now is None or not scaling.schedules:
        return Limits(scaling.min_replicas, scaling.max_replicas)
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    states = [(schedule, *_state(schedule, minute)) for schedule in scaling.schedules]
    active = [schedule for schedule, in_force, _ in states if in_force]
    until = min((change for _, _, change in states if change is not None), default=None)
    if not active:
        return Limits(scaling.min_replicas, scaling.max_replicas, until=until)
    lower = [scaling.min_replicas if one.min_replicas is None else one.min_replicas for one in active]
    upper = [scaling.max_replicas if one.max_replicas is None else one.max_replicas for one in active]
    return Limits(max(lower), max(upper), tuple(one.name for one in active), until)


@dataclass(slots=True)
class _Cell:
    """The last answer about a schedule. It holds from the minute `since` up to `until`, or for ever if that is None."""

    in_force: bool = False
    since: datetime | None = None
    until: datetime | None = None

    def holds(self, minute: datetime) -> bool:
        return self.since is not None and self.since <= minute and (self.until is None or minute < self.until)


# The scaling loop asks for every deployment every two seconds, so each answer is calculated once, and not every minute.
@lru_cache(maxsize=65_536)
def _cell(_start: str, _end: str, _time_zone: str) -> _Cell:
    return _Cell()


def _state(schedule: Schedule, minute: datetime) -> tuple[bool, datetime | None]:
    """Whether the schedule is in force, and when that changes; `minute` is a whole minute in UTC."""
    cell = _cell(schedule.start, schedule.end, schedule.time_zone)
    if not cell.holds(minute):
        zone = ZoneInfo(schedule.time_zone)
        started, ended = _last(schedule.start, zone, minute), _last(schedule.end, zone, minute)
        in_force = started is not None and (ended is None or started >= ended)
        until = _next(schedule.end if in_force else schedule.start, zone, minute)
        cell.in_force, cell.since, cell.until = in_force, minute, until
    return cell.in_force, cell.until


def _last(cron: str, zone: ZoneInfo, minute: datetime) -> datetime | None:
    """The last moment of the expression that is not after `minute`; None if there is none in 50 years."""
    # If the clock was set back, the last moment may show a later local time than the present one.
    jumps = (minute - _JUMP).astimezone(zone).utcoffset() != (minute + _JUMP).astimezone(zone).utcoffset()
    begin = minute + (_JUMP if jumps else _MINUTE)
    moments = (moment.astimezone(UTC) for moment in CronSim(cron, begin.astimezone(zone), reverse=True))
    return next((moment for moment in moments if moment <= minute), None)


def _next(cron: str, zone: ZoneInfo, minute: datetime) -> datetime | None:
    """The next moment of the expression after `minute`; None if there is none in 50 years."""
    moments = (moment.astimezone(UTC) for moment in CronSim(cron, minute.astimezone(zone)))
    return next((moment for moment in moments if moment > minute), None)
