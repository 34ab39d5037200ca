"""How the API's types carry their own documentation and limits.

Each field of an API dataclass is declared with `described(text, ...)`. The text and the limits are OpenAPI keywords.
`schema.py` turns them into the CRD, and `reading.py` checks objects against the same schema, so the two always agree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that no schema keyword can express. It has two forms: CEL for the API server, Python for the operator.

    `message` is a constant, because a computed one exceeds the API server's cost budget for the whole CRD. `cure` is
    what the operator itself adds to it for a value, "" if it has nothing to add.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    cure: Callable[[Any], str] | None = None


def matches(pattern: str, value: str) -> bool:
    """Whether CEL's `matches` accepts the value. In RE2, `$` matches only at the very end and classes are ASCII."""
    return re.search(re.sub(r"\$(?=\)?$)", r"\\Z", pattern), value, re.ASCII) is not None


class Passthrough(dict[str, Any]):
    """A part of a pod that the operator passes on to Kubernetes unchanged. Its fields are Kubernetes' own."""


def described(
    description: str,
    *,
    default: Any = dataclasses.MISSING,
    rules: tuple[Rule, ...] = (),
    changes_pods: bool | None = None,
    **schema: Any,
) -> Any:
    """A dataclass field with its description (Markdown-free text for `kubectl explain`), rules and limits.

    `changes_pods` is for the fields of Spec: whether another value needs new pods. A field without it replaces no
    pods, so that a forgotten declaration never restarts a fleet. The value of an object field holds for its members.
    `schema` holds OpenAPI keywords in snake case (max_length, pattern, minimum, ...), `items` with the keywords of a
    list's elements or a map's values, and `list_type` / `list_map_keys`. A callable `default` is a factory.
    """
    metadata = {"description": description, "rules": rules, "schema": schema, "changes_pods": changes_pods}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def camel(name: str) -> str:
    """The API's spelling of a Python name: served_names becomes servedNames."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)
