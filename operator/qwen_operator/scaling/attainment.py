"""How many requests keep the objective, from the engines' histograms. Pure.

An engine counts first tokens and time per output token separately, so nobody knows which requests missed both. What is
not known counts as worse: all misses count as different requests (`Share.both`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qwen_operator.api.objective import Objective
from qwen_operator.scaling.types import UNKNOWN, Answers, Attained, EnginePod, Sample

HOUR, DAY = "hour", "day"
HOUR_SECONDS = 3600.0
SHOW_SECONDS = 300.0
"""The percentages in a status change at most this often, because each change is a write."""
FIRST_SHOW_SECONDS = 60.0
_STEP_SECONDS = {HOUR: 300.0, DAY: 1800.0}
_STEPS = {HOUR: 12, DAY: 48}

Steps = tuple[tuple[int, Answers], ...]
"""What was answered in each step of a window, the oldest first. A step without requests has no entry."""


@dataclass(frozen=True, slots=True)
class Share:
    """The shares, from 0 to 1, that kept each limit of the objective; None if nothing was measured.

    `requests`: how many got their first token, or ended, if that is more.
    """

    requests: int
    first_token: float | None
    output_token: float | None

    @property
    def both(self) -> float:
        """At least this share kept both limits."""
        missed = sum(1 - share for share in (self.first_token, self.output_token) if share is not None)
        return max(0.0, 1 - missed)


@dataclass(frozen=True, slots=True)
class Attainment:
    """What is remembered of a deployment.

    `counters`: each engine's at its last look, by uid. `shown`: the percentages for its status, and `show_at`: when
    they may change.
    """

    objective: Objective
    show_at: float
    counters: Mapping[str, Answers] = field(default_factory=dict)
    steps: Mapping[str, Steps] = field(default_factory=dict)
    shown: Attained = UNKNOWN


def begin(objective: Objective, at: float, shown: Attained) -> Attainment:
    """The memory before the first look. `shown` is what its status has. It stays until an hour was seen."""
    wait = FIRST_SHOW_SECONDS if shown == UNKNOWN else HOUR_SECONDS
    return Attainment(objective, at + wait, shown=shown)


def watch(attainment: Attainment, sample: Sample, engines: tuple[EnginePod, ...], objective: Objective) -> Attainment:
    """The memory with one more look. With other limits it begins anew, because the counters mean something else."""
    if _limits(objective) != _limits(attainment.objective):
        attainment = begin(objective, sample.at, UNKNOWN)
    now = {load.uid: load.answers for load in sample.engines if load.answers is not None}
    before = attainment.counters
    new = Answers()
    for uid, answers in now.items():
        # The first look at an engine, also at a restarted one, only says from where to count.
        if uid in before:
            new = new + answers.since(before[uid])
    alive = {engine.uid for engine in engines}
    attainment = replace(
        attainment, objective=objective, counters={uid: one for uid, one in {**before, **now}.items() if uid in alive}
    )
    if new != Answers():
        steps = {name: _added(attainment.steps.get(name, ()), new, name, sample.at) for name in _STEPS}
        attainment = replace(attainment, steps=steps)
    return attainment if sample.at < attainment.show_at else _shown(attainment, sample.at)


def shares(attainment: Attainment, at: float) -> dict[str, Share]:
    """The shares of the last hour and of the last day, or of the time since the first look if that is shorter.

    The windows move in steps of 5 and of 30 minutes. A window without requests has no entry.
    """
    found: dict[str, Share] = {}
    for name, steps in attainment.steps.items():
        total = Answers()
        for _, answers in _within(steps, name, at):
            total = total + answers
        if requests := max(total.begun, total.ended):
            found[name] = Share(requests, _ratio(total.soon, total.begun), _ratio(total.fast, total.ended))
    return found


def _limits(objective: Objective) -> tuple[int, int]:
    return objective.time_to_first_token_milliseconds, objective.time_per_output_token_milliseconds


def _added(steps: Steps, new: Answers, name: str, at: float) -> Steps:
    number = int(at // _STEP_SECONDS[name])
    kept = _within(steps, name, at)
    if kept and kept[-1][0] == number:
        return (*kept[:-1], (number, kept[-1][1] + new))
    return (*kept, (number, new))


def _within(steps: Steps, name: str, at: float) -> Steps:
    """The whole steps of the window, and the present one."""
    oldest = int(at // _STEP_SECONDS[name]) - _STEPS[name]
    return steps if not steps or steps[0][0] >= oldest else tuple(step for step in steps if step[0] >= oldest)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _shown(attainment: Attainment, at: float) -> Attainment:
    # Rounded down: 98.9 % does not keep a promise of 99 %. The small number is for errors of rounding.
    percent = {name: int(100 * share.both + 1e-9) for name, share in shares(attainment, at).items()}
    return replace(attainment, show_at=at + SHOW_SECONDS, shown=Attained(percent.get(HOUR), percent.get(DAY)))
