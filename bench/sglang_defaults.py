"""SGLang's own default of --mem-fraction-static by version, which a run used if it did not set the option.

The operator sets the fraction itself. These rules only serve to predict the runs of others. Sources: SGLang's
server_args.py (before 0.5.3: fixed reserves; from 0.5.3: sum of parts) and arg_groups/memory_hook.py (from 0.5.20).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

_SUMMED: Version = (0, 5, 3)
_PREFILL_GRAPHS: Version = (0, 5, 10)
_SMALL_CARDS_CHANGED: Version = (0, 5, 20)
_NUMBER = re.compile(r"(post-|>=?\s*)?(\d+)\.(\d+)\.(\d+)")
_LARGE_MIB = 61440
_LEAST_LARGE_RESERVE = 10240


@dataclass(frozen=True, slots=True)
class Run:
    """The inputs of the default: total MiB of a GPU, tensor parallel size, and the settings that the run set."""

    mib: int
    tp: int
    chunk: int | None = None
    graph_batch: int | None = None


def read_version(text: str) -> Version | None:
    """The first version number in a free text. "post-0.5.19" means a state after it. None without a number."""
    match = _NUMBER.search(text)
    if match is None:
        return None
    major, minor, patch = (int(part) for part in match.groups()[1:])
    return (major, minor, patch + 1 if (match[1] or "").startswith("post") else patch)


def mem_fraction(run: Run, version: Version) -> float:
    """The default fraction of a text model on NVIDIA GPUs, without data-parallel attention or speculation."""
    reserved = _fixed(run) if version < _SUMMED else _summed(run, version)
    return round((run.mib - reserved) / run.mib, 3)


def _fixed(run: Run) -> float:
    if run.mib < 35 * 1024:
        return (2.8 + run.tp / 10) * 1024
    if run.mib < 90 * 1024:
        return (9.5 + run.tp / 2) * 1024
    if run.mib < 160 * 1024:
        return (12 + run.tp / 2) * 1024
    return 32 * 1024.0


def _summed(run: Run, version: Version) -> float:
    chunk, batch = _settings(run, version)
    chunk, batch = run.chunk or chunk, run.graph_batch or batch
    reserved = 512 + 1.5 * max(chunk, 2048) + 2 * batch + 128 * run.tp
    if version >= _PREFILL_GRAPHS:
        reserved += 8 * _prefill_graphs(chunk)
    return max(reserved, _LEAST_LARGE_RESERVE) if run.mib > _LARGE_MIB else reserved


def _settings(run: Run, version: Version) -> tuple[int, int]:
    """The default chunk of a prefill, and the largest batch with a decode graph."""
    wide = run.tp >= 4
    if run.mib < 20 * 1024:
        return 2048, 8
    if run.mib < 35 * 1024:
        if version < _SMALL_CARDS_CHANGED:
            return 2048, 80 if wide else 24
        return 4096, 160 if wide else 48
    if run.mib < 60 * 1024:
        return 4096, 160 if wide else 32
    if run.mib < 160 * 1024:
        return 8192, 512 if wide else 256
    return 16384, 512


def _prefill_graphs(chunk: int) -> int:
    return next(graphs for most, graphs in ((2048, 42), (4096, 50), (8192, 58), (1 << 60, 74)) if chunk <= most)
