"""Which splits of a replica hold the demand on each product, and which of them the plan takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import parallel
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.stages import refusal
from qwen_operator.engines.types import EngineVersion, KvCacheType
from qwen_operator.hardware.inventory import GpuProduct, Inventory
from qwen_operator.planning.gates import barrier
from qwen_operator.planning.memory import Budget, Formula, Split
from qwen_operator.planning.pipeline import nodes_for

_ANY_NODES = 1000
_MOST_STAGES = 16
"""As the field allows."""
TYPICAL_INPUT, TYPICAL_OUTPUT = 2048, 512


@dataclass(frozen=True, slots=True)
class Demand:
    """What a replica must hold: `tokens` of KV cache for `concurrency` requests of up to `context` tokens at a time.

    `request` is the size of a typical request in tokens, input and output. `given` is true if the user set it.
    """

    context: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    given: bool

    @property
    def request(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def tokens(self) -> int:
        return max(self.context, self.concurrency * self.request if self.given else 0)

    def typical(self, tokens: int) -> int:
        """How many typical requests this number of tokens holds."""
        return tokens // self.request


def demand(spec: Spec, checkpoint: Checkpoint) -> Demand:
    """The demand of a spec. Without spec.contextTokens the context is the model's own."""
    context = spec.context_tokens or checkpoint.max_positions
    work = spec.workload
    if work is None:
        return Demand(context, 1, TYPICAL_INPUT, TYPICAL_OUTPUT, given=False)
    return Demand(context, work.concurrency, work.input_tokens, work.output_tokens, given=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """The user's limits on a replica: exactly `tensor` ranks for each layer, exactly `pipeline` stages, at most `most`
    GPUs. None means no limit.

    Splits over at most `nodes` nodes come first.
    """

    tensor: int | None
    most: int | None
    nodes: int = 1
    pipeline: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A product with the memory of every valid split on it, smallest first, and the chosen split, if one fits.

    `gate` says why the product cannot run the model with any split. `refused` has the sizes that are not valid, with
    the reasons.
    """

    product: GpuProduct
    engine: EngineVersion
    budgets: tuple[Budget, ...] = ()
    chosen: Budget | None = None
    gate: str | None = None
    refused: tuple[tuple[int, str], ...] = ()

    @property
    def best(self) -> Budget:
        """The chosen split, or else the one that holds most tokens."""
        return self.chosen or max(self.budgets, key=lambda one: (one.kv_tokens, one.kv))


@dataclass(frozen=True, slots=True)
class Round:
    """Splits on one node or, if `nodes` is more, on several, at most so many. Into `stages` stages; None: into up to as
    many as there are nodes.
    """

    nodes: int
    stages: int | None = 1


@dataclass(frozen=True, slots=True)
class Search:
    """One search: a demand on a checkpoint and an engine, with a type of KV cache, within limits.

    `no_stages` says why the model cannot run in pipeline stages, "" if it can.
    """

    engine: EngineVersion
    checkpoint: Checkpoint
    wanted: Demand
    kv_cache_type: str
    limits: Limits
    no_stages: str = ""

    @property
    def kv_cache(self) -> KvCacheType:
        """SGLang's type of the KV cache."""
        return self.engine.formats.kv_cache_types[self.kv_cache_type]

    def most(self, product: GpuProduct, nodes: int) -> int:
        """The most GPUs that a replica can have on this number of nodes. Of parts of GPUs it is one."""
        gpus = product.gpus_per_node * nodes if product.share is None else 1
        return min(gpus, self.limits.most or gpus)

    def fit(self, product: GpuProduct, tried: Round) -> Fit:
        """The product's splits on the nodes of this round, and the first one that holds what is wanted."""
        gate = barrier(self.checkpoint, self.kv_cache_type, product, self.engine)
        if gate:
            return Fit(product, self.engine, gate=gate)
        budgets = tuple(self.budget(product, split) for split in self._splits(product, tried))
        chosen = next((one for one in budgets if self._holds(one)), None)
        refused = self._refused(product) if tried.nodes == 1 else ()
        return Fit(product, self.engine, budgets, chosen, refused=refused)

    def rounds(self) -> list[Round]:
        """What to try, one after the other.

        Stages that nobody asked for come after every split without them on the same nodes, and only over several nodes.
        So they change no plan that there was without them, and what the user allows decides whether they run.
        """
        steps = sorted({1, self.limits.nodes, _ANY_NODES})
        if self.limits.pipeline or self.limits.tensor or self.no_stages:
            return [Round(nodes, self.limits.pipeline or 1) for nodes in steps]
        return [Round(nodes, count) for nodes in steps for count in ((1,) if nodes == 1 else (1, None))]

    def budget(self, product: GpuProduct, split: Split) -> Budget:
        """The memory of a split. For a hybrid, with the first state ratio that holds the demand, or else the best."""
        formula = Formula(self.engine.memory)
        ratios = self.engine.memory.state_ratios if self.checkpoint.linear else (0,)
        value_bytes = self.kv_cache.value_bytes
        budgets = [formula.budget(self.checkpoint, product.memory_mib, split, value_bytes, ratio) for ratio in ratios]
        holding = (one for one in budgets if self._holds(one))
        return next(holding, None) or max(budgets, key=self._closeness)

    def _closeness(self, one: Budget) -> tuple[int, int, float]:
        """A sort key: a budget with enough states first, then more tokens. Without enough states, more states."""
        runs = self._runs(one)
        return (int(runs), one.kv_tokens if runs else one.most_requests or 0, one.kv)

    def _runs(self, one: Budget) -> bool:
        return one.most_requests is None or one.most_requests >= self.wanted.concurrency

    def _holds(self, one: Budget) -> bool:
        return one.kv_tokens >= self.wanted.tokens and self._runs(one)

    def _on_one(self, product: GpuProduct) -> list[Split]:
        """The split that the user sets, or every valid power of two.

        NVLink rings and SGLang's own all-reduce are made for powers of two.
        """
        shares = product.share.pods if product.share else 1
        return [Split(tp, ep, shares=shares) for tp, ep in self._valid(self.most(product, 1))]

    def _splits(self, product: GpuProduct, tried: Round) -> list[Split]:
        if tried.stages == 1:
            return self._on_nodes(product, tried.nodes) if tried.nodes > 1 else self._on_one(product)
        if product.share is not None:
            return []
        most_nodes = min(product.full_nodes, tried.nodes) if tried.nodes > 1 else 1
        counts = [tried.stages] if tried.stages else list(range(2, min(most_nodes, _MOST_STAGES) + 1))
        counts = [count for count in counts if refusal(self.checkpoint, count) is None]
        sizes = self._valid(self.most(product, most_nodes) // min(counts)) if counts else []
        shapes = [(tp, ep, count) for count in counts for tp, ep in sizes]
        splits = [split for shape in shapes for split in self._in_stages(product, most_nodes, shape)]
        on_these = [split for split in splits if (split.nodes > 1) == (tried.nodes > 1)]
        return sorted(on_these, key=lambda split: (split.ranks, split.nodes, split.pp))

    def _in_stages(self, product: GpuProduct, most_nodes: int, shape: tuple[int, int, int]) -> list[Split]:
        """The split of this (tp, ep, stages) on as few nodes as it needs, if they are not too many."""
        tp, ep, count = shape
        nodes = nodes_for(tp, count, product.gpus_per_node, most_nodes)
        if nodes is None or tp * count > self.most(product, most_nodes):
            return []
        return [Split(tp, ep, nodes, pp=count)]

    def _on_nodes(self, product: GpuProduct, most_nodes: int) -> list[Split]:
        """Splits over several equal nodes, with the same number of GPUs on each."""
        splits = []
        for tp, ep in self._valid(self.most(product, min(product.full_nodes, most_nodes))):
            nodes = -(-tp // product.gpus_per_node)
            if nodes > 1 and tp % nodes == 0:
                splits.append(Split(tp, ep, nodes))
        return splits

    def _valid(self, most: int) -> list[tuple[int, int]]:
        """The (tp, smallest ep) that a plan may choose, by tp."""
        tensor = self.limits.tensor
        sizes = [1 << power for power in range(most.bit_length())] if tensor is None else [tensor]
        pairs = [(tp, parallel.fewest_groups(self.checkpoint, tp)) for tp in sizes if tp <= most]
        return [(tp, ep) for tp, ep in pairs if ep is not None]

    def _refused(self, product: GpuProduct) -> tuple[tuple[int, str], ...]:
        reasons = []
        most = self.most(product, 1) // (self.limits.pipeline or 1)
        valid = {tp for tp, _ in parallel.valid(self.checkpoint, most)}
        for tp in range(2, most + 1):
            if tp not in valid:
                reasons.append((tp, parallel.refusal(self.checkpoint, tp) or ""))
        return tuple(reasons)


def find(search: Search, groups: Sequence[Sequence[GpuProduct]]) -> tuple[Fit | None, list[Fit]]:
    """The chosen fit, if any, and all that were tried. Several nodes are tried only if nothing fits on one, and more of
    them than the user allows only if nothing fits on fewer.

    Groups are in the user's order of preference. Within a group the lowest cost wins if every candidate has a cost,
    then the fewest GPUs, then the smallest memory.
    """
    tried: list[Fit] = []
    for step in search.rounds():
        for group in groups:
            spread = [product for product in group if step.nodes == 1 or product.full_nodes > 1]
            fits = [search.fit(product, step) for product in spread]
            tried += fits
            chosen = [fit for fit in fits if fit.chosen]
            if chosen:
                return cheapest(chosen), tried
    return None, tried


def cheapest(fits: Sequence[Fit]) -> Fit:
    """The cheapest fit: by declared cost if every one has it, then by GPUs, then by memory."""
    priced = all(fit.product.cost_per_gpu_hour is not None for fit in fits)

    def key(fit: Fit) -> tuple[int, int, int, str, str]:
        product, gpus = fit.product, fit.best.gpus
        cost = (product.cost_per_gpu_hour or 0) * gpus if priced else 0
        return (cost, gpus, product.memory_mib, product.product, str(sorted(product.selector.items())))

    return min(fits, key=key)


def groups(names: Sequence[str], inventory: Inventory) -> list[list[GpuProduct]]:
    """Products in the user's order of preference. Within a group there is no preference."""
    if not names:
        return [list(inventory.products)] if inventory.products else []
    by_name = [[one for one in inventory.products if one.called(name)] for name in names]
    return [group for group in by_name if group]
