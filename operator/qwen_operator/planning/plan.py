"""From spec, facts and inventory to a Plan, or to a NoFit that shows the arithmetic.

If a number is not known, sizing takes the one that needs more memory, so that a plan that fits on paper also fits on
the GPU. The last lines of `steps` say what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import CATALOG, Checkpoint
from qwen_operator.engines.types import Role
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.planning import (
    adapters,
    alternatives,
    answers,
    behaviour,
    engine,
    explain,
    gates,
    loading,
    pipeline,
    shapes,
    sharing,
)
from qwen_operator.planning.answers import Answers, RefusedParserError
from qwen_operator.planning.engine import EngineChoice, RoleValues
from qwen_operator.planning.engine_args import RefusedArgsError
from qwen_operator.planning.explain import MIB
from qwen_operator.planning.fits import Demand, Fit, Limits, Search, demand, find, groups
from qwen_operator.planning.memory import GIB, Budget
from qwen_operator.planning.refusals import refuse, unlabelled
from qwen_operator.planning.types import EngineDefaults, EngineSource, NoFit, Plan
from qwen_runtime.checkpoints.gguf import is_gguf

_IMPORT_SECONDS = 120
_GRAPH_SECONDS = 120
_LOAD_BYTES_PER_SECOND = 1_000_000_000
_DOWNLOAD_BYTES_PER_SECOND = 100_000_000
# One rank may load its weights for as long as a start takes while the others wait for it.
_GROUP_SECONDS = 600
_SHOWN = 6
# Requests of a pod for each GPU. One scheduler process and its share of the tokenizer take at least this much.
_CPU_MILLIS = 500
_HOST_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan or a refusal, with every fit that was tried. `qwen-operator plan` shows more than the result."""

    result: Plan | NoFit
    wanted: Demand
    best: Fit | None = None
    tried: tuple[Fit, ...] = ()


def plan(
    spec: Spec, checkpoint: Checkpoint, inventory: Inventory, defaults: EngineDefaults, source: EngineSource
) -> Plan | NoFit:
    """The plan for one replica. Pure and deterministic.

    On each product, the smallest valid number of GPUs wins. Between products, the user's order decides, else the
    declared cost, else the fewest GPUs, else the smallest memory. `source` is where SGLang finds the model.
    """
    return explore(spec, checkpoint, inventory, defaults, source).result


def explore(
    spec: Spec, checkpoint: Checkpoint, inventory: Inventory, defaults: EngineDefaults, source: EngineSource
) -> Outcome:
    """Like `plan`, with every fit that was tried. A refusal for lack of memory has alternatives."""
    first = _attempt(spec, checkpoint, inventory, defaults, source)
    if isinstance(first.result, Plan) or first.result.reason is not Reason.DOES_NOT_FIT:
        return first

    def planner(other: Spec, facts: Checkpoint, hardware: Inventory) -> Plan | NoFit:
        # The place that an alternative is loaded from does not decide whether it fits.
        return _attempt(other, facts, hardware, defaults, source).result

    usable = inventory.usable(spec.pod.tolerations)
    failed = alternatives.FailedSearch(spec, checkpoint, usable, first.wanted, first.tried)
    fitting = alternatives.find(failed, planner)
    refused = first.result
    # If memory was not the problem, advice to use more of it would not help.
    advice = f"; {explain.nearest(fitting)}" if fitting or any(fit.budgets for fit in first.tried) else ""
    result = replace(refused, message=f"{refused.message}{advice}", alternatives=fitting)
    return Outcome(result, first.wanted, None, first.tried)


def runnable(result: Plan | NoFit, checkpoint: Checkpoint, source: EngineSource, most_nodes: int = 1) -> Plan | NoFit:
    """The result for the operator. A plan that it may not run, or not from this source, becomes a refusal.

    `most_nodes` is spec.hardware.maxNodesPerReplica.
    """
    if isinstance(result, NoFit):
        return result
    if result.nodes_per_replica > most_nodes:
        nodes = result.nodes_per_replica
        why = f"needs {nodes} nodes ({result.message}); {explain.more_nodes(nodes, most_nodes)}"
        return NoFit(Reason.DOES_NOT_FIT, why, result.steps, (alternatives.over_nodes(result),))
    if checkpoint.gguf and not is_gguf(source.model_path):
        return NoFit(Reason.INVALID_OVERRIDE, explain.GGUF, result.steps)
    return result


