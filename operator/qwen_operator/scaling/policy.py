"""The scaling policy: from measured load to a number of replicas. Pure, so that tests can replay a recorded history.

    history = None
    for sample, engines in recording:
        history = remember(history, sample, engines, bounds)
        print(decide(history, bounds, engines))

The need of one scrape is the total load divided by the capacity of one replica. Replicas that are still starting do
not change the need, so the policy never adds them twice. The size is the largest need of the window. It grows as soon
as a second scrape confirms the need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen_operator.scaling import sizes
from qwen_operator.scaling.sizes import LARGEST_NEED, Needed, Sizes
from qwen_operator.scaling.types import Bounds, EngineLoad, EnginePod, Sample, ScalingDecision

# Answers grow while a new replica starts, and a full KV cache makes SGLang send running requests back to the queue. The
# value comes from simulated replays of public traces with start times of three minutes.
TOKEN_TARGET = 0.6
# If slots are unknown, they are guessed from the running requests, which may be only the first batch of a burst. So
# such a guess may at most double the number of replicas.
GUESS_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Need:
    """The number of replicas that one scrape needs, and the numbers behind it.

    `slots`: requests that one replica runs at once; 0 if unknown. `observed`: no option sets the slots, they were
    measured. `tokens`: KV tokens of all requests. `room`: KV tokens that one replica takes. `by_tokens`: the tokens
    decided the need.
    """

    replicas: int
    queued: int = 0
    running: int = 0
    slots: int = 0
    observed: bool = False
    tokens: int = 0
    room: int = 0
    by_tokens: bool = False


History = Sizes[Need]
"""What the policy remembers."""


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
    bounds: Bounds,
    last_wanted: int | None = None,
) -> History:
    """The history with one more scrape. Call it in the order of time. Else as in sizes.py."""
    need = measure(sample, engines)
    needed = Needed(sample.at, need.replicas, need)
    return sizes.add(history or sizes.begin(needed, engines, last_wanted), needed, sample, engines, bounds.window)


def decide(history: History, bounds: Bounds, engines: tuple[EnginePod, ...]) -> ScalingDecision:
    """The size between the bounds; the same history gives the same answer."""
    return sizes.decide(history, bounds, engines, lambda needed: _numbers(needed.numbers))


def _tokens(loads: tuple[EngineLoad, ...], running: int, queued: int) -> int:
    """The tokens in use and, for each waiting request, the mean of a running request."""
    used = sum(load.tokens_used for load in loads)
    return used + (math.ceil(used / running * queued) if running else 0)


def _numbers(need: Need) -> str:
    requests = f"{need.queued} queued + {need.running} running"
    if need.by_tokens:
        return f"{requests} with {need.tokens} KV tokens, {need.room} per replica ({TOKEN_TARGET:.0%} of its cache)"
    if not need.slots:
        return requests
    slots = "ran at once per replica while others waited" if need.observed else "run at once per replica"
    return f"{requests}, {need.slots} {slots}"
