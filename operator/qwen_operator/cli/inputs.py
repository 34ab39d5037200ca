"""The input of `plan` and `render`: a manifest or a model, facts, hardware, and the chart's settings.

Every fault is an `InputError` with one sentence that names the input and what would be right. Modules that few calls
need (YAML, the API client) are imported only by those calls, so that an answer takes well under a second.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import HubError, HubQuery
from qwen_operator.cli import files
from qwen_operator.cli.files import InputError
from qwen_operator.cli.settings import chart_settings
from qwen_operator.config import Settings
from qwen_operator.hardware.boards import Board, board, similar
from qwen_operator.hardware.inventory import PRODUCT_LABEL, GpuProduct, Inventory, inventory
from qwen_operator.hardware.pools import GpuPool
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import registry

_GPU = re.compile(r"(?P<product>[^=]+)=(?P<gpus>[1-9][0-9]?)x(?P<nodes>[1-9][0-9]{0,3})(:(?P<mib>[1-9][0-9]{3,6}))?")
_NAME = "model"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a plan needs. `manifest` is the given object, or one that is made from the options.

    `weights_computed` is true if the bytes of the weights are computed from config.json, not counted in the files.
    """

    manifest: Mapping[str, Any]
    spec: Spec
    checkpoint: Checkpoint
    inventory: Inventory
    settings: Settings
    weights_computed: bool = False

    @property
    def source(self) -> EngineSource:
        """Where SGLang finds the model."""
        return registry.engine_source(self.spec, self.checkpoint, self.settings.engine)


def options(parser: argparse.ArgumentParser, *, manifest_only: bool = False) -> None:
    """The options that say what to plan, and on which hardware."""
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "-f", "--file", metavar="MANIFEST", help="a QwenDeployment as YAML or JSON; - is standard input"
    )
    if not manifest_only:
        subject.add_argument("--model", help="repository of the model, for example Qwen/Qwen1.5-72B-Chat")
        _spec_options(parser)
    parser.add_argument("--checkpoint-config", metavar="FILE", help="the model's config.json, instead of the catalog")
    parser.add_argument(
        "--hub",
        action="store_true",
        help="query the model's hub if the catalog does not have the model, and for the commit of spec.source.revision",
    )
    parser.add_argument(
        "--weight-bytes", type=int, help="bytes of the tensors; the default is computed from --checkpoint-config"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="PRODUCT=GPUSxNODES",
        help="GPUs per node and number of nodes; can be repeated. For an unknown product, add its memory as :MIB",
    )
    parser.add_argument("--nodes", metavar="FILE", help="node objects, from kubectl get nodes -o yaml")
    parser.add_argument("--config", metavar="FILE", help="values of the chart: gpuPools, engine, image")


def _spec_options(parser: argparse.ArgumentParser) -> None:
    """The options that set one field of the spec."""
    parser.add_argument("--context", type=int, metavar="TOKENS", help="longest request (spec.contextTokens)")
    parser.add_argument("--concurrency", type=int, help="requests at the same time (spec.workload.concurrency)")
    parser.add_argument(
        "--input-tokens", type=int, metavar="TOKENS", help="prompt of a typical request (spec.workload.inputTokens)"
    )
    parser.add_argument(
        "--output-tokens", type=int, metavar="TOKENS", help="answer to a typical request (spec.workload.outputTokens)"
    )
    parser.add_argument("--tensor", type=int, metavar="GPUS", help="exact number of GPUs (spec.parallelism.tensor)")
    parser.add_argument(
        "--max-gpus", type=int, metavar="GPUS", help="largest number of GPUs (spec.hardware.maxGpusPerReplica)"
    )
    parser.add_argument("--kv-cache-type", metavar="TYPE", help="Auto, BFloat16 or Fp8E4m3 (spec.engine.kvCacheType)")


