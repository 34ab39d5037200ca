"""How much GPU memory an engine needs and how many tokens fit: the formula of SGLang 0.5.23's KV pool.

The pool gets `fraction x free before load - weights`; the rest of the GPU holds activations, workspaces and CUDA
graphs. Constants were set from public start-up logs on NVIDIA GPUs of 16 to 275 GB and lean towards asking for more.
Nothing here was run on a GPU by this project.

SGLang's own defaults for these settings depend on its version and are not monotone (a GPU of 20480 MiB gets a smaller
pool than one of 20479). So every setting that the formula depends on is set explicitly, from a table of our own in
which more memory never gives fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.checkpoints.facts import KV_BYTES_PER_VALUE, Checkpoint

GIB = 1 << 30
MIB_PER_GIB = 1024

# CUDA context, driver and libraries before the weights: a constant, and GiB per GiB of memory from and up to so many.
# The context grows with the number of SMs (small dies against large ones), the driver's reserve with memory, and
# neither is linear over all boards. From logs that are not scored in bench/sizing: 0.74 GiB of 22.5 (L4), 1.14 to 1.22
# of 79.6 (M13, M20, M23 there), 1.27 of 140.4 (M19), 1.8 of 277.5 (M04,
# with the total that our table has for a B300).
_CONTEXT_GIB = 0.78
_CONTEXT_SLOPES = ((24.0, 80.0, 0.0079), (80.0, float("inf"), 0.003))
# Communication buffers, again from logs that are not scored. With NVLink they are nearly constant in ranks: 1.25 on 8
# H100, 1.3 on 2, 2.0 on 8 H200. On PCIe 0.26 on 2 x 4090 (SGLang issue 16920); a log of four newer cards has 0.39,
# which the margin covers. No log of more than 4 cards is known, so they count as on NVLink. Nearly all boards from
# 61440 MiB on have NVLink, and those without are none the worse.
_PCIE_GIB = 0.26
_NVLINK_GIB = 1.25
_MANY_GIB = 2.0
_FEW_RANKS = 4
_NVLINK_MIB = 61440
# What the loader takes beyond the tensors (alignment, scales): logged 0.02 to 0.14 GiB alone, and 0.2 to 0.3 split, of
# which 0.2 is the scored point M05.
_WEIGHTS_ALONE_GIB = 0.07
_WEIGHTS_SPLIT_GIB = 0.25
# The promise stays this much below the prediction: small pools amplify every error of it.
MARGIN_GIB = 0.5
# SGLang rounds the pool down to whole pages; 64 tokens is the largest page that a default backend uses.
_PAGE = 64
# Multimodal models keep memory for images beside the activations; SGLang lowers its own fraction by 5 % too.
_MULTIMODAL_PERCENT = 95
# --mamba-full-memory-ratio in thousandths: memory for the states of a hybrid / memory for its KV cache. The first is
# SGLang's default; the others trade requests for tokens, the last one tokens for requests.
STATE_RATIOS = (900, 500, 250, 100, 2000)
# With the prefix cache on, SGLang wants this many state slots for each running request.
_SLOTS_PER_REQUEST = 3


@dataclass(frozen=True, slots=True)
class Tuning:
    """SGLang's memory settings for one size of GPU; `fraction` is --mem-fraction-static in thousandths, `chunk` tokens
    of a chunked prefill, `graph_batch` the largest decode batch with a CUDA graph."""

    fraction: int
    chunk: int
    graph_batch: int


# From this many MiB on. Outside the fraction lie about 3 GiB on 16 and 24 GB, 5 on 48, 8 on 80 and 11 on 141 GB; from
# 35840 MiB on that is at least what SGLang itself reserves for such a chunk and batch (`engine_reserve_mib`). A log of
# an L4 backs the 24 GB row, logs of H100s at 0.9 and 0.93 the 80 GB row.
TABLE = (
    (0, Tuning(fraction=780, chunk=2048, graph_batch=8)),
    (20480, Tuning(fraction=850, chunk=2048, graph_batch=48)),
    (35840, Tuning(fraction=880, chunk=2048, graph_batch=160)),
    (61440, Tuning(fraction=900, chunk=4096, graph_batch=256)),
    (102400, Tuning(fraction=920, chunk=4096, graph_batch=512)),
    (180000, Tuning(fraction=920, chunk=8192, graph_batch=512)),
)


@dataclass(frozen=True, slots=True)
class Split:
    """A replica's shape: `tp` ranks in all, `ep` groups of experts, over `nodes` equal nodes."""

    tp: int
    ep: int = 1
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Budget:
    """What one GPU holds, in GiB, and the tokens that fit over the replica.

    `pool_tokens` is the prediction of SGLang's max_total_num_tokens, `kv_tokens` what is promised: the same with
    `MARGIN_GIB` less. `state` is what a hybrid's linear-attention states take, `state_ratio` thousandths of the memory
    of its KV cache (0: no hybrid), `most_requests` how many requests they allow (None: no limit). `weight_bytes` are
    the tensors alone, `weights` what they take in GiB.
    """

    split: Split
    total: float
    free: float
    tuning: Tuning
    weight_bytes: int
    weights: float
    kv: float
    state: float
    state_ratio: int
    kv_bytes_per_token: int
    pool_tokens: int
    kv_tokens: int
    most_requests: int | None

    @property
    def tp(self) -> int:
        """Ranks, each on one GPU."""
        return self.split.tp

    @property
    def static(self) -> float:
        """Memory for weights, states and KV cache."""
        return self.free * self.tuning.fraction / 1000

    def need(self, tokens: int) -> float:
        """Free memory per GPU, in GiB, that this many tokens ask for."""
        kv = tokens * self.kv_bytes_per_token / GIB
        return (self.weights + kv * (1000 + self.state_ratio) / 1000 + MARGIN_GIB) * 1000 / self.tuning.fraction


