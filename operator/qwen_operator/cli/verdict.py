"""A plan, or why there is none, as text for a terminal. The verdict comes first, then every number behind it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qwen_operator.checkpoints import parallel
from qwen_operator.checkpoints.facts import CATALOG, INSPECTION, Checkpoint
from qwen_operator.cli.inputs import Inputs
from qwen_operator.hardware.boards import short_name
from qwen_operator.hardware.inventory import GpuProduct, Inventory
from qwen_operator.hardware.pools import dollars
from qwen_operator.planning import explain, gates
from qwen_operator.planning.fits import Demand, Fit
from qwen_operator.planning.memory import GIB, Budget
from qwen_operator.planning.plan import Outcome
from qwen_operator.planning.types import Alternative, NoFit, Plan

_WIDTH = 96
_INDENT = " " * 10
_MOST_SIZES = 8


def text(given: Inputs, outcome: Outcome, commands: Mapping[Alternative, str]) -> str:
    """The whole text. `commands` has the command of each alternative: of a refusal, or a cheaper one to a plan."""
    result = outcome.result
    lines = (
        _fits(given, outcome, result, commands)
        if isinstance(result, Plan)
        else _does_not(given, outcome, result, commands)
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _hardware(given: Inputs) -> Inventory:
    """The part of the hardware that the spec asks for."""
    return given.inventory.offering(given.spec.hardware.resource_name, given.spec.hardware.products)


def number(value: int) -> str:
    """12345 as 12 345."""
    return f"{value:,}".replace(",", " ")


def _fits(given: Inputs, outcome: Outcome, result: Plan, cheaper: Iterable[Alternative]) -> Iterator[str]:
    assert outcome.best
    fit, wanted = outcome.best, outcome.wanted
    chosen, product = fit.best, fit.product
    nodes = ", 1 node" if result.nodes_per_replica == 1 else ""
    yield (
        f"FITS   {given.spec.model}  ->  {result.gpus_per_replica} x {product.product} per replica, "
        f"{explain.shape(chosen)}{nodes}{_room(product, result)}"
    )
    allowed = given.spec.hardware.max_nodes_per_replica
    if result.nodes_per_replica > allowed:
        yield _labelled("note", explain.more_nodes(result.nodes_per_replica, allowed))
    yield from _calculation(given, wanted, fit)
    if product.share and product.share.pods > 1:
        yield _labelled("options", _shared_options(result))
    yield _labelled("holds", f"{_holds(chosen, wanted)}; {result.max_running_requests} run at once, more wait")
    yield from _replica(given, result, fit)
    yield ""
    yield from _wrapped("args", result.args)
    for warning in result.warnings:
        yield _labelled("warning", warning)
    for remark in (*gates.remarks(given.checkpoint, product, chosen.tp, fit.engine.formats), *_hardware(given).notes):
        yield _labelled("note", remark)
    yield from (_labelled("note", step) for step in result.steps if step.startswith("not verified: "))
    for sentence in _hardware(given).ignored:
        yield _labelled("left out", sentence)
    for one in cheaper:
        yield _labelled("cheaper", f"{one.describe()} takes {_gpus(one)} ({number(one.kv_tokens)} tokens)")
    yield from _unknown(given)


def _calculation(given: Inputs, wanted: Demand, fit: Fit) -> Iterator[str]:
    """The model, every split that was tried, and the arithmetic of the best one."""
    yield ""
    yield from _model(given, wanted, fit)
    yield ""
    yield from _table(fit, wanted, given)
    yield ""
    yield from _arithmetic(fit.best)


def _replica(given: Inputs, result: Plan, fit: Fit) -> Iterator[str]:
    """How a replica starts, what its pods take, and what it costs."""
    product = fit.product
    shown = ("start-up: ", "parsers: ", "stages: ")
    yield from (_labelled(*step.split(": ", 1)) for step in result.steps if step.startswith(shown))
    yield from (_labelled("shape", step) for step in result.steps if step.startswith("over "))
    yield _labelled("pod", _pod(result, product.unit))
    if result.nodes_per_replica > 1 and (network := given.settings.multi_nodes.of(result).described()):
        yield _labelled("network", f"the chart gives each of these pods {network}")
    if product.cost_per_gpu_hour is not None:
        price = product.cost_per_gpu_hour
        yield _labelled(
            "cost", f"{dollars(price * fit.best.gpus)} per hour and replica at {dollars(price)} per GPU-hour (gpuPools)"
        )


def _does_not(given: Inputs, outcome: Outcome, result: NoFit, commands: Mapping[Alternative, str]) -> Iterator[str]:
    sized = [fit for fit in outcome.tried if fit.budgets]
    sized.sort(key=lambda fit: (fit.best.kv_tokens, fit.best.kv), reverse=True)
    if not sized:
        yield f"NO PLAN   {given.spec.model}: {result.reason}"
        yield f"{_INDENT}{result.message}"
    else:
        fit = sized[0]
        product = fit.product
        yield (
            f"DOES NOT FIT   {given.spec.model} on {_all_gpus(product)} ({number(product.memory_mib)} MiB each"
            f"{f', {product.nodes} nodes' if product.nodes > 1 else ''})"
        )
        yield from _calculation(given, outcome.wanted, fit)
        yield _labelled("needed", explain.missing(fit, outcome.wanted))
        yield _labelled("missing", result.missing)
    for fit in (one for one in outcome.tried if one.gate):
        yield _labelled("refused", fit.gate or "")
    for note in _hardware(given).notes:
        yield _labelled("note", note)
    for sentence in _hardware(given).ignored:
        if sentence not in result.message:
            yield _labelled("left out", sentence)
    yield from _alternatives(result.alternatives, commands)
    if sized:
        yield from _unknown(given)


def _alternatives(alternatives: Sequence[Alternative], commands: Mapping[Alternative, str]) -> Iterator[str]:
    if not alternatives:
        return
    yield ""
    rows = [(one.describe(), _gpus(one), number(one.kv_tokens)) for one in alternatives]
    width = max(len(row[0]) for row in rows)
    yield f"{'what would fit':{width}}  {'GPUs':22}  {'tokens':>10}"
    for change, gpus, tokens in rows:
        yield f"{change:{width}}  {gpus:22}  {tokens:>10}"
    first = next((commands[one] for one in alternatives if commands.get(one)), "")
    if first:
        yield f"try: {first}"
    elif alternatives[0].patch():
        yield f"try: {_patched(alternatives[0])}"


def _patched(one: Alternative) -> str:
    import json  # noqa: PLC0415 - only here

    return f"kubectl patch qd NAME --type merge -p {shlex.quote(json.dumps(one.patch(), separators=(',', ':')))}"


def _gpus(one: Alternative) -> str:
    nodes = f", {one.nodes_per_replica} nodes" if one.nodes_per_replica > 1 else ""
    return f"{one.gpus_per_replica} x {short_name(one.gpu_product)}{nodes}"


def _all_gpus(product: GpuProduct) -> str:
    return f"{product.gpus_per_node * max(1, product.nodes)} x {product.product}"


def _room(product: GpuProduct, result: Plan) -> str:
    """How many replicas the existing GPUs can hold, if all of them are free."""
    if product.nodes == 0:
        return ""
    each = product.gpus_per_node // result.gpus_per_node
    replicas = each * product.nodes // result.nodes_per_replica
    units = product.gpus_per_node * product.nodes
    unit = product.unit if product.share and units == 1 else f"{product.unit}s"
    return f"   ({replicas} replica{'s' if replicas != 1 else ''} on {units} {unit})"


def _model(given: Inputs, wanted: Demand, fit: Fit) -> Iterator[str]:
    checkpoint = given.checkpoint
    kind = _attention(checkpoint)
    origin = "catalog" if checkpoint.source == CATALOG else "the GGUF file" if checkpoint.gguf else "config.json"
    if checkpoint.commit:
        origin = f"hub, commit {checkpoint.commit}"
    yield _labelled(
        "model",
        f"{checkpoint.architecture}, {checkpoint.quantization_name}, {checkpoint.layers} layers, {checkpoint.heads} "
        f"heads, {checkpoint.kv_heads} KV heads ({kind}); facts: {origin}",
    )
    yield _labelled("weights", f"{checkpoint.weight_bytes / GIB:.2f} GiB ({checkpoint.weight_bytes / 1e9:.1f} GB)")
    kv_cache = fit.engine.formats.kv_cache_types[given.spec.engine.kv_cache_type]
    for line in explain.model(checkpoint, wanted, kv_cache)[2:]:
        name, _, rest = line.partition(": ")
        yield _labelled(name if len(name) < 10 else "state", rest)


def _attention(checkpoint: Checkpoint) -> str:
    if checkpoint.linear:
        return f"hybrid, {checkpoint.attention_layers} layers with KV cache"
    return "MHA" if checkpoint.heads == checkpoint.kv_heads else "GQA"


def _table(fit: Fit, wanted: Demand, given: Inputs) -> Iterator[str]:
    """Every split that was tried on the product, with the rejected sizes and the reasons."""
    mark = "<- spec.parallelism.tensor" if given.spec.parallelism.tensor else "<- smallest that holds it"
    yield f"{'TP':>4}  {'weights/GPU':>12}  {'KV room/GPU':>12}  {'KV tokens':>11}  {number(wanted.tokens)}?"
    for one in fit.budgets:
        name = _name(one)
        room = f"{one.kv:.1f} GiB" if one.kv > 0 else "-"
        fits = one.kv_tokens >= wanted.tokens
        yield (
            f"{name:>4}  {f'{one.weights:.2f} GiB':>12}  {room:>12}  {number(one.kv_tokens):>11}  "
            f"{'yes' if fits else 'no':3}  {mark if one == fit.chosen else _why(one, fit, wanted)}"
        )
    if fit.refused:
        reasons: dict[str, list[int]] = {}
        for tp, reason in fit.refused:
            reasons.setdefault(reason.replace(f"TP {tp}", "TP"), []).append(tp)
        for reason, sizes in list(reasons.items())[:8]:
            yield f"{'no':>4}  TP {sizes_text(sizes)}: {reason}"
    for one in (one for one in fit.budgets if one.split.ep > 1):
        why = parallel.refusal(given.checkpoint, one.tp)
        yield f"{'':4}  {_name(one)}: experts in {one.split.ep} groups (--ep-size), because {why}"


def _name(one: Budget) -> str:
    """TP with the stages and the groups of experts: 8, 8e2, 8p2, 8p2e2."""
    stages = f"p{one.split.pp}" if one.split.pp > 1 else ""
    groups = f"e{one.split.ep}" if one.split.ep > 1 else ""
    return f"{one.tp}{stages}{groups}"


def sizes_text(sizes: Sequence[int]) -> str:
    """Ascending numbers in one short line: a few as they are, many as ranges, and of many ranges the first."""
    if len(sizes) <= _MOST_SIZES:
        return ", ".join(map(str, sizes))
    ranges: list[list[int]] = []
    for size in sizes:
        if ranges and ranges[-1][-1] == size - 1:
            ranges[-1].append(size)
        else:
            ranges.append([size])
    shown = [f"{one[0]}" if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in ranges[:_MOST_SIZES]]
    left = sum(map(len, ranges[_MOST_SIZES:]))
    return f"{', '.join(shown)}{f' and {left} more' if left else ''}"


def _why(one: Budget, fit: Fit, wanted: Demand) -> str:
    if fit.chosen and one.gpus > fit.chosen.gpus:
        more = one.gpus - fit.chosen.gpus
        factor = one.kv_tokens / max(1, fit.chosen.kv_tokens)
        return f"{more} more GPU{'s' if more > 1 else ''}, {factor:.1f} x the tokens"
    if one.weights > one.static:
        return f"weights exceed {one.static:.1f} GiB ({one.free:.1f} free x {one.tuning.fraction / 1000:g})"
    if one.kv_tokens >= wanted.tokens:
        return f"states for {one.most_requests} requests only"
    return f"{number(wanted.tokens - one.kv_tokens)} tokens short"


def _arithmetic(one: Budget) -> Iterator[str]:
    context = one.total - one.free - one.communication
    between = f" - {one.communication:.2f} communication" if one.communication else ""
    whole, extra = one.weight_bytes / GIB, one.weights - one.weight_bytes / GIB
    yield _labelled(
        f"at {_at(one)}", f"free before load  {one.free:7.2f} GiB   {one.total:.2f} - {context:.2f} context{between}"
    )
    yield f"{_INDENT}x {one.tuning.fraction / 1000:<5g} static    {one.static:7.2f} GiB   --mem-fraction-static"
    yield f"{_INDENT}- weights         {one.weights:7.2f} GiB   {whole:.2f} per GPU + {extra:.2f} loader"
    yield f"{_INDENT}- margin          {one.margin:7.2f} GiB"
    if one.most_requests is not None:
        share = f"{one.state_ratio / 1000:g} x KV, for {one.most_requests} requests"
        yield f"{_INDENT}- states          {one.state:7.2f} GiB   {share}"
    yield (
        f"{_INDENT}= KV              {one.kv:7.2f} GiB   / {one.kv_bytes_per_token / 1024:g} KiB per token and GPU = "
        f"{number(one.kv_tokens)} tokens"
    )


def _at(one: Budget) -> str:
    return f"TP {one.tp}" if one.split.pp == 1 else _name(one)


def _holds(one: Budget, wanted: Demand) -> str:
    longest, typical = one.kv_tokens // wanted.context, wanted.typical(one.kv_tokens)
    asked = f"asked: {wanted.concurrency}" if wanted.given else "asked: none"
    return (
        f"{longest} request{'' if longest == 1 else 's'} of {number(wanted.context)} tokens, or {number(typical)} of "
        f"{wanted.input_tokens} in + {wanted.output_tokens} out ({asked})"
    )


def _shared_options(result: Plan) -> str:
    """Why the option of the fraction has another value than the arithmetic."""
    options = [arg for arg in result.args if arg.startswith(("--mem-fraction-static=", "--max-total-tokens="))]
    return (
        f"{' '.join(options)}: the fraction is of the whole GPU and leaves the reserve of one share; the tokens are "
        "limited to the plan, whatever else is loaded"
    )


def _pod(result: Plan, unit: str) -> str:
    each = "" if result.nodes_per_replica == 1 else " (each of the replica's pods)"
    gpus = f"{result.gpus_per_node} {unit}{'s' if result.gpus_per_node > 1 else ''}"
    named = f" ({result.resource_name})" if result.share else ""
    shm = f"{result.shm_bytes / GIB:g} GiB" if result.shm_bytes else "of the device plugin"
    return (
        f"{gpus}{named}; requests {result.cpu_millis / 1000:g} CPU and {result.host_memory_bytes / GIB:g} GiB of "
        f"memory; /dev/shm {shm}{each}"
    )


def _wrapped(label: str, words: Sequence[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 1 > _WIDTH:
            yield _labelled(label, line)
            label, line = "", ""
        line = f"{line} {word}".strip()
    yield _labelled(label, line)


def _unknown(given: Inputs) -> Iterator[str]:
    facts = "; facts from the catalog, no config.json was read" if given.checkpoint.source == CATALOG else ""
    if given.weights_computed:
        facts = "; the bytes of the weights are computed from config.json, --weight-bytes sets those of the files"
    if given.checkpoint.source == INSPECTION and given.checkpoint.chat and not given.checkpoint.chat.template:
        yield _labelled(
            "not known",
            "the chat template: none is beside the config.json, so the plan has no parsers; the operator reads it from "
            "the model's own files",
        )
    yield _labelled(
        "not known",
        f"throughput of this model on this GPU. Predicted from a formula, never run on a GPU by this project{facts}",
    )


def _labelled(label: str, rest: str) -> str:
    return f"{label:9} {rest}"
