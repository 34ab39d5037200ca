"""What LoRA adapters add to a plan: options, memory, and the reasons why an engine could not serve them.

SGLang keeps `--max-loras-per-batch` adapters in GPU memory, of which one place is for requests without an adapter. It
takes the memory before it sizes the KV cache, so here it counts as weights. Every place has the size of the largest
rank, for all projections that any adapter changes (lora/mem_pool.py:472 and 512 of SGLang 0.5.23). Other adapters wait
in host memory and take the place of the one that was used longest ago.

An engine that runs loads another adapter if its rank, its projections and its place are within what the plan took. So
places come in steps, and most additions need no other plan.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwen_operator import engines, untrusted
from qwen_operator.api import uris
from qwen_operator.api.adapters import AdapterSource
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.engines.types import Role
from qwen_operator.planning.engine import EngineChoice, RoleValues
from qwen_operator.planning.types import NoFit, Plan
from qwen_runtime.adapter_list import with_option
from qwen_runtime.checkpoints.adapter import MODULES

MOUNT = "/models/adapters"
"""The folder of engines and inspections that has the claims with adapters, by their names."""
FETCHED = f"{MOUNT}/.fetched"
"""The folder of engines that has the adapters which a container has fetched. No claim has such a name.

Without a cache, each of them is a mount below it. With one, it is the folder of all adapters of the cache.
"""
SLOTS = (4, 8)
"""The steps of places. Eight is SGLang's default: more places take memory from the KV cache."""
_MOST_RANK = 1 << 20
_COUNT = re.compile(r"^adapters: \d+ ")
_VALUE_BYTES = 2
_MIB = 1 << 20
_GIB = 1 << 30
_SPARE_HOST_BYTES = 512 * _MIB
"""Host memory of each rank that added adapters may take beyond the request of their pod: a quarter of a rank's own."""
_ROLES = (Role.ADAPTER_PATHS, Role.ADAPTER_RANK, Role.ADAPTER_SLOTS, Role.ADAPTER_MODULES)
# SGLang's own groups: an adapter of one projection needs memory for all projections of its group.
_GROUPS = (MODULES[:3], MODULES[3:4], MODULES[4:6], MODULES[6:])


def path_of(place: str) -> str:
    """The folder of an adapter in the containers, from `AdapterSource.place`."""
    if not place.startswith(uris.PVC.prefix):
        return f"{FETCHED}/{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    source = AdapterSource(place)
    return "/".join(part for part in (MOUNT, source.claim, source.folder) if part)


def slots(checkpoint: Checkpoint) -> int:
    """How many adapters are in GPU memory at once, the one that is none included."""
    return next((step for step in SLOTS if len(checkpoint.adapters) < step), SLOTS[-1])


