"""Cache of the test bed's built parts, outside the clone.

Each part is a folder, named by the SHA-256 of everything that decides its content. A finished build renames its folder
to that name, so a folder that exists is complete, even if a process was killed. Each part has a lock, so that several
processes build it only once.
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
    """A command of the test bed failed. The text has the end of its output, and the path of the whole output."""


def cache_dir() -> Path:
    """The cache's folder: `$QWEN_TESTBED_CACHE`, else /var/cache/qwen-operator-testbed. It is created if missing."""
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
    """The finished folder of `part` for these inputs. If it is missing, `build` fills an empty folder.

    `build` gets a temporary path, so its output must not contain that path. If it raises, nothing is kept. A build
    also removes folders of the same part that were not used for a week.
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
    # This process holds the lock, so these folders are from builds that were killed.
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
    """Holds a lock between processes, and prints a line if it must wait. The kernel frees it if the holder dies."""
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
    """Print one line of progress to standard error, because standard output is for results."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def elapsed(seconds: float) -> str:
    """A duration for people: 42s, 3m20s, 1h05m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Prints every `every` seconds that `label` is still running, and for how long. Call `tick` often."""

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
    """Runs a command to its end with progress lines. Its output is written to `<cache>/logs/<log or label>.log`.

    `env` is added to this process's environment. The command has no standard input, and ends with this process.
    Raises StepFailed with the last lines of the output.
    """
    folder = cache_dir() / "logs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{log or '-'.join(label.replace('/', ' ').split())}.log"
    # If the command outlived a killed `up`, it would write into a folder that the next `up` removes.
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
        [f"{label} failed: {' '.join(map(str, argv))[:300]} ended with {code}; the whole output is in {path}", *lines]
    )
