"""How much GPU memory an engine needs, and how many tokens fit: the formula of SGLang's KV pool.

The pool gets `fraction x free before load - weights`. The rest of the GPU holds activations, workspaces and CUDA
graphs. The constants belong to a version of SGLang (`qwen_operator.engines`). They come from public start-up logs on
NVIDIA GPUs of 16 to 275 GB, and rather ask for too much than for too little. This project has not run it on a GPU.

SGLang's own defaults for these settings depend on its version and are not monotone: a GPU of 20480 MiB gets a smaller
pool than one of 20479 MiB. So a plan sets every setting that the formula depends on. The values come from a table in
which more memory never gives fewer tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen_operator.checkpoints import stages
from qwen_operator.checkpoints.facts import KV_BYTES_PER_VALUE, Checkpoint
from qwen_operator.engines.types import MemoryConstants, Tuning
from qwen_operator.planning import adapters

GIB = 1 << 30
MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Split:
    """The shape of a replica: `pp` pipeline stages of `tp` ranks, `ep` groups of experts, over `nodes` equal nodes.

    Each rank has one of `shares` equal shares of a GPU. 1 means a whole GPU, or a slice.
    """

    tp: int
    ep: int = 1
    nodes: int = 1
    shares: int = 1
    pp: int = 1

    @property
    def ranks(self) -> int:
        """All ranks, each on one GPU."""
        return self.tp * self.pp


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory of one GPU in GiB, and the tokens that fit on the whole replica.

    `free` is the part of `total` that is free before the engine loads the weights, without `communication`, which NCCL
    takes. `pool_tokens` predicts SGLang's max_total_num_tokens. `kv_tokens` is the promise: the prediction with
    `margin` subtracted. `state` is for a hybrid's linear-attention states. `state_ratio` is its size in thousandths of
    the KV cache (0: no hybrid), and `most_requests` is the number of requests that it allows (None: no limit).
    `weight_bytes` are the tensors alone; `weights` is what they take in memory. With pipeline stages, the weights are
    those of the fullest stage, and `kv_bytes_per_token` is that of the stage with most layers.
    """

    split: Split
    total: float
    free: float
    communication: float
    margin: float
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
        """Ranks that share every layer, each on one GPU."""
        return self.split.tp

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.split.ranks

    @property
    def static(self) -> float:
        """Memory for weights, states and KV cache."""
        return self.free * self.tuning.fraction / 1000

    @property
    def shared_fraction(self) -> int:
        """--mem-fraction-static, in thousandths, for an engine on a share of a GPU.

        SGLang 0.5.23 (mem_cache/kv_cache_configurator.py:3007) gives the pool what is free after the weights are
        loaded, less (1 - fraction) x what was free before. Other engines on the GPU may load at any time between the
        two. So both amounts lie between one share and the whole GPU. The value leaves at most the reserve of one share,
        measured on the whole GPU. Then the pool gets its planned size in every order of starts, and the limits on
        tokens and states keep it from getting more.
        """
        reserve = self.free - self.static
        return min(999, 1000 - math.floor(1000 * reserve / (self.total * self.split.shares)))

    def need(self, tokens: int) -> float:
        """Free memory per GPU, in GiB, that this number of tokens needs."""
        kv = tokens * self.kv_bytes_per_token / GIB
        return (self.weights + kv * (1000 + self.state_ratio) / 1000 + self.margin) * 1000 / self.tuning.fraction


