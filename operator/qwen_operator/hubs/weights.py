"""How many bytes the weights of a repository have, from the list of files and the index of the weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import InvalidFactsError
from qwen_operator.checkpoints.hubs import (
    HubError,
    HubReason,
)
from qwen_operator.hubs.decoding import DECODING
from qwen_operator.hubs.listing import Listing
from qwen_operator.hubs.repository import Repository, stream
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.checkpoints.reading import MOST_MEMBERS, Fields, kind, parse_json, shown
from qwen_runtime.json_parts import Parts, TooLargeError

INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 32 << 20
MOST_FILES = 10_000
"""Files of weights that an index may name. The largest known model has 200."""
_LARGEST_ENTRY = 64 << 10
_LARGEST_REST = 1 << 20
_ENTRIES_AT_ONCE = 4096
_BATCH = 64 << 10


@dataclass(slots=True)
class Stored:
    """What the index or the list of files says of the weights.

    `size`: bytes. `heads`: whether there is an output head. `drafts`: whether there are layers for multi-token
    prediction.
    """

    size: int = 0
    heads: bool = False
    drafts: bool = False
    files: set[str] = field(default_factory=set)
    tensors: int = 0

    def add(self, weight_map: Mapping[str, Any], index: Fields) -> None:
        """Count entries of the index. Raises InvalidFactsError."""
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise index.refuse("weight_map", "an object of tensor names and files")
        self.tensors += len(weight_map)
        self.heads = self.heads or any(name.endswith("lm_head.weight") for name in weight_map)
        self.drafts = self.drafts or any(name.startswith("mtp.") for name in weight_map)
        self.files.update(weight_map.values())
        if self.tensors > MOST_MEMBERS or len(self.files) > MOST_FILES:
            counted = f"{MOST_MEMBERS} tensors" if self.tensors > MOST_MEMBERS else f"{MOST_FILES} files"
            raise HubError(HubReason.TOO_LARGE, f"{INDEX} has more than {counted}")


def resident_bytes(config: Mapping[str, Any], weights: Stored) -> int:
    """How many of the stored bytes an engine keeps in memory: an upper limit, from names and shapes of the tensors.

    A tied checkpoint may store the embedding again as lm_head. An engine loads it once. An engine loads a layer for
    multi-token prediction only for speculative decoding. Its size is known only if the weights are not quantized.
    """
    stored = weights.size
    facts = from_config(config, weight_bytes=stored)
    copy = 2 * facts.vocab * facts.hidden
    if facts.tied and weights.heads and copy < stored:
        stored -= copy
    if facts.quantization is None and weights.drafts:
        stored = min(stored, from_config(config).weight_bytes)
    return stored


async def weights_of(repository: Repository, listing: Listing) -> Stored:
    """The weight files, and what their tensors' names say if there is an index."""
    if INDEX not in listing.sizes:
        files = [path for path in listing.sizes if path.endswith(".safetensors") and "/" not in path]
        if not files:
            raise InvalidFactsError("there are no *.safetensors files; convert the weights to safetensors")
        return Stored(_total(listing, files))
    index, stored = await _read_index(repository, repository.file_url(listing.commit, INDEX))
    shards = sorted(stored.files)
    missing = next((file for file in shards if file not in listing.sizes), None)
    if missing is not None:
        raise InvalidFactsError(
            f"{INDEX} names {shown(missing)}, which is not in the repository",
            f"{INDEX} names {kind(missing)}, which is not in the repository",
        )
    if index.has("metadata") and any(listing.sizes[file] is None for file in shards):
        stored.size = index.nested("metadata").whole("total_size", MAX_BYTES)
    else:
        stored.size = _total(listing, shards)
    return stored


async def _read_index(repository: Repository, url: str) -> tuple[Fields, Stored]:
    """The index without its entries, and what the entries say. It never stands in memory as a whole."""
    parts, stored = Parts("weight_map", _LARGEST_ENTRY, _LARGEST_REST), Stored()
    entries: list[bytes] = []
    try:
        async for piece in _batches(stream(repository, url, LARGEST_INDEX, INDEX)):
            entries += await asyncio.to_thread(parts.feed, piece)
            if parts.dropped:
                raise HubError(HubReason.TOO_LARGE, f"an entry of {INDEX} has more than {_LARGEST_ENTRY} bytes")
            if len(entries) >= _ENTRIES_AT_ONCE:
                await asyncio.to_thread(_add_entries, entries, parts.of_object, stored)
                entries = []
    except TooLargeError as error:
        raise HubError(HubReason.TOO_LARGE, f"{INDEX} is too large: {error}") from None
    await asyncio.to_thread(_add_entries, entries, parts.of_object, stored)
    index = Fields(await asyncio.to_thread(parse_json, parts.end(), INDEX, LARGEST_INDEX))
    # A short index may be in the rest as a whole.
    stored.add(index.nested("weight_map").values, index)
    if not stored.files:
        raise index.refuse("weight_map", "an object of tensor names and files")
    return index, stored


async def _batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least _BATCH, because the work for a piece grows with what came before."""
    waiting, size = list[bytes](), 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _add_entries(entries: list[bytes], of_object: bool, stored: Stored) -> None:
    """Count entries. Those of a list are none: the rest then shows that weight_map is no object."""
    if not of_object:
        return
    with DECODING:
        weight_map = parse_json(b"{%b}" % b",".join(entries), INDEX, LARGEST_INDEX)
        stored.add(weight_map, Fields({"weight_map": weight_map}))


def _total(listing: Listing, files: list[str]) -> int:
    """The sum of the files' sizes. It is a few KiB per file too large, because each file has a header."""
    total = 0
    for file in files:
        size = listing.sizes[file]
        if size is None:
            raise InvalidFactsError(
                f"the hub does not say how large {shown(file)} is", f"the hub does not say how large {kind(file)} is"
            )
        total += size
    return total
