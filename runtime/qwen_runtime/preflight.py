"""What the members of a group check before their engines start.

NCCL and gloo open random ports and connect all members with each other. If a network policy or the proxy of a service
mesh keeps one from another, they hang without a word. The same is true of an interface that a node does not have. RDMA
fails with a word about memory if the node limits how much of it a process may lock.
"""

import errno
import resource
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERFACES = Path("/sys/class/net")
_CONNECT_SECONDS = 5.0
# A network policy may need some seconds to hold for a new pod.
_PATIENCE_SECONDS = 15.0
_NCCL, _GLOO = "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"
_STATUS = Path("/proc/self/status")
_IPC_LOCK_BIT = 14
LEAST_LOCKED_BYTES = 64 * 1024 * 1024
"""With less, NCCL cannot register its buffers. systemd lets services, and so containers, lock 8 MiB by default."""
_LISTED = 8
_ADDRESS = 64


@dataclass(frozen=True, slots=True)
class Peer:
    """A member and where it listens for the others."""

    place: str
    address: str
    port: int

    def to_json(self) -> list[object]:
        return [self.place, self.address, self.port]


def peers_of(record: object) -> list[Peer]:
    """The peers in a message; those that are none are left out."""
    entries = record if isinstance(record, list) else []
    peers = []
    for entry in entries:
        if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], int) and 0 < entry[2] < 65536:
            peers.append(Peer(str(entry[0])[:200], str(entry[1])[:_ADDRESS], entry[2]))
    return peers


def present_interfaces() -> list[str]:
    """The names of the network interfaces of this pod; none if they cannot be read."""
    try:
        return sorted(entry.name for entry in INTERFACES.iterdir())
    except OSError:
        return []


def interface_problem(environment: Mapping[str, str], present: Collection[str]) -> str:
    """One sentence if NCCL or gloo was told to use an interface that is not there, else "".

    NCCL takes the beginnings of names, or whole names after "=", and with "^" names that it must not use (NCCL's
    documentation of NCCL_SOCKET_IFNAME). gloo takes whole names, and needs all of them.
    """
    nccl, gloo = environment.get(_NCCL, ""), environment.get(_GLOO, "")
    whole = nccl.startswith("=")
    wanted = [name.partition(":")[0].strip() for name in nccl.removeprefix("=").split(",")]
    fits = any(one == name or (not whole and one.startswith(name)) for name in wanted for one in present)
    if present and nccl and not nccl.startswith("^") and not fits:
        return _no_interface(_NCCL, nccl, present)
    if present and gloo and not {name.strip() for name in gloo.split(",")} <= set(present):
        return _no_interface(_GLOO, gloo, present)
    return ""


def lockable_bytes() -> int | None:
    """How much memory this process may lock; None for any amount."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY or _has_ipc_lock() else soft


def _has_ipc_lock() -> bool:
    """Whether the process has the capability IPC_LOCK (CapEff in proc_pid_status(5))."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        effective = next(line.partition(":")[2] for line in lines if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> _IPC_LOCK_BIT & 1)
    except (OSError, StopIteration, ValueError):
        return False


def memory_problem(lockable: int | None) -> str:
    """One sentence if RDMA cannot work because this process may lock too little memory, else ""."""
    if lockable is None or lockable >= LEAST_LOCKED_BYTES:
        return ""
    return (
        f"RDMA needs locked memory, but the node lets this container lock {lockable // 1024} KiB: set "
        "multiNode.ipcLock in the chart, or LimitMEMLOCK=infinity for the nodes' container runtime"
    )


def _no_interface(variable: str, value: str, present: Collection[str]) -> str:
    names = ", ".join(sorted(present)[:_LISTED])
    return (
        f"{variable} is {value[:100]}, but the network interfaces are {names}: correct it in spec.engine.env, "
        "or multiNode.interface in the chart"
    )


def listener(address: str) -> socket.socket:
    """A socket on a random port, to which others can connect without anybody who accepts them. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=128)


def unreached(place: str, peers: Sequence[Peer], patience: float = _PATIENCE_SECONDS) -> str:
    """One sentence about the first peer that `place` cannot connect to in `patience` seconds, "" if there is none."""
    end = time.monotonic() + patience
    for peer in peers:
        while why := _obstacle(peer):
            if time.monotonic() >= end:
                return (
                    f"{place} cannot connect to {peer.place} at {peer.address} on port {peer.port}: {why}; all TCP "
                    "ports must be open between the pods of a replica"
                )
            time.sleep(1.0)
    return ""


def _obstacle(peer: Peer) -> str:
    try:
        socket.create_connection((peer.address, peer.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return "no answer" if error.errno in (None, errno.ETIMEDOUT) else str(error.strerror)
    return ""
