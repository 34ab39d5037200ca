"""The checks of members before their engines start."""

import resource
import socket
from pathlib import Path

import pytest

from qwen_runtime import preflight
from qwen_runtime.preflight import (
    Peer,
    interface_problem,
    listener,
    lockable_bytes,
    memory_problem,
    peers_of,
    unreached,
)

PRESENT = ("eth0", "ib0", "lo")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ""),
        ({"NCCL_SOCKET_IFNAME": "eth"}, ""),
        ({"NCCL_SOCKET_IFNAME": "ens,ib0:1"}, ""),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, ""),
        ({"NCCL_SOCKET_IFNAME": "=eth0"}, ""),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "NCCL_SOCKET_IFNAME is =eth, but the network interfaces are eth0, ib0, lo"),
        ({"NCCL_SOCKET_IFNAME": "ens"}, "NCCL_SOCKET_IFNAME is ens,"),
        ({"GLOO_SOCKET_IFNAME": "eth0,ib0"}, ""),
        ({"GLOO_SOCKET_IFNAME": "eth"}, "GLOO_SOCKET_IFNAME is eth,"),
        ({"GLOO_SOCKET_IFNAME": "eth0,eth1"}, "GLOO_SOCKET_IFNAME is eth0,eth1,"),
    ],
)
def test_an_interface_that_is_not_there_is_named(environment: dict[str, str], named: str) -> None:
    problem = interface_problem(environment, PRESENT)
    assert problem.startswith(named)
    assert bool(problem) is bool(named)
    assert interface_problem(environment, ()) == ""


@pytest.mark.parametrize(
    ("limit", "effective", "lockable"),
    [
        (8 << 20, "0000000000000000", 8 << 20),
        (8 << 20, "0000000000004000", None),
        (resource.RLIM_INFINITY, "0000000000000000", None),
        (8 << 20, "no number", 8 << 20),
    ],
)
def test_the_memory_that_a_process_may_lock(
    limit: int, effective: str, lockable: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t{effective}\n")
    monkeypatch.setattr(preflight, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert lockable_bytes() == lockable


def test_too_little_memory_to_lock_is_named_with_two_ways_out() -> None:
    assert memory_problem(None) == memory_problem(1 << 30) == ""
    assert memory_problem(8 << 20) == (
        "RDMA needs locked memory, but the node lets this container lock 8192 KiB: set multiNode.ipcLock in the "
        "chart, or LimitMEMLOCK=infinity for the nodes' container runtime"
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_peer_that_listens_is_reached(address: str) -> None:
    with listener(address) as there:
        peer = Peer("rank 1 (chat-0-1)", address, there.getsockname()[1])
        assert unreached("rank 0 (chat-0-0)", [peer], patience=0.0) == ""


def test_a_peer_that_does_not_listen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    problem = unreached("rank 0 (a-0)", [Peer("rank 1 (a-1)", "127.0.0.1", port)], patience=0.0)
    assert problem.startswith(
        f"rank 0 (a-0) cannot connect to rank 1 (a-1) at 127.0.0.1 on port {port}: Connection refused;"
    )


@pytest.mark.parametrize(
    "record", [None, {}, [1], [["a", "b"]], [["a", "b", "1"]], [["a", "b", 0]], [["a", "b", 65536]]]
)
def test_noise_is_no_peer(record: object) -> None:
    assert peers_of(record) == []
