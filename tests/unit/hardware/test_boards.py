"""What is known of GPU products, and the names under which people and clouds know them."""

from __future__ import annotations

import pytest

from qwen_operator.hardware.boards import BoardLabel, board, boards, capability, named_by, short_name, similar


def test_the_data_is_complete_and_its_names_are_no_riddles() -> None:
    assert len(boards()) == 29
    assert len({one.product for one in boards()}) == 29
    for one in boards():
        assert 15000 <= one.memory_mib <= 300000
        assert (7, 0) <= one.compute_capability <= (12, 0)
        assert board(one.product.lower()) is one
        found = board(one.short)
        assert found
        # One short name may stand for two boards only where both have the same memory and capability.
        assert (found.memory_mib, found.compute_capability) == (one.memory_mib, one.compute_capability)


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
    found = board(name)
    assert found
    assert found.product == product


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
    ("gpu.nvidia.com/class", "A100_NVLINK_80GB", "NVIDIA-A100-SXM4-80GB"),
    ("gpu.nvidia.com/model", "H200", "NVIDIA-H200"),
]


@pytest.mark.parametrize(("label", "value", "product"), CLOUDS)
def test_labels_of_clouds(label: str, value: str, product: str) -> None:
    found = board(product)
    assert found
    assert named_by({label: value, "kubernetes.io/arch": "amd64"}) == BoardLabel(label, value, found)


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"node.kubernetes.io/instance-type": "m5.large"},
        # AWS and Azure say a100 for 40 and 80 GB alike
        {"karpenter.k8s.aws/instance-gpu-name": "a100"},
        {"karpenter.azure.com/sku-gpu-name": "A100"},
        # g6f instances have a part of an L4
        {"node.kubernetes.io/instance-type": "g6f.large"},
    ],
)
def test_labels_that_name_no_single_board(labels: dict[str, str]) -> None:
    assert named_by(labels) is None


@pytest.mark.parametrize(("text", "expected"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("9", None), ("x", None)])
def test_compute_capability(text: str, expected: tuple[int, int] | None) -> None:
    assert capability(text) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("H100", ("H100-80GB", "H100-NVL")),
        ("NVIDIA-H100-80GB", ("H100-80GB",)),
        ("nvidia a100", ("A100-40GB", "A100-80GB")),
        ("4090", ("RTX4090",)),
        ("H100-80G", ("H100-80GB",)),
        ("L4OS", ("L40S",)),
        ("TPU-v5", ()),
    ],
)
def test_what_a_name_that_is_none_may_mean(name: str, meant: tuple[str, ...]) -> None:
    assert similar(name) == meant
