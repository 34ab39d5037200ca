"""Stored facts and reports of inspections: what is accepted, and what survives storage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import catalog, parallel, records
from qwen_operator.checkpoints.facts import InvalidFactsError, LinearAttention, Module, RopeScaling
from tests.unit.checkpoints.reports import GPTQ, HYBRID, REPORT, V1

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("report", [V1, REPORT, HYBRID], ids=["version 1", "version 2", "hybrid"])
@pytest.mark.parametrize(
    "quantization",
    [None, GPTQ, {"method": "gptq", "bits": 8, "groupSize": -1}, GPTQ | {"plain": ["self_attn", "mlp.experts"]}],
)
def test_an_inspection_becomes_facts_that_survive_storage(report: dict[str, Any], quantization: Any) -> None:
    facts = records.from_inspection(report | {"quantization": quantization})
    assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert (facts.source, facts.digest) == ("Inspection", "ab" * 32)
    expected = {None: "bfloat16", 4: "gptq 4 bit", 8: "gptq 8 bit"}
    assert facts.quantization_name == expected[quantization["bits"] if quantization else None]


def test_every_field_of_a_report_arrives() -> None:
    facts = records.from_inspection(HYBRID | {"quantization": GPTQ | {"plain": ["mlp.experts", "self_attn"]}})
    assert facts.linear == LinearAttention(36, 32, 16, 128, 128, 4, 2)
    assert facts.rope == RopeScaling("yarn", 4.0, 32768)
    assert (facts.attention_layers, facts.dense_layers, facts.experts) == (12, 1, 512)
    assert (facts.expert_intermediate, facts.shared_intermediate, facts.multimodal) == (512, 256, True)
    assert facts.weight_bytes == HYBRID["weightBytes"] - HYBRID["idleBytes"]
    assert (facts.replicated_bytes, facts.kv_weight_bytes) == (1000, 2000)
    assert facts.quantization is not None
    assert facts.quantization.plain == (Module.EXPERTS, Module.ATTENTION)
    assert (facts.quantization.symmetric, facts.quantization.desc_act) == (True, False)


def test_a_record_of_the_first_version_is_read_with_derived_fields() -> None:
    """The record is one that version 0.1.0 stored in a ControllerRevision."""
    record = {
        "architecture": "Qwen2MoeForCausalLM", "digest": "", "dtype": "bfloat16", "experts": 60, "head_dim": 128,
        "heads": 16, "hidden": 2048, "intermediate": 5632, "kv_heads": 16, "layers": 24, "max_positions": 8192,
        "quantization": {"bits": 8, "group_size": 128, "method": "fp8"}, "source": "Inspection", "tied": False,
        "vocab": 151936, "weight_bytes": 28631568384,
    }  # fmt: skip
    facts = records.from_json(record)
    assert (facts.attention_layers, facts.dense_layers, facts.linear, facts.rope) == (24, 0, None, None)
    assert (facts.expert_intermediate, facts.shared_intermediate, facts.multimodal) == (None, None, False)
    assert facts.kv_weight_bytes == 2 * 24 * 2048 * 2048 * 2
    assert facts.replicated_bytes == 2 * 2048 * (2 * 24 + 1 + 24 * 60)
    assert facts.quantization is not None
    assert facts.quantization.block == 128
    assert "the facts do not have the width" in (parallel.refusal(facts, 2) or "")
    assert records.from_json(facts.to_json()) == facts


def test_derived_shares_never_exceed_the_weights() -> None:
    facts = records.from_inspection(V1 | {"weightBytes": 10})
    assert (facts.kv_weight_bytes, facts.replicated_bytes) == (10, 0)
    assert facts.weight_bytes_per_rank(2) == 5


BROKEN = {
    "another version": ({"version": 3}, "version is 3"),
    "no layers": ({"layers": 0}, "layers is 0"),
    "absurd layers": ({"layers": 10**9}, "from 1 to 4096"),
    "negative": ({"layers": -1}, "layers is -1"),
    "text": ({"heads": "16"}, "heads is '16'"),
    "a truth value": ({"vocab": True}, "vocab is true"),
    "no number": ({"vocab": float("nan")}, "vocab is nan"),
    "null": ({"weightBytes": None}, "weightBytes is null"),
    "odd groups": ({"kvHeads": 5}, "heads 16 is not a multiple of kvHeads 5"),
    "dtype": ({"dtype": "int8"}, "one of bfloat16"),
    "no architecture": ({"architecture": ""}, "architecture is ''"),
    "tied": ({"tieWordEmbeddings": "yes"}, "true or false"),
    "digest": ({"configSha256": 7}, "configSha256 is 7"),
    "quantization": ({"quantization": "gptq"}, "null or an object"),
    "chat": ({"chat": {"template": 1}}, "chat.template is 1, it must be true or false"),
    "task": (
        {"chat": {"template": True, "tools": "Json", "thinking": "Never", "task": "Dream"}},
        "chat.task is 'Dream', it must be one of Generate, Embed, Rerank, Classify",
    ),
    "bits": ({"quantization": GPTQ | {"bits": 64}}, "bits is 64"),
    "group size": ({"quantization": GPTQ | {"groupSize": 0}}, "groupSize is 0"),
    "plain": ({"quantization": GPTQ | {"plain": ["lm_head"]}}, "plain is a list, it must be a list out of self_attn"),
    "plain text": ({"quantization": GPTQ | {"plain": "mlp"}}, "plain is 'mlp'"),
    "experts": ({"experts": 0}, "experts is 0"),
    "attention layers": ({"attentionLayers": 25}, "attentionLayers is 25"),
    "linear": ({"linear": []}, "linear is a list, it must be an object"),
    "rope": ({"rope": {"type": "yarn", "factor": 0.5}}, "factor is 0.5, it must be a number from 1 to 4096"),
    "infinite rope": ({"rope": {"type": "yarn", "factor": float("inf")}}, "factor is inf"),
    "more on every rank than there is": ({"kvWeightBytes": 10**12}, "kvWeightBytes is 1000000000000"),
    "nothing loaded": ({"idleBytes": REPORT["weightBytes"]}, "idleBytes is"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_report_that_cannot_be_facts_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidFactsError, match=says.replace("(", r"\(")):
        records.from_inspection(REPORT | change)


@pytest.mark.parametrize("missing", ["layers", "replicatedBytes", "configSha256"])
def test_a_report_without_a_field_is_refused(missing: str) -> None:
    with pytest.raises(InvalidFactsError, match=f"{missing} is missing, it must be"):
        records.from_inspection({key: value for key, value in REPORT.items() if key != missing})


@pytest.mark.parametrize("record", [{}, {"quantization": 1}, {"source": "Catalog", "layers": 1}, {"source": ""}])
def test_a_broken_record_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InvalidFactsError):
        records.from_json(record)


@UNHURRIED
@given(
    st.dictionaries(st.sampled_from(sorted(HYBRID)), st.none() | st.integers() | st.text(max_size=4) | st.booleans())
)
def test_any_report_is_facts_or_a_refusal(change: dict[str, Any]) -> None:
    try:
        facts = records.from_inspection(HYBRID | change)
    except InvalidFactsError:
        return
    assert facts.kv_bytes_per_token(1) > 0
    assert facts.weight_bytes_per_rank(1) >= facts.weight_bytes
    assert records.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_a_commit_is_part_of_the_record() -> None:
    facts = catalog.lookup("Qwen/Qwen1.5-7B")
    assert facts is not None
    pinned = replace(facts, commit="c" * 40)
    record = pinned.to_json()
    assert records.from_json(record) == pinned
    del record["commit"]
    assert records.from_json(record) == facts
    with pytest.raises(InvalidFactsError, match="commit is 7, it must be text"):
        records.from_json(record | {"commit": 7})
