"""What this operator knows of SGLang, one folder per version.

A folder `sglang_0_5_23` has the command-line options (`options.json`, written by `make engine-table`), the log lines
that say how an engine ended (`log_lines.json`, packed into qwen-runtime), and the module's `ENGINE` with everything
else. docs/engines.md shows how to add one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

from qwen_operator.engines.types import EngineVersion, OptionTable
from qwen_runtime import versions

# The oldest first.
VERSIONS = (
    "0.5.22",
    "0.5.23",
)


@cache
def of(version: str) -> EngineVersion:
    """What is known of a version.

    A version without a folder gets everything from the nearest one, except that its options are not known: its table
    of them is empty, so nothing can be checked against it.
    """
    name = versions.nearest(version, VERSIONS)
    known: EngineVersion = import_module(f"{__name__}.{folder(name)}").ENGINE
    if name == version:
        return known
    return replace(known, options=OptionTable(version, {}, known.options.planned))


def newest() -> EngineVersion:
    """The newest version that has a folder."""
    return of(VERSIONS[-1])


def folder(version: str) -> str:
    """The name of the folder of a version, for example sglang_0_5_23."""
    return f"sglang_{version.replace('.', '_')}"
