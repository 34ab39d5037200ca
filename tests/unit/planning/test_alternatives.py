"""What would fit instead: each is a plan when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.cli.inputs import merged
from qwen_operator.hardware.inventory import Inventory, inventory
from qwen_operator.planning.alternatives import MOST, cheaper, product_of
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import Alternative, AlternativeKind, NodesNeeded, NoFit, Plan
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pool, pools

SPEC = {"model": "Qwen/Qwen1.5-72B-Chat"}
CASES: dict[str, tuple[dict[str, Any], str, Inventory, set[str]]] = {
    "too large for every L4": (SPEC, "Qwen1.5-72B-Chat", pools("L4"), {"Quantization", "Nodes", "Product"}),
    "room for less": (
        {**SPEC, "hardware": {"maxGpusPerReplica": 2}},
        "Qwen1.5-72B-Chat",
        pools("L40S", "H100-80GB"),
        {"Limits", "Quantization", "Context", "Product"},
    ),
    "a claim of another format": (
        {**SPEC, "source": {"uri": "pvc://models/72b"}},
        "Qwen1.5-72B-Chat",
        pools("L4"),
        {"Quantization", "Nodes", "Product"},
    ),
    "only bad products asked": (
        {**SPEC, "hardware": {"products": ["L4"]}},
        "Qwen1.5-72B-Chat",
        pools("L4", "H100-80GB"),
        {"Quantization", "Nodes", "Product"},
    ),
    "too many at a time": (
        {"model": "Qwen/Qwen1.5-7B-Chat", "contextTokens": 4096, "workload": {"concurrency": 50}},
        "Qwen1.5-7B-Chat",
        inventory([], [pool("H100-80GB", 1)]),
        {"Quantization", "KvCache", "Workload", "Nodes", "Product"},
    ),
    "too many states": (
        {"model": "Qwen/Qwen3.5-27B", "workload": {"concurrency": 500, "inputTokens": 16, "outputTokens": 16}},
        "Qwen3.5-27B",
        inventory([], [pool("H100-80GB", 2)]),
        {"Workload", "Product", "Nodes"},
    ),
    "a GPU that is too old": (
        {"model": "Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", "contextTokens": 8192},
        "Qwen1.5-7B-Chat-GPTQ-Int4",
        pools("T4"),
        {"Quantization", "Product"},
    ),
}


def _again(spec: Mapping[str, Any], checkpoint: Checkpoint, hardware: Inventory, one: Alternative) -> Plan | NoFit:
    """The plan after doing what the alternative says, from the object as a user would have it then."""
    obj = merged({"metadata": {"name": "m"}, "spec": dict(spec)}, one.patch())
    known = catalog.lookup(obj["spec"]["model"]) if obj["spec"]["model"] != spec["model"] else checkpoint
    assert known
    there = hardware.with_instead(product_of(one.hardware)) if one.hardware else hardware
    return plan(parse(obj), known, there, DEFAULTS, DOWNLOADED)


@pytest.mark.parametrize(("spec", "model", "hardware", "kinds"), CASES.values(), ids=CASES.keys())
def test_every_alternative_is_itself_a_plan(
    spec: dict[str, Any], model: str, hardware: Inventory, kinds: set[str]
) -> None:
    checkpoint = facts(model)
    refusal = plan(parse({"metadata": {"name": "m"}, "spec": spec}), checkpoint, hardware, DEFAULTS, DOWNLOADED)
    assert isinstance(refusal, NoFit)
    assert {str(one.kind) for one in refusal.alternatives} == kinds
    assert len(refusal.alternatives) <= MOST
    for one in refusal.alternatives:
        assert one.changes or one.hardware
        again = _again(spec, checkpoint, hardware, one)
        assert isinstance(again, Plan), one
        assert (again.gpu_product, again.gpus_per_replica, again.kv_tokens) == (
            one.gpu_product,
            one.gpus_per_replica,
            one.kv_tokens,
        )


def test_what_the_status_says_of_an_alternative() -> None:
    one = Alternative(
        AlternativeKind.QUANTIZATION,
        32768,
        "NVIDIA-L4",
        8,
        kv_tokens=44864,
        changes=(("model", "a/b-AWQ"), ("source", None), ("hardware.products", ("NVIDIA-L4",))),
        hardware=NodesNeeded("NVIDIA-L4", 8, 2),
    )
    assert one.describe() == (
        "spec.model: a/b-AWQ, without spec.source, spec.hardware.products: NVIDIA-L4, nodes NVIDIA-L4=8x2"
    )
    assert one.patch() == {"spec": {"model": "a/b-AWQ", "source": None, "hardware": {"products": ["NVIDIA-L4"]}}}
    assert one.gpus == "8xL4"
    (record,) = NoFit(Reason.DOES_NOT_FIT, "m", (), (one,)).status()["alternatives"]
    assert record == {
        "kind": "Quantization",
        "patch": '{"spec":{"model":"a/b-AWQ","source":null,"hardware":{"products":["NVIDIA-L4"]}}}',
        "hardware": "NVIDIA-L4=8x2",
        "contextTokens": 32768,
        "kvTokens": 44864,
        "gpuProduct": "NVIDIA-L4",
        "gpusPerReplica": 8,
        "nodesPerReplica": 1,
    }
    assert Alternative(AlternativeKind.NODES, 1, "x", 1, hardware=NodesNeeded("x", 1, 2)).patch() == {}


def test_of_two_contexts_on_the_same_gpus_only_the_longer_one_is_offered() -> None:
    name = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    checkpoint = catalog.lookup(name)
    assert checkpoint
    spec = parse({"metadata": {"name": "m"}, "spec": {"model": name}})
    failed = plan(spec, checkpoint, pools("A100-SXM4-40GB", nodes=2), DEFAULTS, DOWNLOADED)
    assert isinstance(failed, NoFit)
    contexts = [one.context_tokens for one in failed.alternatives if one.kind is AlternativeKind.CONTEXT]
    assert contexts == [240384]


def test_nothing_is_made_up_where_nothing_fits() -> None:
    huge = {"model": "someone/enormous"}
    checkpoint = facts("Qwen3-Coder-480B-A35B-Instruct")
    giant = replace(checkpoint, weight_bytes=checkpoint.weight_bytes * 40)
    refusal = plan(parse({"metadata": {"name": "m"}, "spec": huge}), giant, pools("L4"), DEFAULTS, DOWNLOADED)
    assert isinstance(refusal, NoFit)
    assert refusal.alternatives == ()
    assert "no change that this operator knows would fit" in refusal.message


def test_a_format_that_takes_fewer_gpus_is_found() -> None:
    hardware = pools("H100-80GB")

    def planner(spec: Spec, checkpoint: Checkpoint, there: Inventory) -> Plan | NoFit:
        return plan(spec, checkpoint, there, DEFAULTS, DOWNLOADED)

    for model, expected in (("Qwen1.5-72B-Chat", "2xH100-80GB"), ("Qwen1.5-7B-Chat", None)):
        spec = parse({"metadata": {"name": "m"}, "spec": {"model": f"Qwen/{model}"}})
        result = planner(spec, facts(model), hardware)
        assert isinstance(result, Plan)
        other = cheaper(spec, hardware, result, planner)
        assert (other.gpus if other else None) == expected
