"""The status of a QwenDeployment that the operator cannot handle, because its own code fails for it. Pure."""

from __future__ import annotations

from typing import Any

from qwen_operator import objects
from qwen_operator.api.conditions import ALWAYS, ConditionType, Reason, Verdict, set_conditions
from qwen_operator.api.status import Observation, build
from qwen_operator.api.status_size import shortened
from qwen_operator.manifests.names import Manifest, engine_selector


def crashed_status(deployment: Manifest, error: str, now: str) -> dict[str, Any] | None:
    """The present status with a condition Stalled that names the type of the error; None if there is one already.

    Everything else in the status stays, except Reconciling: nothing goes on. `now` is RFC 3339.
    """
    old = objects.mapping(deployment, "status")
    conditions = list(objects.members(old, "conditions"))
    if any(_is(item, ConditionType.STALLED) and item.get("reason") == Reason.OPERATOR_ERROR for item in conditions):
        return None
    message = f"the operator cannot handle this object: {error}; report it"
    verdict = Verdict(ConditionType.STALLED, True, Reason.OPERATOR_ERROR, message)
    if not objects.mapping(old, "summary"):
        return _first_status(deployment, verdict, now)
    generation = int(deployment["metadata"].get("generation") or 0)
    replaced = (ConditionType.STALLED, ConditionType.RECONCILING)
    kept = [item for item in conditions if not any(_is(item, kind) for kind in replaced)]
    status = {**old, "conditions": [*kept, *set_conditions(conditions, [verdict], generation, now)]}
    if not any(_is(item, ConditionType.READY) and item.get("status") == "True" for item in kept):
        status["summary"] = {**old["summary"], "status": str(verdict.reason), "message": message}
    return shortened(status)


def _first_status(deployment: Manifest, verdict: Verdict, now: str) -> dict[str, Any]:
    """Of an object that never had a status, the operator knows nothing."""
    meta = deployment["metadata"]
    unknown = [Verdict(kind, None, verdict.reason, verdict.message) for kind in ALWAYS]
    observation = Observation(
        generation=int(meta.get("generation") or 0),
        replicas=0,
        ready=0,
        wanted=1,
        selector=engine_selector(meta["name"]),
        names=(),
        verdicts=(*unknown, verdict),
    )
    return build(observation, {}, now)


def _is(condition: Any, kind: ConditionType) -> bool:
    return isinstance(condition, dict) and condition.get("type") == kind
