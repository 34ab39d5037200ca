"""Downloads adapters for engines that serve: to the nodes of these engines, or into their claim. Pure.

An engine says on its page which adapters of its list it has, and which it could not load. One that is neither is not in
the cache yet. A pod without GPUs fetches it, one pod for each adapter, so that none waits for another one. The engine
loads the adapter when its folder is there. Whatever becomes of such a pod, the engine goes on with what it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from qwen_operator import objects
from qwen_operator.actions.types import Action, ActionReason, Create, Delete, Kind, Patch
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.adapters import loaded_names, wanted_adapters, wanted_text
from qwen_operator.manifests.cached_adapters import on_nodes, shares_adapters
from qwen_operator.manifests.names import ANNOTATION_ADAPTER_PODS, Owner, adapter_pod_name
from qwen_operator.manifests.prefetch import adapter_pod
from qwen_operator.manifests.revisions import PinnedRevision, revision_metadata
from qwen_operator.planning.adapters import FETCHED
from qwen_operator.replicas.adapters import Pages
from qwen_operator.replicas.fetch_attempts import Attempts
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.pod_state import PodState, fetch_of
from qwen_operator.replicas.prefetch import OF_PLACE, downloads, failing, seconds_to_start

AT_ONCE = 2
"""So many pods of a deployment download adapters at a time."""
MOST_PODS = 16
LOAD_SECONDS = 1500.0
"""So long after a download, an engine should have loaded the adapter, also if it first waits for the last request of
another one. If it has not, the cache has lost it again."""
_FARTHEST_AHEAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter is needed: its name and folder, and a node. `shared`: all nodes have one cache."""

    adapter: str
    folder: str
    node: str
    shared: bool

    @property
    def key(self) -> str:
        return self.folder if self.shared else f"{self.folder}@{self.node}"


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of the download of an adapter. `fails`: something is to be done about it."""

    reason: Reason
    message: str
    fails: bool = False


@dataclass(frozen=True, slots=True)
class AdapterDownloads:
    """`actions`: the pods to create and to delete. `told`: about the downloads of adapters, by their names.

    `waits`: seconds until time alone changes something.
    """

    actions: tuple[Action, ...] = ()
    told: Mapping[str, Told] = field(default_factory=dict)
    waits: tuple[float, ...] = ()


NOTHING = AdapterDownloads()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known for the decision about one revision.

    `possible`: where adapters may be missing, by the annotations of the pods. `missing`: where engines say so. `pods`:
    those that download adapters, of any revision. `taken`: the names of all pods. `attempts`: the pods that
    were created before. `counted`: the ControllerRevision exists, whose annotation
    counts them.
    """

    owner: Owner
    running: PinnedRevision
    possible: Sequence[Place]
    missing: Sequence[Place]
    pods: Sequence[PodState]
    taken: Collection[str]
    now: datetime
    attempts: Attempts
    counted: bool = True

    def name(self, place: Place) -> str:
        """The name of the pod that downloads there."""
        return adapter_pod_name(self.owner.name, self.running.revision, place.key)

    @property
    def present(self) -> dict[str, PodState]:
        """The pods that may still be needed, by their names: not those that have ended without the adapter, nor those
        whose adapter is gone again."""
        names, lacking = ({self.name(place) for place in places} for places in (self.possible, self.missing))
        useful = (pod for pod in self.pods if pod.name in names and not pod.deleting and not _is_lost(pod))
        return {pod.name: pod for pod in useful if pod.name not in lacking or _seconds_to_load(pod, self.now) != 0}

    @property
    def pause(self) -> float:
        """Seconds until more pods may be created."""
        return self.attempts.waits(len(self.present), self.now)


def possible_places(replicas: Iterable[Replica], running: PinnedRevision) -> tuple[Place, ...]:
    """Where engines may lack adapters of hubs and buckets, as far as the annotations of their pods say."""
    return tuple(place for replica in replicas for place in _lacked(replica, running, loaded_names(_pod(replica))))


def missing_places(replicas: Iterable[Replica], running: PinnedRevision, pages: Pages) -> tuple[Place, ...]:
    """Where the cache lacks adapters, as the engines say."""
    text, found = wanted_text(running.template), list[Place]()
    for replica in replicas:
        page = pages.get(replica.leader.uid)
        if page is not None and page.answers(text) and wanted_text(_pod(replica)) == text:
            found += _lacked(replica, running, {*page.loaded, *page.failed, *loaded_names(_pod(replica))})
    return tuple(found)


def _pod(replica: Replica) -> Mapping[str, object]:
    return replica.leader.manifest


def _lacked(replica: Replica, running: PinnedRevision, known: Collection[str]) -> Iterator[Place]:
    volume, pod = shares_adapters(running.template), replica.leader
    if not volume or replica.revision != running.revision or not pod.node:
        return
    for name, folder in wanted_adapters(wanted_text(running.template)).items():
        if folder.startswith(f"{FETCHED}/") and name not in known:
            yield Place(name, folder, pod.node, not on_nodes(volume))


