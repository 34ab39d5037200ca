"""Which pods to create, unroute, restore, repair and delete so that the replicas become those of a revision. Pure.

Names are deterministic, so a stale view ends in "already exists" and never in a second pod. What is to be replaced
(an earlier revision, a pod on a cordoned node) goes one replica at a time: a pod is started beside it, and it drains
when that one answers. Indices have gaps: who goes is decided by load, not by number.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qwen_operator.actions.types import Action, Create, Delete, Kind, Patch, Target, Why
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.names import LABEL_ROUTABLE, Owner, engine_pod_name
from qwen_operator.manifests.pods import engine_pod
from qwen_operator.replicas.draining import Orders, cordon_marks, deletion, lost, remove, restore, unrouting_repair
from qwen_operator.replicas.groups import Fleet, cordoned, is_draining, up
from qwen_operator.replicas.pod_state import PodState


@dataclass(frozen=True, slots=True)
class Moves:
    """`first` are creations and patches, `last` deletions. `blocked`: names that are needed and belong to others."""

    first: tuple[Action, ...] = ()
    last: tuple[Action, ...] = ()
    blocked: tuple[str, ...] = ()


def moves(owner: Owner, target: Target, fleet: Fleet, orders: Orders, taken: Collection[str]) -> Moves:
    """The steps towards `orders.wanted` replicas of the target; `taken` are names of pods that are not ours."""
    returning = _returning(target, fleet, orders)
    excess = max(0, len(fleet.fresh) - orders.wanted)
    victims, kept = _split(first_to_go(fleet.fresh, orders), excess)
    # Those that come back count only once they are seen routable.
    surplus = max(0, sum(state.ready for state in kept) + len(fleet.leaving) - orders.wanted)
    replaced, staying = _split(first_to_go(fleet.leaving, orders), surplus)
    going = [
        *(remove(state, Why.SCALED_DOWN, orders) for state in victims),
        *(remove(state, _cause(state, target, orders), orders) for state in replaced),
    ]
    unrouted = [action for action in going if isinstance(action, Patch)]
    number = _missing(len(kept) + len(returning), len(staying), _ended(fleet, target), orders.wanted)
    indices, blocked = _free(owner, target, fleet, taken, number)
    return Moves(
        first=(
            *(restore(state) for state in returning),
            *unrouted,
            *_marks(fleet, orders, unrouted),
            *(_creation(owner, target, index, fleet, orders) for index in indices),
        ),
        last=(*_removals(fleet, orders, returning), *(action for action in going if isinstance(action, Delete))),
        blocked=tuple(blocked),
    )


def _split(states: list[PodState], number: int) -> tuple[list[PodState], list[PodState]]:
    return states[:number], states[number:]


def first_to_go(states: Sequence[PodState], orders: Orders) -> list[PodState]:
    """Pods in the order in which they go: what does not answer, what the policy names, the highest index."""
    named = orders.scaling.removal_order if orders.scaling else ()
    rank = {name: position for position, name in enumerate(named)}
    return sorted(
        states, key=lambda state: (up(state), rank.get(state.name, len(rank)), -(state.index or 0), state.name)
    )


def _returning(target: Target, fleet: Fleet, orders: Orders) -> list[PodState]:
    """Draining pods that are wanted again: capacity without a start."""
    able = [
        state
        for state in fleet.draining
        if state.revision == target.revision and up(state) and not cordoned(state, orders.nodes)
    ]
    needed = max(0, orders.wanted - len(fleet.fresh))
    return first_to_go(able, orders)[::-1][:needed]


def _cause(state: PodState, target: Target, orders: Orders) -> Why:
    if orders.wanted == 0:
        return Why.SCALED_DOWN
    return Why.CORDONED if state.revision == target.revision else Why.REPLACED


def _ended(fleet: Fleet, target: Target) -> int:
    """Pods that have ended keep their place until they are removed."""
    return sum(state.revision == target.revision for state in fleet.ended)


def _missing(kept: int, staying: int, ended: int, wanted: int) -> int:
    """How many pods to make: all that are missing, and one beside those that wait for a successor."""
    room = wanted + (1 if staying else 0) - staying
    return max(0, min(wanted, room) - kept - ended)


def _free(
    owner: Owner, target: Target, fleet: Fleet, taken: Collection[str], number: int
) -> tuple[list[int], list[str]]:
    """The lowest free indices, and the names among them that belong to somebody else."""
    ours = {state.name for state in fleet.all}
    indices: list[int] = []
    blocked: list[str] = []
    index = 0
    while len(indices) + len(blocked) < number:
        name = engine_pod_name(owner.name, target.revision, index)
        if name in taken:
            blocked.append(name)
        elif name not in ours:
            indices.append(index)
        index += 1
    return indices, blocked


def _creation(owner: Owner, target: Target, index: int, fleet: Fleet, orders: Orders) -> Create:
    pod = engine_pod(owner, target.revision, target.template, index, orders.drain_seconds)
    return Create(Kind.POD, pod, Why.NEW_REVISION if fleet.leaving else Why.REPLICA_MISSING)


def _marks(fleet: Fleet, orders: Orders, unrouted: Sequence[Patch]) -> list[Patch]:
    busy = {patch.name for patch in unrouted}
    return [mark for mark in cordon_marks(fleet, orders) if mark.name not in busy]


def _removals(fleet: Fleet, orders: Orders, returning: Sequence[PodState]) -> list[Action]:
    """Deletions of what nobody waits for any more."""
    done = [deletion(state, orders) for state in fleet.draining if state not in returning]
    return [
        *(Delete(Kind.POD, state.name, state.uid, Why.POD_ENDED) for state in fleet.ended),
        *(Delete(Kind.POD, state.name, state.uid, Why.SURPLUS) for state in fleet.strange),
        *(Delete(Kind.POD, state.name, state.uid, Why.OLD_NOT_READY) for state in fleet.useless),
        *(action for action in done if action is not None),
        *(
            Delete(Kind.POD, state.name, state.uid, Why.NODE_LOST, grace_seconds=0)
            for state in fleet.gone
            if lost(state, orders.nodes, orders.now)
        ),
    ]


def pod_repairs(
    owner: Owner, targets: Mapping[str, Target], states: Sequence[PodState], drain_seconds: int
) -> list[Action]:
    """Put back what was edited in pods of ours; what others added stays."""
    actions: list[Action] = []
    for state in states:
        target = targets.get(state.revision)
        if target is None or state.index is None or state.deleting or state.ended:
            continue
        desired = engine_pod(owner, state.revision, target.template, state.index, drain_seconds)
        if is_draining(state):
            desired["metadata"]["labels"].pop(LABEL_ROUTABLE, None)
            unrouting = unrouting_repair(state)
            actions += [unrouting] if unrouting else []
        patch = pod_repair(desired, state.pod)
        if patch is not None:
            actions.append(Patch(Kind.POD, state.name, patch, Why.DRIFTED))
    return actions
