"""Removes the test bed from the machine, whatever its state is, and lists what a machine has for a comparison.

It finds everything by the path of the state folder or by the test bed's own name, never by a program's name alone.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tests.testbed.cache import StepFailed, say
from tests.testbed.layout import NAME, Layout
from tests.testbed.sandbox import HOLDER, KERNEL_SETTINGS, Sandbox, cgroups_below, hierarchies, stop


def teardown(at: Layout, sandbox: Sandbox) -> None:
    """Ends all processes, then removes cgroups, link, mounts, empty folders and the state folder.

    It can be repeated, and it is safe if nothing exists. Raises StepFailed if something cannot be removed.
    """
    # When the first process of a process namespace ends, the kernel first ends all others in it.
    stop(sandbox.holders(), at.libexec / HOLDER, patience=0)
    _remove_link(at)
    for hierarchy in hierarchies():
        _remove_cgroup(hierarchy / NAME)
    if not at.root.exists():
        return
    _unmount_below(at.root)
    note = at.root / "mount-points"
    for folder in note.read_text().split() if note.exists() else []:
        with suppress(OSError):  # it is not empty, so others use it
            Path(folder).rmdir()
    shutil.rmtree(at.root)


def remove_node(at: Layout, sandbox: Sandbox) -> None:
    """Removes a real node that is not the first: `at` is the layout below its own folder."""
    stop(sandbox.holders(), at.libexec / HOLDER, patience=0)
    for hierarchy in hierarchies():
        _remove_cgroup(hierarchy / NAME / at.root.name)
    shutil.rmtree(at.root, ignore_errors=True)


def _remove_link(at: Layout) -> None:
    """Waits until the kernel has removed the link with its namespace. Removes the link if it is still there."""
    link = Path("/sys/class/net") / NAME
    deadline = time.monotonic() + 10
    while link.exists() and time.monotonic() < deadline:
        if (link / "ifalias").read_text().strip() not in {"", str(at.root)}:
            say(f"leaving the interface {NAME}: it belongs to another test bed")
            return
        time.sleep(0.1)
    if link.exists():
        subprocess.run(["ip", "link", "delete", "dev", NAME], check=True, capture_output=True)


def _remove_cgroup(root: Path) -> None:
    if not root.exists():
        return
    # A cgroup stays busy for a moment after its last process.
    deadline = time.monotonic() + 20
    while root.exists():
        for group in cgroups_below(root):
            with suppress(OSError):
                group.rmdir()
        if root.exists() and time.monotonic() > deadline:
            raise StepFailed(f"the cgroup {root} cannot be removed; processes: {_members(root)}")
        time.sleep(0.05)


def _members(root: Path) -> str:
    return ", ".join(" ".join((group / "cgroup.procs").read_text().split()) for group in cgroups_below(root))


def _unmount_below(root: Path) -> None:
    """Detaches mounts below the state folder in the machine's own namespace, so that a removal never follows one."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([path for path in mounts if path == str(root) or path.startswith(f"{root}/")]):
        subprocess.run(["umount", "--lazy", mount], check=True, capture_output=True)


def snapshot() -> list[str]:
    """What the machine has, as sorted lines to compare before and after. SNAPSHOT_KINDS lists the kinds."""
    lines: list[str] = []
    for kind, listing in SNAPSHOT_KINDS.items():
        lines += [f"{kind}: {line}" for line in sorted(listing())]
    return lines


def _processes() -> list[str]:
    rows = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(words):
                    rows.append(f"{entry.name} {b' '.join(words).decode(errors='replace').strip()[:160]}")
    return rows


def _mounts() -> list[str]:
    return [" ".join(line.split()[:3]) for line in Path("/proc/self/mounts").read_text().splitlines()]


def _interfaces() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]


def _output(*argv: str) -> list[str]:
    if shutil.which(argv[0]) is None:
        return []
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def _chains() -> list[str]:
    """The chains of iptables and ip6tables, nft and legacy, as `program table chain`."""
    chains = []
    for program in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        table = ""
        for line in _output(f"{program}-save"):
            table = line[1:] if line.startswith("*") else table
            if line.startswith(":"):
                chains.append(f"{program} {table} {line[1:].split()[0]}")
    return chains


def _cgroups() -> list[str]:
    return [str(group) for hierarchy in hierarchies() for group in cgroups_below(hierarchy)]


def _kernel_settings() -> list[str]:
    return [f"{name} = {(Path('/proc/sys') / name).read_text().strip()}" for name in KERNEL_SETTINGS]


SNAPSHOT_KINDS: Mapping[str, Callable[[], list[str]]] = {
    "process": _processes,
    "mount": _mounts,
    "interface": _interfaces,
    "route": lambda: _output("ip", "-4", "route"),
    "nftables": lambda: _output("nft", "list", "tables"),
    "chain": _chains,
    "cgroup": _cgroups,
    "kernel": _kernel_settings,
    "namespace": lambda: _output("ip", "netns", "list"),
}
