"""Decides which engines the router may use, and under which names. Pure.

The router (smg) reads its workers from a JSON file. The rules below follow from how smg handles that file. Each was
measured with smg 1.13.0. The tests run the spellings, the swap and the return against the real program.

* One address can have only one model. If two entries have equal URLs after normalisation of scheme, port and IPv6, smg
  rejects the whole file. But smg does not normalise IPv4 hosts, and its HTTP client reads them by the WHATWG URL
  standard. So `10.0.0.5`, `10.0.0.5.`, `167772165` and `0x0a000005` are four workers at one address. The second and
  further names of a pod use these spellings. (A user name in the URL also works, but then smg sends two
  `Authorization` headers. A URL with a path does not register.) All spellings of an IPv6 address are equal for smg.
  There the entries use the DNS name of the pod's address, `fd00--5.<namespace>.pod.<cluster domain>`, in three forms.
  This name exists without a Service, and also while the pod is not ready.
* If the `id` of an entry changes and its URL stays, smg removes the worker and adds it again: about 0.3 s of 503. So
  an `id` stays the same while the pod is a member, also over a restart of the agent, which reads the ids from the
  file. A new admission prefers a spelling that smg does not know.
* If an entry returns with its old `id` while smg still drains it, smg ignores the entry. So every admission has a new
  `id`.
* A worker that leaves the file gets no new request from that moment, but a new worker is ready only after 0.3 s to
  3 s. So the last worker of a name stays in the file until its replacement is `ready`. The worker must still be able
  to answer: its pod exists and belongs to the deployment that holds the name.
"""

import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwen_operator import objects
from qwen_operator.api.claims import DeploymentKey, NameRights
from qwen_operator.api.name_index import Holders, holders
from qwen_operator.manifests.names import LABEL_DEPLOYMENT
from qwen_operator.manifests.ownership import Ownership, is_marked_child, ownership
from qwen_operator.replicas.groups import groups_of
from qwen_operator.replicas.pod_state import PodState, read_pod
from qwen_operator.untrusted import clean, decode

MAX_NAMES = 4
_FILE_LEVELS = 8
DISCOVERY_ID = "smg.ai/discovery-id"


class Drop(StrEnum):
    """Why a pod or a name is not in the file."""

    INVALID_ADDRESS = "InvalidAddress"
    ADDRESS_TAKEN = "AddressTaken"
    INVALID_NAME = "InvalidName"
    TOO_MANY_NAMES = "TooManyNames"
    UNREADABLE = "Unreadable"
    NOT_OWNED = "NotOwned"


@dataclass(frozen=True, slots=True, order=True)
class Dropped:
    """A pod or a name that is not in the file. It does not affect the rest of the file."""

    reason: Drop
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One worker of the file: one pod under one name. `serial` distinguishes the admissions of a pod."""

    name: str
    namespace: str
    deployment: str
    pod: str
    uid: str
    serial: str
    url: str

    @property
    def id(self) -> str:
        """The worker's `id`. It contains everything that identifies the entry."""
        return "/".join((self.namespace, self.deployment, self.pod, self.uid, self.serial))

    @property
    def owner(self) -> DeploymentKey:
        """The deployment that the pod belongs to."""
        return DeploymentKey(self.namespace, self.deployment)