def read(arguments: argparse.Namespace) -> Inputs:
    """Everything that the options name. Raises InputError."""
    manifest = _manifest(arguments)
    try:
        spec = parse(manifest)
    except InvalidSpec as error:
        raise InputError("; ".join(error.problems)) from error
    settings = chart_settings(arguments.config)
    return Inputs(
        manifest,
        spec,
        _checkpoint(arguments, spec, settings.engine),
        _inventory(arguments, settings.pools),
        settings,
        weights_computed=bool(arguments.checkpoint_config) and arguments.weight_bytes is None,
    )


def _manifest(arguments: argparse.Namespace) -> Mapping[str, Any]:
    documents = files.documents(arguments.file) if arguments.file else [_manifest_from_options(arguments)]
    deployments = [one for one in documents if isinstance(one, Mapping) and one.get("kind") == "QwenDeployment"]
    if len(deployments) != 1:
        kinds = sorted({str(one.get("kind")) for one in documents if isinstance(one, Mapping)} - {"QwenDeployment"})
        others = f" (it has {', '.join(kinds)})" if kinds and not deployments else ""
        raise InputError(
            f"{arguments.file}: has {len(deployments)} objects of kind QwenDeployment{others}, it must have one"
        )
    manifest = dict(deployments[0])
    changes = _overrides(arguments) if arguments.file else {}
    if changes and isinstance(manifest.get("spec"), Mapping):
        manifest["spec"] = merged(manifest["spec"], changes)
    return manifest


