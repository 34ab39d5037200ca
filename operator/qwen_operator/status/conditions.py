"""Makes conditions and status from the results of a decision. Pure.

Ready is about requests: it is true if at least one replica answers, even while others start or are replaced.
Reconciling and Stalled are about the spec (kstatus): the change is in progress, or a person must act.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.refusals import explain
from qwen_operator.actions.types import Refusal
from qwen_operator.api.claims import NameShare
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.spec import InvalidSpec, Spec
from qwen_operator.api.status import Failure, Observation, ScalingReport, build
from qwen_operator.manifests.names import Manifest, engine_selector
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.adapter_downloads import Told
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.fetches import fetches, in_words
from qwen_operator.replicas.groups import Replica, SortedReplicas
from qwen_operator.replicas.holding import Hold
from qwen_operator.replicas.pod_state import PodState, last_failure, stored_failure
from qwen_operator.replicas.prefetch import NOTHING, Prefetch, failing
from qwen_operator.replicas.wanted import WantedReplicas
from qwen_operator.scaling.load import LoadClass
from qwen_operator.scaling.types import UNKNOWN
from qwen_operator.sources.inspection import PHASE
from qwen_operator.status.adapters import Loading, adapters_status, not_loaded
from qwen_operator.status.names import lost_message, lost_reason
from qwen_operator.status.observed import mismatch, observed, startup_seconds
from qwen_operator.status.prefetch import held_back, prefetched, remark
from qwen_operator.status.progress import ProgressPage, column, progress_of, sentence
from qwen_operator.status.rollouts import held_verdict, without_room

STALLED_AFTER_FAILURES = 3
_URGENT = (Reason.CLAIM_NOT_FOUND, Reason.CLAIM_NOT_BOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED)

_RESTS = (Reason.ASLEEP, Reason.GATEWAY_SILENT, Reason.SUSPENDED)
_SHORT_OF_ROOM = (Reason.QUOTA_EXCEEDED, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_NODE)


@dataclass(frozen=True, slots=True)
class StatusInput:
    """The input of the status. Either `target` (the revision of the present spec) or `blocked` is set.

    `running`: the target or, without one, the revision that still runs.
    `replicas`: all replicas of the deployment, of any revision.
    `foreign`: the message about objects of other owners with names that the operator needs; "" if there are none.
    `full`: the message about a quota without room.
    `newer`: a plan that is made today would run the same spec differently.
    `unplaced`: the record of a replica that could not be placed as a whole.
    `hold_seconds`: how long a request may wait in the gateway. `hold`: why a revision is held back; None if none is.
    `pages`: how far the downloads and starts of pods are, by uid. `progress` is `status.progress`; `build_status` sets
    it.
    `short_of_gpus`: why other deployments have the GPUs of wanted replicas; "" if they do not.
    `granted`: for how many the GPUs suffice then. `adapter_failures`: why engines could not load adapters, by name.
    `adapter_downloads`: about adapters that are fetched while engines serve, by name.
    `why_replaced`: why a change of adapters replaces replicas; "" if it does not.
    `prefetch`: what is downloaded before engine pods need it.
    """

    spec: Spec
    revision: str
    target: PinnedRevision | None
    blocked: Blocked | None
    running: PinnedRevision | None
    replicas: SortedReplicas
    wanted: WantedReplicas
    rules: RolloutRules
    foreign: str
    names: NameShare
    refusal: Refusal | None
    full: str | None
    newer: bool
    hold_seconds: int = 0
    hold: Hold | None = None
    pages: Mapping[str, ProgressPage] = field(default_factory=dict)
    progress: Mapping[str, Any] | None = None
    unplaced: Failure | None = None
    short_of_gpus: str = ""
    granted: int | None = None
    adapter_failures: Mapping[str, str] = field(default_factory=dict)
    adapter_downloads: Mapping[str, Told] = field(default_factory=dict)
    why_replaced: str = ""
    prefetch: Prefetch = NOTHING

    @property
    def ready(self) -> list[Replica]:
        return [replica for replica in self.replicas.serving if replica.ready]

    @property
    def answering(self) -> int:
        """The number of replicas that answer."""
        return self.replicas.answering(self.wanted.number, self.rules.max_surge)

    @property
    def current(self) -> list[Replica]:
        """The replicas of the present spec's revision that serve or will serve."""
        return [replica for replica in self.replicas.serving if replica.revision == self.revision]

    @property
    def outdated(self) -> bool:
        """Whether there are replicas of another revision, including replicas that are being removed."""
        return any(replica.revision != self.revision for replica in self.replicas.all)

    @property
    def replacing(self) -> bool:
        """Whether replicas of another revision serve, which successors replace."""
        return any(replica.revision != self.revision and replica.started for replica in self.replicas.serving)

    @property
    def unreachable(self) -> bool:
        """Whether no client can reach it, because other QwenDeployments hold all its names."""
        return all_names_lost(self.spec, self.names)


