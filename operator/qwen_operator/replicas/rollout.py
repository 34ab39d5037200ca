"""Which replicas to create, drain, restore, repair and delete so that a revision has the wanted replicas. Pure.

Names are deterministic, so a stale view leads to "already exists" and never to a second pod.

In a rollout, up to `max_surge` successors start beside the replicas that they will replace, and up to `max_unavailable`
replicas go before their successors answer. A replica on a cordoned node always waits for one successor, one replica at
a time: the GPUs that it would free are on that node. Indices may have gaps, because load and not the index decides
which replica the operator removes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods, shared_engine_pods
from qwen_operator.manifests.names import LABEL_ROUTABLE, Manifest, Owner, PodIdentity, engine_pod_names, replica_name
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.draining import (
    RolloutRules,
    cordon_marks,
    delete_members,
    deletion,
    is_lost,
    remove,
    restore,
    unrouting_repair,
)
from qwen_operator.replicas.groups import Replica, SortedReplicas


@dataclass(frozen=True, slots=True)
class Moves:
    """The steps. `blocked`: names of pods that the operator needs and that belong to other owners."""

    actions: tuple[Action, ...] = ()
    blocked: tuple[str, ...] = ()


def moves(
    owner: Owner, target: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules, taken: Collection[str]
) -> Moves:
    """The steps towards `rules.wanted` replicas of the target. `taken`: names of pods that belong to other owners."""
    yielding = [replica for replica in replicas.serving if replica.name in rules.yields]
    names = {replica.name for replica in replicas.all}
    replicas = replicas.without(rules.yields)
    returning = _returning(target, replicas, rules)
    excess = max(0, len(replicas.fresh) - rules.wanted)
    victims, kept = _split(first_to_go(replicas.fresh, rules), excess)
    replaced = _replaced(target, replicas, kept, rules)
    removing = [
        *(action for replica in (*yielding, *victims) for action in remove(replica, ActionReason.SCALED_DOWN, rules)),
        *(action for replica in replaced for action in remove(replica, _cause(replica, target, rules), rules)),
    ]
    number = _places(target, replicas, replaced, rules) - len(kept) - len(returning) - _ended(replicas, target)
    early, kept = _split_early(kept, number, rules)
    first = rules.starts or target
    indices, blocked = _free(owner, first, names, taken, number)
    completions = list(_completions(owner, target, kept, rules))
    blocked += [create.name for create in completions if create.name in taken]
    return Moves(
        actions=(
            *(restore(replica) for replica in returning),
            *removing,
            *_marks(replicas, rules, removing),
            *_creations(owner, first, replicas, rules, indices),
            *(create for create in completions if create.name not in taken),
            *(action for replica in early for action in delete_members(replica, ActionReason.SURPLUS)),
            *_removals(replicas, rules, returning),
        ),
        blocked=tuple(blocked),
    )


def _split(replicas: list[Replica], number: int) -> tuple[list[Replica], list[Replica]]:
    return replicas[:number], replicas[number:]


def first_to_go(replicas: Sequence[Replica], rules: RolloutRules) -> list[Replica]:
    """The replicas in the order of their removal.

    Those come first whose GPUs others get, then replicas that do not answer, then those of a revision that is held
    back. Then the order of the scaling policy decides, then the highest index.
    """
    order = rules.scaling.removal_order if rules.scaling else ()
    rank = {name: position for position, name in enumerate(order)}

    def place(replica: Replica) -> tuple[bool, bool, bool, int, int, str]:
        kept = replica.name not in rules.yields
        load = rank.get(replica.leader.name, len(rank))
        return kept, replica.up, replica.revision != rules.held, load, -(replica.index or 0), replica.name

    return sorted(replicas, key=place)


def _returning(target: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules) -> list[Replica]:
    """The draining replicas that are wanted again. They give capacity without a start."""
    able = [
        replica
        for replica in replicas.draining
        if replica.revision == target.revision and replica.up and not replica.cordoned_node(rules.nodes)
        if rules.returns is None or replica.name in rules.returns
    ]
    needed = max(0, rules.wanted - len(replicas.fresh))
    return first_to_go(able, rules)[::-1][:needed]


def _cause(replica: Replica, target: PinnedRevision, rules: RolloutRules) -> ActionReason:
    if rules.wanted == 0:
        return ActionReason.SCALED_DOWN
    return ActionReason.CORDONED if replica.revision == target.revision else ActionReason.REPLACED


def _replaced(
    target: PinnedRevision, replicas: SortedReplicas, kept: Sequence[Replica], rules: RolloutRules
) -> list[Replica]:
    """The leaving replicas to remove now: those whose successors answer, and up to `max_unavailable` more."""
    order = first_to_go(replicas.leaving, rules)
    # A restored replica counts only after the operator has seen its routable label.
    surplus = sum(replica.ready for replica in kept) + len(order) - rules.wanted
    replaced, staying = _split(order, max(0, surplus))
    return replaced + _outdated(staying, target, rules)[: max(0, rules.max_unavailable + min(0, surplus))]


def _outdated(replicas: Iterable[Replica], target: PinnedRevision, rules: RolloutRules) -> list[Replica]:
    """Those that a rollout replaces. While a revision is held back, no rollout goes on."""
    return [] if rules.held else [replica for replica in replicas if replica.revision != target.revision]


def _places(target: PinnedRevision, replicas: SortedReplicas, replaced: Sequence[Replica], rules: RolloutRules) -> int:
    """How many replicas of the target there may be, beside the leaving replicas that stay.

    Without a surge, a replica of an earlier revision keeps its place until its drain is over: it still has the GPUs.
    """
    staying = [replica for replica in replicas.leaving if replica not in replaced]
    old = len(_outdated(staying, target, rules))
    surge = max(rules.max_surge if old else 0, 1 if old < len(staying) else 0)
    occupied = len(staying)
    if not rules.max_surge:
        occupied += len(_outdated((*replaced, *replicas.draining), target, rules))
    beside_held = rules.wanted + rules.max_surge - len(replicas.held)
    return min(rules.wanted, rules.wanted + surge - occupied, beside_held)


def _split_early(kept: list[Replica], missing: int, rules: RolloutRules) -> tuple[list[Replica], list[Replica]]:
    """The replicas that came too early, and the others. `missing` is negative if there are too many.

    When somebody sets `max_surge` to 0, a successor may already wait for a node beside the replica whose place it will
    take.
    """
    if rules.max_surge or missing >= 0:
        return [], kept
    early = [replica for replica in first_to_go(kept, rules) if not replica.up and not replica.bound][:-missing]
    return early, [replica for replica in kept if replica not in early]


def _ended(replicas: SortedReplicas, target: PinnedRevision) -> int:
    """The number of ended replicas of the target. They count until their pods are deleted."""
    return sum(replica.revision == target.revision for replica in replicas.ended)


def _free(
    owner: Owner, target: PinnedRevision, ours: Collection[str], taken: Collection[str], number: int
) -> tuple[list[int], list[str]]:
    """The lowest free indices, and the names of the foreign pods that block an index. `ours`: names of replicas."""
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
        for pod in _pods(owner, target, index, rules):
            yield Create(Kind.POD, pod, reason)


def _completions(
    owner: Owner, target: PinnedRevision, kept: Sequence[Replica], rules: RolloutRules
) -> Iterator[Create]:
    """The missing pods of incomplete replicas. The operator may have stopped while it created them."""
    for replica in kept:
        if replica.index is not None and replica.missing_ranks and replica.revision == target.revision:
            pods = _pods(owner, target, replica.index, rules)
            for rank in replica.missing_ranks:
                yield Create(Kind.POD, pods[rank], ActionReason.REPLICA_MISSING)


def _pods(owner: Owner, target: PinnedRevision, index: int, rules: RolloutRules) -> tuple[Manifest, ...]:
    replica = _replica_pods(owner, target, index, distinct_nodes=rules.distinct_nodes)
    return engine_pods(replica, target.template, rules.drain_seconds)


def pods_of_replica(owner: Owner, target: PinnedRevision, rules: RolloutRules) -> tuple[Manifest, ...]:
    """The pods of the first replica of the target, whether they exist or not."""
    return _pods(owner, target, 0, rules)


def _replica_pods(owner: Owner, target: PinnedRevision, index: int, *, distinct_nodes: bool = True) -> ReplicaPods:
    return ReplicaPods(PodIdentity(owner, target.revision), index, target.plan.nodes_per_replica, distinct_nodes)


def _marks(replicas: SortedReplicas, rules: RolloutRules, removing: Sequence[Action]) -> list[Patch]:
    """The cordon marks of all pods that this decision does not remove: two patches of one pod would conflict."""
    changed = {action.name for action in removing}
    return [mark for mark in cordon_marks(replicas, rules) if mark.name not in changed]


def _removals(replicas: SortedReplicas, rules: RolloutRules, returning: Sequence[Replica]) -> Iterator[Action]:
    """The deletions of replicas that have ended, are not needed, or have drained."""
    for place, reason in (
        (replicas.ended, ActionReason.POD_ENDED),
        (replicas.misnamed, ActionReason.SURPLUS),
        (replicas.never_started, ActionReason.OLD_NOT_READY),
    ):
        for replica in place:
            yield from delete_members(replica, reason)
    for replica in replicas.draining:
        if replica not in returning:
            yield from deletion(replica, rules)
    for replica in replicas.gone:
        yield from _ending(replica, rules)


def _ending(replica: Replica, rules: RolloutRules) -> Iterator[Action]:
    """Delete the other members of a replica that loses a member.

    A pod in deletion must not wait for a node that never answers again, so it is deleted without a grace period.
    Kubernetes itself deletes the other pods of a node that is gone.
    """
    for member in replica.members:
        if is_lost(member, rules.nodes, rules.now):
            yield Delete(Kind.POD, member.name, member.uid, ActionReason.NODE_LOST, grace_seconds=0)
        elif not member.deleting and not rules.nodes.gone(member.node):
            yield Delete(Kind.POD, member.name, member.uid, ActionReason.MEMBER_LOST)


def pod_repairs(
    owner: Owner,
    pinned: Mapping[str, PinnedRevision],
    replicas: Sequence[Replica],
    drain_seconds: int,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Action]:
    """Undo edits of the operator's fields in pods. Fields that others added stay.

    `notes`: annotations by the pods' uids that are not those of the template any more.
    """
    actions: list[Action] = []
    for replica in replicas:
        target = pinned.get(replica.leader.revision)
        if target is None or replica.index is None:
            continue
        pods = shared_engine_pods(_replica_pods(owner, target, replica.index), target.template, drain_seconds)
        desired = dict(enumerate(pods))
        for member in replica.members:
            if member.deleting or member.ended or member.rank not in desired:
                continue
            pod = desired[member.rank]
            pod["metadata"]["annotations"] |= (notes or {}).get(member.uid, {})
            if member is replica.leader and replica.draining:
                pod["metadata"]["labels"].pop(LABEL_ROUTABLE, None)
                unrouting = unrouting_repair(member)
                actions += [unrouting] if unrouting else []
            patch = pod_repair(pod, member.manifest)
            if patch is not None:
                changed = (
                    patch.get("metadata", {}).get("annotations", {}).keys() & (notes or {}).get(member.uid, {}).keys()
                )
                why = ActionReason.ADAPTERS_CHANGED if changed else ActionReason.DRIFTED
                actions.append(Patch(Kind.POD, member.name, patch, why))
    return actions
