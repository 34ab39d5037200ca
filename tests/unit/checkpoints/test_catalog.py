"""The catalog against numbers that were computed or published elsewhere: every model, every variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.checkpoints import catalog, parallel, records
from qwen_operator.checkpoints.config import parameters
from qwen_operator.checkpoints.facts import Checkpoint

MODELS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "models.json").read_text())["models"]
VARIANTS = [variant for model in MODELS for variant in model["variants"]]
DATA = json.loads((Path(catalog.__file__).parent / "catalog.json").read_text())["models"]
POWERS = (1, 2, 4, 8, 16, 32)

# The data's own value is marked approximate; ours differs by 0.07 %.
APPROXIMATE = {"Qwen/Qwen3-Next-80B-A3B-Instruct-FP8"}
# The data leaves out that the shared expert is quantized too, and so must keep to the step of 128 at every EP. It does
# apply that rule to Qwen3-Next. (The GPTQ variants of Qwen3.5 keep the shared expert at 16 bits.)
SHARED_EXPERT_LIMIT = {
    "Qwen/Qwen3.5-35B-A3B-FP8": 4,
    "Qwen/Qwen3.5-122B-A10B-FP8": 8,
    "Qwen/Qwen3.5-397B-A17B-FP8": 8,
}
# Sizes of these count the layer for multi-token prediction, which is not loaded: GiB of it, at the width it is stored.
MTP_GIB = {
    "Qwen/Qwen3.5-27B-FP8": 0.395,
    "Qwen/Qwen3.5-35B-A3B-FP8": 0.786,
    "Qwen/Qwen3.5-122B-A10B-FP8": 2.350,
    "Qwen/Qwen3.5-397B-A17B-FP8": 6.140,
    "Qwen/Qwen3.5-122B-A10B-GPTQ-Int4": 4.699,
    "Qwen/Qwen3.5-397B-A17B-GPTQ-Int4": 12.280,
}


def of(repository: str) -> Checkpoint:
    checkpoint = catalog.lookup(repository)
    assert checkpoint is not None, repository
    return checkpoint


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["family"])
def test_parameters_bytes_and_splits_of_every_model(model: dict[str, Any]) -> None:
    base = next(row for row in DATA if row["family"] == model["family"])
    assert parameters(base["config"]) == model["total_params"] == base["parameters"]
    facts = of(model["variants"][0]["repository"])
    assert facts.architecture == model["architecture"]
    assert facts.weight_bytes == model["bf16_weight_bytes"]
    assert facts.kv_bytes_per_token(1) == model["kv_bytes_per_token"]["bf16"]
    assert facts.kv_bytes_per_token(1, value_bytes=1) == model["kv_bytes_per_token"]["fp8"]
    assert [tp for tp in POWERS if parallel.refusal(facts, tp) is None] == model["tp_valid"]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant["repository"])
def test_bytes_and_splits_of_every_variant(variant: dict[str, Any]) -> None:
    repository = variant["repository"]
    entry = catalog.entry(repository)
    assert entry is not None
    assert entry.format == variant["format"]
    facts = entry.checkpoint
    if "weight_bytes_computed" in variant:
        tolerance = 1e-3 if repository in APPROXIMATE else 0
        assert facts.weight_bytes == pytest.approx(variant["weight_bytes_computed"], rel=tolerance, abs=0)
    size = variant.get("published_gib") or variant.get("weight_gib_computed")
    if size:
        assert facts.weight_bytes / 2**30 + MTP_GIB.get(repository, 0) == pytest.approx(size, rel=1.5e-3, abs=6e-4)
    if "tp_valid" in variant:
        assert [tp for tp in POWERS if parallel.refusal(facts, tp) is None] == variant["tp_valid"]
    if "tp_ep_valid" in variant:
        most = SHARED_EXPERT_LIMIT.get(repository, 32)
        splits = [[tp, ep] for tp, ep in parallel.valid(facts, 32) if tp in POWERS]
        assert splits == [pair for pair in variant["tp_ep_valid"] if pair[0] <= most]
    if "moe_tp_valid" in variant:
        assert facts.expert_intermediate is not None
        steps = facts.expert_intermediate // 128
        assert [n for n in range(1, steps + 1) if steps % n == 0] == variant["moe_tp_valid"]


def test_the_catalog_ships_what_is_published() -> None:
    assert {variant["repository"] for variant in VARIANTS} <= set(catalog.names())
    assert list(catalog.names()) == sorted(set(catalog.names()))
    assert catalog.lookup("Qwen/Qwen1.5-9000B") is None
    assert len(catalog.entries()) == len(catalog.names())


@pytest.mark.parametrize(
    ("repository", "width", "splits"),
    [
        ("Qwen/Qwen1.5-14B-Chat", 13696, [1, 2, 4, 8]),
        ("Qwen/Qwen1.5-14B-Chat-GPTQ-Int4", 14336, [1, 2, 4, 8]),
        ("Qwen/Qwen1.5-14B-Chat-GPTQ-Int8", 13696, [1]),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", 29696, [1, 2, 4, 8]),
        ("Qwen/Qwen2-72B-Instruct-AWQ", 29696, [1, 2, 4, 8]),
        ("Qwen/Qwen2.5-72B-Instruct", 29568, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_padded_widths_are_those_of_the_checkpoint(repository: str, width: int, splits: list[int]) -> None:
    facts = of(repository)
    assert facts.intermediate == width
    assert [tp for tp in POWERS if parallel.refusal(facts, tp) is None] == splits


def test_what_is_not_verified_says_so() -> None:
    unverified = {entry.repository for entry in catalog.entries() if not entry.verified}
    assert {"Qwen/CodeQwen1.5-7B", "Qwen/QwQ-32B", "Qwen/Qwen3.5-122B-A10B-GPTQ-Int4"} <= unverified
    assert "Qwen/Qwen3-32B" not in unverified
    for row in DATA:
        assert row["verification"]
        assert row["sources"]


def test_entries_are_described() -> None:
    entry = catalog.entry("Qwen/Qwen1.5-72B-Chat-GGUF")
    assert entry is not None
    assert (entry.family, entry.format, entry.checkpoint.weight_bytes) == ("Qwen1.5-72B", "gguf", 35927611744)
    assert entry.checkpoint.quantization_name == "gguf 3 bit"
    assert parallel.valid(entry.checkpoint, 8) == ((1, 1),)


def test_rows_survive_storage() -> None:
    for entry in catalog.entries():
        assert records.from_json(json.loads(json.dumps(entry.checkpoint.to_json()))) == entry.checkpoint


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["family"])
def test_more_ranks_hold_less_each_and_never_less_together(model: dict[str, Any]) -> None:
    for variant in model["variants"]:
        facts = of(variant["repository"])
        ranks = sorted({tp for tp, _ in parallel.valid(facts, 64)})
        shares = [facts.weight_bytes_per_rank(tp) for tp in ranks]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == facts.weight_bytes
        assert all(share * tp >= facts.weight_bytes for share, tp in zip(shares, ranks, strict=True))
        assert all(facts.kv_bytes_per_token(tp) * tp >= facts.kv_bytes_per_token(1) for tp in ranks)