def all_names_lost(spec: Spec, names: NameShare) -> bool:
    """Whether this deployment has none of the served names of its spec."""
    lost = names.lost_names
    return bool(spec.names) and all(name in lost for name in spec.names)


def invalid_status(
    deployment: Manifest, error: InvalidSpec, replicas: SortedReplicas, claims: Mapping[str, Any], now: str
) -> dict[str, Any]:
    """The status of a QwenDeployment with an invalid spec. Its pods stay as they are, and so do the names it holds.

    `claims` is `status.names`.
    """
    message = str(error)
    kinds = (ConditionType.READY, ConditionType.PLANNED, ConditionType.MODEL_LOADED, ConditionType.SCALING_ACTIVE)
    verdicts = [Verdict(kind, False, Reason.INVALID_SPEC, message) for kind in kinds]
    verdicts.append(Verdict(ConditionType.STALLED, True, Reason.INVALID_SPEC, message))
    meta = deployment["metadata"]
    existing = len(replicas.serving)
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=existing,
        ready=sum(replica.ready for replica in replicas.serving),
        wanted=max(existing, 1),
        selector=engine_selector(meta["name"]),
        names=(),
        claims=claims,
        verdicts=tuple(verdicts),
    )
    return build(observation, objects.mapping(deployment, "status"), now)


def build_status(deployment: Manifest, given: StatusInput, now: str) -> dict[str, Any]:
    """The complete status; `now` is RFC 3339."""
    meta, old = deployment["metadata"], objects.mapping(deployment, "status")
    members = [pod for replica in given.replicas.serving for pod in replica.members]
    given = replace(given, progress=_how_far(given, objects.mapping(old, "progress"), members))
    target, blocked, running = given.target, given.blocked, given.running
    facts = target.facts if target else blocked.facts if blocked else None
    failure = _reported_failure(given, old)
    seen = observed(running, given.replicas.serving, given.rules.scaling, old)
    loading = Loading(
        given.ready, given.revision, given.wanted, blocked, given.adapter_failures, given.adapter_downloads
    )
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=given.replicas.count(given.wanted.number, given.rules.max_surge),
        ready=given.answering,
        wanted=given.wanted.number,
        selector=engine_selector(meta["name"]),
        names=tuple(name for name in given.spec.names if name not in given.names.lost_names),
        claims=given.names.record(meta["uid"], given.rules.now),
        verdicts=_verdicts(meta, given, failure, seen),
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
        scaling=_scaling_report(given),
        load=given.rules.scaling.load if given.rules.scaling else LoadClass.NONE,
        observed=seen,
        progress=given.progress,
        cache=", ".join(filter(None, (in_words(fetches(members)), prefetched(given.prefetch)))),
        adapters=adapters_status(given.spec.adapters, loading),
    )
    new = build(observation, old, now)
    return {**new, "summary": {**new["summary"], **_column(given, str(new["summary"]["status"]))}}


