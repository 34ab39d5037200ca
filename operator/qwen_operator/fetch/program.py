"""`qwen-operator fetch`: makes sure that the cache has a model, and ends. The engine starts after it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.fetch import bucket, checksums, joining
from qwen_operator.fetch.bucket import Bucket
from qwen_operator.fetch.faults import FetchError, told
from qwen_operator.fetch.files import RemoteFile, chosen, total
from qwen_operator.fetch.listing import read_listing
from qwen_operator.fetch.progress import Progress
from qwen_operator.fetch.store import Entry, Store, gigabytes, used_bytes
from qwen_operator.fetch.transfer import CHUNK_BYTES, PATIENCE_SECONDS, Transfer
from qwen_operator.fetch.wire import Busy, Client, Cut, Expired, RemoteModel, certificates
from qwen_operator.manifests.model_cache import ADAPTERS
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG
from qwen_runtime.checkpoints.gguf_parts import joined_name, parts_of
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.page import showing
from qwen_runtime.report import deliver

LOG_SECONDS = 10.0
_PAGE = ".progress.json"
_LISTING_PATIENCE = 120.0
_LONGEST_DELAY = 30.0
# The reader of adapters wants a name, and whoever calls this program knows it.
_ANY = "*"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model goes, who asks for it, and where others see the progress. `port` 0 takes any free one.

    `kept_free_percent`: so much of the disk stays free. `compile_folder`: a folder that it makes for what engines
    compile; "" for none. `of_pod`: the folder is no cache, and ends with the pod.
    """

    root: Path
    limit: int
    pod: str
    port: int
    kept_free_percent: int = 0
    compile_folder: str = ""
    of_pod: bool = False


