"""The header of a GGUF file: metadata, and the table of tensors with their types, shapes, places and sizes.

Format (versions 2 and 3, little-endian): the magic `GGUF`, the version, the number of tensors and of metadata entries;
then the entries, the table, and from the next multiple of the alignment on the data. Only the header is read. Nothing
in it is trusted: every count and length has a limit, and long lists (the vocabulary) are counted and passed over.
The sizes of the types are those of ggml (`GGML_QUANT_SIZES` of the package gguf 0.19.0).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_runtime.checkpoints.reading import InvalidFactsError, kind, shown

LARGEST_HEADER = 100_000_000
"""The most bytes of a header. That of a Qwen model has about 6 MB, nearly all of it the vocabulary."""
MOST_ENTRIES = 10_000
"""The most metadata entries. Real files have fewer than 100."""
MOST_TENSORS = 100_000
LONGEST_TEXT = 1 << 20
"""The most bytes of a text that is kept. Longer ones count as absent; a chat template has at most 20 000."""
MOST_ITEMS = 2_000_000
"""The most entries of all lists together. A vocabulary of 250 000 tokens has three such lists."""
_LONGEST_KEY = 65_535
_LONGEST_NAME = 128
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_MOST_DIMENSIONS = 4
_LARGEST_DIMENSION = 1 << 40
_LARGEST_ALIGNMENT = 1 << 20
_VERSIONS = (2, 3)
_CHUNK = 1 << 20

MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9

Read = Callable[[int], bytes]
"""Gives the next bytes of a file, at most as many as asked for, and none at its end."""


@dataclass(frozen=True)
class TensorType:
    """How ggml stores values: `block` values in `block_bytes` bytes. `bits` is the number in the type's name."""

    name: str
    block: int
    block_bytes: int
    bits: int

    def size(self, values: int) -> int:
        """The bytes of a number of values, which is a multiple of the block."""
        return values // self.block * self.block_bytes


TYPES: Mapping[int, TensorType] = {
    number: TensorType(*one)
    for number, one in {
        0: ("F32", 1, 4, 32),
        1: ("F16", 1, 2, 16),
        2: ("Q4_0", 32, 18, 4),
        3: ("Q4_1", 32, 20, 4),
        6: ("Q5_0", 32, 22, 5),
        7: ("Q5_1", 32, 24, 5),
        8: ("Q8_0", 32, 34, 8),
        9: ("Q8_1", 32, 40, 8),
        10: ("Q2_K", 256, 84, 2),
        11: ("Q3_K", 256, 110, 3),
        12: ("Q4_K", 256, 144, 4),
        13: ("Q5_K", 256, 176, 5),
        14: ("Q6_K", 256, 210, 6),
        15: ("Q8_K", 256, 292, 8),
        16: ("IQ2_XXS", 256, 66, 2),
        17: ("IQ2_XS", 256, 74, 2),
        18: ("IQ3_XXS", 256, 98, 3),
        19: ("IQ1_S", 256, 50, 1),
        20: ("IQ4_NL", 32, 18, 4),
        21: ("IQ3_S", 256, 110, 3),
        22: ("IQ2_S", 256, 82, 2),
        23: ("IQ4_XS", 256, 136, 4),
        24: ("I8", 1, 1, 8),
        25: ("I16", 1, 2, 16),
        26: ("I32", 1, 4, 32),
        27: ("I64", 1, 8, 64),
        28: ("F64", 1, 8, 64),
        29: ("IQ1_M", 256, 56, 1),
        30: ("BF16", 1, 2, 16),
        34: ("TQ1_0", 256, 54, 1),
        35: ("TQ2_0", 256, 66, 2),
        39: ("MXFP4", 32, 17, 4),
        40: ("NVFP4", 64, 36, 4),
        41: ("Q1_0", 128, 18, 1),
    }.items()
}
"""The types of tensors by their number in a file."""


class CutOffError(InvalidFactsError):
    """The file ends too early. `wanted`: at least how many bytes it needs."""

    def __init__(self, file: str, wanted: int, where: str) -> None:
        super().__init__(f"{file} is cut off in {where}: it needs at least {wanted} bytes")
        self.wanted = wanted