def _how_far(given: StatusInput, shown: Mapping[str, Any], members: list[PodState]) -> dict[str, Any] | None:
    """`status.progress`: of a replica or, if none is busy, of a pod that downloads before engine pods need it."""
    weights = {one.revision: one.facts.weight_bytes for one in (given.running, given.target) if one is not None}
    of_replica = progress_of(shown, members, given.pages, given.rules.now, weights)
    return of_replica or progress_of(shown, given.prefetch.pods, given.pages, given.rules.now, weights)


def _scaling_report(given: StatusInput) -> ScalingReport:
    wanted, attained = given.wanted, given.rules.scaling.attained if given.rules.scaling else UNKNOWN
    decision = (wanted.number, wanted.reason, wanted.message, wanted.advised)
    granted = given.granted if given.granted is not None and given.granted < wanted.number else None
    return ScalingReport(*decision, attained.hour, attained.day, wanted.schedules, granted)


def _column(given: StatusInput, present: str) -> dict[str, str]:
    """The change of the STATUS column. Conditions stay unchanged."""
    shown = column(given.progress, present)
    return _resizing(given, present) if shown is None else {"status": shown}


def _resizing(given: StatusInput, column: str) -> dict[str, str]:
    """The change of the STATUS column for a serving deployment that changes its size; conditions stay unchanged."""
    if column not in (Reason.SERVING, Reason.SCALED):
        return {}
    coming = given.answering < given.wanted.number and not given.outdated
    if column == Reason.SERVING and coming and all(replica.ready or replica.on_the_way for replica in given.current):
        return {"status": str(Reason.SCALING_UP)}
    return {"status": str(Reason.DRAINING)} if given.replicas.draining else {}


def _not_placed(record: Mapping[str, Any], running: PinnedRevision | None) -> bool:
    """Whether the last failure is that a replica of this revision was not placed."""
    named = running is not None and f"-{running.revision}-" in str(record.get("pod", ""))
    return named and record.get("reason") == Reason.GROUP_NOT_PLACED


def _reported_failure(given: StatusInput, old: Mapping[str, Any]) -> Failure | None:
    """The last failure of the present revision: of its inspection before it is pinned, of its engines afterwards.

    If a replica of whatever runs was not placed as a whole, that stays: it is the memory of when to try again.
    """
    if given.blocked is not None and given.blocked.failure is not None:
        return given.blocked.failure
    if given.unplaced is not None:
        return given.unplaced
    record = objects.mapping(old, "lastFailure")
    earlier = given.blocked is not None or (given.running is not None and given.running.revision != given.revision)
    if earlier and _not_placed(record, given.running):
        return stored_failure(record)
    if given.blocked is not None:
        return None
    inspection = record.get("phase") == PHASE
    of_revision = _of_revision(given, str(record.get("pod", ""))) and not inspection
    replicas = (*given.replicas.serving, *given.replicas.gone, *given.replicas.ended)
    pods = [pod for replica in replicas if replica.revision == given.revision for pod in replica.members]
    pods += given.prefetch.pods
    return last_failure(record if of_revision else {}, pods)


def _of_revision(given: StatusInput, pod: str) -> bool:
    """Whether a pod is of the present revision: by its name, or because it serves as that revision by now."""
    return f"-{given.revision}-" in pod or any(pod == replica.leader.name for replica in given.current)


def _verdicts(
    meta: Manifest, given: StatusInput, failure: Failure | None, seen: Mapping[str, Any] | None
) -> tuple[Verdict, ...]:
    reason, message = _progress(given)
    ready = _ready(given, reason, message, seen)
    loaded = bool(given.ready)
    if given.wanted.number == 0 and given.blocked is None:
        reason, message = ready.reason, ready.message
    verdicts = [
        ready,
        _planned(meta, given, seen),
        Verdict(ConditionType.MODEL_LOADED, True, Reason.LOADED, "at least one replica has the model in memory")
        if loaded
        else Verdict(ConditionType.MODEL_LOADED, False, reason, message),
        *_scaling(given, reason, message),
    ]
    stalled = _held(given) or _stalled(given, reason, message, failure)
    if stalled is not None:
        verdicts.append(stalled)
    elif _reconciling(given):
        why = f"; new replicas come because {given.why_replaced}" if given.why_replaced else ""
        rollout = bool(given.ready) and reason is Reason.SERVING
        if rollout:
            reconciling = (Reason.REPLACING, f"the operator replaces pods of an earlier revision{why}")
        elif given.blocked is not None:
            reconciling = (given.blocked.reason, given.blocked.message)
        else:
            reconciling = (reason, f"{message}{why}")
        verdicts.append(Verdict(ConditionType.RECONCILING, True, *reconciling))
    if (degraded := _degraded(given, message, seen)) is not None:
        verdicts.append(degraded)
    return tuple(verdicts)


