"""Engines over several pods, with real processes that reach each other over the loopback interface."""

import ipaddress
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen_runtime.group import GROUP_PORT, Member, host_and_port
from qwen_runtime.processes import descendants, oom_kills

# A program that stands in for SGLang. It prints its options, so that the tests see when and with what it started.
ENGINE = "import os, signal, sys, time\nprint('started', *sys.argv[1:], flush=True)\n"
FOREVER = "while True: time.sleep(60)\n"
# As SGLang's rank 1 does: it waits for rank 0.
DEAF = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}"
DIES = "time.sleep(0.5)\nprint('RuntimeError: CUDA out of memory.', flush=True)\nsys.exit(1)\n"
# A child with the name of SGLang's scheduler, as its kernel has it.
SCHEDULER = (
    "child = os.fork()\n"
    "if not child:\n"
    "    import ctypes\n"
    "    ctypes.CDLL(None).prctl(15, b'sglang::scheduler_TP', 0, 0, 0)\n"
    "    print('child', os.getpid(), flush=True)\n"
    "    while True: time.sleep(60)\n"
)
# As in a container of a node with a low limit. Without the capability in the bounding set, root does not have it.
LOCKS_LITTLE = (
    sys.executable,
    "-c",
    "import ctypes, os, resource, sys\n"
    "PR_CAPBSET_DROP, CAP_IPC_LOCK = 24, 14\n"
    "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
    "ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
NAMED = "sglang::schedul"
SERVES = "print('The server is fired up and ready to roll!', flush=True)\n"


@dataclass
class Pods:
    """The members of one group on this machine, each with a loopback address of its own: as pods, they use fixed ports.

    No other process on this machine has these addresses. The rank is in the last two bits, and the pid in the others.
    """

    archive: Path
    folder: Path
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    strangers: list[socket.socket] = field(default_factory=list)

    @staticmethod
    def address(rank: int) -> str:
        return str(ipaddress.IPv4Address("127.0.0.0") + (os.getpid() << 2) + rank + 1)

    def name_leader(self, uid: str = "uid-0") -> None:
        """As the operator does it."""
        (self.folder / "leader").write_text(f"{self.address(0)} {uid}\n")

    def start(
        self,
        rank: int,
        program: str,
        *options: str,
        size: int = 2,
        before: Sequence[str] = (),
        **env: str,
    ) -> "subprocess.Popen[bytes]":
        leader = self.folder / "leader"
        if not leader.exists():
            self.name_leader()
        child = [sys.executable, *(("-I", "-S") if "PYTHONPATH" not in env else ()), "-u", "-c", ENGINE + program]
        group = [f"--group-size={size}", f"--group-rank={rank}", f"--group-leader={leader}", *options]
        command = [sys.executable, str(self.archive), "launch", "--termination-log", str(self.log(rank)), *group, "--"]
        pod = {"QWEN_POD_NAME": f"chat-0-{rank}", "QWEN_POD_IP": self.address(rank), "QWEN_POD_UID": f"uid-{rank}"}
        process = subprocess.Popen(
            [*before, *command, *child, f"--node-rank={rank}"],
            env={**os.environ, **pod, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.running.append(process)
        return process

    def knock(self) -> socket.socket:
        """A connection to rank 0, from whoever can reach it, as soon as it listens."""
        while True:
            with suppress(ConnectionRefusedError):
                self.strangers.append(socket.create_connection((self.address(0), GROUP_PORT)))
                return self.strangers[-1]
            time.sleep(0.05)

    @staticmethod
    def until(file: Path) -> str:
        """A part of a program: it waits until the file is there."""
        return f"while not os.path.exists({str(file)!r}): time.sleep(0.05)\n"

    @property
    def killed(self) -> str:
        """The reason of a SIGKILL. Without a count of OOM kills, the OOM killer is the likely sender."""
        return "HostOutOfMemory" if oom_kills() is None else "EngineKilled"

    def log(self, rank: int) -> Path:
        return self.folder / f"termination-log-{rank}"

    def report(self, rank: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.log(rank).read_bytes())
        return content


@pytest.fixture
def pods(archive: Path, tmp_path: Path) -> Iterator[Pods]:
    made = Pods(archive, tmp_path)
    yield made
    for stranger in made.strangers:
        stranger.close()
    for process in made.running:
        # An engine has a session of its own, and outlives a launcher that is killed.
        engines = descendants(process.pid)
        process.kill()
        for engine in engines:
            with suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
        process.communicate()


def read_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def end(process: "subprocess.Popen[bytes]") -> int:
    process.communicate()
    return process.returncode


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_engines_start_with_the_address_of_rank_0_when_the_last_member_is_there(
    pods: Pods, order: tuple[int, ...]
) -> None:
    members = {rank: pods.start(rank, FOREVER, size=3) for rank in order}
    for rank, process in members.items():
        assert read_line(process) == f"started --node-rank={rank} --dist-init-addr={pods.address(0)}:20000"


def test_a_member_that_waits_takes_the_address_when_the_operator_writes_it(pods: Pods) -> None:
    (pods.folder / "leader").write_text("")
    worker = pods.start(1, FOREVER)
    first = pods.start(0, FOREVER)
    pods.name_leader()
    assert read_line(worker).startswith("started")
    assert read_line(first).startswith("started")


@pytest.mark.parametrize(
    ("rank", "named", "why"),
    [
        (0, True, "rank 1 (chat-0-1) did not come within 1 s"),
        (1, False, "rank 0 (chat-0-0) was not reached: the operator has not named its address yet"),
        (1, True, "rank 0 (chat-0-0) was not reached: ADDRESS:20001: Connection refused"),
    ],
)
def test_who_did_not_come_is_the_cause_and_no_engine_was_started(pods: Pods, rank: int, named: bool, why: str) -> None:
    if not named:
        (pods.folder / "leader").write_text("")
    process = pods.start(rank, FOREVER, "--group-seconds=1")
    assert end(process) == 1
    assert pods.report(rank) == {
        "version": 1,
        "reason": "GroupIncomplete",
        "phase": "Starting",
        "exitCode": 1,
        "log": [why.replace("ADDRESS", pods.address(0))],
    }


def test_one_that_waits_names_the_third_that_did_not_come(pods: Pods) -> None:
    pods.start(0, FOREVER, size=3)
    pods.knock()
    worker = pods.start(1, FOREVER, "--group-seconds=5", size=3)
    assert end(worker) == 1
    assert pods.report(1)["log"] == ["rank 2 (chat-0-2) did not come within 5 s"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_a_member_that_waits_at_once(pods: Pods, rank: int) -> None:
    (pods.folder / "leader").write_text("")
    process = pods.start(rank, FOREVER)
    process.terminate()
    code = end(process)
    # A signal before Python has installed its handler ends the process, as it ends any other.
    assert code in (143, -signal.SIGTERM)


def test_who_belongs_to_an_earlier_pod_of_rank_0_is_not_taken_in(pods: Pods) -> None:
    pods.name_leader("uid-of-yesterday")
    first = pods.start(0, FOREVER)
    pods.knock()
    worker = pods.start(1, FOREVER, "--group-seconds=5")
    assert end(worker) == 1
    assert pods.report(1)["log"] == ["rank 0 (chat-0-0) was not reached: it closed the connection"]
    assert first.poll() is None
    first.terminate()
    assert first.communicate()[0] == b"", "it has started no engine"


def test_strangers_and_noise_do_not_disturb_a_group_that_forms(pods: Pods) -> None:
    first = pods.start(0, FOREVER)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 20_000, b'{"rank": "1"}\n', b"[" * 8000 + b"\n", b"[]\n", b""):
        pods.knock().sendall(noise)
    worker = pods.start(1, FOREVER)
    assert read_line(first).startswith("started")
    assert read_line(worker).startswith("started")


def test_different_versions_of_sglang_are_told_before_an_engine_starts(pods: Pods, tmp_path: Path) -> None:
    versions = {}
    for rank, version in enumerate(("0.5.22", "0.5.23")):
        info = tmp_path / str(rank) / f"sglang-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
        versions[rank] = str(info.parent)
    first = pods.start(0, FOREVER, PYTHONPATH=versions[0])
    worker = pods.start(1, FOREVER, PYTHONPATH=versions[1])
    assert (end(first), end(worker)) == (1, 1)
    sentence = "rank 1 (chat-0-1) has SGLang 0.5.23, but rank 0 has 0.5.22: the tag of the engine's image names"
    for rank in (0, 1):
        assert pods.report(rank)["log"][0].startswith(sentence)


def test_a_missing_interface_is_told_to_all_before_an_engine_starts(pods: Pods) -> None:
    first, worker = pods.start(0, FOREVER), pods.start(1, FOREVER, NCCL_SOCKET_IFNAME="ib7")
    assert (end(first), end(worker)) == (1, 1)
    said = "rank 1 (chat-0-1): NCCL_SOCKET_IFNAME is ib7, but the network interfaces are "
    for rank in (0, 1):
        assert pods.report(rank)["log"][0].startswith(said)
        assert pods.report(rank)["log"][0].endswith("or multiNode.interface in the chart")


def test_a_node_that_lets_a_member_lock_too_little_memory_is_told_to_all(pods: Pods) -> None:
    first = pods.start(0, FOREVER)
    worker = pods.start(1, FOREVER, "--group-locks-memory", before=LOCKS_LITTLE)
    assert (end(first), end(worker)) == (1, 1)
    for rank in (0, 1):
        said = pods.report(rank)["log"][0]
        assert said.startswith(
            "rank 1 (chat-0-1): RDMA needs locked memory, but the node lets this container lock 64 KiB"
        )


def test_a_member_that_another_one_cannot_reach_is_named_to_all(pods: Pods) -> None:
    first = pods.start(0, FOREVER, size=3)
    worker = pods.start(1, FOREVER, size=3)
    address = pods.address(2)
    with socket.create_server((address, 0)) as closed:
        port = closed.getsockname()[1]
    hello = {
        "rank": 2,
        "size": 3,
        "uid": "uid-0",
        "name": "chat-0-2",
        "engine": "",
        "address": address,
        "port": port,
    }
    pods.knock().sendall(json.dumps(hello).encode() + b"\n")
    assert (end(first), end(worker)) == (1, 1)
    said = (
        f"rank 0 (chat-0-0) cannot connect to rank 2 (chat-0-2) at {address} on port {port}: Connection refused; "
        "all TCP ports must be open between the pods of a replica"
    )
    assert [pods.report(rank)["log"] for rank in (0, 1)] == [[said], [said]]


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_if_one_ends_the_others_end_with_its_cause(pods: Pods, first_to_end: int) -> None:
    other = 1 - first_to_end
    programs = {first_to_end: DIES, other: DEAF}
    members = [pods.start(rank, programs[rank]) for rank in (0, 1)]
    assert [end(process) for process in members][first_to_end] == 1
    assert pods.report(first_to_end)["reason"] == "CudaOutOfMemory"
    report = pods.report(other)
    assert report["reason"] == "MemberEnded"
    assert report["log"][-1] == (
        f"rank {first_to_end} (chat-0-{first_to_end}) ended first, CudaOutOfMemory: RuntimeError: CUDA out of memory."
    )


def test_a_group_that_ended_forms_again_at_once(pods: Pods) -> None:
    """As the kubelet does it: the containers start again in the same pods."""
    for _ in range(2):
        first, worker = pods.start(0, DEAF), pods.start(1, DIES)
        assert [read_line(process).split()[0] for process in (first, worker)] == ["started", "started"]
        assert end(worker) == 1
        again = pods.start(1, FOREVER)
        assert end(first) == 137
        first = pods.start(0, FOREVER)
        assert [read_line(process).split()[0] for process in (first, again)] == ["started", "started"]
        again.kill()
        assert end(first) == 137


def test_broken_connections_are_put_down_to_the_rank_that_broke_them(pods: Pods) -> None:
    broke = pods.folder / "broke"
    dies = f"{pods.until(broke)}time.sleep(1)\nprint('RuntimeError: CUDA out of memory.', flush=True)\nsys.exit(1)\n"
    members = [pods.start(0, f"open({str(broke)!r}, 'w')\n{RESET}"), pods.start(1, dies)]
    assert [end(process) for process in members] == [1, 1]
    assert (pods.report(0)["reason"], pods.report(1)["reason"]) == ("MemberEnded", "CudaOutOfMemory")


def test_a_killed_member_is_missed_at_once(pods: Pods) -> None:
    members = [pods.start(0, DEAF), pods.start(1, DEAF)]
    for process in members:
        read_line(process)
    members[1].kill()
    assert end(members[0]) == 137
    assert pods.report(0)["log"][-1] == "rank 1 does not answer any more"


def kill_scheduler(process: "subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
    while not (line := read_line(process)).startswith("child "):
        assert line
    os.kill(int(line.split()[1]), number)


RESET = "print('RuntimeError: Connection reset by peer', flush=True)\nsys.exit(1)\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_that_the_engine_does_not_notice_ends_the_group_with_its_cause(pods: Pods, rank: int) -> None:
    other = 1 - rank
    members = {rank: pods.start(rank, SCHEDULER + FOREVER), other: pods.start(other, DEAF)}
    kill_scheduler(members[rank])
    assert {number: end(process) for number, process in members.items()} == {0: 137, 1: 137}
    cause = f"SIGKILL ended the process {NAMED} of rank {rank} (chat-0-{rank})"
    assert (pods.report(rank)["reason"], pods.report(rank)["log"][-1]) == (pods.killed, cause)
    assert pods.report(other)["reason"] == "MemberEnded"
    assert pods.report(other)["log"][-1] == f"rank {rank} (chat-0-{rank}) ended first, {pods.killed}: {cause}"


@pytest.mark.parametrize("notices", ["time.sleep(3)", "pass"])
def test_a_killed_process_is_the_cause_although_another_rank_ends_before(pods: Pods, notices: str) -> None:
    """The other rank loses its connections, and ends long before the parent of the killed process tells of it."""
    reaps = "os.waitpid(child, 0)\nprint(f'Scheduler or DataParallelController {child} terminated with -9')\n"
    killed = pods.start(1, f"{SCHEDULER}os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)\n{notices}\n{reaps}")
    gone = pods.folder / "gone"
    other = pods.start(0, f"{pods.until(gone)}{RESET}")
    kill_scheduler(killed)
    gone.touch()
    for process in (other, killed):
        end(process)
    assert (pods.report(0)["reason"], pods.report(1)["reason"]) == ("MemberEnded", pods.killed)
    assert f"rank 1 (chat-0-1) ended first, {pods.killed}: " in pods.report(0)["log"][-1]


def test_processes_that_an_engine_kills_after_a_crash_are_no_cause(pods: Pods) -> None:
    logs = "print('gloo/transport/tcp')\nprint('SIGQUIT received. signum=None', flush=True)\n"
    kills = "os.kill(child, 9)\ntime.sleep(1)\nos.kill(os.getpid(), 9)\n"
    for process in [pods.start(0, DEAF), pods.start(1, f"{SCHEDULER}time.sleep(0.5)\n{logs}{kills}")]:
        end(process)
    assert (pods.report(0)["reason"], pods.report(1)["reason"]) == ("MemberEnded", "NcclFailure")


def test_a_process_that_ended_by_a_fault_of_its_own_is_named(pods: Pods) -> None:
    members = [pods.start(0, DEAF), pods.start(1, SCHEDULER + FOREVER)]
    kill_scheduler(members[1], signal.SIGSEGV)
    assert [end(process) for process in members] == [137, 137]
    assert pods.report(1)["reason"] == "Unknown"
    assert pods.report(0)["log"][-1].endswith(f"Unknown: SIGSEGV ended the process {NAMED} of rank 1 (chat-0-1)")


def test_a_killed_main_process_is_named(pods: Pods) -> None:
    members = [pods.start(0, DEAF), pods.start(1, "time.sleep(0.5)\nos.kill(os.getpid(), 9)\n")]
    assert [end(process) for process in members] == [137, 137]
    assert (pods.report(1)["reason"], pods.report(0)["reason"]) == (pods.killed, "MemberEnded")
    assert pods.report(1)["log"][-1] == "SIGKILL ended the main process of rank 1 (chat-0-1)"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_process_is_stopped_is_named_and_ends_the_group(pods: Pods, rank: int) -> None:
    stops = f"if not os.fork(): os.kill(os.getpid(), signal.SIGSTOP)\n{FOREVER}"
    other = 1 - rank
    members = {rank: pods.start(rank, SERVES + stops, "--stopped-seconds=1"), other: pods.start(other, DEAF)}
    assert {number: end(process) for number, process in members.items()} == {0: 137, 1: 137}
    report = pods.report(rank)
    assert (report["reason"], report["phase"]) == ("Hung", "Serving")
    assert re.fullmatch(rf"the process \S+ of rank {rank} \(chat-0-{rank}\) is stopped", report["log"][-1])
    assert pods.report(other)["reason"] == "MemberEnded"
    assert pods.report(other)["log"][-1].startswith(f"rank {rank} (chat-0-{rank}) ended first, Hung: the process ")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sleeps_while_another_one_waits_for_it_is_named(pods: Pods, rank: int) -> None:
    package = pods.folder / "torch" / "distributed"
    package.mkdir(parents=True)
    (package / "distributed_c10d.py").write_text("import time\ndef broadcast():\n    time.sleep(600)\n")
    named = "import ctypes\nctypes.CDLL(None).prctl(15, b'sglang::scheduler_TP', 0, 0, 0)\n"
    hangs = f"{named}{SERVES}def hangs():\n    time.sleep(600)\nhangs()\n"
    waits = f"{named}{SERVES}import distributed_c10d\ndistributed_c10d.broadcast()\n"
    other = 1 - rank
    members = {
        number: pods.start(number, program, "--stopped-seconds=1", PYTHONPATH=str(package))
        for number, program in ((rank, hangs), (other, waits))
    }
    assert {number: end(process) for number, process in members.items()} == {0: 137, 1: 137}
    report = pods.report(rank)
    assert report["reason"] == "Hung"
    said = rf"the process {NAMED} of rank {rank} \(chat-0-{rank}\) hangs in hangs \(\S+\), and other ranks wait for it"
    assert re.fullmatch(said, report["log"][-1])
    assert pods.report(other)["reason"] == "MemberEnded"


def test_a_process_that_goes_on_in_time_is_left_alone(pods: Pods) -> None:
    """As with a tool that looks at the stacks of a process."""
    looks = "child = os.fork()\nwhile not child: time.sleep(60)\nfor _ in range(4):\n"
    looks += "    os.kill(child, signal.SIGSTOP); time.sleep(0.4); os.kill(child, signal.SIGCONT); time.sleep(0.4)\n"
    first, worker = pods.start(0, DEAF), pods.start(1, f"{looks}print('done')\n{FOREVER}", "--stopped-seconds=3")
    assert read_line(first).startswith("started")
    assert [read_line(worker).split()[0] for _ in range(2)] == ["started", "done"]


def test_a_member_that_is_asked_to_end_lets_rank_0_finish_its_requests(pods: Pods) -> None:
    drains = (
        "def drain(number, frame):\n    print('drained', flush=True)\n    os._exit(0)\n"
        f"signal.signal(signal.SIGTERM, drain)\n{SERVES}{FOREVER}"
    )
    members = [pods.start(0, drains), pods.start(1, SERVES + DEAF)]
    for process in members:
        read_line(process)
        read_line(process)
    members[1].terminate()
    assert read_line(members[0]) == "drained"
    # Rank 1 ignores SIGTERM. It is ended soon after rank 0 has gone, and does not use up its grace period.
    assert [end(process) for process in members] == [0, 0]
    assert pods.log(0).read_bytes() == b""
    assert pods.log(1).read_bytes() == b""


def test_the_address_of_rank_0_in_both_families() -> None:
    member = Member(2, 0, "chat-0-0", "fd00::1", "uid", Path("/none"))
    assert host_and_port(member.address, member.dist_port) == "[fd00::1]:20000"
    assert host_and_port("10.0.0.1", 20000) == "10.0.0.1:20000"


def test_without_a_clear_cause_nobody_takes_the_blame_for_another(pods: Pods) -> None:
    members = [pods.start(0, DEAF), pods.start(1, "time.sleep(0.5)\nsys.exit(3)\n")]
    assert [end(process) for process in members] == [137, 3]
    assert pods.report(1)["reason"] == "Unknown"
    assert pods.report(0)["reason"] == "MemberEnded"
    assert pods.report(0)["log"][-1].startswith("rank 1 (chat-0-1) ended first, Unknown")


def test_many_silent_connections_keep_no_member_out(pods: Pods) -> None:
    first = pods.start(0, FOREVER)
    resource.prlimit(first.pid, resource.RLIMIT_NOFILE, (64, 64))
    strangers = [pods.knock() for _ in range(150)]
    for number, stranger in enumerate(strangers[-40:]):
        stranger.sendall((b"\x16\x03\x01", b'{"rank": 1', b"[" * 4000, b"")[number % 4])
    worker = pods.start(1, FOREVER)
    assert read_line(worker).startswith("started")
    assert read_line(first).startswith("started")


def test_who_was_slow_to_say_its_name_does_not_replace_a_member(pods: Pods) -> None:
    first = pods.start(0, FOREVER)
    stranger = pods.knock()
    stranger.sendall(b'{"rank": 1, "size": 2, "uid": "uid-0", "name": "chat-0-1", "engine": ""')
    worker = pods.start(1, FOREVER)
    assert read_line(first).startswith("started")
    assert read_line(worker).startswith("started")
    with suppress(OSError):
        stranger.sendall(b"}\n")
        assert stranger.recv(100) == b""
    assert (first.poll(), worker.poll()) == (None, None)
