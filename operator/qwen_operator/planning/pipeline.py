"""Pipeline stages: whether an engine can have them, over how many nodes they go, and why not. Pure.

SGLang 0.5.23 (arg_groups/validation_hook.py:119) and the hooks beside it end the engine for what does not go together
with --pp-size. It switches its overlap schedule off by itself (arg_groups/overrides.py:1624).
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints import stages
from qwen_operator.checkpoints.facts import Checkpoint, Task
from qwen_operator.engines.types import Role
from qwen_operator.planning import answers, engine_args
from qwen_operator.planning.engine import CHART, OBJECT, EngineChoice
from qwen_operator.planning.types import NoFit

_FIELD = "spec.parallelism.pipeline"
_BY_HAND = "SGLANG_PP_LAYER_PARTITION"
# The options that SGLang does not run with stages, and the values of theirs with which it does.
_AGAINST: Mapping[str, tuple[str, ...]] = {
    "--dllm-algorithm": (),
    "--dwdp-size": ("1",),
    "--elastic-ep-backend": (),
    "--enable-layernorm-sp": (),
    "--enable-lora": (),
    "--enable-pdmux": (),
    "--enable-return-aux-hidden-states": (),
    "--is-embedding": (),
    "--lora-paths": (),
    "--min-free-slots-delay": (),
    "--moe-dp-size": ("1",),
    "--speculative-algorithm": (),
    "--startup-weight-load-mode": ("serial",),
}


def obstacle(checkpoint: Checkpoint, choice: EngineChoice) -> str:
    """Why this model cannot run in stages with this engine, whatever their number; "" if it can."""
    models = choice.engine.formats.pipeline_models
    if not choice.table.name(Role.PIPELINE_PARALLEL):
        return f"SGLang {choice.table.version} has no pipeline stages"
    if checkpoint.architecture not in models:
        return f"the operator plans stages of {', '.join(models)}, and the model is {checkpoint.architecture}"
    if answers.task(checkpoint, choice.engine.models) is Task.EMBED:
        return "SGLang makes no embeddings in stages"
    if checkpoint.adapters:
        return "the operator cannot plan spec.adapters in stages"
    return _setting(choice) or stages.refusal(checkpoint, 1) or ""


def _setting(choice: EngineChoice) -> str:
    """The option or variable with which no engine runs in stages, as a clause; "" without one."""
    for where, options in ((CHART, choice.chart), (OBJECT, choice.own)):
        for option in engine_args.merge(options):
            if option.name in _AGAINST and " ".join(option.values) not in _AGAINST[option.name]:
                return f"SGLang does not run in stages with {' '.join(option.render())}, which {where} sets"
    if any(variable.name == _BY_HAND for variable in choice.env):
        return f"{_BY_HAND} is set in the environment of the engine, and the operator does not know these stages"
    return ""


def refuse(count: int | None, checkpoint: Checkpoint, no_stages: str) -> NoFit | None:
    """The refusal of spec.parallelism.pipeline, or None. `no_stages` is the model's `obstacle`."""
    if count is None or count == 1:
        return None
    why = no_stages or stages.refusal(checkpoint, count)
    if not why:
        return None
    return NoFit(Reason.INVALID_OVERRIDE, f"{_FIELD} is {count}: {why}; remove the field, or set it to 1")


def nodes_for(tp: int, pp: int, gpus_per_node: int, most: int) -> int | None:
    """The smallest number of equal nodes that `pp` stages of `tp` GPUs fit on, at most `most`; None: on none.

    SGLang gives a node whole stages, or an equal part of one (entrypoints/engine.py:2063).
    """
    gpus = tp * pp
    for nodes in range(-(-gpus // gpus_per_node), min(most, gpus) + 1):
        if gpus % nodes == 0 and (pp % nodes == 0 or (nodes % pp == 0 and tp % (nodes // pp) == 0)):
            return nodes
    return None
