"""Which engines the router may use, and under which names: pure decisions.

The router (smg) reads its workers from a JSON file. What it does with that file forces the rules below; each was
measured with smg 1.13.0, and the tests run the spellings, the swap and the return against the real program.

* One address is one model: two entries whose URLs are equal after normalisation of scheme, port and IPv6 make smg
  refuse the whole file. IPv4 hosts are not normalised, and its HTTP client reads them as the WHATWG URL standard
  says, so that `10.0.0.5`, `10.0.0.5.`, `167772165` and `0x0a000005` are four workers at one address. These are
  the spellings for the second and further names of a pod. (A user name in the URL works too, but then smg sends two
  `Authorization` headers; a path does not register.) All spellings of an IPv6 address are one, so there the
  DNS name of the pod's address is used, `fd00--5.<namespace>.pod.<cluster domain>` in three forms: it exists without
  a Service, and also while the pod is not ready.
* An entry whose `id` changes while its URL stays is taken out and put back: about 0.3 s of 503. So an `id` is kept
  as long as the pod is a member, also over a restart of the agent (it is all read back from the file), and a new
  admission prefers a spelling that smg does not know.
* An entry that comes back with the `id` with which it left is ignored while smg drains it: every admission has an
  `id` of its own.
* A worker that leaves the file gets no new request at once, while a new one needs 0.3 s to 3 s until it is ready.
  So the last worker of a name stays in the file until its replacement is `ready`, provided that it can still
  answer: its pod exists, and belongs to the deployment that owns the name.
"""

import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qwen_operator import objects
from qwen_operator.api.claims import Claims, DeploymentKey, claims
from qwen_operator.manifests.names import LABEL_DEPLOYMENT
from qwen_operator.replicas.groups import groups_of
from qwen_operator.replicas.pod_state import PodState, read

MAX_NAMES = 4
DISCOVERY_ID = "smg.ai/discovery-id"


class Drop(StrEnum):
    """Why something is not in the file."""

    INVALID_ADDRESS = "InvalidAddress"
    ADDRESS_TAKEN = "AddressTaken"
    INVALID_NAME = "InvalidName"
    TOO_MANY_NAMES = "TooManyNames"


@dataclass(frozen=True, slots=True, order=True)
class Dropped:
    """One thing left out of the file; the rest of the file is unaffected."""

    reason: Drop
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One worker of the file: one pod under one name. `serial` tells the admissions of a pod apart."""

    name: str
    namespace: str
    deployment: str
    pod: str
    uid: str
    serial: str
    url: str

    @property
    def id(self) -> str:
        """The worker's `id`; everything that identifies the entry can be read back from it."""
        return "/".join((self.namespace, self.deployment, self.pod, self.uid, self.serial))

    @property
    def owner(self) -> DeploymentKey:
        """The deployment that the pod belongs to."""
        return DeploymentKey(self.namespace, self.deployment)


