"""What a generation of GPUs can run: the lowest compute capability for each format, by version of SGLang.

A product of unknown compute capability passes every gate, and the plan says so.
"""

from __future__ import annotations

from qwen_operator.checkpoints.facts import CATALOG, Checkpoint, Quantization
from qwen_operator.engines.types import Capability, EngineVersion, Formats
from qwen_operator.hardware.boards import Board, board
from qwen_operator.hardware.inventory import GpuProduct

# With more GPUs than this and no NVLink, communication takes longer than computation.
_PCIE_GPUS = 4


def dropped(checkpoint: Checkpoint, engine: EngineVersion) -> str | None:
    """Why this version of SGLang cannot run this format of weights on any GPU, or None."""
    formats, models = engine.formats, engine.models
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    if quantization.method not in formats.weights:
        missing = models.known and not models.loads(quantization.method)
        why = f"SGLang {engine.version} does not load" if missing else "the operator cannot plan"
        right = ", ".join(sorted(formats.weights))
        return f"weights are {quantization.method}, which {why}; use {right} or 16 bit"
    if quantization.refused:
        return f"weights are {checkpoint.quantization_name}, which SGLang cannot load: {quantization.refused}"
    return _packed(quantization, formats) if quantization.method in ("gptq", "awq") else None


def _packed(quantization: Quantization, formats: Formats) -> str | None:
    """Why no kernel unpacks these GPTQ or AWQ weights, or None."""
    if quantization.method == "gptq" and quantization.symmetric is False:
        return (
            "weights are asymmetric GPTQ (sym: false), whose kernel SGLang removed in 0.5.21; use symmetric GPTQ or AWQ"
        )
    runs = formats.packed_bits[quantization.method]
    if quantization.bits not in runs:
        right = " and ".join(map(str, runs))
        return f"weights are {quantization.bits}-bit {quantization.method.upper()}; SGLang runs {right} bits"
    return None


def barrier(checkpoint: Checkpoint, kv_cache_type: str, product: GpuProduct, engine: EngineVersion) -> str | None:
    """Why this product cannot run the checkpoint with this KV cache type, or None."""
    has = product.compute_capability
    if has is None:
        return None
    formats = engine.formats
    needs = [(f"SGLang {engine.version}", formats.engine)]
    if checkpoint.quantization:
        needs.append(_weights(checkpoint.quantization, formats))
    needs.append((f"spec.engine.kvCacheType {kv_cache_type}", formats.kv_cache_types[kv_cache_type].capability))
    for feature, least in needs:
        if has < least:
            verb = "need" if feature.endswith("weights") else "needs"
            return f"{feature} {verb} compute capability {least[0]}.{least[1]}, {product.product} has {has[0]}.{has[1]}"
    return None


def _weights(quantization: Quantization, formats: Formats) -> tuple[str, Capability]:
    name = f"{quantization.method.upper()} weights"
    if quantization.method == "compressed-tensors" and quantization.block:
        return f"block FP8 {name}", formats.fp8_native
    return name, formats.weights[quantization.method]


def weight_type(checkpoint: Checkpoint, product: GpuProduct, formats: Formats) -> str | None:
    """The value of --dtype if the GPU cannot run the checkpoint's own type, else None."""
    has = product.compute_capability
    old = has is not None and has < formats.bfloat16
    return "float16" if old and checkpoint.dtype == "bfloat16" else None


def remarks(checkpoint: Checkpoint, product: GpuProduct, gpus: int, formats: Formats) -> tuple[str, ...]:
    """Remarks for people about this format on this number of GPUs of the product, as lines of the arithmetic."""
    has = product.compute_capability
    lines = []
    known_board = board(product.whole)
    if known_board and not known_board.verified:
        lines.append(_unverified(known_board))
    if known_board and not known_board.nvlink and gpus > _PCIE_GPUS:
        lines.append(f"slow: {gpus} x {product.product} exchange every layer over PCIe, which bounds long prompts")
    if checkpoint.gguf:
        lines.append("GGUF: one GPU; SGLang runs it slower than AWQ or GPTQ")
        if checkpoint.source == CATALOG:
            lines.append("GGUF: this is the size of one file; spec.source.file says which file to load")
    if has is None:
        return (
            *lines,
            f"not known: the compute capability of {product.product}, so whether it has kernels for the weights",
        )
    if weight_type(checkpoint, product, formats):
        lines.append(f"dtype: float16, because compute capability {has[0]}.{has[1]} has no bfloat16 (8.0)")
    if checkpoint.quantization and checkpoint.quantization.method == "fp8" and has < formats.fp8_native:
        lines.append(f"FP8 weights are unpacked to 16 bits for every product: {has[0]}.{has[1]} has no FP8 cores (8.9)")
    return tuple(lines)


def _unverified(known_board: Board) -> str:
    major, minor = known_board.compute_capability
    links = "NVLink" if known_board.nvlink else "PCIe"
    return (
        f"not checked: the operator knows {known_board.product} from general knowledge only "
        f"({known_board.memory_mib} MiB, compute capability {major}.{minor}, {links}); labels of the node have "
        "precedence"
    )
