"""What is known of GPU products, and the names under which people and clouds know them."""

from __future__ import annotations

import re

import pytest

from qwen_operator.hardware.boards import Board, BoardLabel, board, boards, capability, named_by, short_name, similar


def test_the_data_is_complete_and_its_names_are_no_riddles() -> None:
    assert len(boards()) == 72
    assert len({one.product for one in boards()}) == 72
    for one in boards():
        assert 15000 <= one.memory_mib <= 300000
        assert (6, 0) <= one.compute_capability <= (12, 1)
        assert board(one.product.lower()) is one
        entry = board(one.short)
        assert entry
        # One short name may stand for two boards only where both have the same memory and capability.
        assert (entry.memory_mib, entry.compute_capability) == (one.memory_mib, one.compute_capability)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("H100-80GB", "NVIDIA-H100-80GB-HBM3"),
        ("nvidia-h100-sxm5-80gb", "NVIDIA-H100-80GB-HBM3"),
        ("l40s", "NVIDIA-L40S"),
        ("NVIDIA-B300", "NVIDIA-B300-SXM6-AC"),
    ],
)
def test_boards_by_other_names(name: str, product: str) -> None:
    entry = board(name)
    assert entry
    assert entry.product == product


def test_an_unknown_name_is_no_board() -> None:
    assert board("H900") is None


SHORT = {
    "NVIDIA-H100-80GB-HBM3": "H100-80GB",
    "NVIDIA-H100-PCIe": "H100-80GB",
    "NVIDIA-H100-NVL": "H100-NVL",
    "NVIDIA-A100-SXM4-40GB": "A100-40GB",
    "NVIDIA-A800-SXM4-80GB": "A800-80GB",
    "NVIDIA-H200": "H200",
    "NVIDIA-L40S": "L40S",
    "Tesla-T4": "T4",
    "Tesla-V100-SXM2-32GB": "V100-32GB",
    "NVIDIA-GeForce-RTX-4090": "RTX4090",
    "NVIDIA-RTX-6000-Ada-Generation": "RTX-6000-Ada-Generation",
    "Custom": "Custom",
}


@pytest.mark.parametrize(("product", "short"), SHORT.items())
def test_short_names(product: str, short: str) -> None:
    assert short_name(product) == short


CLOUDS = [
    ("cloud.google.com/gke-accelerator", "nvidia-h100-80gb", "NVIDIA-H100-80GB-HBM3"),
    ("cloud.google.com/gke-accelerator", "nvidia-tesla-a100", "NVIDIA-A100-SXM4-40GB"),
    ("cloud.google.com/gke-accelerator", "nvidia-l4", "NVIDIA-L4"),
    ("eks.amazonaws.com/instance-gpu-name", "h100", "NVIDIA-H100-80GB-HBM3"),
    ("karpenter.k8s.aws/instance-gpu-name", "l40s", "NVIDIA-L40S"),
    ("k8s.amazonaws.com/accelerator", "nvidia-tesla-t4", "Tesla-T4"),
    ("node.kubernetes.io/instance-type", "g5.12xlarge", "NVIDIA-A10G"),
    ("node.kubernetes.io/instance-type", "p4de.24xlarge", "NVIDIA-A100-SXM4-80GB"),
    ("node.kubernetes.io/instance-type", "Standard_ND96isr_H100_v5", "NVIDIA-H100-80GB-HBM3"),
    ("node.kubernetes.io/instance-type", "Standard_NC24ads_A100_v4", "NVIDIA-A100-80GB-PCIe"),
    # karpenter-provider-gcp#319: nodes without the label of the accelerator.
    ("cloud.google.com/gke-accelerator", "nvidia-gb300", "NVIDIA-GB300"),
    ("node.kubernetes.io/instance-type", "a3-ultragpu-8g", "NVIDIA-H200"),
    ("node.kubernetes.io/instance-type", "g2-standard-96", "NVIDIA-L4"),
    ("node.kubernetes.io/instance-type", "gb300-4x", "NVIDIA-GB300"),
    ("gpu.nvidia.com/class", "A100_NVLINK_80GB", "NVIDIA-A100-SXM4-80GB"),
    ("gpu.nvidia.com/model", "H200", "NVIDIA-H200"),
]


