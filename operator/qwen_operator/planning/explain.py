"""The arithmetic of a plan as lines that a person can check by hand."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.checkpoints.facts import CATALOG, Checkpoint
from qwen_operator.hardware.inventory import GpuProduct, short_name
from qwen_operator.planning.memory import GIB, MARGIN_GIB, WEIGHT_OVERHEAD_GIB, Budget
from qwen_operator.planning.types import Alternative

UNKNOWNS = (
    "not known: throughput; nothing was measured for this model on this GPU",
    "not known: whether the memory formula holds here; it was compared with logs of other models, never run",
    "not considered yet: several nodes per replica, a quantized KV cache, longer contexts by YaRN, whether the GPU's "
    "generation has kernels for the format of the weights",
)


@dataclass(frozen=True, slots=True)
class Fit:
    """A product with the memory of every split that may be used on it, smallest first, and the one that fits."""

    product: GpuProduct
    budgets: tuple[Budget, ...]
    chosen: Budget | None

    @property
    def best(self) -> Budget:
        """The chosen split, or else the one with most room."""
        return self.chosen or max(self.budgets, key=lambda one: (one.kv_tokens, one.kv))


def model(checkpoint: Checkpoint, context: int) -> tuple[str, ...]:
    """What the model is and what it needs in all."""
    origin = "catalog, no config.json was read" if checkpoint.source == CATALOG else "config.json and weight files"
    per_token = checkpoint.kv_bytes_per_token(1)
    return (
        f"model: {checkpoint.architecture}, {checkpoint.quantization_name}, {checkpoint.layers} layers, "
        f"{checkpoint.heads} heads, {checkpoint.kv_heads} KV heads x {checkpoint.head_dim} (from {origin})",
        f"weights: {checkpoint.weight_bytes / GIB:.2f} GiB ({checkpoint.weight_bytes / 1e9:.1f} GB)",
        f"KV cache: 2 x {checkpoint.kv_heads} x {checkpoint.head_dim} x {checkpoint.layers} layers x 2 B = "
        f"{per_token / 1024:g} KiB per token; {context} tokens = {context * per_token / GIB:.2f} GiB",
    )


def splits(fit: Fit, context: int) -> tuple[str, ...]:
    """One line for the product and one for each split up to the chosen one."""
    product = fit.product
    lines = [f"{product.product}: {product.memory_mib / 1024:.2f} GiB per GPU, {product.gpus_per_node} per node"]
    for one in fit.budgets:
        verdict = f"{one.kv_tokens} tokens, {context} wanted" if one != fit.chosen else f"{one.kv_tokens} tokens: fits"
        lines.append(
            f"TP {one.tp}: {one.free:.2f} GiB free x {one.tuning.fraction / 1000:g} - {one.weights:.2f} weights - "
            f"{MARGIN_GIB:g} margin = {one.kv:.2f} GiB KV / {one.kv_bytes_per_token / 1024:g} KiB = {verdict}"
        )
        if one == fit.chosen:
            break
    lines.append(f"weights per GPU = all / TP + {WEIGHT_OVERHEAD_GIB:g} GiB; fraction is --mem-fraction-static")
    return tuple(lines)


def startup(checkpoint: Checkpoint, seconds: int, *, given: bool) -> str:
    """How long a start may take."""
    if given:
        return f"start-up: {seconds} s (spec.engine.startupSeconds)"
    gigabytes = checkpoint.weight_bytes / 1e9
    return f"start-up: 120 s imports + {gigabytes:.1f} GB at 1 GB/s + 120 s graphs = {seconds} s (assumed)"


def sentence(product: GpuProduct, budget: Budget) -> str:
    """The plan in one sentence."""
    return (
        f"{budget.tp} x {product.product} per replica, TP {budget.tp}: {budget.weights:.1f} GiB weights + "
        f"{budget.kv:.1f} GiB KV per GPU = {budget.kv_tokens} tokens"
    )


def missing(fit: Fit, context: int) -> str:
    """What is missing on the product that comes nearest."""
    one = fit.best
    kv = context * one.kv_bytes_per_token / GIB
    return (
        f"{one.tp} x {fit.product.product} ({one.total:.1f} GiB): {one.weights:.1f} weights + {kv:.1f} KV for "
        f"{context} tokens + {MARGIN_GIB:g} margin = {one.weights + kv + MARGIN_GIB:.1f} GiB per GPU at TP {one.tp} "
        f"need {one.need(context):.1f} GiB free, there are {one.free:.1f}"
    )


def nearest(alternative: Alternative | None) -> str:
    """What to do about it."""
    if alternative is None:
        return "no context fits: use GPUs with more memory, more of them, or a smaller model"
    gpus = f"{alternative.gpus_per_replica}x{short_name(alternative.gpu_product)}"
    return f"spec.contextTokens: {alternative.context_tokens} fits {gpus}"
