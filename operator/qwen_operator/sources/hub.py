"""From a hub's repository to the facts of its checkpoint: the catalog, or the hub's own answer.

Pure. The catalog is verified, works offline and answers at once, so a model in it is looked up on its hub only where
the spec names a revision: then the answer says which commit that is. What the catalog does not have comes from the
hub. A failed reading is repeated by itself, less and less often; until there is another answer the first one stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from qwen_operator.actions.types import Asked, Blocked, HubAnswer, Observed
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubReason, is_repository
from qwen_operator.planning.types import EngineDefaults

_REASONS = {
    HubReason.NOT_FOUND: Reason.UNKNOWN_MODEL,
    HubReason.AUTH_REQUIRED: Reason.AUTH_REQUIRED,
    HubReason.OFFLINE: Reason.UNKNOWN_MODEL,
    HubReason.UNAVAILABLE: Reason.UNKNOWN_MODEL,
    HubReason.TOO_LARGE: Reason.INVALID_CONFIG,
    HubReason.INVALID: Reason.INVALID_CONFIG,
}
_HELD = {*_REASONS.values(), Reason.MODEL_NOT_FOUND}
# The hub said nothing about the model itself: what is known of it without the hub still holds.
_SAYS_NOTHING = (HubReason.OFFLINE, HubReason.UNAVAILABLE, HubReason.AUTH_REQUIRED)
_CLAIM = "put its files on a claim and set spec.source.uri to pvc://<claim>/<path>, then they are read"
_EXAMPLES = "it has Qwen/Qwen1.5-7B-Chat, Qwen/Qwen1.5-72B-Chat, Qwen/Qwen3-8B and what qwen-operator models lists"


@dataclass(frozen=True, slots=True)
class Found:
    """Facts; `remark` says what is wrong with where they come from; `ask` that the hub's answer has become old: good
    enough to say what does not fit, not to be pinned."""

    facts: Checkpoint
    remark: str = ""
    ask: Asked | None = None


def resolve(
    spec: Spec, observed: Observed, defaults: EngineDefaults, now: datetime, *, online: bool
) -> Found | Blocked:
    """The facts of a source that is a hub's repository, or what they wait for. `online`: hubs may be asked."""
    asked = _question(spec, defaults)
    known = catalog.lookup(asked.repository)
    named = bool(asked.revision)
    if known is not None and not (named and online):
        remark = f"revision {asked.revision} was not looked up, hub.lookup is false" if named else ""
        return Found(known, remark)
    if not online or not is_repository(asked.repository):
        return Blocked(Reason.UNKNOWN_MODEL, f"{_unknown(spec, asked)}: {_CLAIM}", waiting=False)
    answer = observed.hub if observed.hub is not None and observed.hub.asked == asked else None
    if answer is None:
        return _waiting(observed.deployment, asked)
    ask = asked if now >= answer.again else None
    if answer.checkpoint is not None:
        return Found(answer.checkpoint, ask=ask)
    if known is not None and answer.reason in _SAYS_NOTHING:
        return Found(known, f"facts from the catalog and no commit pinned, because {answer.message}", ask)
    return _refused(spec, answer, ask, now)


def _question(spec: Spec, defaults: EngineDefaults) -> Asked:
    hub = defaults.hub_of(spec)
    assert hub is not None, "a claim is inspected by a pod"
    return Asked(hub, spec.repository or spec.model, (spec.source.revision if spec.source else None) or "")


def _waiting(deployment: Mapping[str, Any], asked: Asked) -> Blocked:
    """No answer yet; but what was said of this very spec before, by the operator before this one, stays."""
    meta, status = deployment["metadata"], deployment.get("status") or {}
    for condition in status.get("conditions") or ():
        known = condition.get("type") == ConditionType.PLANNED and condition.get("reason") in _HELD
        if known and condition.get("observedGeneration") == meta.get("generation"):
            return Blocked(Reason(condition["reason"]), str(condition.get("message")), waiting=False, ask=asked)
    return pending(asked)


def pending(asked: Asked) -> Blocked:
    """Waiting for the hub's answer."""
    return Blocked(Reason.INSPECTING, f"reading config.json of {_uri(asked)} from its hub", waiting=True, ask=asked)


def _refused(spec: Spec, answer: HubAnswer, ask: Asked | None, now: datetime) -> Blocked:
    assert answer.reason is not None
    asked, said = answer.asked, answer.message
    reason = _REASONS[answer.reason]
    if answer.reason is HubReason.NOT_FOUND and catalog.lookup(asked.repository):
        reason, message = Reason.MODEL_NOT_FOUND, f"{said}: correct spec.source.revision, which is {asked.revision}"
    elif answer.reason in (HubReason.OFFLINE, HubReason.UNAVAILABLE):
        message = f"{_unknown(spec, asked)}, and {said}; it is asked again. Without the hub: {_CLAIM}"
    elif answer.reason is HubReason.AUTH_REQUIRED:
        message = f"{said}, and the operator reads no Secrets: download it yourself, {_CLAIM}"
    elif answer.reason is HubReason.NOT_FOUND:
        message = f"{_unknown(spec, asked)}, and {said}: correct spec.model or spec.source; if it is private, {_CLAIM}"
    else:
        message = f"{said}; choose another repository, or {_CLAIM}"
    due = max(0.0, (answer.again - now).total_seconds())
    return Blocked(reason, message, waiting=False, ask=ask, requeue_after=due or None)


def _unknown(spec: Spec, asked: Asked) -> str:
    said = f'spec.source.uri "{spec.source.uri}"' if spec.source else f'spec.model "{spec.model}"'
    return f"{said} is not in the catalog{_meant(asked.repository)} ({_EXAMPLES})"


def _uri(asked: Asked) -> str:
    return f"{asked.hub}://{asked.repository}{f' at {asked.revision}' if asked.revision else ''}"


def _meant(model: str) -> str:
    """The catalog's name that comes nearest, whatever the case of letters and with or without the organisation."""
    names = {name.casefold(): name for name in catalog.names()} | {
        name.rpartition("/")[2].casefold(): name for name in catalog.names()
    }
    near = get_close_matches(model.casefold(), names, n=1, cutoff=0.8)
    return f"; did you mean {names[near[0]]}?" if near else ""
