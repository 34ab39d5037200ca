"""From a situation to conditions and status. Pure.

Ready speaks of requests: it is true as long as one replica answers, also while more are started or replaced.
Reconciling and Stalled speak of the spec (kstatus): on the way, or in need of a person.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from qwen_operator.actions.events import stamp_of
from qwen_operator.actions.types import Blocked, Refusal, Target
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.spec import InvalidSpec, Spec
from qwen_operator.api.status import Failure, Observation, build
from qwen_operator.manifests.names import Manifest, engine_selector
from qwen_operator.replicas.draining import Orders
from qwen_operator.replicas.groups import Fleet, drains_since
from qwen_operator.replicas.pod_state import PodState, last_failure
from qwen_operator.replicas.waiting import on_the_way
from qwen_operator.replicas.wanted import Report
from qwen_operator.sources.inspection import PHASE

STALLED_AFTER_FAILURES = 3
_URGENT = (Reason.CLAIM_NOT_FOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED)


# How the API server says that a ResourceQuota is in the way.
_QUOTA_WORDS = ("exceeded quota", "failed quota")
_SHORT_OF_ROOM = (Reason.QUOTA_EXCEEDED, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_NODE)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the status is made of. Either `target` (the present spec's revision) or `blocked` is set.

    `running`: the target, or while there is none the revision that goes on instead. `fleet` are the engine pods that
    are ours, of any revision; `foreign` messages about objects under our names. `full`: which quota is in the way.
    `newer`: planned today, the same spec would run differently.
    """

    spec: Spec
    revision: str
    target: Target | None
    blocked: Blocked | None
    running: Target | None
    fleet: Fleet
    orders: Orders
    report: Report
    foreign: tuple[str, ...]
    lost_names: Mapping[str, str]
    refusal: Refusal | None
    full: str | None
    newer: bool

    @property
    def ready(self) -> list[PodState]:
        return [state for state in self.fleet.serving if state.ready]

    @property
    def answering(self) -> int:
        """Replicas that answer."""
        return self.fleet.answering(self.wanted)

    @property
    def current(self) -> list[PodState]:
        """The pods of the present spec's revision that are to serve."""
        return [state for state in self.fleet.serving if state.revision == self.revision]

    @property
    def outdated(self) -> bool:
        """Whether there are pods of another revision, be they on their way out."""
        return any(state.revision != self.revision for state in self.fleet.all)

    @property
    def wanted(self) -> int:
        return self.orders.wanted

    @property
    def unasked(self) -> bool:
        """Whether no client can ask for it: every name belongs to somebody else."""
        return all_lost(self.spec, self.lost_names)


def all_lost(spec: Spec, lost_names: Mapping[str, str]) -> bool:
    """Whether every name that clients would ask for belongs to an older QwenDeployment."""
    return bool(spec.names) and all(name in lost_names for name in spec.names)


def invalid_status(deployment: Manifest, error: InvalidSpec, fleet: Fleet, now: str) -> dict[str, Any]:
    """The status of an object whose spec cannot be read; its pods stay as they are."""
    message = str(error)
    kinds = (ConditionType.READY, ConditionType.PLANNED, ConditionType.MODEL_LOADED, ConditionType.SCALING_ACTIVE)
    verdicts = [Verdict(kind, False, Reason.INVALID_SPEC, message) for kind in kinds]
    verdicts.append(Verdict(ConditionType.STALLED, True, Reason.INVALID_SPEC, message))
    meta = deployment["metadata"]
    replicas = len(fleet.serving)
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=replicas,
        ready=sum(state.ready for state in fleet.serving),
        wanted=max(replicas, 1),
        selector=engine_selector(meta["name"]),
        names=(),
        verdicts=tuple(verdicts),
    )
    return build(observation, deployment.get("status") or {}, now)


def status(deployment: Manifest, situation: Situation, now: str) -> dict[str, Any]:
    """The complete status; `now` RFC 3339."""
    meta, old = deployment["metadata"], deployment.get("status") or {}
    target, blocked, running = situation.target, situation.blocked, situation.running
    facts = target.facts if target else blocked.facts if blocked else None
    failure = _reported_failure(situation, old)
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=situation.fleet.replicas(situation.wanted),
        ready=situation.answering,
        wanted=situation.wanted,
        selector=engine_selector(meta["name"]),
        names=tuple(name for name in situation.spec.names if name not in situation.lost_names),
        verdicts=_verdicts(meta, situation, failure),
        gpus=running.plan.gpus if running else "",
        model=None
        if facts is None
        else {
            "architecture": facts.architecture,
            "quantization": facts.quantization_name,
            "weightBytes": facts.weight_bytes,
            "factsFrom": facts.source,
            **({"commit": facts.commit} if facts.commit else {}),
        },
        plan=running.plan.status(running.revision) if running else None,
        no_fit=blocked.no_fit.status() if blocked and blocked.no_fit else None,
        last_failure=failure,
        scaling=situation.report.scaling,
        load=situation.report.load,
    )
    new = build(observation, old, now)
    return {**new, "summary": {**new["summary"], **_word(situation, str(new["summary"]["status"]))}}


