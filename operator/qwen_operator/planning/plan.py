"""From spec, facts and inventory to a Plan, or a NoFit that shows the arithmetic.

This is the first form of sizing. It is one-sided: where a number is not known it takes the one that asks for more
memory, so that a plan that fits on paper fits. What it does not know stands in the last lines of `steps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import CATALOG, Checkpoint
from qwen_operator.hardware.inventory import MEMORY_LABEL, PRODUCT_LABEL, GpuProduct, Inventory
from qwen_operator.planning import engine, explain
from qwen_operator.planning.engine import EngineChoice
from qwen_operator.planning.engine_args import RefusedArgsError
from qwen_operator.planning.explain import Fit
from qwen_operator.planning.memory import GIB, budget
from qwen_operator.planning.types import Alternative, EngineDefaults, NoFit, Plan

# Dense and mixture-of-experts Qwen models whose every layer has a KV cache of the same shape.
SIZED = ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
# SGLang serves these families as well, but their memory follows other formulas (state per request, images).
_UNSIZED = ("QWenLMHeadModel", "Qwen2VL", "Qwen2_5_VL", "Qwen3Next", "Qwen3_5", "Qwen3VL", "Qwen3Omni", "Qwen4")

_IMPORT_SECONDS = 120
_GRAPH_SECONDS = 120
_LOAD_BYTES_PER_SECOND = 1_000_000_000
_CONTEXT_STEP = 256
_ALTERNATIVES = 8
_SHOWN = 6


def plan(spec: Spec, checkpoint: Checkpoint, inventory: Inventory, defaults: EngineDefaults) -> Plan | NoFit:
    """The plan for one replica; pure and deterministic.

    Per product the smallest valid power of two of GPUs wins; between products the user's order, else fewer GPUs,
    else smaller memory.
    """
    try:
        choice = engine.choose(spec.engine, defaults)
    except RefusedArgsError as error:
        return NoFit(Reason.UNKNOWN_FLAG if error.unknown else Reason.INVALID_OVERRIDE, str(error))
    context = spec.context_tokens or checkpoint.max_positions
    inventory = inventory.usable(spec.pod.tolerations)
    groups = _groups(spec, inventory)
    refusal = (
        _unknown_architecture(checkpoint)
        or _too_long(context, checkpoint)
        or _no_products(spec, inventory, groups)
        or _invalid_tensor(spec, checkpoint, groups)
    )
    if refusal:
        return refusal
    looked: list[Fit] = []
    for group in groups:
        fits = [_fit(spec, checkpoint, product, context) for product in group]
        looked += fits
        best = min((fit for fit in fits if fit.chosen), key=_cost, default=None)
        if best:
            return _plan(spec, checkpoint, choice, best, context)
    refused = _no_fit(checkpoint, looked, context, inventory)
    limits = _limits(spec)
    if not limits:
        return refused
    free = plan(_without_limits(spec), checkpoint, inventory, defaults)
    if isinstance(free, NoFit):
        return refused
    way_out = f"without {' and '.join(limits)}, TP {free.tensor_parallel} fits: {free.gpus}"
    return replace(refused, message=f"{refused.message}; {way_out}")


def _limits(spec: Spec) -> list[str]:
    """The limits of the user's own on the size of a replica, as written."""
    values = {
        "spec.parallelism.tensor": spec.parallelism.tensor,
        "spec.hardware.maxGpusPerReplica": spec.hardware.max_gpus_per_replica,
    }
    return [f"{path} {value}" for path, value in values.items() if value is not None]


def _without_limits(spec: Spec) -> Spec:
    hardware = replace(spec.hardware, max_gpus_per_replica=None)
    return replace(spec, hardware=hardware, parallelism=replace(spec.parallelism, tensor=None))


def _groups(spec: Spec, inventory: Inventory) -> list[list[GpuProduct]]:
    """Products in order of preference; those within a group are equally welcome."""
    if not spec.hardware.products:
        return [list(inventory.products)] if inventory.products else []
    groups = [[one for one in inventory.products if one.called(name)] for name in spec.hardware.products]
    return [group for group in groups if group]


def _unknown_architecture(checkpoint: Checkpoint) -> NoFit | None:
    name = checkpoint.architecture
    if name in SIZED:
        return None
    known = ", ".join(SIZED)
    if name.startswith(_UNSIZED):
        why = f"SGLang serves {name}, but this version cannot work out its memory yet; it can for {known}"
    else:
        why = f"{name} is not a Qwen architecture that SGLang serves; known are {known}"
    return NoFit(Reason.UNKNOWN_ARCHITECTURE, why)


def _too_long(context: int, checkpoint: Checkpoint) -> NoFit | None:
    if context <= checkpoint.max_positions:
        return None
    return NoFit(
        Reason.INVALID_OVERRIDE,
        f"spec.contextTokens is {context}, but the model's own limit is {checkpoint.max_positions}: ask for at most "
        "that (longer contexts by YaRN are not supported yet)",
    )


def _no_products(spec: Spec, inventory: Inventory, groups: Sequence[object]) -> NoFit | None:
    if groups:
        return None
    if inventory.unlabelled:
        return NoFit(Reason.UNLABELLED_GPUS, _unlabelled(inventory))
    ignored = f"; left out: {'; '.join(inventory.ignored)}" if inventory.ignored else ""
    if inventory.products and spec.hardware.products:
        names = ", ".join(f"{one.product} ({one.short})" for one in inventory.products)
        asked = ", ".join(spec.hardware.products)
        return NoFit(Reason.NO_GPUS, f"spec.hardware.products asks for {asked}; here are {names}{ignored}")
    return NoFit(
        Reason.NO_GPUS,
        f"no node offers nvidia.com/gpu and the chart declares no gpuPools: add a GPU node with the NVIDIA device "
        f"plugin, or declare the pool that will be scaled up{ignored}",
    )


