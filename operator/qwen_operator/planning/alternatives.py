"""Changes that would make a model fit. Every candidate is planned, and only those with a plan are offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.hardware.boards import board, less
from qwen_operator.hardware.inventory import GPU_RESOURCE, PRODUCT_LABEL, GpuProduct, Inventory
from qwen_operator.planning.fits import Demand, Fit
from qwen_operator.planning.types import Alternative, AlternativeKind, NodesNeeded, NoFit, Plan

MOST = 8
_CONTEXT_STEP = 256
_FP8 = "Fp8E4m3"
_NODES = "hardware.maxNodesPerReplica"
_STAGED = "parallelism.pipeline"
# Endings of repositories with the same model in another format. The closest to the original first; "" is 16 bit.
_FORMATS = ("", "-FP8", "-GPTQ-Int8", "-GPTQ-Int4", "-AWQ")
# Products that are available nearly everywhere: first one of each memory size, then the others.
_COMMON = ("NVIDIA-L40S", "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200", "NVIDIA-A100-SXM4-80GB", "NVIDIA-B200")
_COMMON_GPUS = 8
_MOST_NODES = 4
_MOST_OF_A_KIND = 3
_STAGES = (2, 4, 8)

Planner = Callable[[Spec, Checkpoint, Inventory], Plan | NoFit]


@dataclass(frozen=True, slots=True)
class FailedSearch:
    """A search without a result: the spec, the usable hardware, and every split that was tried."""

    spec: Spec
    checkpoint: Checkpoint
    inventory: Inventory
    wanted: Demand
    tried: Sequence[Fit]


@dataclass(frozen=True, slots=True)
class _Candidate:
    kind: AlternativeKind
    changes: tuple[tuple[str, Any], ...] = ()
    checkpoint: Checkpoint | None = None
    hardware: NodesNeeded | None = None


def find(failed: FailedSearch, planner: Planner) -> tuple[Alternative, ...]:
    """At most `MOST` changes that make a plan, the smallest changes first."""
    alternatives: list[Alternative] = []
    for candidate in _candidates(failed):
        if len(alternatives) == MOST:
            break
        if _is_redundant(candidate, alternatives):
            continue
        result = _planned(failed, candidate, planner)
        if not isinstance(result, Plan) or (candidate.kind is AlternativeKind.NODES and result.nodes_per_replica == 1):
            continue
        found = _alternative(_allowed(candidate, failed.spec, result), result)
        if not _offers_less(found, alternatives):
            alternatives.append(found)
    return tuple(alternatives)


def over_nodes(result: Plan) -> Alternative:
    """The change that allows a plan over several nodes."""
    return _alternative(_Candidate(AlternativeKind.NODES, ((_NODES, result.nodes_per_replica),)), result)


def _allowed(candidate: _Candidate, spec: Spec, result: Plan) -> _Candidate:
    """The candidate, and the change that allows its nodes if the spec does not."""
    if result.nodes_per_replica <= spec.hardware.max_nodes_per_replica:
        return candidate
    return replace(candidate, changes=(*candidate.changes, (_NODES, result.nodes_per_replica)))


def cheaper(spec: Spec, inventory: Inventory, result: Plan, planner: Planner) -> Alternative | None:
    """The format of the same model that takes the fewest GPUs, if it takes fewer than `result`."""
    best: Alternative | None = None
    for changes, checkpoint in _formats(spec):
        other = planner(apply(spec, changes), checkpoint, inventory)
        least = best.gpus_per_replica if best else result.gpus_per_replica
        if isinstance(other, Plan) and other.gpus_per_replica < least:
            best = _alternative(_Candidate(AlternativeKind.QUANTIZATION, changes), other)
    return best


def _is_redundant(candidate: _Candidate, alternatives: Sequence[Alternative]) -> bool:
    """Whether a part of these changes is enough already, the product has an alternative, or its kind has enough."""
    part_is_enough = any(
        one.changes and not one.hardware and set(one.changes) < set(candidate.changes) for one in alternatives
    )
    same_product = any(
        one.hardware and candidate.hardware and one.hardware.product == candidate.hardware.product
        for one in alternatives
    )
    of_this_kind = sum(one.kind is candidate.kind for one in alternatives)
    most = 1 if candidate.kind is AlternativeKind.PIPELINE else _MOST_OF_A_KIND
    return part_is_enough or same_product or of_this_kind >= most


def _offers_less(found: Alternative, alternatives: Sequence[Alternative]) -> bool:
    """Whether a context on the same GPUs that is at least as long is offered already."""
    return found.kind is AlternativeKind.CONTEXT and any(
        (one.kind, one.gpu_product, one.gpus_per_replica, one.nodes_per_replica)
        == (found.kind, found.gpu_product, found.gpus_per_replica, found.nodes_per_replica)
        and one.context_tokens >= found.context_tokens
        for one in alternatives
    )


def _planned(failed: FailedSearch, candidate: _Candidate, planner: Planner) -> Plan | NoFit:
    inventory = failed.inventory
    if candidate.hardware:
        inventory = inventory.with_instead(product_of(candidate.hardware))
    return planner(apply(failed.spec, candidate.changes), candidate.checkpoint or failed.checkpoint, inventory)


def _alternative(candidate: _Candidate, result: Plan) -> Alternative:
    return Alternative(
        kind=candidate.kind,
        context_tokens=result.context_tokens,
        gpu_product=result.gpu_product,
        gpus_per_replica=result.gpus_per_replica,
        nodes_per_replica=result.nodes_per_replica,
        kv_tokens=result.kv_tokens,
        changes=candidate.changes,
        hardware=candidate.hardware,
    )


def product_of(hardware: NodesNeeded) -> GpuProduct:
    """Nodes of a known board as an entry of an inventory."""
    known_board = board(hardware.product)
    assert known_board, hardware.product
    return GpuProduct(
        product=known_board.product,
        memory_mib=known_board.memory_mib,
        gpus_per_node=hardware.gpus_per_node,
        nodes=hardware.nodes,
        selector={PRODUCT_LABEL: known_board.product},
        declared=False,
        compute_capability=known_board.compute_capability,
        full_nodes=hardware.nodes,
    )


def apply(spec: Spec, changes: Sequence[tuple[str, Any]]) -> Spec:
    """The spec with the changes of an `Alternative` written into it."""
    for path, value in changes:
        spec = _WRITERS[path](spec, value)
    return spec


def _workload(spec: Spec, value: Any) -> Spec:
    assert spec.workload
    return replace(spec, workload=replace(spec.workload, concurrency=value))


_WRITERS: Mapping[str, Callable[[Spec, Any], Spec]] = {
    "model": lambda spec, value: replace(spec, model=value),
    "source": lambda spec, value: replace(spec, source=value),
    "contextTokens": lambda spec, value: replace(spec, context_tokens=value),
    "workload.concurrency": _workload,
    "engine.kvCacheType": lambda spec, value: replace(spec, engine=replace(spec.engine, kv_cache_type=value)),
    "hardware.products": lambda spec, value: replace(spec, hardware=replace(spec.hardware, products=value or ())),
    "hardware.resourceName": lambda spec, value: replace(
        spec, hardware=replace(spec.hardware, resource_name=value or GPU_RESOURCE)
    ),
    "hardware.maxGpusPerReplica": lambda spec, value: replace(
        spec, hardware=replace(spec.hardware, max_gpus_per_replica=value)
    ),
    _NODES: lambda spec, value: replace(spec, hardware=replace(spec.hardware, max_nodes_per_replica=value)),
    "parallelism.tensor": lambda spec, value: replace(spec, parallelism=replace(spec.parallelism, tensor=value)),
    _STAGED: lambda spec, value: replace(spec, parallelism=replace(spec.parallelism, pipeline=value)),
}


def limits(spec: Spec) -> dict[str, Any]:
    """The limits that the user sets on the size of a replica: path below spec -> value."""
    values = {
        "parallelism.tensor": spec.parallelism.tensor,
        _STAGED: spec.parallelism.pipeline,
        "hardware.maxGpusPerReplica": spec.hardware.max_gpus_per_replica,
    }
    return {path: value for path, value in values.items() if value is not None}


def _candidates(failed: FailedSearch) -> Iterator[_Candidate]:
    spec = failed.spec
    free = tuple((path, None) for path in limits(spec))
    if free:
        yield _Candidate(AlternativeKind.LIMITS, free)
    yield from _other_parts(failed, free)
    formats = list(_formats(spec))
    for changes, checkpoint in formats:
        yield _Candidate(AlternativeKind.QUANTIZATION, changes, checkpoint)
    if spec.engine.kv_cache_type != _FP8:
        fp8 = (("engine.kvCacheType", _FP8),)
        yield _Candidate(AlternativeKind.KV_CACHE, fp8)
        for changes, checkpoint in formats:
            yield _Candidate(AlternativeKind.QUANTIZATION, (*changes, *fp8), checkpoint)
    yield from _smaller(failed)
    if spec.parallelism.pipeline is None:
        yield from (_Candidate(AlternativeKind.PIPELINE, ((_STAGED, count),)) for count in _STAGES)
    if spec.hardware.products:
        yield _Candidate(AlternativeKind.PRODUCT, (("hardware.products", None), *free))
    yield from _hardware(failed, free)


def _other_parts(failed: FailedSearch, free: tuple[tuple[str, Any], ...]) -> Iterator[_Candidate]:
    """Larger slices or whole GPUs, for a spec that asks for parts of GPUs."""
    spec = failed.spec
    if spec.hardware.resource_name == GPU_RESOURCE:
        return
    products = (("hardware.products", None),) if spec.hardware.products else ()
    sizes = {one.resource_name: one.memory_mib for one in failed.inventory.parts}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        if name not in (spec.hardware.resource_name, GPU_RESOURCE):
            yield _Candidate(AlternativeKind.PRODUCT, (("hardware.resourceName", name), *products, *free))
    yield _Candidate(AlternativeKind.PRODUCT, (("hardware.resourceName", None), *products, *free))


def _formats(spec: Spec) -> Iterator[tuple[tuple[tuple[str, Any], ...], Checkpoint]]:
    """The same model in the other formats that the catalog has."""
    base = spec.repository or spec.model
    for ending in _FORMATS:
        base = base.removesuffix(ending)
    for ending in _FORMATS:
        name = f"{base}{ending}"
        checkpoint = catalog.lookup(name)
        if checkpoint and name != (spec.repository or spec.model):
            source = (("source", None),) if spec.source else ()
            yield (("model", name), *source), checkpoint


def _smaller(failed: FailedSearch) -> Iterator[_Candidate]:
    """A shorter context, or fewer requests at a time: as much as each product can hold, the most of each first."""
    wanted = failed.wanted
    for fit in _roomiest_first(failed.tried):
        tokens = fit.best.kv_tokens
        context = min(wanted.context, tokens // _CONTEXT_STEP * _CONTEXT_STEP)
        requests = min(wanted.concurrency, tokens // wanted.request, *_states(fit))
        products = (("hardware.products", (fit.product.product,)),)
        if wanted.given and 0 < requests < wanted.concurrency and tokens >= wanted.context:
            yield _Candidate(AlternativeKind.WORKLOAD, (("workload.concurrency", requests), *products))
        elif 0 < context < wanted.context and (not wanted.given or wanted.concurrency * wanted.request <= tokens):
            yield _Candidate(AlternativeKind.CONTEXT, (("contextTokens", context), *products))


def _roomiest_first(tried: Sequence[Fit]) -> list[Fit]:
    """The splits that got as far as a memory budget, those of each product together, the most KV tokens first."""
    places = {product: place for place, product in reversed(list(enumerate(fit.product.product for fit in tried)))}
    fits = (fit for fit in tried if fit.budgets and not fit.gate)
    return sorted(fits, key=lambda fit: (places[fit.product.product], -fit.best.kv_tokens))


def _states(fit: Fit) -> tuple[int, ...]:
    most = fit.best.most_requests
    return () if most is None else (most,)


def _hardware(failed: FailedSearch, free: tuple[tuple[str, Any], ...]) -> Iterator[_Candidate]:
    """Nodes of other products, then more nodes of the existing products."""
    if failed.spec.hardware.resource_name != GPU_RESOURCE:
        free = (("hardware.resourceName", None), *free)
    for name in _COMMON:
        if all(product.product != name for product in failed.inventory.products):
            asked = (("hardware.products", (name,)),) if failed.spec.hardware.products else ()
            yield _Candidate(AlternativeKind.PRODUCT, (*asked, *free), hardware=NodesNeeded(name, _COMMON_GPUS, 1))
    for fit in failed.tried:
        product = fit.product
        known = board(product.product)
        # More of a part of a board cannot be asked for by the board's name.
        whole = known and product.share is None and not known.unified and not less(product.memory_mib, known.memory_mib)
        if whole and not fit.gate:
            for nodes in range(2, _MOST_NODES + 1):
                more = NodesNeeded(product.product, product.gpus_per_node, nodes)
                yield _Candidate(AlternativeKind.NODES, free, hardware=more)