def _manifest_from_options(arguments: argparse.Namespace) -> Mapping[str, Any]:
    spec = {"model": arguments.model, **_overrides(arguments)}
    return {
        "apiVersion": "qwen-operator.dev/v1alpha1",
        "kind": "QwenDeployment",
        "metadata": {"name": _NAME, "namespace": "default"},
        "spec": spec,
    }


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The part of a spec that the options set."""
    given = vars(arguments)
    workload = {
        name: given.get(option)
        for name, option in (
            ("concurrency", "concurrency"),
            ("inputTokens", "input_tokens"),
            ("outputTokens", "output_tokens"),
        )
        if given.get(option) is not None
    }
    values = {
        "contextTokens": given.get("context"),
        "workload": {"concurrency": 1, **workload} if workload else None,
        "parallelism": {"tensor": given["tensor"]} if given.get("tensor") is not None else None,
        "hardware": {"maxGpusPerReplica": given["max_gpus"]} if given.get("max_gpus") is not None else None,
        "engine": {"kvCacheType": given["kv_cache_type"]} if given.get("kv_cache_type") is not None else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def merged(value: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386) applied to a value."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(value) if isinstance(value, Mapping) else {}
    for key, member in patch.items():
        if member is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), member)
    return result


def _checkpoint(arguments: argparse.Namespace, spec: Spec, defaults: EngineDefaults) -> Checkpoint:
    if arguments.checkpoint_config:
        return _from_config(arguments.checkpoint_config, arguments.weight_bytes)
    if arguments.weight_bytes is not None:
        raise InputError("--weight-bytes needs --checkpoint-config, because the catalog has the bytes of its models")
    name = spec.repository or spec.model
    catalog_facts, query = catalog.lookup(name), registry.hub_query(spec, defaults)
    if query is not None and arguments.hub and (catalog_facts is None or query.revision):
        return _from_hub(query, defaults.mirror(query.hub))
    if catalog_facts is None:
        by_folded_name = {one.casefold(): one for one in catalog.names()}
        near = get_close_matches(name.casefold(), by_folded_name, n=1, cutoff=0.8)
        start = f"; did you mean {by_folded_name[near[0]]}? Otherwise give" if near else ": give"
        raise InputError(
            f"{name} is not in the catalog{start} its config.json with --checkpoint-config, query its hub with --hub, "
            "or choose one of `qwen-operator models`"
        )
    return catalog_facts


def _from_hub(query: HubQuery, mirror: str) -> Checkpoint:
    import asyncio  # noqa: PLC0415 - an HTTP client takes longer to import than a plan to make

    from qwen_operator.hubs.client import fetch  # noqa: PLC0415

    try:
        read = asyncio.run(fetch(query.repository, query.revision, query.hub, mirror))
    except HubError as error:
        raise InputError(f"--hub: {error.whole}") from error
    return replace(read.checkpoint, commit=read.commit)


def _from_config(path: str, weight_bytes: int | None) -> Checkpoint:
    from qwen_operator.checkpoints.config import from_config  # noqa: PLC0415 - only here

    record = files.config_json(path)
    try:
        return from_config(record, weight_bytes, source=INSPECTION)
    except InvalidFactsError as error:
        raise InputError(f"{path}: {error}") from error


def _inventory(arguments: argparse.Namespace, pools: tuple[GpuPool, ...]) -> Inventory:
    given = [_product(text) for text in arguments.gpu]
    if arguments.nodes:
        nodes = files.nodes(arguments.nodes)
    elif given or pools:
        nodes = []
    else:
        nodes = _cluster_nodes()
    hardware = inventory(nodes, pools)
    for product in given:
        hardware = hardware.with_product(_priced(product, pools))
    return hardware


def _priced(product: GpuProduct, pools: tuple[GpuPool, ...]) -> GpuProduct:
    cost = next((pool.cost_per_gpu_hour for pool in pools if pool.product == product.product), None)
    return replace(product, cost_per_gpu_hour=cost)


def _product(text: str) -> GpuProduct:
    match = _GPU.fullmatch(text)
    if match is None:
        name = text.partition("=")[0] or "PRODUCT"
        raise InputError(f"--gpu {text}: must be PRODUCT=GPUSxNODES, for example {name}=8x1")
    given, mib = match["product"], match["mib"]
    known_board = board(given)
    if "-MIG-" in given.upper() or given.upper().endswith("-SHARED"):
        raise InputError(f"--gpu {text}: is a part of a GPU; an engine needs whole GPUs, name the GPU itself")
    if mib is None and (known_board is None or known_board.unified):
        raise InputError(f"--gpu {text}: {_without_memory(given, known_board)}, {text}:MIB")
    name = known_board.product if known_board else given
    return GpuProduct(
        product=name,
        memory_mib=int(mib) if mib else known_board.memory_mib if known_board else 0,
        gpus_per_node=int(match["gpus"]),
        nodes=int(match["nodes"]),
        selector={PRODUCT_LABEL: name},
        declared=False,
        compute_capability=known_board.compute_capability if known_board else None,
        full_nodes=int(match["nodes"]),
    )


def _without_memory(name: str, known: Board | None) -> str:
    """Why the name alone does not say how much memory the GPU has, and what to do."""
    if known:
        return f"{known.product} shares its memory with the CPU; add the MiB that engines may use"
    near = [one for short in similar(name) if (one := board(short))]
    named = " or ".join(f"{one.short} ({one.memory_mib} MiB)" if len(near) > 1 else one.short for one in near)
    meant = f"did you mean {named}? Otherwise add" if near else "add"
    return f"{name} is not a known GPU; {meant} its memory in MiB"


def names_product(text: str, products: tuple[str, ...]) -> bool:
    """Whether a value of --gpu is one of these products."""
    return any(_product(text).called(name) for name in products)


def _cluster_nodes() -> list[Mapping[str, Any]]:
    """The nodes of the kubeconfig's cluster."""
    from qwen_operator.cli.cluster import listed  # noqa: PLC0415 - a second of imports that only this case needs
    from qwen_operator.kube import NODES  # noqa: PLC0415

    try:
        return listed(NODES)
    except ConnectionError as error:
        raise InputError(
            f"no hardware is given, and the cluster cannot be reached ({error}): give --gpu, --nodes or --config"
        ) from error
