"""The list of files of a repository: sizes, commit and tags."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_operator.checkpoints.hubs import (
    Hub,
)
from qwen_operator.hubs.decoding import DECODING
from qwen_operator.hubs.repository import Repository, get
from qwen_runtime.checkpoints.chat import (
    Task,
)
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.checkpoints.reading import Fields, parse_json

LARGEST_LISTING = 8 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files at a commit. `tagged`: what the tags of the hub say about the answers of the model."""

    commit: str
    sizes: Mapping[str, int | None]  # bytes by path; None if the hub does not say
    tagged: Task = Task.GENERATE


async def list_files(repository: Repository, revision: str) -> Listing:
    """The files at a revision. Raises HubError and InvalidFactsError."""
    content = f"the list of files of {repository.name}"
    raw = await get(repository, repository.listing_url(revision), LARGEST_LISTING, content)
    return await asyncio.to_thread(_read_listing, raw, content, repository.hub, revision)


def _read_listing(raw: bytes, content: str, hub: Hub, revision: str) -> Listing:
    with DECODING:
        answer = Fields(parse_json(raw, content, LARGEST_LISTING))
        if hub is Hub.MODELSCOPE:
            return _modelscope_listing(answer, revision)
        return Listing(_commit(answer, "sha"), _sizes(answer, "siblings", ("rfilename", "size")), _tagged(answer))


def _tagged(answer: Fields) -> Task:
    """What the hub's tags say about the answers. Some chat models carry one such tag, so it takes two."""
    pipeline, tags = answer.values.get("pipeline_tag"), answer.values.get("tags")
    if pipeline == "text-ranking":
        return Task.RERANK
    pools = pipeline in ("feature-extraction", "sentence-similarity")
    sentences = isinstance(tags, list) and "sentence-transformers" in tags
    return Task.EMBED if pools and sentences else Task.GENERATE


def _modelscope_listing(answer: Fields, revision: str) -> Listing:
    """ModelScope names the commit that last changed each file. The newest of these is the revision's commit."""
    data = answer.nested("Data")
    sizes = _sizes(data, "Files", ("Path", "Size"))
    if _COMMIT.fullmatch(revision):
        return Listing(revision, sizes)
    dated = [file for file in data.values["Files"] if isinstance(file.get("CommittedDate"), int)]
    if not dated:
        raise data.refuse("Files", "a list of files with CommittedDate and Revision")
    newest = max(dated, key=lambda file: int(file["CommittedDate"]))
    return Listing(_commit(Fields(newest, "Data.Files."), "Revision"), sizes)


def _commit(fields: Fields, name: str) -> str:
    value = fields.values.get(name)
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise fields.refuse(name, "a commit of 40 hexadecimal digits")
    return value


def _sizes(fields: Fields, name: str, keys: tuple[str, str]) -> dict[str, int | None]:
    files = fields.values.get(name)
    if not isinstance(files, list) or not all(isinstance(file, Mapping) for file in files):
        raise fields.refuse(name, "a list of files")
    sizes: dict[str, int | None] = {}
    for file in files:
        path, size = file.get(keys[0]), file.get(keys[1])
        if isinstance(path, str) and file.get("Type") != "tree":
            valid = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_BYTES
            sizes[path] = size if valid else None
    return sizes