@dataclass(frozen=True, slots=True)
class Formula:
    """The formula with the constants of one version of SGLang."""

    constants: MemoryConstants

    def tuning(self, memory_mib: int, *, multimodal: bool = False) -> Tuning:
        """Settings for a GPU by its memory."""
        row = next(one for least, one in reversed(self.constants.tunings) if memory_mib >= least)
        if not multimodal:
            return row
        return Tuning(row.fraction * self.constants.multimodal_percent // 100, row.chunk, row.graph_batch)

    def engine_reserve_mib(self, settings: Tuning) -> float:
        """MiB that SGLang itself would reserve for these settings, without prefill graphs and communication."""
        constants = self.constants
        tokens = max(settings.chunk, constants.reserve_least_tokens)
        graphs = constants.reserve_mib_per_graph_request * settings.graph_batch
        return constants.reserve_mib + constants.reserve_mib_per_token * tokens + graphs

    def free_before_load(self, memory_mib: int, ranks: int, shares: int = 1) -> float:
        """GiB of a GPU that are free before an engine of `ranks` ranks loads its weights.

        If it is one of `shares` shares of a GPU, `memory_mib` is that of the share. Each engine has a context of its
        own, and its size follows from the whole GPU.
        """
        total = memory_mib / MIB_PER_GIB
        return max(0.0, total - self.context_gib(memory_mib * shares) - self.communication_gib(memory_mib, ranks))

    def context_gib(self, memory_mib: int) -> float:
        """GiB that the CUDA context, the driver and libraries take."""
        total = memory_mib / MIB_PER_GIB
        slopes = self.constants.context_slopes
        return self.constants.context_gib + sum(max(0.0, min(total, end) - start) * rate for start, end, rate in slopes)

    def communication_gib(self, memory_mib: int, ranks: int) -> float:
        """GiB per GPU that NCCL takes for this number of ranks."""
        constants = self.constants
        if ranks == 1:
            return 0.0
        if ranks > constants.few_ranks:
            return constants.many_gib
        return constants.nvlink_gib if memory_mib >= constants.nvlink_mib else constants.pcie_gib

    def weights_gib(self, checkpoint: Checkpoint, split: Split) -> float:
        """GiB that the weights and the adapters take on the fullest GPU."""
        extra = self.constants.weights_alone_gib if split.ranks == 1 else self.constants.weights_split_gib
        weights = self._weight_bytes(checkpoint, split) + adapters.bytes_per_rank(checkpoint, split.tp)
        return weights / GIB + extra

    def stages(self, checkpoint: Checkpoint, split: Split) -> tuple[stages.Stage, ...]:
        """The pipeline stages of this split."""
        head_on_all = checkpoint.architecture in self.constants.whole_head_models
        return stages.divide(checkpoint.layers, split.pp, head_on_all=head_on_all)

    def _weight_bytes(self, checkpoint: Checkpoint, split: Split) -> int:
        """Bytes of the tensors on the fullest GPU."""
        if split.pp == 1:
            return checkpoint.weight_bytes_per_rank(split.tp, split.ep)
        stage = stages.fullest(checkpoint, self.stages(checkpoint, split), split.tp)
        return stages.weight_bytes_per_rank(checkpoint, stage, split.tp)

    def _kv_bytes_per_token(self, checkpoint: Checkpoint, split: Split, value_bytes: int) -> int:
        """Bytes of KV cache per token on a GPU that has most.

        SGLang subtracts the weights of the fullest GPU everywhere, and then takes the smallest number of tokens of all
        stages (mem_cache/kv_cache_configurator.py:2999 and 3107).
        """
        if split.pp == 1:
            return checkpoint.kv_bytes_per_token(split.tp, value_bytes)
        return stages.kv_bytes_per_token(checkpoint, self.stages(checkpoint, split), split.tp, value_bytes)

    def pool_tokens(self, checkpoint: Checkpoint, memory_mib: int, split: Split, fraction: float) -> int:
        """The prediction of SGLang's max_total_num_tokens, without a margin.

        It is for a 16-bit KV cache and a given --mem-fraction-static (0 to 1). A hybrid's states get SGLang's default
        share.
        """
        pool = self.free_before_load(memory_mib, split.ranks) * fraction - self.weights_gib(checkpoint, split)
        per_token = self._kv_bytes_per_token(checkpoint, split, KV_BYTES_PER_VALUE)
        return _tokens(_kv_share(pool, self.default_ratio(checkpoint)), per_token)

    def default_ratio(self, checkpoint: Checkpoint) -> int:
        """SGLang's own state ratio in thousandths, 0 for a model without states."""
        return self.constants.state_ratios[0] if checkpoint.linear is not None else 0

    def budget(
        self,
        checkpoint: Checkpoint,
        memory_mib: int,
        split: Split,
        kv_value_bytes: int = KV_BYTES_PER_VALUE,
        state_ratio: int | None = None,
    ) -> Budget:
        """The memory of one GPU of `memory_mib` MiB with this split of the checkpoint.

        `kv_value_bytes` is the size of one KV value. `state_ratio` is in thousandths; None means SGLang's default.
        """
        constants = self.constants
        settings = self.tuning(memory_mib, multimodal=checkpoint.multimodal)
        ratio = self.default_ratio(checkpoint) if state_ratio is None else state_ratio
        free = self.free_before_load(memory_mib, split.ranks, split.shares)
        weights = self.weights_gib(checkpoint, split)
        pool = free * settings.fraction / 1000 - weights
        per_token = self._kv_bytes_per_token(checkpoint, split, kv_value_bytes)
        kv = _kv_share(pool - constants.margin_gib, ratio)
        state = pool - constants.margin_gib - kv
        return Budget(
            split=split,
            total=memory_mib / MIB_PER_GIB,
            free=free,
            communication=self.communication_gib(memory_mib, split.ranks),
            margin=constants.margin_gib,
            tuning=settings,
            weight_bytes=self._weight_bytes(checkpoint, split),
            weights=weights,
            kv=kv,
            state=state,
            state_ratio=ratio,
            kv_bytes_per_token=per_token,
            pool_tokens=_tokens(_kv_share(pool, ratio), per_token),
            kv_tokens=_tokens(kv, per_token) // constants.page_tokens * constants.page_tokens,
            most_requests=self._most_requests(checkpoint, state, split.tp),
        )

    def _most_requests(self, checkpoint: Checkpoint, state: float, tp: int) -> int | None:
        if checkpoint.linear is None:
            return None
        slots = int(state * GIB // checkpoint.state_bytes_per_request(tp))
        return max(0, slots // self.constants.slots_per_request)


def _kv_share(pool: float, ratio: int) -> float:
    return pool * 1000 / (1000 + ratio)


def _tokens(kv: float, per_token: int) -> int:
    return max(0, int(kv * GIB // per_token))
