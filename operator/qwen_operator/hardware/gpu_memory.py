"""How much memory one GPU of a node has. Several sources may say it; the smallest counts, and a note says why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_operator.hardware.boards import INSTANCE_TYPE_LABEL, Board, BoardLabel, less, named_by

MEMORY_LABEL = "nvidia.com/gpu.memory"
CLOUD_MEMORY_LABELS = (
    "karpenter.k8s.aws/instance-gpu-memory",
    "eks.amazonaws.com/instance-gpu-memory",
    "aliyun.accelerator/nvidia_mem",
)
# 4 TiB. A larger number is no number of MiB.
_MOST_MIB = 4 << 20
_BYTES = re.compile(r"([0-9]{1,15})(Ki|Mi|Gi|Ti)?")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """`mib` of one GPU, 0 if nobody states it. `notes` has one sentence for each contradiction, without the node."""

    mib: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known about a node's GPUs besides its labels.

    `hami_mib` is the memory that HAMi registers, `host_mib` the allocatable memory of the node. Both are 0 if unknown.
    """

    board: Board | None
    cloud: BoardLabel | None
    hami_mib: int = 0
    host_mib: int = 0


def read(labels: Mapping[str, str], sources: Sources) -> GpuMemory:
    """The memory of one GPU."""
    known, labelled = sources.board, mib(labels.get(MEMORY_LABEL))
    if known and known.unified and not labelled:
        return GpuMemory()
    notes: list[str] = []
    if known and (rebuilt := next((mib for mib in known.other_mib if _about(labelled, mib)), 0)):
        notes.append(
            f"{known.product} has {known.memory_mib} MiB, or {rebuilt} if it was rebuilt: planned with {labelled}"
        )
        known = None
    least = labelled or (known.memory_mib if known else 0)
    if known and labelled and less(known.memory_mib, labelled):
        least = known.memory_mib
        notes.append(
            f"{_differ(labelled, known)}: planned with {least}; correct the label, or run GPU feature discovery again"
        )
    elif known and not known.unified and less(least, known.memory_mib):
        notes.append(
            f"{_differ(labelled, known)}: planned with {least}, as a part of it; if the node has whole ones, correct "
            "the label or run GPU feature discovery again"
        )
    for amount, source in _others(labels, sources):
        if not least:
            least = amount
        elif less(amount, least):
            whole = f"a whole {known.product} has {known.memory_mib}" if known else f"{MEMORY_LABEL} is {labelled}"
            notes.append(f"{source} {amount} MiB per GPU, {whole}: planned with {amount}, the smaller one")
            least = amount
    return GpuMemory(least, tuple(notes))


def mib(text: str | None) -> int:
    """The MiB of a label such as "81559" or "24258MiB". 0 if it states none."""
    digits = (text or "").removesuffix("MiB")
    right = digits.isascii() and digits.isdigit() and len(digits) <= 9
    return int(digits) if right and int(digits) <= _MOST_MIB else 0


def of_quantity(value: object) -> int:
    """The whole MiB of a quantity of bytes such as "125Gi". 0 for another text."""
    match = _BYTES.fullmatch(str(value))
    power = ("", "Ki", "Mi", "Gi", "Ti").index(match[2] or "") if match else 0
    return int(match[1]) * 1024**power >> 20 if match else 0


def _about(labelled: int, memory_mib: int) -> bool:
    return not less(labelled, memory_mib) and not less(memory_mib, labelled)


def _differ(labelled: int, known: Board) -> str:
    return f"{MEMORY_LABEL} is {labelled}, but a {known.product} has {known.memory_mib} MiB"


def _others(labels: Mapping[str, str], sources: Sources) -> list[tuple[int, str]]:
    """The memory that sources besides the board and its label state, each with the beginning of a sentence."""
    stated = [(mib(labels.get(label)), f"{label} says") for label in CLOUD_MEMORY_LABELS]
    cloud = sources.cloud or named_by(labels)
    if cloud and cloud.part_mib:
        stated.append((cloud.part_mib, f"{INSTANCE_TYPE_LABEL}={cloud.value} has a part of a GPU, with"))
    elif cloud and not cloud.board.unified:
        stated.append((cloud.board.memory_mib, f"{cloud.label}={cloud.value} names the {cloud.board.product}, with"))
    stated.append((sources.hami_mib, "HAMi registers"))
    if sources.board and sources.board.unified:
        stated.append((sources.host_mib, "GPU and CPU share the memory of the node, which has"))
    return [(amount, source) for amount, source in stated if amount]
