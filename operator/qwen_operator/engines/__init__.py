"""What this operator knows about SGLang, one folder for each version.

A folder such as `sglang_0_5_23` has the command-line options and the models (`options.json` and `models.json`, written
by `make engine-table`), the log lines that show how an engine ended (`log_lines.json`, packed into qwen-runtime), and
the module's `ENGINE` with everything else. docs/engines.md shows how to add one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

from qwen_operator.engines.types import EngineVersion, Models, OptionTable
from qwen_runtime import versions

# The oldest first.
VERSIONS = (
    "0.5.22",
    "0.5.23",
)


@cache
def of(version: str) -> EngineVersion:
    """Everything that the operator knows about a version.

    A version without a folder gets everything from the nearest one, except the options and the models. Those tables are
    empty. So the options of the chart, architectures, formats and names of parsers cannot be checked. An object may set
    only options of the nearest version.
    """
    name = versions.nearest(version, VERSIONS)
    engine: EngineVersion = import_module(f"{__name__}.{folder(name)}").ENGINE
    if name == version:
        return engine
    nearest = OptionTable(version, {}, engine.options.planned, engine.options.options)
    return replace(engine, options=nearest, models=Models())


def newest() -> EngineVersion:
    """The newest version that has a folder."""
    return of(VERSIONS[-1])


def folder(version: str) -> str:
    """The name of the folder of a version, for example sglang_0_5_23."""
    return f"sglang_{version.replace('.', '_')}"
