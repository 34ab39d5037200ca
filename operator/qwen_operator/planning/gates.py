"""What a generation of GPUs can run: the least compute capability of each format, by version of SGLang.

A product whose compute capability nobody states passes every gate; the plan says so.
"""

from __future__ import annotations

from qwen_operator.checkpoints.facts import Checkpoint, Quantization
from qwen_operator.engines.types import Capability, EngineVersion, Formats
from qwen_operator.hardware.boards import board
from qwen_operator.hardware.inventory import GpuProduct

# Beyond so many GPUs without NVLink the exchange between them takes longer than the work.
_PCIE_GPUS = 4


def dropped(checkpoint: Checkpoint, formats: Formats) -> str | None:
    """Why no GPU runs this format of weights on this SGLang, or None."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    if quantization.method not in formats.weights:
        return (
            f"weights are {checkpoint.quantization_name}, which cannot be planned; right would be "
            f"{', '.join(sorted(formats.weights))} or 16 bit"
        )
    if quantization.refused:
        return f"weights are {checkpoint.quantization_name}, which SGLang cannot load: {quantization.refused}"
    return _packed(quantization, formats) if quantization.method in ("gptq", "awq") else None


def _packed(quantization: Quantization, formats: Formats) -> str | None:
    """Why no kernel unpacks these GPTQ or AWQ weights, or None."""
    if quantization.method == "gptq" and quantization.symmetric is False:
        return (
            "weights are asymmetric GPTQ (sym: false), whose kernel SGLang removed in 0.5.21; symmetric GPTQ or AWQ "
            "would be right"
        )
    if quantization.bits not in formats.packed_bits:
        return f"weights are {quantization.bits}-bit {quantization.method.upper()}; SGLang runs 4 and 8 bits"
    return None


def barrier(checkpoint: Checkpoint, kv_cache_type: str, product: GpuProduct, engine: EngineVersion) -> str | None:
    """Why this product cannot run the checkpoint with this KV cache type, or None."""
    has = product.compute_capability
    if has is None:
        return None
    formats = engine.formats
    wanted = [(f"SGLang {engine.version}", formats.engine)]
    if checkpoint.quantization:
        wanted.append(_weights(checkpoint.quantization, formats))
    wanted.append((f"spec.engine.kvCacheType {kv_cache_type}", formats.kv_cache_types[kv_cache_type].capability))
    for what, least in wanted:
        if has < least:
            verb = "need" if what.endswith("weights") else "needs"
            return f"{what} {verb} compute capability {least[0]}.{least[1]}, {product.product} has {has[0]}.{has[1]}"
    return None


def _weights(quantization: Quantization, formats: Formats) -> tuple[str, Capability]:
    name = f"{quantization.method.upper()} weights"
    if quantization.method == "awq" and quantization.bits != 4:
        return f"{quantization.bits}-bit {name}", formats.awq_8_bits
    if quantization.method == "compressed-tensors" and quantization.block:
        return f"block FP8 {name}", formats.fp8_native
    return name, formats.weights[quantization.method]


def weight_type(checkpoint: Checkpoint, product: GpuProduct, formats: Formats) -> str | None:
    """What --dtype has to be where the checkpoint's own type does not run, else None."""
    has = product.compute_capability
    old = has is not None and has < formats.bfloat16
    return "float16" if old and checkpoint.dtype == "bfloat16" else None


def remarks(checkpoint: Checkpoint, product: GpuProduct, gpus: int, formats: Formats) -> tuple[str, ...]:
    """What a person should know about this format on so many GPUs of this product, as lines of the arithmetic."""
    has = product.compute_capability
    said = []
    known = board(product.product)
    if known and not known.nvlink and gpus > _PCIE_GPUS:
        said.append(f"slow: {gpus} x {product.product} exchange every layer over PCIe, which bounds long prompts")
    if checkpoint.quantization and checkpoint.quantization.method == "gguf":
        said.append("GGUF: planned on paper only; the operator cannot name the file of a repository to the engine yet")
    if has is None:
        return (
            *said,
            f"not known: the compute capability of {product.product}, so whether it has kernels for the weights",
        )
    if weight_type(checkpoint, product, formats):
        said.append(f"dtype: float16, because compute capability {has[0]}.{has[1]} has no bfloat16 (8.0)")
    if checkpoint.quantization and checkpoint.quantization.method == "fp8" and has < formats.fp8_native:
        said.append(f"FP8 weights are unpacked to 16 bits for every product: {has[0]}.{has[1]} has no FP8 cores (8.9)")
    return tuple(said)
