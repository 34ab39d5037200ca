"""Cache of the test bed's built parts, outside the clone.

A part is a folder named by the sha256 of everything that decides its content. It appears by one rename when its
build has ended, so a folder that exists is complete, whatever was killed when. One lock per part makes several
processes build it once.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "QWEN_TESTBED_CACHE"
DEFAULT_CACHE = "/var/cache/qwen-operator-testbed"
PROGRESS_SECONDS = 20.0
UNUSED_DAYS = 7
LOG_LINES_SHOWN = 30


class StepFailed(Exception):
    """A command of the test bed failed; the text holds the end of its output and where the rest is."""


def cache_dir() -> Path:
    """The cache's folder: `$QWEN_TESTBED_CACHE`, else /var/cache/qwen-operator-testbed. Made if missing."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def key(inputs: Iterable[bytes]) -> str:
    """Sixteen hex digits that change when any input, their number, or their order changes."""
    total = hashlib.sha256()
    for item in inputs:
        total.update(hashlib.sha256(item).digest())
    return total.hexdigest()[:16]


def is_cached(part: str, inputs: Iterable[bytes]) -> bool:
    """Whether `cached` would return without building."""
    return (cache_dir() / part / key(inputs)).is_dir()


def cached(part: str, inputs: Iterable[bytes], build: Callable[[Path], None]) -> Path:
    """The finished folder of `part` for these inputs; `build` fills an empty folder when it is missing.

    `build` gets a temporary path: what it makes must not hold that path. If it raises, nothing is kept.
    Folders of the same part that no one asked for in a week are removed after a build.
    """
    home = cache_dir() / part
    home.mkdir(parents=True, exist_ok=True)
    target = home / key(inputs)
    if not target.is_dir():
        with locked(f"cache-{part}"):
            if not target.is_dir():
                _build(home, target, build)
    os.utime(target)
    return target


def _build(home: Path, target: Path, build: Callable[[Path], None]) -> None:
    # The lock is held: what a build that was killed left behind belongs to nobody.
    for stale in home.glob(".building-*"):
        shutil.rmtree(stale)
    folder = home / f".building-{target.name}"
    folder.mkdir()
    try:
        build(folder)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    oldest = time.time() - UNUSED_DAYS * 86400
    for other in home.iterdir():
        if other != target and other.stat().st_mtime < oldest:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock between processes; says so when it has to wait. The kernel frees it when the holder dies."""
    folder = cache_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds the lock {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """One plain line of progress, on the error stream: standard output is for results."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def elapsed(seconds: float) -> str:
    """A duration as people write it: 42s, 3m20s, 1h05m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Says every `every` seconds that `label` still goes on and for how long; `tick` is to be called often."""

    def __init__(self, label: str, every: float = PROGRESS_SECONDS) -> None:
        self._label, self._every = label, every
        self._start = self._said = time.monotonic()
        say(label)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def tick(self) -> None:
        if time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            say(f"{self._label}, {elapsed(self.seconds)} elapsed")

    def done(self) -> None:
        say(f"{self._label}: done in {elapsed(self.seconds)}")


def run_step(
    label: str,
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: str = "",
) -> None:
    """Runs a command to its end with progress lines; its output goes to `<cache>/logs/<log or label>.log`.

    `env` is added to this process's environment. The command has no standard input, and dies with this process.
    Raises StepFailed with the last lines of the output.
    """
    folder = cache_dir() / "logs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{log or '-'.join(label.replace('/', ' ').split())}.log"
    # A command that outlived a killed `up` would go on writing into a folder that the next one removes.
    command = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]
    progress = Progress(label)
    with path.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            code = _wait(child, progress)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    if code != 0:
        raise StepFailed(_failure(label, argv, code, path))
    progress.done()


def _wait(child: "subprocess.Popen[bytes]", progress: Progress) -> int:
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            progress.tick()


def _failure(label: str, argv: Sequence[str | Path], code: int, path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join(
        [f"{label} failed: {' '.join(map(str, argv))[:300]} ended with {code}; all of it in {path}", *lines]
    )
