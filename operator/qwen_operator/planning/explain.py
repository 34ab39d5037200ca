"""The arithmetic of a plan as lines that a person can check by hand."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import CATALOG, Checkpoint
from qwen_operator.engines.types import KvCacheType
from qwen_operator.hardware.inventory import GpuProduct
from qwen_operator.hardware.pools import dollars
from qwen_operator.planning.fits import Demand, Fit
from qwen_operator.planning.memory import GIB, Budget
from qwen_operator.planning.types import Alternative

MIB = 1 << 20
UNKNOWNS = (
    "not known: throughput; nothing was measured for this model on this GPU",
    "not known: whether the memory formula holds here; it was compared with logs of other runs, never run",
)
GGUF = (
    "a GGUF repository holds several files: set spec.source.uri to the repository and spec.source.file to the file to "
    "load, for example qwen1_5-7b-chat-q4_k_m.gguf"
)


def more_nodes(needed: int, allowed: int) -> str:
    """What the spec must allow for a replica over so many nodes."""
    return f"spec.hardware.maxNodesPerReplica is {allowed}: set it to {needed} to run each replica over {needed} nodes"


def model(checkpoint: Checkpoint, wanted: Demand, kv_cache: KvCacheType) -> tuple[str, ...]:
    """The model, and what it needs in total."""
    origin = "config.json and weight files"
    if checkpoint.source == CATALOG:
        origin = "catalog, no config.json was read"
    elif checkpoint.gguf:
        origin = "the header of the GGUF file"
    value = kv_cache.value_bytes
    per_token = checkpoint.kv_bytes_per_token(1, value)
    lines = [
        f"model: {checkpoint.architecture}, {checkpoint.quantization_name}, {checkpoint.layers} layers, "
        f"{checkpoint.heads} heads, {checkpoint.kv_heads} KV heads x {checkpoint.head_dim} (from {origin})",
        f"weights: {checkpoint.weight_bytes / GIB:.2f} GiB ({checkpoint.weight_bytes / 1e9:.1f} GB)",
        f"KV cache: 2 x {checkpoint.kv_heads} x {checkpoint.head_dim} x {checkpoint.attention_layers} layers x {value} "
        f"B = {per_token / 1024:g} KiB per token; {wanted.context} tokens = {wanted.context * per_token / GIB:.2f} GiB",
    ]
    if checkpoint.quantization and checkpoint.quantization.types:
        types = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in checkpoint.quantization.types)
        lines.append(f"tensors: {types}")
    if checkpoint.linear:
        state = checkpoint.state_bytes_per_request(1) / MIB
        lines.append(
            f"linear attention: {checkpoint.linear.layers} layers keep {state:.1f} MiB of state per slot, 3 slots for "
            "each running request"
        )
    if wanted.given:
        lines.append(
            f"workload: {wanted.concurrency} requests x ({wanted.input_tokens} + {wanted.output_tokens}) = "
            f"{wanted.concurrency * wanted.request} tokens; with contextTokens {wanted.tokens} are needed"
        )
    if wanted.context > checkpoint.max_positions:
        lines.append(
            f"context: {wanted.context} by YaRN, beyond the model's own {checkpoint.max_positions}; it is static and "
            "makes answers to short requests slightly worse"
        )
    return tuple(lines)


def splits(fit: Fit, wanted: Demand) -> tuple[str, ...]:
    """One line for the product, and one for each split up to the chosen one."""
    product = fit.product
    memory = f"{product.memory_mib / 1024:.2f} GiB per {product.unit}"
    head = f"{product.product}: {memory}, {product.gpus_per_node} per node"
    if fit.gate:
        return (f"{head}; {fit.gate}",)
    lines = [head]
    for one in fit.budgets:
        lines.append(split(one, wanted, chosen=one == fit.chosen))
        if one == fit.chosen:
            break
    return tuple(lines)


def split(one: Budget, wanted: Demand, *, chosen: bool) -> str:
    """The arithmetic of one split in one line."""
    verdict = f"{one.kv_tokens} tokens: fits" if chosen else f"{one.kv_tokens} tokens, {wanted.tokens} wanted"
    state = f" - {one.state:.2f} states ({one.state_ratio / 1000:g} x KV)" if one.state_ratio else ""
    return (
        f"{shape(one)}: {one.free:.2f} GiB free x {one.tuning.fraction / 1000:g} - {one.weights:.2f} weights - "
        f"{one.margin:g} margin{state} = {one.kv:.2f} GiB KV / {one.kv_bytes_per_token / 1024:g} KiB = {verdict}"
    )


def shape(one: Budget) -> str:
    """The short form of a split: TP 8, PP 2, EP 2, 2 nodes."""
    parts = [f"TP {one.tp}"]
    if one.split.pp > 1:
        parts.append(f"PP {one.split.pp}")
    if one.split.ep > 1:
        parts.append(f"EP {one.split.ep}")
    if one.split.nodes > 1:
        parts.append(f"{one.split.nodes} nodes")
    return ", ".join(parts)


def holds(tokens: int, running: int, wanted: Demand) -> str:
    """How many requests the promised tokens hold."""
    longest, typical = tokens // wanted.context, wanted.typical(tokens)
    return (
        f"holds {longest} request{'' if longest == 1 else 's'} of {wanted.context} tokens, or {typical} of "
        f"{wanted.input_tokens} + {wanted.output_tokens}; at most {running} run at once, more wait"
    )


def startup(checkpoint: Checkpoint, seconds: int, *, given: bool, downloads: bool) -> str:
    """How long a start may take."""
    if given:
        return f"start-up: {seconds} s (spec.engine.startupSeconds)"
    size = f"{checkpoint.weight_bytes / 1e9:.1f} GB"
    download = f"{size} from the hub at 0.1 GB/s + " if downloads else ""
    return f"start-up: {download}120 s imports + {size} at 1 GB/s + 120 s graphs = {seconds} s (assumed)"


def cost(product: GpuProduct, gpus: int) -> str | None:
    """The cost of a replica, None if the chart has no cost for the GPU."""
    each = product.cost_per_gpu_hour
    if each is None:
        return None
    return f"cost: {gpus} x {dollars(each)} = {dollars(each * gpus)} per hour and replica (gpuPools)"


def sentence(product: GpuProduct, one: Budget) -> str:
    """The plan in one sentence."""
    return (
        f"{one.gpus} x {product.product} per replica, {shape(one)}: {one.weights:.1f} GiB weights + "
        f"{one.kv:.1f} GiB KV per GPU = {one.kv_tokens} tokens"
    )


def missing(fit: Fit, wanted: Demand) -> str:
    """What is missing on the product that comes closest."""
    one = fit.best
    kv = wanted.tokens * one.kv_bytes_per_token / GIB
    where = f"{one.gpus} x {fit.product.product} ({one.total:.1f} GiB)"
    if one.kv_tokens >= wanted.tokens:
        return f"{where} hold the states of {one.most_requests} requests at {shape(one)}, {wanted.concurrency} wanted"
    return (
        f"{where}: {one.weights:.1f} weights + {kv:.1f} KV for {wanted.tokens} tokens + {one.margin:g} margin at "
        f"{shape(one)} need {one.need(wanted.tokens):.1f} GiB free per GPU, there are {one.free:.1f}"
    )


def shortfall(fit: Fit, wanted: Demand) -> str:
    """What is missing in a few words."""
    one = fit.best
    lacking = one.need(wanted.tokens) - one.free
    if lacking <= 0:
        return f"states for {wanted.concurrency - (one.most_requests or 0)} requests"
    return f"{lacking:.1f} GiB of memory per GPU on {one.gpus} x {fit.product.product}"


def nearest(alternatives: Sequence[Alternative]) -> str:
    """The first change that would fit, or what else to do."""
    if not alternatives:
        return "no change that this operator knows would fit: use GPUs with more memory, or a smaller model"
    first = alternatives[0]
    nodes = f" on {first.nodes_per_replica} nodes" if first.nodes_per_replica > 1 else ""
    return f"would fit {first.gpus}{nodes}: {first.describe()}"


def unverified(spec: Spec, checkpoint: Checkpoint) -> tuple[str, ...]:
    """One line if the catalog has the model or its file, but nobody compared the row with what is published."""
    if checkpoint.source != CATALOG:
        return ()
    model, file = spec.repository or spec.model, spec.source.file if spec.source else None
    row = catalog.file_entry(model, file) if file else catalog.entry(model)
    if row is None or row.verified:
        return ()
    if file:
        return (f"not verified: {file} was not read{row.doubt}",)
    return (f"not verified: the catalog's row of {model} was not compared with its config.json{row.doubt}",)


def pinned(checkpoint: Checkpoint) -> str:
    """The hub's commit that the facts come from, "" for other sources."""
    return f"; facts from the hub at commit {checkpoint.commit[:12]}" if checkpoint.commit else ""
