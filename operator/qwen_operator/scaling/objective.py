"""The policy `Objective`: replicas for a latency objective, with headroom for the time that a start takes. Pure.

The objective is spec.scaling.objective. The demand, in replicas, is the largest of three. T tokens are in the KV
caches, P prompt tokens arrive per second, and `limit` is the mean time that an output token may take:

    cache      T / (TOKEN_TARGET * capacity)
    decode     (T * cached + limit * P * prefill) / (limit - floor)
    prefill    P * prefill / share

`floor`, `cached` and `prefill` are measured (speed.py). The second line follows from the time per output token: a
replica decodes while it does not prefill, and a step takes floor + cached * tokens. `share` is steered (steering.py).
The headroom is learned (growth.py). Waiting prompts add the replicas that compute them within CLEAR_SECONDS. While the
speed is unknown, only the first line counts, and no replica of a busy fleet goes in the first LEARNING_SECONDS. The
size is never below the need by the rule of policy.py. A replica that was needed again soon after its removal stays
(regret.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qwen_operator.api.objective import Objective
from qwen_operator.scaling import answers, growth, policy, regret, sizes, speed, steering
from qwen_operator.scaling.growth import Growth
from qwen_operator.scaling.policy import TOKEN_TARGET, Need
from qwen_operator.scaling.regret import Regret
from qwen_operator.scaling.sizes import LARGEST_NEED, Needed, Sizes
from qwen_operator.scaling.speed import Meter, Speed
from qwen_operator.scaling.steering import Steering, Traffic
from qwen_operator.scaling.types import Bounds, EnginePod, Sample, ScalingDecision

DECODE_MARGIN = 0.7
"""The share of timePerOutputTokenMilliseconds that the mean may take, so that slow moments stay below it."""
STARTS_PER_MISS = 5
MOST_MISS_SHARE = 0.2
CLEAR_SECONDS = 60.0
ARRIVAL_SECONDS = 60.0
"""Arriving prompts are counted over this time."""
FIRST_START_SECONDS = 180.0
"""The start time that is assumed before a start was seen, if the status has neither a plan nor an earlier start."""
LONGEST_START_SECONDS = 1800.0
LEARNING_SECONDS = 600.0
"""How long a policy that does not know the speed yet, as after a change of leader, keeps a busy fleet as it is. Some
engines never show it: those of embeddings decode nothing."""
IDLE_TOKENS_PER_SECOND = 1.0
"""So many prompt tokens of an engine mean nothing: an idle engine checks its own health with a prompt of a token."""
# A size that is hardly too large is kept. Otherwise a load at the border of two sizes would change it again and again.
_SLACK = 0.1
_REGRET = ", and one that was needed again soon after its removal"
_LEARNING = "; none goes before the speed of a replica is known"
_LIMITS = {
    "cache": "KV tokens need {demand:.1f}",
    "decode": "decoding within {milliseconds:.0f} ms per token needs {demand:.1f}",
    "prefill": "prefill needs {demand:.1f}",
}


@dataclass(frozen=True, slots=True)
class Demand:
    """The numbers behind the size that one scrape needs. `need`: the need by the rule of policy.py.

    `replicas`: the demand by `limit`, without headroom. `kept`: why the size is larger than that gives, or empty.
    """

    need: Need
    replicas: float = 0.0
    limit: str = "cache"
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Prompt tokens of the last ARRIVAL_SECONDS: (time, tokens since the scrape before). `counters`: each engine's
    counter at the last scrape, by uid."""

    recent: tuple[tuple[float, float], ...] = ()
    counters: Mapping[str, float] = field(default_factory=dict)

    def rate(self) -> float:
        """Tokens per second. In the first half of ARRIVAL_SECONDS, it is too low rather than too high."""
        passed = self.recent[-1][0] - self.recent[0][0] if self.recent else 0.0
        return sum(tokens for _, tokens in self.recent[1:]) / max(passed, ARRIVAL_SECONDS / 2)


