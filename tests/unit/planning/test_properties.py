"""What holds for every model, GPU and request: properties across checkpoints, hardware and planning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qwen_operator import engines
from qwen_operator.api.spec import Spec, parse
from qwen_operator.checkpoints import catalog, parallel, records
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.hardware.boards import board
from qwen_operator.hardware.inventory import Inventory, inventory
from qwen_operator.planning.memory import Formula, Split
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import Alternative, EngineDefaults, EngineSource, NoFit, Plan

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
FORMULA = Formula(engines.newest().memory)
DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
DOWNLOADED = EngineSource("team/model", downloads=True)
MEMORY = st.integers(15000, 200000)
CONTEXT = st.integers(1, 32768)
# With the memory of those that no table knows.
PRODUCTS = {"NVIDIA-Made-Up": 30000, "Tesla-T4": 0, "NVIDIA-L4": 0, "NVIDIA-L40S": 0, "NVIDIA-H100-80GB-HBM3": 0}
ENTRIES = {entry.repository: entry.checkpoint for entry in catalog.entries()}


@st.composite
def made_up(draw: st.DrawFn) -> Checkpoint:
    """A dense model of a shape that nobody published."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4, 5, 8]))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": heads * 128,
        "num_hidden_layers": draw(st.integers(1, 100)),
        "intermediate_size": draw(st.integers(8, 400)) * 128,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": draw(st.integers(1000, 200000)),
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    }
    return from_config(config, weight_bytes=None)


MODELS = st.one_of(st.sampled_from(sorted(ENTRIES)).map(lambda name: ENTRIES[name]), made_up())


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, int, int]:
    """(memory in MiB, GPUs per node, nodes) of one product."""
    return draw(MEMORY), draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 3))


def nodes(memory_mib: int, gpus: int, count: int, product: str = "NVIDIA-Made-Up") -> list[dict[str, Any]]:
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory_mib),
        "nvidia.com/gpu.compute.major": "9",
        "nvidia.com/gpu.compute.minor": "0",
    }
    status = {"allocatable": {"nvidia.com/gpu": str(gpus)}}
    return [{"metadata": {"name": f"node-{i}", "labels": labels}, "status": status} for i in range(count)]


def inventory_of(cluster: tuple[int, int, int]) -> Inventory:
    return inventory(nodes(*cluster), ())


def planned(checkpoint: Checkpoint, cluster: tuple[int, int, int], context: int) -> Plan | NoFit:
    spec = Spec(model="team/model", context_tokens=min(context, checkpoint.max_positions))
    return plan(spec, checkpoint, inventory_of(cluster), DEFAULTS, DOWNLOADED)


@UNHURRIED
@given(MODELS, clusters(), CONTEXT, CONTEXT)
def test_more_context_never_needs_fewer_gpus(
    checkpoint: Checkpoint, cluster: tuple[int, int, int], one: int, other: int
) -> None:
    small, large = sorted([one, other])
    less, more = planned(checkpoint, cluster, small), planned(checkpoint, cluster, large)

    if isinstance(more, Plan):
        assert isinstance(less, Plan)
        # Stages come last, whatever they take.
        if more.pipeline_parallel == 1:
            assert less.gpus_per_replica <= more.gpus_per_replica


@UNHURRIED
@given(MODELS, clusters(), CONTEXT, st.integers(0, 100000))
def test_what_fits_fits_with_more_memory_on_no_more_gpus(
    checkpoint: Checkpoint, cluster: tuple[int, int, int], context: int, more: int
) -> None:
    memory, gpus, count = cluster
    small = planned(checkpoint, cluster, context)
    assume(isinstance(small, Plan))
    large = planned(checkpoint, (memory + more, gpus, count), context)

    assert isinstance(small, Plan)
    assert isinstance(large, Plan)
    # Stages come last, whatever they take.
    if small.pipeline_parallel == 1:
        assert large.gpus_per_replica <= small.gpus_per_replica


@UNHURRIED
@given(MODELS, MEMORY, st.integers(0, 5000), st.sampled_from([1, 2, 4, 8]))
def test_more_memory_never_gives_a_smaller_pool(checkpoint: Checkpoint, memory: int, more: int, tp: int) -> None:
    small, large = (FORMULA.budget(checkpoint, mib, Split(tp)) for mib in (memory, memory + more))

    assert large.kv_tokens >= small.kv_tokens


