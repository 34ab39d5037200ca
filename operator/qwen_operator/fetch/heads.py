"""Makes a folder that looks like a checkpoint to its inspection, from a hub and without the weights.

It loads the small files and the head of each file of weights, which names the tensors, or that of a GGUF file. The
rest of these files are holes: they have their size, and take no room. So one reader,
`qwen_runtime.inspect_checkpoint`, judges the files of claims and of hubs alike.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qwen_operator.api.conditions import Reason
from qwen_operator.fetch.faults import FetchError, full
from qwen_operator.fetch.files import WEIGHTS, Listing, RemoteFile, chosen
from qwen_operator.fetch.listing import read_listing, with_sizes
from qwen_operator.fetch.wire import Busy, Client, Cut, Expired, RemoteModel
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG
from qwen_runtime.checkpoints.chat import chat_files
from qwen_runtime.checkpoints.config import CONFIG_FILE
from qwen_runtime.checkpoints.gguf import CutOffError, is_gguf, read_header
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import INDEX, examine
from qwen_runtime.safetensors import LARGEST_HEADER

LARGEST_FILE = 100_000_000
MOST_BYTES = 512 << 20
"""In all files. They are on the disk of a node, which other pods use too. A model of 150,000 tensors needs 40 MB."""
GGUF_BEGINNINGS = (8 << 20, 32 << 20)
"""So many bytes of a GGUF file are read, one after the other, until its header is among them."""
_FIRST_BYTES = 256 << 10
_ATTEMPTS = 5
_T = TypeVar("_T")


@dataclass(slots=True)
class Heads:
    """Reads what an inspection needs of a repository at a branch, tag or commit. `connect` makes a client."""

    remote: RemoteModel
    connect: Callable[[RemoteModel], Client]
    sleep: Callable[[float], None] = time.sleep

    def report(self, folder: Path) -> tuple[dict[str, Any], bool]:
        """The report of the inspection with the commit, and whether the facts are complete. Uses the empty folder."""
        try:
            commit = self.fill(folder)
        except FetchError as error:
            return {"version": 1, "error": {"reason": str(error.reason), "message": f"{error}."}}, False
        report, complete = examine(folder / self.remote.file, to_join=True)
        return (report | {"commit": commit} if complete else report), complete

    def fill(self, folder: Path) -> str:
        """Write what an inspection needs into the empty folder. Returns the commit. Raises FetchError."""
        listing = self._patient(lambda: read_listing(self.connect(self.remote)))
        self.remote = self.remote.at(listing.commit)
        try:
            self._fill(folder, listing)
        except OSError as error:
            message = f"the files of {self.remote} cannot be written for the inspection: {error.strerror}"
            raise FetchError(full(error) or Reason.INVALID_CONFIG, message) from None
        return listing.commit

    def _fill(self, folder: Path, listing: Listing) -> None:
        client, room = self.connect(self.remote), MOST_BYTES
        listed = chosen(listing.files, self.remote.file)
        files = self._patient(lambda: with_sizes(client, listed))
        read = {CONFIG_FILE, INDEX, ADAPTER_CONFIG, *chat_files(file.path for file in files)}
        try:
            for file in files:
                path = folder / file.path
                path.parent.mkdir(exist_ok=True, parents=True)
                # Of others, such as tokenizers, the inspection asks only whether they are there.
                wanted = file.path.endswith(WEIGHTS) or is_gguf(file.path) or file.path in read
                content = self._patient(partial(self._head, client, file)) if wanted else b""
                room -= len(content)
                if room < 0:
                    message = f"config.json and the heads of the weights have more than {MOST_BYTES} bytes"
                    raise FetchError(Reason.INVALID_CONFIG, message)
                path.write_bytes(content)
                os.truncate(path, file.size)
        finally:
            client.close()

    def _head(self, client: Client, file: RemoteFile) -> bytes:
        """The bytes of a file that an inspection reads."""
        url = self.remote.file_url(file.path)
        if is_gguf(file.path):
            return self._gguf_head(client, url, file)
        if not file.path.endswith(WEIGHTS):
            return client.read_all(url, file.path, LARGEST_FILE) if file.size <= LARGEST_FILE else b""
        first = self._range(client, url, file, _FIRST_BYTES)
        length = 8 + int.from_bytes(first[:8], "little")
        if length <= len(first) or length > LARGEST_HEADER:
            return first[:length]
        return self._range(client, url, file, length)

    def _gguf_head(self, client: Client, url: str, file: RemoteFile) -> bytes:
        """The header of a GGUF file, which does not say how long it is: that of a first part has the vocabulary."""
        first = b""
        for count in (_FIRST_BYTES, *GGUF_BEGINNINGS):
            first = self._range(client, url, file, count)
            if len(first) == file.size or _has_header(first):
                return first
        raise FetchError(Reason.INVALID_CONFIG, f"the header of {file.path} has more than {len(first)} bytes")

    def _range(self, client: Client, url: str, file: RemoteFile, count: int) -> bytes:
        """The first `count` bytes of a file, or all of it."""
        end = min(count, file.size)
        if not end:
            return b""
        answer = client.get(url, file.path, 0, end - 1)
        content = client.read(answer, end)
        if answer.status == 200 and end < file.size:
            client.close()
        return content

    def _patient(self, read: Callable[[], _T]) -> _T:
        """What `read` gives, after a few attempts if the hub is busy. Raises FetchError."""
        for attempt in range(_ATTEMPTS):
            try:
                return read()
            except (Busy, Cut, Expired) as trouble:
                cause, asked = str(trouble), trouble.seconds if isinstance(trouble, Busy) else 0.0
            self.sleep(max(asked, float(2**attempt)))
        message = f"{self.remote.base} cannot be reached ({cause}): check the network and {self.remote.address_field}"
        raise FetchError(Reason.HUB_UNREACHABLE, message)


def _has_header(beginning: bytes) -> bool:
    """Whether the beginning of a GGUF file is long enough to judge its header."""
    try:
        read_header(io.BytesIO(beginning).read, "it")
    except CutOffError:
        return False
    except InvalidFactsError:
        return True
    return True
