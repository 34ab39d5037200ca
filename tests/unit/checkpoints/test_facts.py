"""Facts: what is accepted, what they cost, and how a model can be split."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError, Quantization

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REPORT: dict[str, Any] = {
    "version": 1,
    "architecture": "Qwen2ForCausalLM",
    "modelType": "qwen2",
    "dtype": "bfloat16",
    "layers": 24,
    "hidden": 1024,
    "heads": 16,
    "kvHeads": 16,
    "headDim": 64,
    "intermediate": 2816,
    "vocab": 151936,
    "maxPositions": 32768,
    "tieWordEmbeddings": True,
    "quantization": None,
    "experts": None,
    "weightBytes": 927975424,
    "tensors": 290,
    "files": 1,
    "tokenizer": True,
    "configSha256": "ab" * 32,
}
GPTQ = {"method": "GPTQ", "bits": 4, "groupSize": 128}


def _facts(**changes: Any) -> Checkpoint:
    return replace(Checkpoint.from_inspection(REPORT), **changes)


@pytest.mark.parametrize("quantization", [None, GPTQ, {"method": "gptq", "bits": 8, "groupSize": -1}])
@pytest.mark.parametrize("experts", [None, 60])
def test_an_inspection_becomes_facts_that_survive_storage(quantization: Any, experts: int | None) -> None:
    facts = Checkpoint.from_inspection(REPORT | {"quantization": quantization, "experts": experts})
    assert Checkpoint.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert (facts.layers, facts.kv_heads, facts.weight_bytes) == (24, 16, 927975424)
    assert (facts.source, facts.digest, facts.experts) == ("Inspection", "ab" * 32, experts)
    expected = {None: "bfloat16", 4: "gptq 4 bit", 8: "gptq 8 bit"}
    assert facts.quantization_name == expected[quantization["bits"] if quantization else None]


BROKEN = {
    "another version": ({"version": 2}, "version is 2"),
    "no layers": ({"layers": 0}, "layers is 0"),
    "absurd layers": ({"layers": 10**9}, "from 1 to 4096"),
    "text": ({"heads": "16"}, "heads is '16'"),
    "a truth value": ({"vocab": True}, "vocab is True"),
    "missing": ({"weightBytes": None}, "weightBytes is None"),
    "odd groups": ({"kvHeads": 5}, "heads 16 is not a multiple of kvHeads 5"),
    "dtype": ({"dtype": "int8"}, "one of bfloat16"),
    "no architecture": ({"architecture": ""}, "architecture is ''"),
    "tied": ({"tieWordEmbeddings": "yes"}, "true or false"),
    "digest": ({"configSha256": 7}, "configSha256 is 7"),
    "quantization": ({"quantization": "gptq"}, "null or an object"),
    "bits": ({"quantization": GPTQ | {"bits": 64}}, "bits is 64"),
    "group size": ({"quantization": GPTQ | {"groupSize": 0}}, "groupSize is 0"),
    "experts": ({"experts": 0}, "experts is 0"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_report_that_cannot_be_facts_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidFactsError, match=says):
        Checkpoint.from_inspection(REPORT | change)


@pytest.mark.parametrize("record", [{}, {"quantization": 1}, {"source": "Catalog", "layers": 1}])
def test_a_broken_record_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InvalidFactsError):
        Checkpoint.from_json(record)


@UNHURRIED
@given(
    st.dictionaries(st.sampled_from(sorted(REPORT)), st.none() | st.integers() | st.text(max_size=4) | st.booleans())
)
def test_any_report_is_facts_or_a_refusal(change: dict[str, Any]) -> None:
    try:
        facts = Checkpoint.from_inspection(REPORT | change)
    except InvalidFactsError:
        return
    assert facts.kv_bytes_per_token(1) > 0


@pytest.mark.parametrize(
    ("model", "tp", "kib"),
    [("0.5B", 1, 96), ("7B", 1, 512), ("72B", 1, 2560), ("72B-Chat", 4, 640), ("72B", 64, 40), ("72B", 128, 40)],
)
def test_cache_bytes_per_token(model: str, tp: int, kib: int) -> None:
    facts = catalog.lookup(f"Qwen/Qwen1.5-{model}")
    assert facts is not None
    assert facts.kv_bytes_per_token(tp) == kib * 1024


G128 = Quantization("gptq", 4, 128)
FP8 = Quantization("fp8", 8, None)
SPLITS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "0.5B": ({}, [1, 2, 4, 8, 16]),
    "7B": ({"heads": 32, "kv_heads": 32, "head_dim": 128, "intermediate": 11008}, [1, 2, 4, 8, 16, 32]),
    "4B, 20 heads": ({"heads": 20, "kv_heads": 20, "head_dim": 128, "intermediate": 6912}, [1, 2, 4]),
    "grouped query": ({"heads": 40, "kv_heads": 8, "intermediate": 27392}, [1, 2, 4, 8]),
    "replicated KV": ({"heads": 32, "kv_heads": 4, "intermediate": 8192}, [1, 2, 4, 8, 16, 32]),
    "KV heads that do not copy": ({"heads": 12, "kv_heads": 3, "intermediate": 1200}, [1, 3, 6, 12]),
    "0.5B GPTQ": ({"quantization": G128}, [1, 2]),
    "1.8B GPTQ": ({"head_dim": 128, "intermediate": 5504, "quantization": G128}, [1]),
    "72B GPTQ": (
        {"heads": 64, "kv_heads": 64, "head_dim": 128, "intermediate": 24576, "quantization": G128},
        [1, 2, 4, 8, 16, 32, 64],
    ),
    "odd output width": ({"heads": 14, "kv_heads": 2, "intermediate": 4864, "quantization": G128}, [1]),
    "per column": ({"quantization": Quantization("gptq", 4, None)}, [1, 2]),
    "small groups": ({"quantization": Quantization("awq", 4, 32)}, [1, 2]),
    "GGUF": ({"quantization": Quantization("gguf", 4, None)}, [1]),
    "FP8": (
        {"heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 12288, "quantization": FP8},
        [1, 2, 4, 8, 16, 32],
    ),
    "FP8, narrow KV": ({"heads": 32, "kv_heads": 8, "intermediate": 12288, "quantization": FP8}, [1, 2, 4]),
    "experts": ({"experts": 4}, [1, 2, 4]),
    "quantized experts": ({"experts": 60, "quantization": G128}, [1]),
}


@pytest.mark.parametrize(("shape", "valid"), SPLITS.values(), ids=SPLITS.keys())
def test_valid_splits(shape: dict[str, Any], valid: list[int]) -> None:
    facts = _facts(**shape)
    assert [tp for tp in range(65) if facts.tensor_parallel_refusal(tp) is None] == valid


REFUSALS = {
    "not a number of GPUs": ({}, 0, "at least 1"),
    "heads": ({}, 3, "16 attention heads are not divisible by TP 3"),
    "KV heads": ({"heads": 24, "kv_heads": 8}, 6, "8 KV heads are not divisible by TP 6"),
    "copies": ({"heads": 12, "kv_heads": 3}, 4, "not a multiple of the 3 KV heads"),
    "width": ({"intermediate": 2817}, 2, "the MLP width 2817 is not divisible by TP 2"),
    "groups": ({"quantization": G128}, 4, "MLP width 2816 / TP 4 is not a multiple of the quantization group of 128"),
    "experts": ({"experts": 2}, 4, "more than the 2 experts"),
}


@pytest.mark.parametrize(("shape", "tp", "why"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_says_why(shape: dict[str, Any], tp: int, why: str) -> None:
    assert why in (_facts(**shape).tensor_parallel_refusal(tp) or "")


def test_the_catalog_has_the_shipped_rows() -> None:
    assert catalog.names() == tuple(
        f"Qwen/Qwen1.5-{size}{kind}" for size in ("0.5B", "72B", "7B") for kind in ("", "-Chat")
    )
    assert catalog.lookup("Qwen/Qwen1.5-9000B") is None


def test_catalog_bytes_are_two_per_parameter_and_follow_from_the_shapes() -> None:
    """The count is computed here from the architecture: embeddings, attention with QKV bias, MLP, norms."""
    rows = json.loads(files("qwen_operator.checkpoints").joinpath("catalog.json").read_text(encoding="utf-8"))["models"]
    for row in rows:
        facts = catalog.lookup(row["repositories"][0])
        assert facts is not None
        kv = facts.kv_heads * facts.head_dim
        attention = 2 * facts.hidden * facts.hidden + 2 * facts.hidden * kv + facts.hidden + 2 * kv
        layer = attention + 3 * facts.hidden * facts.intermediate + 2 * facts.hidden
        embeddings = facts.vocab * facts.hidden * (1 if facts.tied else 2)
        count = embeddings + facts.layers * layer + facts.hidden
        assert (row["parameters"], facts.weight_bytes) == (count, 2 * count)
        assert "no verbatim config.json" in row["verification"]