@pytest.mark.parametrize(("label", "value", "product"), CLOUDS)
def test_labels_of_clouds(label: str, value: str, product: str) -> None:
    entry = board(product)
    assert entry
    assert named_by({label: value, "kubernetes.io/arch": "amd64"}) == BoardLabel(label, value, entry)


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"node.kubernetes.io/instance-type": "m5.large"},
        # AWS and Azure say a100 for 40 and 80 GB alike
        {"karpenter.k8s.aws/instance-gpu-name": "a100"},
        {"karpenter.azure.com/sku-gpu-name": "A100"},
        {"aliyun.accelerator/nvidia_name": "NVIDIA-X1"},
    ],
)
def test_labels_that_name_no_single_board(labels: dict[str, str]) -> None:
    assert named_by(labels) is None


@pytest.mark.parametrize(("kind", "mib"), [("g6f.large", 2861), ("g6f.4xlarge", 11444), ("gr6f.4xlarge", 11444)])
def test_instance_types_with_a_part_of_a_board(kind: str, mib: int) -> None:
    named = named_by({"karpenter.k8s.aws/instance-gpu-name": "l4", "node.kubernetes.io/instance-type": kind})
    assert named
    assert (named.label, named.board.short, named.part_mib) == ("node.kubernetes.io/instance-type", "L4", mib)


@pytest.mark.parametrize(("mib", "short"), [(40960, "A100-40GB"), (81920, "A100-80GB"), (5722, None), (0, None)])
def test_a_name_of_several_boards_and_a_memory_name_one(mib: int, short: str | None) -> None:
    named = named_by({"karpenter.k8s.aws/instance-gpu-name": "a100"}, mib)
    assert (named.board.short if named else None) == short


@pytest.mark.parametrize("one", boards(), ids=lambda one: one.product)
def test_every_board_is_named_by_a_label_that_holds_products(one: Board) -> None:
    assert named_by({"aliyun.accelerator/nvidia_name": one.product}) == BoardLabel(
        "aliyun.accelerator/nvidia_name", one.product, one
    )


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA-GeForce-RTX-5090",
        "NVIDIA-GB10",
        "NVIDIA-H800",
        "NVIDIA-H20",
        "NVIDIA-H20-3e",
        "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",
        "NVIDIA-RTX-PRO-6000-Blackwell-Workstation-Edition",
        "NVIDIA-RTX-PRO-6000-Blackwell-Max-Q-Workstation-Edition",
        "NVIDIA-B300-SXM6-AC",
        "NVIDIA-GH200-480GB",
        "NVIDIA-GH200-144G-HBM3e",
        "NVIDIA-A100-PCIE-40GB",
    ],
)
def test_boards_that_labels_of_2026_name(product: str) -> None:
    assert board(product)


def test_only_boards_with_one_memory_for_gpu_and_cpu_are_unified() -> None:
    assert {one.short for one in boards() if one.unified} == {"GB10", "Thor"}


@pytest.mark.parametrize(("text", "expected"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("9", None), ("x", None)])
def test_compute_capability(text: str, expected: tuple[int, int] | None) -> None:
    assert capability(text) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("H100", ("H100-80GB", "H100-NVL")),
        ("NVIDIA-H100-80GB", ("H100-80GB",)),
        ("nvidia a100", ("A100-40GB", "A100-80GB")),
        ("4090", ("RTX4090", "RTX4090D")),
        ("H100-80G", ("H100-80GB",)),
        ("L4OS", ("L40S",)),
        ("RTX5O90", ("RTX5090", "RTX5090D")),
        ("Gefroce-RTX-4090", ("RTX4090", "RTX4090D")),
        ("TPU-v5", ()),
        # Other numbers or other letters are other boards.
        ("RTX-5060", ()),
        ("H900", ()),
        ("L4S", ()),
        ("MI300X", ()),
        ("GB3000", ()),
        ("A30X", ()),
        ("T40", ()),
        ("nvidia", ()),
    ],
)
def test_what_a_name_that_is_none_may_mean(name: str, meant: tuple[str, ...]) -> None:
    assert similar(name) == meant


@pytest.mark.parametrize("missing", boards(), ids=lambda one: one.product)
def test_a_suggestion_has_all_numbers_of_the_name(missing: Board) -> None:
    """If the table lacked a board, or somebody types one digit too much, no other board is suggested for it."""
    numbers = re.findall("[0-9]+", missing.product)
    for typed in (missing.product, missing.short, f"{missing.product}9"):
        for short in similar(typed):
            meant = [one for one in boards() if one.short == short]
            assert any(set(re.findall("[0-9]+", typed)) <= set(re.findall("[0-9]+", one.product)) for one in meant)
    assert numbers or missing.short == "Thor" or "TITAN" in missing.product
