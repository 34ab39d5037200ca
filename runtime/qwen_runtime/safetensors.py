"""Headers of safetensors files: the content that a shard declares, compared with the size of the file.

Format: 8 bytes with the length of the header (little-endian), then the header, then the data without gaps. The header
is JSON: `{name: {dtype, shape, data_offsets: [a, b]}}`, with offsets from the end of the header. Only it is read, and
tensor by tensor: as Python objects a header of 100 MB would need more than a gigabyte.
"""

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints.reading import shown
from qwen_runtime.faults import Fault, parsed
from qwen_runtime.json_parts import Parts, TooLargeError
from qwen_runtime.reasons import ReportReason

LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
MOST_TENSORS = 400_000
"""In all files of a checkpoint. The largest known model has 150,000."""
MOST_NAME_CHARACTERS = 64 << 20
"""The sum of the lengths of all tensors' names, so that a checkpoint needs at most about 300 MB."""
_LARGEST_MEMBER = 4 << 20
"""Bytes of one member of a header. `__metadata__` may hold any texts."""
_CHUNK = 1 << 20
_LARGEST_FILE = 2**63 - 1
_LFS_POINTER = re.compile(rb"version https://git-lfs[^\n]*\n(?:[^\n]*\n)*?size (\d{1,18})\n")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its safetensors dtype (`BF16`, `I32`, ...) and its size in bytes."""

    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: its tensors by name."""

    tensors: Mapping[str, Tensor]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


@dataclass(slots=True)
class Room:
    """How many more tensors, and characters of their names, the files of a checkpoint may have."""

    tensors: int = MOST_TENSORS
    characters: int = MOST_NAME_CHARACTERS

    def take(self, tensor: str, file: str) -> None:
        """Count a tensor. Raises Fault with InvalidConfig."""
        self.tensors -= 1
        self.characters -= len(tensor)
        if self.tensors < 0:
            raise _too_large(file, f"its checkpoint has more than {MOST_TENSORS} tensors")
        if self.characters < 0:
            raise _too_large(file, f"its checkpoint's tensor names have more than {MOST_NAME_CHARACTERS} characters")


def owner_and_mode(path: Path) -> str:
    """Mode and owner of a file for a message. The rights of a folder above it may hide even those."""
    try:
        status = path.stat()
    except OSError:
        return "its mode cannot be read either"
    return f"its mode is {stat.S_IMODE(status.st_mode):04o} and its owner is uid {status.st_uid}"


