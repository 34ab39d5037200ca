"""How engines place a checkpoint's tensors on several GPUs, by the names of the tensors.

The names are those of the Hugging Face Qwen classes, which engines look for. A tensor with another name counts as
divided among the GPUs, because nearly all tensors are.
"""

from collections.abc import Mapping

from qwen_runtime.checkpoints.modules import Held, held
from qwen_runtime.safetensors import Tensor

_PLAIN_DTYPES = ("BF16", "F16", "F32")
_KV = (".k_proj.", ".v_proj.")
_ON_EVERY_GPU = ("norm", ".mlp.gate.", ".shared_expert_gate.", "patch_embed", "pos_embed")
# Engines load the layer for multi-token prediction only for speculative decoding.
_NOT_LOADED = "mtp."
# The tensor with the values of a linear layer: of plain and FP8 weights, of GPTQ and AWQ, of compressed-tensors.
_WEIGHTS = ("weight", "qweight", "weight_packed")
# What only quantized weights have: of GPTQ and AWQ, of compressed-tensors, FP8 and ModelOpt, of bitsandbytes, of MLX.
_PACKED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB", "_proj.scales")
_STACKED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
# Of SGLang 0.5.23: the first two leave out stacked experts without a word, and the third ends while it starts.
_SINGLE_EXPERTS = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM")


def parts(tensors: Mapping[str, Tensor], tied: bool, *, narrowed: bool = False) -> dict[str, int]:
    """Bytes that are not loaded, of K and V projections, and of what is on every GPU; they do not overlap.

    A tied checkpoint may repeat the embedding as `lm_head`; engines load it once. `narrowed`: the checkpoint holds 32
    bits per value, of which engines keep 16.
    """
    size = {"idleBytes": 0, "kvWeightBytes": 0, "replicatedBytes": 0}
    for name, stored in tensors.items():
        half = stored.size // 2 if narrowed and stored.dtype == "F32" else 0
        size["idleBytes"] += half
        tensor = Tensor(stored.dtype, stored.size - half)
        if _idle(name) or (tied and name.endswith("lm_head.weight")):
            size["idleBytes"] += tensor.size
        elif any(part in name for part in _ON_EVERY_GPU):
            size["replicatedBytes"] += tensor.size
        elif any(part in name for part in _KV):
            size["kvWeightBytes"] += tensor.size
    return size


def unread(tensors: Mapping[str, Tensor], architecture: str) -> str:
    """A tensor with all experts of a layer, if engines read only single experts of this architecture; else ""."""
    if architecture not in _SINGLE_EXPERTS:
        return ""
    return next((name for name in tensors if name.endswith(_STACKED)), "")


def packed(tensors: Mapping[str, Tensor]) -> str:
    """A tensor that only quantized weights have, or ""."""
    return next((name for name in tensors if name.endswith(_PACKED) and not _idle(name)), "")


def linear_layers(tensors: Mapping[str, Tensor]) -> Held:
    """The linear layers that the files hold, and which of them have 16 bits or more."""
    return held(
        (module, part == "weight" and tensor.dtype in _PLAIN_DTYPES)
        for name, tensor in tensors.items()
        for module, part in (_module_and_part(name),)
        if part in _WEIGHTS and not _idle(name)
    )


def _module_and_part(name: str) -> tuple[str, str]:
    """A tensor's module, and what the tensor is of it. Stacked experts are tensors without a part of their own."""
    if name.endswith(_STACKED):
        return name, "weight"
    module, _, part = name.rpartition(".")
    return module, part


def _idle(name: str) -> bool:
    return name.startswith(_NOT_LOADED) or f".{_NOT_LOADED}" in name