def _scaling(given: StatusInput, reason: Reason, message: str) -> tuple[Verdict, ...]:
    """ScalingActive and ScalingLimited. If the cluster has no room, that limits the size too."""
    wanted = given.wanted
    active = Verdict(ConditionType.SCALING_ACTIVE, wanted.by_load, wanted.reason, wanted.explained)
    at_maximum = wanted.by_load and wanted.reason == Reason.AT_MAXIMUM
    field = "maxReplicas of the schedule" if wanted.schedules else "spec.scaling.maxReplicas"
    advice = f"{wanted.explained}: raise {field}, or requests wait"
    limited = Verdict(ConditionType.SCALING_LIMITED, at_maximum, wanted.reason, advice)
    short = given.answering < given.wanted.number or given.full is not None
    if given.ready and reason in _SHORT_OF_ROOM and short:
        limited = Verdict(ConditionType.SCALING_LIMITED, True, reason, message)
    return active, limited


def _progress(given: StatusInput) -> tuple[Reason, str]:
    """Why the present spec is not completely in use yet; SERVING if it is."""
    if given.blocked is not None:
        return _progress_of_running(given, given.blocked)
    reason, message = _progress_of_target(given)
    if given.replacing:
        message = without_room(reason, message, given.spec.hardware.resource_name, given.rules)
    return reason, message


def _progress_of_target(given: StatusInput) -> tuple[Reason, str]:
    if (obstacle := _obstacle(given)) is not None:
        return obstacle
    if (waiting := _most_urgent(given.current)) is not None:
        return waiting.reason, _with_progress(given, waiting)
    missing = given.wanted.number - sum(replica.ready for replica in given.current)
    if given.prefetch.holds(missing):
        return held_back(given.prefetch, given.progress)
    if missing > 0 and given.short_of_gpus:
        return Reason.WAITING_FOR_GPUS, given.short_of_gpus
    if missing > 0:
        return Reason.STARTING, _missing(given, missing)
    return Reason.SERVING, "every replica answers"


def _with_progress(given: StatusInput, replica: Replica) -> str:
    """The message of a replica that does not answer, with the numbers of its download or its start."""
    progress = given.progress
    if progress is None or column(progress, replica.reason) is None or progress.get("pod") != replica.explaining_pod:
        return replica.message
    return f"{replica.message}: {sentence(progress)}"


def _progress_of_running(given: StatusInput, blocked: Blocked) -> tuple[Reason, str]:
    """What keeps the earlier revision, which still runs, from serving; else why the present spec has no revision.

    What serves has the first say: a crash of it is more important than an inspection for the next revision.
    """
    running = [replica for replica in given.replicas.serving if given.running and given.wanted.number]
    trouble = _most_urgent(running)
    if trouble is None:
        return blocked.reason, blocked.message
    return trouble.reason, f"{trouble.message}; the changed spec is not in use yet: {blocked.message}"


def _most_urgent(replicas: Iterable[Replica]) -> Replica | None:
    """The replica that explains best why not all of them answer; None if all do."""
    waiting = [replica for replica in replicas if not replica.ready]
    # A failure is more important than a pod that is still starting.
    waiting.sort(key=lambda replica: (replica.on_the_way, replica.reason not in _URGENT, replica.index or 0))
    return waiting[0] if waiting else None


