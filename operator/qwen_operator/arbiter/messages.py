"""What people read about a grant. Pure."""

from __future__ import annotations

from qwen_operator.arbiter.types import Grant
from qwen_operator.objects import ObjectKey

_MOST_NAMES = 3


def short_of_gpus(grant: Grant, namespace: str) -> str:
    """Why a deployment of this namespace gets fewer replicas than it wants; "" if it gets all.

    It names no deployment of another namespace.
    """
    if not grant.is_short:
        return ""
    number = f"the GPUs suffice for {grant.replicas} of {grant.asked} wanted replicas"
    holders = _holders(grant.waits_for, namespace)
    return f"{number}; the rest is used by {holders}" if holders else f"{number} at the moment"


def in_words(grant: Grant) -> str:
    """The grant for the operator's log, which has the names of all namespaces."""
    nodes = " and ".join(" + ".join(place) for place in grant.places)
    parts = [
        f"{grant.replicas} of {grant.asked} replicas",
        f"new pods go to {nodes}" if nodes else "",
        f"{', '.join(grant.drains)} must go" if grant.drains else "",
        f"{', '.join(grant.returns)} may stay" if grant.returns else "",
        f"it waits for room on {', '.join(grant.awaited)}" if grant.awaited else "",
        f"GPUs are held by {', '.join('/'.join(key) for key in grant.waits_for)}" if grant.waits_for else "",
    ]
    return "; ".join(part for part in parts if part)


def _holders(keys: tuple[ObjectKey, ...], namespace: str) -> str:
    own = [name for space, name in keys if space == namespace]
    others = len(keys) - len(own)
    names = own[:_MOST_NAMES]
    if len(own) > _MOST_NAMES:
        names.append(f"{len(own) - _MOST_NAMES} more of this namespace")
    if others:
        names.append("a deployment of another namespace" if others == 1 else "deployments of other namespaces")
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