@dataclass(frozen=True)
class Tensor:
    """One tensor. `shape` has the fastest dimension first, as in the file: (inputs, outputs) of a linear layer."""

    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Its bytes."""
        values = 1
        for length in self.shape:
            values *= length
        return self.type.size(values)


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    `values` are the metadata entries that are numbers, flags or texts; `lengths` are the lengths of the lists.
    `data_start` is where the tensors begin, and `end` is how many bytes the file must have. `digest` is the SHA-256 of
    the header. `places` says where the metadata entries are in the file: first byte, and the byte after the last. Every
    tensor begins at a multiple of `alignment`.
    """

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    data_start: int
    digest: str
    places: Mapping[str, tuple[int, int]]
    alignment: int

    @property
    def end(self) -> int:
        """The end of the last tensor: the least number of bytes of the file."""
        return max((self.data_start + tensor.offset + tensor.size for tensor in self.tensors.values()), default=0)

    @property
    def last(self) -> str:
        """The name of the last tensor in the file; "" if there is none."""
        return max(self.tensors, key=lambda name: self.tensors[name].offset, default="")


def is_gguf(name: str) -> bool:
    """Whether a file of this name is one for SGLang, which decides by the name."""
    return name.endswith(".gguf")


def read_header(read: Read, file: str, limit: int = LARGEST_HEADER) -> Header:
    """The header of a file, with at most `limit` bytes. Raises InvalidFactsError, and CutOffError if the file ends."""
    return _Reader(_Cursor(read, file, limit), file).header()


@dataclass
class _Cursor:
    """Reads on through the file, with a buffer, because the vocabulary has several 100 000 small parts."""

    read: Read
    file: str
    limit: int
    buffer: bytes = b""
    at: int = 0
    before: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def position(self) -> int:
        return self.before + self.at

    def take(self, count: int, where: str) -> bytes:
        end = self.at + count
        if end > len(self.buffer):
            self._fill(count, where)
            end = count
        taken = self.buffer[self.at : end]
        self.at = end
        return taken

    def skip(self, count: int, where: str) -> None:
        self._check(count)
        while count > 0:
            step = min(count, _CHUNK)
            self.take(step, where)
            count -= step

    def number(self, form: str, where: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), where))[0]

    def finish(self) -> str:
        self.digest.update(self.buffer[: self.at])
        return str(self.digest.hexdigest())

    def _check(self, count: int) -> None:
        if self.position + count > self.limit:
            raise InvalidFactsError(f"{self.file} has a header of more than {self.limit} bytes, it must have fewer")

    def _fill(self, count: int, where: str) -> None:
        self._check(count)
        self.digest.update(self.buffer[: self.at])
        self.before, parts, have = self.position, [self.buffer[self.at :]], len(self.buffer) - self.at
        while have < count:
            part = self.read(_CHUNK)
            if not part:
                raise CutOffError(self.file, self.before + count, where)
            parts.append(part)
            have += len(part)
        self.buffer, self.at = b"".join(parts), 0


