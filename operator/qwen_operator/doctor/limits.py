"""What a LimitRange and a ResourceQuota do to a pod, by the rules of Kubernetes' admission plugins. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from decimal import Decimal
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.quantities import amount
from qwen_operator.objects import mapping, members

# A quota for one of these rejects every pod with a container that does not state it.
_STATED = {
    "limits.cpu": ("limits", "cpu"),
    "limits.memory": ("limits", "memory"),
    "requests.cpu": ("requests", "cpu"),
    "requests.memory": ("requests", "memory"),
    "cpu": ("requests", "cpu"),
    "memory": ("requests", "memory"),
}
_CONTAINERS = ("initContainers", "containers")


def with_defaults(pod: Mapping[str, Any], ranges: Iterable[objects.Object]) -> dict[str, Any]:
    """A copy of the pod with the defaults that the LimitRanges give to containers without their own value."""
    filled = deepcopy(dict(pod))
    rules = [rule for one in ranges for rule in members(one, "spec", "limits") if rule.get("type") == "Container"]
    for container in _containers(filled):
        resources = container.setdefault("resources", {})
        requests, limits = resources.setdefault("requests", {}), resources.setdefault("limits", {})
        for name, value in limits.items():
            requests.setdefault(name, value)
        for rule in rules:
            for name, value in mapping(rule, "defaultRequest").items():
                requests.setdefault(name, value)
            for name, value in mapping(rule, "default").items():
                limits.setdefault(name, value)
    return filled


def refusals(pod: Mapping[str, Any], ranges: Iterable[objects.Object]) -> Iterator[str]:
    """Why the API server rejects a pod that has the defaults, as half sentences. A limit below its request is one."""
    for container in _containers(pod):
        requests, limits = (mapping(container, "resources", part) for part in ("requests", "limits"))
        for name, limit in limits.items():
            if _more(requests.get(name), limit):
                yield (
                    f"container {container['name']} requests {requests[name]} {name}, and its default limit is {limit}"
                )
    for one in ranges:
        for rule in members(one, "spec", "limits"):
            if rule.get("type") == "Container":
                for container in _containers(pod):
                    label = f"container {container['name']}"
                    yield from _broken(label, mapping(container, "resources"), rule)
            elif rule.get("type") == "Pod":
                yield from _broken("the pod", _total(pod), rule)


def unstated(pod: Mapping[str, Any], quota: objects.Object) -> str:
    """The first resource of a quota that a container does not state, and the container. "" if there is none."""
    for resource in mapping(quota, "spec", "hard"):
        if resource not in _STATED:
            continue
        part, name = _STATED[resource]
        for container in _containers(pod):
            if name not in mapping(container, "resources", part):
                return f"{resource}, which container {container['name']} does not state"
    return ""


def _containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [container for key in _CONTAINERS for container in pod["spec"].get(key, [])]


def _broken(label: str, resources: objects.Object, rule: objects.Object) -> Iterator[str]:
    """The bounds of a rule that these resources break."""
    requests, limits = mapping(resources, "requests"), mapping(resources, "limits")
    for name, most in mapping(rule, "max").items():
        if name not in limits:
            yield f"{label} has no limit for {name}, and the most is {most}"
        elif _more(limits[name], most) or _more(requests.get(name), most):
            yield f"{label} takes {limits[name]} {name}, and the most is {most}"
    for name, least in mapping(rule, "min").items():
        if _more(least, requests.get(name, 0)):
            yield f"{label} requests {requests.get(name, 0)} {name}, and the least is {least}"
    for name, ratio in mapping(rule, "maxLimitRequestRatio").items():
        request, limit = amount(requests.get(name, 0)), amount(limits.get(name, 0))
        if not request or not limit:
            yield f"{label} needs a request and a limit for {name}, because their ratio is bounded by {ratio}"
        elif limit / request > (amount(ratio) or 0):
            yield (
                f"{label} has limit {limits[name]} and request {requests[name]} for {name}, and the ratio may be "
                f"{ratio}"
            )


def _total(pod: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The resources of the containers together. A resource counts only if every container states it."""
    containers = pod["spec"].get("containers", [])
    total: dict[str, dict[str, str]] = {}
    for part in ("requests", "limits"):
        stated = [mapping(container, "resources", part) for container in containers]
        names = set.intersection(*(set(one) for one in stated)) if stated else set()
        total[part] = {
            name: str(sum((amount(one[name]) or Decimal(0) for one in stated), Decimal(0))) for name in names
        }
    return total


def _more(value: Any, most: Any) -> bool:
    number, bound = amount(value) if value is not None else None, amount(most)
    return number is not None and bound is not None and number > bound
