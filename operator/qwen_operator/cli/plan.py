"""`qwen-operator plan`: the operator's own planning, offline."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.cli import inputs, verdict
from qwen_operator.cli.files import InputError
from qwen_operator.cli.inputs import Inputs
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.planning import alternatives
from qwen_operator.planning.plan import explore
from qwen_operator.planning.types import Alternative, NoFit, Plan

# The input is wrong, not the hardware too small.
_INVALID = (Reason.INVALID_OVERRIDE, Reason.UNKNOWN_FLAG, Reason.UNKNOWN_ARCHITECTURE)
# Options that set one field of the spec: path of the field -> option.
_OPTIONS = {
    "model": "--model",
    "contextTokens": "--context",
    "workload.concurrency": "--concurrency",
    "engine.kvCacheType": "--kv-cache-type",
    "parallelism.tensor": "--tensor",
    "parallelism.pipeline": "--pipeline",
    "hardware.maxGpusPerReplica": "--max-gpus",
    "hardware.maxNodesPerReplica": "--max-nodes",
    "hardware.resourceName": "--resource-name",
}
_KEPT = {"--input-tokens": "input_tokens", "--output-tokens": "output_tokens"}


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    inputs.options(parser)
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print the plan, or why there is none. Exit code 0: a plan; 3: it does not fit; 2: the input cannot be used."""
    try:
        given = inputs.read(arguments)
    except InputError as error:
        sys.stderr.write(f"qwen-operator plan: {error}\n")
        return 2
    outcome = explore(given.spec, given.checkpoint, given.inventory, given.settings.engine, given.source)
    result = outcome.result
    if arguments.output == "text":
        shown = result.alternatives if isinstance(result, NoFit) else _cheaper(given, result)
        sys.stdout.write(verdict.text(given, outcome, {one: command(arguments, one) for one in shown}))
    else:
        _dump(record(arguments, given, result), arguments.output)
    return 0 if isinstance(result, Plan) else exit_code(result)


def _cheaper(given: Inputs, result: Plan) -> tuple[Alternative, ...]:
    """Another format of the model that takes fewer GPUs, if there is one."""

    def planner(spec: Spec, checkpoint: Checkpoint, inventory: Inventory) -> Plan | NoFit:
        return explore(spec, checkpoint, inventory, given.settings.engine, given.source).result

    alternative = alternatives.cheaper(given.spec, given.inventory, result, planner)
    return (alternative,) if alternative else ()


def exit_code(refusal: NoFit) -> int:
    """3 if other hardware or a smaller demand would fit, 2 if the input is not valid."""
    return 2 if refusal.reason in _INVALID else 3


def record(arguments: argparse.Namespace, given: Inputs, result: Plan | NoFit) -> dict[str, Any]:
    """The result as data."""
    if isinstance(result, NoFit):
        return {"noFit": _refusal(arguments, result)}
    return {
        "model": given.spec.model,
        "commit": given.checkpoint.commit or None,
        "tensorParallel": result.tensor_parallel,
        "expertParallel": result.expert_parallel,
        "pipelineParallel": result.pipeline_parallel,
        "gpusPerReplica": result.gpus_per_replica,
        "nodesPerReplica": result.nodes_per_replica,
        "gpuProduct": result.gpu_product,
        "resourceName": result.resource_name,
        **({"share": result.share} if result.share else {}),
        "contextTokens": result.context_tokens,
        "kvTokens": result.kv_tokens,
        "maxRunningRequests": result.max_running_requests,
        "typicalRequests": result.typical_requests,
        "kvCacheType": result.kv_cache_dtype,
        "weightBytesPerRank": result.weight_bytes_per_rank,
        "kvBytesPerTokenPerRank": result.kv_bytes_per_token_per_rank,
        "engineImage": result.engine_image,
        "engineVersion": result.engine_version,
        "args": list(result.args),
        "env": [_variable(one.name, one.value, one.value_from) for one in result.env],
        "startupSeconds": result.startup_seconds,
        "shmBytes": result.shm_bytes,
        "cpuMillis": result.cpu_millis,
        "hostMemoryBytes": result.host_memory_bytes,
        "nodeSelector": dict(result.selector),
        "tolerations": [dict(one) for one in result.tolerations],
        "warnings": list(result.warnings),
        "steps": list(result.steps),
    }


def _refusal(arguments: argparse.Namespace, result: NoFit) -> dict[str, Any]:
    return {
        "reason": str(result.reason),
        "message": result.message,
        "missing": result.missing or result.message,
        "alternatives": [{**one.to_json(), "command": command(arguments, one)} for one in result.alternatives],
        "steps": list(result.steps),
    }


def _variable(name: str, value: str | None, source: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "name": name,
        **({"value": value} if value is not None else {}),
        **({"valueFrom": source} if source else {}),
    }


def command(arguments: argparse.Namespace, alternative: Alternative) -> str:
    """The command that plans an alternative, "" if the manifest must be changed for it."""
    words = {"--model": arguments.model, **{option: vars(arguments)[name] for option, name in _KEPT.items()}}
    given = {
        "contextTokens": arguments.context,
        "workload.concurrency": arguments.concurrency,
        "engine.kvCacheType": arguments.kv_cache_type,
        "parallelism.tensor": arguments.tensor,
        "parallelism.pipeline": arguments.pipeline,
        "hardware.maxGpusPerReplica": arguments.max_gpus,
        "hardware.maxNodesPerReplica": arguments.max_nodes,
        "hardware.resourceName": arguments.resource_name,
    }
    changes = dict(alternative.changes)
    kept = None if "hardware.products" in changes else tuple(arguments.product)
    products = changes.pop("hardware.products", None)
    if arguments.model is None or not set(changes) <= set(_OPTIONS):
        return ""
    words |= {_OPTIONS[path]: value for path, value in {**given, **changes}.items()}
    shown = [part for option, value in words.items() if value is not None for part in (option, str(value))]
    for option in ("checkpoint_config", "weight_bytes", "nodes", "config"):
        value = vars(arguments)[option]
        if value is not None and not (option in ("checkpoint_config", "weight_bytes") and "model" in changes):
            shown += [f"--{option.replace('_', '-')}", str(value)]
    shown += ["--hub"] if arguments.hub and "model" not in changes else []
    gpus = list(arguments.gpu)
    if alternative.hardware:
        others = [gpu for gpu in gpus if not inputs.names_product(gpu, (alternative.hardware.product,))]
        gpus = [*others, str(alternative.hardware)]
    if products and len(gpus) > 1:
        gpus = [gpu for gpu in gpus if inputs.names_product(gpu, products)]
    shown += [part for gpu in gpus for part in ("--gpu", gpu)]
    shown += [part for name in (products if arguments.nodes else kept) or () for part in ("--product", name)]
    return shlex.join(["qwen-operator", "plan", *shown])


def _dump(value: dict[str, Any], form: str) -> None:
    if form == "json":
        json.dump(value, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from qwen_operator.cli.yaml_text import yaml_text  # noqa: PLC0415 - half of the start-up time without YAML

    sys.stdout.write(yaml_text([value]).removeprefix("---\n"))
