"""Plans in pipeline stages and over several nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import Engine, EnvVar
from qwen_operator.api.sizing import Hardware, Parallelism, Workload
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.facts import ChatFormat, Checkpoint, Task
from qwen_operator.hardware.inventory import Inventory, inventory
from qwen_operator.planning.pipeline import nodes_for
from qwen_operator.planning.plan import plan, runnable
from qwen_operator.planning.types import NoFit, Plan
from qwen_runtime.checkpoints.adapter import MODULES, AdapterFacts
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pool, pools, spec

EMBEDDING = ChatFormat(template=True, task=Task.EMBED)
ADAPTER = InspectedAdapter("a", "pvc://claim/a", AdapterFacts(16, MODULES[:4], 80, 8192, 8192, 8192, 0, 1 << 28))
TWO_NODES = Hardware(max_nodes_per_replica=2)


def planned(asked: Spec, checkpoint: Checkpoint, hardware: Inventory) -> Plan:
    result = plan(asked, checkpoint, hardware, DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan), result
    return result


def refused(asked: Spec, checkpoint: Checkpoint, hardware: Inventory) -> NoFit:
    result = plan(asked, checkpoint, hardware, DEFAULTS, DOWNLOADED)
    assert isinstance(result, NoFit), result
    return result


def line(result: Plan, start: str) -> str:
    [found] = [step for step in result.steps if step.startswith(start)]
    return found


PLACES = {
    # tp, stages, GPUs of a node, most nodes -> nodes
    "both on one node": ((4, 2, 8, 4), 1),
    "a stage for each node": ((8, 2, 8, 4), 2),
    "two stages for each node": ((4, 4, 8, 4), 2),
    "a stage over two nodes": ((8, 2, 4, 4), 4),
    "three stages never on two nodes": ((4, 3, 8, 4), 3),
    "too many": ((8, 2, 8, 1), None),
    "no equal parts": ((1, 5, 4, 4), None),
}


@pytest.mark.parametrize(("shape", "nodes"), PLACES.values(), ids=PLACES.keys())
def test_on_how_many_nodes_stages_go(shape: tuple[int, int, int, int], nodes: int | None) -> None:
    assert nodes_for(*shape) == nodes


def test_stages_over_two_nodes_as_the_user_asks() -> None:
    asked = spec(hardware=TWO_NODES, parallelism=Parallelism(pipeline=2))
    result = planned(asked, facts("Qwen3-235B-A22B"), pools("L40S", nodes=2))

    assert (result.tensor_parallel, result.pipeline_parallel, result.nodes_per_replica) == (8, 2, 2)
    assert (result.gpus_per_replica, result.gpus_per_node) == (16, 8)
    assert result.args[:2] == ("--tp-size=8", "--mem-fraction-static=0.88")
    assert {"--pp-size=2", "--nnodes=2", "--max-running-requests=160", "--cuda-graph-max-bs-decode=80"} <= set(
        result.args
    )
    assert result.status("x")["parallelism"] == {"tensor": 8, "pipeline": 2}
    assert "16 x NVIDIA-L40S per replica, TP 8, PP 2, 2 nodes" in result.message
    assert line(result, "stages: ").startswith(
        "stages: 47 + 47 layers; the first one has the embedding, every stage the output head"
    )
    assert "Without stages (TP 16, 2 nodes, " in line(result, "over 2 nodes: ")


def test_the_memory_of_a_stage_by_hand() -> None:
    """Half of 80 layers and one table on each GPU of 8, and KV cache for 40 layers."""
    result = planned(
        spec(hardware=TWO_NODES, parallelism=Parallelism(8, 2)), facts("Qwen1.5-72B-Chat"), pools("L4", nodes=2)
    )
    table = 152064 * 8192 * 2
    weights = ((144575840256 - 2 * table) / 2 + table) / 8
    assert result.weight_bytes_per_rank == pytest.approx(weights, rel=0.001)
    assert result.kv_bytes_per_token_per_rank == 2 * 8 * 128 * 40 * 2
    assert result.startup_seconds == 1446 + 120 + 145 + 120


def test_stages_on_one_node_need_no_second_one() -> None:
    result = planned(spec(parallelism=Parallelism(pipeline=2)), facts("Qwen1.5-72B-Chat"), pools("H100-80GB", nodes=4))
    assert (result.tensor_parallel, result.pipeline_parallel, result.nodes_per_replica) == (2, 2, 1)
    assert "--nnodes=1" not in result.args
    said = line(result, "stages: ")
    assert said.startswith("stages: 40 + 40 layers; the first one has the embedding, the last one the output head; ")
    assert not [step for step in result.steps if step.startswith("over ")]


def test_experts_are_grouped_in_each_stage() -> None:
    """2 groups of 4 GPUs for the experts: 1536 / 8 is not a multiple of 128, the block of its FP8 weights."""
    asked = spec(hardware=TWO_NODES, parallelism=Parallelism(8, 2))
    result = planned(asked, facts("Qwen3-235B-A22B-FP8"), pools("L40S", nodes=2))
    assert (result.expert_parallel, result.pipeline_parallel) == (2, 2)
    assert {"--ep-size=2", "--pp-size=2"} <= set(result.args)
    assert result.status("x")["parallelism"] == {"tensor": 8, "expert": 2, "pipeline": 2}


def test_over_nodes_without_the_field_it_stays_tensor_parallelism_and_says_what_stages_would_be() -> None:
    result = planned(spec(hardware=TWO_NODES), facts("Qwen1.5-72B-Chat"), pools("L4", nodes=2))
    assert (result.tensor_parallel, result.pipeline_parallel, result.nodes_per_replica) == (16, 1, 2)
    assert not [arg for arg in result.args if arg.startswith("--pp-size")]
    said = line(result, "over 2 nodes: ")
    assert "With spec.parallelism.pipeline: 2 (TP 8, PP 2, 2 nodes, " in said
    assert said.endswith("Which is faster was not measured")
    hybrid = planned(spec(hardware=TWO_NODES), facts("Qwen3.5-397B-A17B"), pools("H100-80GB", nodes=2))
    assert "No pipeline stages: the operator plans stages of Qwen2ForCausalLM" in line(hybrid, "over 2 nodes: ")


# 40 heads: 8 GPUs can share them, 16 cannot.
ODD = spec(workload=Workload(150))
ODD_MODEL = "Qwen1.5-32B-Chat"


def test_stages_come_by_themselves_where_several_nodes_are_allowed_and_nothing_else_fits() -> None:
    hardware, checkpoint = pools("L4", nodes=2), facts(ODD_MODEL)
    result = planned(replace(ODD, hardware=TWO_NODES), checkpoint, hardware)
    assert (result.tensor_parallel, result.pipeline_parallel, result.nodes_per_replica) == (8, 2, 2)
    assert "it cannot be divided over 16 GPUs: 40 attention heads" in line(result, "over 2 nodes: ")
    never = refused(replace(ODD, hardware=TWO_NODES, parallelism=Parallelism(pipeline=1)), checkpoint, hardware)
    assert never.reason is Reason.DOES_NOT_FIT


def test_one_allowed_node_is_one_node() -> None:
    hardware, checkpoint = pools("L4", nodes=2), facts(ODD_MODEL)
    wide = plan(ODD, checkpoint, hardware, DEFAULTS, DOWNLOADED)
    shown = runnable(wide, checkpoint, DOWNLOADED)
    assert isinstance(shown, NoFit)
    assert "TP 8, PP 2, 2 nodes" in shown.message
    [change] = shown.alternatives
    assert change.patch() == {"spec": {"hardware": {"maxNodesPerReplica": 2}}}


def test_stages_on_one_node_are_offered_and_not_taken() -> None:
    """The groups of this AWQ checkpoint are too wide for two GPUs, so without stages it runs on one."""
    result = refused(spec(), facts("Qwen1.5-14B-Chat-AWQ"), pools("L4"))
    [offered] = [one for one in result.alternatives if str(one.kind) == "Pipeline"]
    assert offered.changes == (("parallelism.pipeline", 2),)
    assert (offered.gpus_per_replica, offered.nodes_per_replica) == (2, 1)


REFUSED: dict[str, tuple[Spec, Checkpoint, Inventory, str]] = {
    "a model without stages": (
        spec(parallelism=Parallelism(pipeline=2)),
        facts("Qwen3-Next-80B-A3B-Instruct"),
        pools("H100-80GB"),
        "spec.parallelism.pipeline is 2: the operator plans stages of Qwen2ForCausalLM, Qwen2MoeForCausalLM, "
        "Qwen3ForCausalLM, Qwen3MoeForCausalLM, and the model is Qwen3NextForCausalLM; remove the field, or set it to "
        "1",
    ),
    "speculation": (
        spec(parallelism=Parallelism(pipeline=2), engine=Engine(args=("--speculative-algorithm=EAGLE",))),
        facts("Qwen1.5-72B-Chat"),
        pools("H100-80GB"),
        "SGLang does not run in stages with --speculative-algorithm=EAGLE, which spec.engine.args sets",
    ),
    "stages by hand": (
        spec(
            parallelism=Parallelism(pipeline=2),
            engine=Engine(env=(EnvVar("SGLANG_PP_LAYER_PARTITION", "20,60"),)),
        ),
        facts("Qwen1.5-72B-Chat"),
        pools("H100-80GB"),
        "SGLANG_PP_LAYER_PARTITION is set in the environment of the engine",
    ),
    "embeddings": (
        spec(parallelism=Parallelism(pipeline=2)),
        replace(facts("Qwen3-8B"), chat=EMBEDDING),
        pools("L40S"),
        "SGLang makes no embeddings in stages",
    ),
    "adapters": (
        spec(parallelism=Parallelism(pipeline=2)),
        replace(facts("Qwen1.5-72B-Chat"), adapters=(ADAPTER,)),
        pools("H100-80GB"),
        "the operator cannot plan spec.adapters in stages",
    ),
    "too many layers": (
        spec(parallelism=Parallelism(pipeline=16)),
        replace(facts("Qwen1.5-72B-Chat"), layers=12, attention_layers=12),
        pools("H100-80GB", nodes=2),
        "the model has 12 layers, so it has no 16 stages",
    ),
    "more than a node": (
        spec(parallelism=Parallelism(pipeline=9)),
        facts("Qwen1.5-72B-Chat"),
        pools("H100-80GB"),
        "spec.parallelism.pipeline is 9: one replica can have at most 8 GPUs here, and each stage needs one; valid "
        "here: 1, 2, 3, 4, 5, 6, 7, 8",
    ),
    "more than a node together": (
        spec(parallelism=Parallelism(8, 2)),
        facts("Qwen1.5-72B-Chat"),
        pools("H100-80GB"),
        "spec.parallelism.tensor is 8: one replica can have at most 8 GPUs here, and 2 stages of 8 need 16; valid "
        "here: 1, 2, 4",
    ),
    "uneven": (
        spec(parallelism=Parallelism(pipeline=5)),
        facts("Qwen1.5-72B-Chat"),
        inventory([], [pool("H100-80GB", 4, max_nodes=2)]),
        "the stages cannot be shared out evenly over nodes of 4 GPUs; valid here: 1, 2, 3, 4, 6, 8",
    ),
    "an invalid tensor size": (
        spec(parallelism=Parallelism(3, 2)),
        facts("Qwen1.5-72B-Chat"),
        pools("H100-80GB"),
        "spec.parallelism.tensor is 3: 64 attention heads are not divisible by TP 3; valid here: 1, 2, 4",
    ),
}


@pytest.mark.parametrize(("asked", "checkpoint", "hardware", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_number_of_stages_is_answered_with_a_right_one(
    asked: Spec, checkpoint: Checkpoint, hardware: Inventory, says: str
) -> None:
    result = refused(asked, checkpoint, hardware)
    assert result.reason is Reason.INVALID_OVERRIDE
    assert says in result.message


def test_what_forbids_stages_does_not_forbid_the_rest() -> None:
    """Stages that nobody asked for are not tried with an option that SGLang does not run them with."""
    asked = replace(ODD, hardware=TWO_NODES, engine=Engine(args=("--speculative-algorithm=NGRAM",)))
    assert refused(asked, facts(ODD_MODEL), pools("L4", nodes=2)).reason is Reason.DOES_NOT_FIT


def test_overlap_of_weights_and_graphs_is_not_for_stages() -> None:
    asked = spec(parallelism=Parallelism(1, 2), engine=Engine(fast_start=True), context_tokens=2048)
    result = planned(asked, facts("Qwen1.5-7B-Chat"), pools("L40S"))
    assert "--startup-weight-load-mode=overlap" not in result.args
    assert "SGLang has it for 1 and 2 GPUs, this plan has 2 in 2 stages" in line(result, "fast start: ")
