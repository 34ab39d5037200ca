"""What `plan` and `render` read: a manifest or a model, facts, hardware, and the chart's settings.

Every fault is an `InputError` with one sentence that names what was given and what would be right. Modules that few
calls need (YAML, the API client) are imported where they are needed: an answer takes well under a second.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint, InvalidFactsError
from qwen_operator.hardware.boards import board, boards
from qwen_operator.hardware.inventory import PRODUCT_LABEL, GpuProduct, Inventory, inventory
from qwen_operator.hardware.pools import GpuPool, details
from qwen_operator.planning.types import EngineDefaults

DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
_GPU = re.compile(r"(?P<product>[^=]+)=(?P<gpus>[1-9][0-9]?)x(?P<nodes>[1-9][0-9]{0,3})(:(?P<mib>[1-9][0-9]{3,6}))?")
_MOST_BYTES = 8_000_000
_NAME = "model"


class InputError(Exception):
    """Input that cannot be used; the text is for the person who gave it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the chart sets: engine, declared pools, the operator's own image."""

    engine: EngineDefaults
    pools: tuple[GpuPool, ...]
    image: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a plan needs. `manifest` is the object as given, or as the options say."""

    manifest: Mapping[str, Any]
    spec: Spec
    checkpoint: Checkpoint
    inventory: Inventory
    settings: Settings


def options(parser: argparse.ArgumentParser, *, manifest_only: bool = False) -> None:
    """The options that say what to plan, and on which hardware."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-f", "--file", metavar="MANIFEST", help="a QwenDeployment as YAML or JSON; - is standard input")
    if not manifest_only:
        what.add_argument("--model", help="repository of the model, for example Qwen/Qwen1.5-72B-Chat")
        parser.add_argument("--context", type=int, metavar="TOKENS", help="longest request (spec.contextTokens)")
        parser.add_argument("--concurrency", type=int, help="requests at the same time (spec.workload.concurrency)")
        parser.add_argument("--input-tokens", type=int, metavar="TOKENS", help="prompt of a typical request")
        parser.add_argument("--output-tokens", type=int, metavar="TOKENS", help="answer to a typical request")
        parser.add_argument("--tensor", type=int, metavar="GPUS", help="exactly so many GPUs (spec.parallelism.tensor)")
        parser.add_argument("--max-gpus", type=int, metavar="GPUS", help="spec.hardware.maxGpusPerReplica")
        parser.add_argument(
            "--kv-cache-type", metavar="TYPE", help="Auto, BFloat16 or Fp8E4m3 (spec.engine.kvCacheType)"
        )
    parser.add_argument("--checkpoint-config", metavar="FILE", help="the model's config.json, instead of the catalog")
    parser.add_argument("--weight-bytes", type=int, help="bytes of its tensors; without it they are computed")
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="PRODUCT=GPUSxNODES",
        help="GPUs per node and number of nodes; may be repeated. Add :MIB for a product that is not known",
    )
    parser.add_argument("--nodes", metavar="FILE", help="node objects, from kubectl get nodes -o yaml")
    parser.add_argument("--config", metavar="FILE", help="values of the chart: gpuPools, engine, image")


def read(arguments: argparse.Namespace) -> Inputs:
    """Everything that the options name; raises InputError."""
    manifest = _manifest(arguments)
    try:
        spec = parse(manifest)
    except InvalidSpec as error:
        raise InputError("; ".join(error.problems)) from error
    settings = _settings(arguments.config)
    return Inputs(manifest, spec, _checkpoint(arguments, spec), _inventory(arguments, settings.pools), settings)


def _manifest(arguments: argparse.Namespace) -> Mapping[str, Any]:
    documents = _documents(arguments.file) if arguments.file else [_asked(arguments)]
    found = [one for one in documents if isinstance(one, Mapping) and one.get("kind") == "QwenDeployment"]
    if len(found) != 1:
        raise InputError(f"{arguments.file}: has {len(found)} objects of kind QwenDeployment, it must have one")
    manifest = dict(found[0])
    changes = _overrides(arguments) if arguments.file else {}
    if changes and isinstance(manifest.get("spec"), Mapping):
        manifest["spec"] = merged(manifest["spec"], changes)
    return manifest


