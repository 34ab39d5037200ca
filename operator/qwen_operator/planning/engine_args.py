"""SGLang's options: reading lists of them, merging by name, refusing what cannot be right.

A table of options belongs to one version of SGLang: a file flags_<version>.json beside this module. `options` is the
list of `sglang serve --help`, hidden ones included: the names as SGLang stores them, and their other spellings.
`planned` says how this version writes what a plan sets (`Role`): the option, or the option with a fixed value, or
nothing where the version has no such thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from importlib.resources import files

_SPLIT = re.compile(r"[=\s]")
_FILE = re.compile(r"flags_[0-9A-Za-z_]+\.json$")

# Options that the operator sets from a field of its own, or that it does not support: name -> what to do instead.
RESERVED: Mapping[str, str] = {
    "--model-path": "set spec.model or spec.source.uri",
    "--served-model-name": "set spec.servedNames",
    "--revision": "set spec.source.revision",
    "--context-length": "set spec.contextTokens",
    "--tp-size": "set spec.parallelism.tensor",
    "--host": "the operator sets the address",
    "--port": "the operator sets the port",
    "--api-key": "keys are checked by the gateway, set them there",
    "--admin-api-key": "keys are checked by the gateway, set them there",
    "--ssl-keyfile": "probes and the gateway speak plain HTTP to the engine",
    "--ssl-certfile": "probes and the gateway speak plain HTTP to the engine",
    "--nnodes": "the number of nodes follows from the number of GPUs",
    "--node-rank": "the number of nodes follows from the number of GPUs",
    "--dist-init-addr": "the number of nodes follows from the number of GPUs",
    "--pp-size": "pipeline parallelism is not supported yet",
    "--dp-size": "set spec.replicas",
    "--attn-dp-size": "data-parallel attention is not supported yet",
    "--enable-dp-attention": "data-parallel attention is not supported yet",
    "--ep-size": "it follows from the model and the number of GPUs: set spec.parallelism.tensor",
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
        "--max-mamba-cache-size",
        "--max-total-tokens",
        "--page-size",
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


class Role(StrEnum):
    """What a plan sets, whatever a version of SGLang calls it."""

    TENSOR_PARALLEL = "tensorParallel"
    EXPERT_PARALLEL = "expertParallel"
    NODES = "nodes"
    MEMORY_FRACTION = "memoryFraction"
    CONTEXT_LENGTH = "contextLength"
    CHUNKED_PREFILL = "chunkedPrefill"
    DECODE_GRAPH_BATCH = "decodeGraphBatch"
    NO_PREFILL_GRAPHS = "noPrefillGraphs"
    MAX_RUNNING_REQUESTS = "maxRunningRequests"
    KV_CACHE_TYPE = "kvCacheType"
    WEIGHT_TYPE = "weightType"
    STATE_RATIO = "stateRatio"
    MODEL_OVERRIDES = "modelOverrides"
    TOOL_CALL_PARSER = "toolCallParser"
    REASONING_PARSER = "reasoningParser"
    METRICS = "metrics"
    SLEEP_ON_IDLE = "sleepOnIdle"
    QUIET_PATHS = "quietPaths"
    REVISION = "revision"


class RefusedArgsError(ValueError):
    """Options that cannot be used. `unknown` tells an option the version lacks from one that is reserved."""

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Table:
    """The options of one version: spelling -> canonical name, and how it writes what a plan sets.

    `options` is empty for a version without a table; nothing can be checked then, and `planned` is that of the newest.
    """

    version: str
    options: Mapping[str, str]
    planned: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Table:
        """A table from the text of its file."""
        record = json.loads(text)
        options = {spelling: name for name, others in record["options"].items() for spelling in (name, *others)}
        return cls(record["sglang"], options, record["planned"])

    def option(self, role: Role, *values: str) -> Option | None:
        """The option by which this version sets `role`; None if it has none."""
        name, _, fixed = self.planned.get(role, "").partition("=")
        return Option(name, name, (fixed,) if fixed else values) if name else None

    def name(self, role: Role) -> str:
        """The name of the option for `role`, "" if this version has none."""
        return self.planned.get(role, "").partition("=")[0]


def table(version: str) -> Table:
    """The table of a version, or an empty one with the newest version's names."""
    return _tables().get(version) or Table(version, {}, _tables()[max(_tables(), key=_order)].planned)


def read(items: Sequence[str], known: Table, where: str) -> tuple[Option, ...]:
    """The options of a list, each item `--name=value`, `--name value`, `--name`, or a value of the item before.

    `where` names the list in messages, for example spec.engine.args. Raises RefusedArgsError.
    """
    options: list[Option] = []
    for index, item in enumerate(items):
        if item.startswith("--"):
            options.append(_option(item, known, f"{where}[{index}]"))
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


def _option(item: str, known: Table, where: str) -> Option:
    split = _SPLIT.search(item)
    spelling = item[: split.start()] if split else item
    values = (item[split.end() :].strip() if split.group() != "=" else item[split.end() :],) if split else ()
    name = known.options.get(spelling, spelling)
    # A version may call a reserved option by what is another spelling elsewhere.
    for one in (name, spelling):
        reserved = RESERVED.get(_KNOWN_ALIASES.get(one, one))
        if reserved:
            raise RefusedArgsError(f"{where}: {spelling} cannot be set here: {reserved}", unknown=False)
    if known.options and spelling not in known.options:
        near = _nearest(spelling, known.options)
        raise RefusedArgsError(f"{where}: SGLang {known.version} has no option {spelling}{near}", unknown=True)
    return Option(name, spelling, values)


def _nearest(spelling: str, options: Mapping[str, str]) -> str:
    """A hint for an option that was renamed by a suffix, written short, or misspelt."""
    near = sorted(name for name in options if name.startswith(f"{spelling}-") or spelling.startswith(f"{name}-"))
    near = near or get_close_matches(spelling, options, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


@cache
def _tables() -> Mapping[str, Table]:
    folder = files(__package__)
    found = [Table.parse(file.read_text(encoding="utf-8")) for file in folder.iterdir() if _FILE.match(file.name)]
    return {one.version: one for one in found}


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall("[0-9]+", version))
