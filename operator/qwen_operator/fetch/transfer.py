"""Downloads the files of a repository into a folder: in parallel ranges, resumable, and checked.

Each file is cut into chunks. Threads load the chunks in order, and one thread reads what has arrived in the same order
and computes the checksums. A journal in the folder says which chunks are complete, so another process goes on there.
What a cut connection has delivered of a chunk counts too. The disk writes a chunk while others arrive.

Memory: each thread has one buffer of BUFFER_BYTES.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qwen_operator.api.conditions import Reason
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import RemoteFile
from qwen_operator.fetch.progress import Progress
from qwen_operator.fetch.wire import Busy, Client, Cut, Expired, RemoteModel

CHUNK_BYTES = 16 << 20
BUFFER_BYTES = 1 << 20
"""With less, threads wait for each other more often: only one at a time may run Python."""
WRITE_BYTES = 128 << 10
"""So much goes into a file in one call. ext4 keeps a larger piece in pages that are as large, which come from memory
that nobody has touched for long. In a virtual machine, a write of 1 MiB took up to three times as long
(`bench/disk_writes.py`)."""
THREADS = 8
PATIENCE_SECONDS = 600.0
"""After so long without a byte the download gives up. The kubelet starts it again."""
_LONGEST_DELAY = 30.0
_JOIN_SECONDS = 2.0
_JOURNAL = ".journal"
# Python has no call for it. It waits for nothing, whereas fdatasync waits for what others write.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """The bytes from `first` to before `end` of a file."""

    file: RemoteFile
    first: int
    end: int


def chunks_of(file: RemoteFile, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The chunks of a file. An empty file has none."""
    for first in range(0, file.size, size):
        yield Chunk(file, first, min(first + size, file.size))


@dataclass(slots=True)
class Journal:
    """Which chunks are complete. One line for each: FIRST END CHECKSUM PATH. The last line may be cut."""

    path: Path
    done: set[tuple[str, str, int, int]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, folder: Path) -> Journal:
        journal = cls(folder / _JOURNAL)
        if journal.path.exists():
            for line in journal.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                words = line.rstrip("\n").split(" ", 3)
                if line.endswith("\n") and len(words) == 4 and words[0].isdigit() and words[1].isdigit():
                    journal.done.add((words[3], words[2], int(words[0]), int(words[1])))
        return journal

    def has(self, chunk: Chunk) -> bool:
        return self._key(chunk) in self.done

    def add(self, chunk: Chunk) -> None:
        path, checksum, first, end = self._key(chunk)
        with self._lock, self.path.open("a", encoding="utf-8") as out:
            out.write(f"{first} {end} {checksum} {path}\n")
            self.done.add((path, checksum, first, end))

    def drop(self, file: RemoteFile) -> None:
        """Forget all chunks of a file."""
        with self._lock:
            self.done = {entry for entry in self.done if entry[0] != file.path}
            lines = [f"{first} {end} {checksum} {path}\n" for path, checksum, first, end in sorted(self.done)]
            self.path.write_text("".join(lines), encoding="utf-8")

    def _key(self, chunk: Chunk) -> tuple[str, str, int, int]:
        return chunk.file.path, chunk.file.checksum or "-", chunk.first, chunk.end