def wanted_pods(given: Wanted) -> tuple[Create, ...]:
    """The pods to create: a few at a time, and none for an adapter that fails wherever it is fetched."""
    present = given.present
    if given.pause or not given.attempts.readable:
        return ()
    names = {given.name(place): place.adapter for place in given.possible}
    hopeless = {names[pod.name] for pod in present.values() if failing(pod) and pod.reason not in OF_PLACE}
    busy = sum(not failing(pod) and not _has_fetched(pod) for pod in present.values())
    number = min(AT_ONCE - busy, MOST_PODS - len(present))
    places: dict[str, Place] = {}
    for place in _in_order(given):
        if place.adapter not in hopeless and given.name(place) not in given.taken:
            places.setdefault(given.name(place), place)
    chosen = list(places.values())[: max(0, number)]
    pods = (adapter_pod(given.owner, given.running, given.name(one), one.folder, one.node) for one in chosen)
    return tuple(Create(Kind.POD, pod, ActionReason.ADAPTER_MISSING) for pod in pods)


def adapter_downloads(given: Wanted, created: Sequence[Create], full: str | None) -> AdapterDownloads:
    """The decision, with those of the wanted pods for which quotas have room. `full`: why they have none for others."""
    present = given.present
    starts = [seconds_to_start(pod, given.now) for pod in present.values() if not _has_begun(pod)]
    loads = [_seconds_to_load(pod, given.now) or 0.0 for pod in present.values()] if given.missing else []
    new: tuple[Action, ...] = (*_counted(given, created), *created) if given.counted else ()
    return AdapterDownloads(
        actions=(*new, *_endings(given)),
        told=_told(given, {create.name for create in created}, full),
        waits=tuple(seconds for seconds in (*starts, *loads, given.pause if given.missing else 0.0) if seconds > 0),
    )


def _told(given: Wanted, created: Collection[str], full: str | None) -> dict[str, Told]:
    """About each adapter, from that of its pods that says most: one that fails comes first."""
    told: dict[str, Told] = {}
    for place in given.possible:
        pod = given.present.get(given.name(place))
        if pod is not None and not _has_fetched(pod) and (place.adapter not in told or failing(pod)):
            told[place.adapter] = Told(pod.reason, pod.message, failing(pod))
    for place in given.missing if full else ():
        if given.name(place) not in {*given.present, *created}:
            told.setdefault(place.adapter, Told(Reason.QUOTA_EXCEEDED, str(full), fails=True))
    return told


def _endings(given: Wanted) -> Iterator[Delete]:
    """The deletions of pods that are not needed any more, ended without the adapter, or do not start, and of those
    whose adapter is gone again: another one gets it once more."""
    present = given.present
    for pod in given.pods:
        late = not _has_begun(pod) and seconds_to_start(pod, given.now) <= 0
        if not pod.deleting and (pod.name not in present or late):
            yield Delete(Kind.POD, pod.name, pod.uid, ActionReason.ADAPTER_FETCHED)


def _counted(given: Wanted, created: Sequence[Create]) -> Iterator[Patch]:
    """Counts the new pods before they are created."""
    if created:
        value = given.attempts.after(len(created), given.now, keys(given.possible))
        name = revision_metadata(given.owner, given.running.revision)["name"]
        patch = {"metadata": {"annotations": {ANNOTATION_ADAPTER_PODS: value}}}
        yield Patch(Kind.CONTROLLER_REVISION, name, patch, ActionReason.ADAPTER_MISSING)


def keys(places: Iterable[Place]) -> frozenset[str]:
    """What the number of attempts is about. If it changes, an adapter has come, or another one is missing."""
    return frozenset(place.key for place in places)


def _in_order(given: Wanted) -> list[Place]:
    """By adapter, so that one is complete before the next begins. A claim is tried from another node each time."""

    def rank(place: Place) -> tuple[str, str]:
        return place.adapter, hashlib.sha256(f"{place.node}/{given.attempts.pods}".encode()).hexdigest()

    return sorted(given.missing, key=rank)


def _has_fetched(pod: PodState) -> bool:
    return fetch_of(pod.manifest).finished is not None


def _seconds_to_load(pod: PodState, now: datetime) -> float | None:
    """Seconds until an engine should have found what the pod has fetched; None if it has not fetched it.

    A time far ahead comes from a wrong clock of the node. Then the creation of the pod counts.
    """
    finished = fetch_of(pod.manifest).finished
    if finished is None:
        return None
    created = objects.moment(objects.text(pod.manifest, "metadata", "creationTimestamp"))
    ages = [(now - one).total_seconds() for one in (finished, created) if one is not None]
    age = next((seconds for seconds in ages if seconds > -_FARTHEST_AHEAD_SECONDS), LOAD_SECONDS)
    return max(0.0, LOAD_SECONDS - max(0.0, age))


def _is_lost(pod: PodState) -> bool:
    return pod.ended and not _has_fetched(pod)


def _has_begun(pod: PodState) -> bool:
    return downloads(pod) or _has_fetched(pod)
