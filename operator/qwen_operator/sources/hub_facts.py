"""Gets the facts of a repository on a hub, from the catalog or from the hub's answer. Pure.

The catalog is verified and works offline. Of its models the operator asks the hub once for the commit, so that all
replicas load the same files. If the hub is silent, its model is planned without one, unless the chart has a cache: the
cache has models by their commit. If the spec names a revision, the facts come from the hub's answer, as those of
other models do.
The operator retries a failed reading by itself, with growing delays. The last answer counts until there is a new one.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api import uris
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import (
    TERMS_CURE,
    Hub,
    HubAnswer,
    HubQuery,
    HubReason,
    is_commit,
    is_repository,
)
from qwen_operator.checkpoints.suggestions import suggestion
from qwen_operator.sources.scheme import Facts, SourceContext

_REASONS = {
    HubReason.NOT_FOUND: Reason.UNKNOWN_MODEL,
    HubReason.AUTH_REQUIRED: Reason.AUTH_REQUIRED,
    HubReason.GATED: Reason.GATED_MODEL,
    HubReason.OFFLINE: Reason.UNKNOWN_MODEL,
    HubReason.UNAVAILABLE: Reason.UNKNOWN_MODEL,
    HubReason.TOO_LARGE: Reason.INVALID_CONFIG,
    HubReason.INVALID: Reason.INVALID_CONFIG,
    HubReason.UNKNOWN_ARCHITECTURE: Reason.UNKNOWN_ARCHITECTURE,
}
_HELD = {*_REASONS.values(), Reason.MODEL_NOT_FOUND}
# With these reasons the hub says nothing about the model itself, so the facts of the catalog remain valid.
_SAYS_NOTHING = (HubReason.OFFLINE, HubReason.UNAVAILABLE, HubReason.AUTH_REQUIRED, HubReason.GATED)
_CLAIM = "put its files on a claim and set spec.source.uri to pvc://<claim>/<path>, so that the operator reads them"
_TOKEN = "name a Secret with a token in spec.source.secretRef"
_COMMIT_CURE = "set hub.lookup to true, or spec.source.revision to a commit of 40 hexadecimal digits"
_EXAMPLES = "it has Qwen/Qwen1.5-7B-Chat, Qwen/Qwen1.5-72B-Chat, Qwen/Qwen3-8B and others: see qwen-operator models"


def query_of(hub: Hub, spec: Spec) -> HubQuery:
    """The query for the hub: about the repository of the source or, without a source, about the model."""
    source = spec.source
    revision, file = (source.revision, source.file) if source else (None, None)
    return HubQuery(hub, spec.repository or spec.model, revision or "", file or "")


def resolve(hub: Hub, context: SourceContext) -> Facts | Blocked:
    """The facts of a hub's repository, or the reason why they are missing."""
    spec, query = context.spec, query_of(hub, context.spec)
    # The catalog has the size of one file of a GGUF repository, but not its tensors.
    cataloged = None if query.file else catalog.lookup(query.repository)
    by_commit = context.defaults.cache is not None
    if cataloged is not None and (known := _of_catalog(cataloged, query, context)) is not None:
        return known
    if not context.online or not is_repository(query.repository):
        return Blocked(Reason.UNKNOWN_MODEL, f"{_unknown(spec, query)}: {_CLAIM}", waiting=False)
    answer = context.answer if context.answer is not None and context.answer.query == query else None
    if answer is None:
        return _waiting(context.deployment, query)
    again = query if context.now >= answer.again else None
    pending = _pending(again) if again else None
    if answer.checkpoint is not None:
        facts = answer.checkpoint
        if cataloged is not None and not by_commit and not query.revision:
            facts = replace(cataloged, commit=facts.commit)
        return Facts(facts, pending=pending)
    if cataloged is not None and not by_commit and (answer.reason in _SAYS_NOTHING or not query.revision):
        return _without_commit(cataloged, context.running, answer.message, pending)
    return _hub_failure(spec, answer, again, context.now)


