"""What is known of GPU products: memory, compute capability, short names, and the labels by which clouds call them.

The values are data (gpus.json). Memory and capability that a node states itself win over the table; the table speaks
where a node says nothing, and shows where a node says something that cannot be.
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
    """A GPU product: `product` is the value of nvidia.com/gpu.product, memory the total of one GPU in MiB.

    `nvlink`: the boards of a node are linked by NVLink rather than by PCIe.
    """

    product: str
    short: str
    aliases: tuple[str, ...]
    memory_mib: int
    compute_capability: tuple[int, int]
    nvlink: bool


@dataclass(frozen=True, slots=True)
class BoardLabel:
    """The label of a node that names its GPU, and the board it stands for."""

    label: str
    value: str
    board: Board


def boards() -> tuple[Board, ...]:
    """All known boards, in the order of the data."""
    return tuple(_data().boards.values())


def board(name: str) -> Board | None:
    """The board of a label value, another spelling of it, or a short name, in any case of letters."""
    return _data().names.get(name.casefold())


def similar(name: str) -> tuple[str, ...]:
    """Short names of the boards that a name which is none may mean: those that have all of its parts, or else the one
    that is spelt most alike."""
    wanted = _parts(name)
    found = [one.short for one in boards() if wanted <= _parts(one.short) | _parts(one.product)]
    if found:
        return tuple(dict.fromkeys(found))
    spelt = {each.casefold(): one.short for one in boards() for each in (one.product, one.short)}
    return tuple(spelt[near] for near in get_close_matches(name.casefold(), spelt, n=1, cutoff=0.6))


def _parts(name: str) -> set[str]:
    return set(re.split(r"[-_ ]", name.casefold())) - {"nvidia", ""}


def named_by(labels: Mapping[str, str]) -> BoardLabel | None:
    """The board that a cloud's own labels name, or None. Labels that several boards share name none."""
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

    That of the table for a known board. For others the rule: drop a leading "NVIDIA-" or "Tesla-", keep the model,
    and keep the memory if it stands in the label as "<n>GB". So NVIDIA-A800-SXM4-80GB is A800-80GB. Names that go
    on after a family word (RTX, GeForce, ...) stay whole.
    """
    known = _data().boards.get(product)
    if known:
        return known.short
    bare = re.sub(r"^(NVIDIA|Tesla)-(?=.)", "", product)
    model, *rest = bare.split("-")
    if model in _FAMILIES:
        return bare
    return "-".join([model, *(part for part in rest if _MEMORY_PART.match(part))][:2])


def capability(text: str) -> tuple[int, int] | None:
    """(9, 0) of "9.0"; None for a text of another form."""
    found = _CAPABILITY.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class _Data:
    boards: Mapping[str, Board]
    names: Mapping[str, Board]
    providers: Mapping[str, Mapping[str, str]]
    instance_types: Mapping[str, str]


@cache
def _data() -> _Data:
    record = json.loads(files(__package__).joinpath("gpus.json").read_text(encoding="utf-8"))
    known = {row["product"]: _board(row) for row in record["boards"]}
    names: dict[str, Board] = {}
    for one in known.values():
        for name in (one.product, *one.aliases, one.short):
            names.setdefault(name.casefold(), one)
    return _Data(known, names, record["providers"], record["instanceTypes"])


def _board(row: Mapping[str, object]) -> Board:
    found = capability(str(row["computeCapability"]))
    assert found, f"computeCapability of {row['product']}"
    aliases = row["aliases"]
    assert isinstance(aliases, list)
    return Board(
        product=str(row["product"]),
        short=str(row["short"]),
        aliases=tuple(aliases),
        memory_mib=int(str(row["memoryMiB"])),
        compute_capability=found,
        nvlink=bool(row["nvlink"]),
    )
