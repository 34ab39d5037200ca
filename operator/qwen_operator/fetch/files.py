"""Which files of a repository an engine needs, from the list that a hub gives. Pure: no I/O.

Weights that a repository has twice, such as *.bin beside *.safetensors, are left out, and so are pictures and the files
for other programs. Every file comes with a checksum: the sha256 of large files, or git's own sha1 of small ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch import checksums
from qwen_operator.fetch.faults import FetchError
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qwen_runtime.checkpoints.gguf_parts import parts_of
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.checkpoints.reading import shown

MOST_FILES = 10_000
WEIGHTS = ".safetensors"
_SMALL = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
# What these folders hold is for other programs.
_FOREIGN = re.compile(r"(original|onnx|openvino|coreml|tf|flax|runs|figures|assets|examples)/", re.ASCII)
# sentence-transformers keeps the weights of its modules in folders such as 2_Dense.
_MODULE = re.compile(r"\d{1,2}_[A-Za-z]{1,32}/[^/]+", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_][\w.+ -]{0,199}", re.ASCII)
_HEXADECIMAL = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
# Of the files that nobody named: what lies deeper is for other programs.
_DEEPEST = 4
_MOST_FOLDERS = 128


class Digest(Protocol):
    """A checksum in the making, as in hashlib. `hexdigest` has the form of `RemoteFile.checksum`."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its path, its bytes, and its checksum. `size` is -1 if the list does not say.

    `checksum` has 64 hexadecimal digits for sha256, 40 for the sha1 of git's blob, and is "" if the hub gives none.
    Objects in a bucket also have those of `checksums`.
    """

    path: str
    size: int
    checksum: str = ""

    def digest(self) -> Digest | None:
        """A fresh checksum to compare with; None if the hub gives none."""
        if ":" in self.checksum:
            return checksums.digest(self.checksum)
        if len(self.checksum) == 64:
            return hashlib.sha256()
        if len(self.checksum) == 40:
            # Git hashes this head before the content. It protects against no attacker, only against broken copies.
            return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return None

    def to_json(self) -> dict[str, Any]:
        """The entry of a manifest."""
        return {"path": self.path, "size": self.size, "checksum": self.checksum}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RemoteFile:
        """The inverse of `to_json`. Raises TypeError, KeyError or ValueError for a record of another shape."""
        path, size, checksum = record["path"], record["size"], record["checksum"]
        if not isinstance(path, str) or not isinstance(checksum, str) or not is_size(size) or not is_safe(path):
            raise ValueError("not a file of a manifest")
        return cls(path, size, checksum)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at a commit."""

    commit: str
    files: tuple[RemoteFile, ...]


def listed(answer: Mapping[str, Any], hub: Hub) -> list[RemoteFile]:
    """The files in a hub's answer. Raises FetchError if the answer has another form."""
    if hub is Hub.MODELSCOPE:
        data = answer.get("Data")
        entries = data.get("Files") if isinstance(data, Mapping) else None
        read = _modelscope
    else:
        entries, read = answer.get("siblings"), _hugging_face
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise FetchError(Reason.MODEL_NOT_FOUND, f"the answer of {hub} has no list of files")
    files = [file for entry in entries if (file := read(entry)) is not None]
    if len(files) > MOST_FILES:
        raise FetchError(Reason.INVALID_CONFIG, f"the repository has more than {MOST_FILES} files")
    return files


def needed(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files that an engine needs, small ones first. Raises FetchError if there are no weights.

    The small ones come first, so that a wrong repository fails before the weights are loaded.
    """
    present = [file for file in files if is_safe(file.path) and _is_needed(file.path)]
    if not any(file.path.endswith(WEIGHTS) and "/" not in file.path for file in present):
        raise FetchError(Reason.MODEL_NOT_FOUND, f"there are no *{WEIGHTS} files in its top folder")
    return tuple(sorted(present, key=lambda file: (file.path.endswith(WEIGHTS), file.path)))


def chosen(files: Iterable[RemoteFile], file: str) -> tuple[RemoteFile, ...]:
    """The files to load: the GGUF `file` with all its parts, or all that an engine needs if it is "".

    ADAPTER_CONFIG stands for the two files of a LoRA adapter. Raises FetchError if one is missing.
    """
    if file == ADAPTER_CONFIG:
        return _adapter(files)
    return _single(files, file) if file else needed(files)


def _adapter(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    found = {file.path: file for file in files}
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in found:
            raise FetchError(Reason.MODEL_NOT_FOUND, f"there is no {name} in its top folder: save it with PEFT")
    return found[ADAPTER_CONFIG], found[ADAPTER_WEIGHTS]


def _single(files: Iterable[RemoteFile], path: str) -> tuple[RemoteFile, ...]:
    parts = parts_of(path)
    if not all(is_safe(part) for part in parts):
        message = (
            f"spec.source.file is {shown(path)}: the name of the file and of each folder must begin with a letter, "
            "a digit or _, and have at most 200 characters"
        )
        raise FetchError(Reason.INVALID_CONFIG, message)
    found = {file.path: file for file in files if file.path in parts}
    missing = [part for part in parts if part not in found]
    if missing and len(parts) > 1:
        message = f"the source has no file {shown(missing[0])}, one of the {len(parts)} parts of spec.source.file"
        raise FetchError(Reason.MODEL_NOT_FOUND, message)
    if missing:
        raise FetchError(Reason.MODEL_NOT_FOUND, f"the source has no file {shown(path)}: correct spec.source.file")
    return tuple(found[part] for part in parts)


def total(files: Sequence[RemoteFile]) -> int:
    """The bytes of all files."""
    return sum(file.size for file in files)


def is_safe(path: str) -> bool:
    """Whether the path stays in its folder, and is no name that the cache uses itself."""
    parts = path.split("/")
    return len(parts) <= _MOST_FOLDERS and all(_PART.fullmatch(part) and ".." not in part for part in parts)


def _is_needed(path: str) -> bool:
    if _FOREIGN.match(path) or path.count("/") >= _DEEPEST:
        return False
    if path.endswith(WEIGHTS):
        return "/" not in path or _MODULE.fullmatch(path) is not None
    return path.endswith(_SMALL)


def _hugging_face(entry: Mapping[str, Any]) -> RemoteFile | None:
    lfs = entry.get("lfs")
    large = isinstance(lfs, Mapping)
    checksum = lfs.get("sha256") if isinstance(lfs, Mapping) else entry.get("blobId")
    return _file(entry.get("rfilename"), entry.get("size"), checksum, 64 if large else 40)


def _modelscope(entry: Mapping[str, Any]) -> RemoteFile | None:
    if entry.get("Type") == "tree":
        return None
    return _file(entry.get("Path"), entry.get("Size"), entry.get("Sha256"), 64)


def _file(path: Any, size: Any, checksum: Any, digits: int) -> RemoteFile | None:
    if not isinstance(path, str):
        return None
    valid = isinstance(checksum, str) and len(checksum) == digits and _HEXADECIMAL.fullmatch(checksum) is not None
    return RemoteFile(path, size if is_size(size) else -1, checksum if valid else "")


def is_size(size: Any) -> bool:
    """Whether it is a number of bytes that a file may have."""
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_BYTES
