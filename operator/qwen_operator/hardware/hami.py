"""What HAMi, which shares GPUs between pods, writes into the annotations of a node.

Old versions separate the GPUs by ":" and the members of each by ",": id, pods that may share it, MiB of memory, cores,
type, NUMA node, health. New versions write the same as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

ANNOTATIONS = ("hami.io/node-nvidia-register", "4pd.io/node-nvidia-register")


def shares(annotations: Mapping[str, Any]) -> int:
    """How many pods may share one GPU. 1 if HAMi shares none."""
    return max((count for count, _ in _gpus(annotations)), default=1)


def memory_mib(annotations: Mapping[str, Any]) -> int:
    """The smallest memory in MiB that HAMi gives out of one GPU. 0 if it says nothing."""
    return min((memory for _, memory in _gpus(annotations)), default=0)


def _gpus(annotations: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Of each GPU: how many pods may share it, and its memory in MiB."""
    for key in ANNOTATIONS:
        text = annotations.get(key)
        if not isinstance(text, str):
            continue
        for count, memory in _from_json(text) if text.lstrip().startswith("[") else _from_text(text):
            if _is_number(count) and _is_number(memory):
                yield int(count), int(memory)


def _from_json(text: str) -> list[tuple[str, str]]:
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [(str(one.get("count")), str(one.get("devmem"))) for one in listed if isinstance(one, dict)]


def _from_text(text: str) -> list[tuple[str, str]]:
    rows = [entry.split(",") for entry in text.split(":")]
    return [(row[1], row[2]) for row in rows if len(row) >= 5]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0
