"""The oracle and the peers' rules, against numbers worked out by hand or published."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench import oracle, peers
from bench.oracle import CARDS, Card, Model, Verdict

BY_NAME = {(model.repository, model.format): model for model in oracle.models()}
CARD = {card.product: card for card in CARDS}
H100 = CARD["NVIDIA-H100-80GB-HBM3"]


def model(name: str, form: str = "bf16") -> Model:
    return BY_NAME[f"Qwen/{name}", form]


SMALLEST = {
    "72B on H100: 40 GiB of KV cache for one request of 32768 tokens at TP 2 do not fit, 20 at TP 4 do": (
        ("Qwen1.5-72B-Chat", "bf16"), "NVIDIA-H100-80GB-HBM3", 4,
    ),
    "72B on H200": (("Qwen1.5-72B-Chat", "bf16"), "NVIDIA-H200", 2),
    "72B on L4: 134.65 / 8 + 10 GiB of 18.4": (("Qwen1.5-72B-Chat", "bf16"), "NVIDIA-L4", None),
    "28 heads: TP 4 is the most": (("Qwen2-57B-A14B-Instruct", "bf16"), "NVIDIA-L40S", 4),
    "unpadded AWQ of 14B runs on one GPU only": (("Qwen1.5-14B-Chat-AWQ", "awq_int4"), "NVIDIA-L4", None),
    "padded GPTQ of 14B can be split: 9.2 / 2 + 12.5 GiB of 19.4": (
        ("Qwen1.5-14B-Chat-GPTQ-Int4", "gptq_int4"), "NVIDIA-GeForce-RTX-4090", 2,
    ),
    "no GPTQ kernels on a T4": (("Qwen1.5-0.5B-Chat-GPTQ-Int4", "gptq_int4"), "Tesla-T4", None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "product", "gpus"), SMALLEST.values(), ids=SMALLEST.keys())
def test_smallest_number_of_gpus(name: tuple[str, str], product: str, gpus: int | None) -> None:
    verdict = oracle.smallest(model(*name), CARD[product], 32768)

    assert (verdict.gpus, verdict.boundary) == (gpus, False)


def test_near_a_boundary_the_oracle_does_not_answer() -> None:
    one = model("Qwen3-8B")
    room = oracle.static_gib(H100, 1)
    tokens = next(n for n in range(1024, 10**6, 1024) if oracle.need_gib(one, 1, n) > room * 0.99)

    assert oracle.smallest(one, H100, tokens) == Verdict(None, boundary=True)


def test_free_memory_is_that_of_the_logs() -> None:
    logged = {"NVIDIA-H100-80GB-HBM3": 78.48, "NVIDIA-H200": 139.13, "NVIDIA-L4": 21.75}

    for product, gib in logged.items():
        card = CARD[product]
        assert oracle.static_gib(card, 1) / card.fraction == pytest.approx(gib, abs=0.1)


def test_a_hybrid_needs_state_besides_its_kv_cache() -> None:
    hybrid = model("Qwen3.5-27B")

    # 48 layers x 48 heads x 128 x 128 x 4 B = 144 MiB, and 2.8 MiB of convolution windows
    assert hybrid.state_bytes / 2**20 == pytest.approx(146.8, abs=0.1)


KAITO = {
    "all GPUs of a node, where 4 would do": ("Qwen1.5-72B-Chat", 81559, 8, (8, 8, False)),
    "a node of 4 is right": ("Qwen1.5-72B-Chat", 81559, 4, (4, 4, False)),
    "28 heads on 8 GPUs": ("Qwen2-57B-A14B-Instruct", 81559, 8, (8, 8, True)),
    "28 heads on 8 small GPUs": ("Qwen2.5-7B-Instruct", 24564, 8, (8, 8, True)),
    "a small model: a copy per GPU": ("Qwen2.5-7B-Instruct", 81559, 8, (1, 1, False)),
    "two nodes": ("Qwen1.5-72B-Chat", 81559, 2, (4, 2, False)),
}


@pytest.mark.parametrize(("name", "mib", "per_node", "choice"), KAITO.values(), ids=KAITO.keys())
def test_kaito(name: str, mib: int, per_node: int, choice: tuple[int, int, bool]) -> None:
    chosen = peers.kaito(model(name), Card("card", mib, 9.0, 0.9, per_node))

    assert (chosen.gpus, chosen.tensor_parallel, chosen.refused) == choice


def test_ome_has_a_literal_per_model_or_nothing() -> None:
    choice = peers.ome(model("Qwen1.5-72B-Chat"))

    assert choice is not None
    assert (choice.gpus, choice.refused) == (8, False)
    assert peers.ome(model("Qwen1.5-72B-Chat-AWQ", "awq_int4")) is None


@pytest.mark.parametrize("module", ["oracle.py", "peers.py"])
def test_the_oracle_shares_no_code_with_the_planner(module: str) -> None:
    tree = ast.parse((Path(oracle.__file__).parent / module).read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}

    assert [name for name in names if name.startswith("qwen_")] == []
