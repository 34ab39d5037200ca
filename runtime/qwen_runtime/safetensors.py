"""Headers of safetensors files: the content that a shard declares, compared with the size of the file.

Format: 8 bytes with the length of the header (little-endian), then the header, then the data without gaps. The header
is JSON: `{name: {dtype, shape, data_offsets: [a, b]}}`, with offsets from the end of the header. Only it is read.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints.reading import shown
from qwen_runtime.faults import Fault, parsed
from qwen_runtime.reasons import ReportReason

LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
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


def read_shard(path: Path, name: str) -> Shard:
    """Check one shard against its own header, and return its tensors. Raises Fault."""
    with opened(path, name) as descriptor:
        size = os.fstat(descriptor).st_size
        length_field = read_exactly(descriptor, 8, name)
        _refuse_lfs_pointer(length_field, descriptor, size, name)
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
        header = read_exactly(descriptor, length, name)
    if len(header) < length:
        raise truncated(name, 8 + length, 8 + len(header))
    shard = parse_header(header, name)
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


def _refuse_lfs_pointer(start: bytes, descriptor: int, size: int, name: str) -> None:
    if start != b"version " or size > 1024:
        return
    match = _LFS_POINTER.match(start + read_exactly(descriptor, size, name))
    if match:
        message = f"{name} is a git-lfs pointer of {size} bytes, not the weights; run git lfs pull."
        raise Fault(ReportReason.TRUNCATED_WEIGHTS, message, name, int(match.group(1)), size)


def parse_header(header: bytes, name: str) -> Shard:
    """The tensors of a header. Raises Fault with InvalidConfig if it is malformed, or ranges overlap or have gaps."""
    entries = parsed(header, f"the header of {name}", LARGEST_HEADER)
    entries.pop("__metadata__", None)
    ranges: list[tuple[int, int]] = []
    tensors: dict[str, Tensor] = {}
    for tensor, entry in entries.items():
        start, end, dtype = _entry(entry, tensor, name)
        ranges.append((start, end))
        tensors[tensor] = Tensor(dtype, end - start)
    position = 0
    for start, end in sorted(ranges):
        if start != position:
            raise _malformed(name, f"its tensors' data_offsets overlap or leave a gap at byte {position}")
        position = end
    return Shard(tensors)


def _entry(entry: Any, tensor: str, name: str) -> tuple[int, int, str]:
    match entry:
        case {"dtype": str(dtype), "data_offsets": [int(start), int(end)]}:
            booleans = isinstance(start, bool) or isinstance(end, bool)
            if not booleans and 0 <= start <= end <= _LARGEST_FILE:
                return start, end, dtype
    detail = f"tensor {shown(tensor)} must have a dtype and data_offsets of two whole numbers in order"
    raise _malformed(name, detail)


def _malformed(name: str, detail: str) -> Fault:
    return Fault(ReportReason.INVALID_CONFIG, f"The header of {name} is malformed: {detail}.", name)
