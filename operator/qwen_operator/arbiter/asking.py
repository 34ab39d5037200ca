"""What a decision asks the arbiter for, and what a grant leaves of its actions. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypeGuard

from qwen_operator import objects
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.arbiter.fits import HOSTNAME
from qwen_operator.arbiter.types import Grant, Size
from qwen_operator.manifests.multi_node import topology_of
from qwen_operator.manifests.names import ANNOTATION_DRAINING_SINCE, LABEL_REPLICA, Manifest
from qwen_operator.replicas.groups import SortedReplicas
from qwen_operator.replicas.places import need_of

_QUEUE = "kueue.x-k8s.io/queue-name"


def takes_part(pod: Manifest) -> bool:
    """Whether the arbiter decides about such pods.

    Kueue decides about those that it queues. The arbiter knows no blocks of nodes that a replica must not leave.
    """
    _, must_share = topology_of(pod)
    return _QUEUE not in objects.labels(pod) and not must_share


def size_after(actions: Iterable[Action], replicas: SortedReplicas) -> tuple[int, int]:
    """How many replicas there are when these actions are done, and how many of them are new."""
    actions = tuple(actions)
    new = len(_new_replicas(actions, replicas))
    gone = {action.name for action in actions if _removes(action)}
    staying = sum(replica.leader.name not in gone for replica in replicas.serving)
    returned = sum(isinstance(action, Patch) and action.reason is ActionReason.LOAD_RETURNED for action in actions)
    return staying + returned + new, new


def granted(actions: Sequence[Action], grant: Grant, replicas: SortedReplicas) -> tuple[Action, ...]:
    """The actions without the new replicas for which there is no place. The pods of the others go to their nodes.

    The grant may answer an older question. Replicas that have another size by now get none of its places.
    """
    new = [name for name, size in _sizes(actions, replicas).items() if size == grant.size]
    # The grant may be older than a replica that was just made for it.
    number = max(0, min(len(grant.places), grant.replicas - len(replicas.serving)))
    places = dict(zip(new, grant.places[:number], strict=False))
    kept: list[Action] = []
    ranks: dict[str, int] = {}
    for action in actions:
        name = _new_replica(action, replicas)
        if name is None or not isinstance(action, Create):
            kept.append(action)
        elif name in places:
            rank = ranks[name] = ranks.get(name, -1) + 1
            kept.append(replace(action, manifest=_pinned(action.manifest, places[name][rank])))
    return tuple(kept)


def number_of_new(actions: Sequence[Action], replicas: SortedReplicas) -> int:
    """How many replicas the actions create that do not exist yet."""
    return len(_new_replicas(actions, replicas))


def with_few_new(actions: Sequence[Action], replicas: SortedReplicas, most: int) -> tuple[Action, ...]:
    """The actions with at most so many new replicas: the first ones."""
    kept = _new_replicas(actions, replicas)[: max(0, most)]
    return tuple(action for action in actions if (name := _new_replica(action, replicas)) is None or name in kept)


def _pinned(pod: Manifest, host: str) -> Manifest:
    selector = {**objects.mapping(pod, "spec", "nodeSelector"), HOSTNAME: host}
    return {**pod, "spec": {**pod["spec"], "nodeSelector": selector}}


def _sizes(actions: Sequence[Action], replicas: SortedReplicas) -> dict[str, Size]:
    """How large each new replica is."""
    pods: dict[str, list[Manifest]] = {}
    for action in actions:
        name = _new_replica(action, replicas)
        if name is not None and isinstance(action, Create):
            pods.setdefault(name, []).append(action.manifest)
    needs = {name: need_of(made[0]) for name, made in pods.items()}
    return {name: Size(need.resource, need.gpus, len(pods[name])) for name, need in needs.items()}


def _new_replicas(actions: Iterable[Action], replicas: SortedReplicas) -> list[str]:
    names = (_new_replica(action, replicas) for action in actions)
    return list(dict.fromkeys(name for name in names if name is not None))


def _new_replica(action: Action, replicas: SortedReplicas) -> str | None:
    """The replica that does not exist yet and whose pod this action creates; None for every other action."""
    if not _creates(action):
        return None
    name = str(objects.labels(action.manifest).get(LABEL_REPLICA) or action.name)
    return None if name in _names(replicas) else name


def _names(replicas: SortedReplicas) -> Collection[str]:
    return {replica.name for replica in replicas.all}


def _creates(action: Action) -> TypeGuard[Create]:
    return isinstance(action, Create) and action.kind is Kind.POD


def _removes(action: Action) -> bool:
    if isinstance(action, Delete):
        return action.kind is Kind.POD
    if not isinstance(action, Patch):
        return False
    since = objects.mapping(action.patch, "metadata", "annotations").get(ANNOTATION_DRAINING_SINCE)
    return since is not None
