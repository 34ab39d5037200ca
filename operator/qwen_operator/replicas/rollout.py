"""Which replicas to create, unroute, restore, repair and delete so that they become those of a revision. Pure.

Names are deterministic, so a stale view ends in "already exists" and never in a second pod. What is to be replaced
(an earlier revision, a replica on a cordoned node) goes one replica at a time: another one is started beside it, and
it drains when that one answers. Indices have gaps: who goes is decided by load, not by number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.names import LABEL_ROUTABLE, Manifest, Owner, PodIdentity, engine_pod_names, replica_name
from qwen_operator.manifests.pods import ReplicaPods, engine_pods, shared_engine_pods
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.draining import (
    RolloutRules,
    cordon_marks,
    delete_members,
    deletion,
    lost,
    remove,
    restore,
    unrouting_repair,
)
from qwen_operator.replicas.groups import Replica, SortedReplicas


@dataclass(frozen=True, slots=True)
class Moves:
    """The steps; `blocked` are names of pods that are needed and belong to others."""

    actions: tuple[Action, ...] = ()
    blocked: tuple[str, ...] = ()


def moves(
    owner: Owner, target: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules, taken: Collection[str]
) -> Moves:
    """The steps towards `rules.wanted` replicas of the target; `taken` are names of pods that are not ours."""
    returning = _returning(target, replicas, rules)
    excess = max(0, len(replicas.fresh) - rules.wanted)
    victims, kept = _split(first_to_go(replicas.fresh, rules), excess)
    # Those that come back count only once they are seen routable.
    surplus = max(0, sum(replica.ready for replica in kept) + len(replicas.leaving) - rules.wanted)
    replaced, staying = _split(first_to_go(replicas.leaving, rules), surplus)
    going = [
        *(action for one in victims for action in remove(one, ActionReason.SCALED_DOWN, rules)),
        *(action for one in replaced for action in remove(one, _cause(one, target, rules), rules)),
    ]
    number = _missing(len(kept) + len(returning), len(staying), _ended(replicas, target), rules.wanted)
    indices, blocked = _free(owner, target, replicas, taken, number)
    return Moves(
        actions=(
            *(restore(replica) for replica in returning),
            *going,
            *_marks(replicas, rules, going),
            *_creations(owner, target, replicas, rules, indices),
            *_completions(owner, target, kept, rules),
            *_removals(replicas, rules, returning),
        ),
        blocked=tuple(blocked),
    )


def _split(replicas: list[Replica], number: int) -> tuple[list[Replica], list[Replica]]:
    return replicas[:number], replicas[number:]


def first_to_go(replicas: Sequence[Replica], rules: RolloutRules) -> list[Replica]:
    """Replicas in the order in which they go: what does not answer, what the policy names, the highest index."""
    order = rules.scaling.removal_order if rules.scaling else ()
    rank = {name: position for position, name in enumerate(order)}

    def place(replica: Replica) -> tuple[bool, int, int, str]:
        return replica.up, rank.get(replica.leader.name, len(rank)), -(replica.index or 0), replica.name

    return sorted(replicas, key=place)


def _returning(target: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules) -> list[Replica]:
    """Draining replicas that are wanted again: capacity without a start."""
    able = [
        replica
        for replica in replicas.draining
        if replica.revision == target.revision and replica.up and not replica.cordoned_node(rules.nodes)
    ]
    needed = max(0, rules.wanted - len(replicas.fresh))
    return first_to_go(able, rules)[::-1][:needed]


def _cause(replica: Replica, target: PinnedRevision, rules: RolloutRules) -> ActionReason:
    if rules.wanted == 0:
        return ActionReason.SCALED_DOWN
    return ActionReason.CORDONED if replica.revision == target.revision else ActionReason.REPLACED


def _ended(replicas: SortedReplicas, target: PinnedRevision) -> int:
    """Replicas that have ended keep their place until their pods are removed."""
    return sum(replica.revision == target.revision for replica in replicas.ended)


def _missing(kept: int, staying: int, ended: int, wanted: int) -> int:
    """How many replicas to make: all that are missing, and one beside those that wait for a successor."""
    room = wanted + (1 if staying else 0) - staying
    return max(0, min(wanted, room) - kept - ended)


def _free(
    owner: Owner, target: PinnedRevision, replicas: SortedReplicas, taken: Collection[str], number: int
) -> tuple[list[int], list[str]]:
    """The lowest free indices, and the names of pods among them that belong to somebody else."""
    ours = {replica.name for replica in replicas.all}
    indices: list[int] = []
    blocked: list[str] = []
    index = 0
    while len(indices) + len(blocked) < number:
        name = replica_name(owner.name, target.revision, index)
        foreign = [pod for pod in engine_pod_names(name, target.plan.nodes_per_replica) if pod in taken]
        if foreign:
            blocked.append(foreign[0])
        elif name not in ours:
            indices.append(index)
        index += 1
    return indices, blocked


def _creations(
    owner: Owner, target: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules, indices: Sequence[int]
) -> Iterator[Create]:
    reason = ActionReason.NEW_REVISION if replicas.leaving else ActionReason.REPLICA_MISSING
    for index in indices:
        for pod in _pods(owner, target, index, rules.drain_seconds):
            yield Create(Kind.POD, pod, reason)


def _completions(
    owner: Owner, target: PinnedRevision, kept: Sequence[Replica], rules: RolloutRules
) -> Iterator[Create]:
    """The pods that a replica still lacks because the operator stopped while it made them."""
    for replica in kept:
        if replica.index is not None and replica.missing_ranks and replica.revision == target.revision:
            pods = _pods(owner, target, replica.index, rules.drain_seconds)
            for rank in replica.missing_ranks:
                yield Create(Kind.POD, pods[rank], ActionReason.REPLICA_MISSING)


def _pods(owner: Owner, target: PinnedRevision, index: int, drain_seconds: int) -> tuple[Manifest, ...]:
    return engine_pods(_replica_pods(owner, target, index), target.template, drain_seconds)


def _replica_pods(owner: Owner, target: PinnedRevision, index: int) -> ReplicaPods:
    return ReplicaPods(PodIdentity(owner, target.revision), index, target.plan.nodes_per_replica)


def _marks(replicas: SortedReplicas, rules: RolloutRules, going: Sequence[Action]) -> list[Patch]:
    busy = {action.name for action in going}
    return [mark for mark in cordon_marks(replicas, rules) if mark.name not in busy]


def _removals(replicas: SortedReplicas, rules: RolloutRules, returning: Sequence[Replica]) -> Iterator[Action]:
    """Deletions of what nobody waits for any more."""
    for place, reason in (
        (replicas.ended, ActionReason.POD_ENDED),
        (replicas.strange, ActionReason.SURPLUS),
        (replicas.useless, ActionReason.OLD_NOT_READY),
    ):
        for replica in place:
            yield from delete_members(replica, reason)
    for replica in replicas.draining:
        if replica not in returning:
            yield from deletion(replica, rules)
    for replica in replicas.gone:
        yield from _ending(replica, rules)


def _ending(replica: Replica, rules: RolloutRules) -> Iterator[Action]:
    """The end of a replica that loses, or lost, a member: the others end too, and none waits for a node that is gone.

    A pod on a node that is gone is left to Kubernetes, which deletes it.
    """
    for member in replica.members:
        if lost(member, rules.nodes, rules.now):
            yield Delete(Kind.POD, member.name, member.uid, ActionReason.NODE_LOST, grace_seconds=0)
        elif not member.deleting and not rules.nodes.gone(member.node):
            yield Delete(Kind.POD, member.name, member.uid, ActionReason.MEMBER_LOST)


def pod_repairs(
    owner: Owner, pinned: Mapping[str, PinnedRevision], replicas: Sequence[Replica], drain_seconds: int
) -> list[Action]:
    """Put back what was edited in pods of ours; what others added stays."""
    actions: list[Action] = []
    for replica in replicas:
        target = pinned.get(replica.revision)
        if target is None or replica.index is None:
            continue
        pods = shared_engine_pods(_replica_pods(owner, target, replica.index), target.template, drain_seconds)
        desired = dict(enumerate(pods))
        for member in replica.members:
            if member.deleting or member.ended or member.rank not in desired:
                continue
            pod = desired[member.rank]
            if member is replica.leader and replica.draining:
                pod["metadata"]["labels"].pop(LABEL_ROUTABLE, None)
                unrouting = unrouting_repair(member)
                actions += [unrouting] if unrouting else []
            patch = pod_repair(pod, member.manifest)
            if patch is not None:
                actions.append(Patch(Kind.POD, member.name, patch, ActionReason.DRIFTED))
    return actions