def bytes_per_rank(checkpoint: Checkpoint, tp: int) -> int:
    """GPU memory for adapters on each of `tp` ranks; 0 without adapters.

    lora_A is [rank, inputs] and lora_B is [outputs, rank] for each projection, layer and place. The ranks share what
    they share of the projection: the outputs, or the inputs of o_proj and down_proj.
    """
    if not checkpoint.adapters:
        return 0
    hidden, query, intermediate = checkpoint.hidden, checkpoint.heads * checkpoint.head_dim, checkpoint.intermediate
    key_value = max(1, checkpoint.kv_heads // tp) * checkpoint.head_dim
    of_group = (
        3 * hidden + query // tp + 2 * key_value,
        query // tp + hidden,
        2 * hidden + 2 * intermediate // tp,
        intermediate // tp + hidden,
    )
    modules = _modules(checkpoint)
    width = sum(size for size, group in zip(of_group, _GROUPS, strict=True) if modules.intersection(group))
    return slots(checkpoint) * _rank(checkpoint) * width * checkpoint.layers * _VALUE_BYTES


def host_bytes(checkpoint: Checkpoint, ranks: int) -> int:
    """Host memory of a pod with so many ranks: each rank keeps all adapters."""
    return ranks * sum(adapter.facts.weight_bytes for adapter in checkpoint.adapters)


def lacks_host_memory(checkpoint: Checkpoint, ranks: int, planned_bytes: int) -> str:
    """Why a pod with so many ranks cannot keep these adapters; "" if it can.

    `planned_bytes`: the part of its memory request that is for adapters.
    """
    needed = host_bytes(checkpoint, ranks)
    if needed <= planned_bytes + ranks * _SPARE_HOST_BYTES:
        return ""
    return (
        f"spec.adapters need {needed / _GIB:.1f} GiB of host memory in each pod, and they requested "
        f"{planned_bytes / _GIB:.1f} GiB for adapters"
    )


def settings(checkpoint: Checkpoint, folders: Mapping[str, str]) -> RoleValues:
    """The settings of the plan; () without adapters. `folders` in the container by name, as far as they are known."""
    if not checkpoint.adapters:
        return ()
    modules = _modules(checkpoint)
    return (
        (Role.ADAPTERS, ()),
        (Role.ADAPTER_RANK, (str(_rank(checkpoint)),)),
        (Role.ADAPTER_SLOTS, (str(slots(checkpoint)),)),
        (Role.ADAPTER_MODULES, tuple(name for name in MODULES if name in modules)),
        (Role.ADAPTER_PATHS, _paths(checkpoint, folders)),
    )


def _paths(checkpoint: Checkpoint, folders: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{one.name}={folders.get(one.name) or path_of(one.uri)}" for one in checkpoint.adapters)


@dataclass(frozen=True, slots=True)
class Room:
    """What the engines of a plan can load: adapters up to a rank, for some projections, in so many places."""

    rank: int
    modules: frozenset[str]
    slots: int

    def lacks(self, checkpoint: Checkpoint) -> str:
        """Why engines with this room cannot serve the adapters of a checkpoint; "" if they can."""
        for adapter in checkpoint.adapters:
            facts = adapter.facts
            if facts.rank > self.rank:
                return f"spec.adapters[{adapter.name}] has the rank {facts.rank}, and they have room for {self.rank}"
            if more := [name for name in facts.modules if name not in self.modules]:
                return f"spec.adapters[{adapter.name}] changes {_listed(tuple(more))}, for which they have no room"
        if (needed := slots(checkpoint)) > self.slots:
            return f"{len(checkpoint.adapters)} adapters need {needed} places, and they have {self.slots}"
        return ""


def room(plan: Plan) -> Room:
    """What the engines of this plan can load; nothing if it was made without adapters."""
    rank, places, modules = (
        _given(plan, role) for role in (Role.ADAPTER_RANK, Role.ADAPTER_SLOTS, Role.ADAPTER_MODULES)
    )
    numbers = [untrusted.digits(" ".join(values), _MOST_RANK, 0) for values in (rank, places)]
    return Room(numbers[0], frozenset(modules), numbers[1])


def with_adapters(plan: Plan, checkpoint: Checkpoint, folders: Mapping[str, str]) -> Plan:
    """The same plan with the adapters of a checkpoint in place of its own, for which it must have room."""
    option = engines.of(plan.engine_version).options.name(Role.ADAPTER_PATHS)
    paths = _paths(checkpoint, folders)
    count = f"adapters: {len(paths)} "
    steps = tuple(_COUNT.sub(count, step) for step in plan.steps)
    return replace(plan, args=tuple(with_option(plan.args, option, paths)), steps=steps)


def _given(plan: Plan, role: Role) -> tuple[str, ...]:
    """The values of an option in the arguments of a plan; () without it."""
    option = engines.of(plan.engine_version).options.name(role)
    for index, word in enumerate(plan.args):
        if word.startswith(f"{option}="):
            return (word.removeprefix(f"{option}="),)
        if word == option:
            rest = plan.args[index + 1 :]
            end = next((place for place, other in enumerate(rest) if other.startswith("--")), len(rest))
            return rest[:end]
    return ()


def line(checkpoint: Checkpoint, tp: int) -> tuple[str, ...]:
    """The arithmetic in one line; () without adapters."""
    if not checkpoint.adapters:
        return ()
    places = slots(checkpoint)
    size = bytes_per_rank(checkpoint, tp) / _MIB
    return (
        f"adapters: {len(checkpoint.adapters)} of rank {_rank(checkpoint)} at most; {places} places on each GPU, one "
        f"of them for requests without an adapter = {size:.0f} MiB, counted as weights",
    )


def warnings(spec: Spec, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a plan without a cluster does not know."""
    if len(spec.adapters) == len(checkpoint.adapters):
        return ()
    return ("spec.adapters were not read, so their options and their memory are not in this plan",)


def refuse(checkpoint: Checkpoint, choice: EngineChoice) -> NoFit | None:
    """Why engines cannot serve the adapters of this checkpoint; None if they can."""
    if not checkpoint.adapters:
        return None
    for role in _ROLES:
        if (given := choice.given(role)) is not None:
            message = (
                f"{given[0]} has {choice.table.name(role)}, which follows from spec.adapters: remove one of the two"
            )
            return NoFit(Reason.INVALID_OVERRIDE, message)
        if not choice.table.name(role):
            message = (
                f"the operator cannot set spec.adapters with SGLang {choice.table.version}: choose a known version"
            )
            return NoFit(Reason.INVALID_OVERRIDE, f"{message} in spec.engine.version")
    for adapter in checkpoint.adapters:
        if (why := mismatch(checkpoint, adapter)) is not None:
            return NoFit(Reason.ADAPTER_MISMATCH, f"spec.adapters[{adapter.name}] {adapter.uri}: {why}")
    return None


def mismatch(checkpoint: Checkpoint, adapter: InspectedAdapter) -> str | None:
    """Why an adapter is not one of this base; None if it may be."""
    facts = adapter.facts
    if checkpoint.gguf or checkpoint.linear is not None:
        kind = "in GGUF files" if checkpoint.gguf else "with linear attention"
        return f"the operator cannot plan adapters of models {kind}; merge the adapter into its base model"
    if checkpoint.experts is not None and set(facts.modules) - set(MODULES[:4]):
        return f"it changes {_listed(facts.modules[-3:])}, which the operator supports only for models without experts"
    if facts.layers > checkpoint.layers:
        return f"it is for a base model of {facts.layers} layers or more, and this one has {checkpoint.layers}"
    sizes = (
        ("hidden_size", facts.hidden, checkpoint.hidden),
        ("a query width", facts.query, checkpoint.heads * checkpoint.head_dim),
        ("a key and value width", facts.key_value, checkpoint.kv_heads * checkpoint.head_dim),
        ("intermediate_size", facts.intermediate, checkpoint.intermediate),
    )
    for name, its, base in sizes:
        if its not in (0, base):
            return f"it is for a base model with {name} {its}, and this one has {base}: name an adapter of this model"
    return None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _rank(checkpoint: Checkpoint) -> int:
    return max(adapter.facts.rank for adapter in checkpoint.adapters)


def _modules(checkpoint: Checkpoint) -> frozenset[str]:
    return frozenset(name for adapter in checkpoint.adapters for name in adapter.facts.modules)