@dataclass
class _Reader:
    cursor: _Cursor
    file: str
    values: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    items: int = 0

    def header(self) -> Header:
        magic = self.cursor.take(4, "its first bytes")
        if magic != MAGIC:
            right = "it must begin with GGUF"
            raise InvalidFactsError(
                f"{self.file} is no GGUF file: it begins with {magic!r}, {right}",
                f"{self.file} is no GGUF file: {right}",
            )
        version = self.cursor.number("<I", "its first bytes")
        if version not in _VERSIONS:
            raise self._refuse("version", version, "2 or 3, in little-endian order")
        tensors = self._count("the number of tensors", MOST_TENSORS)
        for _ in range(self._count("the number of metadata entries", MOST_ENTRIES)):
            self._entry()
        for _ in range(tensors):
            self._tensor()
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise self._refuse("general.alignment", alignment, f"a power of two up to {_LARGEST_ALIGNMENT}")
        start = -(-self.cursor.position // alignment) * alignment
        digest = self.cursor.finish()
        return Header(self.values, self.lengths, self.tensors, start, digest, self.places, alignment)

    def _refuse(self, name: str, value: object, right: str) -> InvalidFactsError:
        return InvalidFactsError(
            f"{self.file}: {name} is {shown(value)}, it must be {right}",
            f"{self.file}: {name} is {kind(value)}, it must be {right}",
        )

    def _count(self, name: str, most: int) -> int:
        count: int = self.cursor.number("<Q", name)
        if count > most:
            raise self._refuse(name, count, f"at most {most}")
        return count

    def _text(self, name: str, longest: int) -> str:
        length = self._count(f"the length of {name}", longest)
        try:
            return self.cursor.take(length, name).decode()
        except UnicodeDecodeError:
            raise InvalidFactsError(f"{self.file}: {name} is not UTF-8 text") from None

    def _entry(self) -> None:
        first = self.cursor.position
        key = self._text("a metadata key", _LONGEST_KEY)
        if key in self.values or key in self.lengths:
            raise InvalidFactsError(
                f"{self.file} has the metadata key {shown(key)} twice, it must have it once",
                f"{self.file} has a metadata key twice, it must have it once",
            )
        type_ = self.cursor.number("<I", "its metadata")
        if type_ in _SCALARS:
            self.values[key] = self.cursor.number(_SCALARS[type_], "its metadata")
        elif type_ == _TEXT:
            length = self._count("the length of a text", LARGEST_HEADER)
            if length > LONGEST_TEXT:
                self.cursor.skip(length, "its metadata")
            else:
                self.values[key] = self.cursor.take(length, "its metadata").decode("utf-8", "replace")
        elif type_ == _LIST:
            self.lengths[key] = self._list()
        else:
            raise self._refuse("the type of a metadata value", type_, "a number from 0 to 12")
        self.places[key] = (first, self.cursor.position)

    def _list(self) -> int:
        type_ = self.cursor.number("<I", "its metadata")
        count = self._count("the length of a list", MOST_ITEMS)
        self.items += count
        if self.items > MOST_ITEMS:
            raise self._refuse("the number of entries of all lists", self.items, f"at most {MOST_ITEMS}")
        if type_ in _SCALARS:
            self.cursor.skip(count * struct.calcsize(_SCALARS[type_]), "its metadata")
        elif type_ == _TEXT:
            for _ in range(count):
                self.cursor.skip(self.cursor.number("<Q", "its metadata"), "its metadata")
        else:
            raise self._refuse("the type of a list's values", type_, "a number from 0 to 12 other than 9")
        return count

    def _tensor(self) -> None:
        where = "its table of tensors"
        name = self._text("a tensor's name", _LONGEST_NAME)
        if not _TENSOR_NAME.fullmatch(name):
            raise self._refuse("a tensor's name", name, "made of letters, digits and _ . -")
        if name in self.tensors:
            raise InvalidFactsError(f"{self.file} has the tensor {name} twice, it must have it once")
        dimensions = self.cursor.number("<I", where)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._refuse(f"the number of dimensions of {name}", dimensions, f"1 to {_MOST_DIMENSIONS}")
        shape = tuple(self.cursor.number("<Q", where) for _ in range(dimensions))
        number = self.cursor.number("<I", where)
        if number not in TYPES:
            raise self._refuse(f"the type of {name}", number, "one that ggml has")
        tensor = Tensor(TYPES[number], shape, self.cursor.number("<Q", where))
        if not all(1 <= length <= _LARGEST_DIMENSION for length in shape) or tensor.size > _LARGEST_DIMENSION:
            raise self._refuse(f"the shape of {name}", " x ".join(map(str, shape)), "one of a model")
        if shape[0] % tensor.type.block:
            right = f"a multiple of {tensor.type.block}, the block of {tensor.type.name}"
            raise self._refuse(f"the row of {name}", shape[0], right)
        if tensor.offset > _LARGEST_DIMENSION:
            raise self._refuse(f"the offset of {name}", tensor.offset, f"at most {_LARGEST_DIMENSION}")
        self.tensors[name] = tensor
