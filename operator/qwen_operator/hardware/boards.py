"""What the operator knows about GPU products: memory, compute capability, short names, and the labels of clouds.

The values are in gpus.json. If a node's labels state memory and capability, they win over this table. The table fills
in what the labels lack, and shows labels that cannot be true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
_COMPUTE_LABEL = "nvidia.com/gpu.compute"

_FAMILIES = ("GeForce", "Quadro", "RTX", "TITAN")
_MEMORY_PART = re.compile(r"^\d+GB$")
_CAPABILITY = re.compile(r"([0-9]{1,2})\.([0-9])")
# The parts of a name: letters, or digits. Digits say which board it is, so a suggestion never changes them.
_PART = re.compile(r"[0-9]+|[a-z]+")
_LETTERS_FOR_ZEROS = re.compile(r"(?<=[0-9])o+")
_GIGABYTES = re.compile(r"(?<=[-_ ])([0-9]+)g\b")
# A part of a board: the profile of a MIG slice, the mark of a shared GPU, or both.
_PART_OF = re.compile(r"(?P<whole>.+?)(?P<part>(-MIG-.+?)?(-SHARED)?)", re.IGNORECASE)
_VENDOR = {"nvidia", "tesla", "geforce"}
_SIMILAR = 0.6
# In percent. Drivers keep up to 4 % of a board's memory for error correction, and tables round. A larger difference
# means another board, or a part of one.
_MEMORY_TOLERANCE = 10


@dataclass(frozen=True, slots=True)
class Board:
    """A GPU product. `product` is the value of nvidia.com/gpu.product, `memory_mib` the total memory of one GPU.

    `nvlink` is true if NVLink, not PCIe, links the boards of a node. `verified` is false if the values are general
    knowledge that nobody compared with a real node. `other_mib` are the memories of boards that were rebuilt with more
    and keep the name. `unified` is true if GPU and CPU share one memory: `memory_mib` is
    then the most that the GPU may use, and only a label can say how much it does use.
    """

    product: str
    short: str
    aliases: tuple[str, ...]
    memory_mib: int
    compute_capability: tuple[int, int]
    nvlink: bool
    verified: bool = True
    unified: bool = False
    other_mib: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BoardLabel:
    """A label of a node that names its GPU, and the board that it stands for.

    `part_mib` is the memory in MiB if the node has only a part of the board, otherwise None.
    """

    label: str
    value: str
    board: Board
    part_mib: int | None = None


def boards() -> tuple[Board, ...]:
    """All known boards, in the order of the data."""
    return tuple(_data().boards.values())


def board(name: str) -> Board | None:
    """The board of a label value, of another spelling of it, or of a short name. Upper and lower case are equal.

    Drivers before 460 leave out the maker: A100-PCIE-40GB.
    """
    names, wanted = _data().names, name.casefold()
    return names.get(wanted) or names.get(f"nvidia-{wanted}")


def less(memory_mib: int, than_mib: int) -> bool:
    """Whether a GPU has so much less memory that it must be another board, or a part of one."""
    return memory_mib * 100 < than_mib * (100 - _MEMORY_TOLERANCE)


def similar(name: str) -> tuple[str, ...]:
    """Short names of the boards that an unknown name may mean.

    Such a board has all numbers of the name, and all words of it but for their spelling.
    So "H100" means every H100, and "RTX5O90" the RTX 5090, but "H800" never means the H200.
    """
    wanted = _parts(name)
    if not any(part.isdigit() for part in wanted):
        return ()
    same = [one.short for one in boards() if _means(wanted, one, 1.0)]
    return tuple(dict.fromkeys(same or [one.short for one in boards() if _means(wanted, one, _SIMILAR)]))


def _means(wanted: set[str], one: Board, least: float) -> bool:
    parts = _parts(one.short) | _parts(one.product)
    return all(any(_alike(part, other) >= least for other in (*parts, *_VENDOR)) for part in wanted)


def _alike(one: str, two: str) -> float:
    """1.0 for equal parts. Different numbers have nothing in common, and neither have short words: L is not A."""
    if one == two:
        return 1.0
    if one.isdigit() or two.isdigit() or min(len(one), len(two)) < 3:
        return 0.0
    return SequenceMatcher(None, one, two).ratio()


def _parts(name: str) -> set[str]:
    text = _LETTERS_FOR_ZEROS.sub(lambda letters: "0" * len(letters[0]), name.casefold())
    return set(_PART.findall(_GIGABYTES.sub(r"\1gb", text))) - _VENDOR


def named_by(labels: Mapping[str, str], memory_mib: int = 0) -> BoardLabel | None:
    """The board that a cloud's own labels name, or None.

    If a value may mean several boards, the one with a memory of about `memory_mib` counts; without it, none does.
    """
    data = _data()
    kind = labels.get(INSTANCE_TYPE_LABEL, "")
    if kind in data.fractions:
        product, part = data.fractions[kind]
        return BoardLabel(INSTANCE_TYPE_LABEL, kind, data.boards[product], part)
    for label, products in data.providers.items():
        value = labels.get(label, "")
        meant = products.get(value) or ((value,) if not products and value in data.boards else ())
        known = [data.boards[product] for product in meant]
        fitting = known if len(known) == 1 else [one for one in known if _about(memory_mib, one.memory_mib)]
        if len(fitting) == 1:
            return BoardLabel(label, value, fitting[0])
    product = data.instance_types.get(kind) or data.instance_types.get(f"{kind.partition('.')[0]}.", "")
    return BoardLabel(INSTANCE_TYPE_LABEL, kind, data.boards[product]) if product else None


def provider_label(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """The first label of a cloud that names a GPU at all, known or not, with its value."""
    return next(((label, labels[label]) for label in _data().providers if labels.get(label)), None)


def provider_labels() -> tuple[str, ...]:
    """The keys of all labels by which clouds name a GPU, the instance type included."""
    return (*_data().providers, INSTANCE_TYPE_LABEL)


def _about(memory_mib: int, board_mib: int) -> bool:
    return not less(memory_mib, board_mib) and not less(board_mib, memory_mib)


def short_name(product: str) -> str:
    """The short name of a product label value.

    For a known board it comes from the table. For others there is a rule: drop a leading "NVIDIA-" or "Tesla-", keep
    the model, and keep the memory if the label has it as "<n>GB". So NVIDIA-A800-SXM4-80GB becomes A800-80GB. A name
    that begins with a family word (RTX, GeForce, ...) stays whole. A part of a GPU keeps the end of its name.
    """
    product, part = whole(product)
    known_board = _data().boards.get(product)
    if known_board:
        return f"{known_board.short}{part}"
    bare = re.sub(r"^(NVIDIA|Tesla)-(?=.)", "", product)
    model, *rest = bare.split("-")
    if model in _FAMILIES:
        return f"{bare}{part}"
    return "-".join([model, *(one for one in rest if _MEMORY_PART.match(one))][:2]) + part


def whole(product: str) -> tuple[str, str]:
    """The whole GPU of a product, and the rest of its name: "-MIG-3g.40gb", "-SHARED", or "" for a whole GPU."""
    match = _PART_OF.fullmatch(product)
    return (match["whole"], match["part"]) if match else (product, "")


def capability_of(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The compute capability that labels of GPU feature discovery state, or None."""
    major, minor = labels.get(f"{_COMPUTE_LABEL}.major", ""), labels.get(f"{_COMPUTE_LABEL}.minor", "")
    return capability(f"{major}.{minor}") if major != "0" else None


