"""How engines place a checkpoint's tensors on several GPUs, by the names of the tensors.

The names are those of the Hugging Face Qwen classes, which engines look for. A tensor with another name counts as
divided among the GPUs, because nearly all tensors are.
"""

from collections.abc import Mapping

from qwen_runtime.checkpoints.model import SAMPLES, Module
from qwen_runtime.safetensors import Tensor

_PLAIN_DTYPES = ("BF16", "F16", "F32")
_KV = (".k_proj.", ".v_proj.")
_ON_EVERY_GPU = ("norm", ".mlp.gate.", ".shared_expert_gate.", "patch_embed", "pos_embed")
# Engines load the layer for multi-token prediction only for speculative decoding.
_NOT_LOADED = "mtp."


def parts(tensors: Mapping[str, Tensor], tied: bool) -> dict[str, int]:
    """Bytes that engines do not load, bytes of K and V projections, and bytes that every GPU holds. No overlap.

    A tied checkpoint may repeat the embedding as `lm_head`. Engines load it only once.
    """
    size = {"idleBytes": 0, "kvWeightBytes": 0, "replicatedBytes": 0}
    for name, tensor in tensors.items():
        if name.startswith(_NOT_LOADED) or f".{_NOT_LOADED}" in name or (tied and name.endswith("lm_head.weight")):
            size["idleBytes"] += tensor.size
        elif any(part in name for part in _ON_EVERY_GPU):
            size["replicatedBytes"] += tensor.size
        elif any(part in name for part in _KV):
            size["kvWeightBytes"] += tensor.size
    return size


def plain_modules(tensors: Mapping[str, Tensor]) -> tuple[Module, ...]:
    """Kinds of linear layers of which a quantized checkpoint has at least one at 16 bits or more."""
    kinds = {
        kind
        for name, tensor in tensors.items()
        for kind, sample in SAMPLES.items()
        if tensor.dtype in _PLAIN_DTYPES and name.endswith(f"{sample}.weight") and not name.startswith(_NOT_LOADED)
    }
    return tuple(sorted(kinds))