@contextmanager
def opened(path: Path, name: str) -> Iterator[int]:
    """A read-only descriptor of a regular file. Links are followed.

    Raises Fault with ModelNotFound if the file is missing, UnreadableWeights if this uid has no right to open it, and
    InvalidConfig if it is no regular file. It opens without blocking, because a FIFO would block forever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        target = f"; it is a link to {path.readlink()}, which does not exist" if path.is_symlink() else ""
        raise Fault(ReportReason.MODEL_NOT_FOUND, f"{name} is missing from {path.parent}{target}.", name) from None
    except PermissionError:
        message = (
            f"{name} cannot be opened by uid {os.geteuid()}: {owner_and_mode(path)}; "
            "run chmod a+r on it, and chmod a+rx on the folders above it."
        )
        raise Fault(ReportReason.UNREADABLE_WEIGHTS, message, name) from None
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise Fault(ReportReason.UNREADABLE_WEIGHTS, f"{name} cannot be opened: {detail}.", name) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Fault(ReportReason.INVALID_CONFIG, f"{name} must be a regular file or a link to one.", name)
        yield descriptor
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, count: int, name: str) -> bytes:
    """`count` bytes from the current position, or fewer if the file ends."""
    parts: list[bytes] = []
    while count > 0:
        try:
            part = os.read(descriptor, min(count, 1 << 20))
        except OSError as error:
            raise Fault(ReportReason.UNREADABLE_WEIGHTS, f"{name} cannot be read: {error.strerror}.", name) from None
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def pieces(descriptor: int, count: int, name: str) -> Iterator[bytes]:
    """The next `count` bytes in pieces, or fewer if the file ends."""
    while count > 0 and (piece := read_exactly(descriptor, min(count, _CHUNK), name)):
        yield piece
        count -= len(piece)


def read_shard(path: Path, name: str, room: Room | None = None) -> Shard:
    """Check one shard against its own header, and return its tensors. Raises Fault.

    `room` counts over all files of a checkpoint.
    """
    with opened(path, name) as descriptor:
        size = os.fstat(descriptor).st_size
        length_field = read_exactly(descriptor, 8, name)
        refuse_lfs_pointer(length_field, descriptor, size, name)
        if size < 8:
            raise truncated(name, 8, size)
        length = int.from_bytes(length_field, "little")
        if not 2 <= length <= LARGEST_HEADER:
            message = (
                f"{name} is not a safetensors file: its header length is {length}; 2 to {LARGEST_HEADER} is right."
            )
            raise Fault(ReportReason.INVALID_CONFIG, message, name)
        if 8 + length > size:
            raise truncated(name, 8 + length, size)
        shard = parse_header(_counted(descriptor, length, name), name, room or Room())
    if 8 + length + shard.data_bytes != size:
        raise truncated(name, 8 + length + shard.data_bytes, size)
    return shard


def truncated(name: str, bytes_wanted: int, bytes_found: int) -> Fault:
    """The fault for a file that is shorter or longer than its header says."""
    state = "is cut short" if bytes_found < bytes_wanted else "is longer than its own header says"
    message = (
        f"{name} {state}: {bytes_wanted} bytes wanted, {bytes_found} bytes found; copy or download this file again."
    )
    return Fault(ReportReason.TRUNCATED_WEIGHTS, message, name, bytes_wanted, bytes_found)


def refuse_lfs_pointer(start: bytes, descriptor: int, size: int, name: str) -> None:
    if start != b"version " or size > 1024:
        return
    match = _LFS_POINTER.match(start + read_exactly(descriptor, size, name))
    if match:
        message = f"{name} is a git-lfs pointer of {size} bytes, not the weights; run git lfs pull."
        raise Fault(ReportReason.TRUNCATED_WEIGHTS, message, name, int(match.group(1)), size)


def _counted(descriptor: int, length: int, name: str) -> Iterator[bytes]:
    """The header in pieces. Raises Fault if the file ends within it."""
    count = 0
    for piece in pieces(descriptor, length, name):
        count += len(piece)
        yield piece
    if count < length:
        raise truncated(name, 8 + length, 8 + count)


def parse_header(header: Iterable[bytes], name: str, room: Room) -> Shard:
    """The tensors of a header. Raises Fault with InvalidConfig if it is malformed, or ranges overlap or have gaps."""
    entries: dict[str, tuple[int, int, str]] = {}
    parts = Parts(None, _LARGEST_MEMBER, _LARGEST_MEMBER)
    try:
        for piece in header:
            _read_members(parts.feed(piece), name, entries, room)
            if parts.dropped:
                raise _too_large(name, f"one of its members has more than {_LARGEST_MEMBER} bytes")
    except TooLargeError as error:
        raise _too_large(name, str(error)) from None
    parsed(parts.end(), f"the header of {name}", LARGEST_HEADER)
    position = 0
    for start, end, _ in sorted(entries.values()):
        if start != position:
            raise _malformed(name, f"its tensors' data_offsets overlap or leave a gap at byte {position}")
        position = end
    return Shard({tensor: Tensor(dtype, end - start) for tensor, (start, end, dtype) in entries.items()})


def _read_members(parts: list[bytes], name: str, entries: dict[str, tuple[int, int, str]], room: Room) -> None:
    """Add the tensors of these members. Of two equal names the last one counts."""
    for tensor, entry in parsed(b"{%b}" % b",".join(parts), f"the header of {name}", LARGEST_HEADER).items():
        if tensor != "__metadata__":
            room.take(tensor, name)
            start, end, dtype = _entry(entry, tensor, name)
            entries[tensor] = (start, end, sys.intern(dtype))


def _entry(entry: Any, tensor: str, name: str) -> tuple[int, int, str]:
    match entry:
        case {"dtype": str(dtype), "data_offsets": [int(start), int(end)]}:
            booleans = isinstance(start, bool) or isinstance(end, bool)
            if not booleans and 0 <= start <= end <= _LARGEST_FILE:
                return start, end, dtype
    detail = f"tensor {shown(tensor)} must have a dtype and data_offsets of two whole numbers in order"
    raise _malformed(name, detail)


def _too_large(name: str, detail: str) -> Fault:
    return Fault(ReportReason.INVALID_CONFIG, f"The header of {name} is too large: {detail}.", name)


def _malformed(name: str, detail: str) -> Fault:
    return Fault(ReportReason.INVALID_CONFIG, f"The header of {name} is malformed: {detail}.", name)