def _attempt(
    spec: Spec, checkpoint: Checkpoint, inventory: Inventory, defaults: EngineDefaults, source: EngineSource
) -> Outcome:
    wanted = demand(spec, checkpoint)
    try:
        choice = engine.choose(spec.engine, defaults, source)
        read = answers.answers(checkpoint, spec.repository or spec.model, spec.engine, choice.engine)
    except RefusedArgsError as error:
        return Outcome(NoFit(Reason.UNKNOWN_FLAG if error.unknown else Reason.INVALID_OVERRIDE, str(error)), wanted)
    except RefusedParserError as error:
        return Outcome(NoFit(Reason.INVALID_OVERRIDE, str(error)), wanted)
    inventory = inventory.usable(spec.pod.tolerations).offering(spec.hardware.resource_name, spec.hardware.products)
    hardware, wish = spec.hardware, spec.parallelism
    limits = Limits(wish.tensor, hardware.max_gpus_per_replica, hardware.max_nodes_per_replica, wish.pipeline)
    no_stages = pipeline.obstacle(checkpoint, choice)
    search = Search(choice.engine, checkpoint, wanted, spec.engine.kv_cache_type, limits, no_stages)
    candidates = groups(spec.hardware.products, inventory)
    own = adapters.refuse(checkpoint, choice) or pipeline.refuse(wish.pipeline, checkpoint, no_stages)
    refusal = own or refuse(spec, search, choice, inventory, candidates)
    if refusal:
        return Outcome(refusal, wanted)
    best, tried = find(search, candidates)
    if best is None:
        return Outcome(_no_fit(search, tried, inventory), wanted, None, tuple(tried))
    try:
        made = _plan(spec, search, _Engine(choice, read), best, inventory)
    except RefusedArgsError as error:
        return Outcome(NoFit(Reason.INVALID_OVERRIDE, str(error)), wanted)
    return Outcome(made, wanted, best, tuple(tried))


@dataclass(frozen=True, slots=True)
class _Engine:
    """The engine's settings, and how it reads the model's answers."""

    choice: EngineChoice
    answers: Answers


@dataclass(frozen=True, slots=True)
class _Command:
    """How SGLang starts. `lines` tell it for the plan's steps. `promised_tokens` is that of the plan."""

    args: tuple[str, ...]
    warnings: tuple[str, ...]
    lines: tuple[str, ...]
    running: int
    startup_seconds: int
    host_bytes: int
    promised_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Host:
    """What a pod takes of its node beside GPUs. `adapter_bytes` is the part of `memory_bytes` for adapters."""

    cpu_millis: int
    memory_bytes: int
    adapter_bytes: int
    shm_bytes: int


