"""What a cache has, for the person who cleans it, and the removal of what nobody uses.

`qwen-operator cache-files` runs this in a pod that mounts the cache. The pod sees the locks of the engines only on
their node, or in a file system whose locks all nodes share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_operator.fetch.store import LEASE_SECONDS, Store, is_idle, read_manifest, used_bytes
from qwen_operator.manifests.model_cache import ADAPTERS
from qwen_runtime.adapter_list import IN_USE
from qwen_runtime.checkpoints.gguf import is_gguf

LEASE_OF_UNKNOWN_SECONDS = 300.0
"""A younger lease counts even if nobody knows its pod: the pod may be newer than the list of pods."""
MOST_ITEMS = 1000
IN_USE_NOW, DOWNLOADING, STARTING, PARTIAL, IDLE = "InUse", "Downloading", "Starting", "Partial", "Idle"


@dataclass(frozen=True, slots=True)
class Item:
    """A model in a cache: its bytes on disk, when a pod last asked for it (seconds since the epoch, 0: unknown), and
    whether it may go. `pod` is the one that asked last.
    `file`: the GGUF file that it is, "" for a whole repository."""

    key: str
    hub: str
    repository: str
    commit: str
    bytes: int
    last_used: int
    state: str
    pod: str = ""
    removed: bool = False
    file: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row of a report."""
        return {
            "key": self.key,
            "hub": self.hub,
            "repository": self.repository,
            "commit": self.commit,
            "bytes": self.bytes,
            "lastUsed": self.last_used,
            "state": self.state,
            "pod": self.pod,
            "removed": self.removed,
            "file": self.file,
        }


@dataclass(slots=True)
class Contents:
    """The contents of a cache. `pods` are the names of those that exist; None if nobody knows them.

    A lease of a pod that is gone protects nothing.
    """

    store: Store
    pods: frozenset[str] | None = None

    def items(self) -> list[Item]:
        """What the cache has, at most MOST_ITEMS. A cache that no pod has used yet has nothing."""
        root = self.store.root
        complete = (self._complete(path) for path in sorted(root.glob("models/*/*/*")) if path.is_dir())
        partial = (self._partial(path) for path in sorted(root.glob("partial/*")) if path.is_dir())
        return [*complete, *partial][:MOST_ITEMS]

    def remove(self, keys: Sequence[str]) -> list[Item]:
        """Remove the models with these keys that nobody uses. Returns all that were found, as they are now."""
        self.store.prepare()
        wanted = frozenset(keys)
        with self.store.locked("cache"):
            return [self._without(item) for item in self.items() if item.key in wanted]

    def _without(self, item: Item) -> Item:
        if item.state not in (IDLE, PARTIAL):
            return item
        return replace(item, removed=True) if self.store.remove(item.key) else replace(item, state=IN_USE_NOW)

    def _complete(self, folder: Path) -> Item:
        hub, repository, commit = folder.parts[-3:]
        key = f"{hub}--{repository}--{commit}"
        pod, last = self._last_lease(key)
        state = IDLE if is_idle(folder / IN_USE) else IN_USE_NOW
        if state == IDLE and self._protects(pod, last):
            state = STARTING
        hub, shown = _named(hub, repository)
        return Item(key, hub, shown, commit, used_bytes(folder), int(last), state, pod, file=_single_file(folder))

    def _partial(self, folder: Path) -> Item:
        hub, _, rest = folder.name.partition("--")
        repository, _, commit = rest.rpartition("--")
        pod, last = self._last_lease(folder.name)
        state = PARTIAL if is_idle(self.store.root / "locks" / folder.name) else DOWNLOADING
        hub, shown = _named(hub, repository)
        return Item(folder.name, hub, shown, commit, used_bytes(folder), int(last), state, pod)

    def _protects(self, pod: str, last: float) -> bool:
        """Whether the engine of a pod that asked for the model may still have to start."""
        age = self.store.now() - last
        if age >= LEASE_SECONDS:
            return False
        return self.pods is None or pod in self.pods or age < LEASE_OF_UNKNOWN_SECONDS

    def _last_lease(self, key: str) -> tuple[str, float]:
        """The pod that asked last, of those that exist if one of them did, and when."""
        leases = sorted(self._leases(key), reverse=True)
        existing = [one for one in leases if self.pods is not None and one[1] in self.pods]
        last, pod = next(iter(existing or leases), (0.0, ""))
        return pod, last

    def _leases(self, key: str) -> Iterator[tuple[float, str]]:
        with suppress(OSError):
            for path in (self.store.root / "leases" / key).iterdir():
                yield path.stat().st_mtime, path.name


def _named(hub: str, repository: str) -> tuple[str, str]:
    """The hub and the repository that the names of two folders stand for."""
    if hub == ADAPTERS:
        hub, _, repository = repository.partition("--")
    return hub, repository.replace("--", "/", 1)


def _single_file(folder: Path) -> str:
    """The GGUF file of the folder, "" if it has a whole repository."""
    files = read_manifest(folder) or ()
    return next((file.path for file in files if is_gguf(file.path)), "")