def capability(text: str) -> tuple[int, int] | None:
    """(9, 0) for "9.0". None for a text of another form."""
    match = _CAPABILITY.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class _Data:
    boards: Mapping[str, Board]
    names: Mapping[str, Board]
    providers: Mapping[str, Mapping[str, tuple[str, ...]]]
    instance_types: Mapping[str, str]
    fractions: Mapping[str, tuple[str, int]]


@cache
def _data() -> _Data:
    record = json.loads(files(__package__).joinpath("gpus.json").read_text(encoding="utf-8"))
    by_product = {row["product"]: _board(row) for row in record["boards"]}
    names: dict[str, Board] = {}
    for one in by_product.values():
        for name in (one.product, *one.aliases, one.short):
            names.setdefault(name.casefold(), one)
    providers = {
        label: {value: (meant,) if isinstance(meant, str) else tuple(meant) for value, meant in products.items()}
        for label, products in record["providers"].items()
    }
    fractions = {kind: (row["product"], row["memoryMiB"]) for kind, row in record["fractions"].items()}
    return _Data(by_product, names, providers, record["instanceTypes"], fractions)


def _board(row: Mapping[str, object]) -> Board:
    parsed_capability = capability(str(row["computeCapability"]))
    assert parsed_capability, f"computeCapability of {row['product']}"
    aliases = row["aliases"]
    others = row.get("otherMemoryMiB", [])
    assert isinstance(aliases, list)
    assert isinstance(others, list)
    return Board(
        product=str(row["product"]),
        short=str(row["short"]),
        aliases=tuple(aliases),
        memory_mib=int(str(row["memoryMiB"])),
        compute_capability=parsed_capability,
        nvlink=bool(row["nvlink"]),
        verified=bool(row["verified"]),
        unified=bool(row.get("unified")),
        other_mib=tuple(others),
    )
