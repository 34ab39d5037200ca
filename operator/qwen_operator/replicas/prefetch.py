"""Downloads a model before engine pods need it: on the nodes that they may use, or into their claim. Pure.

The operator picks the nodes, and the scheduler places each pod on its own. These pods are an aid only: if one cannot
do its work, the container `fetch` of an engine pod does it, as without them. So a new replica waits only while a
download is on its way where the replica could run, and START_SECONDS in all for pods that do not start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from qwen_operator import objects
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch, Refusal
from qwen_operator.api.conditions import FETCH_FAILURES, Reason
from qwen_operator.manifests.names import ANNOTATION_FETCH_PODS, Owner, fetch_pod_name
from qwen_operator.manifests.prefetch import fetch_pod
from qwen_operator.manifests.revisions import PinnedRevision, revision_metadata
from qwen_operator.replicas.cached_nodes import MOST_NODES
from qwen_operator.replicas.fetch_attempts import START_SECONDS, Attempts
from qwen_operator.replicas.places import Need, Place
from qwen_operator.replicas.pod_state import PodState

AT_ONCE = 2
"""So many pods of a deployment download at a time."""
_FARTHEST_AHEAD_SECONDS = 60.0
OF_PLACE = frozenset({Reason.DISK_FULL, Reason.CACHE_UNUSABLE})
"""Failures that say nothing about other nodes."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What is downloaded before engine pods need it.

    `pods`: those that download for the running revision. `filled` of `wanted` nodes have the model; both are 0 for a
    claim. `room`: for so many new replicas the model is where there is room for them. `coming`: for so many more
    it will be when the present downloads end. `first`: neither a node nor the claim has the model yet, and a download
    is on its way.
    `useless`: why spec.prefetch has no effect; "" if it has, or is not set. `waits`: seconds until time alone changes
    something.
    """

    actions: tuple[Action, ...] = ()
    pods: tuple[PodState, ...] = ()
    filled: int = 0
    wanted: int = 0
    room: int = 0
    coming: int = 0
    first: bool = False
    useless: str = ""
    waits: tuple[float, ...] = ()

    def holds(self, new: int) -> int:
        """How many of so many new replicas wait."""
        return min(self.coming, max(0, new - self.room))

    @property
    def telling(self) -> PodState | None:
        """The pod that says most about the downloads: one that downloads, then one that starts, then one that fails."""
        order = {pod.name: (failing(pod), pod.reason is not Reason.DOWNLOADING, pod.name) for pod in self.pods}
        return min(self.pods, key=lambda pod: order[pod.name], default=None)


@dataclass(frozen=True, slots=True)
class Downloads:
    """What is known for the decision about one revision.

    `places`: the nodes that its pods may use, by name; one entry with the name "" for a claim. `known`: those that have
    the model, `remembered`: those of which an annotation says so. `most`: so many places should have it. `need`: what
    one of its pods asks of its node. `looking`: so many replicas look for a node already. `taken`: names of all pods.
    `attempts`: the pods that were created for it before. `counted`: the ControllerRevision exists, whose annotation
    counts them.
    """

    owner: Owner
    running: PinnedRevision
    places: Mapping[str, Place | None]
    known: Collection[str]
    remembered: Collection[str]
    most: int
    need: Need
    pods: Sequence[PodState]
    taken: Collection[str]
    now: datetime
    attempts: Attempts
    looking: int = 0
    distinct_nodes: bool = True
    counted: bool = True
    _by_name: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = {fetch_pod_name(self.owner.name, self.running.revision, place): place for place in self.places}
        object.__setattr__(self, "_by_name", names)

    def place_of(self, pod: PodState) -> str | None:
        """The place for which the pod downloads; None if it is for another revision, or for no usable place."""
        return self._by_name.get(pod.name)

    @property
    def filled(self) -> list[str]:
        return [place for place in self.places if place in self.known]

    @property
    def active(self) -> list[PodState]:
        """The pods that download, or try to, for a place that does not have the model yet."""
        return [pod for pod in self.present if self.place_of(pod) not in self.known]

    @property
    def present(self) -> list[PodState]:
        """The pods of the revision that have not ended."""
        return [pod for pod in self.pods if not pod.deleting and not pod.ended and self.place_of(pod) is not None]

    @property
    def pause(self) -> float:
        """Seconds until more pods may be created."""
        return self.attempts.waits(len(self.present), self.now)


NOTHING = Prefetch()


def failing(pod: PodState) -> bool:
    """Whether the download fails for a reason that an engine pod would meet too."""
    return pod.reason in FETCH_FAILURES


def wanted_downloads(given: Downloads) -> tuple[Create, ...]:
    """The pods to create: a few at a time, first where there are free GPUs.

    If a download fails for a reason that does not depend on the place, the others would fail too.
    """
    active = given.active
    if given.pause or not given.attempts.readable:
        return ()
    if any(failing(pod) and pod.reason not in OF_PLACE for pod in active):
        return ()
    healthy = sum(not failing(pod) for pod in active)
    missing = given.most - len(given.filled) - healthy
    number = min(AT_ONCE - healthy, missing, MOST_NODES - len(active))
    free = [place for place in _in_order(given) if _name(given, place) not in given.taken]
    pods = (fetch_pod(given.owner, given.running, place) for place in free[: max(0, number)])
    return tuple(Create(Kind.POD, pod, ActionReason.PREFETCH) for pod in pods)


def prefetch(given: Downloads, created: Sequence[Create], refusal: Refusal | None = None) -> Prefetch:
    """The decision, with those of the wanted pods for which quotas have room. Nothing waits for one that the API
    server rejects."""
    new = {create.name for create in created if refusal is None or not refusal.rejects(create)}
    active = given.active
    patience = given.attempts.patience(given.now)
    left = {pod.name: min(patience, seconds_to_start(pod, given.now)) for pod in active if not downloads(pod)}
    on_its_way = [pod for pod in active if left.get(pod.name, 1) > 0]
    soon = {place for pod in on_its_way if (place := given.place_of(pod)) is not None}
    soon |= {place for place in given.places if _name(given, place) in new and patience > 0}
    filled, on_nodes = given.filled, "" not in given.places
    room, whole = _replicas_on(given, filled), _replicas_on(given, [*filled, *soon])
    # The time that a download took must not count against the one that comes after it: an old replica waits for it.
    due = new or [pod for pod in active if downloads(pod) or seconds_to_start(pod, given.now) > 0]
    creations: tuple[Action, ...] = (*_counted(given, created), *created) if given.counted else ()
    return Prefetch(
        actions=(*creations, *_endings(given)),
        pods=tuple(active),
        filled=len(filled) if on_nodes else 0,
        wanted=min(given.most, len(given.places)) if on_nodes else 0,
        room=max(0, room - given.looking),
        coming=whole - room,
        first=bool(due) and not filled,
        waits=tuple(seconds for seconds in (*left.values(), given.pause) if seconds > 0),
    )


def endings(pods: Iterable[PodState]) -> tuple[Delete, ...]:
    """The deletions of all these pods: nothing is to be downloaded before engine pods need it."""
    return tuple(_delete(pod) for pod in pods if not pod.deleting)


def _endings(given: Downloads) -> Iterator[Delete]:
    """The deletions of pods that have done their work, or whose work is not needed any more.

    A pod that has fetched stays until the annotation has its place. One that does not start takes part of a quota.
    """
    for pod in given.pods:
        place = given.place_of(pod)
        late = not downloads(pod) and seconds_to_start(pod, given.now) <= 0
        over = place is None or place in given.remembered or (place not in given.known and (pod.ended or late))
        if over and not pod.deleting:
            yield _delete(pod)


def _counted(given: Downloads, created: Sequence[Create]) -> Iterator[Patch]:
    """Counts the new pods before they are created."""
    if created:
        value = given.attempts.after(len(created), given.now, given.remembered)
        name = revision_metadata(given.owner, given.running.revision)["name"]
        patch = {"metadata": {"annotations": {ANNOTATION_FETCH_PODS: value}}}
        yield Patch(Kind.CONTROLLER_REVISION, name, patch, ActionReason.PREFETCH)


def _delete(pod: PodState) -> Delete:
    return Delete(Kind.POD, pod.name, pod.uid, ActionReason.PREFETCH_DONE)


def _name(given: Downloads, place: str) -> str:
    return fetch_pod_name(given.owner.name, given.running.revision, place)


def _in_order(given: Downloads) -> list[str]:
    """The places without the model. Each deployment has another order, so that not all begin with the same node.

    The order changes with each attempt, so that a node on which pods end at once does not keep the others waiting.
    """

    def rank(name: str) -> tuple[bool, str]:
        place = given.places[name]
        full = place is not None and not place.has(given.need)
        return full, hashlib.sha256(f"{given.owner.uid}/{name}/{given.attempts.pods}".encode()).hexdigest()

    return sorted((place for place in given.places if place not in given.known), key=rank)


def _replicas_on(given: Downloads, names: Iterable[str]) -> int:
    """For how many new replicas these places have room. A claim can be mounted wherever there is room."""
    pods = given.running.plan.nodes_per_replica
    total = 0
    for name in names:
        place = given.places[name]
        if place is None:
            return MOST_NODES * MOST_NODES
        total += place.slots(given.need, distinct=given.distinct_nodes and pods > 1)
    return total // pods


def downloads(pod: PodState) -> bool:
    """Whether the pod has begun to download. It may fail."""
    return pod.reason is Reason.DOWNLOADING or failing(pod)


def seconds_to_start(pod: PodState, now: datetime) -> float:
    """So many seconds are left for the pod to start. A creation far ahead comes from a wrong clock: then none are."""
    created = objects.moment(objects.text(pod.manifest, "metadata", "creationTimestamp"))
    age = (now - created).total_seconds() if created is not None else START_SECONDS
    return START_SECONDS - max(0.0, age) if age > -_FARTHEST_AHEAD_SECONDS else 0.0
