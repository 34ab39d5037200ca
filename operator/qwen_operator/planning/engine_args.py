"""SGLang's options: read lists of them, merge them by name, and reject those that cannot be right.

The folder of a version below `qwen_operator.engines` lists its options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from qwen_operator.engines.types import Option, OptionTable

_SPLIT = re.compile(r"[=\s]")

# Options that the operator sets from a field of the spec, or that it does not support: name -> what to do instead.
RESERVED: Mapping[str, str] = {
    "--model-path": "set spec.model or spec.source.uri",
    "--served-model-name": "set spec.servedNames",
    "--revision": "set spec.source.revision",
    "--context-length": "set spec.contextTokens",
    "--tp-size": "set spec.parallelism.tensor",
    "--host": "the operator sets the address",
    "--port": "the operator sets the port",
    "--api-key": "the gateway checks keys, set them there",
    "--admin-api-key": "the gateway checks keys, set them there",
    "--ssl-keyfile": "probes and the gateway speak plain HTTP to the engine",
    "--ssl-certfile": "probes and the gateway speak plain HTTP to the engine",
    "--nnodes": "the number of nodes follows from the number of GPUs",
    "--node-rank": "the number of nodes follows from the number of GPUs",
    "--dist-init-addr": "the number of nodes follows from the number of GPUs",
    "--pp-size": "set spec.parallelism.pipeline",
    "--dp-size": "set spec.replicas",
    "--attn-dp-size": "data-parallel attention is not supported yet",
    "--enable-dp-attention": "data-parallel attention is not supported yet",
    "--ep-size": "the operator derives it from the model and the number of GPUs: set spec.parallelism.tensor",
    "--delete-ckpt-after-loading": "it deletes the model's files, which others may use",
    "--config": "a file would hide options from these checks; list them in spec.engine.args",
}
# Other spellings of reserved options, for versions without a table. A table has all spellings of its version.
KNOWN_ALIASES = {
    "--model": "--model-path",
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
    "--nccl-init-addr": "--dist-init-addr",
    "--pipeline-parallel-size": "--pp-size",
    "--data-parallel-size": "--dp-size",
    "--expert-parallel-size": "--ep-size",
    "--ep": "--ep-size",
}
# Like the planned options, these make the predicted memory or number of tokens wrong.
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


class RefusedArgsError(ValueError):
    """Options that cannot be used. `unknown` is true if the version has no such option, false if it is reserved."""

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


def read(items: Sequence[str], table: OptionTable, where: str, *, trusted: bool = False) -> tuple[Option, ...]:
    """The options of a list, each item `--name=value`, `--name value`, `--name`, or a value of the item before.

    `where` names the list in messages, for example spec.engine.args. `trusted`: the platform team wrote the list, so
    that it may have options that nobody can check. Raises RefusedArgsError.
    """
    _check_known(items, table, where, trusted=trusted)
    options: list[Option] = []
    for index, item in enumerate(items):
        if item.startswith("--"):
            options.append(_option(item, table, f"{where}[{index}]"))
        elif options:
            last = options[-1]
            options[-1] = Option(last.name, last.spelling, (*last.values, item))
        else:
            raise RefusedArgsError(f"{where}[{index}]: {item!r} is not an option; it must begin with --", unknown=True)
    return tuple(options)


def _check_known(items: Sequence[str], table: OptionTable, where: str, *, trusted: bool) -> None:
    """Refuse an object's options of a version without a table, unless the nearest version has them.

    SGLang also takes the beginning of an option's name for the option, so a list of reserved names is not enough.
    """
    if table.options or trusted:
        return
    for index, item in enumerate(items):
        spelling = _SPLIT.split(item, maxsplit=1)[0]
        if item.startswith("--") and spelling not in table.nearest and spelling not in RESERVED:
            raise RefusedArgsError(
                f"{where}[{index}]: the operator does not know the options of SGLang {table.version}, and the nearest "
                f"version that it knows has no option {spelling}; choose a known version in spec.engine.version, or "
                "let the platform team set the option in the chart's engine.args",
                unknown=True,
            )


def parts(item: str) -> tuple[str, tuple[str, ...]]:
    """The spelling of an option, and its value if the item has one."""
    split = _SPLIT.search(item)
    if not split:
        return item, ()
    value = item[split.end() :]
    return item[: split.start()], (value if split.group() == "=" else value.strip(),)


def merge(*lists: Iterable[Option]) -> tuple[Option, ...]:
    """All options. If a name occurs several times, the last option wins, at the place of the first."""
    merged: dict[str, Option] = {}
    for options in lists:
        merged |= {option.name: option for option in options}
    return tuple(merged.values())


def _option(item: str, table: OptionTable, where: str) -> Option:
    spelling, values = parts(item)
    if values and values[0].startswith("--"):
        # With a second value, SGLang would get this one as an option of its own, past the checks below.
        raise RefusedArgsError(
            f"{where}: {item!r} has an option as its value; write each option as an entry", unknown=False
        )
    name = (table.options or table.nearest).get(spelling, spelling)
    # The canonical name of a reserved option in one version may be another spelling in a different version.
    for one in (name, spelling):
        reserved = RESERVED.get(KNOWN_ALIASES.get(one, one))
        if reserved:
            raise RefusedArgsError(f"{where}: {spelling} cannot be set here: {reserved}", unknown=False)
    if table.options and spelling not in table.options:
        near = _nearest(spelling, table.options)
        raise RefusedArgsError(f"{where}: SGLang {table.version} has no option {spelling}{near}", unknown=True)
    return Option(name, spelling, values)


def _nearest(spelling: str, options: Mapping[str, str]) -> str:
    """A hint for an option that got a suffix in another version, was shortened, or is misspelt."""
    near = sorted(name for name in options if name.startswith(f"{spelling}-") or spelling.startswith(f"{name}-"))
    near = near or get_close_matches(spelling, options, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""
