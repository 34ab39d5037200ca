"""SGLang's options: reading lists of them, merging by name, refusing what cannot be right.

The table of options belongs to one version of SGLang. It is the option list of `sglang serve --help`, hidden options
included; the keys are the names as SGLang stores them, the values their other spellings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

_SPLIT = re.compile(r"[=\s]")

# Options that the operator sets from a field of its own, or that it does not support: name -> what to do instead.
RESERVED: Mapping[str, str] = {
    "--model-path": "set spec.model or spec.source.uri",
    "--served-model-name": "set spec.servedNames",
    "--context-length": "set spec.contextTokens",
    "--tp-size": "set spec.parallelism.tensor",
    "--host": "the operator sets the address",
    "--port": "the operator sets the port",
    "--api-key": "keys are checked by the gateway, set them there",
    "--admin-api-key": "keys are checked by the gateway, set them there",
    "--ssl-keyfile": "probes and the gateway speak plain HTTP to the engine",
    "--ssl-certfile": "probes and the gateway speak plain HTTP to the engine",
    "--nnodes": "replicas over several nodes are not supported yet",
    "--node-rank": "replicas over several nodes are not supported yet",
    "--dist-init-addr": "replicas over several nodes are not supported yet",
    "--pp-size": "pipeline parallelism is not supported yet",
    "--dp-size": "set spec.replicas",
    "--attn-dp-size": "data-parallel attention is not supported yet",
    "--enable-dp-attention": "data-parallel attention is not supported yet",
    "--ep-size": "expert parallelism is not supported yet",
    "--delete-ckpt-after-loading": "it deletes the model's files, which others may use",
    "--config": "a file would hide options from these checks; list them in spec.engine.args",
}
# Spellings that hold where no table of the version exists; a table adds all of its own.
_KNOWN_ALIASES = {
    "--model": "--model-path",
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
    "--nccl-init-addr": "--dist-init-addr",
    "--pipeline-parallel-size": "--pp-size",
    "--data-parallel-size": "--dp-size",
    "--expert-parallel-size": "--ep-size",
    "--ep": "--ep-size",
}
# Besides the planned ones, these make the predicted memory or room for tokens wrong.
VOIDING = frozenset(
    {
        "--cuda-graph-backend-decode",
        "--cuda-graph-bs-decode",
        "--cuda-graph-config",
        "--cuda-graph-max-bs-prefill",
        "--device",
        "--dtype",
        "--enable-hierarchical-cache",
        "--enable-lora",
        "--json-model-override-args",
        "--kv-cache-dtype",
        "--max-total-tokens",
        "--quantization",
        "--speculative-algorithm",
    }
)


@dataclass(frozen=True, slots=True)
class Option:
    """One option as written: `name` is canonical, `spelling` what the user wrote, `values` may be empty."""

    name: str
    spelling: str
    values: tuple[str, ...]

    def render(self) -> tuple[str, ...]:
        """The argument list: `--name=value`, `--name`, or `--name` and its values."""
        if len(self.values) == 1:
            return (f"{self.spelling}={self.values[0]}",)
        return (self.spelling, *self.values)


class RefusedArgsError(ValueError):
    """Options that cannot be used. `unknown` tells an option the version lacks from one that is reserved."""

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


def knows(version: str) -> bool:
    """True if there is a table of this version's options."""
    return bool(_table(version))


def read(items: Sequence[str], version: str, where: str) -> tuple[Option, ...]:
    """The options of a list, each item `--name=value`, `--name value`, `--name`, or a value of the item before.

    `where` names the list in messages, for example spec.engine.args. Raises RefusedArgsError.
    """
    options: list[Option] = []
    for index, item in enumerate(items):
        if item.startswith("--"):
            options.append(_option(item, version, f"{where}[{index}]"))
        elif options:
            last = options[-1]
            options[-1] = Option(last.name, last.spelling, (*last.values, item))
        else:
            raise RefusedArgsError(f"{where}[{index}]: {item!r} is no option; it must begin with --", unknown=True)
    return tuple(options)


def merge(*lists: Iterable[Option]) -> tuple[Option, ...]:
    """All options, later lists over earlier ones by name; within a list the last wins. The first place is kept."""
    merged: dict[str, Option] = {}
    for options in lists:
        merged |= {option.name: option for option in options}
    return tuple(merged.values())


def _option(item: str, version: str, where: str) -> Option:
    split = _SPLIT.search(item)
    spelling = item[: split.start()] if split else item
    values = (item[split.end() :].strip() if split.group() != "=" else item[split.end() :],) if split else ()
    table = _table(version)
    name = table.get(spelling) or _KNOWN_ALIASES.get(spelling, spelling)
    if name in RESERVED:
        raise RefusedArgsError(f"{where}: {spelling} cannot be set here: {RESERVED[name]}", unknown=False)
    if table and spelling not in table:
        raise RefusedArgsError(
            f"{where}: SGLang {version} has no option {spelling}{_nearest(spelling, table)}", unknown=True
        )
    return Option(name, spelling, values)


def _nearest(spelling: str, table: Mapping[str, str]) -> str:
    """A hint for an option that was renamed by a suffix, written short, or misspelt."""
    near = sorted(name for name in table if name.startswith(f"{spelling}-") or spelling.startswith(f"{name}-"))
    near = near or get_close_matches(spelling, table, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


@cache
def _table(version: str) -> Mapping[str, str]:
    name = f"flags_{re.sub('[^0-9A-Za-z]', '_', version)}.json"
    file = files(__package__).joinpath(name)
    if not file.is_file():
        return {}
    flags: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return {spelling: name for name, others in flags.items() for spelling in (name, *others)}