def tuning(memory_mib: int, *, multimodal: bool = False) -> Tuning:
    """Settings for a GPU by its memory."""
    found = next(one for least, one in reversed(TABLE) if memory_mib >= least)
    if not multimodal:
        return found
    return Tuning(found.fraction * _MULTIMODAL_PERCENT // 100, found.chunk, found.graph_batch)


def engine_reserve_mib(settings: Tuning) -> float:
    """What SGLang 0.5.23 would itself reserve in MiB for these settings without prefill graphs and communication:
    512 + 1.5 per token of a chunk + 2 per request of the largest decode graph (its memory_hook.py)."""
    return 512 + 1.5 * max(settings.chunk, 2048) + 2 * settings.graph_batch


def free_before_load(memory_mib: int, ranks: int) -> float:
    """GiB of a GPU that an engine finds free before it loads weights, as one of `ranks` that talk to each other."""
    total = memory_mib / MIB_PER_GIB
    return max(0.0, total - context_gib(memory_mib) - communication_gib(memory_mib, ranks))


def context_gib(memory_mib: int) -> float:
    """GiB that the CUDA context, the driver and libraries take."""
    total = memory_mib / MIB_PER_GIB
    return _CONTEXT_GIB + sum(max(0.0, min(total, end) - start) * slope for start, end, slope in _CONTEXT_SLOPES)


def communication_gib(memory_mib: int, ranks: int) -> float:
    """GiB per GPU that NCCL takes for so many ranks."""
    if ranks == 1:
        return 0.0
    if ranks > _FEW_RANKS:
        return _MANY_GIB
    return _NVLINK_GIB if memory_mib >= _NVLINK_MIB else _PCIE_GIB


def weights_gib(checkpoint: Checkpoint, split: Split) -> float:
    """GiB that the weights take on the fullest GPU."""
    extra = _WEIGHTS_ALONE_GIB if split.tp == 1 else _WEIGHTS_SPLIT_GIB
    return checkpoint.weight_bytes_per_rank(split.tp, split.ep) / GIB + extra


def pool_tokens(checkpoint: Checkpoint, memory_mib: int, split: Split, fraction: float) -> int:
    """SGLang's max_total_num_tokens for a 16-bit KV cache and a given --mem-fraction-static (0 to 1), as predicted,
    without any margin. A hybrid's states get SGLang's default share."""
    pool = free_before_load(memory_mib, split.tp) * fraction - weights_gib(checkpoint, split)
    return _tokens(_kv_share(pool, default_ratio(checkpoint)), checkpoint.kv_bytes_per_token(split.tp))


def default_ratio(checkpoint: Checkpoint) -> int:
    """SGLang's own state ratio in thousandths, 0 for a model without states."""
    return STATE_RATIOS[0] if checkpoint.linear is not None else 0


def budget(
    checkpoint: Checkpoint,
    memory_mib: int,
    split: Split,
    kv_value_bytes: int = KV_BYTES_PER_VALUE,
    state_ratio: int | None = None,
) -> Budget:
    """The memory of one GPU of `memory_mib` when the checkpoint is split so; KV values have `kv_value_bytes`.

    `state_ratio` is in thousandths; None takes SGLang's default.
    """
    settings = tuning(memory_mib, multimodal=checkpoint.multimodal)
    ratio = default_ratio(checkpoint) if state_ratio is None else state_ratio
    free = free_before_load(memory_mib, split.tp)
    weights = weights_gib(checkpoint, split)
    pool = free * settings.fraction / 1000 - weights
    per_token = checkpoint.kv_bytes_per_token(split.tp, kv_value_bytes)
    kv = _kv_share(pool - MARGIN_GIB, ratio)
    state = pool - MARGIN_GIB - kv
    return Budget(
        split=split,
        total=memory_mib / MIB_PER_GIB,
        free=free,
        tuning=settings,
        weight_bytes=checkpoint.weight_bytes_per_rank(split.tp, split.ep),
        weights=weights,
        kv=kv,
        state=state,
        state_ratio=ratio,
        kv_bytes_per_token=per_token,
        pool_tokens=_tokens(_kv_share(pool, ratio), per_token),
        kv_tokens=_tokens(kv, per_token) // _PAGE * _PAGE,
        most_requests=_most_requests(checkpoint, state, split.tp),
    )


def _kv_share(pool: float, ratio: int) -> float:
    return pool * 1000 / (1000 + ratio)


def _tokens(kv: float, per_token: int) -> int:
    return max(0, int(kv * GIB // per_token))


def _most_requests(checkpoint: Checkpoint, state: float, tp: int) -> int | None:
    if checkpoint.linear is None:
        return None
    return max(0, int(state * GIB // checkpoint.state_bytes_per_request(tp)) // _SLOTS_PER_REQUEST)
