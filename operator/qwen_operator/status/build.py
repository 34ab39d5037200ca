"""Puts the complete status together, from the results of a decision. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.spec import InvalidSpec
from qwen_operator.api.status import Observation, ScalingReport, build
from qwen_operator.manifests.names import Manifest, engine_selector
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.fetches import fetches, in_words
from qwen_operator.replicas.groups import SortedReplicas
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.scaling.load import LoadClass
from qwen_operator.scaling.types import UNKNOWN
from qwen_operator.status.adapters import Loading, adapters_status
from qwen_operator.status.conditions import all_verdicts
from qwen_operator.status.failures import reported_failure
from qwen_operator.status.observed import observed
from qwen_operator.status.prefetch import prefetched
from qwen_operator.status.progress import column, progress_of
from qwen_operator.status.types import StatusInput


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
    failure = reported_failure(given, old)
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
        verdicts=all_verdicts(meta, given, failure, seen),
        gpus=running.plan.gpus if running else "",
        model=_model(target or blocked),
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


def _model(known: PinnedRevision | Blocked | None) -> dict[str, Any] | None:
    """`status.model`: the facts of the checkpoint, if they are known."""
    if known is None or known.facts is None:
        return None
    facts = known.facts
    model = {
        "architecture": facts.architecture,
        "quantization": facts.quantization_name,
        "weightBytes": facts.weight_bytes,
        "factsFrom": facts.source,
    }
    return model | ({"commit": facts.commit} if facts.commit else {})


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
    if shown is not None:
        return {"status": shown}
    if present == Reason.LOADING and any(replica.up and replica.settles_in for replica in given.current):
        # After WarmingUp, Loading would look like another start.
        return {"status": "Registering"}
    return _resizing(given, present)


def _resizing(given: StatusInput, column: str) -> dict[str, str]:
    """The change of the STATUS column for a serving deployment that changes its size; conditions stay unchanged."""
    if column not in (Reason.SERVING, Reason.SCALED):
        return {}
    coming = given.answering < given.wanted.number and not given.outdated
    if column == Reason.SERVING and coming and all(replica.ready or replica.on_the_way for replica in given.current):
        return {"status": str(Reason.SCALING_UP)}
    return {"status": str(Reason.DRAINING)} if given.replicas.draining else {}