@dataclass(slots=True)
class Fetch:
    """One run of the program."""

    remote: RemoteModel
    place: Place
    say: Callable[[str], None] = lambda line: print(line, flush=True)
    sleep: Callable[[float], None] = time.sleep
    patience: float = PATIENCE_SECONDS
    chunk_bytes: int = CHUNK_BYTES
    _downloads: bool = False
    progress: Progress = field(default_factory=Progress)
    # Reading the certificates takes a tenth of a second, so all threads share them.
    _context: ssl.SSLContext = field(default_factory=certificates)

    def run(self) -> Path:
        """The folder of the complete model. Raises FetchError."""
        place = self.place
        store = Store(place.root, place.limit, kept_free_percent=place.kept_free_percent, of_pod=place.of_pod)
        store.prepare()
        if self.place.compile_folder:
            store.make_folder(self.place.compile_folder)
        entry = Entry(self.place.root, self.remote)
        with showing(self.progress.page, self.place.port), self._reporting(entry):
            store.lease(entry, self.place.pod)
            with store.locked(entry.key, lambda: self._wait(entry)):
                self.progress.relayed = b""
                # The wait may have been longer than a lease.
                store.lease(entry, self.place.pod)
                if entry.is_complete():
                    self.say(f"{self.remote} is in the cache: {entry.folder}")
                else:
                    self._download(store, entry)
        self.progress.finished = True
        self.say(self.progress.page().decode())
        return entry.folder

    @property
    def present(self) -> int:
        """How many bytes of the model are there, on the disk."""
        entry = Entry(self.place.root, self.remote)
        return used_bytes(entry.partial) + used_bytes(entry.folder)

    def _wait(self, entry: Entry) -> None:
        """Another pod downloads the same model. Show its progress."""
        try:
            self.progress.relayed = (entry.partial / _PAGE).read_bytes()[:4096]
        except OSError:
            self.progress.relayed = b""
        self.sleep(1.0)

    def _download(self, store: Store, entry: Entry) -> None:
        store.discard(entry)
        parts = parts_of(self.remote.file)
        if len(parts) == 1:
            files = self._transfer(store, entry)
        else:
            if not joining.has_started(entry.partial):
                self._transfer(store, entry)
            files = self._joined(entry, parts)
        store.lease(entry, self.place.pod)
        store.publish(entry, files)

    def _transfer(self, store: Store, entry: Entry) -> tuple[RemoteFile, ...]:
        """Load the files, and check them."""
        files = self._patient(self._files)
        evicted = store.reserve(entry, files)
        for key in evicted:
            self.say(f"removed {key} from the cache, which nobody uses")
        self.progress.total, self._downloads = total(files), True
        self.say(f"downloads {len(files)} files of {self.remote} with {gigabytes(self.progress.total)}")
        Transfer(
            self.remote,
            files,
            entry.partial,
            self._client,
            self.progress,
            sleep=self.sleep,
            patience=self.patience,
            chunk_bytes=self.chunk_bytes,
        ).run()
        _remove_others(entry.partial, files)
        _check(entry.partial, self.remote.file)
        return files

    def _joined(self, entry: Entry, parts: tuple[str, ...]) -> tuple[RemoteFile, ...]:
        """Make one file of all parts, because SGLang opens one."""
        target = joined_name(self.remote.file)
        self.say(f"joins the {len(parts)} parts of {target}")
        try:
            size = joining.join_parts(entry.partial, parts, target)
        except InvalidFactsError as error:
            # The next run loads the parts again.
            joining.give_up(entry.partial)
            raise FetchError(Reason.INVALID_CONFIG, str(error)) from None
        _check(entry.partial, target)
        return (RemoteFile(target, size),)

    def _files(self) -> tuple[RemoteFile, ...]:
        """The files to download, with their checksums."""
        listed = read_listing(self._client()).files
        files = chosen(listed, self.remote.file)
        if not isinstance(self.remote, Bucket):
            return files
        checked = bucket.with_checksums(self._client(), self.remote, files)
        self.say(checksums.summary([file.checksum for file in checked]))
        return checked

    def _patient(self, read: Callable[[], tuple[RemoteFile, ...]]) -> tuple[RemoteFile, ...]:
        begun, delay = time.monotonic(), 1.0
        while True:
            try:
                return read()
            except (Busy, Cut, Expired) as trouble:
                asked = trouble.seconds if isinstance(trouble, Busy) else 0.0
                # Whoever ends during a pause that the hub asked for is started again too early.
                patience = self.patience if asked else min(self.patience, _LISTING_PATIENCE)
                if time.monotonic() - begun + (asked or delay) > patience:
                    field = self.remote.address_field
                    message = f"{self.remote.base} cannot be reached ({trouble}): check the network and {field}"
                    raise FetchError(Reason.HUB_UNREACHABLE, message, silent=True) from None
                self.sleep(asked or delay)
                delay = min(_LONGEST_DELAY, 2 * delay)

    def _client(self) -> Client:
        return Client(self.remote, self._context)

    @contextmanager
    def _reporting(self, entry: Entry) -> Iterator[None]:
        """Write the progress for pods that wait, every second, and into the log, every LOG_SECONDS."""
        ended = threading.Event()

        def report() -> None:
            seconds = 0
            while not ended.wait(1.0):
                seconds += 1
                page = self.progress.page()
                # A pod that waits must not write over the numbers of the one that downloads.
                if self._downloads:
                    _replace(entry.partial / _PAGE, page)
                if seconds % LOG_SECONDS == 0:
                    self.say(page.decode(errors="replace"))

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def main(
    fetch: Fetch | None,
    termination_log: Path | None = None,
    adapters: Sequence[tuple[str, Fetch]] = (),
    shared: Place | None = None,
) -> int:
    """Run it as the first process of a container. The termination message says why it failed.

    The adapters come first, by their names in messages: they are small, and fail before the model is loaded. `shared`:
    where the engine mounts the folder of all adapters, which it makes also if there is none to fetch.
    """
    # As process 1 it would ignore SIGTERM. What has arrived stays in the cache.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(143))
    # The model may take longer than a lease, so that another pod may have removed an adapter when it is there.
    before, fetches = "", [*adapters, *([("", fetch), *adapters] if fetch else [])]
    try:
        if shared is not None:
            _make_folder(shared, f"models/{ADAPTERS}")
        for before, one in fetches:  # noqa: B007 - a failure says which one it was
            one.run()
    except (FetchError, OSError) as trouble:
        error = told(trouble)
        if before:
            error = FetchError(error.reason, f"{before}: {error}", silent=error.silent)
        print(f"{error.reason}: {error}", file=sys.stderr, flush=True)
        deliver(error.report(_present(fetch, adapters)), termination_log)
        return 1
    # Whether the cache had the model counts. Adapters count if they are all there is.
    counted = [fetch] if fetch else [one for _, one in adapters]
    loaded, received = (sum(getattr(one.progress, part) for one in counted) for part in ("total", "received"))
    deliver(json.dumps({"version": 1, "bytes": loaded, "hubBytes": received}).encode(), termination_log)
    return 0


def _present(fetch: Fetch | None, adapters: Sequence[tuple[str, Fetch]]) -> int:
    return (fetch.present if fetch else 0) + sum(one.present for _, one in adapters)


def _make_folder(place: Place, path: str) -> None:
    store = Store(place.root, place.limit)
    store.prepare()
    store.make_folder(path)


def _check(folder: Path, file: str) -> None:
    """Raise FetchError if an engine could not load what the repository has, or its one file if `file` is given."""
    if file == ADAPTER_CONFIG:
        report, complete = examine(None, [(_ANY, folder)])
    else:
        report, complete = examine(folder / file if file else folder, to_join=True)
    if complete:
        return
    error: dict[str, Any] = report["error"]
    message = str(error["message"]).replace(f"{folder}", "the repository").removeprefix(f"spec.adapters[{_ANY}]: ")
    message = message.removeprefix(f"spec.adapters[{_ANY}] in ").rstrip(".")
    raise FetchError(Reason(error["reason"]), message)


def _remove_others(folder: Path, files: Sequence[RemoteFile]) -> None:
    """Remove files that an earlier list had, and that this one has not."""
    kept = {file.path for file in files}
    for path in folder.rglob("*"):
        relative = str(path.relative_to(folder))
        if path.is_file() and relative not in kept and not relative.startswith("."):
            path.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step. Its folder may be gone."""
    try:
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(content)
        beside.replace(path)
    except OSError:
        return
