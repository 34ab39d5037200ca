"""What a generation of GPUs can run: the least compute capability of each format, as SGLang 0.5.23 has it.

A product whose compute capability nobody states passes every gate; the plan says so.
"""

from __future__ import annotations

from qwen_operator.checkpoints.facts import Checkpoint, Quantization
from qwen_operator.hardware.boards import board
from qwen_operator.hardware.inventory import GpuProduct

Capability = tuple[int, int]
ENGINE: Capability = (7, 5)
BFLOAT16: Capability = (8, 0)
FP8_KV_CACHE: Capability = (8, 9)

# By format of the weights. GPTQ's own kernel was removed in SGLang 0.5.21; what is left is Marlin.
_WEIGHTS = {"awq": (7, 5), "gptq": (8, 0), "fp8": (8, 0), "gguf": (7, 5)}
_FP8_NATIVE: Capability = (8, 9)
_PACKED_BITS = (4, 8)
# The kernel for older GPUs unpacks 4 bits only; 8 bits need Marlin.
_AWQ_8_BITS: Capability = (8, 0)
# Beyond so many GPUs without NVLink the exchange between them takes longer than the work.
_PCIE_GPUS = 4

# The API's names of KV cache types: SGLang's own name, bytes of one value, and the least compute capability.
KV_CACHE_TYPES: dict[str, tuple[str, int, Capability]] = {
    "Auto": ("auto", 2, ENGINE),
    "BFloat16": ("bf16", 2, BFLOAT16),
    "Fp8E4m3": ("fp8_e4m3", 1, FP8_KV_CACHE),
}


def dropped(checkpoint: Checkpoint) -> str | None:
    """Why no GPU runs this format of weights on SGLang 0.5.23, or None."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    if quantization.method not in _WEIGHTS:
        return (
            f"weights are {checkpoint.quantization_name}, which cannot be planned; right would be "
            f"{', '.join(sorted(_WEIGHTS))} or 16 bit"
        )
    if quantization.method not in ("gptq", "awq"):
        return None
    if quantization.method == "gptq" and quantization.symmetric is False:
        return (
            "weights are asymmetric GPTQ (sym: false), whose kernel SGLang removed in 0.5.21; symmetric GPTQ or AWQ "
            "would be right"
        )
    if quantization.bits not in _PACKED_BITS:
        return f"weights are {quantization.bits}-bit {quantization.method.upper()}; SGLang runs 4 and 8 bits"
    return None


def barrier(checkpoint: Checkpoint, kv_cache_type: str, product: GpuProduct) -> str | None:
    """Why this product cannot run the checkpoint with this KV cache type, or None."""
    has = product.compute_capability
    if has is None:
        return None
    wanted = [("SGLang 0.5.23", ENGINE)]
    if checkpoint.quantization:
        wanted.append(_weights(checkpoint.quantization))
    wanted.append((f"spec.engine.kvCacheType {kv_cache_type}", KV_CACHE_TYPES[kv_cache_type][2]))
    for what, least in wanted:
        if has < least:
            verb = "need" if what.endswith("weights") else "needs"
            return f"{what} {verb} compute capability {least[0]}.{least[1]}, {product.product} has {has[0]}.{has[1]}"
    return None


def _weights(quantization: Quantization) -> tuple[str, Capability]:
    name = f"{quantization.method.upper()} weights"
    if quantization.method == "awq" and quantization.bits != 4:
        return f"{quantization.bits}-bit {name}", _AWQ_8_BITS
    return name, _WEIGHTS[quantization.method]


def weight_type(checkpoint: Checkpoint, product: GpuProduct) -> str | None:
    """What --dtype has to be where the checkpoint's own type does not run, else None."""
    has = product.compute_capability
    old = has is not None and has < BFLOAT16
    return "float16" if old and checkpoint.dtype == "bfloat16" else None


def remarks(checkpoint: Checkpoint, product: GpuProduct, gpus: int) -> tuple[str, ...]:
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
    if weight_type(checkpoint, product):
        said.append(f"dtype: float16, because compute capability {has[0]}.{has[1]} has no bfloat16 (8.0)")
    if checkpoint.quantization and checkpoint.quantization.method == "fp8" and has < _FP8_NATIVE:
        said.append(f"FP8 weights are unpacked to 16 bits for every product: {has[0]}.{has[1]} has no FP8 cores (8.9)")
    return tuple(said)
