"""What all policies share: which engines count, and how a size becomes a decision. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.types import Bounds, EnginePod, Sample, ScalingDecision

Problems = tuple[tuple[Reason, int], ...]
"""Why engines cannot be read, and how many: the most frequent reason first."""

_BLIND = {
    Reason.METRICS_UNAUTHORIZED: "reject requests for /metrics (HTTP 401 or 403)",
    Reason.METRICS_INVALID: "answer /metrics without the load of this model",
    Reason.METRICS_FROZEN: "answer /metrics with numbers that do not change, because the scheduler hangs",
    Reason.METRICS_MISSING: "do not answer /metrics on port 8000",
}


def existing(engines: tuple[EnginePod, ...]) -> int:
    """The number of replicas that are not draining. Pods of two revisions with the same index count as one replica."""
    return len({engine.index for engine in engines if not engine.draining})


def unread(sample: Sample, engines: tuple[EnginePod, ...]) -> list[EnginePod]:
    """The engines that take requests and that this scrape could not read."""
    seen = {load.uid for load in sample.engines}
    return [engine for engine in engines if engine.ready and not engine.draining and engine.uid not in seen]


def totals(sample: Sample) -> dict[str, tuple[float, float]]:
    """The prompt tokens computed and the tokens decoded since its start, of each engine by uid."""
    return {load.uid: (load.work.prefilled, load.work.decoded) for load in sample.engines if load.work is not None}


def worked(sample: Sample, now: Mapping[str, tuple[float, float]], before: Mapping[str, tuple[float, float]]) -> bool:
    """Whether an engine has a request, or had one since the look `before`, at which it may not have been there."""
    return any(load.requests for load in sample.engines) or any(before.get(uid) != done for uid, done in now.items())


def problems_of(sample: Sample) -> Problems:
    return tuple(sorted(Counter(sample.problems.values()).items(), key=lambda item: (-item[1], item[0])))


def decided(
    size: int, problems: Problems, bounds: Bounds, engines: tuple[EnginePod, ...], explained: Callable[[int], str]
) -> ScalingDecision:
    """The size between the bounds, and why. `explained` returns the message for a size that the load decides."""
    wanted = min(max(size, bounds.least), bounds.most)
    answering = [engine for engine in engines if engine.ready and not engine.draining]
    ready = len({engine.index for engine in answering})
    if problems:
        return ScalingDecision(wanted, problems[0][0], _blind(problems, len(answering), wanted), active=False)
    if not ready:
        message = f"no replica answers yet, so there is no load to measure: {replicas(wanted)} until then"
        return ScalingDecision(wanted, Reason.NOTHING_TO_MEASURE, message, active=False)
    if size > bounds.most:
        reason = Reason.AT_MAXIMUM
    elif ready < wanted:
        reason = Reason.SCALING_UP
    else:
        # A replica that leaves because of its node is not a change of the size.
        staying = existing(tuple(engine for engine in engines if not engine.cordoned))
        reason = Reason.SCALING_DOWN if staying > wanted else Reason.STEADY
    return ScalingDecision(wanted, reason, explained(wanted))


def bounded(text: str, size: int, wanted: int, bounds: Bounds) -> str:
    """The text, with the bound that changed the size."""
    if wanted == size:
        return text
    return f"{text}, minReplicas is {bounds.least}" if wanted > size else f"{text}, maxReplicas is {bounds.most}"


def replicas(number: int) -> str:
    return f"{number} replica" if number == 1 else f"{number} replicas"


def _blind(problems: Problems, answering: int, wanted: int) -> str:
    reason, count = problems[0]
    others = sum(number for _, number in problems[1:])
    more = f", {others} more cannot be read either" if others else ""
    return (
        f"{count} of {answering} engine pods {_BLIND[reason]}{more}; they count as busy, and the operator does not "
        f"scale down: {replicas(wanted)}"
    )
