"""How much of its time a replica may spend on prefill, so that first tokens come in time. Pure.

A request waits while the engine computes other prompts. How long it waits depends on how different the prompts are,
and no counter shows that. But the queue does (Little's law). With a share of prefill u, a arrivals per second and q
requests in the queue on average, a request that has to wait takes about q / (a * u) seconds. The waits fall off
exponentially:

    late = u * exp(-patience * a * u / q)

`patience` is how long a request may wait. If more requests are late than the objective allows, the allowed share of
prefill falls by half within FALL_SECONDS. Otherwise it doubles within RISE_SECONDS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen_operator.api.objective import Objective

LARGEST_SHARE = 0.5
SMALLEST_SHARE = 0.2
FALL_SECONDS = 600.0
RISE_SECONDS = 1200.0
_HALF_LIFE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Steering:
    """The allowed share, and the means of the last minutes: requests in queues, arrivals per second, and the share of
    their time that replicas spent on prefill."""

    share: float = LARGEST_SHARE
    queued: float = 0.0
    arriving: float = 0.0
    prefilling: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """One look at the whole fleet: `queued` requests, `arriving` requests per second, and the mean share `prefilling`
    of the `ready` replicas."""

    queued: int
    arriving: float
    prefilling: float
    ready: int


def steer(steering: Steering, traffic: Traffic, seconds: float, objective: Objective) -> Steering:
    """The steering after `seconds` with this traffic.

    A queue that is longer than one request for each replica comes from a burst, and a smaller share does not help
    against bursts. So the rest of it does not count.
    """
    keep = 0.5 ** (seconds / _HALF_LIFE_SECONDS)
    queued = _mixed(steering.queued, min(traffic.queued, traffic.ready), keep)
    arriving = _mixed(steering.arriving, traffic.arriving, keep)
    prefilling = _mixed(steering.prefilling, min(1.0, traffic.prefilling), keep)
    patience = objective.patience_seconds
    late = prefilling * math.exp(-patience * arriving * prefilling / queued) if queued > 0 else 0.0
    change = 0.5 ** (seconds / FALL_SECONDS) if late > objective.late_share else 2 ** (seconds / RISE_SECONDS)
    share = min(LARGEST_SHARE, max(SMALLEST_SHARE, steering.share * change))
    return Steering(share, queued, arriving, prefilling)


def _mixed(before: float, now: float, keep: float) -> float:
    return before * keep + now * (1 - keep)
