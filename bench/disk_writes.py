"""Writes a file in pieces of different sizes, and compares the system time: why `fetch` writes WRITE_BYTES in one call.

    python -m bench.disk_writes --folder /var/tmp --rounds 7

The sizes take turns. The time is that of the calls that write; the wait for the disk comes after it and is shown
separately. One thread writes, so no lock is part of it. A folder in memory (/dev/shm) shows no difference.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SIZES_KIB = (16, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Written:
    """Seconds of one file: the calls that write by the clock, their system time, and the wait for the disk."""

    clock: float
    system: float
    disk: float


def written(path: Path, megabytes: int, piece: bytes) -> Written:
    """Write a new file of so many megabytes, as a download does: it has its full size from the beginning."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(descriptor, megabytes * 10**6)
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
        for at in range(0, megabytes * 10**6, len(piece)):
            os.pwrite(descriptor, piece, at)
        ended, system = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_stime - before
        os.fsync(descriptor)
        return Written(ended - begun, system, time.monotonic() - ended)
    finally:
        os.close(descriptor)
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    arguments = parser.parse_args()
    found: dict[int, list[Written]] = {size: [] for size in SIZES_KIB}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for _ in range(arguments.rounds):
            for size in SIZES_KIB:
                found[size].append(written(Path(name) / "file", arguments.megabytes, bytes(size << 10)))
    print("piece, KiB | system time, s | by the clock, s | then the disk, s   (medians)")
    for size, runs in found.items():
        system, clock, disk = (
            statistics.median(getattr(run, part) for run in runs) for part in ("system", "clock", "disk")
        )
        print(f"{size:10} | {system:14.2f} | {clock:15.2f} | {disk:.2f}")


if __name__ == "__main__":
    main()
