"""Refusals before any arithmetic: models, contexts, products and overrides that cannot be right.

Every refusal names the field, its value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import parallel
from qwen_operator.checkpoints.facts import Checkpoint, Task
from qwen_operator.engines.types import EngineVersion, Role
from qwen_operator.hardware.inventory import (
    GPU_RESOURCE,
    MEMORY_LABEL,
    PRODUCT_LABEL,
    GpuProduct,
    Inventory,
    UnlabelledNode,
)
from qwen_operator.planning import answers, behaviour, gates
from qwen_operator.planning.engine import EngineChoice
from qwen_operator.planning.fits import Demand, Search
from qwen_operator.planning.pipeline import nodes_for
from qwen_operator.planning.types import NoFit
from qwen_runtime.checkpoints.config import LAYOUTS

Groups = Sequence[Sequence[GpuProduct]]

_ON_PARTS = "an engine cannot be split over MIG slices or shared GPUs"
_MOST_VALID = 16

SIZED = tuple(LAYOUTS)
"""Model classes whose memory the operator can calculate."""


def refuse(spec: Spec, search: Search, choice: EngineChoice, inventory: Inventory, groups: Groups) -> NoFit | None:
    """The first refusal, or None."""
    wanted, checkpoint = search.wanted, search.checkpoint
    return (
        _unknown_architecture(checkpoint, choice.engine)
        or _dropped(checkpoint, choice.engine)
        or _unloadable(checkpoint)
        or _too_long(spec, wanted, checkpoint)
        or _contradicting_args(spec, wanted, checkpoint, choice)
        or _no_products(spec, inventory, groups)
        or _barred(search, groups)
        or _invalid_tensor(search, groups)
        or _invalid_stages(search, groups)
    )


def _unknown_architecture(checkpoint: Checkpoint, engine: EngineVersion) -> NoFit | None:
    """The refusal of a model class that SGLang does not have, cannot use for this, or that the operator cannot size."""
    name, models, kind = checkpoint.architecture, engine.models, answers.task(checkpoint, engine.models)
    sized = f"the operator can calculate the memory of {', '.join(SIZED)}"
    if models.known and name not in models.architectures:
        return NoFit(
            Reason.UNKNOWN_ARCHITECTURE,
            f"SGLang {engine.version} does not have the architecture {name}: correct architectures in config.json, or "
            f"choose another model; {sized}",
        )
    if name not in SIZED:
        has = f"SGLang {engine.version} has {name}" if models.known else f"the model class is {name}"
        why = f"{has}, but this version of the operator cannot calculate its memory; {sized}"
        return NoFit(Reason.UNKNOWN_ARCHITECTURE, why)
    if models.known and kind is Task.EMBED and name not in models.embeds | models.textless:
        return NoFit(
            Reason.UNKNOWN_ARCHITECTURE,
            f"the files beside the weights say that this is an embedding model, and SGLang {engine.version} makes no "
            f"embeddings with {name}; it does with {', '.join(one for one in SIZED if one in models.embeds)}",
        )
    return None


def _dropped(checkpoint: Checkpoint, engine: EngineVersion) -> NoFit | None:
    why = gates.dropped(checkpoint, engine)
    return NoFit(Reason.DOES_NOT_FIT, why) if why else None


def _unloadable(checkpoint: Checkpoint) -> NoFit | None:
    """The refusal of widths that SGLang loads on no number of GPUs, or None."""
    why = parallel.refusal(checkpoint, 1)
    if why is None or parallel.valid(checkpoint, checkpoint.heads):
        return None
    return NoFit(
        Reason.DOES_NOT_FIT, f"SGLang cannot load the weights on any number of GPUs: {why}; use 16-bit weights"
    )


def _too_long(spec: Spec, wanted: Demand, checkpoint: Checkpoint) -> NoFit | None:
    most = behaviour.longest_context(checkpoint)
    if wanted.context > most:
        longer = most > checkpoint.max_positions
        reach = f" ({most} with {behaviour.stretched_by(checkpoint)})" if longer else ""
        return NoFit(
            Reason.INVALID_OVERRIDE,
            f"spec.contextTokens is {wanted.context}, but the model's own limit is {checkpoint.max_positions}{reach}: "
            f"set at most {most}",
        )
    if spec.workload and wanted.request > wanted.context:
        return NoFit(
            Reason.INVALID_OVERRIDE,
            f"spec.workload asks for requests of {wanted.input_tokens} + {wanted.output_tokens} tokens, but the "
            f"context is {wanted.context}: lower them, or set spec.contextTokens to at least {wanted.request}",
        )
    return None


def _contradicting_args(spec: Spec, wanted: Demand, checkpoint: Checkpoint, choice: EngineChoice) -> NoFit | None:
    """The refusal of options that contradict a field, or None."""
    for why in _contradictions(spec, wanted, checkpoint, choice):
        return NoFit(Reason.INVALID_OVERRIDE, why)
    return None


def _contradictions(spec: Spec, wanted: Demand, checkpoint: Checkpoint, choice: EngineChoice) -> Iterator[str]:
    given = choice.given(Role.KV_CACHE_TYPE)
    kind = spec.engine.kv_cache_type
    if given and kind != "Auto" and given[1] != choice.engine.formats.kv_cache_types[kind].name:
        yield (
            f"{given[0]} sets {choice.table.name(Role.KV_CACHE_TYPE)}={given[1]}, but spec.engine.kvCacheType is "
            f"{kind}: remove one of them"
        )
    yield from _two_parsers(spec, choice)
    given = choice.given(Role.MODEL_OVERRIDES)
    if given and behaviour.model_overrides(checkpoint, wanted.context):
        yield (
            f"{given[0]} sets {choice.table.name(Role.MODEL_OVERRIDES)}, which spec.contextTokens {wanted.context} "
            f"needs for YaRN: remove the option, or set spec.contextTokens to at most {checkpoint.max_positions}"
        )
    given = choice.given(Role.MAX_RUNNING_REQUESTS)
    if given and wanted.given and given[1].isdigit() and int(given[1]) < wanted.concurrency:
        yield (
            f"{given[0]} sets {choice.table.name(Role.MAX_RUNNING_REQUESTS)}={given[1]}, but "
            f"spec.workload.concurrency is {wanted.concurrency}: raise the first or lower the second"
        )


def _two_parsers(spec: Spec, choice: EngineChoice) -> Iterator[str]:
    engine = spec.engine
    for field, value, role in (
        ("toolCallParser", engine.tool_call_parser, Role.TOOL_CALL_PARSER),
        ("reasoningParser", engine.reasoning_parser, Role.REASONING_PARSER),
    ):
        given = choice.given(role)
        if given and value not in (answers.AUTO, given[1]):
            yield (
                f"{given[0]} sets {choice.table.name(role)}={given[1]}, but spec.engine.{field} is {value}: remove one "
                "of them"
            )


def _no_products(spec: Spec, inventory: Inventory, groups: Groups) -> NoFit | None:
    if groups:
        return None
    ignored = f"; left out: {'; '.join(inventory.ignored)}" if inventory.ignored else ""
    if inventory.unlabelled:
        return NoFit(Reason.UNLABELLED_GPUS, f"{unlabelled(inventory)}{ignored}")
    resource = spec.hardware.resource_name
    if not inventory.products and resource != GPU_RESOURCE:
        return NoFit(Reason.NO_GPUS, _no_parts(resource, inventory))
    if inventory.products and spec.hardware.products:
        names = ", ".join(f"{one.product} ({one.short})" for one in inventory.products)
        asked = ", ".join(spec.hardware.products)
        return NoFit(Reason.NO_GPUS, f"spec.hardware.products is {asked}, but the cluster has {names}{ignored}")
    # Each node that is left out has its own way out; a node more would be none for it.
    way_out = ignored or ": add a GPU node with the NVIDIA device plugin, or declare the pool that will be scaled up"
    return NoFit(Reason.NO_GPUS, f"no node offers a whole nvidia.com/gpu and the chart declares no gpuPools{way_out}")


def _no_parts(resource: str, inventory: Inventory) -> str:
    """The refusal of a resource that no node offers, or only nodes that cannot be planned."""
    if inventory.ignored:
        return f"no node offers {resource} that can be planned: {'; '.join(inventory.ignored)}"
    names = ", ".join(name for name in inventory.offered if name != resource)
    plain = [one for one in inventory.parts if one.resource_name == GPU_RESOURCE and one.share]
    if plain:
        named = ", ".join(sorted({one.product for one in plain}))
        names += f"; the slices or shares here have the name {GPU_RESOURCE}: to use them, remove the field and set "
        names += f"spec.hardware.products to one of {named}"
    cure = f"the nodes offer {names}" if names else "the nodes offer no GPUs either"
    return (
        f"spec.hardware.resourceName is {resource}, but no node offers it and no entry of gpuPools declares it: {cure}"
    )


def unlabelled(inventory: Inventory) -> str:
    """The command that labels the first node whose GPUs lack labels."""
    first, more = inventory.unlabelled[0], len(inventory.unlabelled) - 1
    others = f" (and on {more} more)" if more else ""
    product = f" ({first.product})" if first.product else ""
    values = {PRODUCT_LABEL: "PRODUCT", MEMORY_LABEL: "MIB"}
    command = " ".join(f"{label}={values[label]}" for label in first.lacks)
    return (
        f"GPUs on node {first.node}{product}{others} carry no usable label {' and no '.join(first.lacks)}. "
        f"{_source(first)}kubectl label node {first.node} {command} --overwrite, with {_values(first)}"
    )


def _source(node: UnlabelledNode) -> str:
    return "Set it: " if node.unified else "Run GPU feature discovery, or: "


def _values(node: UnlabelledNode) -> str:
    """Where a person reads the values of the missing labels."""
    if node.unified:
        most = (
            f"at most {node.host_mib}, the node's allocatable memory" if node.host_mib else "less than `free -m` shows"
        )
        return f"the MiB that engines may use of the memory that GPU and CPU share: {most}"
    fields = {PRODUCT_LABEL: "name", MEMORY_LABEL: "memory.total"}
    query = ",".join(fields[label] for label in node.lacks)
    forms = {PRODUCT_LABEL: "spaces become '-'", MEMORY_LABEL: "memory in MiB, without the unit"}
    form = "; ".join(forms[label] for label in node.lacks)
    return f"what nvidia-smi --query-gpu={query} --format=csv prints there ({form})"


def _barred(search: Search, groups: Groups) -> NoFit | None:
    """The refusal if no product can run the format, or None."""
    products = [product for group in groups for product in group]
    reasons = [gates.barrier(search.checkpoint, search.kv_cache_type, one, search.engine) for one in products]
    if not all(reasons):
        return None
    why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    return NoFit(Reason.DOES_NOT_FIT, f"{why}: use newer GPUs, or another format")


def _invalid_tensor(search: Search, groups: Groups) -> NoFit | None:
    tensor, stages, checkpoint = search.limits.tensor, search.limits.pipeline or 1, search.checkpoint
    if tensor is None:
        return None
    products = [product for group in groups for product in group]
    most = max(search.most(product, product.full_nodes) for product in products)
    pairs = parallel.valid(checkpoint, most // stages)
    valid = sorted({tp for tp, _ in pairs})
    why = None if tensor in valid else parallel.refusal(checkpoint, tensor)
    if tensor > 1 and all(product.share for product in products):
        why = _ON_PARTS
    elif why is None and tensor * stages > most:
        of_stages = f", and {stages} stages of {tensor} need {tensor * stages}" if stages > 1 else ""
        why = f"one replica can have at most {most} GPUs here{of_stages}"
    elif why is None and not any(_placeable(tensor, stages, search, product) for product in products):
        why = f"it cannot be split evenly over nodes of {_sizes(products)} GPUs"
    if why is None:
        return None
    right = ", ".join(str(tp) for tp in valid) or "none"
    return NoFit(Reason.INVALID_OVERRIDE, f"spec.parallelism.tensor is {tensor}: {why}; valid here: {right}")


def _invalid_stages(search: Search, groups: Groups) -> NoFit | None:
    """The refusal of a number of stages for which there are not enough GPUs, whatever the size of a stage, or None."""
    stages = search.limits.pipeline or 1
    products = [product for group in groups for product in group]
    if stages == 1 or any(_placeable(1, stages, search, product) for product in products):
        return None
    most = max(search.most(product, product.full_nodes) for product in products)
    why = f"the stages cannot be shared out evenly over nodes of {_sizes(products)} GPUs"
    if all(product.share for product in products):
        why = _ON_PARTS
    elif stages > most:
        why = f"one replica can have at most {most} GPUs here, and each stage needs one"
    valid = [count for count in range(1, most + 1) if any(_placeable(1, count, search, one) for one in products)]
    right = ", ".join(str(count) for count in valid[:_MOST_VALID])
    return NoFit(Reason.INVALID_OVERRIDE, f"spec.parallelism.pipeline is {stages}: {why}; valid here: {right}")


def _placeable(tensor: int, stages: int, search: Search, product: GpuProduct) -> bool:
    if tensor * stages > search.most(product, product.full_nodes):
        return False
    if stages > 1:
        return nodes_for(tensor, stages, product.gpus_per_node, product.full_nodes) is not None
    return tensor % -(-tensor // product.gpus_per_node) == 0


def _sizes(products: Sequence[GpuProduct]) -> str:
    return ", ".join(str(size) for size in sorted({product.gpus_per_node for product in products}))
