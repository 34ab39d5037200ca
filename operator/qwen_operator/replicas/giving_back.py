"""Gives the GPUs of new replicas back whose model cannot be fetched, and says when the next one is made. Pure.

Without spec.prefetch the container `fetch` runs in a pod that has its GPUs already, and the kubelet starts it again for
ever. So after FAILURES failures the operator deletes the pods of the replica. It makes the next replica later and
later, and only one until its model is there. An annotation of the ControllerRevision is the memory of this: a changed
spec has another one, so it is tried at once.

Other replicas may have got the model, and only one place cannot hold it. Then so many replicas as have served come back
after START_SECONDS at most if they are lost, and only those beyond wait longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from qwen_operator import objects, untrusted
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.types import Action, ActionReason, Delete, Kind, Patch
from qwen_operator.api.conditions import FETCH_FAILURES, Reason
from qwen_operator.manifests.kept import CUT
from qwen_operator.manifests.names import ANNOTATION_FETCH_FAILURES, ENGINE_CONTAINER, Manifest
from qwen_operator.manifests.revisions import revision_of
from qwen_operator.replicas.failures import DOWNLOAD, reason_of
from qwen_operator.replicas.fetch_attempts import START_SECONDS, age, delay
from qwen_operator.replicas.groups import Replica, SortedReplicas
from qwen_operator.replicas.pod_state import PodState, fetch_of

FAILURES = 3
WORTH_BYTES = 1 << 30
"""A pod whose hub is silent keeps its GPUs if so much of the model has arrived."""
_MOST = 999
_TEXT = 400
_CLOCKS_DIFFER = timedelta(minutes=1)
# Another node may have room, or a folder that can be written.
_OF_A_PLACE = frozenset({Reason.CACHE_UNUSABLE, Reason.DISK_FULL})


@dataclass(frozen=True, slots=True)
class GivenBack:
    """`new`: so many new replicas may be made now; None if that is not limited. `wait`: seconds until the next one may.

    `reason` and `message` say why there is none meanwhile; None and "" if one may be made.
    """

    actions: tuple[Action, ...] = ()
    new: int | None = None
    wait: float = 0.0
    reason: Reason | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Memory:
    """So many attempts gave their GPUs back, the last one at `last`, for `reason`.

    `served`: so many replicas had started by then.
    """

    number: int
    last: datetime
    reason: Reason
    served: int = 0


NOTHING = GivenBack()


@dataclass(frozen=True, slots=True)
class Given:
    """What is known for the decision about the revision that runs, if no earlier one could run instead.

    `stored`: its ControllerRevision, empty if there is none yet. `fetch_pods`: its pods that download before engine
    pods need the model. `last_failure`: that in the status. `keeps`: what has arrived stays when its pod goes.
    """

    stored: Manifest
    replicas: SortedReplicas
    fetch_pods: Sequence[PodState]
    last_failure: Mapping[str, object]
    now: datetime
    keeps: bool = True

    def fails(self, replica: Replica) -> bool:
        """Whether a pod of it cannot get the model, and no engine of it has ever run."""
        untouched = not any(_has_run(member.manifest) for member in replica.members)
        return untouched and not replica.deleting and self.explaining(replica) is not None

    @property
    def started(self) -> int:
        """How many replicas of this revision have come up. Those on cordoned nodes count, for their successors."""
        revision = revision_of(self.stored)
        ours = (replica for replica in self.replicas.leaving if replica.revision == revision)
        return sum(replica.started for replica in (*self.replicas.fresh, *ours))

    def floor(self, memory: _Memory) -> int:
        """So many replicas do not wait long. While one is up, a place with the model in its cache needs no hub."""
        return memory.served if memory.reason in _OF_A_PLACE or (self.keeps and self.started) else 0

    def below(self, memory: _Memory) -> int:
        """How many replicas are missing to so many. If none has come up, one of them shows whether that helps."""
        missing = max(0, self.floor(memory) - sum(not self.fails(replica) for replica in self.replicas.fresh))
        return missing if self.started else min(1, missing)

    def explaining(self, replica: Replica) -> PodState | None:
        return next((member for member in replica.members if _given_up(member, self.keeps)), None)


def giving_back(given: Given) -> GivenBack:
    """The decision. If somebody filled the annotations, nobody could remember attempts, and everything stays."""
    if not given.stored or CUT in given.stored:
        return NOTHING
    memory, fresh = _memory(given.stored), given.replicas.fresh
    if memory is not None and given.started >= given.floor(memory) and _has_arrived(given, memory.last):
        return GivenBack(actions=(_noted(given.stored, None),))
    if failing := [replica for replica in fresh if given.fails(replica)]:
        return _deleted(given, memory, failing)
    if memory is None:
        return NOTHING
    if not _left(memory, given.now):
        # The next one shows whether the model can be fetched by now.
        return GivenBack(new=max(given.below(memory), 1 - sum(not replica.started for replica in fresh)))
    log = given.last_failure.get("log") if given.last_failure.get("reason") == memory.reason else None
    return _paused(given, memory, log[-1] if isinstance(log, list) and log else "")


def _has_arrived(given: Given, then: datetime) -> bool:
    """Whether a replica, or a pod before it, got the model after that time."""
    groups = (*(replica.members for replica in given.replicas.fresh), *((pod,) for pod in given.fetch_pods))
    ends = ([fetch_of(member.manifest).finished for member in members] for members in groups)
    # A time far ahead comes from the clock of the node.
    latest = given.now + _CLOCKS_DIFFER
    return any(all(end is not None and then < end <= latest for end in times) for times in ends)


def _deleted(given: Given, memory: _Memory | None, failing: Sequence[Replica]) -> GivenBack:
    cause, patches = given.explaining(failing[0]), tuple[Patch, ...]()
    assert cause is not None
    if memory is None or any(_newer(replica, memory.last) for replica in failing):
        number, served = (memory.number + 1, memory.served) if memory else (1, 0)
        memory = _Memory(min(_MOST, number), given.now, cause.reason, min(_MOST, max(served, given.started)))
        patches = (_noted(given.stored, memory),)
    text = cause.failure.log[-1] if cause.failure and cause.failure.log else ""
    return _paused(given, memory, text, (*patches, *_deletions(failing)))


def _paused(given: Given, memory: _Memory, text: object, actions: tuple[Action, ...] = ()) -> GivenBack:
    left, now, below = _left(memory, given.now), given.now, given.below(memory)
    if below:
        soon = START_SECONDS - age(memory.last, now, START_SECONDS)
        if soon <= 0:
            return GivenBack(actions, below, left)
        left = min(left, soon)
    cause = untrusted.clean(text, _TEXT) or "its model cannot be fetched"
    until = rfc3339(now + timedelta(seconds=left))
    message = (
        f"{cause.rstrip('.')}; the operator gave the GPUs back, and tries again at {until}, or at once if the spec or "
        "the annotation qwen-operator.dev/replan changes"
    )
    return GivenBack(actions, 0, left, memory.reason, message)


def _left(memory: _Memory, now: datetime) -> float:
    """Seconds until the next attempt."""
    pause = delay(memory.number)
    return max(0.0, pause - age(memory.last, now, pause))


def _given_up(member: PodState, keeps: bool) -> bool:
    """Whether the container has failed often enough, for a reason that a few more attempts do not change.

    A hub that gives no answer may answer later. If the pod goes, what has arrived must not go with it. A few small
    files do not count: they arrive also if a firewall blocks the network that has the weights.
    """
    failure = member.failure
    if failure is None or failure.phase != DOWNLOAD or member.reason is not failure.reason:
        return False
    if failure.reason not in FETCH_FAILURES:
        return False
    fetch = fetch_of(member.manifest)
    if failure.reason is Reason.HUB_UNREACHABLE and fetch.silent and fetch.present >= WORTH_BYTES and not keeps:
        return False
    return member.restarts.count >= FAILURES - 1


def _has_run(pod: Manifest) -> bool:
    engine = objects.named(objects.members(pod, "status", "containerStatuses"), ENGINE_CONTAINER)
    state = objects.mapping(engine, "state")
    ended = objects.mapping(engine, "lastState", "terminated")
    return bool(ended or "running" in state or "terminated" in state or engine.get("restartCount"))


def _newer(replica: Replica, then: datetime) -> bool:
    """Whether it was made after that time, so that its failure is another attempt."""
    made = (objects.moment(objects.text(one.manifest, "metadata", "creationTimestamp")) for one in replica.members)
    return any(time is not None and time > then for time in made)


def _deletions(replicas: Iterable[Replica]) -> Iterator[Delete]:
    for replica in replicas:
        for member in replica.members:
            yield Delete(Kind.POD, member.name, member.uid, ActionReason.FETCH_FAILED)


def _memory(stored: Manifest) -> _Memory | None:
    """What the annotation says. Who may edit the object may write anything there."""
    value = objects.annotations(stored).get(ANNOTATION_FETCH_FAILURES)
    words = value.split(" ") if isinstance(value, str) and len(value) <= 128 else []
    if len(words) not in (3, 4):
        return None
    number, last, reason = untrusted.digits(words[0], _MOST, 0), objects.moment(words[1]), reason_of(words[2])
    served = untrusted.digits(words[3], _MOST, 0) if len(words) == 4 else 0
    return _Memory(number, last, reason, served) if number and last and reason in FETCH_FAILURES else None


def _noted(stored: Manifest, memory: _Memory | None) -> Patch:
    value = None if memory is None else f"{memory.number} {rfc3339(memory.last)} {memory.reason}"
    if memory is not None and memory.served:
        value = f"{value} {memory.served}"
    patch = {"metadata": {"annotations": {ANNOTATION_FETCH_FAILURES: value}}}
    return Patch(Kind.CONTROLLER_REVISION, stored["metadata"]["name"], patch, ActionReason.FETCH_FAILED)
