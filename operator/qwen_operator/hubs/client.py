"""Reads the facts of a public repository on a model hub, without downloading its weights.

It needs three small answers: the list of files with their sizes and the commit, config.json, and the index of the
weights. It decodes one answer at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import HUB, Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import (
    Hub,
    HubCheckpoint,
    HubQuery,
)
from qwen_operator.hubs.decoding import DECODING
from qwen_operator.hubs.gguf import read_gguf
from qwen_operator.hubs.listing import Listing, list_files
from qwen_operator.hubs.repository import Repository, connect, get
from qwen_operator.hubs.weights import Stored, resident_bytes, weights_of
from qwen_runtime.checkpoints.chat import (
    LARGEST_CHAT_FILE,
    ChatFormat,
    chat_files,
    read_chat,
)
from qwen_runtime.checkpoints.config import CONFIG_FILE, LARGEST_CONFIG
from qwen_runtime.checkpoints.gguf import is_gguf
from qwen_runtime.checkpoints.methods import check_beside
from qwen_runtime.checkpoints.reading import parse_json


async def fetch(
    repository: str, revision: str = "", hub: Hub = Hub.HUGGING_FACE, hub_url: str = "", timeout: float = 30.0
) -> HubCheckpoint:
    """The facts of `repository` (ORG/NAME) at `revision` (a branch, tag or commit; "" = the hub's main branch).

    `hub_url` is the address of a mirror, "" for the hub itself. `timeout` is in seconds and covers the whole reading.
    Raises HubError, also for an invalid config.json.
    """
    async with connect(HubQuery(hub, repository, revision), hub_url, timeout) as (connected, named_revision):
        return await _read(connected, named_revision)


async def fetch_file(query: HubQuery, hub_url: str = "", timeout: float = 30.0) -> HubCheckpoint:
    """The facts of one GGUF file of a repository, from its header. Like `fetch`."""
    async with connect(query, hub_url, timeout) as (connected, named_revision):
        return await read_gguf(connected, named_revision, query.file)


async def _read(repository: Repository, revision: str) -> HubCheckpoint:
    listing = await list_files(repository, revision)
    if CONFIG_FILE not in listing.sizes:
        gguf = any(is_gguf(path) for path in listing.sizes)
        content = "GGUF files: set spec.source.file to one of them" if gguf else "no readable model"
        raise InvalidFactsError(f"there is no {CONFIG_FILE}; the repository contains {content}")
    raw = await get(repository, repository.file_url(listing.commit, CONFIG_FILE), LARGEST_CONFIG, CONFIG_FILE)
    # Decoding a file near the limit takes a second, which would block everything else on the event loop.
    await asyncio.to_thread(_config, raw, listing)
    stored = await weights_of(repository, listing)
    facts = await asyncio.to_thread(_facts, raw, stored)
    chat = await _chat(repository, listing)
    return HubCheckpoint(replace(facts, digest=hashlib.sha256(raw).hexdigest(), chat=chat), listing.commit)


async def _chat(repository: Repository, listing: Listing) -> ChatFormat:
    """How the model answers, from a few small files. The tags of the hub count only if no file says more."""
    files = {
        name: await get(repository, repository.file_url(listing.commit, name), LARGEST_CHAT_FILE, name)
        for name in chat_files(listing.sizes)
    }
    return await asyncio.to_thread(_read_chat, files, listing)


def _read_chat(files: Mapping[str, bytes], listing: Listing) -> ChatFormat:
    with DECODING:
        return read_chat(files, tuple(listing.sizes), listing.tagged)


def _config(raw: bytes, listing: Listing) -> None:
    """Raise InvalidFactsError if this is no config.json, or not all that describes the weights.

    Its content must not wait in memory for the next answer.
    """
    with DECODING:
        check_beside(parse_json(raw, CONFIG_FILE, LARGEST_CONFIG), listing.sizes)


def _facts(raw: bytes, stored: Stored) -> Checkpoint:
    with DECODING:
        config = parse_json(raw, CONFIG_FILE, LARGEST_CONFIG)
        return from_config(config, weight_bytes=resident_bytes(config, stored), source=HUB)
