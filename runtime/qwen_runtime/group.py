"""The members of an engine that runs over several pods: they start together, and end together.

Rank 0 listens, the others connect to it. No member starts its engine before all of them are connected, so a slow image
pull on one node costs the others waiting and no restart. The connections stay open while the engines run. If a member
ends, or is silent for too long, the others learn it at once, and why.

The operator writes the address of rank 0, and the uid of its pod, into an annotation of the other pods. The kubelet
shows it to them as a file. So no name has to be resolved, and no member takes an earlier pod of rank 0 for the present
one.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_runtime.preflight import Peer, listener, peers_of, unreached

GROUP_PORT = 20001
DIST_PORT = 20000
"""The port of --dist-init-addr. SGLang's communication opens random ports besides."""

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A member from which nothing came for this time counts as lost: its node may be gone."""

_CONNECT_SECONDS = 5.0
_STEP_SECONDS = 0.2
_LONGEST_LINE = 8192
_MOST_STRANGERS = 32
_BACKLOG = 128
_TEXT = 400


class GroupError(Exception):
    """The group did not form. The text is one sentence for the report."""


class AskedToEnd(Exception):
    """This process was asked to end while it waited for the others."""


@dataclass(frozen=True, slots=True)
class Member:
    """The place of this process in its group.

    `rank` of `size` members. `name`, `address` and `uid` are those of its pod. `leader_file` has the address of rank 0
    and the uid of its pod, or is empty. `engine` is the installed version of SGLang, "" if it is not known. `problem`:
    why its engine cannot run with the others. `seconds`: how long to wait for them.
    """

    size: int
    rank: int
    name: str
    address: str
    uid: str
    leader_file: Path
    engine: str = ""
    problem: str = ""
    seconds: float = 1200.0
    group_port: int = GROUP_PORT
    dist_port: int = DIST_PORT

    @property
    def place(self) -> str:
        """The rank with the name of the pod."""
        return f"rank {self.rank} ({self.name})"


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to another member. `asked`: it was asked to end, and ends its engine in order. `waits`: its engine
    does nothing but wait for another rank. Otherwise its engine ended. `why` says how, or is empty until it knows."""

    rank: int
    asked: bool
    why: str = ""
    waits: bool = False


class _Link:
    """One connection. A thread reads lines and gives them to `on_message`; the end of them goes to `on_end`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(SILENT_SECONDS)
        self._lock = threading.Lock()
        self._rest = b""

    def send(self, message: Mapping[str, Any]) -> bool:
        """Whether the message was handed to the network."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> Mapping[str, Any] | None:
        """The next message; None at the end of the connection, after a silence, and for anything that is no message."""
        while b"\n" not in self._rest:
            try:
                data = self._socket.recv(4096)
            except OSError:
                return None
            self._rest += data
            if not data or len(self._rest) > _LONGEST_LINE:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@dataclass(slots=True)
