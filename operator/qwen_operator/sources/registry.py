"""Which module knows the scheme of a source."""

from __future__ import annotations

from qwen_operator.actions.blocked import Blocked
from qwen_operator.sources import claim, hub
from qwen_operator.sources.claim import leftovers
from qwen_operator.sources.hub import pending
from qwen_operator.sources.types import Facts, SourceContext

__all__ = ["SourceContext", "leftovers", "pending", "resolve"]


def resolve(context: SourceContext) -> Facts | Blocked:
    """The facts of the source, or what they wait for."""
    if context.spec.source is None or context.spec.source.claim is None:
        return hub.resolve(context)
    return claim.resolve(context)
