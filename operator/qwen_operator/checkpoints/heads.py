"""Which numbers of ranks the heads of a model and of its vision tower accept. A part of the rules in `parallel`."""

from __future__ import annotations

from typing import Protocol

from qwen_runtime.checkpoints.model import LinearAttention, Tower

# More GPUs than any cluster gives to one replica.
_MOST_RANKS = 1024


class Heads(Protocol):
    """The heads of a language model."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def linear(self) -> LinearAttention | None: ...


def head_refusal(model: Heads, tp: int) -> str | None:
    """Why `tp` ranks cannot share the heads of the language model, or None if they can."""
    if model.heads % tp:
        return f"{model.heads} attention heads are not divisible by TP {tp}"
    if model.kv_heads >= tp and model.kv_heads % tp:
        return f"{model.kv_heads} KV heads are not divisible by TP {tp}"
    if model.kv_heads < tp and tp % model.kv_heads:
        return f"TP {tp} is not a multiple of the {model.kv_heads} KV heads, so SGLang cannot copy them evenly"
    if model.linear is not None:
        for name, count in (("key", model.linear.key_heads), ("value", model.linear.value_heads)):
            if count % tp:
                return f"{count} {name} heads of the linear attention are not divisible by TP {tp}"
    return None


def tower_refusal(tower: Tower, tp: int) -> str | None:
    """Why `tp` ranks cannot share a vision tower, or None if they can."""
    if tower.heads % tp:
        return f"{tower.heads} heads of the vision tower are not divisible by TP {tp}"
    for name, width in (("MLP", tower.intermediate), ("merger", tower.merger)):
        if width % tp:
            return f"{name} width {width} of the vision tower is not divisible by TP {tp}"
    return None


def tower_decides(tower: Tower, model: Heads) -> bool:
    """Whether a vision tower rejects a number of ranks that the heads of the language model accept."""
    most = min(model.heads, _MOST_RANKS)
    return any(tower_refusal(tower, tp) and not head_refusal(model, tp) for tp in range(2, most + 1))