def _asked(arguments: argparse.Namespace) -> Mapping[str, Any]:
    spec = {"model": arguments.model, **_overrides(arguments)}
    return {
        "apiVersion": "qwen-operator.dev/v1alpha1",
        "kind": "QwenDeployment",
        "metadata": {"name": _NAME, "namespace": "default"},
        "spec": spec,
    }


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The part of a spec that options set."""
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


def _checkpoint(arguments: argparse.Namespace, spec: Spec) -> Checkpoint:
    if arguments.checkpoint_config:
        return _from_config(arguments.checkpoint_config, arguments.weight_bytes)
    if arguments.weight_bytes is not None:
        raise InputError("--weight-bytes needs --checkpoint-config: the catalog knows its own")
    name = spec.repository if spec.source and spec.repository else spec.model
    found = catalog.lookup(name)
    if found is None:
        near = get_close_matches(name.casefold(), {one.casefold(): one for one in catalog.names()}, n=1, cutoff=0.8)
        meant = next((one for one in catalog.names() if near and one.casefold() == near[0]), "")
        raise InputError(
            f"{name} is not in the catalog{f'; did you mean {meant}?' if meant else ''}: give its config.json with "
            "--checkpoint-config, or choose one of `qwen-operator models`"
        )
    return found


def _from_config(path: str, weight_bytes: int | None) -> Checkpoint:
    from qwen_operator.checkpoints.config import from_config  # noqa: PLC0415 - only here

    text = _text(path)
    try:
        record = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(record, Mapping):
        raise InputError(f"{path}: holds {type(record).__name__}, a config.json holds an object")
    try:
        return from_config(record, weight_bytes, source=INSPECTION)
    except InvalidFactsError as error:
        raise InputError(f"{path}: {error}") from error


def _inventory(arguments: argparse.Namespace, pools: tuple[GpuPool, ...]) -> Inventory:
    given = [_product(text) for text in arguments.gpu]
    if arguments.nodes:
        nodes = [one for document in _documents(arguments.nodes) for one in _items(document)]
    elif given or pools:
        nodes = []
    else:
        nodes = _cluster_nodes()
    found = inventory(nodes, pools)
    for product in given:
        found = found.with_product(_priced(product, pools))
    return found


def _priced(product: GpuProduct, pools: tuple[GpuPool, ...]) -> GpuProduct:
    cost = next((pool.cost_per_gpu_hour for pool in pools if pool.product == product.product), None)
    return replace(product, cost_per_gpu_hour=cost)


def _items(document: Any) -> list[Mapping[str, Any]]:
    items = document.get("items", [document]) if isinstance(document, Mapping) else []
    return [item for item in items if isinstance(item, Mapping)]


def _product(text: str) -> GpuProduct:
    found = _GPU.fullmatch(text)
    if found is None:
        raise InputError(f"--gpu {text}: must be PRODUCT=GPUSxNODES, for example NVIDIA-H100-80GB-HBM3=8x4")
    known, mib = board(found["product"]), found["mib"]
    if known is None and mib is None:
        names = {one.short.casefold(): one.short for one in boards()} | {
            one.product.casefold(): one.product for one in boards()
        }
        near = get_close_matches(found["product"].casefold(), names, n=1, cutoff=0.6)
        meant = f"did you mean {names[near[0]]}? Otherwise add" if near else "add"
        raise InputError(
            f"--gpu {text}: {found['product']} is not a known GPU; {meant} its memory in MiB, {text}:81559"
        )
    name = known.product if known else found["product"]
    return GpuProduct(
        product=name,
        memory_mib=int(mib) if mib else known.memory_mib if known else 0,
        gpus_per_node=int(found["gpus"]),
        nodes=int(found["nodes"]),
        selector={PRODUCT_LABEL: name},
        declared=False,
        compute_capability=known.compute_capability if known else None,
        full_nodes=int(found["nodes"]),
    )


def names_product(text: str, products: tuple[str, ...]) -> bool:
    """Whether a value of --gpu is one of these products."""
    return any(_product(text).called(name) for name in products)


def _cluster_nodes() -> list[Mapping[str, Any]]:
    """The nodes of the cluster that the kubeconfig points to."""
    import asyncio  # noqa: PLC0415 - a second of imports that only this case needs
    import logging  # noqa: PLC0415

    from qwen_operator.kube import NODES, ApiError  # noqa: PLC0415
    from qwen_operator.kube.client import connect  # noqa: PLC0415

    async def listed() -> list[Mapping[str, Any]]:
        api = await connect()
        try:
            return list((await api.list(NODES, None))[0])
        finally:
            await api.aclose()

    # The client logs what the error says as well.
    logging.getLogger("kubernetes").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(listed())
    except (ApiError, ConnectionError) as error:
        raise InputError(
            f"no hardware is given, and the cluster cannot be asked ({error}): give --gpu, --nodes or --config"
        ) from error


def _settings(path: str | None) -> Settings:
    if path is None:
        return Settings(DEFAULTS, (), "localhost/qwen-operator")
    documents = _documents(path)
    values = documents[0] if len(documents) == 1 and isinstance(documents[0], Mapping) else None
    if values is None:
        raise InputError(f"{path}: must hold one mapping, the values of the chart")
    engine, image = _mapping(values, "engine", path), _mapping(values, "image", path)
    pools = values.get("gpuPools") or []
    if not isinstance(pools, list):
        raise InputError(f"{path}: gpuPools is {pools!r:.80}, it must be a list")
    return Settings(
        engine=EngineDefaults(
            image=str(engine.get("image") or DEFAULTS.image),
            version=str(engine.get("version") or DEFAULTS.version),
            args=tuple(str(arg) for arg in engine.get("args") or ()),
        ),
        pools=tuple(_pool(f"{path}: gpuPools[{index}]", pool) for index, pool in enumerate(pools)),
        image=str(image.get("reference") or image.get("repository") or "localhost/qwen-operator"),
    )


def _mapping(values: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    member = values.get(name) or {}
    if not isinstance(member, Mapping):
        raise InputError(f"{path}: {name} is {member!r:.80}, it must be a mapping")
    return member


def _pool(path: str, pool: Any) -> GpuPool:
    needed = {"name": str, "product": str, "memoryMiB": int, "gpusPerNode": int}
    for name, kind in needed.items():
        if not isinstance(pool, Mapping) or not isinstance(pool.get(name), kind):
            raise InputError(f"{path}: must have name, product, memoryMiB and gpusPerNode; {name} is missing or wrong")
    try:
        optional = details(path, pool)
    except ValueError as error:
        raise InputError(str(error)) from error
    return GpuPool(
        name=pool["name"],
        product=pool["product"],
        memory_mib=pool["memoryMiB"],
        gpus_per_node=pool["gpusPerNode"],
        node_selector=pool.get("nodeSelector") or {},
        tolerations=tuple(pool.get("tolerations") or ()),
        **optional,
    )


def _documents(path: str) -> list[Any]:
    import yaml  # noqa: PLC0415 - half of the start-up time of a call that needs no YAML

    try:
        return [one for one in yaml.safe_load_all(_text(path)) if one is not None]
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise InputError(f"{path}: is no YAML: {where:.200}") from error


def _text(path: str) -> str:
    try:
        text = sys.stdin.read(_MOST_BYTES + 1) if path == "-" else _limited(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(text) > _MOST_BYTES:
        raise InputError(f"{path}: is larger than {_MOST_BYTES} bytes, which no manifest or config.json is")
    return text


def _limited(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MOST_BYTES + 1)
