"""Whether the required node affinity of a pod takes a node, by the rules of kube-scheduler. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_operator import objects, untrusted
from qwen_operator.manifests.names import Manifest

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_LARGEST = 10**18


def required_terms(pod: Manifest) -> tuple[objects.Object, ...]:
    """The terms of the pod's required node affinity. A node must match one of them, if there are any."""
    return tuple(objects.members(pod, "spec", "affinity", "nodeAffinity", _REQUIRED, "nodeSelectorTerms"))


def takes(terms: Sequence[objects.Object], node: str, labels: Mapping[str, object]) -> bool:
    """Whether these terms take a node of this name and with these labels."""
    return not terms or any(_matches(term, node, labels) for term in terms)


def _matches(term: objects.Object, node: str, labels: Mapping[str, object]) -> bool:
    expressions = objects.members(term, "matchExpressions")
    fields = objects.members(term, "matchFields")
    if not expressions and not fields:
        return False
    return all(_holds(one, labels) for one in expressions) and all(
        _holds(one, {"metadata.name": node}) for one in fields
    )


def _holds(expression: objects.Object, labels: Mapping[str, object]) -> bool:
    key, operator = str(expression.get("key")), str(expression.get("operator"))
    given = expression.get("values")
    values = [str(value) for value in given] if isinstance(given, list) else []
    has = None if labels.get(key) is None else str(labels[key])
    if operator in ("In", "NotIn"):
        return (has in values) == (operator == "In")
    if operator in ("Exists", "DoesNotExist"):
        return (has is not None) == (operator == "Exists")
    if operator not in ("Gt", "Lt") or has is None:
        return False
    number, bound = (untrusted.digits(text, _LARGEST, -1) for text in (str(has), next(iter(values), "")))
    return min(number, bound) >= 0 and (number > bound if operator == "Gt" else number < bound)
