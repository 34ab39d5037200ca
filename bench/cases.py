"""The plans of the whole catalog: one replica of each published checkpoint on one node of each GPU product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from bench.oracle import CARDS, Card
from qwen_operator.api.sizing import Workload
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.catalog import CatalogEntry
from qwen_operator.hardware.inventory import Inventory, inventory
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, EngineSource, NoFit, Plan

DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
DOWNLOADED = EngineSource("team/model", downloads=True)


@dataclass(frozen=True, slots=True)
class Case:
    """A catalog entry on one node with `card.per_node` GPUs. The planned manifest only names the model."""

    entry: CatalogEntry
    card: Card
    plan: Plan | NoFit


def every() -> Iterator[Case]:
    """All cases in the order of the catalog, and for each entry the products from small to large."""
    for entry in catalog.entries():
        for card in CARDS:
            planned = plan(Spec(model=entry.repository), entry.checkpoint, node_of(card), DEFAULTS, DOWNLOADED)
            yield Case(entry, card, planned)


def argument_lists() -> list[tuple[str, ...]]:
    """The distinct engine arguments of all plans, and of plans with larger demands.

    The larger demands are a context of four times the model's own, an 8-bit KV cache, many requests at a time, and two
    nodes.
    """
    distinct: dict[tuple[str, ...], None] = {}
    for entry in catalog.entries():
        plain = Spec(model=entry.repository)
        specs = (
            plain,
            replace(plain, context_tokens=4 * entry.checkpoint.max_positions),
            replace(plain, engine=replace(plain.engine, kv_cache_type="Fp8E4m3")),
            replace(plain, workload=Workload(concurrency=64)),
        )
        for card, nodes in product(CARDS, (1, 2)):
            for spec in specs:
                result = plan(spec, entry.checkpoint, node_of(card, nodes), DEFAULTS, DOWNLOADED)
                if isinstance(result, Plan):
                    distinct[result.args] = None
    return list(distinct)


@cache
def node_of(card: Card, nodes: int = 1) -> Inventory:
    """An inventory of nodes with the labels of GPU feature discovery."""
    major, minor = str(card.capability).split(".")
    labels = {
        "nvidia.com/gpu.product": card.product,
        "nvidia.com/gpu.memory": str(card.mib),
        "nvidia.com/gpu.count": str(card.per_node),
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
    }
    status = {"allocatable": {"nvidia.com/gpu": str(card.per_node)}}
    names = (f"node-{number}" for number in range(nodes))
    return inventory([{"metadata": {"name": name, "labels": labels}, "status": status} for name in names], ())
