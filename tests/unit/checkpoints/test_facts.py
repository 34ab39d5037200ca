"""Facts: what they cost in memory, and the family of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import Checkpoint


def catalogued(model: str) -> Checkpoint:
    facts = catalog.lookup(f"Qwen/{model}")
    assert facts is not None
    return facts


@pytest.mark.parametrize(
    ("model", "tp", "kib"),
    [
        ("Qwen1.5-0.5B", 1, 96),
        ("Qwen1.5-7B", 1, 512),
        ("Qwen1.5-72B", 1, 2560),
        ("Qwen1.5-72B-Chat", 4, 640),
        ("Qwen1.5-72B", 64, 40),
        ("Qwen2.5-7B", 4, 14),
        ("Qwen3-235B-A22B", 8, 47),
        ("Qwen3.5-27B", 1, 64),
    ],
)
def test_cache_bytes_per_token(model: str, tp: int, kib: int) -> None:
    facts = catalogued(model)
    assert facts.kv_bytes_per_token(tp) == kib * 1024
    assert facts.kv_bytes_per_token(tp, value_bytes=1) == kib * 512


def test_state_of_linear_attention() -> None:
    """A log of SGLang shows 144 MiB of state and 2.8 MiB of convolution per slot for this model."""
    facts = catalogued("Qwen3.5-27B")
    assert facts.state_bytes_per_request(1) == 144 * 2**20 + 48 * 10240 * 3 * 2
    assert facts.state_bytes_per_request(4) == facts.state_bytes_per_request(1) // 4
    assert catalogued("Qwen3-32B").state_bytes_per_request(1) == 0


def test_weights_of_one_rank() -> None:
    """Qwen2.5-7B at TP 8 would copy its 4 KV heads twice; norms are everywhere, the rest is divided."""
    facts = catalogued("Qwen2.5-7B")
    norms = 2 * (2 * 28 + 1) * 3584
    kv = 2 * 28 * 2 * (3584 + 1) * 512
    assert (facts.replicated_bytes, facts.kv_weight_bytes) == (norms, kv)
    divided = facts.weight_bytes - norms - kv
    assert [facts.weight_bytes_per_rank(tp) for tp in (1, 4, 8)] == [
        facts.weight_bytes,
        norms + kv // 4 + divided // 4,
        norms + kv // 4 + divided // 8,
    ]
    assert catalogued("Qwen3-235B-A22B").weight_bytes_per_rank(8, 2) == catalogued(
        "Qwen3-235B-A22B"
    ).weight_bytes_per_rank(8)


@pytest.mark.parametrize(("vocab", "tp", "rows"), [(151936, 1, 0), (151665, 1, 15), (151936, 3, 128), (100, 2, 28)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_is_padded(vocab: int, tp: int, rows: int, tied: bool) -> None:
    facts = replace(catalogued("Qwen2.5-0.5B"), vocab=vocab, tied=tied, replicated_bytes=0, kv_weight_bytes=0)
    padding = rows * 896 * 2 * (1 if tied else 2)
    assert facts.weight_bytes_per_rank(tp) == -(-(facts.weight_bytes + padding) // tp)


@pytest.mark.parametrize(
    ("model", "family"),
    [("Qwen1.5-7B", "Qwen2"), ("Qwen2-57B-A14B", "Qwen2"), ("Qwen3-30B-A3B", "Qwen3"),
     ("Qwen3-Next-80B-A3B-Instruct", "Qwen3-Next"), ("Qwen3.5-35B-A3B", "Qwen3.5")],
)  # fmt: skip
def test_family(model: str, family: str) -> None:
    facts = catalogued(model)
    assert facts.family == family
    assert replace(facts, architecture="LlamaForCausalLM").family == ""
