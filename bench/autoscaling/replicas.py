"""A simulated replica from a model, a GPU and a split: the operator's own plan, and published speeds of operators.

Slots, KV tokens, the largest prefill and the start time are the plan's. The times are a roofline:

    decode step    overhead + weights / bandwidth + 2 * layers * all-reduce of one token
    cached token   its KV bytes / bandwidth of decode attention
    prompt token   2 * parameters / throughput + 2 * layers * all-reduce of a large prefill, for each of its tokens
    pair           4 * heads * head dim * layers / throughput of prefill attention
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from bench.autoscaling.engine import Speed
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.cli import inputs
from qwen_operator.cli.files import InputError
from qwen_operator.hardware.boards import board
from qwen_operator.planning.plan import explore
from qwen_operator.planning.types import Plan

OVERHEAD_SECONDS = 0.0016
_LARGE_MESSAGE = 64 * 1024 * 1024
_GPUS_OF_A_NODE = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one GPU in bf16: `matrix` and `attention` in FLOP/s for prefill, `weights` and `cache` in bytes/s for decode.

    `small` and `large`: seconds of an all-reduce of one token and of _LARGE_MESSAGE elements, by the number of GPUs.
    """

    matrix: float
    weights: float
    cache: float
    attention: float
    small: Mapping[int, float]
    large: Mapping[int, float]


def _rates(numbers: tuple[float, float, float, float], small: tuple[float, ...], large: tuple[float, ...]) -> Rates:
    matrix, weights, cache, attention = numbers
    return Rates(
        matrix * 1e12,
        weights * 1e9,
        cache * 1e9,
        attention * 1e12,
        {gpus: each * 1e-6 for gpus, each in zip((2, 4, 8), small, strict=True)},
        {gpus: each * 1e-6 for gpus, each in zip((2, 4, 8), large, strict=True)},
    )


# Medians of the tables of SGLang's operators in ai-dynamo/aiconfigurator, commit 095f58a (Apache-2.0).
RATES = {
    "NVIDIA-A100-SXM4-80GB": _rates((248, 1498, 1127, 197), (5.1, 5.2, 5.8), (747, 999, 1164)),
    "NVIDIA-H100-80GB-HBM3": _rates((716, 2773, 3050, 563), (2.5, 2.7, 3.6), (467, 618, 577)),
    "NVIDIA-H200": _rates((685, 3922, 4275, 553), (2.5, 2.8, 3.5), (464, 613, 563)),
    "NVIDIA-L40S": _rates((186, 734, 728, 200), (5.6, 14.5, 27.6), (7076, 55466, 126244)),
}


def replica(model: str, gpu: str, tensor: int) -> tuple[Speed, float]:
    """The replica, and the seconds of its start by plan.

    Raises ValueError if the operator has no plan for it, or if its speed is not known.
    """
    known = board(gpu)
    if known is None or known.product not in RATES:
        raise ValueError(f"--gpu is {gpu}: its speed is not known; right would be one of {', '.join(RATES)}")
    words = [
        f"--model={model}",
        f"--gpu={known.product}={_GPUS_OF_A_NODE}x1",
        f"--tensor={tensor}",
    ]
    parser = argparse.ArgumentParser()
    inputs.options(parser)
    try:
        given = inputs.read(parser.parse_args(words))
    except InputError as error:
        raise ValueError(str(error)) from error
    plan = explore(given.spec, given.checkpoint, given.inventory, given.settings.engine, given.source).result
    if not isinstance(plan, Plan):
        raise ValueError(f"the operator has no plan: {plan.message}")  # noqa: TRY004 - the option is wrong
    return speed_of(given.checkpoint, plan, RATES[known.product]), float(plan.startup_seconds)


def speed_of(checkpoint: Checkpoint, plan: Plan, rates: Rates) -> Speed:
    """The speed of a planned replica. Raises ValueError for experts, quantization and linear attention."""
    if checkpoint.experts or checkpoint.quantization or checkpoint.linear or checkpoint.dtype != "bfloat16":
        raise ValueError("--model is not a dense model in bfloat16, and only their speed is known")
    tp, layers, hidden = plan.tensor_parallel, checkpoint.layers, checkpoint.hidden
    table = checkpoint.vocab * hidden * 2
    weights, tables = checkpoint.weight_bytes, 1 if checkpoint.tied else 2
    linear = (weights - tables * table) / 2
    small, large = rates.small.get(tp, 0.0), rates.large.get(tp, 0.0)
    pairs = 4 * checkpoint.heads * checkpoint.head_dim * layers
    return Speed(
        floor=OVERHEAD_SECONDS + (weights - (tables - 1) * table) / tp / rates.weights + 2 * layers * small,
        prefill=2 * linear / tp / rates.matrix + 2 * layers * hidden * large / _LARGE_MESSAGE,
        cached=checkpoint.kv_bytes_per_token(tp) / rates.cache,
        attention=pairs / tp / rates.attention,
        pool=plan.kv_tokens,
        slots=plan.max_running_requests,
        gpus=plan.gpus_per_replica,
        chunk=_chunk(plan.args),
    )


def _chunk(arguments: tuple[str, ...]) -> int:
    option = "--chunked-prefill-size="
    return next(int(each.removeprefix(option)) for each in arguments if each.startswith(option))
