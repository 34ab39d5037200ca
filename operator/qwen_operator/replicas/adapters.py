"""Which adapters the engine of a replica should have and has, and which replicas can take up another list. Pure.

A replica whose engine can load and unload adapters until it has those of another revision needs no successor: it serves
as that revision. Its pods keep their names. Two annotations tell its adapters. The operator writes the list that the
engine should have, and the names of what it has: the gateway's agent reads these.

An adapter that is removed leaves both annotations in one patch. So if it comes back, it counts as loaded only after the
engine has said so. The engine says on its page which list it has taken up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwen_operator import objects, untrusted
from qwen_operator.api import uris
from qwen_operator.api.adapters import MOST_ADAPTERS, AdapterSource, is_adapter_name
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.manifests.adapters import (
    loaded_names,
    same_but_adapters,
    starting_adapters,
    wanted_adapters,
    wanted_text,
)
from qwen_operator.manifests.names import (
    ANNOTATION_ADAPTERS,
    ANNOTATION_ADAPTERS_LOADED,
    ANNOTATION_ADAPTERS_WANTED,
    ENGINE_CONTAINER,
    Manifest,
)
from qwen_operator.manifests.quantities import amount
from qwen_operator.manifests.revisions import PinnedRevision, revision_of
from qwen_operator.planning.adapters import FETCHED, MOUNT, host_bytes, lacks_host_memory, path_of, room
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.pod_state import PodState
from qwen_runtime.adapter_list import digest

_DIGEST = 16
_WHY = 200
_ALL = "true"
_ONLY = "only "
"""What the annotation of a ControllerRevision says, the second with names: which adapters an engine has had."""


@dataclass(frozen=True, slots=True)
class AdaptersPage:
    """What an engine says about its adapters: the digest of the list that it has taken up, the names of those that it
    has, and why it could not load others."""

    wanted: str
    loaded: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)

    def answers(self, text: str) -> bool:
        """Whether it is about this list."""
        return bool(text) and self.wanted == digest(text)


def read_adapters_page(content: bytes) -> AdaptersPage:
    """The part of a pod's page about its adapters. Raises ValueError for another page."""
    page = untrusted.report(content.decode("utf-8", "replace"))
    part = objects.mapping(page, "adapters")
    wanted, loaded, failed = part.get("wanted"), part.get("loaded"), objects.mapping(part, "failed")
    if page.get("version") != 1 or not isinstance(wanted, str) or len(wanted) > _DIGEST or not isinstance(loaded, list):
        raise ValueError("the page says nothing about adapters")
    names = [name for name in loaded[:MOST_ADAPTERS] if isinstance(name, str) and is_adapter_name(name)]
    faults = {name: untrusted.clean(why, _WHY) for name, why in failed.items() if is_adapter_name(name)}
    return AdaptersPage(wanted, frozenset(names), faults)


Pages = Mapping[str, AdaptersPage]
"""What engines say about their adapters, by the uids of their pods."""


def obstacle(old: PinnedRevision, facts: Checkpoint) -> str:
    """Why replicas of a revision cannot take up the adapters of these facts while they serve; "" if they can.

    The base of the facts must be that of the revision.
    """
    if not wanted_text(old.template):
        many = old.plan.nodes_per_replica > 1
        return (
            "replicas over several nodes load adapters only when they start" if many else "they started without a list"
        )
    before = {adapter.name: path_of(adapter.uri) for adapter in old.facts.adapters}
    mounts = [mount for one in old.template["spec"]["containers"] for mount in one.get("volumeMounts", ())]
    mounted = {str(mount.get("mountPath")) for mount in mounts}
    commits = {adapter.uri: adapter.commit for adapter in old.facts.adapters}
    for adapter in facts.adapters:
        name = f"spec.adapters[{adapter.name}]"
        if why := _not_mounted(adapter.uri, mounted):
            return f"{name} {why}"
        if commits.get(adapter.uri, adapter.commit) != adapter.commit:
            return f"{name} has another commit than they fetched"
        if before.get(adapter.name) not in (None, path_of(adapter.uri)):
            return f"{name} has another source than they loaded under this name"
    if any(path.startswith(f"{FETCHED}/") for path in mounted - {path_of(adapter.uri) for adapter in facts.adapters}):
        return "they fetch an adapter that is not in spec.adapters any more"
    return room(old.plan).lacks(facts) or _lacks_host_memory(old, facts)


