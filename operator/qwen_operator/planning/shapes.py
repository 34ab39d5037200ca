"""The lines of a plan about its shape: the pipeline stages, and why several nodes are divided in this way. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_operator.checkpoints import parallel
from qwen_operator.planning import explain
from qwen_operator.planning.fits import Fit, Search
from qwen_operator.planning.memory import GIB, Budget, Formula, Split
from qwen_operator.planning.pipeline import nodes_for

_FIELD = "spec.parallelism.pipeline"
_IN_LAYERS = "the GPUs add up their results in every layer, over the network between the nodes"
_BETWEEN = (
    "only what one stage hands to the next crosses the network between the nodes, but each request passes the stages "
    "one after the other"
)


def lines(search: Search, fit: Fit) -> Iterator[str]:
    """The lines for the chosen split; none for a replica on one node without stages."""
    split = fit.best.split
    if split.pp > 1:
        yield _stages(search, fit.best)
    if split.nodes > 1 and split.pp == 1:
        yield f"over {split.nodes} nodes: {explain.shape(fit.best)}: {_IN_LAYERS}. {_staged(search, fit)}"
    elif split.nodes > 1:
        crosses = _BETWEEN if split.pp % split.nodes == 0 else f"{_IN_LAYERS} of one stage"
        yield f"over {split.nodes} nodes: {explain.shape(fit.best)}: {crosses}. {_unstaged(search, fit)}"


def _stages(search: Search, one: Budget) -> str:
    """What the stages hold. The memory of the plan is that of the fullest one."""
    stages = Formula(search.engine.memory).stages(search.checkpoint, one.split)
    layers = " + ".join(str(stage.layers) for stage in stages)
    head = "every stage" if stages[0].tables > 1 else "the last one"
    parts = "each stage works on a part of the requests at a time"
    return (
        f"stages: {layers} layers; the first one has the embedding, {head} the output head; the fullest GPU has "
        f"{one.weight_bytes / GIB:.2f} GiB of weights, and the stage with most layers decides the tokens; {parts}"
    )


def _staged(search: Search, fit: Fit) -> str:
    """What stages over the same GPUs would be."""
    split = fit.best.split
    if search.no_stages:
        return f"No pipeline stages: {search.no_stages}"
    tp = split.tp // split.nodes
    ep = parallel.fewest_groups(search.checkpoint, tp)
    if ep is None:
        return f"No pipeline stages: {parallel.refusal(search.checkpoint, tp)}"
    if nodes_for(tp, split.nodes, fit.product.gpus_per_node, split.nodes) != split.nodes:
        return "Pipeline stages would need other numbers of GPUs"
    other = search.budget(fit.product, Split(tp, ep, split.nodes, pp=split.nodes))
    return f"With {_FIELD}: {split.nodes} ({_sizes(other)}) {_BETWEEN}. Which is faster was not measured"


def _unstaged(search: Search, fit: Fit) -> str:
    """What tensor parallelism alone over the same GPUs would be, and why it was not taken."""
    split = fit.best.split
    ep = parallel.fewest_groups(search.checkpoint, split.ranks)
    if ep is None:
        why = parallel.refusal(search.checkpoint, split.ranks)
        return f"Without stages it cannot be divided over {split.ranks} GPUs: {why}"
    other = search.budget(fit.product, Split(split.ranks, ep, split.nodes))
    return f"Without stages ({_sizes(other)}) {_IN_LAYERS}. Which is faster was not measured"


def _sizes(one: Budget) -> str:
    return f"{explain.shape(one)}, {one.kv_tokens} tokens"
