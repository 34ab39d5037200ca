"""The test bed's own mount, process and network namespaces on this machine.

Everything runs in them, under one process that holds them. So no port, interface, route, nftables table, chain, mount
or kernel setting of the machine can conflict or be left behind. If the holder is killed, the kernel ends every process
of the test bed, however it was started. The machine itself gets only one veth pair (removed with the namespace), the
routes over it, cgroups with the test bed's name, and some empty folders.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cache import StepFailed
from tests.testbed.layout import (
    HOST_ADDRESS,
    LINK_ADDRESS,
    NAME,
    NODE_ADDRESS,
    POD_RANGE,
    SERVICE_RANGE,
    Layout,
    write,
)

HOLDER = "testbed-holder"
# Fixed folders of kubelet, containerd and CNI. Inside the namespace, each is a mount of a folder in the state folder.
FIXED_FOLDERS = (
    "/run/containerd",
    "/run/netns",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
)
# The kubelet sets these for the whole kernel, unless they already have the values that it wants. Inside the namespace,
# plain files with these values cover them, so the machine's own settings do not change.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int
    """Start time in clock ticks since boot. With the pid it identifies one process, even if pids are reused."""


def processes_of(program: Path) -> list[Process]:
    """The living processes that run exactly this file, oldest first."""
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process can end at any of these lines, and a zombie has no program.
        with suppress(OSError, IndexError):
            if str((entry / "exe").readlink()).removesuffix(" (deleted)") == str(program):
                started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                processes.append(Process(int(entry.name), started))
    return sorted(processes, key=lambda process: process.started)


def stop(processes: Sequence[Process], program: Path, *, patience: float) -> None:
    """SIGTERM, then SIGKILL after `patience` seconds (0: at once). Returns when all have ended."""
    first = signal.SIGTERM if patience else signal.SIGKILL
    for number, wait in ((first, patience or 30.0), (signal.SIGKILL, 30.0)):
        left = [process for process in processes if process in processes_of(program)]
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        deadline = time.monotonic() + wait
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [process for process in left if process in processes_of(program)]
        if not left:
            return
    raise StepFailed(f"{program.name} (process {processes[0].pid}) does not end, even by SIGKILL")


class Sandbox:
    """The namespaces of one state folder, or of another node's folder. They exist as long as the holder lives.

    inside: the sandbox that these namespaces end with. They still have nothing of its mounts and network.
    """

    def __init__(self, at: Layout, inside: Sandbox | None = None) -> None:
        self._at, self._inside = at, inside
        self._holder = at.libexec / HOLDER

    def holders(self) -> list[Process]:
        return processes_of(self._holder)

    def create(self) -> None:
        """Creates the namespaces, unless they exist. The holder's program must be in place."""
        if self.holders():
            return
        if self._inside is None and Path(f"/sys/class/net/{NAME}").exists():
            raise StepFailed(
                f"the interface {NAME} exists: another test bed is running here ({_alias()}); remove it first"
            )
        self._make_mount_points()
        for name, value in KERNEL_SETTINGS.items():
            write(self._at.root / "kernel" / name, f"{value}\n")
        script = self._at.config / "sandbox.sh"
        write(script, self._setup_script())
        log = self._at.logs / "sandbox.log"
        namespaces = ["--mount", "--net", "--pid", "--fork", "--propagation", "private", "--mount-proc"]
        # The end of the outer process namespace is the end of this one.
        outer = [] if self._inside is None else ["nsenter", "--target", str(self._inside.holders()[0].pid), "--pid"]
        with log.open("wb") as output:
            # setsid forks and ends at once, so that this process is not the parent of a process that outlives it.
            subprocess.run(
                ["setsid", "--fork", *outer, "unshare", *namespaces, "/bin/sh", "-eu", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                cwd="/",
                check=True,
            )
        wait_for("the test bed's namespaces", lambda: bool(self.holders()), log=log, seconds=10)

    def connect(self) -> None:
        """Creates the link between the machine and the test bed's network, and the cgroups. It can be repeated."""
        holder = self.holders()[0]
        write(self._at.config / "network.sh", _NETWORK)
        if not Path(f"/sys/class/net/{NAME}").exists():
            _ip("link", "add", NAME, "type", "veth", "peer", "name", "host", "netns", str(holder.pid))
            _ip("link", "set", "dev", NAME, "alias", str(self._at.root))
        self.call(["/bin/sh", "-eu", str(self._at.config / "network.sh")])
        _ip("addr", "replace", f"{HOST_ADDRESS}/30", "dev", NAME)
        _ip("link", "set", "dev", NAME, "up")
        for network in (POD_RANGE, SERVICE_RANGE):
            _ip("route", "replace", network, "via", LINK_ADDRESS, "dev", NAME)
        for hierarchy in hierarchies():
            (hierarchy / NAME).mkdir(exist_ok=True)

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        holders = self.holders()
        if not holders:
            raise StepFailed("the test bed is not up")
        return ["nsenter", "--target", str(holders[0].pid), "--mount", "--net", "--pid", "--", *argv]

    def call(self, argv: Sequence[str]) -> str:
        """Runs `argv` inside to its end and returns its output. Raises StepFailed with its error output."""
        done = subprocess.run(
            self.enter(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), check=False
        )
        if done.returncode != 0:
            raise StepFailed(f"{shlex.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def succeeds(self, argv: Sequence[str]) -> bool:
        """Whether `argv`, run inside, ends with 0."""
        try:
            self.call(argv)
        except StepFailed:
            return False
        return True

    def running(self, name: str) -> list[Process]:
        return processes_of(self._at.libexec / name)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Starts the program `name` as a daemon inside, unless it runs. Its output is appended to its log."""
        if self.running(name):
            return
        log = self._at.logs / f"{name}.log"
        detach = 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 &'
        self.call(["/bin/sh", "-c", detach, "sh", str(log), str(self._at.libexec / name), *arguments])
        wait_for(f"the program {name}", lambda: bool(self.running(name)), log=log, seconds=10)

    def stop(self, name: str, *, patience: float = 20.0) -> None:
        """Ends the daemon and waits until it has ended."""
        stop(self.running(name), self._at.libexec / name, patience=patience)

    def _make_mount_points(self) -> None:
        # These are empty on a machine that starts.
        shutil.rmtree(self._at.root / "fixed" / "run", ignore_errors=True)
        # The note is written before the folders are created, so that teardown can remove them even after a crash.
        missing = [folder for folder in FIXED_FOLDERS if not Path(folder).exists()]
        note = self._at.root / "mount-points"
        noted = note.read_text().split() if note.exists() else []
        write(note, "\n".join([*noted, *missing]))
        for folder in FIXED_FOLDERS:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (self._at.root / "fixed" / folder.strip("/")).mkdir(parents=True, exist_ok=True)

    def _setup_script(self) -> str:
        root = shlex.quote(str(self._at.root))
        lines = ["mount --make-rshared /"]
        lines += [f"mount --bind {root}/fixed{folder} {folder}" for folder in FIXED_FOLDERS]
        lines += [f"mount --bind {root}/kernel/{name} /proc/sys/{name}" for name in KERNEL_SETTINGS]
        return "\n".join([*lines, f"exec {root}/libexec/{HOLDER}"])


_NETWORK = f"""\
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set dev lo up
ip link show dev cni0 > /dev/null 2>&1 || ip link add cni0 type bridge
ip addr replace {NODE_ADDRESS}/24 dev cni0
ip link set dev cni0 up
ip addr replace {LINK_ADDRESS}/30 dev host
ip link set dev host up
# Without a route of its own a simulated pod's address would be sent back and forth over the link.
ip route replace unreachable {POD_RANGE}
# Local programs need some route to service addresses: it is chosen before kube-proxy's rules change the address.
ip route replace {SERVICE_RANGE} dev cni0 src {NODE_ADDRESS}
"""


def environment() -> dict[str, str]:
    """The environment for everything inside, without a proxy or other settings of the caller."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


def hierarchies() -> list[Path]:
    """The roots of the mounted cgroup hierarchies: one for cgroup v2, several for v1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted({Path(mount[1]) for mount in mounts if mount[2] in {"cgroup", "cgroup2"}})


def cgroups_below(folder: Path) -> Iterator[Path]:
    """The cgroup and all below it, deepest first."""
    for path, _, _ in os.walk(folder, topdown=False):
        yield Path(path)


def wait_for(label: str, ready: Callable[[], bool], *, log: Path | None = None, seconds: float = 60.0) -> None:
    """Polls `ready` until it is true. After `seconds` it raises StepFailed with the end of `log`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace").splitlines()[-30:] if log and log.exists() else []
            raise StepFailed("\n".join([f"{label}: not ready after {seconds:.0f} s; the end of {log}:", *tail]))
        time.sleep(0.1)


def _alias() -> str:
    alias = Path(f"/sys/class/net/{NAME}/ifalias")
    return (alias.read_text().strip() if alias.exists() else "") or "of an unknown state folder"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailed(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