@dataclass(frozen=True, slots=True)
class EntryNaming:
    """The parts of ids and URLs. `nonce` differs between starts of the agent. `port` is the port of the engines."""

    nonce: str
    cluster_domain: str = "cluster.local"
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Membership:
    """The workers of the file in the file's order.

    `serial` counts the admissions with the present nonce. `awaited`: ids that smg does not report as ready. `leaving`:
    ids that stay only until a replacement is ready. `dropped`: pods and names that are not in the file. `owners`: the
    holder of each name that the router can serve, also without a worker.
    """

    entries: tuple[Entry, ...] = ()
    serial: int = 0
    awaited: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    dropped: tuple[Dropped, ...] = ()
    owners: Mapping[str, DeploymentKey] = field(default_factory=dict)

    def content(self) -> str:
        """The text of the discovery file. Equal memberships give equal text."""
        workers = [{"id": entry.id, "url": entry.url, "model_id": entry.name} for entry in self.entries]
        return json.dumps({"version": 1, "workers": workers}, indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class GatewayView:
    """The present objects. `workers` is smg's answer to `GET /workers`; None if smg does not answer.

    `rights`: which namespaces may serve which names. `unread`: namespaces of which nothing is known.
    """

    deployments: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    workers: Sequence[Mapping[str, Any]] | None
    rights: NameRights = field(default_factory=NameRights)
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Pod:
    """The leader of a replica. `address` is "" if it cannot answer. `routable`: it may get new requests."""

    owner: DeploymentKey
    name: str
    uid: str
    created: str
    address: str
    routable: bool


def restore(content: str) -> Membership:
    """Read a membership from the discovery file. It is empty if `content` did not make the file."""
    try:
        workers = decode(content, _FILE_LEVELS)["workers"]
        entries = tuple(_entry(worker["id"], worker["url"], worker["model_id"]) for worker in workers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Membership()
    return Membership(entries=entries)


def advance(observed: GatewayView, previous: Membership, naming: EntryNaming) -> Membership:
    """Decide the next discovery file from the present objects and the previous file.

    If nothing changes, it returns the same file again.
    """
    owned = holders(observed.deployments, observed.rights)
    dropped: list[Dropped] = []
    pods, routable = _read_pods(_engine_pods(observed, dropped), dropped)
    kept, missing = _match(routable, owned, previous, naming, dropped)
    kept += _unread(observed.unread, previous, owned, pods, naming)
    ready = None if observed.workers is None else ready_ids(observed.workers)
    admitted = _admit(missing, kept, _known_urls(observed.workers, previous), naming, previous.serial)
    members = [*kept, *admitted]
    answering = {(pod.uid, url) for pod in pods for url in _pod_urls(pod, naming)}
    outgoing = [
        entry
        for entry in previous.entries
        if (entry.uid, entry.url) in answering and owned.owners.get(entry.name) == entry.owner
    ]
    leaving = _leaving(outgoing, members, ready)
    dropped += [
        Dropped(Drop.INVALID_NAME, str(key), problem) for key, problems in owned.refused.items() for problem in problems
    ]
    return Membership(
        entries=tuple(sorted([*members, *leaving], key=lambda entry: (entry.name, entry.id))),
        serial=previous.serial + len(admitted),
        awaited=frozenset(entry.id for entry in members) - (ready or frozenset()),
        leaving=frozenset(entry.id for entry in leaving),
        dropped=tuple(sorted(set(dropped))),
        owners={name: key for key, names in owned.won.items() for name in names[:MAX_NAMES]},
    )


def ready_ids(workers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The discovery ids that smg reports as ready."""
    return frozenset(
        str(objects.mapping(worker, "labels").get(DISCOVERY_ID))
        for worker in workers
        if worker.get("status") == "ready"
    )


def spellings(address: str, namespace: str, cluster_domain: str) -> tuple[str, ...]:
    """MAX_NAMES spellings of a pod's host that smg treats as different workers, the most common one first.

    Raises ValueError if `address` is not an IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip), f"{ip}.", str(int(ip)), f"0x{int(ip):08x}"
    # The cluster's DNS expects dashes instead of colons, and the canonical form of the address.
    name = f"{str(ip).replace(':', '-')}.{namespace}.pod"
    return f"[{ip}]", f"{name}.{cluster_domain}", f"{name}.{cluster_domain}.", name


def _entry(ident: str, url: str, name: str) -> Entry:
    namespace, deployment, pod, uid, serial = ident.split("/")
    return Entry(name, namespace, deployment, pod, uid, serial, url)


def _pod_urls(pod: _Pod, naming: EntryNaming) -> tuple[str, ...]:
    return _urls(pod.address, pod.owner.namespace, naming)


def _urls(address: str, namespace: str, naming: EntryNaming) -> tuple[str, ...]:
    return tuple(f"http://{host}:{naming.port}" for host in spellings(address, namespace, naming.cluster_domain))


def _read_pods(manifests: Iterable[Mapping[str, Any]], dropped: list[Dropped]) -> tuple[list[_Pod], list[_Pod]]:
    """Return the leaders with an address, and the possible members among them. Both are sorted by age."""
    pods: list[_Pod] = []
    for pod in _leaders(manifests, dropped):
        if not pod.address:
            continue
        if not _is_address(pod.address):
            message = f"status.podIP {clean(pod.address, 64)!r} is not an IP address"
            dropped.append(Dropped(Drop.INVALID_ADDRESS, _subject(pod), message))
            continue
        pods.append(pod)
    pods.sort(key=lambda pod: (pod.created, pod.owner, pod.name, pod.uid))
    youngest = {pod.address: pod for pod in pods if pod.routable}
    taken = [pod for pod in pods if pod.address in youngest and youngest[pod.address] is not pod]
    # A new pod gets an address as soon as the previous pod has ended. The previous pod's object may not show that yet.
    dropped += [
        Dropped(Drop.ADDRESS_TAKEN, _subject(pod), f"{pod.address} now belongs to {_subject(youngest[pod.address])}")
        for pod in taken
        if pod.routable
    ]
    alive = [pod for pod in pods if pod not in taken]
    return alive, [pod for pod in alive if pod.routable]


def _engine_pods(observed: GatewayView, dropped: list[Dropped]) -> Iterator[Mapping[str, Any]]:
    """The pods that a present QwenDeployment owns. Labels alone make no engine: anybody may write them."""
    deployments = {
        DeploymentKey(objects.text(item, "metadata", "namespace"), objects.text(item, "metadata", "name")): item
        for item in observed.deployments
    }
    for pod in observed.pods:
        key = DeploymentKey(objects.text(pod, "metadata", "namespace"), _deployment(pod))
        deployment = deployments.get(key)
        if deployment is None:
            continue
        if is_marked_child(pod, deployment):
            yield pod
        elif ownership(pod, deployment) is Ownership.FOREIGN:
            subject = f"{key.namespace}/{objects.text(pod, 'metadata', 'name')}"
            message = f"the pod has the label of QwenDeployment {key.name}, but that object does not own it"
            dropped.append(Dropped(Drop.NOT_OWNED, subject, message))


def _leaders(manifests: Iterable[Mapping[str, Any]], dropped: list[Dropped]) -> Iterator[_Pod]:
    """The first pod of each replica. A replica is routable if all its pods are ready."""
    states: dict[DeploymentKey, list[PodState]] = {}
    for manifest in manifests:
        owner = DeploymentKey(objects.text(manifest, "metadata", "namespace"), _deployment(manifest))
        try:
            state = read_pod(dict(manifest), owner.name)
        except Exception as error:
            # Whatever one pod holds, the others stay in the file.
            subject = f"{owner.namespace}/{objects.text(manifest, 'metadata', 'name')}"
            dropped.append(Dropped(Drop.UNREADABLE, subject, f"the pod cannot be read: {type(error).__name__}"))
            continue
        states.setdefault(owner, []).append(state)
    for owner, pods in states.items():
        for replica in groups_of(pods):
            leader = replica.leader
            yield _Pod(
                owner=owner,
                name=leader.name,
                uid=leader.uid,
                created=objects.text(leader.manifest, "metadata", "creationTimestamp"),
                address=leader.address if leader.rank == 0 else "",
                routable=replica.up and replica.routable and not replica.deleting,
            )


def _deployment(manifest: Mapping[str, Any]) -> str:
    return str(objects.labels(manifest).get(LABEL_DEPLOYMENT, ""))


def _is_address(text: str) -> bool:
    """Whether `text` is an IP address without a zone. An address with a zone makes the file invalid for smg."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _subject(pod: _Pod) -> str:
    return f"{pod.owner.namespace}/{pod.name}"


def _match(
    routable: Iterable[_Pod], owned: Holders, previous: Membership, naming: EntryNaming, dropped: list[Dropped]
) -> tuple[list[Entry], list[tuple[_Pod, str]]]:
    """Return the entries that stay in the file, and the (pod, name) pairs that are new."""
    before = {(entry.uid, entry.owner, entry.name): entry for entry in previous.entries}
    kept: list[Entry] = []
    missing: list[tuple[_Pod, str]] = []
    for pod in routable:
        names = owned.won.get(pod.owner, ())
        if len(names) > MAX_NAMES:
            message = (
                f"there are {len(names)} names, but the router supports {MAX_NAMES} for one deployment: it does not "
                f"serve {', '.join(names[MAX_NAMES:])}"
            )
            dropped.append(Dropped(Drop.TOO_MANY_NAMES, str(pod.owner), message))
        urls = _pod_urls(pod, naming)
        for name in names[:MAX_NAMES]:
            entry = before.get((pod.uid, pod.owner, name))
            # A pod gets another address if the kubelet creates its sandbox again.
            if entry is not None and entry.url in urls:
                kept.append(entry)
            else:
                missing.append((pod, name))
    return kept, missing


def _unread(
    namespaces: frozenset[str], previous: Membership, owned: Holders, pods: Sequence[_Pod], naming: EntryNaming
) -> list[Entry]:
    """The entries of namespaces of which nothing is known. They stay, unless what is known contradicts them.

    Another pod may have the address by now, and then requests would reach another tenant.
    """
    taken = {
        (namespace, url) for namespace in namespaces for pod in pods for url in _urls(pod.address, namespace, naming)
    }
    return [
        entry
        for entry in previous.entries
        if entry.namespace in namespaces
        and entry.name not in owned.owners
        and (entry.namespace, entry.url) not in taken
    ]


def _known_urls(workers: Sequence[Mapping[str, Any]] | None, previous: Membership) -> frozenset[str]:
    return frozenset(str(worker.get("url")) for worker in workers or ()) | {entry.url for entry in previous.entries}


def _admit(
    missing: Iterable[tuple[_Pod, str]],
    kept: Iterable[Entry],
    known_urls: frozenset[str],
    naming: EntryNaming,
    serial: int,
) -> list[Entry]:
    """Give each new (pod, name) a new id and a free spelling, if possible one that smg does not know."""
    taken = {entry.url for entry in kept}
    admitted: list[Entry] = []
    for pod, name in missing:
        serial += 1
        free = [url for url in _pod_urls(pod, naming) if url not in taken]
        url = next((url for url in free if url not in known_urls), free[0])
        taken.add(url)
        admitted.append(
            Entry(name, pod.owner.namespace, pod.owner.name, pod.name, pod.uid, f"{naming.nonce}-{serial}", url)
        )
    return admitted


def _leaving(outgoing: Iterable[Entry], members: Sequence[Entry], ready: frozenset[str] | None) -> list[Entry]:
    """The entries of `outgoing` that must stay until a replacement is ready. All of `outgoing` can still answer."""
    ids = {entry.id for entry in members}
    replaced = {entry.name for entry in members}
    served = {entry.name for entry in members if ready is not None and entry.id in ready}
    return [
        entry
        for entry in outgoing
        if entry.id not in ids and entry.name in replaced - served and (ready is None or entry.id in ready)
    ]