def _obstacle(given: StatusInput) -> tuple[Reason, str] | None:
    """What prevents the operator from creating an object."""
    if given.full is not None:
        return Reason.QUOTA_EXCEEDED, given.full
    if given.refusal is not None:
        return explain(given.refusal)
    return (Reason.FOREIGN_OBJECT, given.foreign) if given.foreign else None


def _missing(given: StatusInput, number: int) -> str:
    lost = [replica for replica in given.replicas.gone if replica.reason is Reason.NODE_LOST]
    cause = f"; {lost[0].message}" if lost else ""
    return f"the operator creates {number} of {given.wanted.number} replicas{cause}"


def _ready(given: StatusInput, reason: Reason, message: str, seen: Mapping[str, Any] | None) -> Verdict:
    lost, ready = given.names.lost, given.answering
    if given.unreachable and given.blocked is None:
        return Verdict(ConditionType.READY, False, lost_reason(lost), lost_message(given.spec, lost))
    if ready and given.wanted.number:
        text = f"{ready} of {given.wanted.number} replicas answer"
        if reason is not Reason.SERVING:
            text = f"{text}; {message}"
        if lost:
            text = f"{text}; {lost_message(given.spec, lost)}"
        return Verdict(ConditionType.READY, True, Reason.SERVING, f"{text}{_leaving(given)}")
    if given.wanted.number == 0 and given.blocked is None:
        return _resting(given)
    if given.wanted.reason is Reason.WAKING and _comes_by_itself(given):
        text = f"{given.wanted.message}; {message}{_expected(given, seen)}"
        return Verdict(ConditionType.READY, True, Reason.WAKING, text)
    return Verdict(ConditionType.READY, False, reason, message)


def _resting(given: StatusInput) -> Verdict:
    """Ready of a deployment without wanted replicas. A model that sleeps is ready: it answers whoever asks."""
    wanted = given.wanted
    if wanted.reason not in _RESTS:
        return Verdict(ConditionType.READY, False, Reason.SCALED, f"spec.replicas is 0{_leaving(given)}")
    asleep = wanted.reason is Reason.ASLEEP
    return Verdict(ConditionType.READY, asleep, wanted.reason, f"{wanted.message}{_leaving(given)}")


def _comes_by_itself(given: StatusInput) -> bool:
    """Whether nothing keeps the replica that wakes from answering."""
    if given.blocked is not None or _obstacle(given) is not None:
        return False
    if any(failing(pod) for pod in given.prefetch.pods) and not given.current:
        return False
    return all(replica.on_the_way for replica in given.current if not replica.ready)


def _expected(given: StatusInput, seen: Mapping[str, Any] | None) -> str:
    """When the replica that wakes should answer. The time stays the same while it starts."""
    created = [
        objects.moment(objects.text(one.leader.manifest, "metadata", "creationTimestamp")) for one in given.current
    ]
    first = min((moment for moment in created if moment is not None), default=None)
    if first is None or given.running is None:
        return ""
    seconds = startup_seconds(given.running, seen)
    return f"; by plan it answers at {rfc3339(first + timedelta(seconds=seconds))}"


def _leaving(given: StatusInput) -> str:
    """Which replicas drain, and when each is deleted at the latest. The times stay the same while they drain."""
    draining, now = given.replicas.draining, given.rules.now
    times = sorted((then, replica.name) for replica in draining if (then := replica.drains_since(now)) is not None)
    if not times:
        return ""
    first, name = times[0]
    until = rfc3339(first + timedelta(seconds=given.rules.drain_limit))
    if len(draining) == 1:
        return f"; {name} gets no new requests and is deleted when it is idle, by {until} at the latest"
    return (
        f"; {name} and {len(draining) - 1} more get no new requests and are deleted when they are idle, "
        f"the first by {until} at the latest"
    )


