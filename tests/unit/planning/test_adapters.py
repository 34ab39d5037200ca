"""What adapters add to a plan, and which ones an engine could not serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.adapters import Adapter, AdapterSource
from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import Engine
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError
from qwen_operator.planning import adapters
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import NoFit, Plan
from qwen_runtime.checkpoints.adapter import MODULES, AdapterFacts
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pools, spec

ATTENTION = MODULES[:4]
BASE = facts("Qwen1.5-72B-Chat")
OF_BASE = AdapterFacts(16, ATTENTION, 80, 8192, 8192, 8192, 0, 1 << 28)


def with_adapters(base: Checkpoint, *found: AdapterFacts) -> Checkpoint:
    named = (InspectedAdapter(f"a{number}", f"pvc://claim/a{number}/", one) for number, one in enumerate(found))
    return replace(base, adapters=tuple(named))


def planned(checkpoint: Checkpoint, **engine: Any) -> Plan | NoFit:
    listed = tuple(Adapter(one.name, AdapterSource(one.uri)) for one in checkpoint.adapters)
    return plan(spec(adapters=listed, engine=Engine(**engine)), checkpoint, pools("H100-80GB"), DEFAULTS, DOWNLOADED)


def test_the_options_the_memory_and_the_arithmetic() -> None:
    plain, result = planned(BASE), planned(with_adapters(BASE, OF_BASE, replace(OF_BASE, rank=64)))
    assert isinstance(plain, Plan)
    assert isinstance(result, Plan)
    at = result.args.index("--enable-lora")
    assert result.args[at : at + 12] == (
        "--enable-lora",
        "--max-lora-rank=64",
        "--max-loras-per-batch=4",
        *("--lora-target-modules", *ATTENTION),
        *("--lora-paths", "a0=/models/adapters/claim/a0", "a1=/models/adapters/claim/a1"),
        *result.args[at + 11 : at + 12],
    )
    assert tuple(one for one in result.args if one not in result.args[at : at + 11]) == plain.args
    # 80 layers x 4 places x rank 64 x 2 bytes x (3 hidden + q + 2 kv of a rank, and q of a rank + hidden).
    width = 3 * 8192 + 8192 // 4 + 2 * 8192 // 4 + 8192 // 4 + 8192
    assert (
        adapters.bytes_per_rank(with_adapters(BASE, OF_BASE, replace(OF_BASE, rank=64)), 4) == 80 * 4 * 64 * 2 * width
    )
    assert result.kv_tokens < plain.kv_tokens
    assert any(step.startswith("adapters: 2 of rank 64 at most; 4 places on each GPU") for step in result.steps)
    assert result.host_memory_bytes == plain.host_memory_bytes + 4 * 2 * (1 << 28)
    assert not result.warnings


def test_without_adapters_nothing_changes() -> None:
    result = planned(BASE)
    assert isinstance(result, Plan)
    assert not any("lora" in one for one in result.args)
    assert not any("adapter" in step for step in result.steps)
    assert "adapters" not in BASE.to_json()


def test_a_group_of_projections_is_whole_and_more_than_seven_adapters_share_places() -> None:
    one, all_three = replace(OF_BASE, modules=("q_proj",)), replace(OF_BASE, modules=MODULES[:3])
    sizes = {adapters.bytes_per_rank(with_adapters(BASE, found), 1) for found in (one, all_three)}
    assert len(sizes) == 1
    assert [adapters.slots(with_adapters(BASE, *[one] * number)) for number in (1, 3, 4, 7, 16)] == [4, 4, 8, 8, 8]


MISMATCHES: dict[str, tuple[str, AdapterFacts, str]] = {
    "hidden size": ("Qwen1.5-7B-Chat", OF_BASE, "for a base model of 80 layers or more, and this one has 32"),
    "fewer layers": ("Qwen1.5-7B-Chat", replace(OF_BASE, layers=32), "with hidden_size 8192, and this one has 4096"),
    "heads": ("Qwen1.5-72B-Chat", replace(OF_BASE, query=4096), "with a query width 4096, and this one has 8192"),
    "KV heads": ("Qwen1.5-72B-Chat", replace(OF_BASE, key_value=1024), "with a key and value width 1024"),
    "MLP": ("Qwen1.5-72B-Chat", replace(OF_BASE, intermediate=11008), "with intermediate_size 11008"),
    "experts": (
        "Qwen1.5-MoE-A2.7B",
        AdapterFacts(8, ("q_proj", "up_proj"), 24, 2048, 2048, 0, 0, 1),
        "only for models without experts",
    ),
}


@pytest.mark.parametrize(("model", "found", "sentence"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_an_adapter_of_another_base_is_refused_with_both_numbers(
    model: str, found: AdapterFacts, sentence: str
) -> None:
    result = planned(with_adapters(facts(model), found))
    assert isinstance(result, NoFit)
    assert result.reason is Reason.ADAPTER_MISMATCH
    assert result.message.startswith("spec.adapters[a0] pvc://claim/a0/: ")
    assert sentence in result.message


def test_an_option_that_the_plan_sets_is_refused_and_the_backend_is_free() -> None:
    checkpoint = with_adapters(BASE, OF_BASE)
    refused = planned(checkpoint, args=("--max-lora-rank=8",))
    assert isinstance(refused, NoFit)
    assert refused.reason is Reason.INVALID_OVERRIDE
    assert "spec.engine.args has --max-lora-rank, which follows from spec.adapters" in refused.message
    free = planned(checkpoint, args=("--lora-backend=triton", "--enable-lora"))
    assert isinstance(free, Plan)
    assert not free.warnings


def test_a_plan_without_a_cluster_says_that_nobody_read_them() -> None:
    asked = spec(adapters=(Adapter("a", AdapterSource("pvc://claim/a")),))
    result = plan(asked, BASE, pools("H100-80GB"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert result.warnings == ("spec.adapters were not read, so their options and their memory are not in this plan",)


def test_a_record_is_read_again_and_a_wrong_one_is_refused() -> None:
    checkpoint = with_adapters(BASE, OF_BASE)
    record = checkpoint.to_json()
    assert records.from_json(record) == checkpoint
    (entry,) = record["adapters"]
    for wrong in (7, [entry] * 65, [None], [entry | {"name": ""}], [entry | {"facts": [1]}], [{"name": "a"}]):
        with pytest.raises(InvalidFactsError):
            records.from_json(record | {"adapters": wrong})


def test_a_plan_has_room_for_what_its_options_say() -> None:
    before = with_adapters(BASE, OF_BASE)
    made = planned(before)
    assert isinstance(made, Plan)
    room = adapters.room(made)
    assert (room.rank, room.modules, room.slots) == (16, frozenset(ATTENTION), 4)
    assert room.lacks(with_adapters(BASE, OF_BASE, replace(OF_BASE, rank=8, modules=("v_proj",)), OF_BASE)) == ""
    larger = with_adapters(BASE, OF_BASE, replace(OF_BASE, rank=32))
    assert room.lacks(larger) == "spec.adapters[a1] has the rank 32, and they have room for 16"
    other = with_adapters(BASE, replace(OF_BASE, modules=("q_proj", "up_proj", "down_proj")))
    assert room.lacks(other) == "spec.adapters[a0] changes up_proj, down_proj, for which they have no room"
    assert room.lacks(with_adapters(BASE, *[OF_BASE] * 4)) == "4 adapters need 8 places, and they have 4"
    without = planned(BASE)
    assert isinstance(without, Plan)
    assert adapters.room(without).lacks(before)


def test_the_host_memory_of_more_adapters_is_compared_with_what_was_planned() -> None:
    made = planned(with_adapters(BASE, OF_BASE))
    assert isinstance(made, Plan)
    assert made.adapter_host_bytes == made.gpus_per_node * (1 << 28)
    assert Plan.from_json(made.to_json()) == made
    without = planned(BASE)
    assert isinstance(without, Plan)
    assert "adapter_host_bytes" not in without.to_json()
    ranks, spare = 8, [replace(OF_BASE, weight_bytes=1 << 29), OF_BASE]
    assert adapters.lacks_host_memory(with_adapters(BASE, *spare), ranks, ranks << 28) == ""
    large = with_adapters(BASE, *[replace(OF_BASE, weight_bytes=3 << 30)] * 16)
    why = adapters.lacks_host_memory(large, ranks, ranks << 28)
    assert why == "spec.adapters need 384.0 GiB of host memory in each pod, and they requested 2.0 GiB for adapters"


def test_one_projection_is_read_too_and_the_kept_plan_differs_only_in_the_adapters() -> None:
    one = with_adapters(BASE, replace(OF_BASE, modules=("q_proj",)))
    made = planned(one)
    assert isinstance(made, Plan)
    assert adapters.room(made).modules == {"q_proj"}
    two = with_adapters(BASE, *[replace(OF_BASE, modules=("q_proj",))] * 2)
    kept, fresh = adapters.with_adapters(made, two, {}), planned(two)
    assert isinstance(fresh, Plan)
    assert (kept.args, kept.steps) == (fresh.args, fresh.steps)
    assert replace(kept, args=(), steps=()) == replace(made, args=(), steps=())
