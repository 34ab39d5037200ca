"""Which GPUs there are, from node objects as Kubernetes gives them."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.hardware.inventory import GpuPool, UnlabelledNode, inventory

H100 = "NVIDIA-H100-80GB-HBM3"


def _node(name: str = "n", product: str = H100, gpus: str | None = "8", **extra: str) -> dict[str, Any]:
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "81559", **extra}
    allocatable = {"cpu": "64"} | ({"nvidia.com/gpu": gpus} if gpus is not None else {})
    return {
        "metadata": {"name": name, "labels": {key: value for key, value in labels.items() if value}},
        "spec": {},
        "status": {"allocatable": allocatable},
    }


def _extra(**labels: str) -> dict[str, str]:
    return {f"nvidia.com/gpu.{key.replace('_', '-')}": value for key, value in labels.items()}


def test_nodes_of_a_product_are_one_entry_cordoned_ones_included() -> None:
    cordoned = _node("b") | {"spec": {"unschedulable": True}}
    (product,) = inventory([_node("a"), cordoned], []).products
    assert (product.product, product.memory_mib, product.gpus_per_node, product.nodes) == (H100, 81559, 8, 2)
    assert (product.selector, product.declared) == ({"nvidia.com/gpu.product": H100}, False)


def test_unequal_nodes_count_with_least_memory_and_most_gpus() -> None:
    (product,) = inventory([_node(gpus="4"), _node(gpus="2", **_extra(memory="80000"))], []).products
    assert (product.memory_mib, product.gpus_per_node) == (80000, 4)


SEEN = {
    "allocatable": (_node(gpus="8"), 8),
    "fewer than the label": (_node(gpus="7", **_extra(count="8")), 7),
    "more than the label": (_node(gpus="8", **_extra(count="4")), 4),
    "more than the label of a cloud": (_node(gpus="8", **{"karpenter.k8s.aws/instance-gpu-count": "2"}), 2),
    "a label of 0 says nothing": (_node(gpus="8", **_extra(count="0")), 8),
    "a label without a number says nothing": (_node(gpus="8", **_extra(count="eight")), 8),
    "only a capacity": (_node() | {"status": {"capacity": {"nvidia.com/gpu": "8"}}}, 8),
    "a number without quotes": (_node() | {"status": {"allocatable": {"nvidia.com/gpu": 8}}}, 8),
}


@pytest.mark.parametrize(("node", "gpus"), SEEN.values(), ids=SEEN.keys())
def test_gpus_of_a_node(node: dict[str, Any], gpus: int) -> None:
    assert [product.gpus_per_node for product in inventory([node], []).products] == [gpus]


NONE: list[dict[str, Any]] = [
    {},
    {"metadata": None},
    {"metadata": {"name": "x"}, "status": {"allocatable": None}},
    {"metadata": {"name": "x", "labels": None}, "status": {"allocatable": {"cpu": "4"}}},
    # What a device plugin that was removed leaves behind.
    {
        "metadata": {"name": "x"},
        "status": {"allocatable": {"nvidia.com/gpu": "0"}, "capacity": {"nvidia.com/gpu": "0"}},
    },
    {"metadata": {"name": "x"}, "status": {"allocatable": {"nvidia.com/hostdev": "8"}}},
]


@pytest.mark.parametrize("node", NONE)
def test_nodes_without_gpus_are_nothing(node: dict[str, Any]) -> None:
    hardware = inventory([node], [])
    assert (hardware.products, hardware.unlabelled, hardware.ignored) == ((), (), ())


def test_gpus_without_labels_are_told() -> None:
    unknown = [_node("b", product="Other", **_extra(memory="")), _node("a", product="Other", **_extra(memory="80GB"))]
    hardware = inventory([_node("c", product=""), *unknown, _node("d")], [])
    assert hardware.unlabelled == (
        UnlabelledNode("a", "Other", ("nvidia.com/gpu.memory",)),
        UnlabelledNode("b", "Other", ("nvidia.com/gpu.memory",)),
        UnlabelledNode("c", "", ("nvidia.com/gpu.product",)),
    )
    assert len(hardware.products) == 1


def test_the_memory_of_a_known_board_needs_no_label() -> None:
    (product,) = inventory([_node(**_extra(memory=""))], []).products
    assert (product.memory_mib, product.compute_capability) == (81559, (9, 0))


def _sliced() -> dict[str, Any]:
    node = _node(gpus="0")
    node["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] = "7"
    return node


SHARED = {
    "suffix": (_node(product=f"{H100}-SHARED"), f"n: {H100}-SHARED is shared between pods"),
    "time slicing": (_node(**_extra(sharing_strategy="time-slicing")), "is shared between pods"),
    "renamed by the plugin": (_node(**_extra(replicas="4")), "is shared between pods"),
    "GKE": (_node(**{"cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}), "is shared between pods"),
    "MIG, single strategy": (_node(product=f"{H100}-MIG-1g.10gb"), "MIG-1g.10gb: a MIG slice, no whole GPU"),
    "MIG, mixed strategy": (_sliced(), f"n: {H100}: cut into MIG slices"),
}


@pytest.mark.parametrize(("node", "says"), SHARED.values(), ids=SHARED.keys())
def test_shared_gpus_are_left_out_with_a_reason(node: dict[str, Any], says: str) -> None:
    hardware = inventory([node], [])
    assert hardware.products == ()
    assert says in hardware.ignored[0]


DISAGREE = {
    "memory of another board": (
        _node(**_extra(memory="40960")),
        (40960, 8),
        "n: nvidia.com/gpu.memory is 40960, but a NVIDIA-H100-80GB-HBM3 has 81559 MiB: planned with 40960",
    ),
    "memory beyond the board": (_node(**_extra(memory="163118")), (81559, 8), "planned with 81559"),
    "fewer than labelled": (
        _node(gpus="4", **_extra(count="8"))
        | {"status": {"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}}},
        (81559, 4),
        "n: nvidia.com/gpu.count is 8, but its capacity is 4 nvidia.com/gpu",
    ),
}


@pytest.mark.parametrize(("node", "shape", "says"), DISAGREE.values(), ids=DISAGREE.keys())
def test_labels_that_disagree_are_told(node: dict[str, Any], shape: tuple[int, int], says: str) -> None:
    hardware = inventory([node], [])
    assert [(one.memory_mib, one.gpus_per_node) for one in hardware.products] == [shape]
    (note,) = hardware.notes
    assert says in note


def test_a_gpu_out_of_order_is_told_and_is_no_fault_of_the_labels() -> None:
    node = _node(gpus="7", **_extra(count="8"))
    node["status"]["capacity"] = {"nvidia.com/gpu": "8"}
    (note,) = inventory([node], []).notes
    assert note.startswith("n: only 7 of 8 nvidia.com/gpu are allocatable, because the device plugin finds the others")
    assert "label" not in note


def test_nodes_with_the_same_reason_share_a_sentence() -> None:
    hardware = inventory([_node(f"n{index}", product=f"{H100}-SHARED") for index in range(3)], [])
    (sentence,) = hardware.ignored
    assert sentence.startswith(f"n0 and 2 more nodes: {H100}-SHARED is shared between pods")


def test_compute_capability_is_the_labels_else_the_boards() -> None:
    other = _node(product="Other", **{"nvidia.com/gpu.compute.major": "8", "nvidia.com/gpu.compute.minor": "6"})
    unknown = _node(product="Unknown", **{"nvidia.com/gpu.compute.major": "x", "nvidia.com/gpu.compute.minor": "y"})
    capabilities = {one.product: one.compute_capability for one in inventory([_node(), other, unknown], []).products}
    assert capabilities == {H100: (9, 0), "Other": (8, 6), "Unknown": None}


def test_a_cloud_without_feature_discovery_is_selected_by_its_own_label() -> None:
    gke = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    node = _node(product="", **_extra(memory=""), **gke)
    hardware = inventory([node, _node(), _node(product="NVIDIA-L4", **_extra(memory="23034"))], [])
    assert hardware.unlabelled == ()
    assert [(one.product, one.memory_mib, one.selector) for one in hardware.products] == [
        (H100, 81559, {"nvidia.com/gpu.product": H100}),
        ("NVIDIA-L4", 23034, gke),
        ("NVIDIA-L4", 23034, {"nvidia.com/gpu.product": "NVIDIA-L4"}),
    ]


def test_nodes_that_a_replica_may_span() -> None:
    nodes = [_node("a"), _node("b"), _node("c", gpus="4")]
    (product,) = inventory(nodes, []).products
    assert (product.nodes, product.gpus_per_node, product.full_nodes) == (3, 8, 2)
    (product,) = inventory(nodes, [GpuPool("p", H100, 81559, 8, max_nodes=5)]).products
    assert (product.nodes, product.full_nodes) == (3, 5)
    (product,) = inventory([], [GpuPool("p", H100, 81559, 8, max_nodes=5)]).products
    assert (product.nodes, product.full_nodes) == (0, 5)


def test_cost_and_capability_of_pools() -> None:
    pools = [
        GpuPool("a", H100, 81559, 8, cost_per_gpu_hour=2900),
        GpuPool("b", H100, 81559, 8, cost_per_gpu_hour=3100, compute_capability=(8, 0)),
        GpuPool("c", H100, 81559, 8),
        GpuPool("d", "Other", 1000, 8),
    ]
    h100, other = inventory([], pools).products
    assert (h100.cost_per_gpu_hour, h100.compute_capability) == (3100, (8, 0))
    assert (other.cost_per_gpu_hour, other.compute_capability) == (None, None)
    (h100,) = inventory([_node()], pools[:1]).products
    assert (h100.cost_per_gpu_hour, h100.nodes) == (2900, 1)


def test_a_pool_is_a_product_without_nodes() -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    pools = [GpuPool("p", "NVIDIA-L4", 23034, 8, {"pool": "l4"}, (toleration,)), GpuPool("q", H100, 81559, 4)]
    products = inventory([], pools).products
    assert [(one.product, one.nodes, one.declared) for one in products] == [(H100, 0, True), ("NVIDIA-L4", 0, True)]
    assert products[0].selector == {"nvidia.com/gpu.product": H100}
    assert (products[1].selector, products[1].tolerations) == ({"pool": "l4"}, (toleration,))


def test_a_pool_joins_the_nodes_that_exist() -> None:
    toleration = {"key": "gpu"}
    pools = [
        GpuPool("p", H100, 81000, 4, {"pool": "h"}, (toleration,)),
        GpuPool("q", H100, 81559, 4, {}, (toleration,)),
    ]
    (product,) = inventory([_node()], pools).products
    assert (product.memory_mib, product.gpus_per_node, product.nodes, product.declared) == (81000, 8, 1, True)
    assert (product.selector, product.tolerations) == ({"pool": "h"}, (toleration,))


def test_order_of_nodes_does_not_matter() -> None:
    nodes = [_node("a"), _node("b", product="NVIDIA-L4"), _node("c", product=""), _node("d", product="A-SHARED")]
    assert inventory(nodes, []) == inventory(reversed(nodes), [])


def test_a_product_answers_to_both_names_in_any_case() -> None:
    (product,) = inventory([_node()], []).products
    assert all(product.called(name) for name in (H100, H100.lower(), "h100-80gb", "NVIDIA-H100-SXM5-80GB"))
    assert not product.called("H100")
    (other,) = inventory([_node(product="Other")], []).products
    assert other.called("other")


def _tainted(name: str, *taints: tuple[str, str, str], product: str = H100) -> dict[str, Any]:
    listed = [{"key": key, "value": value, "effect": effect} for key, value, effect in taints]
    return _node(name, product) | {"spec": {"taints": listed}}


TEAM = ("team", "a", "NoSchedule")
TOLERATED: dict[str, tuple[dict[str, str], bool]] = {
    "equal": ({"key": "team", "value": "a"}, True),
    "equal, with its effect": ({"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}, True),
    "exists": ({"key": "team", "operator": "Exists"}, True),
    "exists for all": ({"operator": "Exists"}, True),
    "another value": ({"key": "team", "value": "b"}, False),
    "another key": ({"key": "group", "operator": "Exists"}, False),
    "another effect": ({"key": "team", "operator": "Exists", "effect": "NoExecute"}, False),
}


@pytest.mark.parametrize(("toleration", "usable"), TOLERATED.values(), ids=TOLERATED.keys())
def test_tainted_nodes_are_hardware_for_those_who_tolerate_them(toleration: dict[str, str], usable: bool) -> None:
    seen = inventory([_tainted("a", TEAM)], []).usable([toleration])
    assert [one.product for one in seen.products] == ([H100] if usable else [])
    assert bool(seen.ignored) != usable


def test_what_is_left_out_for_its_taint_is_said() -> None:
    seen = inventory([_tainted("a", TEAM), _tainted("b", TEAM, ("gone", "", "NoExecute"))], []).usable([])
    assert seen.ignored == (
        f"1 node with {H100}: tainted gone:NoExecute, team=a:NoSchedule, which spec.pod.tolerations does not tolerate",
        f"1 node with {H100}: tainted team=a:NoSchedule, which spec.pod.tolerations does not tolerate",
    )


@pytest.mark.parametrize(
    "key",
    [
        "node.cilium.io/agent-not-ready",
        "ebs.csi.aws.com/agent-not-ready",
        "node.cloudprovider.kubernetes.io/uninitialized",
        "karpenter.sh/disrupted",
        "karpenter.sh/unregistered",
        "ToBeDeletedByClusterAutoscaler",
        "startup-taint.cluster-autoscaler.kubernetes.io/gpu",
        "readiness.k8s.io/gpu",
    ],
)
def test_what_controllers_remove_by_themselves_asks_for_no_toleration(key: str) -> None:
    (product,) = inventory([_tainted("a", (key, "true", "NoExecute"))], []).products
    assert product.taints == ()


def test_passing_taints_and_the_gpu_taint_bar_nobody() -> None:
    passing = _tainted(
        "a", ("node.kubernetes.io/not-ready", "", "NoExecute"), ("nvidia.com/gpu", "present", "NoSchedule")
    )
    soft = _tainted("b", ("team", "a", "PreferNoSchedule"))
    (product,) = inventory([passing, soft], []).usable([]).products
    assert (product.nodes, product.taints) == (2, ())


def test_usable_joins_the_nodes_of_a_product_again() -> None:
    seen = inventory([_tainted("a", TEAM), _node("b")], [])
    assert [one.nodes for one in seen.products] == [1, 1]
    assert [one.nodes for one in seen.usable([{"key": "team", "operator": "Exists"}]).products] == [2]
    assert [one.nodes for one in seen.usable([]).products] == [1]


def test_a_pool_brings_tolerations_for_the_nodes_of_its_product() -> None:
    pool = GpuPool("p", H100, 81559, 8, tolerations=({"key": "team", "operator": "Exists"},))
    (product,) = inventory([_tainted("a", TEAM)], [pool]).usable([]).products
    assert (product.nodes, product.declared, len(product.tolerations)) == (1, True, 1)


def test_hardware_can_be_thought_of_beside_or_instead() -> None:
    hardware = inventory([_node("a"), _node("b", product="NVIDIA-L4", **_extra(memory="23034"))], [])
    (more,) = inventory([_node("c", gpus="4")], []).products
    assert [one.gpus_per_node for one in hardware.with_product(more).products] == [8, 8, 4]
    assert [(one.short, one.gpus_per_node) for one in hardware.with_instead(more).products] == [
        ("L4", 8),
        ("H100-80GB", 4),
    ]