def _planned(meta: Manifest, given: StatusInput, seen: Mapping[str, Any] | None) -> Verdict:
    if given.target is None:
        assert given.blocked is not None
        blocked = given.blocked
        return Verdict(ConditionType.PLANNED, False, blocked.reason, blocked.message)
    parts = [given.target.plan.message, *given.target.plan.warnings]
    if given.newer:
        parts.append(
            "a newer plan is available: kubectl annotate --overwrite qwendeployment "
            f"-n {meta['namespace']} {meta['name']} qwen-operator.dev/replan=$(date +%s)"
        )
    if given.hold is not None:
        parts.append(
            f"it is held back: status.plan shows the earlier revision {given.hold.earlier.revision}, which runs"
        )
    parts += [_long_wake(given, seen), remark(given.prefetch)]
    return Verdict(ConditionType.PLANNED, True, Reason.FITS, "; ".join(part for part in parts if part))


def _long_wake(given: StatusInput, seen: Mapping[str, Any] | None) -> str:
    """The warning that the first requests after a sleep are not held until they are answered."""
    scaling, seconds = given.spec.scaling, startup_seconds(given.running, seen)
    if scaling is None or scaling.min_replicas:
        return ""
    if seconds <= given.hold_seconds:
        return ""
    return (
        f"a start takes about {seconds} s, but requests wait in the gateway for at most "
        f"{given.hold_seconds} s (chart value gateway.hold.maxSeconds): with spec.scaling.minReplicas 0, the first "
        "requests after a sleep get 503 with Retry-After"
    )


def _held(given: StatusInput) -> Verdict | None:
    if given.hold is None or given.blocked is not None or given.unreachable:
        return None
    cause = given.hold.cause
    message = without_room(cause.reason, cause.message, given.spec.hardware.resource_name, given.rules)
    return held_verdict(given.hold, message)


def _stalled(given: StatusInput, reason: Reason, message: str, failure: Failure | None) -> Verdict | None:
    blocked = given.blocked
    if blocked is not None:
        return None if blocked.waiting else Verdict(ConditionType.STALLED, True, blocked.reason, blocked.message)
    if given.unreachable:
        lost = given.names.lost
        return Verdict(ConditionType.STALLED, True, lost_reason(lost), lost_message(given.spec, lost))
    if reason is Reason.QUOTA_EXCEEDED:
        return None
    if given.refusal is not None or (given.foreign and not given.ready):
        return Verdict(ConditionType.STALLED, True, reason, message)
    failing = failure is not None and failure.reason is reason and failure.count >= STALLED_AFTER_FAILURES
    if failing and failure is not None:
        text = f"{failure.count} identical failures; {message}"
        return Verdict(ConditionType.STALLED, True, reason, text)
    looping = any(replica.crash_looping and replica.reason is reason for replica in given.current)
    looping = looping or any(pod.crash_looping and pod.reason is reason for pod in given.prefetch.pods)
    return Verdict(ConditionType.STALLED, True, reason, message) if looping else None


def _reconciling(given: StatusInput) -> bool:
    """Whether the spec is not completely in use yet.

    Adding replicas to a serving revision does not count: only the message of Ready shows that.
    """
    if given.blocked is not None:
        return True
    if given.wanted.reason in (Reason.ASLEEP, Reason.WAKING):
        # Sleep and waking are no changes of the spec.
        return given.outdated
    if given.wanted.number == 0:
        return bool(given.replicas.all)
    return given.outdated or not any(replica.ready for replica in given.current)


def _degraded(given: StatusInput, message: str, seen: Mapping[str, Any] | None) -> Verdict | None:
    lost = given.names.lost
    if lost and not given.unreachable:
        return Verdict(ConditionType.DEGRADED, True, lost_reason(lost), lost_message(given.spec, lost))
    if not given.ready or not given.wanted.number:
        return None
    if given.foreign:
        return Verdict(ConditionType.DEGRADED, True, Reason.FOREIGN_OBJECT, given.foreign)
    broken = [replica for replica in given.current if not replica.ready and not replica.on_the_way]
    if broken:
        return Verdict(ConditionType.DEGRADED, True, Reason.REPLICA_LOST, message)
    if (failed := not_loaded(given.adapter_failures, given.adapter_downloads)) is not None:
        return failed
    return mismatch(given.running.plan, seen) if given.running else None