def _word(situation: Situation, said: str) -> dict[str, str]:
    """A serving deployment that changes its size says so in the STATUS column; its conditions stay as they are."""
    if said not in (Reason.SERVING, Reason.SCALED):
        return {}
    coming = situation.answering < situation.wanted and not situation.outdated
    if said == Reason.SERVING and coming and all(state.ready or on_the_way(state) for state in situation.current):
        return {"status": str(Reason.SCALING_UP)}
    return {"status": str(Reason.DRAINING)} if situation.fleet.draining else {}


def _reported_failure(situation: Situation, old: Mapping[str, Any]) -> Failure | None:
    """The last failure of the present revision: of its inspection until it is pinned, of its engines after."""
    if situation.blocked is not None:
        return situation.blocked.failure
    record = old.get("lastFailure") or {}
    inspection = record.get("phase") == PHASE
    mine = f"-{situation.revision}-" in str(record.get("pod", "")) and not inspection
    pods = (*situation.fleet.serving, *situation.fleet.gone, *situation.fleet.ended)
    return last_failure(record if mine else {}, [pod for pod in pods if pod.revision == situation.revision])


def _verdicts(meta: Manifest, situation: Situation, failure: Failure | None) -> tuple[Verdict, ...]:
    reason, message = _trouble(situation)
    ready = _ready(situation, reason, message)
    loaded = bool(situation.ready)
    if situation.wanted == 0 and situation.blocked is None:
        reason, message = Reason.SCALED, ready.message
    verdicts = [
        ready,
        _planned(meta, situation),
        Verdict(ConditionType.MODEL_LOADED, True, Reason.LOADED, "at least one replica has the model in memory")
        if loaded
        else Verdict(ConditionType.MODEL_LOADED, False, reason, message),
        *_scaling(situation, reason, message),
    ]
    stalled = _stalled(situation, reason, message, failure)
    if stalled is not None:
        verdicts.append(stalled)
    elif _reconciling(situation):
        rollout = bool(situation.ready) and reason is Reason.SERVING
        word, text = (
            (Reason.REPLACING, "pods of an earlier revision are being replaced") if rollout else (reason, message)
        )
        verdicts.append(Verdict(ConditionType.RECONCILING, True, word, text))
    if (degraded := _degraded(situation, message)) is not None:
        verdicts.append(degraded)
    return tuple(verdicts)


def _scaling(situation: Situation, reason: Reason, message: str) -> tuple[Verdict, ...]:
    """What the report says; but a size that the cluster has no room for is limited by that."""
    active, limited = situation.report.verdicts
    short = situation.answering < situation.wanted or situation.full is not None
    if situation.ready and reason in _SHORT_OF_ROOM and short:
        limited = Verdict(ConditionType.SCALING_LIMITED, True, reason, message)
    return active, limited


def _trouble(situation: Situation) -> tuple[Reason, str]:
    """Why the present spec is not wholly done; SERVING when it is."""
    if situation.blocked is not None:
        return situation.blocked.reason, situation.blocked.message
    if (obstacle := _obstacle(situation)) is not None:
        return obstacle
    waiting = [state for state in situation.current if not state.ready]
    # A failure says more than a pod that is merely on its way.
    waiting.sort(key=lambda state: (on_the_way(state), state.reason not in _URGENT, state.index or 0))
    if waiting:
        return waiting[0].reason, waiting[0].message
    missing = situation.wanted - sum(state.ready for state in situation.current)
    if missing > 0:
        return Reason.STARTING, _missing(situation, missing)
    return Reason.SERVING, "every replica answers"


def _obstacle(situation: Situation) -> tuple[Reason, str] | None:
    """What keeps an object of ours from being made."""
    if situation.full is not None:
        return Reason.QUOTA_EXCEEDED, situation.full
    if situation.refusal is not None:
        return _refused(situation.refusal)
    return (Reason.FOREIGN_OBJECT, situation.foreign[0]) if situation.foreign else None


def _missing(situation: Situation, number: int) -> str:
    lost = [state for state in situation.fleet.gone if state.reason is Reason.NODE_LOST]
    cause = f"; {lost[0].message}" if lost else ""
    return f"{number} of {situation.wanted} replicas are being created{cause}"


