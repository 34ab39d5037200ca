"""How soon the engines of a deployment are read again. Pure.

A look at all engines comes every INTERVAL_SECONDS. The engines of a quiet deployment are left out of most looks: nobody
uses it, and the gateway would show the first request within a second. What changes the number of replicas is never
quiet: a start, a drain, an engine that cannot be read, and a model that may sleep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_operator.scaling import answers
from qwen_operator.scaling.demand import Look
from qwen_operator.scaling.types import EnginePod, Sample

INTERVAL_SECONDS = 2.0
QUIET_SECONDS = 60.0
"""For so long, nothing must have happened."""
QUIET_INTERVAL_SECONDS = 20.0
"""The longest time between two looks at a quiet deployment. Half of it is the shortest, so that looks spread."""
ELSEWHERE_SECONDS = 3600.0
"""Requests that came past the gateway may come again: for so long, every look has the engines."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """`begins`: the monotonic second from which on the deployment is quiet. `totals`: what each engine had done by its
    last look, by uid."""

    begins: float
    totals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def watch(quiet: Quiet | None, look: Look, sample: Sample, engines: tuple[EnginePod, ...]) -> Quiet:
    """The memory with one more look."""
    totals = answers.totals(sample)
    if quiet is None:
        return Quiet(sample.at + QUIET_SECONDS, totals)
    asked, worked = wakes(look), answers.worked(sample, totals, quiet.totals)
    if asked or worked or not engines or not _settled(sample, engines):
        elsewhere = worked and not asked and sample.at >= quiet.begins
        seconds = ELSEWHERE_SECONDS if elsewhere else QUIET_SECONDS
        return Quiet(max(quiet.begins, sample.at + seconds), totals)
    return Quiet(quiet.begins, totals)


def wakes(look: Look) -> bool:
    """Whether the engines must be read now: somebody asked for the model, or nobody knows whether somebody did."""
    return not look.hears or asks(look)


def asks(look: Look) -> bool:
    """Whether somebody asked for the model lately."""
    return look.demand.held > 0 or look.demand.came <= QUIET_SECONDS


def next_at(quiet: Quiet, at: float, chance: float) -> float:
    """From when on a look has these engines. `chance` is a random number from 0 to 1."""
    return at if at < quiet.begins else at + QUIET_INTERVAL_SECONDS * (1 + chance) / 2


def _settled(sample: Sample, engines: tuple[EnginePod, ...]) -> bool:
    steady = all(engine.ready and not engine.draining and not engine.cordoned for engine in engines)
    return steady and not sample.problems and not answers.unread(sample, engines)
