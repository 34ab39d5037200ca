"""Reads the facts of one GGUF file of a repository, from its header."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import replace

from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.facts import HUB, Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import (
    HubCheckpoint,
    HubError,
    HubReason,
)
from qwen_operator.hubs.decoding import DECODING
from qwen_operator.hubs.listing import Listing, list_files
from qwen_operator.hubs.repository import Repository, stream
from qwen_runtime.checkpoints import gguf_model
from qwen_runtime.checkpoints.chat import (
    chat_format,
)
from qwen_runtime.checkpoints.gguf import MOST_TENSORS, CutOffError, Header, is_gguf, read_header
from qwen_runtime.checkpoints.gguf_parts import ABOUT_SPLIT, join, parts_of

# The header of a Qwen model has about 6 MB.
_BEGINNINGS = (8 << 20, 32 << 20)
_BEGINNING_OF_PART = 256 << 10
_SHOWN_FILES = 6
_PLAIN_PATH = re.compile(r"[A-Za-z0-9][\w./+-]{0,127}", re.ASCII)


async def read_gguf(repository: Repository, revision: str, file: str) -> HubCheckpoint:
    """The facts of a file, and of its other parts if it is split. Raises HubError and InvalidFactsError."""
    listing = await list_files(repository, revision)
    parts, headers, tensors = parts_of(file), list[Header](), 0
    if missing := [part for part in parts if part not in listing.sizes]:
        raise _no_file(repository, listing, missing[0])
    for part in parts:
        header = await _gguf_header(repository, listing, part, first=not headers)
        tensors += len(header.tensors)
        if tensors > MOST_TENSORS:
            raise HubError(HubReason.TOO_LARGE, f"{file} and its other parts have more than {MOST_TENSORS} tensors")
        headers.append(header)
    return HubCheckpoint(await asyncio.to_thread(_gguf_facts, headers, parts), listing.commit)


def _no_file(repository: Repository, listing: Listing, file: str) -> HubError:
    others = sorted(path for path in listing.sizes if is_gguf(path) and _PLAIN_PATH.fullmatch(path))
    has = f"its GGUF files are {', '.join(others[:_SHOWN_FILES])}" if others else "it has no GGUF files"
    more = f" and {len(others) - _SHOWN_FILES} more" if len(others) > _SHOWN_FILES else ""
    return HubError(HubReason.NOT_FOUND, f"{repository.name} has no file {file}; {has}{more}")


async def _gguf_header(repository: Repository, listing: Listing, file: str, *, first: bool) -> Header:
    """The header of a file. Later parts of a split one have no vocabulary, and only a few of their entries count."""
    url = repository.file_url(listing.commit, file)
    for most in _BEGINNINGS if first else (_BEGINNING_OF_PART, *_BEGINNINGS):
        beginning = await _beginning(repository, url, most, file)
        header = await asyncio.to_thread(_header_in, beginning, file, listing.sizes[file])
        if header is not None:
            about_split = {name: value for name, value in header.values.items() if name.startswith(ABOUT_SPLIT)}
            return header if first else replace(header, values=about_split, places={})
    raise HubError(HubReason.TOO_LARGE, f"the header of {file} has more than {_BEGINNINGS[-1]} bytes")


def _header_in(beginning: bytes, file: str, size: int | None) -> Header | None:
    """The header in the first bytes of a GGUF file of `size` bytes; None if more of it is needed."""
    name = file.rpartition("/")[2]
    with DECODING:
        try:
            header = read_header(io.BytesIO(beginning).read, name)
        except CutOffError as error:
            if size is not None and size < error.wanted:
                raise InvalidFactsError(f"{error}, and the file has {size} bytes") from None
            return None
        if size is not None and size < header.end:
            raise InvalidFactsError(f"{name} is cut off: it has {size} bytes, its tensors need {header.end}")
        return header


def _gguf_facts(headers: Sequence[Header], parts: Sequence[str]) -> Checkpoint:
    """The facts of a GGUF file, from the headers of its parts."""
    names = [part.rpartition("/")[2] for part in parts]
    with DECODING:
        header = join(headers, names)
        if not gguf_model.has_tokenizer(header):
            raise InvalidFactsError(f"{names[0]} holds no tokenizer, and the engine gets no other file")
        chat = chat_format(gguf_model.template(header)).to_record()
        report = gguf_model.report(header, names[0]) | {"chat": chat}
        return replace(records.from_inspection(report), source=HUB)


async def _beginning(repository: Repository, url: str, most: int, content: str) -> bytes:
    """At most the first `most` bytes of a file."""
    parts, size = list[bytes](), 0
    async for piece in stream(repository, url, most, content, first=most):
        parts.append(piece)
        size += len(piece)
        if size >= most:
            break
    return b"".join(parts)[:most]
