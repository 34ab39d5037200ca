"""MIG slices and shared GPUs as nodes offer them, by the labels of GPU feature discovery and of GKE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.hardware.boards import short_name, whole
from qwen_operator.hardware.inventory import GpuPool, GpuProduct, Inventory, inventory
from qwen_operator.hardware.shares import Share, ShareKind, part_of, profile_mib

A100, H100 = "NVIDIA-A100-SXM4-40GB", "NVIDIA-H100-80GB-HBM3"
GPU = "nvidia.com/gpu"


def node(name: str, labels: dict[str, str], resources: dict[str, str], **rest: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels, **rest.get("metadata", {})},
        "spec": rest.get("spec", {}),
        "status": {"allocatable": resources, "capacity": resources},
    }


def whole_labels(product: str, memory: str, count: str = "8", **more: str) -> dict[str, str]:
    return {f"{GPU}.product": product, f"{GPU}.memory": memory, f"{GPU}.count": count} | {
        f"{GPU}.{key.replace('_', '-')}": value for key, value in more.items()
    }


def mixed(profile: str, product: str, memory: str, count: str, **more: str) -> dict[str, str]:
    prefix = f"nvidia.com/mig-{profile}"
    return {
        f"{prefix}.product": f"{product}-MIG-{profile}",
        f"{prefix}.memory": memory,
        f"{prefix}.count": count,
    } | {f"{prefix}.{key.replace('_', '-')}": value for key, value in more.items()}


@dataclass(frozen=True)
class Case:
    labels: dict[str, str]
    resources: dict[str, str]
    resource: str
    product: str
    count: int
    mib: int
    share: Share
    selector: dict[str, str]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=())


SHARED_SLICE = "nvidia.com/mig-2g.10gb.shared"
MIG, SLICED = Share(ShareKind.MIG), ShareKind.TIME_SLICING
CASES = {
    "MIG, mixed": Case(
        whole_labels(A100, "40960") | mixed("3g.20gb", A100, "20096", "16"),
        {GPU: "0", "nvidia.com/mig-3g.20gb": "16"},
        "nvidia.com/mig-3g.20gb",
        f"{A100}-MIG-3g.20gb",
        16,
        20096,
        MIG,
        {"nvidia.com/mig-3g.20gb.product": f"{A100}-MIG-3g.20gb"},
    ),
    "MIG, mixed, a media engine": Case(
        whole_labels(H100, "81559") | mixed("1g.10gb.me", H100, "9984", "1"),
        {GPU: "7", "nvidia.com/mig-1g.10gb.me": "1"},
        "nvidia.com/mig-1g.10gb.me",
        f"{H100}-MIG-1g.10gb.me",
        1,
        9984,
        MIG,
        {"nvidia.com/mig-1g.10gb.me.product": f"{H100}-MIG-1g.10gb.me"},
    ),
    "MIG, mixed, without labels of the slices": Case(
        whole_labels("NVIDIA-H200", "143771"),
        {GPU: "0", "nvidia.com/mig-1g.18gb": "56"},
        "nvidia.com/mig-1g.18gb",
        "NVIDIA-H200-MIG-1g.18gb",
        56,
        16220,
        MIG,
        {f"{GPU}.product": "NVIDIA-H200"},
        ("no label nvidia.com/mig-1g.18gb.memory: planned with 16220 MiB, 88 %",),
    ),
    "MIG, mixed, a memory of the whole board": Case(
        whole_labels("NVIDIA-B200", "183359") | mixed("1g.23gb", "NVIDIA-B200", "183359", "7"),
        {"nvidia.com/mig-1g.23gb": "7"},
        "nvidia.com/mig-1g.23gb",
        "NVIDIA-B200-MIG-1g.23gb",
        7,
        23552,
        MIG,
        {"nvidia.com/mig-1g.23gb.product": "NVIDIA-B200-MIG-1g.23gb"},
        ("nvidia.com/mig-1g.23gb.memory is 183359, more than the profile 1g.23gb has",),
    ),
    "MIG, mixed, shared by time slicing": Case(
        whole_labels(A100, "40960") | mixed("2g.10gb", A100, "9984", "24", replicas="2"),
        {"nvidia.com/mig-2g.10gb.shared": "48"},
        "nvidia.com/mig-2g.10gb.shared",
        f"{A100}-MIG-2g.10gb-SHARED",
        48,
        4992,
        Share(SLICED, 2),
        {"nvidia.com/mig-2g.10gb.product": f"{A100}-MIG-2g.10gb", "nvidia.com/mig-2g.10gb.replicas": "2"},
    ),
    "MIG, single": Case(
        whole_labels(f"{A100}-MIG-3g.20gb", "20096", "16"),
        {GPU: "16"},
        GPU,
        f"{A100}-MIG-3g.20gb",
        16,
        20096,
        MIG,
        {f"{GPU}.product": f"{A100}-MIG-3g.20gb"},
        names=("A100-40GB-MIG-3g.20gb",),
    ),
    "MIG of GKE": Case(
        {
            "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
            "cloud.google.com/gke-gpu-partition-size": "3g.20gb",
        },
        {GPU: "2"},
        GPU,
        f"{A100}-MIG-3g.20gb",
        2,
        18022,
        MIG,
        {
            "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
            "cloud.google.com/gke-gpu-partition-size": "3g.20gb",
        },
        ("no label nvidia.com/gpu.memory",),
        (f"{A100}-MIG-3g.20gb",),
    ),
    "time slicing, renamed": Case(
        whole_labels("NVIDIA-A10", "23028", "2", replicas="4", sharing_strategy="time-slicing"),
        {GPU: "0", f"{GPU}.shared": "8"},
        f"{GPU}.shared",
        "NVIDIA-A10-SHARED",
        8,
        5757,
        Share(SLICED, 4),
        {f"{GPU}.product": "NVIDIA-A10", f"{GPU}.replicas": "4"},
    ),
    "time slicing under a name of one's own": Case(
        whole_labels("NVIDIA-L40S", "46068", "4", replicas="2"),
        {f"{GPU}-half": "8"},
        f"{GPU}-half",
        "NVIDIA-L40S-SHARED",
        8,
        23034,
        Share(SLICED, 2),
        {f"{GPU}.product": "NVIDIA-L40S", f"{GPU}.replicas": "2"},
    ),
    "time slicing under the name of whole GPUs": Case(
        whole_labels("Tesla-T4-SHARED", "15360", "1", replicas="4", sharing_strategy="time-slicing"),
        {GPU: "4"},
        GPU,
        "Tesla-T4-SHARED",
        4,
        3840,
        Share(SLICED, 4),
        {f"{GPU}.product": "Tesla-T4-SHARED", f"{GPU}.replicas": "4"},
        names=("T4-SHARED",),
    ),
    "MPS": Case(
        whole_labels("NVIDIA-A10-SHARED", "23028", "1", replicas="2", sharing_strategy="mps"),
        {GPU: "2"},
        GPU,
        "NVIDIA-A10-SHARED",
        2,
        11514,
        Share(ShareKind.MPS, 2),
        {f"{GPU}.product": "NVIDIA-A10-SHARED", f"{GPU}.replicas": "2"},
        names=("nvidia-a10-shared",),
    ),
    "time sharing of GKE": Case(
        {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing",
            "cloud.google.com/gke-max-shared-clients-per-gpu": "2",
        },
        {GPU: "2"},
        GPU,
        "NVIDIA-L4-SHARED",
        2,
        11517,
        Share(SLICED, 2),
        {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-max-shared-clients-per-gpu": "2",
        },
        names=("NVIDIA-L4-SHARED",),
    ),
    "more shares than the label says": Case(
        whole_labels("NVIDIA-A10", "23028", "2", replicas="4"),
        {f"{GPU}.shared": "80"},
        f"{GPU}.shared",
        "NVIDIA-A10-SHARED",
        80,
        575,
        Share(SLICED, 40),
        {f"{GPU}.product": "NVIDIA-A10", f"{GPU}.replicas": "4"},
        (
            "n: a label states 4 pods per GPU, but 80 nvidia.com/gpu.shared on 2 GPUs are more: planned with 40 pods "
            "per GPU",
        ),
    ),
    "more shares than the GPUs have, under the name of whole GPUs": Case(
        whole_labels("NVIDIA-A10-SHARED", "23028", "2", replicas="4"),
        {GPU: "80"},
        GPU,
        "NVIDIA-A10-SHARED",
        8,
        5757,
        Share(SLICED, 4),
        {f"{GPU}.product": "NVIDIA-A10-SHARED", f"{GPU}.replicas": "4"},
        ("allow 8 nvidia.com/gpu, the node offers 80: planned with 8",),
        ("A10-SHARED",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_part_is_planned_with_its_memory_and_found_again_by_its_selector(case: Case) -> None:
    seen = inventory([node("n", case.labels, case.resources)], []).offering(case.resource, case.names)
    (product,) = seen.products
    assert (product.product, product.gpus_per_node, product.memory_mib) == (case.product, case.count, case.mib)
    assert (product.share, product.resource_name, dict(product.selector)) == (case.share, case.resource, case.selector)
    assert len(seen.notes) == len(case.notes)
    for words, note in zip(case.notes, seen.notes, strict=True):
        assert words in note
    assert seen.ignored == ()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_part_is_no_whole_gpu(case: Case) -> None:
    seen = inventory([node("n", case.labels, case.resources)], []).offering(GPU, ())
    assert all(one.share is None for one in seen.products)
    assert case.resources.get(GPU, "0") in ("0", "7") or not seen.products


UNUSABLE = {
    "slices that are being made": (
        node(
            "n",
            whole_labels(A100, "40960") | {"nvidia.com/mig.config.state": "rebooting"},
            {"nvidia.com/mig-1g.5gb": "7"},
        ),
        "nvidia.com/mig-1g.5gb",
        "n: nvidia.com/mig-1g.5gb: MIG is being configured (nvidia.com/mig.config.state=rebooting)",
    ),
    "shares of an unknown number": (
        node("n", whole_labels("NVIDIA-A10", "23028"), {f"{GPU}.shared": "8"}),
        f"{GPU}.shared",
        "n: 8 x nvidia.com/gpu.shared: no label says how many pods share one GPU (nvidia.com/gpu.replicas)",
    ),
    "slices of an unknown GPU": (
        node("n", {}, {"nvidia.com/mig-1g.5gb": "7"}),
        "nvidia.com/mig-1g.5gb",
        "n: nvidia.com/mig-1g.5gb: no label names the GPU",
    ),
    "shares of a GPU without memory": (
        node("n", {f"{GPU}.product": "NVIDIA-X1", f"{GPU}.replicas": "4"}, {f"{GPU}.shared": "8"}),
        f"{GPU}.shared",
        "n: NVIDIA-X1: no label says how much memory it has",
    ),
}


@pytest.mark.parametrize(("bad", "resource", "says"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_part_that_cannot_be_sized_has_a_sentence(bad: dict[str, Any], resource: str, says: str) -> None:
    seen = inventory([bad], []).offering(resource, ())
    assert seen.products == ()
    (sentence,) = seen.ignored
    assert says in sentence


def test_a_named_share_that_cannot_be_sized_says_why() -> None:
    bad = node("n", {f"{GPU}.product": "NVIDIA-A10-SHARED", f"{GPU}.memory": "23028"}, {GPU: "8"})
    seen = inventory([bad], [])
    assert len(seen.ignored) == 1
    why = seen.offering(GPU, ["NVIDIA-A10-SHARED"]).ignored
    assert "n: 8 x nvidia.com/gpu: no label says how many pods share one GPU" in why[1]


def test_amounts_are_no_shares() -> None:
    labels = whole_labels("NVIDIA-A10", "23028", "2", replicas="4")
    assert inventory([node("n", labels, {f"{GPU}.memory": "8192", f"{GPU}-cores": "100"})], []).parts == ()


@pytest.mark.parametrize(
    ("slices", "whole_gpus"),
    [({"1g.10gb": "7"}, 1), ({"1g.10gb": "8"}, 0), ({"3g.40gb": "2"}, 1), ({"1g.10gb.shared": "28"}, 2)],
)
def test_gpus_that_are_cut_are_not_whole_as_well(slices: dict[str, str], whole_gpus: int) -> None:
    """The plugin still lists both GPUs. Seven compute slices are one GPU; shares of slices are more than slices."""
    resources = {GPU: "2"} | {f"nvidia.com/mig-{name}": count for name, count in slices.items()}
    seen = inventory([node("n", whole_labels(H100, "81559", "2"), resources)], [])
    assert sum(one.gpus_per_node for one in seen.products) == whole_gpus
    assert any("restart the device plugin" in one for one in (*seen.notes, *seen.ignored)) == (whole_gpus < 2)


def test_shares_of_an_unhealthy_gpu_make_the_others_no_larger() -> None:
    """Two GPUs with four shares each. No label says so. All shares tell it, and not the healthy ones."""
    made = node("n", whole_labels("NVIDIA-A10", "23028", "2"), {f"{GPU}.shared": "4"})
    made["status"]["capacity"] = {f"{GPU}.shared": "8"}
    (product,) = inventory([made], []).offering(f"{GPU}.shared", ()).products
    assert (product.share, product.memory_mib, product.gpus_per_node) == (Share(SLICED, 4), 5757, 4)


def _share(labels: dict[str, str], resources: dict[str, str], resource: str = f"{GPU}.shared") -> tuple[int, int, int]:
    """The pods of one GPU or slice, the memory of each, and how many there are."""
    (product,) = inventory([node("n", labels, resources)], []).offering(resource, ()).products
    assert product.share is not None
    return product.share.pods, product.memory_mib, product.gpus_per_node


def _says(labels: dict[str, str], resources: dict[str, str], resource: str = f"{GPU}.shared") -> str:
    """Why these shares cannot be planned."""
    seen = inventory([node("n", labels, resources)], []).offering(resource, ())
    assert seen.products == ()
    (sentence,) = seen.ignored
    return sentence


SOME_SHARED = {GPU: "2", f"{GPU}.shared": "16"}


def test_gpus_that_are_not_shared_make_the_shares_of_the_others_no_larger() -> None:
    """Two of four GPUs are shared, by eight pods each."""
    assert _share(whole_labels("NVIDIA-A10", "23028", "4"), SOME_SHARED) == (8, 2878, 16)


@pytest.mark.parametrize(("label", "pods"), [("2", 8), ("4", 8), ("8", 8), ("16", 16)])
def test_the_source_that_promises_less_memory_counts(label: str, pods: int) -> None:
    labels = whole_labels("NVIDIA-A10", "23028", "4", replicas=label)
    assert _share(labels, SOME_SHARED) == (pods, 23028 // pods, 16)
    notes = inventory([node("n", labels, SOME_SHARED)], []).offering(f"{GPU}.shared", ()).notes
    said = f"n: a label states {label} pods per GPU, but 16 nvidia.com/gpu.shared on 2 GPUs are more: planned with 8"
    assert [note.startswith(said) for note in notes] == ([True] if int(label) < 8 else [])


def test_slices_that_are_not_shared_make_the_shares_of_the_others_no_larger() -> None:
    labels = whole_labels(A100, "40960") | mixed("2g.10gb", A100, "9984", "24")
    resources = {"nvidia.com/mig-2g.10gb": "12", SHARED_SLICE: "48"}
    assert _share(labels, resources, SHARED_SLICE) == (4, 2496, 48)


def test_slices_that_keep_the_name_of_whole_gpus_are_offered_beside_shared_ones() -> None:
    labels, resources = whole_labels(f"{A100}-MIG-3g.20gb", "20096", "8"), {GPU: "4", f"{GPU}.shared": "16"}
    assert _share(labels, resources) == (4, 5024, 16)
    (alone,) = inventory([node("n", labels, resources)], []).offering(GPU, [f"{A100}-MIG-3g.20gb"]).products
    assert (alone.share, alone.memory_mib, alone.gpus_per_node) == (MIG, 20096, 4)


@pytest.mark.parametrize(
    "beside",
    [{GPU: "4"}, {GPU: "5"}, {"nvidia.com/mig-1g.6gb": "4"}, {"nvidia.com/mig-1g.6gb.shared": "8"}],
    ids=["as many whole GPUs as the label", "more whole GPUs", "slices", "shared slices"],
)
def test_resources_that_do_not_tell_how_many_gpus_are_shared(beside: dict[str, str]) -> None:
    labels, resources = whole_labels("NVIDIA-A30", "24576", "4"), {f"{GPU}.shared": "16", **beside}
    assert "no label says how many pods share one GPU (nvidia.com/gpu.replicas)" in _says(labels, resources)
    assert _share({**labels, f"{GPU}.replicas": "8"}, resources) == (8, 3072, 16)


@pytest.mark.parametrize("label", [{}, {f"{GPU}.replicas": "2"}], ids=["no label", "the label of one of them"])
def test_shares_under_several_names_cannot_be_told_apart(label: dict[str, str]) -> None:
    """Two GPUs with eight pods each, and two with two."""
    resources = {f"{GPU}.shared": "16", f"{GPU}-half": "4", f"{GPU}-old": "0", f"{GPU}.memory": "8192"}
    for name, count in ((f"{GPU}.shared", 16), (f"{GPU}-half", 4)):
        assert _says(whole_labels("NVIDIA-A10", "23028", "4") | label, resources, name) == (
            f"n: {count} x {name}: its GPUs are shared under several names (nvidia.com/gpu-half, "
            "nvidia.com/gpu.shared), and no label says how many pods share one GPU of each: declare the nodes in "
            "gpuPools with podsPerGpu"
        )


def test_nodes_that_no_label_tells_apart_are_planned_with_the_smallest_share() -> None:
    """Memory and pods must belong together: their product is the memory of the GPU."""
    labels = whole_labels("NVIDIA-A10", "23028", "2")
    nodes = [node(f"n{count}", labels, {f"{GPU}.shared": count}) for count in ("4", "16")]
    taint = {"spec": {"taints": [{"key": "team", "effect": "NoSchedule"}]}}
    nodes.append(node("tainted", labels, {f"{GPU}.shared": "4"}, **taint))
    products = inventory(nodes, []).offering(f"{GPU}.shared", ()).products
    assert [(one.share and one.share.pods, one.memory_mib) for one in products] == [(8, 2878), (8, 2878)]


def test_shares_of_slices_without_their_number_are_counted() -> None:
    labels = whole_labels(A100, "40960") | mixed("2g.10gb", A100, "9984", "24", replicas="1")
    (product,) = inventory([node("n", labels, {SHARED_SLICE: "48"})], []).offering(SHARED_SLICE, ()).products
    assert (product.share, product.memory_mib, product.gpus_per_node) == (Share(SLICED, 2), 4992, 48)


def test_shares_of_slices_that_cannot_be_counted_have_a_sentence() -> None:
    labels = whole_labels(A100, "40960") | {"nvidia.com/mig-2g.10gb.memory": "9984"}
    seen = inventory([node("n", labels, {SHARED_SLICE: "48"})], []).offering(SHARED_SLICE, ())
    assert seen.products == ()
    (sentence,) = seen.ignored
    assert "48 x nvidia.com/mig-2g.10gb.shared: no label says how many pods share one slice" in sentence
    assert "(nvidia.com/mig-2g.10gb.replicas)" in sentence


def test_unhealthy_slices_are_named() -> None:
    made = node("n", whole_labels(A100, "40960") | mixed("1g.5gb", A100, "4864", "7"), {"nvidia.com/mig-1g.5gb": "6"})
    made["status"]["capacity"] = {"nvidia.com/mig-1g.5gb": "7"}
    seen = inventory([made], []).offering("nvidia.com/mig-1g.5gb", ())
    assert [one.gpus_per_node for one in seen.products] == [6]
    assert seen.notes == ("n: only 6 of 7 nvidia.com/mig-1g.5gb are allocatable",)


def test_hami_shares_are_no_choice() -> None:
    hami = {"annotations": {"hami.io/node-nvidia-register": "GPU-0,10,46068,100,NVIDIA-A40,0,true:"}}
    labels = whole_labels("NVIDIA-A40", "46068", "1", replicas="10")
    seen = inventory([node("n", labels, {GPU: "10"}, metadata=hami)], [])
    assert seen.parts == ()


def test_shares_of_different_size_have_selectors_of_their_own() -> None:
    """The product label is the same; a pod for a half must not run on a quarter."""
    nodes = [
        node(name, whole_labels("NVIDIA-A10-SHARED", "23028", "1", replicas=pods), {GPU: pods})
        for name, pods in (("a", "2"), ("b", "4"))
    ]
    seen = inventory(nodes, []).offering(GPU, ["A10-SHARED"]).products
    assert [(one.memory_mib, one.selector[f"{GPU}.replicas"]) for one in seen] == [(11514, "2"), (5757, "4")]


def test_the_product_that_a_sentence_names_is_one_that_can_be_chosen() -> None:
    """Whatever shares or cuts the GPUs: the cure in the sentence is a cure."""
    gke = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    cut = {"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}
    clients = {"cloud.google.com/gke-max-shared-clients-per-gpu": "2"}
    for labels in (
        gke | cut,
        gke | cut | clients,
        gke | clients | {"cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"},
        whole_labels("NVIDIA-A10", "23028", "2", replicas="4"),
        whole_labels(f"{A100}-MIG-1g.5gb", "4864", "8"),
    ):
        seen = inventory([node("n", labels, {GPU: "8"})], [])
        [sentence] = seen.ignored
        name = sentence.partition("set spec.hardware.products: [")[2].partition("]")[0]
        assert [one.product for one in seen.offering(GPU, [name]).products] == [name]
        assert seen.offering(GPU, [name]).ignored == ()


def test_a_chosen_share_is_not_left_out_at_the_same_time() -> None:
    shared = node("s", whole_labels("NVIDIA-A10-SHARED", "23028", "1", replicas="2"), {GPU: "2"})
    other = node("t", whole_labels("NVIDIA-L4-SHARED", "23034", "1", replicas="2"), {GPU: "2"})
    seen = inventory([shared, other], [])
    assert len(seen.ignored) == 2
    chosen = seen.offering(GPU, ["NVIDIA-A10-SHARED"])
    assert [one.product for one in chosen.products] == ["NVIDIA-A10-SHARED"]
    assert len(chosen.ignored) == 1
    assert "t: NVIDIA-L4-SHARED is shared" in chosen.ignored[0]


def test_a_taint_with_the_name_of_the_resource_is_tolerated() -> None:
    taint = {"key": "nvidia.com/mig-3g.20gb", "effect": "NoSchedule"}
    labels = whole_labels(A100, "40960") | mixed("3g.20gb", A100, "20096", "16")
    tainted = node("n", labels, {"nvidia.com/mig-3g.20gb": "16"}, spec={"taints": [taint]})
    (product,) = inventory([tainted], []).usable(()).offering("nvidia.com/mig-3g.20gb", ()).products
    assert product.tolerations == ({"key": "nvidia.com/mig-3g.20gb", "operator": "Exists"},)
    team = node("n", labels, {"nvidia.com/mig-3g.20gb": "16"}, spec={"taints": [{**taint, "key": "team"}]})
    barred = inventory([team], []).usable(()).offering("nvidia.com/mig-3g.20gb", ())
    assert barred.products == ()
    assert "tainted team:NoSchedule" in barred.ignored[0]


POOLS = {
    "slices": (
        GpuPool("m", H100, 40320, 14, resource_name="nvidia.com/mig-3g.40gb"),
        (f"{H100}-MIG-3g.40gb", 40320, MIG, {"nvidia.com/mig-3g.40gb.product": f"{H100}-MIG-3g.40gb"}),
    ),
    "renamed shares": (
        GpuPool("s", "NVIDIA-A10", 23028, 8, resource_name=f"{GPU}.shared", pods_per_gpu=4),
        ("NVIDIA-A10-SHARED", 5757, Share(SLICED, 4), {f"{GPU}.product": "NVIDIA-A10"}),
    ),
    "shares under the name of whole GPUs": (
        GpuPool("p", "NVIDIA-A10", 23028, 8, pods_per_gpu=4),
        ("NVIDIA-A10-SHARED", 5757, Share(SLICED, 4), {f"{GPU}.product": "NVIDIA-A10-SHARED"}),
    ),
    "slices under the name of whole GPUs": (
        GpuPool("q", f"{A100}-MIG-3g.20gb", 20096, 16),
        (f"{A100}-MIG-3g.20gb", 20096, MIG, {f"{GPU}.product": f"{A100}-MIG-3g.20gb"}),
    ),
}


@pytest.mark.parametrize(("pool", "right"), POOLS.values(), ids=POOLS.keys())
def test_a_pool_declares_slices_and_shares(pool: GpuPool, right: tuple[str, int, Share, dict[str, str]]) -> None:
    seen = inventory([], [pool])
    (part,) = seen.parts
    assert (part.product, part.memory_mib, part.share, dict(part.selector)) == right
    assert seen.products == ()


def test_a_pool_joins_its_slices() -> None:
    labels = whole_labels(H100, "81559") | mixed("3g.40gb", H100, "40320", "14")
    seen = inventory(
        [node("n", labels, {"nvidia.com/mig-3g.40gb": "14"})],
        [GpuPool("m", H100, 40320, 14, cost_per_gpu_hour=1000, resource_name="nvidia.com/mig-3g.40gb")],
    )
    (part,) = seen.parts
    assert (part.nodes, part.declared, part.cost_per_gpu_hour, part.full_nodes) == (1, True, 1000, 1)


def test_names_of_parts() -> None:
    assert whole(f"{A100}-MIG-1g.5gb-SHARED") == (A100, "-MIG-1g.5gb-SHARED")
    assert whole("NVIDIA-RTX-PRO-6000-Blackwell-MIG-1g.24gb-me")[1] == "-MIG-1g.24gb-me"
    assert whole(A100) == (A100, "")
    assert short_name(f"{A100}-MIG-3g.20gb") == "A100-40GB-MIG-3g.20gb"
    assert short_name("NVIDIA-A10-SHARED") == "A10-SHARED"
    assert part_of(A100, GPU) == (A100, None)
    assert [profile_mib(name) for name in ("nvidia.com/mig-1g.5gb", "1c.3g.20gb", GPU, "7g")] == [4505, 18022, 0, 0]


RESOURCES = st.sampled_from(
    [GPU, f"{GPU}.shared", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb.shared"]
)
NUMBERS = st.integers(0, 96).map(str)
LABELS = st.fixed_dictionaries(
    {},
    optional={
        f"{GPU}.product": st.sampled_from([H100, f"{H100}-SHARED", f"{H100}-MIG-1g.10gb", f"{H100}-MIG-INVALID"]),
        f"{GPU}.memory": st.sampled_from(["81559", "9984", "0"]),
        f"{GPU}.count": NUMBERS,
        f"{GPU}.replicas": NUMBERS,
        f"{GPU}.sharing-strategy": st.sampled_from(["none", "time-slicing", "mps"]),
        "nvidia.com/mig-1g.10gb.count": NUMBERS,
        "nvidia.com/mig-1g.10gb.memory": st.sampled_from(["9984", "81559", "x"]),
        "nvidia.com/mig-1g.10gb.replicas": NUMBERS,
        "cloud.google.com/gke-max-shared-clients-per-gpu": NUMBERS,
    },
)


def _offered(seen: Inventory) -> list[GpuProduct]:
    return [*seen.products, *seen.parts]


@given(LABELS, st.dictionaries(RESOURCES, NUMBERS))
def test_a_node_never_yields_more_than_it_offers(labels: dict[str, str], resources: dict[str, str]) -> None:
    for one in _offered(inventory([node("n", labels, resources)], [])):
        assert 0 < one.gpus_per_node <= int(resources[one.resource_name])
        pods = one.share.pods if one.share else 1
        assert one.memory_mib * pods <= 81559
        assert one.full_nodes == 1