@dataclass(frozen=True, slots=True)
class Starts:
    """`pending`: when each pod that does not answer yet was first seen, by uid. `seconds`: what the last start took."""

    pending: Mapping[str, float] = field(default_factory=dict)
    seconds: float = FIRST_START_SECONDS


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers."""

    sizes: Sizes[Demand]
    meter: Meter = field(default_factory=Meter)
    speed: Speed | None = None
    growth: Growth = field(default_factory=Growth)
    steering: Steering = field(default_factory=Steering)
    arrivals: Arrivals = field(default_factory=Arrivals)
    starts: Starts = field(default_factory=Starts)
    regret: Regret = field(default_factory=Regret)
    objective: Objective = field(default_factory=Objective)


def remember(
    history: History | None,
    sample: Sample,
    engines: tuple[EnginePod, ...],
    bounds: Bounds,
    last_wanted: int | None = None,
) -> History:
    """The history with one more scrape. Call it in the order of time. Else as in sizes.py."""
    need = policy.measure(sample, engines)
    if history is None:
        seconds = min(float(bounds.start_seconds), LONGEST_START_SECONDS) or FIRST_START_SECONDS
        begun = sizes.begin(Needed(sample.at, need.replicas, Demand(need)), engines, last_wanted)
        history = History(begun, starts=Starts(seconds=seconds))
    history = _counted(replace(history, objective=bounds.objective), sample, engines)
    if sample.engines and not answers.unread(sample, engines):
        history = _learned(history, sample, engines, need)
    needed = _needed(history, sample, need)
    before, after = history.sizes, sizes.add(history.sizes, needed, sample, engines, bounds.window)
    return replace(history, sizes=after, regret=regret.note(history.regret, before.size, after.size, sample.at))


def decide(history: History, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
    """The size between the bounds; the same history gives the same answer."""
    return sizes.decide(history.sizes, bounds, engines, lambda needed: _numbers(needed, history))


def _counted(history: History, sample: Sample, engines: tuple[EnginePod, ...]) -> History:
    """With what each single engine shows: its speed, the prompts that it computed, and how long its start took."""
    meter, measured = speed.observe(history.meter, sample), history.speed
    if meter.blocks != history.meter.blocks:
        measured = speed.measured(meter, _capacity(sample)) or measured
    counters = {load.uid: load.work.prefilled for load in sample.engines if load.work is not None}
    before = history.arrivals
    new = sum(max(0.0, count - before.counters.get(uid, count)) for uid, count in counters.items())
    recent = tuple(each for each in before.recent if sample.at - each[0] < ARRIVAL_SECONDS)
    return replace(
        history,
        meter=meter,
        speed=measured,
        arrivals=Arrivals((*recent, (sample.at, new)), counters),
        starts=_started(history.starts, engines, sample.at),
    )


def _started(starts: Starts, engines: tuple[EnginePod, ...], at: float) -> Starts:
    pending = {
        engine.uid: starts.pending.get(engine.uid, at) for engine in engines if not engine.ready and not engine.draining
    }
    took = [at - starts.pending[engine.uid] for engine in engines if engine.ready and engine.uid in starts.pending]
    return Starts(pending, min(max(took), LONGEST_START_SECONDS) if took else starts.seconds)


def _learned(history: History, sample: Sample, engines: tuple[EnginePod, ...], need: Need) -> History:
    """With what only a complete scrape teaches: how the demand grows, and how much prefill is too much.

    The first minutes teach nothing about growth, because the fleet may still be too small for the load that it finds.
    Waits while replicas start teach nothing about the share of prefill.
    """
    if history.speed is not None and need.running and not history.starts.pending:
        ready = sum(engine.ready and not engine.draining for engine in engines)
        rate = history.arrivals.rate()
        traffic = Traffic(
            queued=need.queued,
            arriving=rate / max(1.0, _context(sample, need)),
            prefilling=rate * history.speed.prefill / max(1, ready),
            ready=max(1, ready),
        )
        passed = max(0.0, sample.at - history.sizes.last.at)
        history = replace(history, steering=steering.steer(history.steering, traffic, passed, history.objective))
    if sample.at - history.sizes.began < ARRIVAL_SECONDS + history.starts.seconds:
        return history
    demand = max(_parts(history, sample).values())
    grown = growth.watch(history.growth, sample.at, demand, history.starts.seconds, _miss_share(history.objective))
    return replace(history, growth=grown)


def _miss_share(objective: Objective) -> float:
    """The share of starts during which the demand may grow by more than the headroom. Not all requests then miss."""
    return min(MOST_MISS_SHARE, STARTS_PER_MISS * objective.late_share)


def _needed(history: History, sample: Sample, need: Need) -> Needed[Demand]:
    parts = _parts(history, sample)
    limit = max(parts, key=lambda each: parts[each])
    target = growth.with_headroom(history.growth, parts[limit])
    if history.speed is not None:
        target += need.queued * _context(sample, need) * history.speed.prefill / CLEAR_SECONDS
    size = plain = math.ceil(target)
    if size < history.sizes.size:
        plain = min(history.sizes.size, math.ceil(target + _SLACK))
        size = min(history.sizes.size, regret.kept(history.regret, math.ceil(target + _SLACK), sample.at))
    kept = _REGRET if size > max(plain, need.replicas) else ""
    if size < history.sizes.size and _learning(history, sample, need):
        size, kept = history.sizes.size, _LEARNING
    return Needed(sample.at, min(max(size, need.replicas), LARGEST_NEED), Demand(need, parts[limit], limit, kept))


def _learning(history: History, sample: Sample, need: Need) -> bool:
    """Whether a busy fleet may be as large as it is for a reason that this policy has not had the time to see."""
    if history.speed is not None or sample.at - history.sizes.began >= LEARNING_SECONDS:
        return False
    # Requests may be shorter than the time between two scrapes.
    busy = need.running > 0 or history.arrivals.rate() > IDLE_TOKENS_PER_SECOND * len(sample.engines)
    return busy and any(load.work is not None for load in sample.engines)


def _parts(history: History, sample: Sample) -> dict[str, float]:
    """The demand by each limit, in replicas."""
    tokens, capacity = sum(load.tokens_used for load in sample.engines), _capacity(sample)
    parts = {"cache": tokens / (TOKEN_TARGET * capacity) if capacity else 0.0}
    if history.speed is not None:
        prefilling = history.arrivals.rate() * history.speed.prefill
        limit = DECODE_MARGIN * history.objective.output_token_seconds
        # An engine that misses the limit alone would need an infinite number of replicas.
        room = max(limit / 10, limit - history.speed.floor)
        parts["decode"] = (tokens * history.speed.cached + limit * prefilling) / room
        parts["prefill"] = prefilling / history.steering.share
    return parts


def _context(sample: Sample, need: Need) -> float:
    """The mean number of tokens of a running request; 0 if none runs."""
    return sum(load.tokens_used for load in sample.engines) / need.running if need.running else 0.0


def _capacity(sample: Sample) -> int:
    return min((load.tokens_capacity for load in sample.engines if load.tokens_capacity), default=0)


def _numbers(needed: Needed[Demand], history: History) -> str:
    demand, need = needed.numbers, needed.numbers.need
    load = f"{need.queued} queued + {need.running} running"
    if needed.size == need.replicas and demand.replicas < needed.size - 1:
        return f"{load}, slots and KV tokens need {needed.size}"
    milliseconds = DECODE_MARGIN * history.objective.time_per_output_token_milliseconds
    limit = _LIMITS[demand.limit].format(demand=demand.replicas, milliseconds=milliseconds)
    return f"{load}, {limit}, with headroom for a start of {history.starts.seconds:.0f} s{demand.kept}"