def _not_mounted(place: str, mounted: Collection[str]) -> str:
    """Why pods with mounts at these paths cannot read an adapter; "" if they can. `place` is `AdapterSource.place`."""
    source = AdapterSource(place)
    if source.scheme != uris.PVC.scheme:
        if FETCHED in mounted or path_of(place) in mounted:
            return ""
        return f"is at {place}, and is fetched when a pod starts, because they mount no cache with adapters"
    return "" if f"{MOUNT}/{source.claim}" in mounted else f'is on the claim "{source.claim}", which they do not mount'


def _lacks_host_memory(old: PinnedRevision, facts: Checkpoint) -> str:
    """Why pods of a revision have not the host memory for these adapters: it goes by what they requested."""
    plan = old.plan
    # A plan that is older than this field was made for the adapters of its revision.
    planned = plan.adapter_host_bytes or host_bytes(old.facts, plan.gpus_per_node)
    engine = objects.named(objects.members(old.template, "spec", "containers"), ENGINE_CONTAINER)
    requested = amount(objects.text(engine, "resources", "requests", "memory")) or 0
    more = max(0, int(requested) - plan.host_memory_bytes)
    return lacks_host_memory(facts, plan.gpus_per_node, planned + more)


def adopts(old: PinnedRevision, new: PinnedRevision) -> bool:
    """Whether replicas of a revision become such of another one by loading and unloading adapters."""
    if not same_but_adapters(old.template, new.template) or _lacks_host_memory(old, new.facts):
        return False
    before, after = (wanted_adapters(wanted_text(one.template)) for one in (old, new))
    return all(before.get(name, folder) == folder for name, folder in after.items())


def starting_with(
    running: PinnedRevision | None, revisions: Mapping[str, Manifest], pinned: Mapping[str, PinnedRevision]
) -> PinnedRevision | None:
    """The running revision with those of its adapters alone with which new replicas start; None if they are all.

    An adapter that no engine has had may be one that cannot be fetched or loaded, and a new replica does not come up
    with it. So a new replica takes it up while it serves. But it starts with all that engines have had, because clients
    use them. The other arguments are as in `remembering`.
    """
    if running is None or not remembering(running, revisions, pinned):
        return None
    had = _had(running, revisions, pinned)
    if had == wanted_adapters(wanted_text(running.template)).keys():
        return None
    return replace(running, template=starting_adapters(running.template, had))


def remembering(
    running: PinnedRevision | None, revisions: Mapping[str, Manifest], pinned: Mapping[str, PinnedRevision]
) -> tuple[PinnedRevision, ...]:
    """The revisions whose annotations say which adapters engines have had, and whose replicas become such of this one.

    `revisions` are the ControllerRevisions by name, `pinned` what they pin by hash.
    """
    if running is None or not wanted_text(running.template):
        return ()
    noted = {revision_of(item) for item in revisions.values() if _note(item)}
    return tuple(one for name, one in pinned.items() if name in noted and _becomes(one, running))


def _becomes(one: PinnedRevision, running: PinnedRevision) -> bool:
    return one.revision == running.revision or adopts(one, running)


def _note(revision: Manifest) -> str:
    """What the annotation says; "" if there is none that an operator wrote."""
    text = str(objects.annotations(revision).get(ANNOTATION_ADAPTERS_LOADED, ""))
    return text if text == _ALL or text.startswith(_ONLY) else ""


def _had(
    running: PinnedRevision, revisions: Mapping[str, Manifest], pinned: Mapping[str, PinnedRevision]
) -> frozenset[str]:
    """The adapters of this revision that engines have had, as annotations say. An adapter keeps its folder in them."""
    notes_by_hash = {revision_of(item): _note(item) for item in revisions.values()}
    found: set[str] = set()
    for one in remembering(running, revisions, pinned):
        listed, note = wanted_adapters(wanted_text(one.template)), notes_by_hash[one.revision]
        found |= listed.keys() if note == _ALL else listed.keys() & {*note.removeprefix(_ONLY).split(",")}
    return frozenset(found & wanted_adapters(wanted_text(running.template)).keys())


def loaded_note(pinned: PinnedRevision, pods: Iterable[PodState]) -> dict[str, str]:
    """The annotation that the ControllerRevision should have if an engine has all adapters of its revision; or {}."""
    wanted = wanted_adapters(wanted_text(pinned.template))
    whole = any(pod.up and _has_of(pod, wanted) >= wanted.keys() for pod in pods) if wanted else False
    return {ANNOTATION_ADAPTERS_LOADED: _ALL} if whole else {}


