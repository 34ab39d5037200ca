"""Reason and message about served names that a QwenDeployment does not have. Pure."""

from collections.abc import Sequence

from qwen_operator.api.claims import Loss, LostName
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec


def lost_reason(lost: Sequence[LostName]) -> Reason:
    """NAME_NOT_ALLOWED if only a right is missing, else NAME_CONFLICT."""
    forbidden = all(one.loss is Loss.FORBIDDEN for one in lost)
    return Reason.NAME_NOT_ALLOWED if forbidden else Reason.NAME_CONFLICT


def lost_message(spec: Spec, lost: Sequence[LostName]) -> str:
    """Who has each name, since when, and what to do.

    A tenant must know whom to ask, but not what other tenants call their objects. So the message names a holder in
    another namespace only by its namespace.
    """
    field = "spec.servedNames has" if spec.served_names else "spec.servedNames is empty, so the name is spec.model"
    return "; ".join(_sentence(one, f'{field} "{one.name}"') for one in lost)


def _sentence(lost: LostName, field: str) -> str:
    if lost.loss is Loss.FORBIDDEN:
        return (
            f"{field}, which this namespace may not serve (allowed: {lost.allowed}): choose another "
            "name in spec.servedNames, or ask the platform team to allow it in the Helm value servedNames"
        )
    if lost.loss is Loss.UNKNOWN:
        more = f" or {len(lost.unread) - 1} more" if len(lost.unread) > 1 else ""
        return (
            f"{field}, which a QwenDeployment in namespace {lost.unread[0]}{more} may hold. The operator may not read "
            "that namespace, so it does not know: choose another name in spec.servedNames, or let the platform team "
            "give the operator its rights there back, or take the namespace out of the Helm value watchNamespaces"
        )
    assert lost.holding is not None
    namespace = f"namespace {lost.holding.namespace}"
    if lost.loss is Loss.RESERVED:
        return (
            f"{field}, whose holder in {namespace} was deleted. The name is reserved for that "
            f"namespace until {lost.holding.until}: wait, or choose another name in spec.servedNames"
        )
    holder = (
        f"QwenDeployment {lost.deployment} of this namespace" if lost.deployment else f"a QwenDeployment in {namespace}"
    )
    if lost.loss is Loss.NEXT:
        return f"{field}, which {holder} gets now: choose another name in spec.servedNames"
    since = f" since {lost.holding.since}" if lost.holding.since else ""
    return (
        f"{field}, which {holder} holds{since}: choose another name in spec.servedNames, or have the "
        "holder remove it from its own"
    )
