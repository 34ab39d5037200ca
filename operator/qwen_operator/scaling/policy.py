"""The scaling policy: from measured load to a number of replicas. Pure, so that tests can replay a recorded history.

    history = None
    for sample, engines in recording:
        history = remember(history, sample, engines)
        print(decide(history, bounds, engines))

The need of one scrape is the total load divided by the capacity of one replica. Replicas that are still starting do
not change the need, so the policy never adds them twice. The size is the largest need of the window. It grows as soon
as a second scrape confirms the need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qwen_operator.scaling import answers
from qwen_operator.scaling.answers import SETTLE_SECONDS, Problems, existing
from qwen_operator.scaling.types import Bounds, EngineLoad, EnginePod, Sample, ScalingDecision

# Answers grow while a new replica starts, and a full KV cache makes SGLang send running requests back to the queue. The
# value comes from simulated replays of public traces with start times of three minutes.
TOKEN_TARGET = 0.6
# If slots are unknown, they are guessed from the running requests, which may be only the first batch of a burst. So
# such a guess may at most double the number of replicas.
GUESS_FACTOR = 2
# Above any maxReplicas. It keeps the history short when thousands of requests wait.
LARGEST_NEED = 100


@dataclass(frozen=True, slots=True)
class Need:
    """The number of replicas that one scrape needs, and the numbers behind it.

    `slots`: requests that one replica runs at once; 0 if unknown. `observed`: no option sets the slots, they were
    measured. `tokens`: KV tokens of all requests. `room`: KV tokens that one replica takes. `by_tokens`: the tokens
    decided the need. `incomplete`: part of the load was unreadable.
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
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers: at most LARGEST_NEED entries for a window of any length.

    `peaks`: needs of the window, the oldest first, each larger than all later ones. `floor`: the replicas that existed
    or were wanted at the first scrape; 0 after one window. `size`: the size at the last scrape, before the bounds.
    """

    began: float
    floor: int
    size: int
    last: Need
    peaks: tuple[Need, ...]
    problems: Problems = ()


def measure(sample: Sample, engines: tuple[EnginePod, ...]) -> Need:
    """The need of this scrape, from all readable engines.

    Draining engines count too, because their requests are load like any other. With R running and Q waiting requests:

        replicas = max(ceil((R + Q) / slots), min(ceil(tokens / (TOKEN_TARGET * capacity)), R + Q))

    slots is --max-running-requests. If that is not set, slots is the largest number of requests that any engine runs
    while a request waits, and the need is at most GUESS_FACTOR times the replicas that answer. tokens are the tokens in
    use and, for each waiting request, the mean of a running request.
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
    last_wanted: int | None = None,
) -> History:
    """The history with one more scrape. Call it in the order of time; `window` is in seconds.

    `last_wanted` is the size that was wanted before the first scrape. If it is None, the number of existing replicas
    counts. That number is too large while a successor starts beside a replica.

    A need counts only if a second scrape confirms it. So a request that waits for the next batch starts no replica.
    An unreadable engine counts as one fully loaded replica, and the size does not shrink until it is readable.
    """
    missing = answers.unread(sample, engines)
    need = measure(sample, engines)
    if history is None:
        size = existing(engines) if last_wanted is None else last_wanted
        # The first scrape adds no replica, because no second scrape confirms it yet.
        history = History(sample.at, size, size, replace(need, replicas=min(need.replicas, size)), ())
    confirmed = replace(min(history.last, need, key=lambda each: each.replicas), at=sample.at)
    if missing or not sample.engines:
        overdue = sum(engine.pod in sample.problems for engine in missing)
        size = max(history.size, confirmed.replicas + overdue)
        confirmed = replace(confirmed, replicas=size, incomplete=True)
    peaks = tuple(peak for peak in history.peaks if sample.at - peak.at < window and peak.replicas > confirmed.replicas)
    peaks = (*peaks, confirmed)
    young = sample.at - history.began < max(window, SETTLE_SECONDS)
    return replace(
        history,
        floor=history.floor if young else 0,
        size=max(peaks[0].replicas, history.floor if young else 0),
        last=need,
        peaks=peaks,
        problems=answers.problems_of(sample),
    )


def decide(history: History, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
    """The size between the bounds; the same history gives the same answer."""
    return answers.decided(
        history.size, history.problems, bounds, engines, lambda wanted: _explained(history, bounds, wanted)
    )


def _tokens(loads: tuple[EngineLoad, ...], running: int, queued: int) -> int:
    """The tokens in use and, for each waiting request, the mean of a running request."""
    used = sum(load.tokens_used for load in loads)
    return used + (math.ceil(used / running * queued) if running else 0)


def _explained(history: History, bounds: Bounds, wanted: int) -> str:
    peak, needed = history.peaks[0], answers.replicas(history.size)
    seconds = max(bounds.window, SETTLE_SECONDS)
    patience = f"the operator removes none until it has measured the load for {seconds:.0f} s"
    if history.size > peak.replicas:
        text = f"{needed} at the first scrape; {patience}"
    elif peak.incomplete:
        text = f"{needed} kept while the load was unknown; {patience}"
    else:
        past = f", the most within {bounds.window:.0f} s" if peak is not history.peaks[-1] else ""
        text = f"{_numbers(peak)}: {needed} {'wanted' if wanted == history.size else 'needed'}{past}"
    return answers.bounded(text, history.size, wanted, bounds)


def _numbers(need: Need) -> str:
    requests = f"{need.queued} queued + {need.running} running"
    if need.by_tokens:
        return f"{requests} with {need.tokens} KV tokens, {need.room} per replica ({TOKEN_TARGET:.0%} of its cache)"
    if not need.slots:
        return requests
    slots = "ran at once per replica while others waited" if need.observed else "run at once per replica"
    return f"{requests}, {need.slots} {slots}"
