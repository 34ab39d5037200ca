"""The input of `plan` and `render`: a manifest or a model, facts, hardware, and the chart's settings.

Every fault is an `InputError` with one sentence that names the input and what would be right. Modules that few calls
need (YAML, the API client) are imported only by those calls, so that an answer takes well under a second.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_operator.api import uris
from qwen_operator.api.pod import with_defaults
from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints import catalog, records
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import HubError, HubQuery
from qwen_operator.checkpoints.suggestions import suggestion
from qwen_operator.cli import files
from qwen_operator.cli.files import InputError
from qwen_operator.cli.settings import chart_settings
from qwen_operator.config.types import Settings
from qwen_operator.hardware.boards import Board, board, similar, whole
from qwen_operator.hardware.inventory import (
    GPU_RESOURCE,
    PRODUCT_LABEL,
    GpuProduct,
    Inventory,
    inventory,
    part_selector,
)
from qwen_operator.hardware.pools import GpuPool
from qwen_operator.hardware.shares import part_of, profile_mib
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import registry
from qwen_runtime.checkpoints.gguf import is_gguf

_GPU = re.compile(
    r"(?P<product>[^=]+)=(?P<gpus>[1-9][0-9]?)x(?P<nodes>[1-9][0-9]{0,3})(:(?P<mib>[1-9][0-9]{3,6}))?"
    r"(/(?P<pods>[2-9]|[1-9][0-9]))?"
)
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
    parser.add_argument(
        "--checkpoint-config", metavar="FILE", help="the model's config.json or GGUF file, instead of the catalog"
    )
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
        help="GPUs per node and number of nodes; can be repeated. For an unknown product, add its memory as :MIB. With "
        "--resource-name, the slices or shares per node; /4 at the end: 4 pods share one GPU",
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
        "--pipeline", type=int, metavar="STAGES", help="stages, each of so many GPUs (spec.parallelism.pipeline)"
    )
    parser.add_argument(
        "--max-gpus", type=int, metavar="GPUS", help="largest number of GPUs (spec.hardware.maxGpusPerReplica)"
    )
    parser.add_argument(
        "--max-nodes", type=int, metavar="NODES", help="largest number of nodes (spec.hardware.maxNodesPerReplica)"
    )
    parser.add_argument(
        "--resource-name",
        metavar="NAME",
        help="nvidia.com/mig-3g.40gb, nvidia.com/gpu.shared ... (spec.hardware.resourceName)",
    )
    parser.add_argument(
        "--product", action="append", default=[], metavar="PRODUCT", help="a product to use (spec.hardware.products)"
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
    spec = replace(spec, pod=with_defaults(spec.pod, settings.pod))
    return Inputs(
        manifest,
        spec,
        _checkpoint(arguments, spec, settings.engine),
        _inventory(arguments, settings.pools, spec.hardware.resource_name),
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
    hardware = {
        name: given[option]
        for name, option in (
            ("products", "product"),
            ("maxGpusPerReplica", "max_gpus"),
            ("maxNodesPerReplica", "max_nodes"),
            ("resourceName", "resource_name"),
        )
        if given.get(option)
    }
    values = {
        "contextTokens": given.get("context"),
        "workload": {"concurrency": 1, **workload} if workload else None,
        "parallelism": {name: given[name] for name in ("tensor", "pipeline") if given.get(name) is not None} or None,
        "hardware": hardware or None,
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
    if query is not None and arguments.hub and (catalog_facts is None or query.revision or query.file):
        return _from_hub(query, defaults.mirror(query.hub))
    if spec.source and spec.source.file:
        if of_file := catalog.file_entry(name, spec.source.file):
            return of_file.checkpoint
        raise InputError(
            f"the size of {spec.source.file} is in the file itself: give the file with --checkpoint-config"
            f"{', or query its hub with --hub' if query else ''}"
        )
    if catalog_facts is None:
        if pasted := uris.cure(name):
            raise InputError(f"{name} is the address of a page: {pasted}")
        near = suggestion(name)
        start = f"{near}{'' if near.endswith('?') else '.'} Otherwise give" if near else ": give"
        raise InputError(
            f"{name} is not in the catalog{start} its config.json with --checkpoint-config, query its hub with --hub, "
            "or choose one of `qwen-operator models`"
        )
    return catalog_facts


def _from_hub(query: HubQuery, mirror: str) -> Checkpoint:
    import asyncio  # noqa: PLC0415 - an HTTP client takes longer to import than a plan to make

    from qwen_operator.hubs.client import fetch, fetch_file  # noqa: PLC0415

    fetched = fetch_file(query, mirror) if query.file else fetch(query.repository, query.revision, query.hub, mirror)
    try:
        read = asyncio.run(fetched)
    except HubError as error:
        raise InputError(f"--hub: {error.whole}") from error
    return replace(read.checkpoint, commit=read.commit)


def _from_config(path: str, weight_bytes: int | None) -> Checkpoint:
    if is_gguf(path):
        return _from_gguf(path)
    from qwen_operator.checkpoints.config import from_config  # noqa: PLC0415 - only here
    from qwen_runtime.checkpoints.chat import chat_files, read_chat  # noqa: PLC0415
    from qwen_runtime.checkpoints.methods import check_beside  # noqa: PLC0415

    record, beside = files.config_json(path), files.beside(path)
    try:
        check_beside(record, beside)
        chat = read_chat({name: files.read_beside(path, name) for name in chat_files(beside)}, beside)
        return replace(from_config(record, weight_bytes, source=INSPECTION), chat=chat)
    except InvalidFactsError as error:
        raise InputError(f"{path}: {error}") from error


def _from_gguf(path: str) -> Checkpoint:
    from qwen_runtime.inspect_checkpoint import examine  # noqa: PLC0415 - only here

    report, complete = examine(Path(path), to_join=True)
    if not complete:
        raise InputError(str(report["error"]["message"]).rstrip("."))
    return records.from_inspection(report)


def _inventory(arguments: argparse.Namespace, pools: tuple[GpuPool, ...], resource_name: str) -> Inventory:
    given = [_product(text, resource_name) for text in arguments.gpu]
    if arguments.nodes:
        nodes = files.nodes(arguments.nodes)
    elif given or pools:
        nodes = []
    else:
        nodes = _cluster_nodes()
    hardware = inventory(nodes, pools)
    for product in given:
        hardware = hardware.with_product(_priced(product, pools))
    guesses = tuple(
        (
            one.resource_name,
            f"--gpu {text}: planned with {one.memory_mib} MiB, which the profile has at least; exact is {text}:MIB",
        )
        for text, one in zip(arguments.gpu, given, strict=True)
        if one.share and profile_mib(one.product) and ":" not in text
    )
    return replace(hardware, part_notes=(*hardware.part_notes, *guesses))


def _priced(product: GpuProduct, pools: tuple[GpuPool, ...]) -> GpuProduct:
    cost = next((pool.cost_per_gpu_hour for pool in pools if pool.product == product.product), None)
    return replace(product, cost_per_gpu_hour=cost)


def _product(text: str, resource_name: str = GPU_RESOURCE) -> GpuProduct:
    match = _GPU.fullmatch(text)
    if match is None:
        name = text.partition("=")[0] or "PRODUCT"
        raise InputError(f"--gpu {text}: must be PRODUCT=GPUSxNODES, for example {name}=8x1")
    gpu, _ = whole(match["product"])
    known_board = board(gpu)
    pods = int(match["pods"] or 1)
    name, share = part_of(known_board.product if known_board else gpu, resource_name, pods)
    if fault := _part_fault(match, name, resource_name):
        raise InputError(f"--gpu {text}: {fault}")
    memory_mib = int(match["mib"] or profile_mib(name))
    if not memory_mib and (known_board is None or known_board.unified):
        raise InputError(f"--gpu {text}: {_without_memory(gpu, known_board)}, {text}:MIB")
    return GpuProduct(
        product=name,
        memory_mib=(memory_mib or (known_board.memory_mib if known_board else 0)) // pods,
        gpus_per_node=int(match["gpus"]),
        nodes=int(match["nodes"]),
        selector={PRODUCT_LABEL: name} if share is None else part_selector(name, resource_name, pods),
        declared=False,
        compute_capability=known_board.compute_capability if known_board else None,
        full_nodes=int(match["nodes"]) if share is None else 1,
        resource_name=resource_name,
        share=share,
    )


def _part_fault(match: re.Match[str], name: str, resource_name: str) -> str:
    """Why the value of --gpu and --resource-name do not agree, "" if they do."""
    given, part = match["product"], whole(match["product"])[1].upper()
    slice_of = whole(given)[1].removeprefix("-MIG-").removesuffix("-SHARED")
    if part and resource_name == GPU_RESOURCE:
        resource = f"nvidia.com/mig-{slice_of}" if "-MIG-" in part else f"{GPU_RESOURCE}.shared"
        return f"{given} is a part of a GPU: add --resource-name {resource}"
    if "-MIG-" in part and given.casefold() != f"{whole(given)[0]}{whole(name)[1]}".casefold():
        return f"{given} is no slice that --resource-name {resource_name} names: write {whole(given)[0]} alone"
    if resource_name == GPU_RESOURCE and match["pods"]:
        return f"/{match['pods']} is for shared GPUs: add --resource-name, for example {GPU_RESOURCE}.shared"
    if not profile_mib(resource_name) and resource_name != GPU_RESOURCE and not match["pods"]:
        return f"{resource_name} is a share of a GPU: add how many pods share one, for example {match[0]}/4"
    return ""


def _without_memory(name: str, known: Board | None) -> str:
    """Why the name alone does not say how much memory the GPU has, and what to do."""
    if known:
        return f"{known.product} shares its memory with the CPU; add the MiB that engines may use"
    near = [one for short in similar(name) if (one := board(short))]
    named = " or ".join(f"{one.short} ({one.memory_mib} MiB)" if len(near) > 1 else one.short for one in near)
    meant = f"did you mean {named}? Otherwise add" if near else "add"
    return f"{name} is not a known GPU; {meant} its memory in MiB"


def names_product(text: str, products: tuple[str, ...]) -> bool:
    """Whether a value of --gpu is one of these products, or a part of one."""
    gpu = text.partition("=")[0]
    known = board(whole(gpu)[0])
    names = {
        gpu.casefold(),
        whole(gpu)[0].casefold(),
        *((known.product.casefold(), known.short.casefold()) if known else ()),
    }
    return any(whole(name)[0].casefold() in names or name.casefold() in names for name in products)


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
