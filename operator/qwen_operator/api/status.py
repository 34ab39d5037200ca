"""The status as users read it. Each time it is built completely, from one frozen input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.api.conditions import ConditionType, Reason, Verdict, clip, set_conditions
from qwen_operator.api.status_size import shortened
from qwen_operator.objects import mapping, members
from qwen_operator.untrusted import clean

_LOG_LINES = 10
_LOG_LINE = 200
_WORD = 63
_STEPS = 64


@dataclass(frozen=True, slots=True)
class Failure:
    """The last unexpected end of an engine container. `time` is RFC 3339; `count` is how often in a row it had this
    reason."""

    reason: Reason
    phase: str
    pod: str
    exit_code: int
    time: str
    count: int
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """How many replicas are wanted, and why. `message` has the numbers at the time of the decision.

    `advised`: how many the load would give, while something else decides. `hour_percent`, `day_percent`: at least so
    many of 100 requests kept the objective. `schedules`: the names of the schedules in force.
    `granted`: for how many the GPUs suffice, if other deployments have the rest.
    """

    wanted: int
    reason: Reason
    message: str
    advised: int | None = None
    hour_percent: int | None = None
    day_percent: int | None = None
    schedules: tuple[str, ...] = ()
    granted: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a status is made of.

    `model`, `plan`, `no_fit`, `observed`, `progress` and `adapters` already have their status form, or are None.

    `verdicts` has at least one entry for each of Ready, Planned, ModelLoaded and ScalingActive. `replicas` is the
    number of replicas that exist and are not draining, `ready` of those that answer, `wanted` of those that should
    exist. `gpus` is the short form of the plan's GPUs ("4xH100-80GB") or "", `names` are the served names,
    `claims` is `status.names`, `load` is the class of the load, `cache` is the column CACHE.
    """

    generation: int
    replicas: int
    ready: int
    wanted: int
    selector: str
    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    claims: Mapping[str, Any] = field(default_factory=dict)
    gpus: str = ""
    model: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    no_fit: Mapping[str, Any] | None = None
    last_failure: Failure | None = None
    scaling: ScalingReport | None = None
    load: str = "-"
    observed: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None
    cache: str = ""
    adapters: Mapping[str, Any] | None = None


def build(observation: Observation, old: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The complete new status. `old` is the present status (for transition times), `now` is RFC 3339.

    `status_size` shortens it where it is too large.
    """
    optional = {
        "model": observation.model,
        "plan": _with_few_steps(observation.plan),
        "observed": observation.observed,
        "noFit": _with_few_steps(observation.no_fit),
        "lastFailure": _failure(observation.last_failure),
        "scaling": _scaling(observation, mapping(old, "scaling"), now),
        "progress": observation.progress,
        "adapters": observation.adapters,
    }
    status = {
        "observedGeneration": observation.generation,
        "replicas": observation.replicas,
        "readyReplicas": observation.ready,
        "selector": observation.selector,
        "endpoint": {"names": list(observation.names)},
        **({"names": dict(observation.claims)} if observation.claims else {}),
        **{key: dict(value) for key, value in optional.items() if value},
        "conditions": set_conditions(members(old, "conditions"), observation.verdicts, observation.generation, now),
        "summary": summary(observation),
    }
    return shortened(status)


def summary(observation: Observation) -> dict[str, str]:
    """The line of `kubectl get`: GPUs per replica, ready/wanted, one word, the class of the load, one sentence.

    The word is the reason of Ready. While the deployment is stalled and not ready, it is the reason of Stalled.
    """
    ready = next(verdict for verdict in observation.verdicts if verdict.type == ConditionType.READY)
    stalled = [verdict for verdict in observation.verdicts if verdict.type == ConditionType.STALLED and verdict.status]
    shown = stalled[0] if stalled and ready.status is not True else ready
    return {
        "gpus": observation.gpus or "-",
        "ready": f"{observation.ready}/{observation.wanted}",
        "status": str(shown.reason),
        "load": observation.load,
        **({"cache": observation.cache} if observation.cache else {}),
        "message": clip(shown.message),
    }


def _scaling(observation: Observation, old: Mapping[str, Any], now: str) -> dict[str, Any] | None:
    """`status.scaling`. `since` is when the number or the reason last changed."""
    report = observation.scaling
    if report is None:
        return None
    decision = {"wanted": report.wanted, "reason": str(report.reason)}
    attained = {"hour": report.hour_percent, "day": report.day_percent}
    percent = {window: number for window, number in attained.items() if number is not None}
    same = all(old.get(key) == value for key, value in decision.items())
    since = old.get("since") if same else None
    return {
        **decision,
        "ready": observation.ready,
        "message": clip(report.message),
        "since": since or now,
        **({} if report.advised is None else {"advised": report.advised}),
        **({"attainmentPercent": percent} if percent else {}),
        **({} if report.granted is None else {"granted": report.granted}),
        **({"schedules": list(report.schedules)} if report.schedules else {}),
    }


def _with_few_steps(part: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return {**part, "steps": part["steps"][:_STEPS]} if part and "steps" in part else part


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "reason": str(failure.reason),
        "phase": clean(failure.phase, _WORD),
        "pod": failure.pod,
        "exitCode": failure.exit_code,
        "time": clean(failure.time, _WORD),
        "count": failure.count,
        "log": [clean(line, _LOG_LINE) for line in failure.log[-_LOG_LINES:]],
    }
