"""How SGLang loads the weights: the options of a faster start, when they are safe, and the host memory they need. Pure.

Read in the wheels of 0.5.22 and 0.5.23, below sglang/srt: model_executor/model_runner_components/startup_weight_load.py
(overlap; what it does not support ends the engine) and model_loader/loader.py:355 and 640 (prefetch, extra config).
None of it has run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.engines.types import Option, Role
from qwen_operator.planning import engine_args
from qwen_operator.planning.engine import CHART, OBJECT, EngineChoice, RoleValues
from qwen_operator.planning.engine_args import RefusedArgsError
from qwen_operator.planning.memory import Split

_OVERLAP = "--startup-weight-load-mode"
_PREFETCH = "--weight-loader-prefetch-checkpoints"
_EXTRA = "--model-loader-extra-config"
_FORMAT = "--load-format"
_NO_MMAP = "--weight-loader-disable-mmap"
_OVERLAP_RANKS = (1, 2)
_EXTRA_KEYS = ("enable_multithread_load", "num_threads")
_PLAIN_FORMATS = ("auto", "safetensors", "pt")
_GB = 10**9

# The options that overlap does not run with, and the values of theirs that it runs with.
_AGAINST_OVERLAP: Mapping[str, tuple[str, ...]] = {
    "--cpu-offload-gb": ("0",),
    "--cuda-graph-backend-decode": ("full", "breakable"),
    "--custom-weight-loader": (),
    "--device": ("cuda",),
    "--disable-cuda-graph": (),
    "--disable-decode-cuda-graph": (),
    "--dtype": ("auto", "half", "float16", "bfloat16"),
    "--enable-lora": (),
    "--enable-memory-saver": (),
    "--enable-torch-compile": (),
    "--enable-weights-cpu-backup": (),
    "--is-embedding": (),
    _FORMAT: ("auto", "safetensors"),
    "--lora-paths": (),
    "--offload-group-size": ("-1", "0"),
    "--quantization": (),
    "--speculative-algorithm": (),
    "--weight-loader-drop-cache-after-load": (),
    _NO_MMAP: (),
}


@dataclass(frozen=True, slots=True)
class Start:
    """What decides how the weights load. `fast` is spec.engine.fastStart."""

    fast: bool
    checkpoint: Checkpoint
    split: Split


@dataclass(frozen=True, slots=True)
class Loading:
    """`settings` are more options of the plan. `host_bytes` of each pod's memory hold the files of the weights.

    `line` explains it in the plan, "" if nothing is special.
    """

    settings: RoleValues = ()
    host_bytes: int = 0
    line: str = ""
    warnings: tuple[str, ...] = ()


def choose(start: Start, choice: EngineChoice, settings: RoleValues) -> Loading:
    """How this engine loads. `settings` are those of the plan so far.

    Raises RefusedArgsError for options of chart or object with which SGLang would end before it serves.
    """
    given = {option.name: option for option in engine_args.merge(choice.chart, choice.own)}
    planned = (choice.table.option(role, *values) for role, values in settings)
    in_use = {option.name: option for option in planned if option is not None} | given
    _check_extra_config(choice, in_use)
    against = _against_overlap(start, choice, in_use)
    overlaps = given.get(_OVERLAP, Option("", "", ())).values == ("overlap",)
    if overlaps and against and choice.table.options:
        raise RefusedArgsError(
            f"{_where(choice, _OVERLAP)}: {_OVERLAP}=overlap cannot be used here: {against}", unknown=False
        )
    chosen = _chosen(start, choice, given, against) if start.fast else ()
    roles = {role for role, _ in chosen}
    reads_ahead = overlaps or _PREFETCH in given or bool(roles)
    return Loading(
        settings=chosen,
        host_bytes=start.checkpoint.weight_bytes if reads_ahead else 0,
        line=_line(start, roles, against) if start.fast else "",
        warnings=_warnings(given),
    )


def _chosen(start: Start, choice: EngineChoice, given: Mapping[str, Option], against: str) -> RoleValues:
    """The options of a fast start that are safe here. What the user has set about the same stays."""
    if _OVERLAP in given or _PREFETCH in given or start.checkpoint.gguf or not choice.table.options:
        return ()
    if not against and choice.table.name(Role.OVERLAP_WEIGHTS):
        return ((Role.OVERLAP_WEIGHTS, ("overlap",)),)
    plain = _FORMAT not in given or given[_FORMAT].values in (("auto",), ("safetensors",))
    if _shares_files(start, choice) and plain and _EXTRA not in given and choice.table.name(Role.PREFETCH_WEIGHTS):
        return ((Role.PREFETCH_WEIGHTS, ()),)
    return ()


def _shares_files(start: Start, choice: EngineChoice) -> bool:
    """Whether several ranks of a pod would read the same files from a claim, which is often on a network."""
    return choice.on_claim and start.split.ranks // start.split.nodes > 1


def _against_overlap(start: Start, choice: EngineChoice, in_use: Mapping[str, Option]) -> str:
    """Why weights cannot load while CUDA graphs are captured; "" if they can."""
    facts, models = start.checkpoint, choice.engine.formats.overlap_models
    if not models or not choice.table.options:
        return f"the operator does not know the options of SGLang {choice.table.version}"
    if facts.architecture not in models:
        return f"SGLang has it for {' and '.join(models)}, the model is {facts.architecture}"
    if facts.quantization is not None or facts.dtype not in ("bfloat16", "float16", "float32"):
        return f"SGLang has it for weights of 16 bits, these are {facts.quantization_name}"
    split = start.split
    if split.tp not in _OVERLAP_RANKS or split.nodes > 1 or split.pp > 1:
        in_stages = f" in {split.pp} stages" if split.pp > 1 else ""
        return f"SGLang has it for 1 and 2 GPUs, this plan has {split.ranks}{in_stages}"
    for name, allowed in _AGAINST_OVERLAP.items():
        option = in_use.get(name)
        if option is not None and " ".join(option.values) not in allowed:
            return f"it does not run with {' '.join(option.render())}"
    return ""


def _check_extra_config(choice: EngineChoice, in_use: Mapping[str, Option]) -> None:
    """SGLang ends if it cannot use this option, after the pod has taken its GPUs."""
    option = in_use.get(_EXTRA)
    if option is None or not choice.table.options:
        return
    where, text = _where(choice, _EXTRA), " ".join(option.values)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        right = '{"enable_multithread_load": true, "num_threads": 16}'
        raise RefusedArgsError(
            f"{where}: {_EXTRA} is {text[:100]!r}, it must be a JSON object such as {right}", unknown=False
        )
    load_format = in_use.get(_FORMAT, Option("", "", ("auto",))).values
    unknown = sorted(str(key) for key in config if key not in _EXTRA_KEYS)
    if unknown and " ".join(load_format) in _PLAIN_FORMATS:
        raise RefusedArgsError(
            f"{where}: {_EXTRA} has {unknown[0][:64]!r}, which SGLang refuses with --load-format={load_format[0]}; it "
            f"takes {' and '.join(_EXTRA_KEYS)}",
            unknown=False,
        )


def _where(choice: EngineChoice, name: str) -> str:
    return OBJECT if any(option.name == name for option in choice.own) else CHART


def _warnings(given: Mapping[str, Option]) -> tuple[str, ...]:
    if _NO_MMAP not in given:
        return ()
    return (
        f"{_NO_MMAP}: every rank holds the files that it reads in host memory, which is not planned: set "
        "spec.pod.resources.requests.memory",
    )


def _line(start: Start, roles: set[Role], against: str) -> str:
    held = f"so each pod requests {start.checkpoint.weight_bytes / _GB:.1f} GB more host memory for the files"
    if Role.OVERLAP_WEIGHTS in roles:
        return f"fast start: the weights are read while CUDA graphs are captured, {held}"
    if Role.PREFETCH_WEIGHTS in roles:
        return f"fast start: the ranks share the reading of the files ({_PREFETCH}), {held}; no overlap: {against}"
    return (
        f"fast start: nothing to switch on; no overlap: {against or 'options of chart or object set how weights load'}"
    )
