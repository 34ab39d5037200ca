"""From a hub's repository to the facts of its checkpoint: the catalog, or the hub's own answer.

Pure. The catalog is verified, works offline and answers at once, so a model in it is looked up on its hub only where
the spec names a revision: then the answer says which commit that is. What the catalog does not have comes from the
hub. A failed reading is repeated by itself, less and less often; until there is another answer the first one stands.
"""

from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.hubs import Hub, HubAnswer, HubQuery, HubReason, is_repository
from qwen_operator.sources.scheme import Facts, SourceContext

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


def query_of(hub: Hub, spec: Spec) -> HubQuery:
    """What the hub is asked for: the repository of the source, or the model where there is no source."""
    return HubQuery(hub, spec.repository or spec.model, (spec.source.revision if spec.source else None) or "")


def resolve(hub: Hub, context: SourceContext) -> Facts | Blocked:
    """The facts of a hub's repository, or what they wait for."""
    spec, query = context.spec, query_of(hub, context.spec)
    known = catalog.lookup(query.repository)
    named = bool(query.revision)
    if known is not None and not (named and context.online):
        remark = f"revision {query.revision} was not looked up, hub.lookup is false" if named else ""
        return Facts(known, remark)
    if not context.online or not is_repository(query.repository):
        return Blocked(Reason.UNKNOWN_MODEL, f"{_unknown(spec, query)}: {_CLAIM}", waiting=False)
    answer = context.answer if context.answer is not None and context.answer.query == query else None
    if answer is None:
        return _waiting(context.deployment, query)
    again = query if context.now >= answer.again else None
    pending = _pending(again) if again else None
    if answer.checkpoint is not None:
        return Facts(answer.checkpoint, pending=pending)
    if known is not None and answer.reason in _SAYS_NOTHING:
        return Facts(known, f"facts from the catalog and no commit pinned, because {answer.message}", pending)
    return _refused(spec, answer, again, context.now)


def _waiting(deployment: Mapping[str, Any], query: HubQuery) -> Blocked:
    """No answer yet; but what was said of this very spec before, by the operator before this one, stays."""
    condition = objects.condition(deployment, ConditionType.PLANNED)
    of_this_spec = condition.get("observedGeneration") == deployment["metadata"].get("generation")
    if of_this_spec and condition.get("reason") in _HELD:
        return Blocked(Reason(condition["reason"]), str(condition.get("message")), waiting=False, query=query)
    return _pending(query)


def _pending(query: HubQuery) -> Blocked:
    """Waiting for the hub's answer."""
    return Blocked(Reason.INSPECTING, f"reading config.json of {query} from its hub", waiting=True, query=query)


def _refused(spec: Spec, answer: HubAnswer, again: HubQuery | None, now: datetime) -> Blocked:
    assert answer.reason is not None
    query, answered = answer.query, answer.message
    reason = _REASONS[answer.reason]
    if answer.reason is HubReason.NOT_FOUND and catalog.lookup(query.repository):
        reason, message = (
            Reason.MODEL_NOT_FOUND,
            f"{answered}: correct spec.source.revision, which is {query.revision}",
        )
    elif answer.reason in (HubReason.OFFLINE, HubReason.UNAVAILABLE):
        message = f"{_unknown(spec, query)}, and {answered}; it is asked again. Without the hub: {_CLAIM}"
    elif answer.reason is HubReason.AUTH_REQUIRED:
        message = f"{answered}, and the operator reads no Secrets: download it yourself, {_CLAIM}"
    elif answer.reason is HubReason.NOT_FOUND:
        cure = f"correct spec.model or spec.source; if it is private, {_CLAIM}"
        message = f"{_unknown(spec, query)}, and {answered}: {cure}"
    else:
        message = f"{answered}; choose another repository, or {_CLAIM}"
    due = max(0.0, (answer.again - now).total_seconds())
    return Blocked(reason, message, waiting=False, query=again, requeue_after=due or None)


def _unknown(spec: Spec, query: HubQuery) -> str:
    field = f'spec.source.uri "{spec.source.uri}"' if spec.source else f'spec.model "{spec.model}"'
    return f"{field} is not in the catalog{_meant(query.repository)} ({_EXAMPLES})"


def _meant(model: str) -> str:
    """The catalog's name that comes nearest, whatever the case of letters and with or without the organisation."""
    names = {name.casefold(): name for name in catalog.names()} | {
        name.rpartition("/")[2].casefold(): name for name in catalog.names()
    }
    near = get_close_matches(model.casefold(), names, n=1, cutoff=0.8)
    return f"; did you mean {names[near[0]]}?" if near else ""
