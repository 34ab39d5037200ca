"""Whether the ResourceQuotas of a namespace have room for a pod. Pure.

The operator checks this before it creates a pod. So it can give a message with numbers, and sends no request that must
fail. The API server decides: the operator also reports the API server's own rejection.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.types import Action, Create, Kind
from qwen_operator.manifests.names import LABEL_REPLICA, Manifest
from qwen_operator.manifests.quantities import amount, shown

# A quota may name the requests for these resources without the prefix "requests.".
_SHORT = ("cpu", "memory", "ephemeral-storage")


@dataclass(slots=True)
class _Room:
    """One quota, and what the pods of this decision take from it."""

    quota: Manifest
    taken: dict[str, Decimal] = field(default_factory=dict)


def within_quotas(
    actions: Sequence[Action], quotas: Iterable[Manifest], earlier: Sequence[Action] = ()
) -> tuple[tuple[Action, ...], str | None]:
    """The actions without the creations of pods for which a quota has no room, and a message about the first of those.

    `earlier` are actions that have passed this check before. Their pods take room too.
    """
    rooms = [_Room(quota) for quota in quotas if not _scoped(quota)]
    for action in earlier:
        if isinstance(action, Create) and action.kind is Kind.POD:
            _take(rooms, usage(action.manifest))
    kept: list[Action] = []
    first_message: str | None = None
    for group in _together(actions):
        pods = [one.manifest for one in group if isinstance(one, Create) and one.kind is Kind.POD]
        message = _no_room(rooms, pods)
        if message is not None:
            first_message = first_message or message
            continue
        for pod in pods:
            _take(rooms, usage(pod))
        kept += group
    return tuple(kept), first_message


def _together(actions: Sequence[Action]) -> list[list[Action]]:
    """The actions in their order. Creations of pods of one replica are together: a part of a replica is of no use."""
    groups: list[list[Action]] = []
    replicas: dict[str, list[Action]] = {}
    for action in actions:
        creates = isinstance(action, Create) and action.kind is Kind.POD
        replica = objects.labels(action.manifest).get(LABEL_REPLICA) if isinstance(action, Create) and creates else None
        if replica is None:
            groups.append([action])
        elif replica in replicas:
            replicas[replica].append(action)
        else:
            replicas[replica] = [action]
            groups.append(replicas[replica])
    return groups


def without_devices(quotas: Iterable[Manifest]) -> list[Manifest]:
    """The quotas as they are for pods that take no GPUs and no other devices."""
    reduced = []
    for quota in quotas:
        parts = {part: objects.mapping(quota, part) for part in ("status", "spec")}
        for part, content in parts.items():
            hard = objects.mapping(content, "hard")
            parts[part] = {**content, "hard": {name: most for name, most in hard.items() if not _of_device(name)}}
        reduced.append({**quota, **parts})
    return reduced


def _of_device(name: object) -> bool:
    """Whether a quota's name is of an extended resource, such as requests.nvidia.com/gpu."""
    return "/" in str(name) and not str(name).startswith("count/")


def _scoped(quota: Manifest) -> bool:
    """Whether the quota counts only some pods. The operator ignores such a quota; the API server still applies it."""
    spec = objects.mapping(quota, "spec")
    return bool(spec.get("scopes") or spec.get("scopeSelector"))


def _no_room(rooms: Iterable[_Room], pods: Sequence[Manifest]) -> str | None:
    """The message about the first quota without room for all of these pods; None if all have room."""
    needs = _sum(usage(pod) for pod in pods)
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
                    f"{_called(pods)} {shown(need)}: raise the quota or free some of it; "
                    f"the {'pod then starts' if len(pods) == 1 else 'replica then starts'} by itself"
                )
    return None


def _sum(amounts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for one in amounts:
        for resource, value in one.items():
            total[resource] = total.get(resource, Decimal(0)) + value
    return total


def _called(pods: Sequence[Manifest]) -> str:
    if len(pods) == 1:
        return f"{pods[0]['metadata']['name']} needs"
    return f"{objects.labels(pods[0]).get(LABEL_REPLICA)} needs on {len(pods)} nodes"


def _take(rooms: Iterable[_Room], needs: Mapping[str, Decimal]) -> None:
    for room in rooms:
        for resource, need in needs.items():
            room.taken[resource] = room.taken.get(resource, Decimal(0)) + need


def usage(pod: Manifest) -> dict[str, Decimal]:
    """What a pod takes from a quota, by the quota's names: pods, count/pods, requests.*, limits.*, cpu, memory."""
    spec = pod["spec"]
    amounts = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for part in ("requests", "limits"):
        for resource, total in _effective(spec, part).items():
            amounts[f"{part}.{resource}"] = total
            if part == "requests" and resource in _SHORT:
                amounts[resource] = total
    return amounts


def _effective(spec: Mapping[str, Any], part: str) -> dict[str, Decimal]:
    """The sum over the containers, or the largest init container if that is more.

    Init containers run one after the other, before the containers.
    """
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