def running_note(
    running: PinnedRevision,
    revisions: Mapping[str, Manifest],
    pinned: Mapping[str, PinnedRevision],
    pods: Sequence[PodState],
) -> dict[str, str]:
    """The annotation that the running ControllerRevision should have; {} if no engine has had any of its adapters.

    It never says less than before: what an engine has had once counts also when its pod is gone.
    """
    wanted, had = wanted_adapters(wanted_text(running.template)), {*_had(running, revisions, pinned)}
    own = {pod.revision for pod in pods}
    able = {name for name, one in pinned.items() if name in own and wanted and _becomes(one, running)}
    for pod in pods:
        if pod.up and pod.revision in able:
            had |= _has_of(pod, wanted)
    if not had:
        return {}
    return {ANNOTATION_ADAPTERS_LOADED: _ALL if had >= wanted.keys() else f"{_ONLY}{','.join(sorted(had))}"}


def _has_of(pod: PodState, wanted: Mapping[str, str]) -> set[str]:
    """The adapters of a list that the engine of a pod has, from the same folders."""
    folders = wanted_adapters(wanted_text(pod.manifest))
    return {name for name in loaded_names(pod.manifest) if name in wanted and folders.get(name) == wanted[name]}


def serving_as(
    replicas: Iterable[Replica], pinned: Mapping[str, PinnedRevision], running: PinnedRevision | None
) -> tuple[Replica, ...]:
    """The replicas with the revision as which each serves: the running one, or else the one whose list it has."""
    return tuple(replace(replica, serves_as=_serves_as(replica, pinned, running)) for replica in replicas)


def _serves_as(replica: Replica, pinned: Mapping[str, PinnedRevision], running: PinnedRevision | None) -> str:
    own = pinned.get(replica.leader.revision)
    text = wanted_text(replica.leader.manifest)
    if own is None or not text:
        return ""
    if running is not None and (running.revision == own.revision or adopts(own, running)):
        return running.revision
    if text == wanted_text(own.template):
        return ""
    able = [one for one in pinned.values() if wanted_text(one.template) == text and adopts(own, one)]
    return max(able, key=lambda one: one.number).revision if able else ""


def notes(
    replicas: Sequence[Replica], pinned: Mapping[str, PinnedRevision], running: PinnedRevision | None, pages: Pages
) -> dict[str, dict[str, str]]:
    """The annotations about adapters by the pods' uids, for pods whose adapters can change.

    Pods that do not serve as the running revision keep theirs.
    """
    noted: dict[str, dict[str, str]] = {}
    for replica in replicas:
        pod, own = replica.leader, pinned.get(replica.leader.revision)
        if own is None or not wanted_text(own.template):
            continue
        if running is not None and replica.revision == running.revision:
            noted[pod.uid] = _current(pod, wanted_text(running.template), pages.get(pod.uid))
        else:
            has = objects.annotations(pod.manifest)
            names = (ANNOTATION_ADAPTERS, ANNOTATION_ADAPTERS_WANTED)
            noted[pod.uid] = {name: str(has[name]) for name in names if name in has}
    return noted


def _current(pod: PodState, text: str, page: AdaptersPage | None) -> dict[str, str]:
    """The annotations of a pod that should have this list."""
    wanted, before = wanted_adapters(text), wanted_text(pod.manifest)
    if before == text and page is not None and page.answers(text):
        has = [name for name in wanted if name in page.loaded]
    else:
        has = [*_has_of(pod, wanted)]
    return {ANNOTATION_ADAPTERS: ",".join(sorted(has)), ANNOTATION_ADAPTERS_WANTED: text}


def awaits(pod: PodState) -> str:
    """The list of which the operator does not know yet that the engine has all; "" if there is none."""
    text = wanted_text(pod.manifest)
    return text if pod.up and set(wanted_adapters(text)) != set(loaded_names(pod.manifest)) else ""


def failures(replicas: Iterable[Replica], pages: Pages) -> dict[str, str]:
    """Why engines could not load adapters, by the adapters' names, with the pod that says so."""
    found: dict[str, str] = {}
    for replica in replicas:
        page = pages.get(replica.leader.uid)
        if page is not None and page.answers(awaits(replica.leader)):
            for name, why in page.failed.items():
                found.setdefault(name, f"{replica.leader.name} cannot load it: {why}")
    return found
