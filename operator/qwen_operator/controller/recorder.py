"""Writes the looks of the scaling loop into compressed files, for `qwen-operator replay`.

Recording never disturbs scaling: lines wait in memory, bounded, and a thread writes them. What cannot be written is
lost, and the log says so. The files are JSON lines in gzip. Each write appends a complete gzip member, so a file can be
read at any time, and files can be joined with `cat` in the order of their names.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from qwen_operator.config.types import RecordingConfig
from qwen_operator.objects import ObjectKey
from qwen_operator.scaling import recording
from qwen_operator.scaling.recording import Looked
from qwen_operator.tenancy.lists import matches

FLUSH_SECONDS = 10.0
MOST_WAITING = 16 * 1024 * 1024
"""Characters that wait to be written. More is lost: the disk is too slow."""
PARTS = 8
"""A file is closed when it has this part of all that may be kept. The oldest is removed first."""
SUFFIX = ".jsonl.gz"
_UNSAFE = re.compile(r"[^-.A-Za-z0-9]")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recorder:
    """`add` takes a look, `run` writes what was added. `now` returns seconds since 1970; `pod` names this process."""

    settings: RecordingConfig
    pod: str
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    lost: int = 0
    _waiting: list[str] = field(default_factory=list)
    _size: int = 0
    _part: int = 1
    _run: str = ""
    _numbers: Counter[tuple[ObjectKey, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, looked: Looked) -> None:
        """Take a look, if it is to be recorded."""
        deployment = looked.deployment
        if not matches("/".join(deployment.key), self.settings.deployments):
            return
        self._run = self._run or f"{_stamp(self.now())}-{_UNSAFE.sub('', self.pod)}"
        # Every look has its number, also if it is lost: the gap shows.
        self._numbers[deployment.key, deployment.uid] += 1
        number = self._numbers[deployment.key, deployment.uid]
        try:
            text = recording.line(replace(looked, run=self._run, number=number, time=self.now()))
        except ValueError:
            self.lost += 1
            return
        if self._size + len(text) > MOST_WAITING:
            self.lost += 1
            return
        self._waiting.append(text)
        self._size += len(text)

    async def run(self) -> None:
        """Write for ever. At the end it writes what still waits."""
        folder = self.settings.folder
        log.info("records looks", extra={"deployments": ",".join(self.settings.deployments), "folder": folder})
        try:
            while True:
                await self.sleep(FLUSH_SECONDS)
                await asyncio.to_thread(self.write, self.take())
        finally:
            self.write(self.take())

    def take(self) -> list[str]:
        """What waits to be written. Nothing waits afterwards."""
        if self.lost:
            log.warning("looks are not in the recording", extra={"looks": self.lost})
        waiting, self._waiting, self._size, self.lost = self._waiting, [], 0, 0
        return waiting

    def write(self, lines: list[str]) -> None:
        """Append the lines to the present file, and remove the oldest files if all are too large together."""
        if not lines:
            return
        try:
            # At the end of the process, a thread may still write.
            with self._lock:
                self._append("\n".join([*lines, ""]).encode())
        except OSError as error:
            log.warning("a recording cannot be written", extra={"looks": len(lines), "error": str(error)})

    def _append(self, content: bytes) -> None:
        folder, limit = Path(self.settings.folder), self.settings.mebibytes * 1024 * 1024
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._run}-{self._part:06}{SUFFIX}"
        _add(path, gzip.compress(content))
        if path.stat().st_size > limit / PARTS:
            self._part += 1
        files = sorted(folder.glob(f"*{SUFFIX}"))
        sizes = [one.stat().st_size for one in files]
        while len(files) > 1 and sum(sizes) > limit:
            files.pop(0).unlink()
            sizes.pop(0)


def _add(path: Path, content: bytes) -> None:
    """Append all of the content or nothing: half a gzip member would make what follows it unreadable."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")
