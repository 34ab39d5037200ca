"""Split GGUF files: NAME-00001-of-00003.gguf and so on, each with a header of its own and some of the tensors. Pure.

llama.cpp and the package gguf write them alike. The first part has all metadata. split.no (from 0) and split.count of
every part say which one it is, and split.tensors.count how many tensors all of them have. SGLang 0.5.23 opens one file
(srt/model_loader/weight_utils.py:1474), so the parts must become one: the metadata of the first without those about the
split, one table of all tensors, and the data of the parts one after the other.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import replace

from qwen_runtime.checkpoints.gguf import MAGIC, MOST_TENSORS, TYPES, Header, Tensor
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError

MOST_PARTS = 1000
ABOUT_SPLIT = "split."
"""What the metadata about the split begin with. The joined file has none of them."""
_VERSION = 3
_NAME = re.compile(r"(.+)-00001-of-(\d{5})\.gguf", re.ASCII)
_NUMBERS = {one.name: number for number, one in TYPES.items()}


def parts_of(file: str) -> tuple[str, ...]:
    """The names of all parts of the split file whose first part is `file`; `file` alone if it is no first part."""
    match = _NAME.fullmatch(file)
    count = int(match[2]) if match else 1
    if match is None or not 1 < count <= MOST_PARTS:
        return (file,)
    return tuple(f"{match[1]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def joined_name(file: str) -> str:
    """The name of the file that the parts become: without their numbers. `file` if it is whole."""
    match = _NAME.fullmatch(file)
    return f"{match[1]}.gguf" if match and len(parts_of(file)) > 1 else file


def join(headers: Sequence[Header], names: Sequence[str]) -> Header:
    """The header of the whole file, from those of its parts in their order. That of a single file stays as it is.

    The places of the metadata are those in the first part. Raises InvalidFactsError if a file is no part of it.
    """
    for number, (header, name) in enumerate(zip(headers, names, strict=True)):
        _check(header, name, number, len(names))
    first = headers[0]
    if len(headers) == 1:
        return first
    tensors, base = dict[str, Tensor](), 0
    for header, name in zip(headers, names, strict=True):
        if header.alignment != first.alignment:
            raise InvalidFactsError(
                f"{name} has the alignment {header.alignment}, and {names[0]} has {first.alignment}: split the model "
                "again, or use a file that is not split"
            )
        if twice := tensors.keys() & header.tensors.keys():
            raise InvalidFactsError(f"{name} has the tensor {min(twice)}, which an earlier part has too")
        tensors |= {one: replace(tensor, offset=base + tensor.offset) for one, tensor in header.tensors.items()}
        base += data_bytes(header)
    wanted = Fields(first.values, f"{names[0]}: ").optional("split.tensors.count", MOST_TENSORS, low=0)
    if len(tensors) > MOST_TENSORS or wanted not in (None, len(tensors)):
        right = f"{names[0]} says {wanted}" if wanted is not None else f"it may have at most {MOST_TENSORS}"
        raise InvalidFactsError(f"the {len(names)} parts of {names[0]} have {len(tensors)} tensors, and {right}")
    values = {name: value for name, value in first.values.items() if not name.startswith(ABOUT_SPLIT)}
    digest = hashlib.sha256("".join(header.digest for header in headers).encode()).hexdigest()
    return replace(first, values=values, tensors=tensors, digest=digest)


def data_bytes(header: Header) -> int:
    """The bytes of a part's tensors in the joined file, where the next part begins at a multiple of the alignment."""
    used = max(0, header.end - header.data_start)
    return -(-used // header.alignment) * header.alignment


def joined_bytes(joined: Header, entries: Sequence[bytes]) -> bytes:
    """The beginning of the joined file up to its data. `entries` are the metadata entries as bytes."""
    table = (_info(name, tensor) for name, tensor in joined.tensors.items())
    start = MAGIC + struct.pack("<IQQ", _VERSION, len(joined.tensors), len(entries))
    raw = b"".join((start, *entries, *table))
    return raw + bytes(-len(raw) % joined.alignment)


def _info(name: str, tensor: Tensor) -> bytes:
    text, shape = name.encode(), tensor.shape
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(text)) + text + sides + struct.pack("<IQ", _NUMBERS[tensor.type.name], tensor.offset)


def _check(header: Header, name: str, number: int, count: int) -> None:
    fields = Fields(header.values, f"{name}: ")
    told = fields.optional("split.count", 1 << 16, low=0) or 1
    if count == 1 and told > 1:
        raise InvalidFactsError(
            f"{name} is one of {told} parts of a split file: name the first part, whose name ends in "
            f"-00001-of-{told:05}.gguf as it was made"
        )
    if count > 1 and told != count:
        raise InvalidFactsError(f"{name}: split.count is {told}, it must be {count} as in its name")
    if count > 1 and fields.optional("split.no", 1 << 16, low=0) != number:
        raise fields.refuse("split.no", f"{number} as in its name, which counts from 1")