def _unlabelled(inventory: Inventory) -> str:
    first, more = inventory.unlabelled[0], len(inventory.unlabelled) - 1
    others = f" (and on {more} more)" if more else ""
    return (
        f"GPUs on node {first}{others} carry no product and memory labels. Run GPU feature discovery, or: kubectl "
        f"label node {first} {PRODUCT_LABEL}=NVIDIA-H100-80GB-HBM3 {MEMORY_LABEL}=81559 with the values of its own GPU "
        "(nvidia-smi --query-gpu=name,memory.total; spaces become '-', memory in MiB)"
    )


def _invalid_tensor(spec: Spec, checkpoint: Checkpoint, groups: Sequence[Sequence[GpuProduct]]) -> NoFit | None:
    tensor = spec.parallelism.tensor
    if tensor is None:
        return None
    most = max(_most(spec, product) for group in groups for product in group)
    valid = [tp for tp in range(1, most + 1) if checkpoint.tensor_parallel_refusal(tp) is None]
    why = checkpoint.tensor_parallel_refusal(tensor)
    if why is None and tensor > most:
        why = f"one node here has at most {most} GPUs for a replica"
    if why is None:
        return None
    right = ", ".join(str(tp) for tp in valid)
    return NoFit(Reason.INVALID_OVERRIDE, f"spec.parallelism.tensor is {tensor}: {why}; valid here: {right}")


def _most(spec: Spec, product: GpuProduct) -> int:
    return min(product.gpus_per_node, spec.hardware.max_gpus_per_replica or product.gpus_per_node)


def _fit(spec: Spec, checkpoint: Checkpoint, product: GpuProduct, context: int) -> Fit:
    """The splits of a product: the asked one, or every valid power of two (NVLink rings and SGLang's own all-reduce
    are made for those)."""
    most = _most(spec, product)
    tensor = spec.parallelism.tensor
    wanted = [tensor] if tensor else [1 << power for power in range(most.bit_length())]
    valid = [tp for tp in wanted if tp <= most and checkpoint.tensor_parallel_refusal(tp) is None]
    budgets = tuple(budget(checkpoint, product.memory_mib, tp) for tp in valid)
    return Fit(product, budgets, next((one for one in budgets if one.kv_tokens >= context), None))


def _cost(fit: Fit) -> tuple[int, int, str]:
    return (fit.chosen.tp if fit.chosen else 0, fit.product.memory_mib, fit.product.product)


def _plan(spec: Spec, checkpoint: Checkpoint, choice: EngineChoice, fit: Fit, context: int) -> Plan:
    chosen = fit.best
    args, warnings = engine.arguments(choice, chosen, context)
    seconds = _IMPORT_SECONDS + math.ceil(checkpoint.weight_bytes / _LOAD_BYTES_PER_SECOND) + _GRAPH_SECONDS
    startup = spec.engine.startup_seconds or seconds
    steps = (
        *explain.model(checkpoint, context),
        *explain.splits(fit, context),
        explain.startup(checkpoint, startup, given=spec.engine.startup_seconds is not None),
        *explain.UNKNOWNS,
    )
    facts = "; facts from the catalog" if checkpoint.source == CATALOG else ""
    message = f"{explain.sentence(fit.product, chosen)}{facts}"
    return Plan(
        gpu_product=fit.product.product,
        gpus_per_replica=chosen.tp,
        tensor_parallel=chosen.tp,
        context_tokens=context,
        kv_tokens=chosen.kv_tokens,
        startup_seconds=startup,
        engine_image=choice.image,
        engine_version=choice.version,
        args=args,
        env=choice.env,
        shm_bytes=chosen.tp * GIB,
        steps=steps,
        selector=dict(fit.product.selector),
        tolerations=tuple(fit.product.tolerations),
        warnings=warnings,
        message=message,
    )


def _no_fit(checkpoint: Checkpoint, looked: Sequence[Fit], context: int, inventory: Inventory) -> NoFit:
    fits = [fit for fit in looked if fit.budgets]
    fits.sort(key=lambda fit: (fit.best.kv_tokens, fit.best.kv), reverse=True)
    alternatives = tuple(alternative for fit in fits if (alternative := _alternative(fit)))
    steps = (
        *explain.model(checkpoint, context),
        *(line for fit in fits[:_SHOWN] for line in explain.splits(fit, context)),
        *explain.UNKNOWNS,
    )
    nearest = alternatives[0] if alternatives else None
    unlabelled = f". {_unlabelled(inventory)}" if inventory.unlabelled else ""
    message = f"{explain.missing(fits[0], context)}; {explain.nearest(nearest)}{unlabelled}"
    return NoFit(Reason.DOES_NOT_FIT, message, steps, alternatives[:_ALTERNATIVES])


def _alternative(fit: Fit) -> Alternative | None:
    """The longest context that fits on a product, in steps of 256 tokens, on as few GPUs as hold it."""
    context = fit.best.kv_tokens // _CONTEXT_STEP * _CONTEXT_STEP
    if context == 0:
        return None
    tp = next(one.tp for one in fit.budgets if one.kv_tokens >= context)
    return Alternative(context, fit.product.product, tp)
