"""Which pods to create, repair and delete so that the replicas become those of a revision. Pure.

Names are deterministic, so a stale view ends in "already exists" and never in a second pod. A new revision comes in
one replica at a time: its pod is started beside the old one, which goes when the new one answers.
"""

from collections.abc import Collection, Mapping, Sequence

from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.names import Owner, engine_pod_name
from qwen_operator.manifests.pods import engine_pod
from qwen_operator.reconcile.model import Action, Create, Delete, Kind, Patch, Target, Why
from qwen_operator.reconcile.podstate import PodState


def pod_actions(
    owner: Owner, target: Target, states: Sequence[PodState], taken: Collection[str], wanted: int
) -> tuple[list[Action], list[Action]]:
    """Creations and deletions towards `wanted` replicas of the target.

    `states` are the engine pods that are ours, `taken` names that belong to others.
    """
    alive = [state for state in states if not state.deleting]
    deletions = [_delete(state, Why.POD_ENDED) for state in alive if state.ended]
    running = [state for state in alive if not state.ended]
    deletions += _surplus(running, wanted)
    kept = [state for state in running if state.index is not None and state.index < wanted]
    names = {state.name for state in states} | set(taken)
    creations: list[Action] = []
    surging = any(_surges(state, target.revision, kept) for state in kept)
    for index in range(wanted):
        current, old = _at(kept, target.revision, index)
        # One that has come up and is not ready at the moment is not given up before its successor answers.
        old_ready = [state for state in old if state.started]
        deletions += [_delete(state, Why.OLD_NOT_READY) for state in old if not state.started]
        if current is not None:
            deletions += [_delete(state, Why.REPLACED) for state in old_ready if current.ready]
            continue
        name = engine_pod_name(owner.name, target.revision, index)
        if name in names or (old_ready and surging):
            continue
        surging = surging or bool(old_ready)
        pod = engine_pod(owner, target.revision, target.template, index)
        creations.append(Create(Kind.POD, pod, Why.NEW_REVISION if old_ready else Why.REPLICA_MISSING))
    return creations, deletions


def pod_repairs(owner: Owner, targets: Mapping[str, Target], states: Sequence[PodState]) -> list[Action]:
    """Put back what was edited in pods of ours; what others added stays."""
    actions: list[Action] = []
    for state in states:
        target = targets.get(state.revision)
        if target is None or state.index is None or state.deleting or state.ended:
            continue
        patch = pod_repair(engine_pod(owner, state.revision, target.template, state.index), state.pod)
        if patch is not None:
            actions.append(Patch(Kind.POD, state.name, patch, Why.DRIFTED))
    return actions


def _surplus(running: Sequence[PodState], wanted: int) -> list[Action]:
    """Pods beyond the wanted number, highest index first, after those that have no index of ours."""
    strange = [_delete(state, Why.SURPLUS) for state in running if state.index is None]
    beyond = [state for state in running if state.index is not None and state.index >= wanted]
    beyond.sort(key=lambda state: (state.index or 0, state.name), reverse=True)
    return [*strange, *(_delete(state, Why.SCALED_DOWN) for state in beyond)]


def _at(kept: Sequence[PodState], revision: str, index: int) -> tuple[PodState | None, list[PodState]]:
    """The present revision's pod of an index, and the others of that index."""
    here = [state for state in kept if state.index == index]
    current = next((state for state in here if state.revision == revision), None)
    return current, [state for state in here if state.revision != revision]


def _surges(state: PodState, revision: str, kept: Sequence[PodState]) -> bool:
    """Whether this pod of the present revision stands beside one that serves, or served, in its place."""
    return state.revision == revision and any(other.started for other in _at(kept, revision, state.index or 0)[1])


def _delete(state: PodState, why: Why) -> Action:
    return Delete(Kind.POD, state.name, state.uid, why)
