"""The folders, locks and leases of a cache. Every pod that uses the cache sees the same file system.

    models/HUB/ORGANISATION--NAME/COMMIT/   a complete model; `.manifest.json` lists its files
    partial/KEY/                            a model on its way
    locks/KEY, locks/cache                  held while a model is fetched, and while models are counted and removed
    leases/KEY/POD                          when a pod last asked for the model

A model moves from `partial` to `models` in one step, so `models` never has half of one. An engine holds a shared lock
on `.in-use` of its model for as long as it runs, and the kernel ends that lock with the process. Nobody can remove a
model whose lock is held. Between the fetch and the start of the engine, and between two starts, the lease protects it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_operator import untrusted
from qwen_operator.api.conditions import Reason
from qwen_operator.fetch import joining
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import RemoteFile, total
from qwen_operator.fetch.room import Cached, Room, make_room
from qwen_operator.fetch.wire import RemoteModel
from qwen_runtime.adapter_list import IN_USE

MANIFEST = ".manifest.json"
LEASE_SECONDS = 3600.0
"""For so long after a pod asked for a model, the model stays, even if no engine holds it."""
_LARGEST_MANIFEST = 8 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """The places of one model in a cache."""

    root: Path
    remote: RemoteModel

    @property
    def key(self) -> str:
        return self.remote.folder.replace("/", "--")

    @property
    def folder(self) -> Path:
        return self.root / "models" / self.remote.folder

    @property
    def partial(self) -> Path:
        return self.root / "partial" / self.key

    def is_complete(self) -> bool:
        """Whether the model is there, with every file at its full size, and with the file that engines lock."""
        files = read_manifest(self.folder)
        whole = files is not None and all(_size(self.folder / file.path) == file.size for file in files)
        return whole and (self.folder / IN_USE).is_file()


@dataclass(slots=True)
class Store:
    """A cache of at most `limit` bytes in the folder `root`. `now` returns seconds since the epoch.

    `kept_free_percent`: so much of its disk stays free. `of_pod`: it ends with its pod, so it is no cache.
    """

    root: Path
    limit: int
    now: Callable[[], float] = time.time
    kept_free_percent: int = 0
    of_pod: bool = False

    def prepare(self) -> None:
        """Make the folders. Raises FetchError if this user may not write."""
        # Pods of one namespace may have different users, which `spec.pod.securityContext` sets.
        os.umask(0)
        try:
            for name in ("models", "partial", "locks", "leases"):
                (self.root / name).mkdir(exist_ok=True, parents=True)
            (self.root / "locks" / "cache").touch()
        except OSError as error:
            raise self._unusable(error) from None

    def make_folder(self, path: str) -> None:
        """Make a folder that everybody may write. Raises FetchError if this user may not write."""
        try:
            (self.root / path).mkdir(exist_ok=True, parents=True)
        except OSError as error:
            raise self._unusable(error) from None

    def lease(self, entry: Entry, pod: str) -> None:
        """Note that a pod asks for the model.

        Whoever removes models counts them under the same lock. So after this the model is there and stays, or is gone.
        """
        folder = self.root / "leases" / entry.key
        with self.locked("cache"):
            try:
                folder.mkdir(exist_ok=True, parents=True)
                path = folder / untrusted.clean(pod, 253).replace("/", "-")
                # Only the owner of a file may set its time, and a pod of this name may have had another user.
                path.unlink(missing_ok=True)
                path.touch()
                os.utime(path, (self.now(), self.now()))
            except OSError as error:
                raise self._unusable(error) from None

    @contextlib.contextmanager
    def locked(self, name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock of this name. While another process holds it, call `waiting` again and again.

        The kernel releases it when the process ends, however it ends.
        """
        descriptor = self._open_lock(name)
        try:
            while waiting is not None and not _try(descriptor):
                waiting()
            if waiting is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def reserve(self, entry: Entry, files: Sequence[RemoteFile]) -> tuple[str, ...]:
        """Remove what must go for these files. Returns the keys of the removed models.

        Call it while the entry's lock is held. Raises FetchError with both numbers if there is not enough room.
        """
        with self.locked("cache"):
            present = used_bytes(entry.partial)
            wanted = max(0, total(files) - present)
            removed: list[str] = []
            while going := self._going(entry, wanted, present):
                removed += [key for key in going if self.remove(key)]
            entry.partial.mkdir(exist_ok=True)
            (entry.partial / ".total").write_text(str(total(files)))
            return tuple(removed)

    def _going(self, entry: Entry, wanted: int, present: int) -> tuple[str, ...]:
        """The keys of the models that must go before `wanted` bytes fit. Raises FetchError if they never fit."""
        others = [one for one in self.cached() if one.key != entry.key]
        verdict = make_room(others, wanted, Room(self.limit - present, self.free()))
        if verdict.missing and self.of_pod:
            if wanted + present > self.limit:
                message = (
                    f"the files of {entry.remote} have {gigabytes(wanted + present)}, and the folder of the pod may "
                    f"have {gigabytes(self.limit)}, by the weights of the model: remove other weights from there, or "
                    "set the chart value cache"
                )
                raise FetchError(Reason.DISK_FULL, message)
            message = (
                f"{entry.remote} needs {gigabytes(wanted)} more, and the node has room for "
                f"{gigabytes(verdict.available)}{self._kept()}: set the chart value cache, or enlarge the node's disk"
            )
            raise FetchError(Reason.DISK_FULL, message)
        if verdict.missing:
            of_disk = self.free() < self.limit - present - sum(one.used for one in others)
            raise FetchError(Reason.DISK_FULL, self._full(entry, wanted, present, verdict.available, of_disk))
        return verdict.evicted

    def _full(self, entry: Entry, wanted: int, present: int, available: int, of_disk: bool) -> str:
        if wanted + present > self.limit:
            return (
                f"{entry.remote} has {gigabytes(wanted + present)}, and the cache may have {gigabytes(self.limit)} in "
                f"all: enlarge cache.sizeGiB ({self.limit >> 30} GiB)"
            )
        place, larger = "the cache", f"cache.sizeGiB ({self.limit >> 30} GiB)"
        if of_disk:
            place, larger = "its disk", f"the disk{self._kept()}"
        return (
            f"{entry.remote} needs {gigabytes(wanted)} more, {place} has {gigabytes(available)} besides models used "
            f"within an hour: enlarge {larger} or run qwen-operator cache rm"
        )

    def cached(self) -> list[Cached]:
        """What the cache has, complete and on its way."""
        complete = [self._complete(path) for path in sorted((self.root / "models").glob("*/*/*"))]
        partial = [self._partial(path) for path in sorted((self.root / "partial").iterdir()) if path.is_dir()]
        return [*complete, *partial]

    def publish(self, entry: Entry, files: Sequence[RemoteFile]) -> None:
        """Turn a partial model, whose files are complete and checked, into a complete one, in one step."""
        record = {"version": 1, "repository": entry.remote.repository, "files": [file.to_json() for file in files]}
        # Until the rename, the mark says that the parts are gone because they were joined.
        for path in entry.partial.glob(".*"):
            if path.name != joining.STARTED:
                path.unlink(missing_ok=True)
        (entry.partial / IN_USE).touch()
        with (entry.partial / MANIFEST).open("w", encoding="utf-8") as out:
            json.dump(record, out)
            out.flush()
            os.fsync(out.fileno())
        entry.folder.parent.mkdir(exist_ok=True, parents=True)
        entry.partial.rename(entry.folder)
        joining.give_up(entry.folder)
        _sync(entry.folder.parent)

    def discard(self, entry: Entry) -> None:
        """Remove a damaged model. Call it while the entry's lock is held."""
        with self.locked("cache"):
            if entry.folder.exists():
                shutil.rmtree(_aside(entry.folder, self.root), ignore_errors=True)

    def _complete(self, folder: Path) -> Cached:
        key = "--".join(folder.parts[-3:])
        used_at = self._last_use(key)
        busy = self.now() - used_at < LEASE_SECONDS or not is_idle(folder / IN_USE)
        return Cached(key, used_bytes(folder), used_at, busy)

    def _partial(self, folder: Path) -> Cached:
        used = used_bytes(folder)
        if is_idle(self.root / "locks" / folder.name):
            return Cached(folder.name, used, self._last_use(folder.name), False)
        # Before the download has counted its files, and shortly before its end, it has no total.
        wanted = used
        with contextlib.suppress(OSError, ValueError):
            wanted = int((folder / ".total").read_text()[:20])
        return Cached(folder.name, used, self.now(), True, max(0, wanted - used))

    def _last_use(self, key: str) -> float:
        with contextlib.suppress(OSError):
            return max((path.stat().st_mtime for path in (self.root / "leases" / key).iterdir()), default=0.0)
        return 0.0

    def remove(self, key: str) -> bool:
        """Remove a model; False if an engine began to use it meanwhile. No engine gets its lock while it goes."""
        complete = [path for path in (self.root / "models").glob("*/*/*") if "--".join(path.parts[-3:]) == key]
        for folder in (*complete, self.root / "partial" / key):
            if folder.exists():
                with _taken(folder / IN_USE) as taken:
                    if not taken:
                        return False
                    shutil.rmtree(_aside(folder, self.root), ignore_errors=True)
        shutil.rmtree(self.root / "leases" / key, ignore_errors=True)
        return True

    def free(self) -> int:
        """The bytes that the file system has left for the cache."""
        stat = os.statvfs(self.root)
        return (stat.f_bavail - stat.f_blocks * self.kept_free_percent // 100) * stat.f_frsize

    def _kept(self) -> str:
        if not self.kept_free_percent:
            return ""
        return f", of which {self.kept_free_percent} % stay free, because the kubelet evicts pods from a full node"

    def _open_lock(self, name: str) -> int:
        try:
            return os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> FetchError:
        return FetchError(
            Reason.CACHE_UNUSABLE,
            f"user {os.geteuid()} cannot write into the cache ({error.strerror}): on the node, make the folder of "
            "cache.path and that of this namespace in it writable with chmod 0777; on a claim, set fsGroup",
        )


def read_manifest(folder: Path) -> tuple[RemoteFile, ...] | None:
    """The files of a complete model; None if the folder has no manifest that can be read."""
    try:
        path = folder / MANIFEST
        if path.stat().st_size > _LARGEST_MANIFEST:
            return None
        record: Any = untrusted.decode(path.read_bytes(), 8)
        return tuple(RemoteFile.from_json(file) for file in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def gigabytes(size: int) -> str:
    """The size in GB or MB, as disks and hubs show it."""
    return f"{size / 10**9:.1f} GB" if size >= 10**8 else f"{size / 10**6:.1f} MB"


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_idle(path: Path) -> bool:
    """Whether nobody holds a lock on the file."""
    with _taken(path) as taken:
        return taken


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Try to hold the lock of a file; gives whether nobody else holds it. A missing file is nobody's.

    Who may not open the file cannot know whether it is locked, so it counts as locked.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        yield error.errno in (errno.ENOENT, errno.ENOTDIR)
        return
    try:
        yield _try(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def used_bytes(folder: Path) -> int:
    """The bytes on disk of all files in a folder. A file that is not written completely has holes."""
    used = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                used += (Path(parent) / name).lstat().st_blocks * 512
    return used


def _aside(folder: Path, root: Path) -> Path:
    """The folder under a new name, so that nobody finds half of it while it is removed."""
    target = root / "partial" / f"removed--{folder.name}-{os.getpid()}-{time.monotonic_ns()}"
    folder.rename(target)
    return target


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