@dataclass(slots=True)
class Transfer:
    """One download of `files` into `folder`. `connect` makes a client for one thread. Call `run` once."""

    remote: RemoteModel
    files: Sequence[RemoteFile]
    folder: Path
    connect: Callable[[], Client]
    progress: Progress
    sleep: Callable[[float], None] = time.sleep
    patience: float = PATIENCE_SECONDS
    threads: int = THREADS
    chunk_bytes: int = CHUNK_BYTES
    journal: Journal = field(init=False)
    _waiting: queue.SimpleQueue[Chunk | None] = field(default_factory=queue.SimpleQueue)
    _arrived: threading.Condition = field(default_factory=threading.Condition)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _addresses: dict[str, str] = field(default_factory=dict)
    _error: Exception | None = None
    _resume_at: float = 0.0
    _refusals: int = 0
    _last_byte: float = 0.0

    def __post_init__(self) -> None:
        self.journal = Journal.read(self.folder)

    def run(self) -> None:
        """Load what is missing, and check all of it. Raises FetchError."""
        self._last_byte = time.monotonic()
        for file in self.files:
            self._allocate(file)
        with self._workers():
            for file in self.files:
                if not self._verified(file):
                    # A copy that was broken on its way is loaded once more.
                    self._again(file)
                    if not self._verified(file):
                        self.journal.drop(file)
                        raise FetchError(
                            Reason.CHECKSUM_MISMATCH,
                            f"{file.path} of {self.remote} has not the checksum that {self.remote.server} names, "
                            f"twice: {self.remote.server}, its mirror or a proxy delivers another file",
                        )

    @contextmanager
    def _workers(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            with self._arrived:
                self._error = self._error or FetchError(Reason.UNKNOWN, "the download ended")
            for _ in threads:
                self._waiting.put(None)
            for thread in threads:
                thread.join(_JOIN_SECONDS)

    def _allocate(self, file: RemoteFile) -> None:
        """Give the file its full size, and queue the chunks that are missing."""
        path = self.folder / file.path
        path.parent.mkdir(exist_ok=True, parents=True)
        if not path.exists() or path.stat().st_size != file.size:
            self.journal.drop(file)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.ftruncate(descriptor, file.size)
        finally:
            os.close(descriptor)
        for chunk in chunks_of(file, self.chunk_bytes):
            if self.journal.has(chunk):
                self.progress.add(chunk.end - chunk.first)
            else:
                self._waiting.put(chunk)

    def _again(self, file: RemoteFile) -> None:
        self.journal.drop(file)
        for chunk in chunks_of(file, self.chunk_bytes):
            self.progress.add(chunk.first - chunk.end)
            self._waiting.put(chunk)

    def _verified(self, file: RemoteFile) -> bool:
        """Wait for all chunks of a file, in order, and compare its checksum. Then write it to the disk."""
        digest, buffer = file.digest(), memoryview(bytearray(BUFFER_BYTES))
        descriptor = os.open(self.folder / file.path, os.O_RDWR)
        try:
            for chunk in chunks_of(file, self.chunk_bytes):
                self._await(chunk)
                at = chunk.first
                while digest is not None and at < chunk.end:
                    count = os.preadv(descriptor, [buffer[: min(BUFFER_BYTES, chunk.end - at)]], at)
                    if not count:
                        return False
                    digest.update(buffer[:count])
                    at += count
            if digest is not None and digest.hexdigest() != file.checksum:
                return False
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _await(self, chunk: Chunk) -> None:
        with self._arrived:
            while not self.journal.has(chunk):
                if self._error is not None:
                    raise self._error
                self._arrived.wait(1.0)

    def _work(self) -> None:
        client = self.connect()
        try:
            while (chunk := self._waiting.get()) is not None and self._error is None:
                self._load(client, chunk)
                with self._arrived:
                    self.journal.add(chunk)
                    self._arrived.notify_all()
        except Exception as error:
            with self._arrived:
                self._error = self._error or error
                self._arrived.notify_all()
        finally:
            client.close()

    def _load(self, client: Client, chunk: Chunk) -> None:
        """Load a chunk, however often the connection is cut. Raises FetchError if the patience ends."""
        buffer, at, failures = memoryview(bytearray(BUFFER_BYTES)), chunk.first, 0
        descriptor = os.open(self.folder / chunk.file.path, os.O_WRONLY)
        try:
            while at < chunk.end:
                self._pause(0.0)
                before = at
                try:
                    for count in self._pieces(client, chunk, at, buffer):
                        self._write(descriptor, buffer[:count], at)
                        at += count
                        self.progress.receive(count)
                        self._last_byte, self._refusals = time.monotonic(), 0
                except (Busy, Cut) as trouble:
                    failures = 0 if at > before else failures + 1
                    self._after(trouble, failures)
            # If the node loses its power, the journal may be on the disk before the chunk. A checksum would show it.
            if chunk.file.digest() is None:
                os.fsync(descriptor)
            _start_writing(descriptor, chunk.first, chunk.end - chunk.first)
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, piece: memoryview, at: int) -> None:
        # The kernel lets one thread at a time write into a file. The others would burn CPU time while they wait there.
        with self._writing:
            while piece:
                count = os.pwrite(descriptor, piece[:WRITE_BYTES], at)
                piece, at = piece[count:], at + count

    def _pieces(self, client: Client, chunk: Chunk, at: int, buffer: memoryview) -> Iterator[int]:
        """Fill the buffer again and again with the rest of the chunk; gives the number of bytes each time."""
        path, own = chunk.file.path, self.remote.file_url(chunk.file.path)
        try:
            answer = client.get(self._addresses.get(path, own), path, at, chunk.end - 1)
        except Expired:
            # Content networks sign their addresses for an hour or so.
            self._addresses.pop(path, None)
            try:
                answer = client.get(own, path, at, chunk.end - 1)
            except Expired:
                raise FetchError(Reason.HUB_UNREACHABLE, f"the content network of the hub refuses {path}") from None
        self._addresses[path] = answer.url
        if answer.status == 200 and (at, chunk.end) != (0, chunk.file.size):
            raise FetchError(Reason.HUB_UNREACHABLE, f"{self.remote.server} or a proxy ignores the range of {path}")
        if answer.length not in (-1, chunk.end - at):
            client.close()
            raise FetchError(
                Reason.CHECKSUM_MISMATCH,
                f"{path} of {self.remote} has another size than the list of {self.remote.server} says: "
                f"{chunk.file.size} bytes",
            )
        body, left = client.body(answer), chunk.end - at
        try:
            while left and (count := body.fill(buffer[:left])):
                left -= count
                yield count
        except (OSError, http.client.HTTPException) as error:
            client.close()
            raise Cut(str(error) or type(error).__name__) from None
        if left:
            client.close()
            raise Cut(f"the connection ended {left} bytes too early")
        body.close()

    def _after(self, trouble: Busy | Cut, failures: int) -> None:
        """Wait after a failure. If the hub has too many requests, all threads wait."""
        if self._error is not None:
            raise self._error
        silent = time.monotonic() - self._last_byte
        asked = self._shared_pause(trouble) if isinstance(trouble, Busy) and trouble.all_wait else 0.0
        if silent + asked > self.patience:
            raise FetchError(
                Reason.HUB_UNREACHABLE,
                f"{self.remote.base} delivers nothing of {self.remote} for {silent:.0f} s ({trouble}): check the "
                f"network and {self.remote.address_field}; the download goes on where it was",
                silent=True,
            )
        # The first failure is often a connection that the server has closed meanwhile.
        backoff = min(_LONGEST_DELAY, 0.25 * 2 ** min(failures, 10)) if failures > 1 and not asked else 0.0
        self._pause(backoff * (0.5 + random.random()))

    def _shared_pause(self, trouble: Busy) -> float:
        """Seconds until any thread asks again: as long as the hub says, else 1, 2, 4 and so on until a byte comes.

        Threads that are refused during a pause had asked before it began, and do not make it longer.
        """
        with self._arrived:
            now, seconds = time.monotonic(), trouble.seconds
            if not seconds and now >= self._resume_at:
                seconds = min(_LONGEST_DELAY, float(1 << min(self._refusals, 10)))
                self._refusals += 1
            self._resume_at = max(self._resume_at, now + seconds)
            return self._resume_at - now

    def _pause(self, seconds: float) -> None:
        """Wait for `seconds`, and until the pause is over that the hub asked for."""
        delay = max(seconds, self._resume_at - time.monotonic())
        if delay > 0:
            self.sleep(delay)


def _start_writing(descriptor: int, first: int, count: int) -> None:
    """Have the disk begin with these bytes now. Whether it could shows when the whole file is flushed."""
    if _sync_file_range is not None:
        offsets = ctypes.c_int64(first), ctypes.c_int64(count)
        _sync_file_range(ctypes.c_int(descriptor), *offsets, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))
