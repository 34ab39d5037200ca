"""Which splits over GPUs an engine accepts, and why it rejects the others.

SGLang 0.5.23 asserts these rules while it loads a model: attention and KV heads, the part of every row-parallel layer
that a rank gets, the number of experts, and the alignment of each part with quantization groups. Some bad splits pass
its checks and fail later with a kernel error. They are rejected here too.

`tp` ranks share every layer. They form `ep` groups that divide the routed experts, and the tp / ep ranks of a group
share the matrices of each of its experts ("MoE TP"). The vocabulary never blocks a split, because it is padded.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.heads import head_refusal, tower_refusal
from qwen_runtime.checkpoints.formats import uniform_steps
from qwen_runtime.checkpoints.model import Steps

_NO_STEPS = Steps()


def refusal(checkpoint: Checkpoint, tp: int, ep: int = 1) -> str | None:
    """Why the checkpoint cannot be split over `tp` ranks with `ep` expert groups, or None if it can."""
    if tp < 1 or ep < 1:
        name, value = ("TP", tp) if tp < 1 else ("EP", ep)
        return f"{name} {value} is not a number of GPUs: it must be at least 1"
    if ep > 1 and checkpoint.experts is None:
        return f"EP {ep} needs a model with experts, but {checkpoint.architecture} has none: EP must be 1"
    if tp % ep:
        return f"TP {tp} is not a multiple of EP {ep}: every expert group needs the same number of GPUs"
    quantization = checkpoint.quantization
    if (tp, ep) == (1, 1):
        # Merged layers and experts: SGLang checks their widths on one GPU as well (layers/quantization/fp8.py:600 and
        # 1588, compressed_tensors_w8a8_fp8_moe.py:109).
        return _widths(checkpoint, 1, 1) if quantization is not None and quantization.block else None
    if checkpoint.gguf:
        # SGLang divides rows of packed blocks by bytes, without a check that a block stays whole (linear.py:1661-1664).
        return f"GGUF weights run on one GPU only, not on TP {tp}"
    tower = tower_refusal(checkpoint.tower, tp) if checkpoint.tower else None
    return head_refusal(checkpoint, tp) or tower or _experts(checkpoint, tp, ep) or _widths(checkpoint, tp, ep)


def valid(checkpoint: Checkpoint, max_gpus: int) -> tuple[tuple[int, int], ...]:
    """All (tp, ep) with tp <= `max_gpus` that the engine accepts: fewer GPUs first, then smaller EP."""
    most = min(max_gpus, checkpoint.heads)
    return tuple(
        (tp, ep)
        for tp in range(1, most + 1)
        for ep in range(1, tp + 1 if checkpoint.experts is not None else 2)
        if tp % ep == 0 and refusal(checkpoint, tp, ep) is None
    )


def fewest_groups(checkpoint: Checkpoint, tp: int) -> int | None:
    """The smallest number of expert groups that the engine accepts for `tp` ranks, None if it accepts none."""
    if tp > checkpoint.heads:
        return None
    groups = range(1, tp + 1 if checkpoint.experts is not None else 2)
    return next((ep for ep in groups if tp % ep == 0 and refusal(checkpoint, tp, ep) is None), None)


def _experts(checkpoint: Checkpoint, tp: int, ep: int) -> str | None:
    if checkpoint.experts is None:
        return None
    if tp > checkpoint.experts:
        return f"TP {tp} is more than the {checkpoint.experts} experts"
    if checkpoint.experts % ep:
        return f"{checkpoint.experts} experts are not divisible by EP {ep}"
    if checkpoint.expert_intermediate is None and checkpoint.quantization is not None and tp > ep:
        return f"the facts do not have the width of one quantized expert, so TP {tp} with EP {ep} cannot be checked"
    return None


def _widths(checkpoint: Checkpoint, tp: int, ep: int) -> str | None:
    shared, expert, steps = checkpoint.shared_intermediate, checkpoint.expert_intermediate, _steps(checkpoint)
    why = None
    if checkpoint.dense_layers:
        why = _share("MLP width", checkpoint.intermediate, tp, steps.mlp)
    if why is None and shared is not None:
        why = _share("shared expert width", shared, tp, steps.shared_expert)
    if why is None and expert is not None:
        why = _expert_share(checkpoint, tp, ep, steps.experts)
    return why or _attention(checkpoint, tp, steps)


def _attention(checkpoint: Checkpoint, tp: int, steps: Steps) -> str | None:
    for name, share, step in _attention_shares(checkpoint, tp, steps):
        if share % step:
            return f"{name} / TP {tp} = {share} is not a multiple of {step}, the step of its quantization"
    return _outputs(checkpoint, tp, steps.qkv)


def _steps(checkpoint: Checkpoint) -> Steps:
    """What each rank's shares must be multiples of. Facts hold it where layers differ; else the format decides."""
    quantization = checkpoint.quantization
    if quantization is None:
        return _NO_STEPS
    return quantization.steps or uniform_steps(quantization)


def _share(name: str, width: int, ranks: int, step: int) -> str | None:
    if width % ranks:
        return f"{name} {width} is not divisible by TP {ranks}"
    if width // ranks % step:
        return (
            f"{name} {width} / TP {ranks} = {width // ranks} is not a multiple of {step}, the step of its quantization"
        )
    return None


def _expert_share(checkpoint: Checkpoint, tp: int, ep: int, step: int) -> str | None:
    width, experts = checkpoint.expert_intermediate or 0, checkpoint.experts or 0
    ranks = tp // ep
    if not width % ranks and not width // ranks % step:
        return None
    fits = (n for n in range(ep + 1, tp + 1) if not (tp % n or experts % n or width % (tp // n * step)))
    instead = next(fits, None)
    cure = f"; EP {instead} makes it {width // (tp // instead)}" if instead else ""
    split = f"expert width {width} / (TP {tp} / EP {ep})"
    if width % ranks:
        return f"{split} is not a whole number{cure}"
    return f"{split} = {width // ranks} is not a multiple of {step}, the step of its quantization{cure}"


def _attention_shares(checkpoint: Checkpoint, tp: int, steps: Steps) -> Iterator[tuple[str, int, int]]:
    """(name with width, share of one rank, its step) for every share. A rank has at least one head of K and V."""
    width = checkpoint.heads * checkpoint.head_dim
    yield f"attention output width {width}", width // tp, steps.attention
    linear = checkpoint.linear
    if linear is not None:
        value = linear.value_heads * linear.value_dim
        yield f"linear attention output width {value}", value // tp, steps.linear
    kv = max(1, checkpoint.kv_heads // tp) * checkpoint.head_dim
    yield f"KV projection width {checkpoint.kv_heads * checkpoint.head_dim}", kv, steps.kv
    if linear is not None:
        key = linear.key_heads * linear.key_dim
        yield f"linear attention key width {key}", key // tp, steps.linear_key


def _outputs(checkpoint: Checkpoint, tp: int, step: int) -> str | None:
    heads = checkpoint.heads // tp + 2 * max(1, checkpoint.kv_heads // tp)
    if heads * checkpoint.head_dim % step == 0:
        return None
    return (
        f"QKV projection at TP {tp} has {heads * checkpoint.head_dim} outputs, "
        f"which is not a multiple of {step}, the step of its quantization"
    )
