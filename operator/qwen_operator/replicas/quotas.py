"""Whether a namespace's ResourceQuotas have room for a pod. Pure.

Asked before a pod is made, so that the answer is a sentence with numbers and no refused request. The API server has
the last word: its own refusal is told as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.types import Action, Create, Kind
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.quantities import amount

# What a quota may call the requests of a pod without a prefix.
_SHORT = ("cpu", "memory", "ephemeral-storage")


@dataclass(slots=True)
class _Room:
    """One quota: what is used is counted on while pods are granted."""

    quota: Manifest
    taken: dict[str, Decimal] = field(default_factory=dict)


def granted(
    actions: Sequence[Action], quotas: Iterable[Manifest], earlier: Sequence[Action] = ()
) -> tuple[tuple[Action, ...], str | None]:
    """The actions without the creations of pods for which a quota has no room, and a sentence about the first one.

    `earlier` actions were granted before and take room too.
    """
    rooms = [_Room(quota) for quota in quotas if not _scoped(quota)]
    for action in earlier:
        if isinstance(action, Create) and action.kind is Kind.POD:
            _take(rooms, usage(action.manifest))
    kept: list[Action] = []
    refusal: str | None = None
    for action in actions:
        if isinstance(action, Create) and action.kind is Kind.POD:
            sentence = _refusal(rooms, action.manifest)
            if sentence is not None:
                refusal = refusal or sentence
                continue
            _take(rooms, usage(action.manifest))
        kept.append(action)
    return tuple(kept), refusal


def _scoped(quota: Manifest) -> bool:
    """Whether the quota counts only some pods. Which ones is left to the API server."""
    spec = objects.mapping(quota, "spec")
    return bool(spec.get("scopes") or spec.get("scopeSelector"))


def _refusal(rooms: Iterable[_Room], pod: Manifest) -> str | None:
    needs = usage(pod)
    for room in rooms:
        name = room.quota["metadata"]["name"]
        hard = objects.mapping(room.quota, "status", "hard") or objects.mapping(room.quota, "spec", "hard")
        for resource, limit in hard.items():
            need, most = needs.get(resource), amount(limit)
            used = objects.mapping(room.quota, "status", "used").get(resource, "0")
            if not need or most is None:
                continue
            if (amount(used) or Decimal(0)) + room.taken.get(resource, Decimal(0)) + need > most:
                return (
                    f'the ResourceQuota "{name}" allows {limit} {resource}, {used} are used, and '
                    f"{pod['metadata']['name']} needs {_text(need)}: raise the quota or free some; "
                    "it then starts by itself"
                )
    return None


def _take(rooms: Iterable[_Room], needs: Mapping[str, Decimal]) -> None:
    for room in rooms:
        for resource, need in needs.items():
            room.taken[resource] = room.taken.get(resource, Decimal(0)) + need


def usage(pod: Manifest) -> dict[str, Decimal]:
    """What a pod counts in a quota, by the quota's names: pods, count/pods, requests.*, limits.*, cpu, memory."""
    spec = pod["spec"]
    found = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for part in ("requests", "limits"):
        for resource, total in _effective(spec, part).items():
            found[f"{part}.{resource}"] = total
            if part == "requests" and resource in _SHORT:
                found[resource] = total
    return found


def _effective(spec: Mapping[str, Any], part: str) -> dict[str, Decimal]:
    """The sum over containers, or the largest init container where that is more: they run one after the other."""
    total: dict[str, Decimal] = {}
    for container in objects.members(spec, "containers"):
        for resource, value in _amounts(container, part).items():
            total[resource] = total.get(resource, Decimal(0)) + value
    for container in objects.members(spec, "initContainers"):
        for resource, value in _amounts(container, part).items():
            total[resource] = max(total.get(resource, Decimal(0)), value)
    return total


def _amounts(container: Mapping[str, Any], part: str) -> dict[str, Decimal]:
    values = objects.mapping(container, "resources", part).items()
    return {resource: number for resource, value in values if (number := amount(value)) is not None}


def _text(number: Decimal) -> str:
    """Whole where it can be, and with a unit of memory where that is shorter."""
    if number != number.to_integral_value():
        return f"{(number * 1000).to_integral_value()}m"
    whole = int(number)
    for suffix, power in (("Gi", 30), ("Mi", 20)):
        if whole >= 2**power and whole % 2**power == 0:
            return f"{whole >> power}{suffix}"
    return str(whole)