def _of_catalog(facts: Checkpoint, query: HubQuery, context: SourceContext) -> Facts | Blocked | None:
    """What the catalog alone says of one of its models; None if the hub must be asked."""
    if context.defaults.cache is not None:
        if is_commit(query.revision):
            return Facts(replace(facts, commit=query.revision))
        if context.online:
            return None
        message = f"{_commit_needed(query)}, and hub.lookup is false: {_COMMIT_CURE}"
        return Blocked(Reason.UNKNOWN_MODEL, message, waiting=False)
    if context.online:
        return None
    if (running := context.running) is not None and running.commit:
        return Facts(replace(facts, commit=running.commit))
    remark = f"revision {query.revision} was not looked up, because hub.lookup is false" if query.revision else ""
    return Facts(facts, remark)


def _without_commit(cataloged: Checkpoint, running: Checkpoint | None, why: str, pending: Blocked | None) -> Facts:
    """The facts while the hub names no commit: those of the commit that runs, or else of the catalog."""
    if running is not None and running.commit:
        return Facts(running, f"the operator keeps the commit that runs, because {why}", pending)
    return Facts(cataloged, f"the operator uses the catalog's facts and pins no commit, because {why}", pending)


def _waiting(deployment: Mapping[str, Any], query: HubQuery) -> Blocked:
    """The reason while there is no answer yet. A failure that the previous leader reported for this spec stays."""
    condition = objects.condition(deployment, ConditionType.PLANNED)
    of_this_spec = condition.get("observedGeneration") == deployment["metadata"].get("generation")
    if of_this_spec and condition.get("reason") in _HELD:
        return Blocked(Reason(condition["reason"]), str(condition.get("message")), waiting=False, query=query)
    return _pending(query)


def _pending(query: HubQuery) -> Blocked:
    """Waiting for the hub's answer."""
    message = f"the operator reads {query.file or 'config.json'} of {query} from its hub"
    return Blocked(Reason.INSPECTING, message, waiting=True, query=query)


def _hub_failure(spec: Spec, answer: HubAnswer, again: HubQuery | None, now: datetime) -> Blocked:
    assert answer.reason is not None
    query, answered = answer.query, answer.message
    reason = _REASONS[answer.reason]
    if answer.reason is HubReason.NOT_FOUND and query.file:
        reason, message = Reason.MODEL_NOT_FOUND, f"{answered}: correct spec.source"
    elif answer.reason is HubReason.NOT_FOUND and catalog.lookup(query.repository):
        reason, message = (
            Reason.MODEL_NOT_FOUND,
            f"{answered}: correct spec.source.revision, which is {query.revision}",
        )
    elif answer.reason is HubReason.GATED:
        message = f"{answered}: {TERMS_CURE}"
    elif answer.reason in _SAYS_NOTHING and catalog.lookup(query.repository):
        message = f"{_commit_needed(query)}, and {answered}; the operator asks it again. Or: {_COMMIT_CURE}"
    elif answer.reason in (HubReason.OFFLINE, HubReason.UNAVAILABLE):
        message = f"{_unknown(spec, query)}, and {answered}; the operator asks it again. Without the hub: {_CLAIM}"
    elif answer.reason is HubReason.AUTH_REQUIRED:
        message = f"{answered}, and the operator reads no Secrets: {_TOKEN}, or download it yourself, {_CLAIM}"
    elif answer.reason is HubReason.NOT_FOUND:
        cure = f"correct spec.model or spec.source; if it is private, {_TOKEN}, or {_CLAIM}"
        message = f"{_unknown(spec, query)}, and {answered}: {cure}"
    elif answer.reason is HubReason.UNKNOWN_ARCHITECTURE:
        message = answered
    else:
        other = "file or repository" if query.file else "repository"
        message = f"{answered}; choose another {other}, or {_CLAIM}"
    due = max(0.0, (answer.again - now).total_seconds())
    return Blocked(reason, message, waiting=False, query=again, requeue_after=due or None)


def _commit_needed(query: HubQuery) -> str:
    return f"the cache has models by their commit, and the operator does not know the commit of {query}"


def _unknown(spec: Spec, query: HubQuery) -> str:
    field = f'spec.source.uri "{spec.source.uri}"' if spec.source else f'spec.model "{spec.model}"'
    if pasted := uris.cure(query.repository):
        return f"{field} is the address of a page. {pasted}"
    if query.file:
        return f'spec.source.file "{query.file}" can be planned only with its header, which the operator must read'
    return f"{field} is not in the catalog{suggestion(query.repository)} ({_EXAMPLES})"