@dataclass(frozen=True, slots=True)
class EntryNaming:
    """What an agent needs to make ids and URLs. `nonce` differs between starts of the agent; `port` is the engines'."""

    nonce: str
    cluster_domain: str = "cluster.local"
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Membership:
    """The workers of the file in the file's order, and what came of making it.

    `serial` counts the admissions made with the present nonce. `awaited` holds the ids that smg has not reported as
    ready. `leaving` holds the ids that stay only until a replacement is ready.
    """

    entries: tuple[Entry, ...] = ()
    serial: int = 0
    awaited: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    dropped: tuple[Dropped, ...] = ()

    def content(self) -> str:
        """The text of the discovery file; equal memberships give equal text."""
        workers = [{"id": entry.id, "url": entry.url, "model_id": entry.name} for entry in self.entries]
        return json.dumps({"version": 1, "workers": workers}, indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class GatewayView:
    """What is seen now. `workers` is smg's answer to `GET /workers`, None when smg does not answer."""

    deployments: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    workers: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class _Pod:
    """The leader of a replica. `address` is "" where it cannot answer; `routable`: it may get new requests."""

    owner: DeploymentKey
    name: str
    uid: str
    created: str
    address: str
    routable: bool


def restore(content: str) -> Membership:
    """Read a membership back from the discovery file; empty when the file is not one that `content` made."""
    try:
        workers = json.loads(content)["workers"]
        entries = tuple(_entry(worker["id"], worker["url"], worker["model_id"]) for worker in workers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Membership()
    return Membership(entries=entries)


def advance(observed: GatewayView, previous: Membership, naming: EntryNaming) -> Membership:
    """Decide the next discovery file from what is seen and the file before it. Idempotent when nothing changes."""
    owned = claims(observed.deployments)
    dropped: list[Dropped] = []
    pods, routable = _read_pods(observed.pods, dropped)
    kept, missing = _match(routable, owned, previous, naming, dropped)
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
        Dropped(Drop.INVALID_NAME, str(key), problem) for key, found in owned.refused.items() for problem in found
    ]
    return Membership(
        entries=tuple(sorted([*members, *leaving], key=lambda entry: (entry.name, entry.id))),
        serial=previous.serial + len(admitted),
        awaited=frozenset(entry.id for entry in members) - (ready or frozenset()),
        leaving=frozenset(entry.id for entry in leaving),
        dropped=tuple(sorted(set(dropped))),
    )


def ready_ids(workers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The discovery ids that smg reports as ready."""
    return frozenset(
        str(objects.mapping(worker, "labels").get(DISCOVERY_ID))
        for worker in workers
        if worker.get("status") == "ready"
    )


def spellings(address: str, namespace: str, cluster_domain: str) -> tuple[str, ...]:
    """The spellings of a pod's host that smg takes for different workers, most ordinary first; MAX_NAMES of them.

    Raises ValueError when `address` is not an IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip), f"{ip}.", str(int(ip)), f"0x{int(ip):08x}"
    # As the cluster's DNS compares it: colons are dashes, and the address is in its canonical form.
    name = f"{str(ip).replace(':', '-')}.{namespace}.pod"
    return f"[{ip}]", f"{name}.{cluster_domain}", f"{name}.{cluster_domain}.", name


def _entry(ident: str, url: str, name: str) -> Entry:
    namespace, deployment, pod, uid, serial = ident.split("/")
    return Entry(name, namespace, deployment, pod, uid, serial, url)


def _pod_urls(pod: _Pod, naming: EntryNaming) -> tuple[str, ...]:
    hosts = spellings(pod.address, pod.owner.namespace, naming.cluster_domain)
    return tuple(f"http://{host}:{naming.port}" for host in hosts)


def _read_pods(manifests: Iterable[Mapping[str, Any]], dropped: list[Dropped]) -> tuple[list[_Pod], list[_Pod]]:
    """Return the leaders that have an address, and those of them that may be members, ordered by age."""
    pods: list[_Pod] = []
    for pod in _leaders(manifests):
        if not pod.address:
            continue
        if not _is_address(pod.address):
            dropped.append(
                Dropped(Drop.INVALID_ADDRESS, _subject(pod), f"status.podIP {pod.address!r} is not an IP address")
            )
            continue
        pods.append(pod)
    pods.sort(key=lambda pod: (pod.created, pod.owner, pod.name, pod.uid))
    youngest = {pod.address: pod for pod in pods if pod.routable}
    taken = [pod for pod in pods if pod.address in youngest and youngest[pod.address] is not pod]
    # An address is given to the next pod as soon as its holder has ended, which the older object may not show yet.
    dropped += [
        Dropped(Drop.ADDRESS_TAKEN, _subject(pod), f"{pod.address} belongs to {_subject(youngest[pod.address])} by now")
        for pod in taken
        if pod.routable
    ]
    alive = [pod for pod in pods if pod not in taken]
    return alive, [pod for pod in alive if pod.routable]


def _leaders(manifests: Iterable[Mapping[str, Any]]) -> Iterator[_Pod]:
    """The first pod of each replica. A replica is routable when all its pods are ready."""
    states: dict[DeploymentKey, list[PodState]] = {}
    for manifest in manifests:
        owner = DeploymentKey(objects.text(manifest, "metadata", "namespace"), _deployment(manifest))
        states.setdefault(owner, []).append(read(dict(manifest), owner.name))
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
    """Whether `text` is an IP address without a zone, which smg takes for a malformed file."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _subject(pod: _Pod) -> str:
    return f"{pod.owner.namespace}/{pod.name}"


def _match(
    routable: Iterable[_Pod], owned: Claims, previous: Membership, naming: EntryNaming, dropped: list[Dropped]
) -> tuple[list[Entry], list[tuple[_Pod, str]]]:
    """Split what should be in the file into entries that go on and (pod, name) pairs that are new."""
    before = {(entry.uid, entry.owner, entry.name): entry for entry in previous.entries}
    kept: list[Entry] = []
    missing: list[tuple[_Pod, str]] = []
    for pod in routable:
        names = owned.won.get(pod.owner, ())
        if len(names) > MAX_NAMES:
            message = (
                f"{len(names)} names, the router can tell {MAX_NAMES} apart: {', '.join(names[MAX_NAMES:])} left out"
            )
            dropped.append(Dropped(Drop.TOO_MANY_NAMES, str(pod.owner), message))
        urls = _pod_urls(pod, naming)
        for name in names[:MAX_NAMES]:
            entry = before.get((pod.uid, pod.owner, name))
            # A pod gets another address when its sandbox is made anew.
            if entry is not None and entry.url in urls:
                kept.append(entry)
            else:
                missing.append((pod, name))
    return kept, missing


def _known_urls(workers: Sequence[Mapping[str, Any]] | None, previous: Membership) -> frozenset[str]:
    return frozenset(str(worker.get("url")) for worker in workers or ()) | {entry.url for entry in previous.entries}


def _admit(
    missing: Iterable[tuple[_Pod, str]], kept: Iterable[Entry], known: frozenset[str], naming: EntryNaming, serial: int
) -> list[Entry]:
    """Give each new (pod, name) an id of its own and a free spelling, one that smg does not know if there is one."""
    taken = {entry.url for entry in kept}
    admitted: list[Entry] = []
    for pod, name in missing:
        serial += 1
        free = [url for url in _pod_urls(pod, naming) if url not in taken]
        url = next((url for url in free if url not in known), free[0])
        taken.add(url)
        admitted.append(
            Entry(name, pod.owner.namespace, pod.owner.name, pod.name, pod.uid, f"{naming.nonce}-{serial}", url)
        )
    return admitted


def _leaving(outgoing: Iterable[Entry], members: Sequence[Entry], ready: frozenset[str] | None) -> list[Entry]:
    """Those of `outgoing`, entries that can still answer, that must do so until a replacement is ready."""
    ids = {entry.id for entry in members}
    replaced = {entry.name for entry in members}
    served = {entry.name for entry in members if ready is not None and entry.id in ready}
    return [
        entry
        for entry in outgoing
        if entry.id not in ids and entry.name in replaced - served and (ready is None or entry.id in ready)
    ]
