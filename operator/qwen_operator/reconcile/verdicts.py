"""From a situation to conditions and status. Pure.

Ready speaks of requests: it is true as long as one replica answers, also while more are started or replaced.
Reconciling and Stalled speak of the spec (kstatus): on the way, or in need of a person.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.events import Event
from qwen_operator.api.spec import InvalidSpec, Spec
from qwen_operator.api.status import Failure, Observation, build
from qwen_operator.manifests.names import Manifest, engine_selector
from qwen_operator.reconcile.inspection import PHASE
from qwen_operator.reconcile.model import Blocked, Refusal, Target
from qwen_operator.reconcile.podstate import PodState, last_failure

STALLED_AFTER_FAILURES = 3
_URGENT = (Reason.CLAIM_NOT_FOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the status is made of. Either `target` (the present spec's revision) or `blocked` is set.

    `running`: the target, or while there is none the revision that goes on instead. `states` are the engine pods that
    are ours, of any revision; `foreign` messages about objects under our names.
    `newer`: planned today, the same spec would run differently.
    """

    spec: Spec
    revision: str
    target: Target | None
    blocked: Blocked | None
    running: Target | None
    states: tuple[PodState, ...]
    foreign: tuple[str, ...]
    lost_names: Mapping[str, str]
    refusal: Refusal | None
    newer: bool

    @property
    def ready(self) -> list[PodState]:
        return [state for state in self.states if state.ready]

    @property
    def replicas(self) -> int:
        """Replicas that exist: a pod that is started beside the one it will replace is not another one."""
        return len({state.index for state in self.states if not state.deleting and not state.ended})

    @property
    def answering(self) -> int:
        """Replicas that answer."""
        return len({state.index for state in self.ready})

    @property
    def current(self) -> list[PodState]:
        return [state for state in self.states if state.revision == self.revision]

    @property
    def wanted(self) -> int:
        return self.spec.wanted_replicas

    @property
    def unasked(self) -> bool:
        """Whether no client can ask for it: every name belongs to somebody else."""
        return all_lost(self.spec, self.lost_names)


def all_lost(spec: Spec, lost_names: Mapping[str, str]) -> bool:
    """Whether every name that clients would ask for belongs to an older QwenDeployment."""
    return bool(spec.names) and all(name in lost_names for name in spec.names)


def invalid_status(deployment: Manifest, error: InvalidSpec, replicas: int, ready: int, now: str) -> dict[str, Any]:
    """The status of an object whose spec cannot be read; its pods stay as they are."""
    message = str(error)
    kinds = (ConditionType.READY, ConditionType.PLANNED, ConditionType.MODEL_LOADED)
    verdicts = [Verdict(kind, False, Reason.INVALID_SPEC, message) for kind in kinds]
    verdicts.append(Verdict(ConditionType.STALLED, True, Reason.INVALID_SPEC, message))
    meta = deployment["metadata"]
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=replicas,
        ready=ready,
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
        replicas=situation.replicas,
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
        },
        plan=running.plan.status(running.revision) if running else None,
        no_fit=blocked.no_fit.status() if blocked and blocked.no_fit else None,
        last_failure=failure,
    )
    return build(observation, old, now)


def _reported_failure(situation: Situation, old: Mapping[str, Any]) -> Failure | None:
    """The last failure of the present revision: of its inspection until it is pinned, of its engines after."""
    if situation.blocked is not None:
        return situation.blocked.failure
    record = old.get("lastFailure") or {}
    inspection = record.get("phase") == PHASE
    mine = f"-{situation.revision}-" in str(record.get("pod", "")) and not inspection
    return last_failure(record if mine else {}, situation.current)


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


def _trouble(situation: Situation) -> tuple[Reason, str]:
    """Why the present spec is not wholly done; SERVING when it is."""
    if situation.blocked is not None:
        return situation.blocked.reason, situation.blocked.message
    if situation.refusal is not None:
        refusal = situation.refusal
        return Reason.POD_REFUSED, f"the API server refuses the {refusal.kind} {refusal.name}: {refusal.message}"
    if situation.foreign:
        return Reason.FOREIGN_OBJECT, situation.foreign[0]
    waiting = [state for state in situation.current if not state.ready and (state.index or 0) < situation.wanted]
    # A failure says more than a pod that is merely on its way.
    waiting.sort(key=lambda state: (state.on_the_way, state.reason not in _URGENT, state.index or 0))
    if waiting:
        return waiting[0].reason, waiting[0].message
    missing = situation.wanted - sum(state.ready for state in situation.current)
    if missing > 0:
        return Reason.STARTING, f"{missing} of {situation.wanted} replicas are being created"
    return Reason.SERVING, "every replica answers"


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
        return Verdict(ConditionType.READY, True, Reason.SERVING, text)
    if situation.wanted == 0 and situation.blocked is None:
        return Verdict(ConditionType.READY, False, Reason.SCALED, "spec.replicas is 0")
    return Verdict(ConditionType.READY, False, reason, message)


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
    if situation.refusal is not None or (situation.foreign and not situation.ready):
        return Verdict(ConditionType.STALLED, True, reason, message)
    failing = failure is not None and failure.reason is reason and failure.count >= STALLED_AFTER_FAILURES
    if failing and failure is not None:
        text = f"{failure.count} identical failures; {message}"
        return Verdict(ConditionType.STALLED, True, reason, text)
    return None


def _reconciling(situation: Situation) -> bool:
    """Scaling up what already serves is no rollout: then only Ready's message tells."""
    if situation.blocked is not None:
        return True
    old = [state for state in situation.states if state.revision != situation.revision]
    if situation.wanted == 0:
        return bool(situation.states)
    return bool(old) or not any(state.ready for state in situation.current)


def _degraded(situation: Situation, message: str) -> Verdict | None:
    lost = situation.lost_names
    if lost and not situation.unasked:
        return Verdict(ConditionType.DEGRADED, True, Reason.NAME_CONFLICT, _lost_message(lost))
    if not situation.ready or not situation.wanted:
        return None
    if situation.foreign:
        return Verdict(ConditionType.DEGRADED, True, Reason.FOREIGN_OBJECT, situation.foreign[0])
    broken = [state for state in situation.current if not state.ready and not state.on_the_way]
    return Verdict(ConditionType.DEGRADED, True, Reason.REPLICA_LOST, message) if broken else None


def event_manifest(deployment: Manifest, event: Event, now: str) -> Manifest:
    """The Event of a transition. Its name depends only on what was observed, so that a repeated step posts none."""
    meta = deployment["metadata"]
    before = [
        [condition.get(part) for part in ("type", "status", "reason", "lastTransitionTime")]
        for condition in (deployment.get("status") or {}).get("conditions") or ()
    ]
    told = json.dumps([meta["uid"], meta.get("generation"), event.reason, before])
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name']}.{hashlib.sha256(told.encode()).hexdigest()[:16]}",
            "namespace": meta["namespace"],
        },
        "involvedObject": {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion"),
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": "qwen-operator"},
        "reportingComponent": "qwen-operator",
    }
