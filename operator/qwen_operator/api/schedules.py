"""`spec.scaling.schedules`: times of day or week with their own limits for the number of replicas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError

from qwen_operator.api.fields import Rule, described, matches

MOST_SCHEDULES = 16

_CRON_FORM = r"^[0-9A-Za-z*,/#-]+( +[0-9A-Za-z*,/#-]+){4}$"
_EXAMPLE = "'0 8 * * MON-FRI' (at 08:00 from Monday to Friday)"
# Any moment will do: an expression that has no moment in the next 50 years has none at all.
_SOME_DAY = datetime(2000, 1, 1, tzinfo=UTC)
_ZONE_FORM = r"^[A-Za-z0-9+-][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"
_HERE = "localtime"


# To see that no day is like an expression takes some 10 ms, and every look at a spec asks.
@lru_cache(maxsize=16_384)
def cron_fault(expression: str) -> str:
    """What is wrong with a cron expression, as a sentence; "" if nothing is."""
    if not matches(_CRON_FORM, expression):
        return f"Right would be, for example, {_EXAMPLE}"
    try:
        next(CronSim(expression, _SOME_DAY))
    except CronSimError as error:
        field = str(error).removeprefix("Bad ").replace("-", " ")
        return f"Its {field} is wrong; right would be, for example, {_EXAMPLE}"
    except StopIteration:
        return f"No day is like that; right would be, for example, {_EXAMPLE}"
    return ""


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    # The last one is the time zone of the machine on which the operator happens to run.
    return frozenset(available_timezones() - {_HERE})


_CRON = Rule(
    f"self.matches('{_CRON_FORM}')",
    "must be a cron expression with five fields: minute, hour, day of the month, month, day of the week",
    lambda expression: not cron_fault(expression),
    cron_fault,
)
_ZONE = Rule(
    f"self.matches('{_ZONE_FORM}')",
    "must be a name of the IANA time zone database, such as Europe/Berlin, America/New_York or UTC",
    lambda name: matches(_ZONE_FORM, name) and name in _zones(),
)


def _changes_something(schedule: Mapping[str, Any]) -> bool:
    return schedule.get("minReplicas") is not None or schedule.get("maxReplicas") is not None


def _ends(schedule: Mapping[str, Any]) -> bool:
    start, end = (re.sub(" +", " ", str(schedule.get(name))) for name in ("start", "end"))
    return start != end


def limits_in_order(scaling: Mapping[str, Any]) -> bool:
    """Whether minReplicas is at most maxReplicas in each schedule of a `spec.scaling`, with what it leaves out."""
    least, most = scaling.get("minReplicas"), scaling.get("maxReplicas")
    for schedule in scaling.get("schedules") or ():
        lower, upper = schedule.get("minReplicas"), schedule.get("maxReplicas")
        lower = (1 if least is None else least) if lower is None else lower
        upper = most if upper is None else upper
        if upper is not None and lower > upper:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Schedule:
    """Limits that hold from each start to the next end, in place of those of spec.scaling."""

    RULES: ClassVar = (
        Rule(
            "has(self.minReplicas) || has(self.maxReplicas)",
            "set minReplicas, maxReplicas or both: without them the schedule changes nothing",
            _changes_something,
        ),
        Rule("self.start != self.end", "start and end must differ, otherwise the schedule never ends", _ends),
    )

    name: str = described(
        "Name of the schedule. The status names it while it is in force. Example: office-hours.",
        min_length=1,
        max_length=40,
        pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    )
    start: str = described(
        "When the schedule begins: a cron expression with the fields minute, hour, day of the month, month and day of "
        "the week. Replicas begin to start at this time, so let it be earlier than the load by the time that a start "
        "takes (status.plan.startupSeconds). Example: 45 7 * * MON-FRI.",
        max_length=64,
        rules=(_CRON,),
    )
    end: str = described(
        "When the schedule ends: a cron expression. Example: 0 19 * * MON-FRI.", max_length=64, rules=(_CRON,)
    )
    time_zone: str = described(
        "Time zone of start and end, by its name in the IANA database. The times follow the local clock, also when it "
        "is set forward or back. Default: UTC. Example: Europe/Berlin.",
        default="UTC",
        max_length=64,
        rules=(_ZONE,),
    )
    min_replicas: int | None = described(
        "The fewest replicas while the schedule is in force. 0: the model may sleep. Default: minReplicas of "
        "spec.scaling.",
        default=None,
        minimum=0,
        maximum=64,
    )
    max_replicas: int | None = described(
        "The most replicas while the schedule is in force. Default: maxReplicas of spec.scaling.",
        default=None,
        minimum=1,
        maximum=64,
    )
