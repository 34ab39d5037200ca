"""How much GPU memory an engine needs and how many tokens fit: the formula of SGLang 0.5.23's KV pool.

The pool gets `fraction x free before load - weights`; the rest of the GPU holds activations and CUDA graphs. The
formula was compared with logs of other models only (mean error 2.5 %, at most 8.8 %) and never run for these
models, so every constant here leans towards asking for more.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.checkpoints.facts import Checkpoint

GIB = 1 << 30
MIB_PER_GIB = 1024

# Weights on a GPU are larger than their share by loader and alignment leftovers (measured 0.02 to 0.3 GiB).
WEIGHT_OVERHEAD_GIB = 0.25
# Small pools amplify errors of the formula.
MARGIN_GIB = 0.5


@dataclass(frozen=True, slots=True)
class Tuning:
    """SGLang's memory settings for one size of GPU; `fraction` is --mem-fraction-static in thousandths."""

    fraction: int
    chunk: int
    graph_batch: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What one GPU holds, in GiB, and the tokens that fit over the replica."""

    tp: int
    total: float
    free: float
    tuning: Tuning
    weights: float
    kv: float
    kv_bytes_per_token: int
    kv_tokens: int

    @property
    def static(self) -> float:
        """Memory for weights and KV cache."""
        return self.free * self.tuning.fraction / 1000

    def need(self, context_tokens: int) -> float:
        """Free memory per GPU, in GiB, that a request of this many tokens asks for."""
        kv = context_tokens * self.kv_bytes_per_token / GIB
        return (self.weights + kv + MARGIN_GIB) * 1000 / self.tuning.fraction


def tuning(memory_mib: int) -> Tuning:
    """Settings for a GPU by its memory.

    What lies outside of the fraction has to hold activations of a chunk, attention workspace and decode graphs:
    about 3 GiB on 16 and 24 GB, 5 on 48, 8 on 80, 11 on 141. Logs back the values for 24 and 80 GB only.
    """
    if memory_mib < 20480:
        return Tuning(fraction=780, chunk=2048, graph_batch=8)
    if memory_mib < 35840:
        return Tuning(fraction=850, chunk=2048, graph_batch=16)
    if memory_mib < 61440:
        return Tuning(fraction=880, chunk=4096, graph_batch=32)
    if memory_mib < 102400:
        return Tuning(fraction=900, chunk=4096, graph_batch=32)
    return Tuning(fraction=920, chunk=8192, graph_batch=64)


def budget(checkpoint: Checkpoint, memory_mib: int, tp: int) -> Budget:
    """The memory of one GPU of `memory_mib` when the checkpoint is split over `tp` of them.

    Free before load = total - (0.9 + 0.0045 x total) for context and driver - NCCL's buffers (0.3 GiB for 2 to 4
    GPUs, 2 GiB above); measured on four cards, rounded up.
    """
    total = memory_mib / MIB_PER_GIB
    nccl = 0.0 if tp == 1 else 0.3 if tp <= 4 else 2.0
    free = max(0.0, total - (0.9 + 0.0045 * total) - nccl)
    settings = tuning(memory_mib)
    weights = checkpoint.weight_bytes / tp / GIB + WEIGHT_OVERHEAD_GIB
    kv = free * settings.fraction / 1000 - weights - MARGIN_GIB
    per_token = checkpoint.kv_bytes_per_token(tp)
    tokens = max(0, int(kv * GIB // per_token))
    return Budget(tp, total, free, settings, weights, kv, per_token, tokens)