def _host(checkpoint: Checkpoint, fit: Fit, command: _Command) -> _Host:
    gpus = fit.best.gpus // fit.best.split.nodes
    adapter_bytes = -(-adapters.host_bytes(checkpoint, gpus) // MIB) * MIB
    return _Host(
        cpu_millis=gpus * _CPU_MILLIS,
        memory_bytes=gpus * _HOST_BYTES + _gguf_bytes(checkpoint) + adapter_bytes + command.host_bytes,
        adapter_bytes=adapter_bytes,
        shm_bytes=0 if sharing.brings_own_shm(fit.product) else gpus * GIB,
    )


def _command(spec: Spec, search: Search, chosen_engine: _Engine, fit: Fit) -> _Command:
    checkpoint, choice, chosen = search.checkpoint, chosen_engine.choice, fit.best
    running = _running(chosen, search.wanted, choice)
    startup = spec.engine.startup_seconds or _startup_seconds(checkpoint, choice)
    group: RoleValues = ((Role.GROUP_TIMEOUT, (str(max(startup, _GROUP_SECONDS)),)),) if chosen.split.nodes > 1 else ()
    own = adapters.settings(checkpoint, dict(choice.adapters))
    settings = (*_settings(search, fit, chosen_engine, running), *own, *group)
    load = loading.choose(loading.Start(spec.engine.fast_start, checkpoint, chosen.split), choice, settings)
    settings = (*settings, *load.settings)
    args, warnings = engine.arguments(choice, settings)
    start = explain.startup(checkpoint, startup, given=bool(spec.engine.startup_seconds), downloads=choice.downloads)
    return _Command(
        args=args,
        warnings=(*warnings, *load.warnings),
        lines=(start, *([load.line] if load.line else [])),
        running=running,
        startup_seconds=startup,
        host_bytes=load.host_bytes,
        promised_tokens=engine.promised_tokens(choice, settings, chosen.kv_tokens, warnings),
    )


def _plan(spec: Spec, search: Search, chosen_engine: _Engine, fit: Fit, inventory: Inventory) -> Plan:
    checkpoint, wanted, chosen = search.checkpoint, search.wanted, fit.best
    choice, read = chosen_engine.choice, chosen_engine.answers
    command = _command(spec, search, chosen_engine, fit)
    host = _host(checkpoint, fit, command)
    lines = (*command.lines, read.line(choice.table), *explain.unverified(spec, checkpoint))
    facts = "; facts from the catalog" if checkpoint.source == CATALOG else explain.pinned(checkpoint)
    warnings = (*adapters.warnings(spec, checkpoint), *answers.warnings(checkpoint, read, command.args))
    return Plan(
        gpu_product=fit.product.product,
        gpus_per_replica=chosen.gpus,
        tensor_parallel=chosen.tp,
        context_tokens=wanted.context,
        kv_tokens=chosen.kv_tokens,
        startup_seconds=command.startup_seconds,
        engine_image=choice.image,
        engine_version=choice.table.version,
        args=command.args,
        env=choice.environment(read.tools),
        shm_bytes=host.shm_bytes,
        steps=_steps(search, fit, inventory, lines, command.running),
        selector=dict(fit.product.selector),
        tolerations=tuple(fit.product.tolerations),
        warnings=(*command.warnings, *warnings, *sharing.warnings(fit.product)),
        message=f"{explain.sentence(fit.product, chosen)}{facts}",
        nodes_per_replica=chosen.split.nodes,
        pipeline_parallel=chosen.split.pp,
        expert_parallel=chosen.split.ep,
        kv_cache_dtype=search.kv_cache.name,
        max_running_requests=command.running,
        typical_requests=wanted.typical(chosen.kv_tokens),
        weight_bytes_per_rank=chosen.weight_bytes,
        kv_bytes_per_token_per_rank=chosen.kv_bytes_per_token,
        cpu_millis=host.cpu_millis,
        host_memory_bytes=host.memory_bytes,
        promised_tokens=command.promised_tokens,
        adapter_host_bytes=host.adapter_bytes,
        resource_name=fit.product.resource_name,
        share=fit.product.share.kind if fit.product.share else "",
    )


def _gguf_bytes(checkpoint: Checkpoint) -> int:
    """Host memory for the weights of a GGUF file while they load.

    SGLang copies the merged matrices of a GGUF file to the GPU only when it has all (layers/linear.py:733 and 1348).
    """
    return -(-checkpoint.weight_bytes // GIB) * GIB if checkpoint.gguf else 0


def _startup_seconds(checkpoint: Checkpoint, choice: EngineChoice) -> int:
    seconds = _IMPORT_SECONDS + math.ceil(checkpoint.weight_bytes / _LOAD_BYTES_PER_SECOND) + _GRAPH_SECONDS
    return seconds + math.ceil(checkpoint.weight_bytes / _DOWNLOAD_BYTES_PER_SECOND) if choice.downloads else seconds


def _running(chosen: Budget, wanted: Demand, choice: EngineChoice) -> int:
    """Requests that run at once: the number in the chart or the object, or else a planned one.

    The planned number is the largest decode graph, or the wanted concurrency if that is larger, but at most as many as
    fit. The bound keeps the engine's table of requests small, and lets its queue show early that the engine is full.
    Pipeline stages share the requests out in equal parts, so their number divides it.
    """
    given = choice.given(Role.MAX_RUNNING_REQUESTS)
    if given and given[1].isdigit() and int(given[1]) > 0:
        return int(given[1])
    room = [max(1, chosen.kv_tokens // 2)]
    if chosen.most_requests is not None:
        room.append(max(1, chosen.most_requests))
    running, stages = min(max(chosen.tuning.graph_batch, wanted.concurrency), *room), chosen.split.pp
    return max(stages, running - running % stages)


def _settings(search: Search, fit: Fit, chosen_engine: _Engine, running: int) -> RoleValues:
    """The settings of the plan, in the order of the command line."""
    checkpoint, chosen = search.checkpoint, fit.best
    choice, read = chosen_engine.choice, chosen_engine.answers
    tuning, split = chosen.tuning, chosen.split
    optional = (
        (Role.PIPELINE_PARALLEL, str(split.pp) if split.pp > 1 else None),
        (Role.EXPERT_PARALLEL, str(split.ep) if split.ep > 1 else None),
        (Role.NODES, str(split.nodes) if split.nodes > 1 else None),
        (Role.WEIGHT_TYPE, gates.weight_type(checkpoint, fit.product, choice.engine.formats)),
        (Role.STATE_RATIO, f"{chosen.state_ratio / 1000:g}" if chosen.state_ratio else None),
        (Role.MODEL_OVERRIDES, behaviour.model_overrides(checkpoint, search.wanted.context)),
        (Role.TOOL_CALL_PARSER, read.tools),
        (Role.REASONING_PARSER, read.reasoning),
        (Role.REVISION, choice.revision),
        (Role.MEDIA_DOMAINS, behaviour.media_domains(checkpoint)),
    )
    shared = sharing.settings(search, fit)
    always = (
        (Role.TENSOR_PARALLEL, str(split.tp)),
        (Role.MEMORY_FRACTION, f"{shared.fraction / 1000:g}"),
        (Role.CONTEXT_LENGTH, str(search.wanted.context)),
        (Role.CHUNKED_PREFILL, str(tuning.chunk)),
        (Role.DECODE_GRAPH_BATCH, str(min(tuning.graph_batch, max(1, running // split.pp)))),
        (Role.MAX_RUNNING_REQUESTS, str(running)),
        (Role.KV_CACHE_TYPE, search.kv_cache.name),
    )
    values = [(role, (value,)) for role, value in (*always, *shared.limits, *optional) if value is not None]
    vectors: RoleValues = ((Role.EMBEDDING, ()),) if read.embedding else ()
    return (*values, *vectors, *engine.FIXED)


def _steps(search: Search, fit: Fit, inventory: Inventory, own: tuple[str, ...], running: int) -> tuple[str, ...]:
    """The arithmetic. `own` are lines that are ready: start, parsers, origin of the facts."""
    checkpoint, wanted, chosen = search.checkpoint, search.wanted, fit.best
    price = explain.cost(fit.product, chosen.gpus)
    return (
        *explain.model(checkpoint, wanted, search.kv_cache),
        *adapters.line(checkpoint, chosen.tp),
        *explain.splits(fit, wanted),
        *shapes.lines(search, fit),
        explain.holds(chosen.kv_tokens, running, wanted),
        *own,
        *([price] if price else []),
        *gates.remarks(checkpoint, fit.product, chosen.tp, search.engine.formats),
        *inventory.notes,
        *explain.UNKNOWNS,
    )


def _no_fit(search: Search, tried: Sequence[Fit], inventory: Inventory) -> NoFit:
    checkpoint, wanted = search.checkpoint, search.wanted
    fits = [fit for fit in tried if fit.budgets]
    fits.sort(key=lambda fit: (fit.best.kv_tokens, fit.best.kv), reverse=True)
    barred = [fit for fit in tried if fit.gate]
    steps = (
        *explain.model(checkpoint, wanted, search.kv_cache),
        *(line for fit in (*fits, *barred)[:_SHOWN] for line in explain.splits(fit, wanted)),
        *inventory.notes,
        *(f"left out: {sentence}" for sentence in inventory.ignored),
        *explain.UNKNOWNS,
    )
    hint = f". {unlabelled(inventory)}" if inventory.unlabelled else ""
    if not fits:
        why = "; ".join(dict.fromkeys(fit.gate for fit in barred if fit.gate))
        return NoFit(Reason.DOES_NOT_FIT, f"{why}{hint}", steps)
    message = f"{explain.missing(fits[0], wanted)}{hint}"
    return NoFit(Reason.DOES_NOT_FIT, message, steps, missing=explain.shortfall(fits[0], wanted))
