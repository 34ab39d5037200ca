"""Whether a new revision is held back, because a replica of it does not answer in time. Pure.

The pods alone decide: when they were created, when they got a node, and whether they answer. So the hold ends when the
late replica answers, or when somebody deletes its pod.

The time of a replica counts from the creation of its first pod that is not ready, and anew from the moment when that
pod gets a node. It stands still while any pod of the replica fetches the model, and then counts anew. The time of a
fetch that broke off does not count either. A replica without a node may have to wait until a replica of the earlier
revision has drained. So its time also counts anew when another successor answers, and is longer by the time of a drain.

While a revision is held back, the earlier revision runs: its replicas stay, and the operator replaces lost ones and
follows the load with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from qwen_operator import objects
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.groups import Replica, SortedReplicas, seconds_since
from qwen_operator.replicas.pod_state import PodState, fetch_of


@dataclass(frozen=True, slots=True)
class Hold:
    """A revision that is held back, and the earlier one that runs instead.

    `cause`: the late replica that explains it best. `seconds`: how long it had. `names`: the replicas of the revision
    that have not come up.
    """

    revision: str
    earlier: PinnedRevision
    cause: Replica
    seconds: float
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Progress:
    """`hold`: None while the revision is not held back. `waits`: seconds until each replica would be late.

    `fallback`: there is an earlier revision that would run instead.
    """

    hold: Hold | None = None
    waits: tuple[float, ...] = ()
    fallback: bool = False


def progress_of(
    target: PinnedRevision, replicas: SortedReplicas, pinned: Mapping[str, PinnedRevision], rules: RolloutRules
) -> Progress:
    """Whether the target comes up in time. `replicas` are sorted for the target; `pinned` is by revision hash.

    Without an earlier revision there is nothing to go back to, so nothing is held back.
    """
    earlier = _earlier(target, replicas, pinned, rules.deployment)
    if earlier is None or not rules.wanted:
        return Progress()
    left = {replica.name: wait for replica in replicas.fresh if (wait := _left(replica, replicas, rules)) is not None}
    waits = tuple(wait for wait in left.values() if wait > 0)
    late = [replica for replica in replicas.fresh if left.get(replica.name, 1.0) <= 0]
    if not late:
        return Progress(None, waits, fallback=True)
    cause = min(late, key=lambda replica: (replica.on_the_way, replica.index or 0))
    names = {replica.name for replica in replicas.fresh if replica in late or not replica.started}
    hold = Hold(target.revision, earlier, cause, _patience(cause, replicas, rules), frozenset(names))
    return Progress(hold, waits, fallback=True)


def _left(replica: Replica, replicas: SortedReplicas, rules: RolloutRules) -> float | None:
    """Seconds until the replica is late, negative if it is.

    None if it answers, if nothing shows since when it waits, or if it has no place: without a surge, the operator
    removes such a replica and starts it again when an old one has made room.
    """
    crowded = len(replicas.fresh) + len(replicas.leaving) > rules.wanted
    if replica.up or (not replica.bound and not rules.max_surge and crowded):
        return None
    answered, waiting = _answered(replicas.fresh), [member for member in replica.members if not member.up]
    fetches = [fetch_of(member.manifest) for member in waiting]
    if any(fetch.running for fetch in fetches):
        # A download takes as long as it takes, and it shows its own progress. The other pods wait for it.
        return None
    begun = [moment for member in waiting if (moment := _waits_since(member, answered)) is not None]
    if not begun:
        return None
    since = max([min(begun), *(fetch.finished for fetch in fetches if fetch.finished)])
    return _patience(replica, replicas, rules) - seconds_since(since, rules.now)


def _patience(replica: Replica, replicas: SortedReplicas, rules: RolloutRules) -> float:
    """How long the replica may take, in seconds."""
    follows = rules.max_unavailable or replicas.draining or any(other.up for other in replicas.fresh)
    return rules.deadline + (rules.drain_limit if follows and not replica.bound else 0.0)


def _answered(fresh: Iterable[Replica]) -> datetime | None:
    """When a replica last began to answer; None if none answers or nothing shows it."""
    ready = (objects.condition(replica.leader.manifest, "Ready") for replica in fresh if replica.up)
    times = (objects.moment(condition.get("lastTransitionTime")) for condition in ready)
    return max((time for time in times if time is not None), default=None)


def _waits_since(member: PodState, answered: datetime | None) -> datetime | None:
    """Since when a pod that is not ready waits for its next step: for a node, for its engine, or to be ready again."""
    if member.started:
        return objects.moment(objects.condition(member.manifest, "Ready").get("lastTransitionTime"))
    fetch = fetch_of(member.manifest)
    if fetch.finished:
        return fetch.finished
    created = objects.moment(objects.text(member.manifest, "metadata", "creationTimestamp"))
    scheduled = objects.condition(member.manifest, "PodScheduled")
    if scheduled.get("status") == "True":
        placed = objects.moment(scheduled.get("lastTransitionTime")) or created
        return placed + timedelta(seconds=fetch.spent) if placed else None
    return max(created, answered) if created and answered else created


def _earlier(
    target: PinnedRevision, replicas: SortedReplicas, pinned: Mapping[str, PinnedRevision], deployment: Manifest
) -> PinnedRevision | None:
    """The revision that runs while the target is held back: that of most replicas that came up; None without one.

    Once the target is held back, the status names it: the last of its pods may be gone for a moment.
    """
    shown = str(objects.mapping(deployment, "status", "plan").get("hash"))
    if shown in pinned and shown != target.revision and _says_held(objects.members(deployment, "status", "conditions")):
        return pinned[shown]
    came_up = Counter(
        replica.revision
        for replica in (*replicas.leaving, *replicas.draining)
        if replica.started and replica.revision != target.revision and replica.revision in pinned
    )
    best = max(came_up, key=lambda name: (came_up[name], pinned[name].number), default=None)
    return None if best is None else pinned[best]


def _says_held(conditions: Iterable[objects.Object]) -> bool:
    held = (ConditionType.STALLED, "True", Reason.REVISION_HELD)
    return any(tuple(one.get(part) for part in ("type", "status", "reason")) == held for one in conditions)
