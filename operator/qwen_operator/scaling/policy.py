"""The rule: load seen -> number of replicas. Pure, so that a recorded history can be replayed through it.

    history = None
    for sample, engines in recording:
        history = remember(history, sample, engines)
        print(decide(history, bounds, engines))

The size that one look calls for is the total load over what one replica takes, so replicas that are still starting
are counted by themselves: they change nothing about what is needed. The size is the largest need of the window;
growing needs no waiting but for a second look.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.types import Bounds, EngineLoad, EnginePod, Sample

# Running requests keep growing by their answers while a new replica starts, and SGLang takes requests back to the
# queue when the KV cache is full. Simulated replays of public traces, with starts of three minutes, put it at 0.6.
TOKEN_TARGET = 0.6
# What any engine ran while a request waited may be the first batch of a burst: such a guess at most doubles
# the number of replicas.
GUESS_FACTOR = 2
# Above any maxReplicas; keeps the history short when thousands of requests wait.
LARGEST_NEED = 100
# For so long after the operator's start nothing goes, even with a window of 0: the first looks may be incomplete.
SETTLE_SECONDS = 10.0

_BLIND = {
    Reason.METRICS_UNAUTHORIZED: "refuse /metrics (HTTP 401 or 403)",
    Reason.METRICS_INVALID: "answer /metrics without the load of this model",
    Reason.METRICS_FROZEN: "answer /metrics with numbers that stand still: the scheduler hangs",
    Reason.METRICS_MISSING: "do not answer /metrics on port 8000",
}


@dataclass(frozen=True, slots=True)
class Need:
    """The size that one look calls for, and the numbers behind it. `held`: the load could not be read in full.

    `slots`: requests that one replica runs at once, 0 where unknown; `observed`: no option says so, it was seen.
    `tokens` are those wanted in all, `room` those that one replica takes; `by_tokens`: they decided.
    """

    at: float
    replicas: int
    queued: int = 0
    running: int = 0
    slots: int = 0
    observed: bool = False
    tokens: int = 0
    room: int = 0
    by_tokens: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What the rule remembers, of any length of time in at most LARGEST_NEED entries.

    `peaks`: needs of the window, from the oldest, each larger than all later ones. `floor`: replicas that existed or
    were wanted at the first look, until a window has passed. `size`: the size at the last look, before the bounds.
    """

    began: float
    floor: int
    size: int
    last: Need
    peaks: tuple[Need, ...]
    problems: tuple[tuple[Reason, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many replicas, and why; `active` False: the number is held because the load is not known."""

    replicas: int
    reason: Reason
    message: str
    active: bool = True


def measure(sample: Sample, engines: tuple[EnginePod, ...]) -> Need:
    """The size that this look calls for, from the engines that could be read; draining ones count, since their
    requests are load like any other. With R requests running and Q waiting in all,

        replicas = max(ceil((R + Q) / slots), min(ceil(tokens / (TOKEN_TARGET * capacity)), R + Q))

    slots is --max-running-requests or, where that is not set, the most that any engine runs while a request waits
    (and then at most GUESS_FACTOR times the replicas that answer are called for); tokens are those in use and, for
    each waiting request, as many as the mean of a running one.
    """
    loads = sample.engines
    running, queued = sum(load.running for load in loads), sum(load.queued for load in loads)
    slots = max((engine.limit for engine in engines), default=0)
    observed = not slots and queued > 0
    if observed:
        slots = max(load.running for load in loads)
    by_requests = math.ceil((running + queued) / slots) if slots else min(1, running + queued)
    if observed:
        number = sum(engine.ready and not engine.draining for engine in engines)
        by_requests = min(by_requests, max(1, GUESS_FACTOR * number))
    room = int(TOKEN_TARGET * min((load.tokens_capacity for load in loads if load.tokens_capacity), default=0))
    tokens = _tokens(loads, running, queued)
    by_tokens = min(math.ceil(tokens / room), running + queued) if room else 0
    return Need(
        at=sample.at,
        replicas=min(max(by_requests, by_tokens), LARGEST_NEED),
        queued=queued,
        running=running,
        slots=slots,
        observed=observed,
        tokens=tokens,
        room=room,
        by_tokens=by_tokens > by_requests,
    )


def remember(
    history: History | None,
    sample: Sample,
    engines: tuple[EnginePod, ...],
    window: float,
    known: int | None = None,
) -> History:
    """The history with one more look, in the order of time; `window` in seconds.

    `known` is the size that was wanted before the first look, None where nobody said one: then it is the number of
    replicas that exist. That number is another one while a pod is started beside the one that it will replace.

    A need counts once a second look confirms it, so that a request that waits for the next batch starts no replica.
    An engine that cannot be read counts as busy: as a whole replica's load, and nothing shrinks until it is read.
    """
    seen = {load.uid for load in sample.engines}
    unread = [engine for engine in engines if engine.ready and not engine.draining and engine.uid not in seen]
    need = measure(sample, engines)
    if history is None:
        exist = existing(engines) if known is None else known
        # The first look starts nothing: there is no second one that confirms it.
        history = History(sample.at, exist, exist, replace(need, replicas=min(need.replicas, exist)), ())
    confirmed = replace(min(history.last, need, key=lambda one: one.replicas), at=sample.at)
    if unread or not sample.engines:
        overdue = sum(engine.pod in sample.problems for engine in unread)
        size = max(history.size, confirmed.replicas + overdue)
        confirmed = replace(confirmed, replicas=size, held=True)
    peaks = tuple(peak for peak in history.peaks if sample.at - peak.at < window and peak.replicas > confirmed.replicas)
    peaks = (*peaks, confirmed)
    young = sample.at - history.began < max(window, SETTLE_SECONDS)
    return replace(
        history,
        floor=history.floor if young else 0,
        size=max(peaks[0].replicas, history.floor if young else 0),
        last=need,
        peaks=peaks,
        problems=tuple(sorted(Counter(sample.problems.values()).items(), key=lambda item: (-item[1], item[0]))),
    )


def existing(engines: tuple[EnginePod, ...]) -> int:
    """Replicas that are not draining. Two pods of one index, of an older and a newer revision, are one replica."""
    return len({engine.index for engine in engines if not engine.draining})


def decide(history: History, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
    """The size between the bounds; the same history gives the same answer."""
    wanted = min(max(history.size, bounds.least), bounds.most)
    answering = [engine for engine in engines if engine.ready and not engine.draining]
    ready = len({engine.index for engine in answering})
    if history.problems:
        return ScalingDecision(wanted, history.problems[0][0], _blind(history, len(answering), wanted), active=False)
    if not ready:
        message = f"no replica answers yet, so there is no load to go by: {_replicas(wanted)} until then"
        return ScalingDecision(wanted, Reason.NOTHING_TO_MEASURE, message, active=False)
    if history.size > bounds.most:
        reason = Reason.AT_MAXIMUM
    elif ready < wanted:
        reason = Reason.SCALING_UP
    else:
        # What goes because of its node is no change of size.
        staying = existing(tuple(engine for engine in engines if not engine.cordoned))
        reason = Reason.SCALING_DOWN if staying > wanted else Reason.STEADY
    return ScalingDecision(wanted, reason, _explained(history, bounds, wanted))


def _tokens(loads: tuple[EngineLoad, ...], running: int, queued: int) -> int:
    """Tokens in use, and the mean of a running request for each that waits."""
    used = sum(load.tokens_used for load in loads)
    return used + (math.ceil(used / running * queued) if running else 0)


def _blind(history: History, answering: int, wanted: int) -> str:
    reason, count = history.problems[0]
    others = sum(number for _, number in history.problems[1:])
    more = f", {others} more cannot be read either" if others else ""
    return (
        f"{count} of {answering} engine pods {_BLIND[reason]}{more}; they count as busy and nothing is scaled down: "
        f"{_replicas(wanted)}"
    )


def _explained(history: History, bounds: Bounds, wanted: int) -> str:
    peak, needed = history.peaks[0], _replicas(history.size)
    patience = f"none goes before the load was seen for {max(bounds.window, SETTLE_SECONDS):.0f} s"
    if history.size > peak.replicas:
        said = f"{needed} at the first look; {patience}"
    elif peak.held:
        said = f"{needed} held while the load was not known; {patience}"
    else:
        past = f", the most within {bounds.window:.0f} s" if peak is not history.peaks[-1] else ""
        said = f"{_numbers(peak)}: {needed} {'wanted' if wanted == history.size else 'needed'}{past}"
    if wanted == history.size:
        return said
    return (
        f"{said}, minReplicas is {bounds.least}" if wanted > history.size else f"{said}, maxReplicas is {bounds.most}"
    )


def _numbers(need: Need) -> str:
    requests = f"{need.queued} queued + {need.running} running"
    if need.by_tokens:
        return f"{requests} with {need.tokens} KV tokens, {need.room} per replica ({TOKEN_TARGET:.0%} of its cache)"
    if not need.slots:
        return requests
    how = "ran at once per replica while others waited" if need.observed else "run at once per replica"
    return f"{requests}, {need.slots} {how}"


def _replicas(number: int) -> str:
    return f"{number} replica" if number == 1 else f"{number} replicas"