class Group:
    """The connections of one member. `join` makes it; `events` has what happens to the others after that.

    `leader_address` is the value for --dist-init-addr.
    """

    member: Member
    leader_address: str = ""
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    _links: dict[int, _Link] = field(default_factory=dict)
    _peers: dict[int, Peer] = field(default_factory=dict)
    _strangers: list[_Link] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told: threading.Event = field(default_factory=threading.Event)
    _on_event: Callable[[], None] = lambda: None

    def notify(self, on_event: Callable[[], None]) -> None:
        """From now on call `on_event` after each event, from another thread."""
        self._on_event = on_event
        if not self.events.empty():
            on_event()

    def asked(self) -> None:
        """Tell rank 0 that this member was asked to end, so that the engine finishes its requests."""
        self._broadcast({"asked": True, "rank": self.member.rank})

    def waiting(self) -> None:
        """Tell the others that the engine of this member does nothing but wait for another rank."""
        self._broadcast({"waiting": True, "rank": self.member.rank})

    def ending(self) -> None:
        """Tell the others that the engine of this member has ended. The reason follows."""
        self._broadcast({"ended": "", "rank": self.member.rank})

    def ended(self, why: str) -> None:
        """Tell the others why the engine of this member ended."""
        self._broadcast({"ended": why[:_TEXT], "rank": self.member.rank})
        self._told.set()

    def close(self) -> None:
        """Close all connections."""
        self._told.set()
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.close()

    def _broadcast(self, message: Mapping[str, Any], but: int = -1) -> None:
        with self._lock:
            links = list(self._links.items())
        for rank, link in links:
            if rank != but:
                link.send(message)

    def _watch(self, rank: int, link: _Link) -> None:
        """Read what a member says until it ends. Rank 0 passes the first end on to the others."""
        threading.Thread(target=self._read, args=(rank, link), name=f"member-{rank}", daemon=True).start()

    def _read(self, rank: int, link: _Link) -> None:
        last = False
        while (message := link.receive()) is not None:
            if message.get("asked") is True:
                self._happened(Event(rank, True))
            elif message.get("waiting") is True:
                self._happened(Event(rank, False, waits=True))
            elif isinstance(message.get("ended"), str):
                origin = message.get("rank")
                self._happened(Event(origin if isinstance(origin, int) else rank, False, message["ended"][:_TEXT]))
                last = last or bool(message["ended"])
        if not last and not self._told.is_set():
            self._happened(Event(rank, False, f"rank {rank} does not answer any more"))

    def _happened(self, event: Event) -> None:
        self.events.put(event)
        if self.member.rank == 0 and event.waits:
            self._broadcast({"waiting": True, "rank": event.rank}, but=event.rank)
        elif self.member.rank == 0 and not event.asked:
            self._broadcast({"ended": event.why, "rank": event.rank}, but=event.rank)
        self._on_event()

    def _beat(self) -> None:
        while not self._told.wait(BEAT_SECONDS):
            self._broadcast({})


def join(member: Member, stop: Callable[[], bool]) -> Group:
    """Wait until all members are connected. Raises GroupError, or AskedToEnd if `stop` returns true."""
    group = Group(member)
    deadline = time.monotonic() + member.seconds
    try:
        with _probed(member) as probe:
            if member.rank == 0:
                _lead(group, probe, deadline, stop)
            else:
                _follow(group, probe, deadline, stop)
    except BaseException:
        group.close()
        raise
    for rank, link in group._links.items():
        group._watch(rank, link)
    threading.Thread(target=group._beat, name="beat", daemon=True).start()
    return group


def _probed(member: Member) -> socket.socket:
    try:
        return listener(member.address)
    except OSError as error:
        raise GroupError(f"{member.place} cannot listen on {member.address}: {error.strerror}") from None


