"""What the operator knows about GPU products: memory, compute capability, short names, and the labels of clouds.

The values are in gpus.json. If a node's labels state memory and capability, they win over this table. The table fills
in what the labels lack, and shows labels that cannot be true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"

_FAMILIES = ("GeForce", "Quadro", "RTX", "TITAN")
_MEMORY_PART = re.compile(r"^\d+GB$")
_CAPABILITY = re.compile(r"([0-9]{1,2})\.([0-9])")


@dataclass(frozen=True, slots=True)
class Board:
    """A GPU product. `product` is the value of nvidia.com/gpu.product, `memory_mib` the total memory of one GPU.

    `nvlink` is true if NVLink, not PCIe, links the boards of a node.
    """

    product: str
    short: str
    aliases: tuple[str, ...]
    memory_mib: int
    compute_capability: tuple[int, int]
    nvlink: bool


@dataclass(frozen=True, slots=True)
class BoardLabel:
    """A label of a node that names its GPU, and the board that it stands for."""

    label: str
    value: str
    board: Board


def boards() -> tuple[Board, ...]:
    """All known boards, in the order of the data."""
    return tuple(_data().boards.values())


def board(name: str) -> Board | None:
    """The board of a label value, of another spelling of it, or of a short name. Upper and lower case are equal."""
    return _data().names.get(name.casefold())


def similar(name: str) -> tuple[str, ...]:
    """Short names of the boards that an unknown name may mean: those with all of its parts, or else the one with the
    most similar spelling."""
    wanted = _parts(name)
    with_all_parts = [one.short for one in boards() if wanted <= _parts(one.short) | _parts(one.product)]
    if with_all_parts:
        return tuple(dict.fromkeys(with_all_parts))
    spellings = {each.casefold(): one.short for one in boards() for each in (one.product, one.short)}
    return tuple(spellings[near] for near in get_close_matches(name.casefold(), spellings, n=1, cutoff=0.6))


def _parts(name: str) -> set[str]:
    return set(re.split(r"[-_ ]", name.casefold())) - {"nvidia", ""}


def named_by(labels: Mapping[str, str]) -> BoardLabel | None:
    """The board that a cloud's own labels name, or None. A label value that several boards share names none."""
    data = _data()
    for label, products in data.providers.items():
        product = products.get(labels.get(label, ""))
        if product:
            return BoardLabel(label, labels[label], data.boards[product])
    kind = labels.get(INSTANCE_TYPE_LABEL, "")
    product = data.instance_types.get(kind) or data.instance_types.get(f"{kind.partition('.')[0]}.")
    return BoardLabel(INSTANCE_TYPE_LABEL, kind, data.boards[product]) if product else None


def short_name(product: str) -> str:
    """The short name of a product label value.

    For a known board it comes from the table. For others there is a rule: drop a leading "NVIDIA-" or "Tesla-", keep
    the model, and keep the memory if the label has it as "<n>GB". So NVIDIA-A800-SXM4-80GB becomes A800-80GB. A name
    that begins with a family word (RTX, GeForce, ...) stays whole.
    """
    known_board = _data().boards.get(product)
    if known_board:
        return known_board.short
    bare = re.sub(r"^(NVIDIA|Tesla)-(?=.)", "", product)
    model, *rest = bare.split("-")
    if model in _FAMILIES:
        return bare
    return "-".join([model, *(part for part in rest if _MEMORY_PART.match(part))][:2])


def capability(text: str) -> tuple[int, int] | None:
    """(9, 0) for "9.0". None for a text of another form."""
    match = _CAPABILITY.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class _Data:
    boards: Mapping[str, Board]
    names: Mapping[str, Board]
    providers: Mapping[str, Mapping[str, str]]
    instance_types: Mapping[str, str]


@cache
def _data() -> _Data:
    record = json.loads(files(__package__).joinpath("gpus.json").read_text(encoding="utf-8"))
    by_product = {row["product"]: _board(row) for row in record["boards"]}
    names: dict[str, Board] = {}
    for one in by_product.values():
        for name in (one.product, *one.aliases, one.short):
            names.setdefault(name.casefold(), one)
    return _Data(by_product, names, record["providers"], record["instanceTypes"])


def _board(row: Mapping[str, object]) -> Board:
    parsed_capability = capability(str(row["computeCapability"]))
    assert parsed_capability, f"computeCapability of {row['product']}"
    aliases = row["aliases"]
    assert isinstance(aliases, list)
    return Board(
        product=str(row["product"]),
        short=str(row["short"]),
        aliases=tuple(aliases),
        memory_mib=int(str(row["memoryMiB"])),
        compute_capability=parsed_capability,
        nvlink=bool(row["nvlink"]),
    )