@UNHURRIED
@given(MODELS, clusters(), CONTEXT)
def test_a_plan_is_a_valid_split_of_what_is_there(
    checkpoint: Checkpoint, cluster: tuple[int, int, int], context: int
) -> None:
    result = planned(checkpoint, cluster, context)
    assume(isinstance(result, Plan))
    assert isinstance(result, Plan)
    _, gpus, count = cluster

    assert (result.tensor_parallel, result.expert_parallel) in parallel.valid(checkpoint, gpus * count)
    assert result.gpus_per_replica == result.tensor_parallel * result.pipeline_parallel
    assert result.nodes_per_replica <= count
    assert result.gpus_per_node <= gpus
    assert result.kv_tokens >= result.context_tokens
    whole = checkpoint.weight_bytes_per_rank(result.tensor_parallel, result.expert_parallel)
    if result.pipeline_parallel == 1:
        assert result.weight_bytes_per_rank == whole
    else:
        assert result.nodes_per_replica > 1
        # The largest stage has its part of the layers at least, and never all of them.
        assert whole / result.pipeline_parallel <= result.weight_bytes_per_rank < whole


@UNHURRIED
@given(MODELS, clusters(), CONTEXT)
def test_plans_and_facts_come_back_from_json_as_they_were(
    checkpoint: Checkpoint, cluster: tuple[int, int, int], context: int
) -> None:
    result = planned(checkpoint, cluster, context)

    assert records.from_json(json.loads(json.dumps(checkpoint.to_json()))) == checkpoint
    if isinstance(result, Plan):
        assert Plan.from_json(json.loads(json.dumps(result.to_json()))) == result
    else:
        json.dumps(result.status())


@settings(UNHURRIED, max_examples=100)
@given(
    st.sampled_from(sorted(ENTRIES)),
    st.tuples(st.sampled_from(sorted(PRODUCTS)), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3)),
    st.sampled_from([{}, {"contextTokens": 30000}, {"workload": {"concurrency": 64}}, {"contextTokens": 120000}]),
    st.sampled_from(
        [
            {},
            {"hardware": {"maxGpusPerReplica": 1}},
            {"hardware": {"maxNodesPerReplica": 2}},
            {"parallelism": {"tensor": 1}},
            {"parallelism": {"pipeline": 2}},
        ]
    ),
)
def test_every_alternative_is_itself_a_plan(
    model: str, there: tuple[str, int, int], wish: Mapping[str, Any], limit: Mapping[str, Any]
) -> None:
    spec = {"model": model, **wish, **limit}
    result = plan(manifest(spec), ENTRIES[model], inventory(nodes_of(*there), ()), DEFAULTS, DOWNLOADED)
    assume(isinstance(result, NoFit) and result.alternatives)
    assert isinstance(result, NoFit)

    for alternative in result.alternatives:
        again = followed(spec, alternative, there)
        assert isinstance(again, Plan), (alternative.describe(), again)
        shape = (again.gpu_product, again.gpus_per_replica, again.nodes_per_replica, again.context_tokens)
        assert shape == (
            alternative.gpu_product,
            alternative.gpus_per_replica,
            alternative.nodes_per_replica,
            alternative.context_tokens,
        ), alternative.describe()


def followed(spec: Mapping[str, Any], alternative: Alternative, there: tuple[str, int, int]) -> Plan | NoFit:
    """The plan of a manifest that does what the alternative says, with the nodes that it says beside those there."""
    patched = merged(spec, alternative.patch().get("spec", {}))
    nodes = [] if alternative.hardware and alternative.hardware.product == there[0] else nodes_of(*there)
    if alternative.hardware is not None:
        wanted = alternative.hardware
        nodes += nodes_of(wanted.product, wanted.gpus_per_node, wanted.nodes)
    checkpoint = catalog.lookup(str(patched["model"]))
    assert checkpoint is not None
    return plan(manifest(patched), checkpoint, inventory(nodes, ()), DEFAULTS, DOWNLOADED)


def nodes_of(product: str, gpus: int, count: int) -> list[dict[str, Any]]:
    known = board(product)
    return nodes(known.memory_mib if known else PRODUCTS[product], gpus, count, product)


def manifest(spec: Mapping[str, Any]) -> Spec:
    return parse({"metadata": {"name": "made-up"}, "spec": spec})


def merged(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7386."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = merged(result.get(key, {}), value)
        else:
            result[key] = value
    return result