def host_and_port(address: str, port: int) -> str:
    """The address with a port, in the form of a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _lead(group: Group, probe: socket.socket, deadline: float, stop: Callable[[], bool]) -> None:
    member = group.member
    if member.problem:
        raise GroupError(f"{member.place}: {member.problem}")
    group.leader_address = host_and_port(member.address, member.dist_port)
    family = socket.AF_INET6 if ":" in member.address else socket.AF_INET
    try:
        server = socket.create_server((member.address, member.group_port), family=family, backlog=_BACKLOG)
    except OSError as error:
        place = host_and_port(member.address, member.group_port)
        raise GroupError(f"rank 0 cannot listen on {place}: {error.strerror}") from None
    refused: list[str] = []
    with server:
        server.settimeout(_STEP_SECONDS)
        beat, told = 0.0, list[int]()
        while missing := _missing(group):
            _pause(deadline, stop, _incomplete(member, missing))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                pass
            except OSError:
                # Somebody broke the connection off, or this process has no file descriptor left for it.
                time.sleep(_STEP_SECONDS)
            else:
                _receive(group, _Link(connection), refused)
            if refused:
                raise GroupError(refused[0])
            if missing != told or time.monotonic() - beat >= BEAT_SECONDS:
                beat, told = time.monotonic(), missing
                _drop_lost(group, {"waits": missing})
        _dismiss(group, 0)
        _check_ways(group, Peer(member.place, member.address, probe.getsockname()[1]))
        _send_all(group, {"start": True})


def _send_all(group: Group, message: Mapping[str, Any]) -> None:
    for rank, link in group._links.items():
        if not link.send(message):
            raise GroupError(f"rank {rank} went away while the group formed")


def _check_ways(group: Group, own: Peer) -> None:
    """Let every member connect to every other one, as their engines will. Raises GroupError if one cannot."""
    peers = [own, *(peer for _, peer in sorted(group._peers.items()))]
    _send_all(group, {"reach": [peer.to_json() for peer in peers]})
    problem = unreached(own.place, peers[1:])
    for rank, link in group._links.items():
        answer = link.receive() if not problem else {}
        if answer is None:
            raise GroupError(f"rank {rank} went away while the group formed")
        problem = problem or str(answer.get("unreached") or "")[:_TEXT]
    if problem:
        for link in group._links.values():
            link.send({"refused": problem})
        raise GroupError(problem)


def _missing(group: Group) -> list[int]:
    with group._lock:
        return [rank for rank in range(1, group.member.size) if rank not in group._links]


def _drop_lost(group: Group, message: Mapping[str, Any]) -> None:
    """Say something to those that wait, and forget those that do not listen any more."""
    with group._lock:
        links = list(group._links.items())
    lost = [(rank, link) for rank, link in links if not link.send(message)]
    with group._lock:
        for rank, link in lost:
            if group._links.get(rank) is link:
                del group._links[rank]


def _receive(group: Group, link: _Link, refused: list[str]) -> None:
    """Let somebody say who it is. Anybody may connect, so only a few may be silent about it at the same time."""
    with group._lock:
        group._strangers.append(link)
    _dismiss(group, _MOST_STRANGERS)
    threading.Thread(target=_admit, args=(group, link, refused), daemon=True).start()


def _dismiss(group: Group, keep: int) -> None:
    """Close the oldest connections of those that have not said who they are, all but so many."""
    with group._lock:
        number = max(0, len(group._strangers) - keep)
        closing, group._strangers[:] = group._strangers[:number], group._strangers[number:]
    for link in closing:
        link.close()


def _admit(group: Group, link: _Link, refused: list[str]) -> None:
    """Take a member in, or close the connection of anybody else."""
    member, hello = group.member, link.receive() or {}
    rank, name = hello.get("rank"), str(hello.get("name"))[:100]
    known = hello.get("uid") == member.uid and isinstance(rank, int) and 0 < rank < member.size
    if not known or not isinstance(rank, int) or hello.get("size") != member.size:
        _turn_away(group, link)
        return
    sentence = _objection(member, f"rank {rank} ({name})", hello)
    peers = peers_of([[f"rank {rank} ({name})", hello.get("address"), hello.get("port")]])
    if sentence or not peers:
        sentence = sentence or f"rank {rank} ({name}) does not say where it listens"
        link.send({"refused": sentence})
        _turn_away(group, link)
        refused.append(sentence)
        return
    with group._lock:
        if link not in group._strangers:
            # It came too late, and its connection is closed.
            return
        group._strangers.remove(link)
        former = group._links.get(rank)
        group._links[rank], group._peers[rank] = link, peers[0]
    if former is not None:
        # Its container has started again.
        former.close()


def _objection(member: Member, place: str, hello: Mapping[str, Any]) -> str:
    """Why the engines cannot start with this member, "" if they can."""
    if hello.get("problem"):
        return f"{place}: {str(hello['problem'])[:_TEXT]}"
    if hello.get("engine") == member.engine:
        return ""
    return (
        f"{place} has SGLang {str(hello.get('engine'))[:40]}, but rank 0 has {member.engine}: the tag of the engine's "
        "image names different images on these nodes; set spec.engine.image with a digest"
    )


def _turn_away(group: Group, link: _Link) -> None:
    with group._lock:
        if link in group._strangers:
            group._strangers.remove(link)
    link.close()


def _incomplete(member: Member, missing: list[int]) -> str:
    pods = ", ".join(f"{rank} ({_pod(member, rank)})" for rank in missing[:8])
    ranks = "rank" if len(missing) == 1 else "ranks"
    return f"{ranks} {pods} did not come within {member.seconds:g} s"


def _pod(member: Member, rank: int) -> str:
    """The name of the pod of a rank."""
    return f"{member.name.rpartition('-')[0]}-{rank}"


def _follow(group: Group, probe: socket.socket, deadline: float, stop: Callable[[], bool]) -> None:
    member = group.member
    problem = "the operator has not named its address yet"
    while True:
        _pause(deadline, stop, f"rank 0 ({_pod(member, 0)}) was not reached: {problem}")
        address, uid = _leader(member.leader_file)
        if address:
            link, problem = _connect(member, address, uid, probe.getsockname()[1])
            if link is not None and _started(group, link, deadline, stop):
                group.leader_address = host_and_port(address, member.dist_port)
                group._links[0] = link
                return
        time.sleep(_STEP_SECONDS)


def _leader(file: Path) -> tuple[str, str]:
    """The address of rank 0 and the uid of its pod; empty texts while the operator has not written them."""
    try:
        words = file.read_text(encoding="utf-8", errors="replace")[:512].split()
    except OSError:
        return "", ""
    return (words[0], words[1]) if len(words) == 2 else ("", "")


def _connect(member: Member, address: str, uid: str, port: int) -> tuple[_Link | None, str]:
    try:
        connection = socket.create_connection((address, member.group_port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        place = host_and_port(address, member.group_port)
        return None, f"{place}: {error.strerror or 'no answer'}"
    link = _Link(connection)
    hello = {"rank": member.rank, "size": member.size, "name": member.name, "uid": uid, "engine": member.engine}
    hello |= {"address": member.address, "port": port, "problem": member.problem}
    return (link, "it closed the connection") if link.send(hello) else (None, "it closed the connection")


def _started(group: Group, link: _Link, deadline: float, stop: Callable[[], bool]) -> bool:
    """Whether rank 0 lets the engines start. False if the connection ended before."""
    member, messages = group.member, queue.SimpleQueue[Mapping[str, Any]]()

    def read() -> None:
        while (message := link.receive()) is not None:
            messages.put(message)
            if message.get("start") is True:
                return
        messages.put({"closed": True})

    threading.Thread(target=read, name="hello", daemon=True).start()
    waits: list[int] = []
    while True:
        try:
            _pause(deadline, stop, _incomplete(member, waits) if waits else "rank 0 does not answer")
            message = messages.get(timeout=_STEP_SECONDS)
        except queue.Empty:
            continue
        except (GroupError, AskedToEnd):
            link.close()
            raise
        if message.get("start") is True:
            return True
        if message.get("closed") is True:
            link.close()
            return False
        if "reach" in message:
            others = [peer for peer in peers_of(message["reach"]) if peer.place != member.place]
            link.send({"unreached": unreached(member.place, others)})
        if isinstance(message.get("refused"), str):
            link.close()
            raise GroupError(message["refused"][:_TEXT])
        ranks = message.get("waits")
        waits = [rank for rank in ranks if isinstance(rank, int)] if isinstance(ranks, list) else waits


def _pause(deadline: float, stop: Callable[[], bool], problem: str) -> None:
    """Check whether to go on waiting. `problem` is the error when the time is over."""
    if stop():
        raise AskedToEnd
    if time.monotonic() >= deadline:
        raise GroupError(problem)
