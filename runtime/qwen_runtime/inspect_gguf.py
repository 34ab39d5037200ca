"""Reads the facts of a GGUF file: its header, and the small files beside it that engines prefer to it."""

import os
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints import gguf, gguf_model
from qwen_runtime.checkpoints.chat import LARGEST_CHAT_FILE, ChatFormat, chat_files, chat_format, read_chat
from qwen_runtime.checkpoints.config import CONFIG_FILE, LARGEST_CONFIG
from qwen_runtime.checkpoints.gguf import CutOffError, Header
from qwen_runtime.checkpoints.gguf_parts import join, joined_name, parts_of
from qwen_runtime.checkpoints.reading import InvalidFactsError, UnknownArchitectureError
from qwen_runtime.faults import Fault, parsed
from qwen_runtime.reasons import ReportReason
from qwen_runtime.safetensors import opened, owner_and_mode, read_exactly, refuse_lfs_pointer

TOKENIZER_CONFIG = "tokenizer_config.json"
"""Beside a GGUF file, it makes engines take the tokenizer from the folder and not from the file."""


def inspect_gguf(path: Path, *, to_join: bool = False) -> dict[str, Any]:
    """The success report on a GGUF file. Raises Fault with the first problem.

    Of a split file, `path` is the first part, and all parts are read. Only if somebody is `to_join` them is it a
    success: an engine opens one file.
    """
    name, folder = path.name, path.parent
    parts = parts_of(name)
    try:
        header = join([_header(folder / part) for part in parts], parts)
        if not header.tensors:
            raise Fault(ReportReason.MODEL_NOT_FOUND, f"{name} holds no tensors.", name)
        beside = _beside(folder)
        config = parsed(_content(folder, CONFIG_FILE), CONFIG_FILE, LARGEST_CONFIG) if CONFIG_FILE in beside else None
        report = gguf_model.report(header, name, config)
        chat = _chat(header, path, beside).to_record()
        if len(parts) > 1 and not to_join:
            raise Fault(ReportReason.INVALID_CONFIG, _must_be_joined(name, len(parts)), name)
        return report | {"files": len(parts), "tokenizer": True, "chat": chat}
    except UnknownArchitectureError as error:
        raise Fault(ReportReason.UNKNOWN_ARCHITECTURE, f"{error}.", name) from None
    except InvalidFactsError as error:
        raise Fault(ReportReason.INVALID_CONFIG, f"{error}.", name) from None


def _header(path: Path) -> Header:
    name = path.name
    with opened(path, name) as descriptor:
        size = os.fstat(descriptor).st_size
        refuse_lfs_pointer(read_exactly(descriptor, 8, name), descriptor, size, name)
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            header = gguf.read_header(lambda count: read_exactly(descriptor, count, name), name)
        except CutOffError as error:
            raise _truncated(name, error.wanted, size, str(error)) from None
    if header.end > size:
        what = f"{name} is cut off: its tensor {header.last} ends at byte {header.end}"
        raise _truncated(name, header.end, size, what)
    return header


def _must_be_joined(name: str, parts: int) -> str:
    return (
        f"{name} is one of {parts} parts of a split file, and SGLang opens only one file: join them with "
        f"llama-gguf-split --merge {name} {joined_name(name)}, and set spec.source.file to the new file. From a hub "
        "with the chart's cache, or from a bucket, the parts are joined when they have arrived."
    )


def _truncated(name: str, wanted: int, found: int, what: str) -> Fault:
    message = f"{what}, and the file has {found} bytes; copy or download it again."
    return Fault(ReportReason.TRUNCATED_WEIGHTS, message, name, wanted, found)


def _beside(folder: Path) -> frozenset[str]:
    """The files of the folder that engines read instead of the header's entries."""
    names = (CONFIG_FILE, TOKENIZER_CONFIG, "chat_template.jinja", "chat_template.json")
    try:
        return frozenset(name for name in names if (folder / name).is_file())
    except PermissionError:
        message = f"{folder} cannot be searched by uid {os.geteuid()}: {owner_and_mode(folder)}; run chmod a+rx on it."
        raise Fault(ReportReason.UNREADABLE_WEIGHTS, message) from None


def _content(folder: Path, name: str) -> bytes:
    with opened(folder / name, name) as descriptor:
        return read_exactly(descriptor, LARGEST_CONFIG + 1, name)


def _chat(header: Header, path: Path, beside: frozenset[str]) -> ChatFormat:
    if TOKENIZER_CONFIG in beside:
        files = {name: _content(path.parent, name) for name in chat_files(beside)}
        return read_chat({name: data[: LARGEST_CHAT_FILE + 1] for name, data in files.items()}, beside)
    if not gguf_model.has_tokenizer(header):
        message = f"{path.name} holds no tokenizer (tokenizer.ggml.tokens); convert the model again with it."
        raise Fault(ReportReason.TOKENIZER_MISSING, message, path.name)
    return chat_format(gguf_model.template(header))