def _refused(refusal: Refusal) -> tuple[Reason, str]:
    what = "to delete the" if refusal.deletion else "the"
    text = f"the API server refuses {what} {refusal.kind} {refusal.name}: {refusal.message}"
    if any(words in refusal.message for words in _QUOTA_WORDS):
        return Reason.QUOTA_EXCEEDED, f"{text}; it is tried again"
    return Reason.POD_REFUSED, text


def _ready(situation: Situation, reason: Reason, message: str) -> Verdict:
    lost, ready = situation.lost_names, situation.answering
    if situation.unasked and situation.blocked is None:
        return Verdict(ConditionType.READY, False, Reason.NAME_CONFLICT, _lost_message(lost))
    if ready and situation.wanted:
        text = f"{ready} of {situation.wanted} replicas answer"
        if reason is not Reason.SERVING:
            text = f"{text}; {message}"
        if lost:
            text = f"{text}; {_lost_message(lost)}"
        return Verdict(ConditionType.READY, True, Reason.SERVING, f"{text}{_leaving(situation)}")
    if situation.wanted == 0 and situation.blocked is None:
        return Verdict(ConditionType.READY, False, Reason.SCALED, f"spec.replicas is 0{_leaving(situation)}")
    return Verdict(ConditionType.READY, False, reason, message)


def _leaving(situation: Situation) -> str:
    """Who drains, and until when at the latest: times of the decision, which do not move."""
    draining, now = situation.fleet.draining, situation.orders.now
    times = sorted((then, state.name) for state in draining if (then := drains_since(state, now)) is not None)
    if not times:
        return ""
    first, name = times[0]
    until = stamp_of(first + timedelta(seconds=situation.orders.drain_limit))
    if len(draining) == 1:
        return f"; {name} gets no new requests and goes when it is idle, at the latest {until}"
    return (
        f"; {name} and {len(draining) - 1} more get no new requests and go when they are idle, the first until {until}"
    )


def _lost_message(lost: Mapping[str, str]) -> str:
    claims = "; ".join(f'"{name}" belongs to {winner}' for name, winner in sorted(lost.items()))
    return f"{claims}, which claims it for longer: set other spec.servedNames here or there"


def _planned(meta: Manifest, situation: Situation) -> Verdict:
    if situation.target is None:
        assert situation.blocked is not None
        blocked = situation.blocked
        return Verdict(ConditionType.PLANNED, False, blocked.reason, blocked.message)
    parts = [situation.target.plan.message, *situation.target.plan.warnings]
    if situation.newer:
        parts.append(
            "a newer plan is available: kubectl annotate --overwrite qwendeployment "
            f"-n {meta['namespace']} {meta['name']} qwen-operator.dev/replan=$(date +%s)"
        )
    return Verdict(ConditionType.PLANNED, True, Reason.FITS, "; ".join(part for part in parts if part))


def _stalled(situation: Situation, reason: Reason, message: str, failure: Failure | None) -> Verdict | None:
    blocked = situation.blocked
    if blocked is not None:
        return None if blocked.waiting else Verdict(ConditionType.STALLED, True, reason, message)
    if situation.unasked:
        return Verdict(ConditionType.STALLED, True, Reason.NAME_CONFLICT, _lost_message(situation.lost_names))
    if reason is Reason.QUOTA_EXCEEDED:
        return None
    if situation.refusal is not None or (situation.foreign and not situation.ready):
        return Verdict(ConditionType.STALLED, True, reason, message)
    failing = failure is not None and failure.reason is reason and failure.count >= STALLED_AFTER_FAILURES
    if failing and failure is not None:
        text = f"{failure.count} identical failures; {message}"
        return Verdict(ConditionType.STALLED, True, reason, text)
    looping = any(state.crash_looping and state.reason is reason for state in situation.current)
    return Verdict(ConditionType.STALLED, True, reason, message) if looping else None


def _reconciling(situation: Situation) -> bool:
    """Scaling up what already serves is no rollout: then only Ready's message tells."""
    if situation.blocked is not None:
        return True
    if situation.wanted == 0:
        return bool(situation.fleet.all)
    return situation.outdated or not any(state.ready for state in situation.current)


def _degraded(situation: Situation, message: str) -> Verdict | None:
    lost = situation.lost_names
    if lost and not situation.unasked:
        return Verdict(ConditionType.DEGRADED, True, Reason.NAME_CONFLICT, _lost_message(lost))
    if not situation.ready or not situation.wanted:
        return None
    if situation.foreign:
        return Verdict(ConditionType.DEGRADED, True, Reason.FOREIGN_OBJECT, situation.foreign[0])
    broken = [state for state in situation.current if not state.ready and not on_the_way(state)]
    return Verdict(ConditionType.DEGRADED, True, Reason.REPLICA_LOST, message) if broken else None
