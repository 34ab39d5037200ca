"""Label selectors, and the rules by which an admission policy or webhook selects requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.objects import mapping, members


def selects(selector: objects.Object, labels: Mapping[str, Any]) -> bool:
    """Whether a label selector matches these labels. An empty selector matches everything."""
    wanted = mapping(selector, "matchLabels")
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(expression, labels) for expression in members(selector, "matchExpressions"))


def on_pods(rules: objects.Object | list[objects.Object] | Any) -> bool:
    """Whether one of these rules of admission is about the creation of pods."""
    return isinstance(rules, list) and any(_on_pods(rule) for rule in rules if isinstance(rule, dict))


def _on_pods(rule: objects.Object) -> bool:
    def has(name: str, *values: str) -> bool:
        listed = rule.get(name)
        return isinstance(listed, list) and any(value in listed for value in values)

    return has("apiGroups", "", "*") and has("resources", "pods", "*", "*/*") and has("operations", "CREATE", "*")


def _holds(expression: objects.Object, labels: Mapping[str, Any]) -> bool:
    key, values = str(expression.get("key")), expression.get("values") or []
    present = key in labels
    match expression.get("operator"):
        case "In":
            return present and labels[key] in values
        case "NotIn":
            return not present or labels[key] not in values
        case "Exists":
            return present
        case "DoesNotExist":
            return not present
    # An operator of a later version: better a line too much than a policy that nobody names.
    return True
